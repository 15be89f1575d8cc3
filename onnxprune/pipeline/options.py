"""What is known of an option, and what a dataclass of options makes of it: checks, answers to wrong names, docs.

Knows no option by name. Only the standard library is imported.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from functools import wraps
from inspect import signature
from typing import Any, TypeVar

from onnxprune.errors import UsageError, one_line, unknown

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


@dataclass(frozen=True)
class Option:
    """What is known of a setting, said once.

    Attributes:
        help: a line for the command line, or what gives it: a table may have got entries.
        doc: what it is, for Python.
        metavar: what stands for its value in help; empty for a switch.
        flag: how it is written on the command line; empty: as its name.
        read: text -> value; a list of texts where it may be given repeatedly.
        repeated: whether it may.
        check: refuses a value that makes no sense.
        part: what it is about; help gathers the options of a part.
        commands: those that take it; None: all that work on a model.
        rare: whether the main help leaves it to `onnxprune prune --help`.
    """

    help: str | Callable[[], str]
    doc: str
    metavar: str = ""
    flag: str = ""
    read: Callable[[Any], Any] = str
    repeated: bool = False
    check: Callable[[Any], None] = lambda value: None
    part: str = ""
    commands: Collection[str] | None = None
    rare: bool = False


def option(default: Any, metavar: str, help: str | Callable[[], str], doc: str, **rest: Any) -> Any:
    """A field of a dataclass of options; arguments as the attributes of `Option`."""
    return field(default=default, metadata={"option": Option(help, doc, metavar, **rest)})


def words(text: str) -> tuple[str, ...]:
    """A list with commas, read."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def width(text: str) -> int | str:
    """A number, or auto."""
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{text!r} is neither auto nor a number") from None


def whole(text: str) -> int:
    """A number from 0 up."""
    if not text.isdecimal():
        raise UsageError(f"{text!r} is not a whole number from 0 up")
    return int(text)


def size_of(text: str) -> int:
    """Bytes, out of 4GB, 512MB, 4GiB or a number.

    Raises:
        UsageError: it is none of them.
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([kmgt]?i?)b?", text.strip().lower())
    if found is None or found[2] not in _UNITS:
        raise UsageError(f"{text!r} is no size of memory such as 4GB or 512MB")
    return int(float(found[1]) * _UNITS[found[2]])


def by_name(
    value: Callable[[str], Any], such_as: str, behind: str = r"[^=]+"
) -> Callable[[Collection[str]], dict[str, Any]]:
    """What reads a list of `NAME=value`; a name may hold = itself, as far as what is behind the last one is none.

    Args:
        value: text -> value.
        such_as: how it is spelled, in words.
        behind: a regular expression of values.
    """

    def read(texts: Collection[str]) -> dict[str, Any]:
        found = {}
        for text in texts:
            fits = re.fullmatch(rf"(.+?)=({behind})", text.strip())
            if fits is None:
                raise UsageError(one_line(f"{text!r} is not {such_as}"))
            try:
                found[fits[1]] = value(fits[2])
            except ValueError:
                raise UsageError(one_line(f"{text!r} is not {such_as}")) from None
        return found

    return read


def numbers(text: str) -> tuple[float, ...]:
    """`16000`, `1,0.5`, or `true`.

    Raises:
        ValueError: it is no list of numbers.
    """
    truths = {"true": 1.0, "false": 0.0}
    found = tuple(truths[word.lower()] if word.lower() in truths else float(word) for word in words(text))
    if not found:
        raise ValueError("no number")
    return found


def among(what: str, known: Callable[[], Collection[str]]) -> Callable[[str], None]:
    """Refuses what is not in a table."""

    def check(value: str) -> None:
        if value not in known():
            raise unknown(what, value, known())

    return check


def at_least(least: int, said: str) -> Callable[[int], None]:
    """Refuses what is no whole number, or less."""

    def check(value: int) -> None:
        try:
            fits = operator.index(value) >= least
        except TypeError:
            fits = False
        if not fits:
            raise UsageError(f"{said}, not {value}")

    return check


def regular(pattern: str) -> None:
    """Refuses what is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{pattern!r} is not a regular expression: {error}") from error


def hinting(function: F) -> F:
    """The function; a keyword that it does not have is answered with the nearest one that it has."""
    known = [name for name in signature(function).parameters if name != "self"]
    title = function.__qualname__.removesuffix(".__init__")

    @wraps(function)
    def called(*args: Any, **given: Any) -> Any:
        for name in given:
            if name not in known:
                raise unknown(f"keyword of {title}()", name, known)
        return function(*args, **given)

    return called  # type: ignore[return-value]


def listed(cls: type[T]) -> type[T]:
    """A dataclass of options; its docs list them, and a keyword that it does not have is answered as by `hinting`."""
    lines = "".join(f"        {f.name}: {f.metadata['option'].doc}.\n" for f in fields(cls))  # type: ignore[arg-type]
    cls.__doc__ = f"{cls.__doc__}\n\n    Attributes:\n{lines}    "
    setattr(cls, "__init__", hinting(cls.__init__))  # noqa: B010 (mypy takes no assignment to a method)
    return cls
