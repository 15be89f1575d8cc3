"""Threads: BLAS has one, and what does not depend on each other runs side by side.

Two BLAS threads wait for each other by spinning, and on a machine that does anything else they make the work many
times slower; and what they add up differs from machine to machine in the last bit, which may turn a choice over. So
whole tasks and fixed blocks of large products are handed to workers: what comes out does not depend on how many.

Memory: a run has a budget. Tasks that run side by side share what is left of it, and what is kept for long asks here
for room (`numerics.on_disk`). What is computed, and in which blocks, never depends on it either.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

MOST = 16
"""Workers at most."""
LEAST, BLOCK = 128, 512
"""Rows or columns of a product that one worker makes at a time: at least, and at most."""
WORTH = 1 << 26
"""Multiplications below which a product is not shared out."""
PIECE = 1 << 12
"""Rows that are worked on at a time where every row is on its own."""
LOTS = 16
"""Lots in which many small matrices are multiplied."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Given = ParamSpec("Given")
_limit: ContextVar[int | None] = ContextVar("limit", default=None)
_budget: ContextVar[int | None] = ContextVar("budget", default=None)
_here = threading.local()


def workers() -> int:
    """How many tasks may run at a time from here; inside of one, its share of the cores."""
    return min(_available(), MOST)


def _available() -> int:
    share: int | None = getattr(_here, "share", None)
    cores = _cores() if share is None else share
    return min(cores, _limit.get() or cores)


def threads_here(threads: int | None) -> int | None:
    """How many threads ONNX Runtime may use where `threads` are allowed in all (None: its own choice)."""
    share: int | None = getattr(_here, "share", None)
    if share is None:
        return threads
    return share if threads is None else max(1, min(threads, share))


@contextmanager
def at_most(threads: int | None) -> Iterator[None]:
    """No more workers than that inside; None: as many as outside."""
    token = _limit.set(threads or _limit.get())
    try:
        yield
    finally:
        _limit.reset(token)


@contextmanager
def on_cores(cores: int | None) -> Iterator[None]:
    """As in a task that has so many cores for itself; None: as outside."""
    before = getattr(_here, "share", None)
    _here.share = before if cores is None else cores
    try:
        yield
    finally:
        _here.share = before


def one_blas_thread(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Decorates a function that computes: BLAS has one thread while it runs, and its own number again afterwards."""
    limited: Callable[Given, Result] = threadpool_limits.wrap(limits=1, user_api="blas")(function)
    return limited


def within_threads(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Decorates a function with a keyword `threads`: no more workers than that while it runs."""

    @wraps(function)
    def bounded(*args: Given.args, **rest: Given.kwargs) -> Result:
        threads: Any = rest.get("threads")
        with at_most(threads):
            return function(*args, **rest)

    return bounded


def each(function: Callable[[Item], Result], items: Iterable[Item], *, holds: int = 0) -> Iterator[Result]:
    """`map(function, items)`, several at a time; results in order.

    Args:
        function: must not change what another call reads.
        items: may be a generator: its own work is done here, in order, and an item is taken when there is room for it.
        holds: bytes that one call may hold, its item among them; no more run at a time than find room.
    """
    count = min(workers(), max(1, room() // holds)) if holds else workers()
    if count == 1:
        for item in items:
            go_on()
            yield function(item)
        return
    share, budget = max(1, _available() // count), _said()
    own_room = room() // count if holds else getattr(_here, "room", None)
    depth = getattr(_here, "depth", 0)  # tasks wait for tasks of their own, which therefore need other threads
    stopped = (*getattr(_here, "stopped", ()), threading.Event())
    waiting, left = deque[Future[Result]](), iter(items)

    def task(item: Item) -> Result:
        _here.share, _here.depth, _here.stopped = share, depth + 1, stopped
        _here.room, _here.budget = own_room, budget
        try:
            go_on()
            return function(item)
        finally:
            _here.share, _here.depth, _here.stopped, _here.room = None, 0, (), None
            _here.budget = None

    more = True
    try:
        while True:
            go_on()
            running = [future for future in waiting if not future.done()]
            if more and len(running) < count and len(waiting) < 2 * count:
                try:
                    item = next(left)
                except StopIteration:
                    more = False
                else:
                    waiting.append(_pool(depth).submit(task, item))
                    del item
            elif not waiting:
                return
            elif waiting[0].done():
                yield waiting.popleft().result()
            else:
                wait(running, return_when=FIRST_COMPLETED)
    finally:  # an error, or nobody wants the rest
        stopped[-1].set()
        for future in waiting:
            future.cancel()


def with_progress(
    results: Iterable[Result], total: int, progress: Callable[[int, int], None] | None
) -> Iterator[Result]:
    """The results; `progress` is told how many there are so far."""
    if progress:
        progress(0, total)
    for k, result in enumerate(results, 1):
        if progress:
            progress(k, total)
        yield result


class Stopped(Exception):
    """What a task ends with once nobody waits for it any more."""


def go_on() -> None:
    """Raises `Stopped` inside of a task that nobody waits for; to be called now and then."""
    if unwanted()():
        raise Stopped


def unwanted() -> Callable[[], bool]:
    """Tells whether the task that this is called in is one that nobody waits for any more; may be asked anywhere."""
    events = getattr(_here, "stopped", ())
    return lambda: any(event.is_set() for event in events)


def gram(x: np.ndarray) -> np.ndarray:
    """`xᵀx` (d, d) in x's precision, for x (rows, d), or of several such (parts, rows, d)."""
    if x.ndim > 2:
        return gram(x[0])[None] if len(x) == 1 else _products(x.swapaxes(-1, -2), x)
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
    """`a @ b` of two matrices, or of two lots of them."""
    if a.ndim > 2:
        return product(a[0], b[0])[None] if len(a) == 1 else _products(a, b)
    rows, inner, columns = *a.shape, b.shape[1]
    if rows <= LEAST or rows * inner * columns < WORTH:
        return np.asarray(a @ b)
    out, step = np.empty((rows, columns), np.result_type(a, b)), _step(rows)

    def block(at: int) -> None:
        np.matmul(a[at : at + step], b, out=out[at : at + step])

    deque(each(block, range(0, rows, step)), 0)
    return out


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`a @ b` of as many pairs of matrices, (parts, rows, inner) and (parts, inner, columns)."""
    out = np.empty((*a.shape[:2], b.shape[2]), np.result_type(a, b))

    def some(at: slice) -> None:
        np.matmul(a[at], b[at], out=out[at])

    deque(each(some, _slices(len(a), -(-len(a) // LOTS))), 0)
    return out


def pieces(function: Callable[[slice], Result], count: int, rows_each: float = 1) -> list[Result]:
    """`function` of every piece of an axis of `count` entries, several at a time; results in order.

    Args:
        function: given the piece.
        count: entries of the axis.
        rows_each: rows that an entry stands for, which may be part of one; a piece has about `PIECE` rows.
    """
    return list(each(function, _slices(count, max(1, int(PIECE / rows_each)))))


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(at, min(at + step, count)) for at in range(0, count, step))


def _step(length: int) -> int:
    """The same however many workers there are: about eight blocks, of sizes that kernels like."""
    return max(LEAST, min(BLOCK, -(-length // 8) // 64 * 64))


@contextmanager
def within(budget: int | None) -> Iterator[None]:
    """The budget inside, in bytes of this process; None: what was said outside, else half of what is free."""
    if budget is None:
        budget = _said() or _used() + _free_bytes() // 2
    token = _budget.set(budget)
    try:
        yield
    finally:
        _budget.reset(token)


def bounded(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Decorates a function that is given settings, or a keyword `memory`, or whose object has settings: it keeps to
    that budget."""

    @wraps(function)
    def keeping(*args: Given.args, **rest: Given.kwargs) -> Result:
        found: list[Any] = [getattr(a, "settings", a) for a in (*args, *rest.values())]
        budget: Any = next((s.memory for s in found if hasattr(s, "memory")), rest.get("memory"))
        with within(budget):
            return function(*args, **rest)

    return keeping


def room() -> int:
    """Bytes that may be taken from here; inside of a task, its share of them."""
    own: int | None = getattr(_here, "room", None)
    if own is not None:
        return own
    budget = _said()
    return max(0, _free_bytes() if budget is None else min(budget - _used(), _free_bytes()))


def _said() -> int | None:
    """The budget: this thread's, or that of the one whose task runs here."""
    return _budget.get() or getattr(_here, "budget", None)


def _used() -> int:
    """Bytes of this process that lie in no file; 0 where nobody tells."""
    with suppress(OSError, StopIteration, ValueError), open("/proc/self/status") as lines:
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))
    return 0


def _free_bytes() -> int:
    """Memory that is free now, to this process: of the machine, and of the container that it runs in."""
    found = [1 << 62]
    with suppress(OSError, StopIteration):
        with open("/proc/meminfo") as lines:
            found.append(1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable"))))
    with suppress(OSError, ValueError):  # "max" is no number
        most, used = (Path("/sys/fs/cgroup", f"memory.{name}").read_text() for name in ("max", "current"))
        found.append(max(0, int(most) - int(used)))
    return min(found)


@cache
def _pool(depth: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MOST, thread_name_prefix=f"onnxprune-{depth}")


if hasattr(os, "register_at_fork"):  # a copy of this process has none of its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


@cache
def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
