"""What a planner expects of smaller and larger cuts than the one that it was asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxprune.pipeline.planner import Planner
from onnxprune.plan import PrunePlan
from onnxprune.report.forecast import Forecast, Judged

POINTS = 48
"""How many points of the way are told."""


def forecast(planner: Planner, plan: PrunePlan) -> Forecast | None:
    """The trade-off around a plan; None where no damage of single cuts is known, or cuts are made in a fixed order."""
    if planner.study.damages is None or planner.candidates.staged:
        return None
    judged = {p.edits: _judged(planner, p, damage) for p, damage in planner.judged()}
    taken = judged.get(plan.edits) or _judged(planner, plan, math.inf)
    return Forecast(planner.of, _thinned(planner.path), tuple(dict.fromkeys(judged.values())), taken)


def _judged(planner: Planner, plan: PrunePlan, damage: float) -> Judged:
    """As many digits as in `studied`, so that rounding of a machine does not show."""
    removed = round(1 - 1 / planner.gain(plan), 6)
    return Judged(removed, float(f"{damage:.4g}") if math.isfinite(damage) else None)


def _thinned(path: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """So many of the points, spread evenly over the share that goes; the first and the last among them."""
    if not path:
        return ()
    removed = np.array([r for r, _ in path])
    wanted = np.linspace(removed[0], removed[-1], POINTS)
    picked = sorted({int(np.argmin(np.abs(removed - w))) for w in wanted})
    return tuple((round(float(path[k][0]), 6), float(f"{path[k][1]:.4g}")) for k in picked)
