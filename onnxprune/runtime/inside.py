"""What a child process does with itself: it caps what it may take, does its job and answers.

An answer is its length, one letter and the rest. `child` is the other side.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import pickle
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from onnxprune.errors import PruneError, of_system
from onnxprune.runtime import signals

Job = Callable[..., bytes]
DONE, FULL, REFUSED, FAILED = b"=", b"m", b"r", b"f"
"""What an answer begins with: the result, no memory, an error of ours by name with its text, or any other."""
_LENGTH = struct.Struct("<q")
_PER_THREAD = 80 << 20
"""Addresses that a thread takes without filling them: its stack and its part of the heap."""


def be_copy(job: Job, args: Sequence[Any], out: int, room: int, parent: int) -> NoReturn:
    """Do the job in a process that was just forked, and end it."""
    status = 1
    try:
        if out < 3:  # where standard streams were closed
            out = _above(out)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # native code tells there what it dies of
            os.dup2(null, stream)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        _settle(room, parent)
        _answer(job, args, out)
        status = 0
    finally:
        os._exit(status)


def be_fresh(room: int, parent: int) -> None:
    """Do the job that is on standard input, in an interpreter that was started for it."""
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)  # what libraries print is no answer
    _settle(room, parent)
    job, args = pickle.load(sys.stdin.buffer)
    _answer(job, args, out)
    os._exit(0)


def whole(heard: bytes | bytearray) -> bytes:
    """An answer that was heard to its end; else nothing."""
    if len(heard) < _LENGTH.size or len(heard) != _LENGTH.size + _LENGTH.unpack_from(heard)[0]:
        return b""
    return bytes(memoryview(heard)[_LENGTH.size :])


def addresses(room: int, hard: int) -> int:
    """The cap on addresses for a process that may hold `room` more bytes than it holds now.

    It stops what would be too much at once; what a child holds, its parent sees. Allocators ask for more than they
    fill.
    """
    most = room * 9 // 8 + (1 << 27) + _PER_THREAD * (os.cpu_count() or 1) + _mapped()
    return most if hard < 0 else min(most, hard)


def _above(descriptor: int) -> int:
    import fcntl

    return int(fcntl.fcntl(descriptor, fcntl.F_DUPFD, 3))


def _settle(room: int, parent: int) -> None:
    """Die with the parent, leave no core, take no more addresses than allowed."""
    faulthandler.disable()
    signals.die_with(parent)
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (addresses(room, hard), hard))


def _mapped() -> int:
    """Addresses of this process."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 1 << 30


def _answer(job: Job, args: Sequence[Any], out: int) -> None:
    try:
        answer = DONE + job(*args)
    except MemoryError:
        answer = FULL
    except (PruneError, OSError) as error:
        said = of_system(error) if isinstance(error, OSError) else error
        answer = REFUSED + json.dumps([type(said).__name__, str(said)]).encode()
    except Exception:
        answer = FAILED + traceback.format_exc().encode("utf-8", "replace")
    left = memoryview(_LENGTH.pack(len(answer)) + answer)
    while left:
        left = left[os.write(out, left) :]
