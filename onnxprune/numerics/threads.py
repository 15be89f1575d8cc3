"""How many threads BLAS may use: one.

Two BLAS threads wait for each other by spinning, and on a machine that does anything else they make the work many
times slower; and what they add up differs from machine to machine in the last bit, which may turn a choice over.
"""

from __future__ import annotations

from threadpoolctl import threadpool_limits

one_blas_thread = threadpool_limits.wrap(limits=1, user_api="blas")
"""Decorates a function that computes: BLAS has one thread while it runs, and its own number again afterwards."""
