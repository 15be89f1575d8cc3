"""Importance of channels. A criterion sees slices of named tensors, never an operator.

Each criterion is a function of one group that returns (width,) scores, higher is more important, in the units
of that group alone: the allocator normalises. To add one, write ten lines and enter it in the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxprune.channels import ChannelGroup, Slice
from onnxprune.errors import UsageError
from onnxprune.graph.model import Graph, Use
from onnxprune.measure.moments import Moments


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at.

    Attributes:
        weight: gives the constant that a use reads.
        moments: activation name -> moments per index of its channel axis; empty without calibration data.
        rng: for the control.
    """

    weight: Callable[[Use], np.ndarray]
    moments: dict[str, Moments]
    rng: np.random.Generator


Criterion = Callable[[ChannelGroup, Evidence], np.ndarray]
CRITERIA: dict[str, Criterion] = {}


def criterion(name: str) -> Callable[[Criterion], Criterion]:
    def enter(function: Criterion) -> Criterion:
        CRITERIA[name] = function
        return function

    return enter


def score(name: str, groups: tuple[ChannelGroup, ...], graph: Graph, moments: dict[str, Moments], seed: int):
    """Scores of every group: {group name: (width,) float}.

    Raises:
        UsageError: no such criterion.
    """
    if name not in CRITERIA:
        raise UsageError(f"unknown criterion {name!r} - one of {', '.join(CRITERIA)}")

    def weight(use: Use) -> np.ndarray:
        value = graph.value(use)
        assert value is not None
        return value

    evidence = Evidence(weight, moments, np.random.default_rng(seed))
    return {g.name: CRITERIA[name](g, evidence) for g in groups}


def per_index(value: np.ndarray, axis: int, power: float) -> np.ndarray:
    """sum |value|^power over all axes but one: (length of that axis,)."""
    other = tuple(k for k in range(value.ndim) if k != axis)
    parts = max(1, min(value.shape[axis] // 2, value.size // PART))
    return np.concatenate([_powers(part, power).sum(axis=other) for part in np.array_split(value, parts, axis)])


PART = 1 << 21
"""Elements worked on at once: a double-precision copy of all of a large weight costs more than the sums."""


def _powers(value: np.ndarray, power: float) -> np.ndarray:
    """|value|^power in double precision."""
    sizes = np.array(value, np.float64)
    return np.multiply(sizes, sizes, out=sizes) if power == 2 else np.power(np.abs(sizes, out=sizes), power, out=sizes)


def gather(slice_: Slice, width: int, values: np.ndarray) -> np.ndarray:
    """Add up values per index into values per channel of the group."""
    own = slice_.channel >= 0
    return np.bincount(slice_.channel[own], weights=values[own], minlength=width)


def makers(group: ChannelGroup) -> tuple[Slice, ...]:
    """The slices whose size says how much a channel weighs: its filters, else whatever holds it."""
    return group.weights or group.readers or tuple(s for s in group.slices if s.role == "within")


@criterion("l1")
def l1(group: ChannelGroup, evidence: Evidence) -> np.ndarray:
    """Sum of |w| over the filters that make the channel (Li et al., ICLR 2017)."""
    sizes = [gather(s, group.width, per_index(evidence.weight(s.use), s.axis, 1)) for s in makers(group)]
    return np.sum(sizes, axis=0)


@criterion("l2")
def l2(group: ChannelGroup, evidence: Evidence) -> np.ndarray:
    """Euclidean norm of the filters that make the channel."""
    squares = [gather(s, group.width, per_index(evidence.weight(s.use), s.axis, 2)) for s in makers(group)]
    return np.sqrt(sum(squares))


@criterion("activation")
def activation(group: ChannelGroup, evidence: Evidence) -> np.ndarray:
    """Mean square of what the channel adds to its readers: sum over readers of ‖W[:, c]‖² · E[x_c²], each
    reader normalised by its total. Without calibration data E[x²] is taken as 1."""
    total = np.zeros(group.width)
    for s in group.readers:
        columns = gather(s, group.width, per_index(evidence.weight(s.use), s.axis, 2))
        moments = evidence.moments.get(s.reads or "")
        carrier = next((a for a in group.activations if a.tensor == s.reads), None)
        if moments is not None and carrier is not None:
            count = np.maximum(gather(carrier, group.width, np.ones(len(carrier.channel))), 1)
            columns = columns * gather(carrier, group.width, moments.square) / count
        total += columns / max(columns.sum(), 1e-300)
    return total if group.readers else l2(group, evidence)


@criterion("random")
def random(group: ChannelGroup, evidence: Evidence) -> np.ndarray:
    """Uniform noise: the control that every other criterion must beat."""
    return evidence.rng.random(group.width)
