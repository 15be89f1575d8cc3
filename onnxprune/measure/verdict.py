"""A verdict on fidelity: kept, changed or destroyed. Thresholds stand here and nowhere else.

Each part of the outputs is judged by what it is for: decisions (class scores, integers) by their agreement beyond
chance, other values by how much of their variation over the samples is reproduced. The worst part decides. The
thresholds are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.measure.agreement import PartFidelity

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
    found = [j for part in parts for j in _judged(part, samples, alone=len(parts) == 1)]
    return max(found, key=lambda j: VERDICTS.index(j.verdict)) if found else None


def _judged(part: PartFidelity, samples: int, *, alone: bool) -> list[Judged]:
    found, where = [], "" if alone else f"{part.name}: "
    kappa = part.kappa
    if kappa is not None and part.same is not None and part.chance is not None:
        certain = part.r2 is not None and part.r2 < VARIATION.destroyed  # the scores themselves say the same
        doubt = 0.0 if certain else (_upper(part.same, samples) - part.same) / (1 - part.chance)
        what = "top-1 agreement" if part.kind == "class scores" else "same integers"
        words = f"{where}{what} {part.same:.1%}, chance would give {part.chance:.1%}"
        found.append(Judged(DECISIONS.verdict(kappa, doubt), words))
    if part.r2 is not None and _one_sided(part):
        found.append(Judged(VARIATION.verdict(part.r2), f"{where}R² {part.r2:.2f} over the samples"))
    elif part.r2 is None and kappa is None and part.same is not None:
        verdict = KEPT if part.same >= DECISIONS.kept else CHANGED
        found.append(Judged(verdict, f"{where}same integers {part.same:.1%}, all of them one number"))
    return found


def _upper(share: float, count: int) -> float:
    """1.5 standard errors above a share that was found on `count` samples, more than 0 in any case (Wilson, 1927)."""
    z, n = 1.5, max(1, count)
    half = z * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return float((share + z**2 / (2 * n) + half) / (1 + z**2 / n))


def basis(part: PartFidelity) -> float:
    """What is judged of a part, 1 at best: the share of the same decisions, or R² where there are none or all are
    one."""
    decides = part.same is not None and (part.r2 is None or not _one_sided(part))
    value = part.same if decides else part.r2
    return 0.0 if value is None else value


def _one_sided(part: PartFidelity) -> bool:
    """Whether agreement says little, since nearly all decisions of the original are one."""
    return part.base_rate is None or part.base_rate >= ONE_SIDED
