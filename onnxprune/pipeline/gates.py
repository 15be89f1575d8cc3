"""What a finished model must keep, or nothing is written: one table, one check. Imports neither numpy nor onnx.

A model that is *destroyed* (`measure.verdict`) is refused in any case, unless it is wanted all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

from onnxprune.errors import UsageError, unknown
from onnxprune.measure.figures import DROPS, FIGURES, value_of
from onnxprune.pipeline.options import hinting

if TYPE_CHECKING:
    from onnxprune.measure.fidelity import Fidelity

DESTROYED = "destroyed"
ANYWAY = "--allow-destroyed"


@dataclass(frozen=True)
class Gate:
    """A least value of something that fidelity tells.

    Attributes:
        metavar: what stands for the value in help.
        help: a line for the command line.
        what: what it is of, in words.
        of: what fidelity tells of it; None where the outputs have no such thing.
        shown: a value in words.
        low, high: between which a least value makes sense.
        needs: which outputs have it.
    """

    metavar: str
    help: str
    what: str
    of: Callable[[Fidelity], float | None]
    shown: str
    low: float
    high: float
    needs: str


GATES: Mapping[str, Gate] = {
    "min_top1": Gate(
        "X", "least share of samples with the same top-1 (0.95)", "top-1 agreement", lambda f: f.top1, "{:.1%}", 0, 1,
        "class scores",
    ),
    "min_cosine": Gate(
        "X", "least cosine of the outputs", "cosine", lambda f: f.cosine, "{:.4f}", -1, 1, "an output of floating point"
    ),
    "min_sqnr": Gate(
        "DB", "least signal to noise of the outputs, in dB", "SQNR", lambda f: f.sqnr_db, "{:.1f} dB", -300, 300,
        "an output of floating point",
    ),
}  # fmt: skip
"""The table; names as in `Gates`."""


class Drop(NamedTuple):
    """A metric of the original and of another model, what it is called, and which labels were found, in words."""

    before: float
    after: float
    name: str = ""
    found: str = ""


class Asked(NamedTuple):
    """A drop that may be: how far, and of which figure of the outputs; None: of the metric that else holds."""

    value: float
    figure: str | None = None

    @classmethod
    def read(cls, text: str) -> Asked:
        """`1`, or `box_f1=1`.

        Raises:
            UsageError: it is spelled otherwise, or there is no such figure.
        """
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise UsageError(f"{text!r} is neither a number nor NAME=NUMBER such as {DROPS[0]}=1") from None
        if name in FIGURES and name not in DROPS:
            raise UsageError(f"{name} knows no best value that it could drop from; give --min {name}=X")
        if name and name not in DROPS:
            raise unknown("metric", name, DROPS)
        return cls(value, name or None)


@hinting
@dataclass(frozen=True, kw_only=True)
class Gates:
    """What a finished model must keep on the held-out samples.

    Attributes:
        min_top1: least share of samples whose largest score is the same, 0 to 1.
        min_cosine: least cosine of the outputs.
        min_sqnr: least signal to noise of the outputs, in dB.
        min: least values of figures of the outputs, by name: {"box_f1": 0.9} (`measure.figures`), in the worst part.
        max_drop: how far the metric may drop, in its own unit (percent for agreement).
    """

    min_top1: float | None = None
    min_cosine: float | None = None
    min_sqnr: float | None = None
    min: Mapping[str, float] | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        for name, gate in GATES.items():
            value = getattr(self, name)
            if value is not None and not gate.low <= value <= gate.high:
                hint = f"; a share, such as {value / 100:g}" if name == "min_top1" and 1 < value <= 100 else ""
                raise UsageError(f"{_flag(name)} {value:g} is not between {gate.low} and {gate.high}{hint}")
        for name, value in (self.min or {}).items():
            _check_least(name, value)
        if self.max_drop is not None and not (math.isfinite(self.max_drop) and self.max_drop > 0):
            raise UsageError(f"--max-drop {self.max_drop:g} is not a positive number")

    def given(self) -> list[str]:
        """Those that are set, as options."""
        return [_flag(f.name) for f in fields(self) if getattr(self, f.name) is not None]

    def missed(self, fidelity: Fidelity | None, drop: Callable[[], Drop] | None = None) -> list[str]:
        """What a model does not keep, in words.

        Args:
            fidelity: what was found; None without samples.
            drop: measures the metric; asked only for `max_drop`.

        Raises:
            UsageError: there is nothing to judge by.
        """
        found = []
        for name, gate in GATES.items():
            least = getattr(self, name)
            if least is None:
                continue
            if fidelity is None:
                raise UsageError(f"{_flag(name)} needs samples; give --calib")
            value = gate.of(fidelity)
            if value is None:
                raise UsageError(f"{_flag(name)} needs a model with {gate.needs}")
            if not value >= least:
                found.append(f"{gate.what} {gate.shown.format(value)} is below {gate.shown.format(least)}")
        for name, least in (self.min or {}).items():
            found += _below(name, least, fidelity)
        if self.max_drop is not None and drop is not None:
            before, after, what, _ = drop()
            if not before - after <= self.max_drop:
                words = f"the metric drops from {before:.4g} to {after:.4g}, by more than {self.max_drop:g}"
                found.append(f"{words}: {what}" if what else words)
        return found


def _check_least(name: str, value: float) -> None:
    """UsageError where a figure is none, or can have no such value."""
    if name not in FIGURES:
        raise unknown("metric", name, FIGURES)
    low, high = (-1, 1) if FIGURES[name].share else (-300, 300)
    if not low <= value <= high:
        hint = f"; a share, such as {value / 100:g}" if FIGURES[name].share and 1 < value <= 100 else ""
        raise UsageError(f"--min {name}={value:g} is not between {low} and {high}{hint}")


def _below(name: str, least: float, fidelity: Fidelity | None) -> list[str]:
    """That a figure of the worst part is below a least value, in words; nothing where it is not."""
    if fidelity is None:
        raise UsageError("--min needs samples; give --calib")
    found = [(value, part.name) for part in fidelity.parts if (value := value_of(name, part)) is not None]
    if not found:
        kinds = ", ".join(f"{part.name} is {part.kind}" for part in fidelity.parts) or "no output can be compared"
        raise UsageError(f"no output has {name} ({kinds}); say what outputs are: --output-kind")
    value, part_name = min(found)
    where, figure = f" of {part_name}" if len(fidelity.parts) > 1 else "", FIGURES[name]
    return [] if value >= least else [f"{figure.words(value)}{where} is below {figure.shown(least)}"]


def destroyed(fidelity: Fidelity | None) -> str | None:
    """Why nobody wants the model, in words; None where that is not so, or not known."""
    if fidelity is None or fidelity.verdict != DESTROYED:
        return None
    return f"the network is destroyed: {fidelity.why} ({fidelity.samples} samples)"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
