"""What kinds of parts are told by: the graph, the sizes, and the values that the original gives on samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxprune.graph.joined import Sizes, joined_of, makers
from onnxprune.graph.model import Graph
from onnxprune.measure.part import Part

COARSE = 4
"""Pixels of the input along a side of one of a map that is fine, at most."""
MOST_ROWS = 1 << 16
"""Positions at most that are looked at to tell what values are."""


@dataclass
class Look:
    """The parts, and what is known of them; kinds are told one after the other.

    Attributes:
        graph: the network; None where it is not known.
        shapes: tensor name -> sizes in a run of it.
        values: output -> what it was on samples.
        samples: how many; None: not known.
        parts: the parts, those that are decided with their kinds.
        decided: places of these.
        asked: places of those whose kind was said; what a kind needs besides is found where it was not.
    """

    graph: Graph | None
    shapes: Sizes
    values: Mapping[str, np.ndarray]
    samples: int | None
    parts: list[Part]
    decided: set[int] = field(default_factory=set)
    asked: set[int] = field(default_factory=set)
    _makers: dict[str, list[tuple[tuple, set[str]]]] = field(default_factory=dict)

    def open(self) -> Iterator[tuple[int, Part, np.ndarray]]:
        """(place, part, values) of the parts in floating point that are not decided."""
        for k, part in enumerate(self.parts):
            value = self.value(k)
            if k not in self.decided and value.dtype.kind == "f" and value.size:
                yield k, part, value

    def of_kind(self, kind: str) -> Iterator[tuple[int, Part, np.ndarray]]:
        """The same of those that were said to be of a kind."""
        yield from ((k, self.parts[k], self.value(k)) for k in sorted(self.asked) if self.parts[k].kind == kind)

    def value(self, k: int) -> np.ndarray:
        """What a part was on the samples."""
        return np.asarray(self.parts[k].of(np.asarray(self.values[self.parts[k].output])))

    def decide(self, found: Mapping[int, Part]) -> None:
        """Take parts as what they were found to be."""
        for k, part in found.items():
            self.parts[k] = part
        self.decided |= found.keys()

    def made_by(self, part: Part) -> set[str]:
        """The operators that make its values, what only moves them left out."""
        if self.graph is None or part.output not in self.graph.producer:
            return set()
        if part.output not in self._makers:
            self._makers[part.output] = [
                (region, makers(self.graph, tensor))
                for region, tensor in joined_of(self.graph, part.output, self.shapes)
            ]
        found = [ops for region, ops in self._makers[part.output] if any(_within(region, own) for own in part.regions)]
        return set().union(*found)


def _within(region: tuple, other: tuple) -> bool:
    """Whether a stretch lies in another."""
    spans = {axis: (start, stop) for axis, start, stop in region}
    return all(axis in spans and start <= spans[axis][0] and spans[axis][1] <= stop for axis, start, stop in other)


def normalized(value: np.ndarray, axis: int) -> bool:
    """Whether they are probabilities of classes along an axis, or logarithms of such."""
    if value.ndim < 2 or value.shape[axis] < 2 or not value.size:
        return False
    value = value.astype(np.float64)
    given = value if value.min() >= 0 else np.exp(value) if value.max() <= 0 else None
    return given is not None and bool(np.allclose(given.sum(axis=axis), 1.0, atol=1e-3))


def in_unit(value: np.ndarray) -> bool:
    """Whether values lie between 0 and 1, and are not all 0."""
    return bool(value.min() >= 0 and 0 < value.max() <= 1)


def rows_along(value: np.ndarray, axis: int) -> np.ndarray:
    """(positions, values along the axis), some of them where there are many."""
    rows = np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])
    return rows[:: -(-len(rows) // MOST_ROWS)].astype(np.float64)


def finely(look: Look, value: np.ndarray) -> bool:
    """Whether maps are no coarser than a quarter of the picture that the network sees: heads of detectors are."""
    seen = [look.shapes[i] for i in (look.graph.inputs if look.graph else ()) if len(look.shapes.get(i, ())) == 4]
    return not seen or any(COARSE * m >= n for shape in seen for m, n in zip(value.shape[2:], shape[2:], strict=True))
