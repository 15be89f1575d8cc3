"""Files that get a line of JSON now and then, and that a later run goes on with: nothing else is ever added to.

Knows nothing of what the lines say but which keys they all have.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from onnxprune.errors import FileError, one_line
from onnxprune.protobuf import disk

LOOKED_AT = 2**16
"""Bytes at either end of a file that are looked at."""


def check_lines(path: Path, keys: Collection[str]) -> None:
    """Refuse a file that is no earlier run's: its first and last line must be objects with those keys.

    Raises:
        FileError: it is something else, or cannot be read.
    """
    if not os.path.lexists(path):
        return
    try:
        with open(_open(path, os.O_RDONLY), "rb") as file:
            head = file.read(LOOKED_AT)
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOOKED_AT))
            tail = file.read()
    except OSError as error:
        raise FileError(one_line(f"{path}: cannot be read: {error.strerror}; choose another file")) from error
    whole = not tail or tail.endswith(b"\n")
    if head and not (whole and all(_has(line, keys) for line in (head.splitlines()[0], tail.splitlines()[-1]))):
        raise FileError(one_line(f"{path}: holds something else than lines of an earlier run; choose another file"))


def add_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line, whole or not at all.

    Raises:
        FileError: it cannot be written.
    """
    text = (json.dumps(line) + "\n").encode()
    try:
        descriptor = _open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            before = os.fstat(descriptor).st_size
            try:
                written = os.write(descriptor, text)
                while written < len(text):  # what is left tells why
                    written += os.write(descriptor, text[written:])
            except OSError:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise disk.write_error(path, error) from error


def _open(path: Path, flags: int) -> int:
    """A descriptor of a regular file: opening a pipe does not wait, and nothing is made through a link."""
    if path.is_symlink() and not path.exists():
        raise FileError(one_line(f"{path}: is a link to nothing; choose another file"))
    for extra in ("O_NONBLOCK", "O_BINARY", "O_CLOEXEC"):
        flags |= getattr(os, extra, 0)
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileError(one_line(f"{path}: is not a regular file; choose another file"))
    return descriptor


def _has(line: bytes, keys: Collection[str]) -> bool:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and set(keys) <= set(found)
