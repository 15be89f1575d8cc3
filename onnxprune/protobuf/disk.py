"""Files made so that nothing is lost and nothing overwritten by mistake: new ones only, flushed, with errors in words.

A temporary file is locked for as long as somebody makes it: one that is not was left by a run that was killed, and the
next run in that folder takes it away. Where the system knows no locks, it stays. Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from onnxprune.errors import FileError, one_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LEFT = re.compile(r"\.onnxprune-[0-9a-f]{16}\.tmp")
"""Names of temporary files."""


def temporary_in(folder: Path) -> Path:
    """A name in the folder that nobody can guess; no file is made."""
    return folder / f".onnxprune-{secrets.token_hex(8)}.tmp"


@contextlib.contextmanager
def making(path: Path, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A new file of that name, never one that is there already and never through a link; held until the end, and then
    taken away unless it has got another name.

    Args:
        path: from `temporary_in`.
        mode: its permissions, less the umask.

    Raises:
        OSError: it cannot be made, FileExistsError for one that is there.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    for extra in ("O_NOFOLLOW", "O_BINARY", "O_CLOEXEC"):
        flags |= getattr(os, extra, 0)
    _sweep(path.parent)
    descriptor = os.open(path, flags, mode)
    with contextlib.ExitStack() as after:
        after.callback(_heedless, path.unlink)
        file = open(descriptor, "wb")
        after.callback(_heedless, file.close)  # what could not be written has been said
        held = os.dup(descriptor)  # the lock outlives the file that is closed
        after.callback(os.close, held)
        _lock(held)
        yield file


def _heedless(call: Callable[[], object]) -> None:
    """Call it, whatever the system says."""
    with contextlib.suppress(OSError):
        call()


def _sweep(folder: Path) -> None:
    """Take away what runs that were killed have left in a folder."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if LEFT.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_left(entry)


def _remove_left(entry: os.DirEntry[str]) -> None:
    found = entry.stat(follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        return
    descriptor = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if _lock(descriptor, wait=False):
            os.unlink(entry.path)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, shared: bool = False, wait: bool = True) -> bool:
    """Whether the lock is ours."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def among_others(folder: Path) -> Iterator[Callable[[], bool]]:
    """A folder in which several may place files of which one name serves them all.

    What it gives says whether nobody else is at it; from then on until the end nobody begins.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        yield lambda: True
        return
    try:
        held = _lock(descriptor, shared=True)
        yield lambda: not held or _lock(descriptor, wait=False)
    finally:
        os.close(descriptor)


def mode_of(path: Path) -> int | None:
    """The permissions of a file that is there; None where there is none, or a link, which is replaced itself."""
    with contextlib.suppress(OSError):
        found = os.lstat(path).st_mode
        return stat.S_IMODE(found) & 0o777 if stat.S_ISREG(found) else None
    return None


def flush(file) -> None:  # type: ignore[no-untyped-def]
    """Have what was written on the disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Have the folder's new names on the disk."""
    with contextlib.suppress(OSError):  # Windows and some network file systems cannot
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_error(path: Path, error: OSError) -> FileError:
    """What the system says of a file that cannot be written, with a remedy."""
    reason = error.strerror or str(error)
    remedy = "check the folder and its permissions"
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", -1), errno.EFBIG):
        remedy = "free some space or choose another folder"
    return FileError(one_line(f"{path}: cannot be written: {reason}; {remedy}"))
