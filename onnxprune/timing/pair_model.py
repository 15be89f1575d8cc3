"""How long a layer takes when it is made of two or three, relative to the layer itself, by reckoning: nothing is timed.

    work = MACs, filters filled up to 16 + 13 for each number written + 140,000 for the node

In multiply-accumulates, fitted to 420 pairs of 31 convolutions that `timing.pair_times` had measured (ONNX Runtime
1.30 on one core of an AVX2 machine, batch 1): the chain's time over the layer's is off by 11% on average, MACs alone by
65%. The same on every machine, so that what is decided by it is the same too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from onnxprune.graph import operators
from onnxprune.graph.model import Graph
from onnxprune.graph.pairs import pair_sizes
from onnxprune.protobuf.nodes import attr
from onnxprune.timing.pair_times import Way

FILTERS = 16
"""Filters that a kernel computes together."""
WRITTEN, NODE = 13.0, 140_000.0
"""What writing a number, and a node, take, in multiply-accumulates."""


@dataclass(frozen=True)
class PairModel:
    """Times of chains as they are reckoned, in place of `PairTimes`.

    Args:
        graph: the network.
        shapes: sizes of its tensors in one run.
    """

    graph: Graph
    shapes: Mapping[str, tuple[int, ...]]
    share: ClassVar[float] = 0.5
    """Of the MACs that a way saves, as much time, relative to the layer, must go too: what is asked for in MACs is not
    to be bought with hardly any time. With 0.75 a CIFAR-10 ResNet-20 at -54% loses 1.3 points more, and is no faster
    than the error of measurement."""

    def relative(self, key: str, way: Way) -> tuple[float, ...]:
        """The time of every node of the chain over that of the layer `key`, as it is."""
        node, weight = self.graph.nodes[key], self.graph.value((key, 1))
        assert weight is not None
        if weight.dtype.itemsize < 4:  # half precision and integers are never made of two
            return (math.inf,)
        x, y, size = self.shapes[node.input[0]], self.shapes[node.output[0]], weight.shape
        channels = operators.of(node).channels
        assert channels is not None
        groups, outputs = attr(node, "group", 1), y[channels]
        places = math.prod(y) / max(1, outputs)
        spent = partial(_spent, groups)
        whole, parts = spent(size, outputs, places), []
        for kind, rank in way:
            first, size = pair_sizes(node, size, kind, rank)
            at = places * x[3] / y[3] if kind == "spatial" else places
            parts.append(spent(first, rank * groups, at) / whole)
        return (*parts, spent(size, outputs, places) / whole)

    def save(self) -> None:
        """Nothing was measured."""


def layer_work(graph: Graph, shapes: Mapping[str, tuple[int, ...]], key: str) -> float:
    """What a layer takes, in multiply-accumulates."""
    node, weight = graph.nodes[key], graph.value((key, 1))
    y, channels = shapes[node.output[0]], operators.of(node).channels
    if weight is None or channels is None:
        return NODE
    return _spent(attr(node, "group", 1), weight.shape, y[channels], math.prod(y) / max(1, y[channels]))


def work_of(weight: tuple[int, ...], y: tuple[int, ...]) -> float:
    """The same for a dense convolution with a weight of that size, that writes a tensor of sizes `y`."""
    return _spent(1, weight, y[1], math.prod(y) / y[1])


def _spent(groups: int, size: tuple[int, ...], outputs: int, places: float) -> float:
    each = outputs / groups
    filled = -(-each // FILTERS) * FILTERS / max(1, each)
    return places * (math.prod(size) * filled + WRITTEN * outputs) + NODE


class AnyPair(PairModel):
    """The same where nothing but ranks is asked for, and in MACs: all that saves some is on offer."""

    share: ClassVar[float] = -math.inf
