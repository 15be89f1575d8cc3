"""What may become of blocks and layers, as columns of a cost: values that a column takes, and what they switch.

A block has gone, has become one layer, or stands; a layer is itself or made of two. What is switched by a column is a
factor of terms (`measure.terms`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.measure.terms import Term
from onnxprune.timing.node_times import Stairs

GONE, STANDS = 0.0, 1.0
"""The values that the column of a block takes; those in between where all its layers become one (`as_one`)."""
OFF = 1e-9
"""The factor of what is switched off: not zero, so that what switching it on costs is a finite multiple."""


def switches(count: int) -> np.ndarray:
    """The values that a column with so many states takes, ascending, the last 1."""
    return np.arange(1, count + 1) / count


def as_one(count: int) -> np.ndarray:
    """The values that the column of a block takes for each of so many layers that it may become, ascending."""
    return switches(count + 1)[:-1]


def within_blocks(
    terms: Sequence[Term], blocks: Sequence[Collection[str]], merged: Mapping[int, Sequence[Term]], units: int
) -> list[Term]:
    """The terms with the columns of the blocks around them, and those of the layers that blocks may become."""
    around: dict[str, list[int]] = {}
    for b, nodes in enumerate(blocks):
        for node in nodes:
            around.setdefault(node, []).append(b)

    def stands(b: int) -> tuple[np.ndarray, Stairs | None]:
        return _state(units + b, len(merged.get(b, ())), -1)

    found = [replace(t, factors=[*t.factors, *map(stands, around.get(t.node, ()))]) for t in terms]
    for b in sorted(merged):
        inside = set(blocks[b])
        outer = [o for o in around[next(iter(blocks[b]))] if o != b and inside < set(blocks[o])]
        for k, term in enumerate(merged[b]):
            own = [_state(units + b, len(merged[b]), k), *map(stands, outer)]
            found.append(replace(term, factors=[*term.factors, *own], node=""))
    return found


def _state(column: int, ways: int, which: int) -> tuple[np.ndarray, Stairs | None]:
    """What is there in one state of a block that has so many layers that it may become; -1: as it stands."""
    if not ways:
        return np.array([column]), None
    there = np.full(ways + 1, OFF)
    there[which] = 1.0
    return np.array([column]), Stairs(tuple(map(float, switches(ways + 1))), tuple(map(float, there)))
