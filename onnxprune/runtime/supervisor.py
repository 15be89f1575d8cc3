"""A command's work in a process of its own, so that somebody is left to say what ended it.

Native code may die of what it is given, and may be deaf to signals. The process that waits hands signals on, waits a
little, and then ends the other. Only the standard library is imported: it is there before anything else.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import threading
from collections.abc import Callable, Iterable

from onnxprune.runtime import signals

GRACE_S = 5.0
"""From a signal to the end, for tidying up."""
HANDED_ON = (signal.SIGINT, signal.SIGTERM)


class Note:
    """A line that two processes see and that outlives the one that wrote it: what is being done."""

    def __init__(self) -> None:
        self._page: mmap.mmap | bytearray
        try:
            self._page = mmap.mmap(-1, mmap.PAGESIZE)
        except (OSError, ValueError):  # without memory it is one process's
            self._page = bytearray(mmap.PAGESIZE)

    def write(self, text: str) -> None:
        """Put it in the place of what was there."""
        data = text.encode("utf-8", "replace")[: len(self._page) - 1]
        self._page[: len(data) + 1] = data + b"\0"

    def read(self) -> str:
        """The line."""
        return bytes(self._page[:]).partition(b"\0")[0].decode("utf-8", "replace")


def supervised(work: Callable[[Note], int], ended: Callable[[int, str], int]) -> int:
    """The exit code of `work`, which is done in a process of its own where there can be one.

    Args:
        work: is given a note to write on.
        ended: is given the number of the signal that has ended that process, and the note; returns the exit code.
    """
    note, parent = Note(), os.getpid()
    alone = threading.active_count() == 1 and int(os.environ.get("WORLD_SIZE", "1")) == 1
    if not hasattr(os, "fork") or not alone:
        return work(note)
    note.write("start")  # or one that dies before it has written anything dies in silence
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)
    try:
        pid = os.fork()
    except OSError:  # no more processes, or no memory: then nobody waits
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return work(note)
    if pid:
        return _wait(pid, note, ended, before)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `work` heeds it: the other process says what it was
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    signals.die_with(parent)
    return work(note)


def _wait(pid: int, note: Note, ended: Callable[[int, str], int], mask: Iterable[int]) -> int:
    """The exit code of the other process, which gets the signals that come here."""
    came: list[int] = []

    def end(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def hand_on(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number if not came else signal.SIGKILL)  # whoever asks twice does not want to wait
        came.append(number)
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)

    signal.signal(signal.SIGALRM, end)
    for number in HANDED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in HANDED_ON:
        signal.signal(number, signal.SIG_IGN)
    if status >= 0:
        return status
    return ended(came[0] if came else -status, note.read())
