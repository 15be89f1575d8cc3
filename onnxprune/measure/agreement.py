"""How alike one part of the outputs of two networks is, summed up over batches of samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.measure.figures import FIGURES
from onnxprune.measure.kinds.scores import SET
from onnxprune.measure.kinds.table import DIVERGENCE, KINDS, MARGINS, Measured
from onnxprune.measure.part import DETECTIONS, LABELS, MASK, SCORES, Part

ONE_CLASS = 0.9
"""Share of one decision from which it is said beside agreement."""


@dataclass(frozen=True)
class PartFidelity:
    """How alike a part of the outputs is.

    Attributes:
        name: of the part, as numpy would take it from the output.
        kind: what it says: "class scores", "boxes", "values" or another name of `measure.kinds`.
        cosine: mean cosine per sample; None for integers.
        sqnr_db: 10·log10 of signal power over error power; None for integers.
        r2: coefficient of determination: 1 less the squared error over the squared spread of the original around
            what it gives on average over the samples, place by place; 1 at best, 0 for the best constant.
        same: share of the decisions (largest score, integer, or what is set) that are the same; None for other values.
        chance: that share if the two were independent, each as often as it is.
        base_rate: share of the original's most frequent decision.
        distinct: how many different decisions the original made.
        figures: what a person would ask of a part of that kind, by the names of `measure.figures`.
        beside: of boxes, the part with their scores.
    """

    name: str
    kind: str
    cosine: float | None = None
    sqnr_db: float | None = None
    r2: float | None = None
    same: float | None = None
    chance: float | None = None
    base_rate: float | None = None
    distinct: int | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    beside: str = ""

    @property
    def kappa(self) -> float | None:
        """Agreement beyond chance (Cohen, 1960): 1 at best, 0 for independent decisions; None where there is only
        one decision, or none."""
        if self.same is None or self.chance is None or self.chance >= 1:
            return None
        return (self.same - self.chance) / (1 - self.chance)

    def in_words(self) -> str:
        """`class scores: same 98.0%, cosine 0.9987, SQNR 25.1 dB, R² 0.99`."""
        found = [words] if (words := self.figures_in_words()) else []
        found += [] if self.same is None else [f"same {self.same:.1%}{self._rate()}"]
        if self.cosine is not None and self.sqnr_db is not None and self.r2 is not None:
            found += [f"cosine {self.cosine:.4f}", f"SQNR {self.sqnr_db:.1f} dB", f"R² {self.r2:.2f}"]
        return f"{self.kind}: {', '.join(found)}"

    def figures_in_words(self) -> str:
        """`box F1 97.1%, box precision 96.0%`: what a person would ask of it; empty where nothing was found."""
        return ", ".join(FIGURES[name].words(value) for name, value in self.figures.items() if name in FIGURES)

    def one_sided(self) -> str:
        """That the original nearly always decides the same, in words; empty where it does not, or decides nothing."""
        if self.kind not in (SCORES, LABELS) or self.base_rate is None or self.base_rate < ONE_CLASS:
            return ""
        what = "the samples are one class" if self.kind == SCORES else "the labels are alike"
        return f"{self.base_rate:.0%} of {what}: agreement says little"

    def _rate(self) -> str:
        """That nearly all decisions are one, in words; empty where they are not."""
        one = self.base_rate is not None and self.base_rate >= ONE_CLASS
        return f" ({self.base_rate:.0%} are one decision)" if one else ""


@dataclass
class Tally:
    """What is summed up of a part.

    Attributes:
        part: which.
        samples: how many were compared.
        missed: whether the two gave other sizes somewhere.
        sums: what sums up the figures of its kind.
    """

    part: Part
    samples: int = 0
    missed: bool = False
    _cosines: list[np.ndarray] = field(default_factory=list)
    _spread: _Spread = field(default_factory=lambda: _Spread())
    _noise: float = 0.0
    _same: int = 0
    _was: Counter[int] = field(default_factory=Counter)
    _is: Counter[int] = field(default_factory=Counter)
    sums: list[Measured] = field(init=False)

    def __post_init__(self) -> None:
        self.sums = [sums(self.part) for sums in KINDS[self.part.kind].sums]

    def compare(self, was: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray], samples: int) -> None:
        """One batch of `samples`: all outputs of both, by name."""
        output, before = self.part.output, self.samples
        if self.part.kind == DETECTIONS:  # as many as there are, in any order
            self.samples += samples
            for sums in self.sums:
                sums.add(was, now, samples)
            return
        self.add(was[output], now[output], samples)
        beside = self.part.beside
        alike = beside is None or was[beside.output].shape == now[beside.output].shape
        for sums in self.sums if self.samples > before and alike else ():
            sums.add(was, now, samples)

    def add(self, original: np.ndarray, other: np.ndarray, samples: int) -> None:
        """One batch of `samples`: the outputs of both."""
        if original.shape != other.shape or not original.size:
            self.missed |= original.shape != other.shape
            return
        a, b = self.part.of(original), self.part.of(other)
        self.samples += samples
        if a.dtype.kind in "iub":
            self._decide(a, b)
        elif a.dtype.kind == "f":
            self._compare(a.astype(np.float64), b.astype(np.float64), samples)
            if KINDS[self.part.kind].unit in (DIVERGENCE, MARGINS):
                self._decide(a.argmax(axis=self.part.axis), b.argmax(axis=self.part.axis))
            elif self.part.kind in (LABELS, MASK):
                self._decide(a > SET, b > SET)

    def _decide(self, a: np.ndarray, b: np.ndarray) -> None:
        self._same += int((a == b).sum())
        for counter, values in ((self._was, a), (self._is, b)):
            found, counts = np.unique(values, return_counts=True)
            counter.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))

    def _compare(self, a: np.ndarray, b: np.ndarray, samples: int) -> None:
        rows = samples if a.ndim and a.shape[0] == samples else 1
        u, v = a.reshape(rows, -1), b.reshape(rows, -1)
        norms = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
        self._cosines.append((u * v).sum(axis=1) / np.maximum(norms, 1e-30))
        self._noise += float(((a - b) ** 2).sum())
        self._spread.add(u)

    def fidelity(self) -> PartFidelity:
        """What the sums come to."""
        found: dict[str, Any] = {}
        if decided := sum(self._was.values()):
            found = {
                "same": self._same / decided,
                "chance": sum(n * self._is[k] for k, n in self._was.items()) / decided**2,
                "base_rate": max(self._was.values()) / decided,
                "distinct": len(self._was),
            }
        if self._cosines:
            spread = self._spread.over_samples()
            found["cosine"] = float(np.concatenate(self._cosines).mean())
            found["sqnr_db"] = decibels(self._spread.signal, self._noise)
            found["r2"] = 1.0 - self._noise / spread if spread > 0 else 1.0 - float(self._noise > 0)
        found["figures"] = {name: value for sums in self.sums for name, value in sums.figures().items()}
        beside = "" if self.part.beside is None else self.part.beside.name
        return PartFidelity(self.part.name, self.part.kind, beside=beside, **found)


@dataclass
class _Spread:
    """How much values vary over samples, place by place; over places where that says nothing.

    Attributes:
        signal: sum of squares.
    """

    signal: float = 0.0
    rows: int = 0
    _elements: int = 0
    _total: float = 0.0
    _first: np.ndarray | None = None
    _moved: np.ndarray | float = 0.0
    _square: float = 0.0
    _resized: bool = False

    def add(self, rows: np.ndarray) -> None:
        """(samples, values) more."""
        self.signal += float((rows**2).sum())
        self._total += float(rows.sum())
        self._elements += rows.size
        self.rows += len(rows)
        if self._first is None:
            self._first = rows[0].copy()
        self._resized |= self._first.shape != rows[0].shape
        if not self._resized:
            moved = rows - self._first  # a mean far from zero does not drown them
            self._moved = self._moved + moved.sum(axis=0)
            self._square += float((moved**2).sum())

    def over_samples(self) -> float:
        """Sum of squares around the mean of each place; where it is nothing, around that of all; else the signal."""
        least = 1e-10 * self.signal
        if self.rows > 1 and not self._resized:
            around = self._square - float((np.asarray(self._moved) ** 2).sum()) / self.rows
            if around > least:
                return around * self.rows / (self.rows - 1)
        around = self.signal - self._total**2 / max(1, self._elements)
        return around if around > least else self.signal


def decibels(signal: float, noise: float) -> float:
    """10·log10 of signal over noise, at most 300 dB."""
    if noise <= 0:
        return 300.0
    return float(np.clip(10 * np.log10(max(signal, 1e-300) / noise), -300.0, 300.0))
