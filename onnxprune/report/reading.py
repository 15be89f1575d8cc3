"""JSON read as what it was before: checked against a form, key by key, with words for all that is missing or other.

A form is a type: a dataclass, a TypedDict, a list or a dict of forms, a number, text. Keys that a form does not name
are left as they are. Numbers are finite. What comes out holds nothing that a page could stumble over.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin

MISSES = " is missing"
LARGEST = 1e300
SHOWN = 5, 20
"""Complaints and names of missing keys that a message has room for."""
WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


class Misfit(ValueError):
    """Something is not of the form; the message names the first places where."""

    def __init__(self, complaints: Sequence[str], missing: Sequence[str] = ()):
        said = [f"without {_some(missing, ', ', SHOWN[1])}"] if missing else []
        super().__init__("; ".join([*said, *([_some(complaints, "; ", SHOWN[0])] if complaints else [])]))


def _some(texts: Sequence[str], between: str, most: int) -> str:
    more = len(texts) - most
    return between.join([*texts[:most], *([f"and {more} more"] if more > 0 else [])])


def read(form: Any, value: Any, where: str = "") -> Any:
    """The value in the form: dataclasses for objects where the form says so, tuples for lists.

    Raises:
        Misfit: something is missing, or is something else.
    """
    complaints: list[str] = []
    found = _read(form, value, where, complaints)
    if complaints:
        missing = [c.removesuffix(MISSES) for c in complaints if c.endswith(MISSES)]
        raise Misfit([c for c in complaints if not c.endswith(MISSES)], missing)
    return found


def _read(form: Any, value: Any, where: str, complaints: list[str]) -> Any:
    origin, args = get_origin(form), get_args(form)
    if form is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _either(args, value, where, complaints)
    if origin in (typing.Required, typing.NotRequired):
        return _read(args[0], value, where, complaints)
    if origin is Literal:
        return value if value in args else _complain(value, " or ".join(map(repr, args)), where, complaints)
    if is_dataclass(form) or typing.is_typeddict(form):
        return _object(form, value, where, complaints)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return _complain(value, "an object", where, complaints)
        return {k: _read(args[1], v, f"{where}.{k}".lstrip("."), complaints) for k, v in value.items()}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _list(args, value, where, complaints)
    return _single(form, value, where, complaints)


def _complain(value: Any, wanted: str, where: str, complaints: list[str]) -> None:
    kinds = {dict: "an object", list: "a list", tuple: "a list", type(None): "null"}
    given = kinds.get(type(value)) or (repr(value) if len(repr(value)) < 40 else repr(value)[:37] + "...")
    complaints.append(f"{where or 'it'} is {given}, not {wanted}")


def _single(form: Any, value: Any, where: str, complaints: list[str]) -> Any:
    fits = type(value) is form or (form is float and type(value) is int)
    if fits and form in (int, float):
        fits = abs(value) < LARGEST and math.isfinite(value)
    return value if fits else _complain(value, WORDS.get(form, str(form)), where, complaints)


def _either(forms: Sequence[Any], value: Any, where: str, complaints: list[str]) -> Any:
    """The first form that fits; complaints are those of the first that is not null."""
    if value is None and type(None) in forms:
        return None
    first: list[str] | None = None
    for form in (f for f in forms if f is not type(None)):
        own: list[str] = []
        found = _read(form, value, where, own)
        if not own:
            return found
        first = first or own
    complaints += first or [f"{where} cannot be read"]
    return None


def _list(args: Sequence[Any], value: Any, where: str, complaints: list[str]) -> Any:
    if not isinstance(value, list | tuple):
        return _complain(value, "a list", where, complaints)
    if len(args) > 1 and args[-1] is not Ellipsis:
        if len(value) != len(args):
            return _complain(value, f"a list of {len(args)}", where, complaints)
        return tuple(_read(a, v, f"{where}[{k}]", complaints) for k, (a, v) in enumerate(zip(args, value, strict=True)))
    return tuple(_read(args[0], v, f"{where}[{k}]", complaints) for k, v in enumerate(value))


def _object(form: Any, value: Any, where: str, complaints: list[str]) -> Any:
    if is_dataclass(value) and isinstance(value, form if is_dataclass(form) else ()):  # type: ignore[arg-type]
        return value
    if not isinstance(value, Mapping):
        return _complain(value, "an object", where, complaints)
    before, found = len(complaints), {}
    for name, kind, needed in _keys(form):
        place = f"{where}.{name}".lstrip(".")
        if name in value:
            found[name] = _read(kind, value[name], place, complaints)
        elif needed:
            complaints.append(f"{place}{MISSES}")
    if not is_dataclass(form):
        return {**value, **found}
    if len(complaints) > before:
        return None
    try:
        return form(**found)  # type: ignore[operator]
    except ValueError as error:
        complaints.append(f"{where}: {error}")
        return None


@cache
def _keys(form: Any) -> tuple[tuple[str, Any, bool], ...]:
    """(name, form, whether it must be there) of every key."""
    return tuple(_each_key(form))


def _each_key(form: Any) -> Iterator[tuple[str, Any, bool]]:
    hints = typing.get_type_hints(form, include_extras=True)
    if is_dataclass(form):
        for f in fields(form):
            yield f.name, hints[f.name], f.default is MISSING and f.default_factory is MISSING
    else:  # annotations that are read late tell only now which keys may be missing
        for name, kind in hints.items():
            yield name, kind, form.__total__ and get_origin(kind) is not typing.NotRequired
