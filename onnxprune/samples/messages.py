"""How messages about samples are worded: one line, printable, with the source's name in front.

What damaged files and other people's code raise is not known before; here it becomes an error that says where.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from onnxprune.errors import CalibrationError, FileError, PruneError


@contextmanager
def saying(where: str) -> Iterator[None]:
    """Whatever damaged files and other people's code raise, as one line that names `where`."""
    with as_error(CalibrationError, f"{where}: cannot be read:"):
        yield


@contextmanager
def as_error(kind: type[PruneError], what: str) -> Iterator[None]:
    """Whatever is raised within, an exit too, as an error of ours: `what`, and what it was, with the line of a user's
    own file that it came from."""
    try:
        yield
    except (PruneError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        import traceback

        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, SystemExit) and frames and _ours(frames[-1].filename):  # a signal
            raise
        found = next((f for f in reversed(frames) if not (_ours(f.filename) or _installed(f.filename))), None)
        place = (error.filename, error.lineno) if isinstance(error, SyntaxError) else None
        if place is None and found is not None:
            place = found.filename, found.lineno
        at = "" if place is None or not place[0] else f" ({shown(place[0])}, line {place[1]})"
        raise kind(f"{what} {type(error).__name__}: {line(error)}{at}") from error


_OWN = str(Path(__file__).resolve().parents[1]) + os.sep


@cache
def _libraries() -> tuple[str, ...]:
    """The folders of Python and of what is installed."""
    import sysconfig

    paths = map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib"))
    return tuple({os.path.realpath(path) + os.sep for path in paths})


def _ours(path: str) -> bool:
    return os.path.realpath(path).startswith(_OWN)


def _installed(path: str) -> bool:
    """Whether a line of code is of Python or of a package, or of no file."""
    return path.startswith("<") or os.path.realpath(path).startswith(_libraries())


@contextmanager
def no_room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        import tempfile

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
