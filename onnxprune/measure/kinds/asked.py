"""What a user says of the outputs, read and checked: `y=boxes,axis=1` and `y=2`.

The parts of a joint output are stretches of its axis, each START-STOP, with a name in front and a kind behind where
they have one: `y=boxes,axis=1,parts=box:0-4,cls:4-84:box-scores`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise

from onnxprune.errors import UsageError, one_line, unknown
from onnxprune.graph.said import Meaning, Said, Stretch, output_of
from onnxprune.measure.kinds.table import KINDS, names, spelled


def meaning_of(text: str) -> Meaning:
    """`boxes,axis=1`, or `boxes,axis=1,parts=box:0-4,cls:4-84:box-scores`, read.

    Raises:
        UsageError: it is spelled otherwise, or there is no such kind.
    """
    if not isinstance(text, str):
        raise UsageError(one_line(f"output_kind: {text!r} is no text such as 'boxes,axis=1'"))
    name, *rest = (word.strip() for word in text.split(","))
    kind, axis, parts, setting = _kind(name), None, list[Stretch](), False
    for word in rest:
        if word.startswith("axis=") and axis is None:
            axis, setting = AXIS.fullmatch(word), False
            if axis is None:
                raise _unread(text)
        elif (word.startswith("parts=") and not parts) or setting:
            parts.append(_stretch(text, word.removeprefix("parts=").strip()))
            setting = True
        else:
            raise _unread(text)
    _check_parts(text, parts)
    return Meaning(kind, int(axis[1]) if axis else None, tuple(parts))


AXIS = re.compile(r"axis=\s*([-+]?\d{1,9})")
STRETCH = re.compile(r"(?:([A-Za-z_][\w.]*)\s*:)?\s*(\d{1,9})\s*-\s*(\d{1,9})\s*(?::\s*([\w -]+))?", re.ASCII)


def _kind(name: str) -> str:
    found = {spelled(kind): kind for kind in KINDS}.get(spelled(name.strip().lower()))
    if found is None:
        raise unknown("kind of output", name, names())
    return found


def _unread(text: str) -> UsageError:
    said = "axis=K and parts=NAME:START-STOP:KIND,... may follow a kind, as in boxes,axis=1"
    return UsageError(one_line(f"--output-kind: {text!r} is none; {said}"))


def _stretch(text: str, word: str) -> Stretch:
    """One part of `parts=`."""
    fits = STRETCH.fullmatch(word)
    if fits is None:
        said = f"{word!r} is no part such as 0-4, 0-4:boxes or box:0-4:boxes"
        raise UsageError(one_line(f"--output-kind: {text!r}: {said}"))
    if int(fits[2]) >= int(fits[3]):
        raise UsageError(one_line(f"--output-kind: {text!r}: {word!r} is empty; the stop is not in it, as in 0-4"))
    return Stretch(int(fits[2]), int(fits[3]), _kind(fits[4]) if fits[4] else "", fits[1] or "")


def _check_parts(text: str, parts: Sequence[Stretch]) -> None:
    """Refuse parts that overlap.

    Raises:
        UsageError: two do.
    """
    for one, other in pairwise(sorted(parts, key=lambda p: p.start)):
        if other.start < one.stop:
            both = f"parts {one.start}-{one.stop} and {other.start}-{other.stop} overlap"
            raise UsageError(one_line(f"--output-kind: {text!r}: {both}; the stop is not in a part"))


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
    called = said.set_names()
    for name in said.names():
        if name not in outputs and output_of(name) not in outputs and (name in said.kinds or name not in called):
            raise unknown("output", name, outputs)
    for name in called:
        if called.count(name) > 1 or name in outputs:
            raise UsageError(one_line(f"--output-kind: {name!r} names two parts or outputs; give another name"))
    return said


def is_meaning(text: str) -> bool:
    """Whether a text says what an output is for, and is hardly the name of a file."""
    name, equals, kind = text.partition("=")
    return bool(name and equals) and spelled(kind.partition(",")[0].lower()) in set(names())


def listed() -> Iterable[tuple[str, str]]:
    """All kinds, as the command line takes them, and what they are."""
    return ((spelled(name), f"{kind.help}; asked of it: {kind.default}") for name, kind in KINDS.items())
