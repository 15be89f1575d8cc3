"""Files made so that nothing is lost and nothing overwritten by mistake: new ones only, flushed, with errors in words.

Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path

from onnxprune.errors import FileError, one_line


def temporary_in(folder: Path) -> Path:
    """A name in the folder that nobody can guess; no file is made."""
    return folder / f".onnxprune-{secrets.token_hex(8)}.tmp"


def create(path: Path):  # type: ignore[no-untyped-def]  # a BufferedWriter, which typeshed spells IO[bytes]
    """A new file, never one that is there already, and never through a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    for extra in ("O_NOFOLLOW", "O_BINARY", "O_CLOEXEC"):
        flags |= getattr(os, extra, 0)
    return open(os.open(path, flags, 0o666), "wb")


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
