"""A part of the outputs: where it stands, what it says, and what it stands beside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.joined import Region

SCORES, INTEGERS, VALUES = "class scores", "integers", "values"
TEXT, LABELS, CLASS_MAP, MASK = "text", "labels", "class map", "mask"
BOXES, BOX_SCORES, BOX_VALUES, DETECTIONS = "boxes", "box scores", "box values", "detections"
KEYPOINTS, EMBEDDING, HEAT_MAP = "keypoints", "embedding", "heat map"
IMAGE, SIGNAL, STATE = "image", "signal", "hidden state"
"""What a part may say; what is known of each kind, `measure.kinds.table` says."""
Values = Mapping[str, np.ndarray]
"""The outputs of a network on a batch, by name."""


@dataclass(frozen=True)
class Part:
    """A part of an output that has one unit, and says one kind of thing.

    Attributes:
        output: the output's name.
        regions: stretches of it that belong together; one empty region is all of it.
        kind: what it says, by a name above.
        axis: of the classes, or of the numbers of a box, from the end.
        form: of boxes "xyxy", "xywh", "offsets", "scaled offsets" or "places", with " objectness" where the first of
            the scores says whether there is anything; of their scores what makes probabilities of them; of text the
            class that is no character, "0" or "-1", and behind it those that are blank ones.
        beside: of boxes and of what else is said of their anchors, the scores; of the scores of boxes, None.
        batch: the axis of the samples.
        weight: how much its damage counts.
        others: of detections whose scores and classes are outputs of their own, the names of these.
        given: the name that its user gave it; empty: as numpy writes it.
    """

    output: str
    regions: tuple[Region, ...] = ((),)
    kind: str = VALUES
    axis: int = -1
    form: str = ""
    beside: Part | None = None
    batch: int = 0
    weight: float = 1.0
    others: tuple[str, ...] = ()
    given: str = ""

    @property
    def name(self) -> str:
        """`y`, or `y[:, 0:4]` as numpy writes it; or that which its user gave it."""
        if self.given:
            return self.given
        if self.regions == ((),):
            return self.output
        more = f" and {len(self.regions) - 1} more" if len(self.regions) > 1 else ""
        spans = {axis: f"{start}:{stop}" for axis, start, stop in self.regions[0]}
        return f"{self.output}[{', '.join(spans.get(k, ':') for k in range(max(spans) + 1))}]{more}"

    @property
    def says(self) -> str:
        """The kind and what it was told by: `boxes (xywh)`."""
        return f"{self.kind} ({self.form})" if self.kind == BOXES and self.form else self.kind

    def of(self, value: np.ndarray) -> np.ndarray:
        """Its values: of an output, or of a stretch of it, as they are; of several, (first axis, all others)."""
        taken = [value[slices(region, value.ndim)] for region in self.regions]
        return taken[0] if len(taken) == 1 else np.concatenate([t.reshape(len(t), -1) for t in taken], axis=1)


def slices(region: Region, rank: int) -> tuple[slice, ...]:
    """What numpy takes a stretch by."""
    found = [slice(None)] * rank
    for axis, start, stop in region:
        found[axis] = slice(start, stop)
    return tuple(found)


def merged(regions: Sequence[Region], sizes: Sequence[int]) -> tuple[Region, ...]:
    """The same stretches, neighbours that fill one stretch put together; what fills an axis says nothing of it."""
    found = list(regions)
    while (pair := next(_neighbours(found), None)) is not None:
        k, j, one = pair
        found[k] = one
        del found[j]
    return tuple(tuple(span for span in region if span[1:] != (0, sizes[span[0]])) for region in found)


def _neighbours(regions: Sequence[Region]) -> Iterator[tuple[int, int, Region]]:
    """(place, place, both as one) of pairs that differ in one axis only, along which one follows the other."""
    for k, region in enumerate(regions):
        for j, other in enumerate(regions):
            apart = [(a, b) for a, b in zip(region, other, strict=False) if a != b]
            if len(region) == len(other) and len(apart) == 1:
                ((a, b),) = apart
                if a[0] == b[0] and a[2] == b[1]:
                    yield k, j, tuple((a[0], a[1], b[2]) if span == a else span for span in region)
