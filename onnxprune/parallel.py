"""Threads: BLAS has one, and what does not depend on each other runs side by side.

Two BLAS threads wait for each other by spinning, and on a machine that does anything else they make the work many
times slower; and what they add up differs from machine to machine in the last bit, which may turn a choice over. So
whole tasks and fixed blocks of large products are handed to workers: what comes out does not depend on how many.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

one_blas_thread = threadpool_limits.wrap(limits=1, user_api="blas")
"""Decorates a function that computes: BLAS has one thread while it runs, and its own number again afterwards."""

MOST = 16
"""Workers at most: each holds activations, or a factor, of its own."""
LEAST, BLOCK = 128, 512
"""Rows or columns of a product that one worker makes at a time: at least, and at most."""
WORTH = 1 << 26
"""Multiplications below which a product is not shared out."""

PIECE = 1 << 12
"""Rows that are worked on at a time where every row is on its own."""

Item = TypeVar("Item")
Result = TypeVar("Result")
_limit: ContextVar[int | None] = ContextVar("limit", default=None)
_here = threading.local()


def workers() -> int:
    """How many tasks may run at a time from here: 1 inside of one."""
    if getattr(_here, "share", None) is not None:
        return 1
    return min(_cores(), _limit.get() or MOST)


def threads_here(threads: int | None) -> int | None:
    """How many threads ONNX Runtime may use where `threads` are allowed in all (None: its own choice)."""
    share: int | None = getattr(_here, "share", None)
    if share is None:
        return threads
    return share if threads is None else max(1, min(threads, share))


def within_threads(function: Callable[..., Result]) -> Callable[..., Result]:
    """Decorates a function with a keyword `threads`: no more workers than that while it runs."""

    @wraps(function)
    def bounded(*args: Any, threads: int | None = None, **rest: Any) -> Result:
        with _at_most(threads):
            return function(*args, threads=threads, **rest)

    return bounded


@contextmanager
def _at_most(threads: int | None) -> Iterator[None]:
    token = _limit.set(threads or _limit.get())
    try:
        yield
    finally:
        _limit.reset(token)


def each(function: Callable[[Item], Result], items: Iterable[Item], *, most: int = MOST) -> Iterator[Result]:
    """`map(function, items)`, several at a time; results in order. Items are taken when there is room for them.

    Args:
        function: must not change what another call reads.
        items: may be a generator: its own work is done here, in order.
        most: how many at a time at most, where each needs much memory.
    """
    count = min(workers(), most)
    if count == 1:
        yield from map(function, items)
        return
    share, gate = max(1, _cores() // count), threading.Semaphore(count)
    pending: deque[Future[Result]] = deque()

    def task(item: Item) -> Result:
        with gate:
            _here.share = share
            try:
                return function(item)
            finally:
                _here.share = None

    try:
        for item in items:
            if len(pending) >= 2 * count:
                yield pending.popleft().result()
            pending.append(_pool().submit(task, item))
        while pending:
            yield pending.popleft().result()
    finally:  # an error, or nobody wants the rest
        for future in pending:
            future.cancel()


def gram(x: np.ndarray) -> np.ndarray:
    """`xᵀx` (d, d) in x's precision, for x (rows, d)."""
    rows, d = x.shape
    if d <= BLOCK or rows * d * d < 2 * WORTH:  # BLAS makes but half of it
        return np.asarray(x.T @ x)
    out, step = np.empty((d, d), x.dtype), _step(d)

    def panel(at: int) -> None:
        stop = min(at + step, d)
        out[at:stop, at:stop] = x[:, at:stop].T @ x[:, at:stop]
        if stop < d:
            np.matmul(x[:, stop:].T, x[:, at:stop], out=out[stop:, at:stop])
            out[at:stop, stop:] = out[stop:, at:stop].T

    deque(each(panel, range(0, d, step)), 0)
    return out


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`a @ b` of two matrices."""
    rows, inner, columns = *a.shape, b.shape[1]
    if rows <= LEAST or rows * inner * columns < WORTH:
        return np.asarray(a @ b)
    out, step = np.empty((rows, columns), np.result_type(a, b)), _step(rows)

    def block(at: int) -> None:
        np.matmul(a[at : at + step], b, out=out[at : at + step])

    deque(each(block, range(0, rows, step)), 0)
    return out


def pieces(function: Callable[[slice], Result], count: int, each_holds: int = 1) -> list[Result]:
    """`function` of every piece of an axis of `count` entries, several at a time; results in order.

    Args:
        function: given the piece.
        count: entries of the axis.
        each_holds: rows that an entry stands for; a piece has about `PIECE` rows.
    """
    step = max(1, PIECE // each_holds)
    return list(each(function, (slice(at, min(at + step, count)) for at in range(0, count, step))))


def _step(length: int) -> int:
    """The same however many workers there are: about eight blocks, of sizes that kernels like."""
    return max(LEAST, min(BLOCK, -(-length // 8) // 64 * 64))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MOST, thread_name_prefix="onnxprune")


@cache
def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
