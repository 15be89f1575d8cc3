"""The structure of a network apart from names and values: what a twin has in common with it.

Layers with weights and sums of activations are places; what a place is called (its mark) hangs on its sizes and on
the places before and behind it, and on nothing else. All other nodes only lie between places, so that it does not
matter whether a batch normalization was folded, or whether a bias is an Add. Groups are marked by the layers that make
and read their channels. Ours; the marks are colours as in Weisfeiler and Leman's refinement, on a graph without loops.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.channels.analysed import Analysed
from onnxprune.channels.groups import ChannelGroup
from onnxprune.graph import operators
from onnxprune.graph.layers import is_add, layers, weight_axes
from onnxprune.graph.model import Graph
from onnxprune.protobuf.nodes import attr, captured


@dataclass(frozen=True)
class Structure:
    """What is known of a network's structure.

    Attributes:
        places: layers and sums, by the node's first output -> mark; no two are the same.
        layers: sizes of all layers in words, in the order of their marks' first letters: what can be compared by eye.
        groups: name of a group of channels -> mark.
        weights: name of a group -> digest of the weights that make its channels.
    """

    places: Mapping[str, str]
    layers: tuple[str, ...]
    groups: Mapping[str, str]
    weights: Mapping[str, str]

    def to_dict(self, wanted: Mapping[str, str]) -> dict[str, object]:
        """Plain values, of the places only those that are wanted: what they go by -> key."""
        return {
            "places": {name: self.places[key] for name, key in wanted.items() if key in self.places},
            "layers": list(self.layers),
            "groups": dict(self.groups),
            "weights": dict(self.weights),
        }


def structure_of(net: Analysed) -> Structure:
    """The structure of a network."""
    graph = net.graph
    labels = _labels(net)
    before = _neighbours(graph, labels)
    behind: dict[str, list[str]] = {key: [] for key in labels}
    for key, sources in before.items():
        for source in sources:
            behind.setdefault(source, []).append(key)
    ahead, back = dict[str, str](), dict[str, str]()
    for key in labels:
        ahead[key] = _hash(labels[key], *sorted(ahead.get(s, s) for s in before[key]))
    outputs = _ends(graph, labels)
    for key in reversed(labels):
        back[key] = _hash(labels[key], *sorted([*(back[k] for k in behind[key]), *outputs.get(key, ())]))
    places = _distinct({key: _hash(ahead[key], back[key]) for key in labels})
    words = sorted(label for key, label in labels.items() if not is_add(graph, key))
    marks = {g.name: _mark(g, places) for g in net.channels.groups}
    return Structure(places, tuple(words), _distinct(marks), {g.name: _weights(graph, g) for g in net.channels.groups})


def _labels(net: Analysed) -> dict[str, str]:
    """The places in forward order, with what each is, in words."""
    graph, found = net.graph, dict[str, str]()
    weighted = {layer.key: layer.weight for layer in layers(graph, net.shapes) if layer.weight is not None}
    for key, node in graph.nodes.items():
        if key in weighted:
            value = graph.value(weighted[key])
            assert value is not None
            if operators.of(node).product.kernel:  # type: ignore[union-attr]
                strides, groups = attr(node, "strides", [1]), attr(node, "group", 1)
                found[key] = f"{node.op_type} {_by(value.shape)} stride {_by(strides)} groups {groups}"
            else:
                writes, reads = weight_axes(node) if value.ndim == 2 else (0, 1)
                found[key] = (
                    f"matrix {value.shape[writes]}x{value.shape[reads]}" if value.ndim == 2 else _by(value.shape)
                )
        elif is_add(graph, key) and all(graph.constant(i) is None for i in node.input):
            found[key] = "sum"
    return found


def _neighbours(graph: Graph, places: Collection[str]) -> dict[str, list[str]]:
    """Place -> the places and inputs that it reads, through whatever lies between, each once."""
    seen: dict[str, frozenset[str]] = {name: frozenset((f"input {k}",)) for k, name in enumerate(graph.inputs)}
    found = {}
    for key, node in graph.nodes.items():
        read: frozenset[str] = frozenset().union(*(seen.get(i, frozenset()) for i in (*node.input, *captured(node))))
        if key in places:
            found[key] = sorted(read)
            read = frozenset((key,))
        seen.update((o, read) for o in node.output if o)
    return found


def _ends(graph: Graph, places: Collection[str]) -> dict[str, list[str]]:
    """Place -> the outputs that are made of it with no other in between."""
    seen: dict[str, frozenset[str]] = {}
    for key, node in graph.nodes.items():
        read: frozenset[str] = frozenset().union(*(seen.get(i, frozenset()) for i in (*node.input, *captured(node))))
        seen.update((o, frozenset((key,)) if key in places else read) for o in node.output if o)
    found: dict[str, list[str]] = {}
    for k, name in enumerate(graph.outputs):
        for key in seen.get(name, ()):
            found.setdefault(key, []).append(f"output {k}")
    return found


def _mark(group: ChannelGroup, places: Mapping[str, str]) -> str:
    """What a group is called by the layers that make and read its channels."""
    uses = {f"{places[s.use[0]]} {s.role}" for s in group.slices if s.use[0] in places and s.use[1] < 2}
    return _hash(str(group.width), *sorted(uses))


def _weights(graph: Graph, group: ChannelGroup) -> str:
    values = [graph.value(s.use) for s in group.weights]
    return _hash(*(hashlib.sha256(np.ascontiguousarray(v).tobytes()).hexdigest() for v in values if v is not None))


def _distinct(marks: Mapping[str, str]) -> dict[str, str]:
    """The same, those that are equal numbered in order."""
    count: Counter[str] = Counter()
    found = {}
    for key, mark in marks.items():
        found[key] = f"{mark}.{count[mark]}" if count[mark] else mark
        count[mark] += 1
    return found


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
