"""Text files that a user names: read whole, from regular files alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from onnxprune.errors import FileError, one_line


def read_text(path: str | Path) -> str:
    """What a file holds.

    Raises:
        FileError: it is missing, cannot be read, or is no regular file: a pipe may never end.
        UnicodeDecodeError: it is no text.
    """
    try:
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
        with open(os.open(path, flags), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                what = "a folder" if stat.S_ISDIR(mode) else "not a regular file; copy it to one first"
                raise FileError(one_line(f"{path}: is {what}"))
            return file.read().decode("utf-8")
    except UnicodeDecodeError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise FileError(one_line(f"{path}: cannot be read: {reason}; check the path")) from error
