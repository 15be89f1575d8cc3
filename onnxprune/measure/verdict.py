"""A verdict on fidelity: kept, changed or destroyed. Thresholds stand here and nowhere else.

Each part of the outputs is judged by what it is for: boxes, texts and class maps by the figures that a person would ask
for, other decisions (class scores, labels, integers) by their agreement beyond chance, other values by how much of
their variation over the samples is reproduced. The worst part decides. The thresholds are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.measure.agreement import PartFidelity
from onnxprune.measure.figures import FIGURES, value_of
from onnxprune.measure.kinds.table import KINDS, ORDER

KEPT, CHANGED, DESTROYED = "kept", "changed", "destroyed"
VERDICTS = (KEPT, CHANGED, DESTROYED)
"""From good to bad."""


@dataclass(frozen=True)
class Thresholds:
    """From where something is kept, and below where it is destroyed."""

    kept: float
    destroyed: float

    def verdict(self, value: float, doubt: float = 0.0) -> str:
        """Of a value; `doubt`: its standard error, in favour of the network."""
        if value + doubt < self.destroyed:
            return DESTROYED
        return KEPT if value >= self.kept else CHANGED


DECISIONS = Thresholds(kept=0.95, destroyed=0.5)
"""For agreement beyond chance (Cohen's kappa)."""
VARIATION = Thresholds(kept=0.9, destroyed=0.25)
"""For R²."""
OF_FIGURES: Mapping[str, Thresholds] = {
    "box_f1": Thresholds(kept=0.9, destroyed=0.5),
    "box_r2": VARIATION,
    "words": Thresholds(kept=0.9, destroyed=0.0),  # a long text with one wrong character is another
    "characters": Thresholds(kept=0.95, destroyed=0.5),
    "miou": Thresholds(kept=0.85, destroyed=0.25),
}
"""For figures of boxes, texts and class maps; a part that has any is judged by nothing else."""
ONE_SIDED = 0.95
"""Share of one decision in all from which agreement says little, and the scores themselves are judged too."""


@dataclass(frozen=True)
class Judged:
    """A verdict and what it goes by, in words."""

    verdict: str
    why: str


def judged(parts: Sequence[PartFidelity], samples: int) -> Judged | None:
    """The verdict on all parts: that on the worst. None where there is nothing to judge.

    Args:
        parts: how alike each is.
        samples: how many it was found on.
    """
    of_boxes = {part.beside for part in parts if _figures(part)}
    found = [j for part in parts if part.name not in of_boxes for j in _judged(part, samples, alone=len(parts) == 1)]
    return max(found, key=lambda j: VERDICTS.index(j.verdict)) if found else None


def deciding(parts: Sequence[PartFidelity]) -> tuple[PartFidelity, str] | None:
    """The part that a person would ask for, and by which of its figures: the worst of the first kind of
    `measure.kinds.table`; None where there is none.

    Args:
        parts: how alike each is.
    """
    found = [(ORDER.index(p.kind), value, p, name) for p in parts for name, value in [_basis(p)] if value is not None]
    return None if not found else min(found, key=lambda f: f[:2])[2:]


def _figures(part: PartFidelity) -> list[str]:
    """The figures that it is judged by, where it has such."""
    return [name for name in OF_FIGURES if part.kind != "integers" and name in part.figures]


def _judged(part: PartFidelity, samples: int, *, alone: bool) -> list[Judged]:
    found, where = [], "" if alone else f"{part.name}: "
    if named := _figures(part):
        return [
            Judged(OF_FIGURES[n].verdict(part.figures[n], _doubt(n, part, samples)),
                   f"{where}{FIGURES[n].words(part.figures[n])}")
            for n in named
        ]  # fmt: skip
    kappa = part.kappa
    if kappa is not None and part.same is not None and part.chance is not None:
        certain = part.r2 is not None and part.r2 < VARIATION.destroyed  # the scores themselves say the same
        doubt = 0.0 if certain else (_upper(part.same, samples) - part.same) / (1 - part.chance)
        what = KINDS[part.kind].decision
        words = f"{where}{what} {part.same:.1%}, chance would give {part.chance:.1%}"
        found.append(Judged(DECISIONS.verdict(kappa, doubt), words))
    if part.r2 is not None and _one_sided(part):
        few = ", where nearly all decisions are one" if kappa is not None else ""
        found.append(Judged(VARIATION.verdict(part.r2), f"{where}R² {part.r2:.2f} over the samples{few}"))
        if part.same is not None and part.same >= ONE_SIDED:
            found.reverse()  # of two that are as bad, the one that tells why
    elif part.r2 is None and kappa is None and part.same is not None:
        verdict = KEPT if part.same >= DECISIONS.kept else CHANGED
        found.append(Judged(verdict, f"{where}same integers {part.same:.1%}, all of them one number"))
    return found


def _doubt(name: str, part: PartFidelity, samples: int) -> float:
    """The standard error of a figure, at least that of as many independent trials as there are samples."""
    return _upper(part.figures[name], samples) - part.figures[name]


def _upper(share: float, count: int) -> float:
    """1.5 standard errors above a share that was found on `count` samples, more than 0 in any case (Wilson, 1927)."""
    z, n = 1.5, max(1, count)
    half = z * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return float((share + z**2 / (2 * n) + half) / (1 + z**2 / n))


def basis(part: PartFidelity) -> float:
    """What is judged of a part, 1 at best: the figure of its kind, such as the share of the same decisions; R² where
    there is none, or all decisions are one."""
    value = _basis(part)[1]
    return 0.0 if value is None else value


def _basis(part: PartFidelity) -> tuple[str, float | None]:
    """(name of the figure, value) that is judged of a part."""
    name = KINDS[part.kind].default
    value = value_of(name, part)
    if value is None and part.same is not None:
        name, value = "top1" if part.kind != "integers" else "integers", part.same
    agreement = name in ("top1", "labels", "pixels", "integers")
    if value is None or (agreement and part.r2 is not None and _one_sided(part)):
        return "r2", part.r2
    return name, value


def _one_sided(part: PartFidelity) -> bool:
    """Whether agreement says little, since nearly all decisions of the original are one."""
    return part.base_rate is None or part.base_rate >= ONE_SIDED
