"""How messages about samples are worded: one line, printable, with the source's name in front.

What damaged files and other people's code raise is not known before; here it becomes an error that says where.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from onnxprune.errors import CalibrationError, FileError, PruneError


@contextmanager
def saying(where: str) -> Iterator[None]:
    """Whatever damaged files and other people's code raise, as one line that names `where`."""
    try:
        yield
    except PruneError:
        raise
    except Exception as error:
        raise CalibrationError(f"{where}: cannot be read: {type(error).__name__}: {line(error)}") from error


@contextmanager
def no_room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = shown(tempfile.gettempdir())
        raise FileError(f"{where}: samples do not fit: {line(error)}; use fewer, or set TMPDIR") from error


def shape_text(shape: Iterable[int | str | None]) -> str:
    return "(" + ", ".join("?" if dim is None else str(dim) for dim in shape) + ")"


def shown(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


def line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return clip("".join(c if c.isprintable() else "?" for c in text))


def clip(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
