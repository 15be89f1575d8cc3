"""How large the channels of a group are: in the weights that make them, and in what they add to their readers.

Norms of slices of named tensors, added up per channel. Whether a large channel is an important one is for a criterion
to say (`decide.criteria`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from onnxprune.channels import ChannelGroup, Slice
from onnxprune.graph.model import Use
from onnxprune.measure.moments import Moments

PART = 1 << 21
"""Elements worked on at once: a double-precision copy of all of a large weight costs more than the sums."""

Weight = Callable[[Use], np.ndarray]
"""Gives the constant that a use reads."""


def per_index(value: np.ndarray, axis: int, power: float) -> np.ndarray:
    """sum |value|^power over all axes but one: (length of that axis,)."""
    other = tuple(k for k in range(value.ndim) if k != axis)
    parts = max(1, min(value.shape[axis] // 2, value.size // PART))
    return np.concatenate([_powers(part, power).sum(axis=other) for part in np.array_split(value, parts, axis)])


def _powers(value: np.ndarray, power: float) -> np.ndarray:
    """|value|^power in double precision."""
    sizes = np.array(value, np.float64)
    return np.multiply(sizes, sizes, out=sizes) if power == 2 else np.power(np.abs(sizes, out=sizes), power, out=sizes)


def per_channel(slice_: Slice, width: int, values: np.ndarray) -> np.ndarray:
    """(width,) values per channel of the group, added up from values per index of a slice's axis."""
    own = slice_.channel >= 0
    return np.bincount(slice_.channel[own], weights=values[own], minlength=width)


def makers(group: ChannelGroup) -> tuple[Slice, ...]:
    """The slices whose size says how much a channel weighs: its filters, else whatever holds it."""
    return group.weights or group.readers or tuple(s for s in group.slices if s.role == "within")


def filter_sums(group: ChannelGroup, weight: Weight, power: float) -> np.ndarray:
    """(width,) Σ|w|^power over the filters that make the channel."""
    total = np.zeros(group.width)
    for s in makers(group):
        total += per_channel(s, group.width, per_index(weight(s.use), s.axis, power))
    return total


def energies(group: ChannelGroup, weight: Weight, moments: Mapping[str, Moments]) -> np.ndarray:
    """(width,) mean square of what the channel adds to its readers: Σ over readers of ‖W[:, c]‖² · E[x_c²], each
    reader relative to its total. Where nobody reads the group, the norms of its filters.

    Args:
        group: the group.
        weight: gives the constant that a use reads.
        moments: of what the readers read, by tensor; where there are none, E[x²] is taken as 1.
    """
    if not group.readers:
        return np.sqrt(filter_sums(group, weight, 2))
    total = np.zeros(group.width)
    for s in group.readers:
        columns = per_channel(s, group.width, per_index(weight(s.use), s.axis, 2))
        seen = moments.get(s.reads or "")
        carrier = next((a for a in group.activations if a.tensor == s.reads), None)
        if seen is not None and carrier is not None:
            count = np.maximum(per_channel(carrier, group.width, np.ones(len(carrier.channel))), 1)
            columns = columns * per_channel(carrier, group.width, seen.square) / count
        total += columns / max(columns.sum(), 1e-300)
    return total
