"""What the outputs of a network consist of: one output may join boxes in pixels and scores from 0 to 1.

Where an output was joined is seen from the graph (`graph.joined`); whether what was joined differs in unit, and what
it says, from the values that the original gives on samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from onnxprune.graph.joined import Region, Sizes, joined
from onnxprune.graph.model import Graph

UNITS_APART = 8.0
"""Ratio of the spreads of neighbours, sorted by spread, from which they have different units."""
SCORES, INTEGERS, VALUES = "class scores", "integers", "values"
"""What a part may say."""


@dataclass(frozen=True)
class Part:
    """A part of an output that has one unit, and says one kind of thing.

    Attributes:
        output: the output's name.
        regions: stretches of it that belong together; one empty region is all of it.
        kind: class scores, of which the largest counts; integers; or other values.
        axis: of the classes, from the end; for class scores.
    """

    output: str
    regions: tuple[Region, ...] = ((),)
    kind: str = VALUES
    axis: int = -1

    @property
    def name(self) -> str:
        """`y`, or `y[:, 0:4]` as numpy writes it."""
        if self.regions == ((),):
            return self.output
        more = f" and {len(self.regions) - 1} more" if len(self.regions) > 1 else ""
        spans = {axis: f"{start}:{stop}" for axis, start, stop in self.regions[0]}
        return f"{self.output}[{', '.join(spans.get(k, ':') for k in range(max(spans) + 1))}]{more}"

    def of(self, value: np.ndarray) -> np.ndarray:
        """Its values: of an output, or of a stretch of it, as they are; of several, (first axis, all others)."""
        taken = [value[_slices(region, value.ndim)] for region in self.regions]
        return taken[0] if len(taken) == 1 else np.concatenate([t.reshape(len(t), -1) for t in taken], axis=1)


def parts_of(graph: Graph | None, shapes: Sizes, values: Mapping[str, np.ndarray]) -> tuple[Part, ...]:
    """The outputs, parted where units differ, and what they say.

    Args:
        graph: the network; None: outputs are not parted.
        shapes: tensor name -> sizes in a run of it.
        values: output -> what it was on samples.
    """
    found = [part for name, value in values.items() for part in _parted(graph, name, shapes, value)]
    said = [_said(part, np.asarray(part.of(values[part.output]))) for part in found]
    if any(p.kind == SCORES and _normalized(p.of(values[p.output]), p.axis) for p in said):
        return tuple(said)  # those that are probabilities are the scores
    return tuple(_by_shape(part, np.asarray(part.of(values[part.output]))) for part in said)


def _parted(graph: Graph | None, output: str, shapes: Sizes, value: np.ndarray) -> list[Part]:
    regions = [()] if graph is None or value.dtype.kind != "f" else joined(graph, output, shapes)
    known = tuple(shapes.get(output, ()))
    if len(regions) < 2 or value.ndim != len(known) or value.shape[1:] != known[1:] or not value.size:
        return [Part(output)]
    groups = _by_unit(regions, [float(np.std(value[_slices(r, value.ndim)], dtype=np.float64)) for r in regions])
    return [Part(output)] if len(groups) == 1 else [Part(output, tuple(group)) for group in groups]


def _by_unit(regions: Sequence[Region], spreads: Sequence[float]) -> list[list[Region]]:
    """Regions of about the same spread together, in the order in which they stand."""
    order = sorted(range(len(regions)), key=lambda k: spreads[k])
    unit, units = 0, dict.fromkeys(order[:1], 0)
    for before, k in pairwise(order):
        unit += spreads[k] > UNITS_APART * spreads[before]
        units[k] = unit
    found: dict[int, list[Region]] = {}
    for k, region in enumerate(regions):
        found.setdefault(units[k], []).append(region)
    return list(found.values())


def _said(part: Part, value: np.ndarray) -> Part:
    """The part with what its values show that it says."""
    if value.dtype.kind in "iub":
        return replace(part, kind=INTEGERS)
    axes = (-1, 1 - value.ndim) if value.ndim > 2 else (-1,)
    for axis in axes if value.ndim > 1 and value.dtype.kind == "f" else ():
        if _normalized(value, axis):
            return replace(part, kind=SCORES, axis=axis)
    return part


def _by_shape(part: Part, value: np.ndarray) -> Part:
    """Where no part is of probabilities: (samples, several) are scores of classes, unless their length is one."""
    if part.kind != VALUES or value.dtype.kind != "f" or value.ndim != 2 or value.shape[1] < 2:
        return part
    lengths = np.linalg.norm(value.astype(np.float64), axis=1)
    return part if part.regions != ((),) or np.allclose(lengths, 1.0, atol=1e-3) else replace(part, kind=SCORES)


def _normalized(value: np.ndarray, axis: int) -> bool:
    """Whether they are probabilities of classes along an axis, or logarithms of such."""
    if value.ndim < 2 or value.shape[axis] < 2 or not value.size:
        return False
    value = value.astype(np.float64)
    given = value if value.min() >= 0 else np.exp(value) if value.max() <= 0 else None
    return given is not None and bool(np.allclose(given.sum(axis=axis), 1.0, atol=1e-3))


def _slices(region: Region, rank: int) -> tuple[slice, ...]:
    found = [slice(None)] * rank
    for axis, start, stop in region:
        found[axis] = slice(start, stop)
    return tuple(found)
