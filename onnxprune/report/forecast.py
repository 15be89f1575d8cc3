"""What a smaller or larger cut would have done to the outputs, as far as the planner knows without carrying it out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Judged:
    """A plan that was cut, repaired and judged beside others, on samples that its layers were not fitted to.

    Attributes:
        removed: share of the cost that it removes.
        damage: to the outputs, see `measure.damage`; None where they were not finite, or it was not judged.
    """

    removed: float
    damage: float | None


@dataclass(frozen=True)
class Forecast:
    """The trade-off around a ratio.

    Attributes:
        of: what counts as cost, as `Settings.of` names it.
        path: (share of the cost removed, damage) along the cheapest single cuts, whose damages, each measured alone,
            are added up: a prediction.
        judged: the plans for the ratio that were measured.
        taken: the one that the result is made of; where it had no rival it was not measured.
    """

    of: str
    path: tuple[tuple[float, float], ...]
    judged: tuple[Judged, ...]
    taken: Judged
