"""Interruptions that wait while something must not be interrupted, and processes that end with the one they serve."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_DEATH_OF_PARENT = 1  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def later() -> Iterator[None]:
    """Holds SIGINT and SIGTERM back: they come when the block ends."""
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():  # others are not interrupted
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not None:  # not one of another language's
                before[number] = signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def die_with(parent: int) -> None:
    """Be killed when the parent of this process has ended, where the system does that."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import ctypes

        ctypes.CDLL(None).prctl(_DEATH_OF_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
