"""Runs of ONNX Runtime that stop when nobody wants them any more.

While native code runs, Python hears of no signal. A thread looks after the runs: at the signals that have come (their
numbers are written to a socket at once), at tasks that nobody waits for, and at the clock; and it sets the flag that
ONNX Runtime looks at between nodes and between the rounds of a Loop.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from onnxprune import parallel

LOOK_S = 0.2
"""Between two looks."""
IDLE_S = 5.0
"""Without a run, after which nobody looks until there is one."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
SIGNAL, UNWANTED, LATE = "a signal", "nobody waits for it", "it is late"


class Halted(Exception):
    """What a run ends with that was told to stop; the reason."""


@dataclass(eq=False)
class Run:
    """A run under way.

    Attributes:
        options: its `onnxruntime.RunOptions`.
        until: when it must have ended.
        unwanted: whether nobody waits for it any more.
        here: whether it is in the thread that signals are handled in.
        why: why it was told to stop; empty: it was not.
    """

    options: Any
    until: float
    unwanted: Callable[[], bool]
    here: bool
    why: str = ""

    def stop(self, why: str) -> None:
        """Tell it to stop."""
        self.why = self.why or why
        self.options.terminate = True


@contextlib.contextmanager
def stoppable(options: Any, seconds: float = math.inf) -> Iterator[Run]:
    """A run with these options, which is made in the block, and is told to stop when it must.

    Raises:
        Halted: it has stopped because of that. What a handler of the signal raises comes through.
    """
    here = threading.current_thread() is threading.main_thread()
    run = Run(options, time.monotonic() + seconds, parallel.unwanted(), here)
    watcher = _watcher()
    before = signal.set_wakeup_fd(watcher.mouth.fileno(), warn_on_full_buffer=False) if here else -1
    watcher.add(run)
    try:
        yield run
    except Exception as error:
        if run.why and type(error).__module__.startswith("onnxruntime"):
            raise Halted(run.why) from error
        raise
    finally:
        watcher.runs.pop(run, None)
        if here:
            signal.set_wakeup_fd(before)
            if before >= 0 and run.why == SIGNAL:  # whoever listened to it has missed something
                watcher.hand_on(before)


class _Watcher:
    """The thread that looks, and how it is woken."""

    def __init__(self) -> None:
        self.ear, self.mouth = socket.socketpair()
        self.ear.setblocking(False)
        self.mouth.setblocking(False)
        self.runs: dict[Run, None] = {}
        self.asleep = False
        self.heard = b""
        self.thread = threading.Thread(target=self._look, name="onnxprune-watch", daemon=True)
        self.thread.start()

    def add(self, run: Run) -> None:
        self.runs[run] = None
        if self.asleep:
            with contextlib.suppress(OSError):
                self.mouth.send(b"\0")

    def hand_on(self, descriptor: int) -> None:
        heard, self.heard = self.heard, b""
        with contextlib.suppress(OSError):
            os.write(descriptor, heard)

    def _look(self) -> None:
        last = time.monotonic()
        while True:
            self.asleep = time.monotonic() - last > IDLE_S and not self.runs
            pause = None if self.asleep and not self.runs else LOOK_S
            heard = self.ear.recv(256) if select.select([self.ear], [], [], pause)[0] else b""
            came = bytes(number for number in heard if number)
            if came:
                self.heard = came
            for run in list(self.runs):
                last = time.monotonic()
                if run.here and any(number in SIGNALS for number in came):
                    run.stop(SIGNAL)
                elif run.unwanted():
                    run.stop(UNWANTED)
                elif last > run.until:
                    run.stop(LATE)


_only: list[_Watcher] = []


def _watcher() -> _Watcher:
    """The one of this process."""
    if not _only:
        _only.append(_Watcher())
    return _only[0]


def _forget() -> None:
    """In a copy of this process, where nobody looks: what its parent has is not ours."""
    _only.clear()
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
