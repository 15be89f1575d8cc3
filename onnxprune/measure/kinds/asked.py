"""What a user says of the outputs, read and checked: `y=boxes,axis=1` and `y=2`."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping

from onnxprune.errors import UsageError, one_line, unknown
from onnxprune.graph.said import Meaning, Said, output_of
from onnxprune.measure.kinds.table import KINDS, names, spelled


def meaning_of(text: str) -> Meaning:
    """`boxes,axis=1`, read.

    Raises:
        UsageError: it is spelled otherwise, or there is no such kind.
    """
    if not isinstance(text, str):
        raise UsageError(one_line(f"output_kind: {text!r} is no text such as 'boxes,axis=1'"))
    name, *rest = (word.strip() for word in text.split(","))
    found = {spelled(kind): kind for kind in KINDS}.get(spelled(name.lower()))
    if found is None:
        raise unknown("kind of output", name, names())
    axis = re.fullmatch(r"axis=([-+]?\d{1,9})", rest[0]) if len(rest) == 1 else None
    if rest and axis is None:
        said = "axis=K alone may follow a kind, as in boxes,axis=1"
        raise UsageError(one_line(f"--output-kind: {text!r} is none; {said}"))
    return Meaning(found, int(axis[1]) if axis else None)


def check_kinds(kinds: Mapping[str, str]) -> None:
    """Refuse kinds that there are not.

    Raises:
        UsageError: one is none.
    """
    if not isinstance(kinds, Mapping):
        raise UsageError(f"output_kind takes kinds by the names of outputs, not {kinds!r}")
    for text in kinds.values():
        meaning_of(text)


def check_weights(weights: Mapping[str, float]) -> None:
    """Refuse what is no weight.

    Raises:
        UsageError: one is negative, or no number.
    """
    if not isinstance(weights, Mapping):
        raise UsageError(f"weight takes numbers by the names of outputs, not {weights!r}")
    for name, value in weights.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
            raise UsageError(one_line(f"--weight {name}={value} is no number from 0 up"))


def said_of(kinds: Mapping[str, str] | None, weights: Mapping[str, float] | None, outputs: Collection[str]) -> Said:
    """What was said, checked against the outputs that there are.

    Raises:
        UsageError: it cannot be read, or there is no such output.
    """
    check_kinds(kinds or {})
    check_weights(weights or {})
    said = Said({name: meaning_of(text) for name, text in (kinds or {}).items()}, dict(weights or {}))
    for name in said.names():
        if name not in outputs and output_of(name) not in outputs:
            raise unknown("output", name, outputs)
    return said


def is_meaning(text: str) -> bool:
    """Whether a text says what an output is for, and is hardly the name of a file."""
    name, equals, kind = text.partition("=")
    return bool(name and equals) and spelled(kind.partition(",")[0].lower()) in set(names())


def listed() -> Iterable[tuple[str, str]]:
    """All kinds, as the command line takes them, and what they are."""
    return ((spelled(name), f"{kind.help}; asked of it: {kind.default}") for name, kind in KINDS.items())
