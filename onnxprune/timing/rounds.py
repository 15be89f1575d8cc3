"""Rounds: each times every model once, in random order, so a busy machine hits all of them alike and the ratio within a
round stays true.

A sample is a block of runs long enough for the clock, taken again where the system gave our core to another process
meanwhile; where that happens every time (a run longer than the scheduler's turns, on a full machine), a single
thread's sample counts as the time that it had its core. Knows nothing of models or sessions.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MIN_ROUNDS = 10
ATTEMPTS = 3  # at a sample that the system does not interrupt
LONG_MS = 5.0  # a run longer than the scheduler's turns is interrupted in the next attempt as well
SAMPLE_MS = 1.25  # the aim; a machine that then speeds up still gives samples of at least 1 ms


def timed_rounds(
    runs: Sequence[Callable[[], None]],
    per_sample: Sequence[int],
    orders: NDArray[np.intp],
    deadline: float,
    progress: Callable[[int, int], None] | None,
    *,
    alone: bool = False,
) -> tuple[NDArray[np.float64], int]:
    """(ms per run: (rounds that ran, models), samples interrupted in every attempt).

    Stops early where one more round would miss the deadline.

    Args:
        runs: one run of each model.
        per_sample: runs in a sample of each.
        orders: (rounds, models), who runs when.
        deadline: on `time.perf_counter`.
        progress: called with (rounds done, rounds).
        alone: as for `timed_sample`.
    """
    times, interrupted = np.empty(orders.shape), 0
    begin = time.perf_counter()
    for done, order in enumerate(orders):
        now = time.perf_counter()
        if done >= MIN_ROUNDS and now + (now - begin) / done > deadline:
            return times[:done], interrupted
        for i in order:
            times[done, i], clean = timed_sample(runs[i], per_sample[i], alone=alone)
            interrupted += not clean
        if progress is not None:
            progress(done + 1, len(orders))
    return times, interrupted


def timed_sample(run: Callable[[], None], runs: int, *, alone: bool = False) -> tuple[float, bool]:
    """(ms per run, whether we kept our core): the first clean attempt, or the fastest of them all.

    A sample that contains another process's turn on our core measures the scheduler, not the model. On a
    full machine that is every third sample of a millisecond and every one of ten, and the median is no longer
    out of its reach. Where the work is `alone` in this thread, the fastest is by the time that the thread had its
    core, and of a long one the first; with other threads or a device that time says nothing.
    """
    best, block = math.inf, range(runs)
    for _ in range(ATTEMPTS):
        turns = lost_turns()
        had, before = time.thread_time_ns(), time.perf_counter_ns()
        for _ in block:
            run()
        ms = (time.perf_counter_ns() - before) / runs / 1e6
        on_core = (time.thread_time_ns() - had) / runs / 1e6
        if lost_turns() == turns:
            return ms, True
        best = min(best, on_core if alone and on_core > 0 else ms)
        if alone and best > LONG_MS:
            break
    return best, False


def lost_turns() -> int:
    """How often the scheduler took a core from this process; always 0 where the system does not tell."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of the samples."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
