"""A layer refitted through what stands behind it, be it HardSwish, SiLU, GELU or a learnt scale behind either.

ReLU and its kin have closed targets (`numerics.relu_target`); for any other function of single elements, that function
is looked up in a table and majorised (`numerics.Table`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.graph.activation import activation
from onnxprune.graph.model import Graph, Use
from onnxprune.measure.designs import apart, joined
from onnxprune.numerics import Table
from onnxprune.rewrite.repair.layer_fit import Rows

MARGIN = 0.25
"""Share of the range of what a layer should write by which the table goes beyond it."""


def curve_behind(graph: Graph, tensor: str, consumers: Mapping[str, Sequence[Use]], wanted: np.ndarray) -> Table | None:
    """The function of single elements that alone reads a tensor, where `wanted` (rows, n) lies; None where there is
    none, or it is a line, or not finite."""
    found = activation(graph, tensor, consumers) if wanted.dtype == np.float32 else None
    if found is None:
        return None
    low, high = float(wanted.min()), float(wanted.max())
    margin = MARGIN * (high - low)
    table = Table(found.values, low - margin, high + margin) if margin > 0 else None
    return table if table is not None and table.useful else None


def solve_through(rows: Rows, z: np.ndarray, s: np.ndarray, curve: Table, sweeps: int) -> np.ndarray:
    """(parts, inputs + 1, outputs) of a layer that comes close to `z` behind the curve, once `s` is added.

    Every output by itself keeps the best solution that it has seen; where a step did not help, the next is half as
    long, and from there.

    Args:
        rows: what the layer reads, solved for `z - s`.
        z: (parts, rows, outputs) what was written there.
        s: the same of what is added.
        curve: the function behind.
        sweeps: solves.
    """
    best, z, s = rows.solution, joined(z), joined(s)
    parts, _, outputs = best.shape
    reached, now = curve.of(z), joined(rows.written()) + s
    error, steep = curve.error(now, reached)
    point, length = now, np.ones(z.shape[1])
    for _ in range(sweeps):
        rows.solve(apart(curve.target(point, reached, steep) - s, parts))
        fresh = joined(rows.written()) + s
        found, _ = curve.error(fresh, reached)
        good = found < error
        best = np.where(good.reshape(parts, 1, outputs), rows.solution, best)
        error, steep = np.where(good, found, error), np.where(good, steep, 2 * steep)
        following = np.where(good, (1 + np.sqrt(1 + 4 * length**2)) / 2, 1.0)
        push = np.where(good, (length - 1) / following, 0.0).astype(np.float32)
        before, now = now, np.where(good, fresh, now)
        point, length = now + push * (now - before), following
    return best
