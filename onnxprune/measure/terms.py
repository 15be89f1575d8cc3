"""What a network costs, term by term: multiply-accumulates or milliseconds, with the channels that each is in
proportion to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.channels import Channels
from onnxprune.graph.layers import Layer, products
from onnxprune.graph.macs import OUT, Axes, Part
from onnxprune.graph.model import Graph, Use
from onnxprune.graph.work import Work, size_of, work
from onnxprune.timing.node_times import NodeTimes, Stairs


@dataclass(frozen=True)
class Term:
    """One part of the cost: `base` times, for every factor, what is left of it.

    Attributes:
        base: the cost of the original.
        factors: lines of units, with the stairs by which the living share counts; None: by itself.
        node: key of the node that it belongs to; "" for none.
        weight: whether it goes when the layer is made of two: it is the product with its weight.
    """

    base: float
    factors: Sequence[tuple[np.ndarray, Stairs | None]] = ()
    node: str = ""
    weight: bool = False


def mac_terms(graph: Graph, channels: Channels) -> list[Term]:
    """What each node multiplies."""
    weighted = {layer.key for layer in products(graph, channels.shapes) if layer.weight is not None}
    return [
        Term(macs, [(line, None) for line in _lines(graph, channels, w, part)], w.key, w.key in weighted)
        for w in work(graph, channels.shapes, channels.ran)
        for part, macs in w.parts
    ]


def _lines(graph: Graph, channels: Channels, done: Work, part: Part) -> list[np.ndarray]:
    """The lines of channels that a part of what a node multiplies goes over: (length,) unit per index, each once."""
    node, found = graph.nodes[done.key], dict[tuple[int, int], np.ndarray]()
    for axes in part:
        size = size_of(graph, done.key, axes.operand, channels.shapes) if isinstance(axes, Axes) else None
        if size is None or not isinstance(axes, Axes):
            continue
        own = channels.params.get((done.key, axes.operand))
        if own is None:
            name = node.output[0] if axes.operand == OUT else node.input[axes.operand]
            own = dict([channels.lines[name]]) if name in channels.lines else {}
        found |= {(axes.operand, k): line for k, line in own.items() if k in axes.within(len(size))}
    return list(found.values())


def _weight(layer: Layer, channels: Channels) -> Use | None:
    """The operand that a layer's channels are cut in; a quantized weight comes through DequantizeLinear."""
    through = ((layer.key, i) for i in (1, 0) if not layer.operator.recurrent)
    return layer.weight or next((use for use in through if use in channels.params), None)


def latency_terms(graph: Graph, channels: Channels, times: NodeTimes) -> list[Term]:
    """What each node takes, by the stairs of its weight or in proportion to the channels it writes; what is left over
    is shared out evenly, for every node costs a dispatch."""
    weights = {layer.key: _weight(layer, channels) for layer in products(graph, channels.shapes)}
    each = times.loose_ms / max(1, len(times.nodes))
    terms = []
    for key, ms in times.nodes.items():
        steps, weight = times.stairs.get(key, {}), weights.get(key)
        axes = channels.params.get(weight, {}) if weight is not None else {}
        factors = [(line, steps.get(axis)) for axis, line in axes.items()]
        if not factors and key in graph.nodes:
            made = next((channels.lines[o] for o in graph.nodes[key].output if o in channels.lines), None)
            contracted = channels.reads.get((key, 0))
            factors = [(found[1], None) for found in (made, contracted) if found is not None]
        kappa = times.mixed.get(key, 1.0) if len(factors) == 2 else 1.0
        goes = weight is not None
        terms += [Term(kappa * ms, factors, key, goes), Term(each, (), key)]
        if kappa != 1:  # t (1 - (1 - f) - (1 - g) + kappa (1 - f) (1 - g)), multiplied out
            terms += [Term((1 - kappa) * ms, [factor], key, goes) for factor in factors]
            terms.append(Term((kappa - 1) * ms, (), key, goes))
    return terms
