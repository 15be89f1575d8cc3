"""What a planner measured of each cut alone, as rows that a person can look at."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from onnxprune.decide.limits import Ladder
from onnxprune.decide.trials import tried_widths
from onnxprune.measure.cost import CostModel
from onnxprune.measure.states import GONE, STANDS
from onnxprune.pipeline.planner import Planner
from onnxprune.report.alone import Point, Row

MOST = 500
"""Groups and blocks that are told of; of networks with more, the first."""


def studied(planner: Planner) -> tuple[Row, ...]:
    """A row for every group whose widths were tried, and for every block that might go; none where nothing was."""
    study, net = planner.study, planner.candidates.net
    if study.damages is None:
        return ()
    cost = CostModel(net.graph, net.channels, "macs", blocks=planner.prices.blocks)
    return tuple(row for row, _ in zip(_rows(planner, cost), range(MOST), strict=False))


def _rows(planner: Planner, cost: CostModel) -> Iterator[Row]:
    study, channels = planner.study, planner.candidates.net.channels
    for group in channels.groups:
        damages = (study.damages or {}).get(group.name)
        if damages is None:
            continue
        ladder = Ladder(group, study.scores[group.name], study.limits)
        points = tuple(
            _point(w, damages[w], cost.removed(channels.alive({group.name: map(int, ladder.order[:w])})))
            for w in tried_widths(group, ladder.widths)
        )
        if points:
            yield Row("group", group.name, group.width, points)
    everything = channels.alive({})
    for k, move in enumerate(planner.moves):
        if move.damage is not None:
            standing = np.full(len(planner.moves), STANDS, float)
            standing[k] = GONE
            yield Row("block", move.name, 1, (_point(0, move.damage, cost.removed(everything, standing)),))


def _point(kept: int, damage: float, macs_removed: float) -> Point:
    """Four digits of the damage are enough, and the same on any machine that rounds a little otherwise."""
    found = float(damage)
    return Point(kept, float(f"{found:.4g}") if math.isfinite(found) else None, round(float(macs_removed), 6))
