"""Which layers a repair writes anew, and the room that their new constants take.

Only a layer that reads other values than it did in the original has anything to make up for; all others keep what
they have, to the byte. A weight that several nodes share is written anew for a node that lost some of its inputs, but
not for one that merely reads other values: that would cost a copy of the weight, and wins little.

What is to be written is decided here, for all repairs and before they look at any sample, so that a plan can count
what the outcome will hold (`with_room`, `filled`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.channels import CutSizes
from onnxprune.graph import operators
from onnxprune.graph.layers import Affine, add_bias, affine, is_add, layers, normalization, with_biases
from onnxprune.graph.model import Graph, Use
from onnxprune.rewrite.repair.task import RepairTask


@dataclass(frozen=True)
class Room:
    """The pruned network, ready to be repaired.

    Attributes:
        graph: it, edited: with a bias of zeros wherever one may be written.
        cut: which channels it still has.
        places: where a layer's output is corrected, in forward order.
        still: where that could be done too, of layers that have nothing to make up for.
        fronts: of layers that the original lacks: the first ones of factorised layers.
    """

    graph: Graph
    cut: CutSizes
    places: tuple[Affine, ...]
    still: tuple[Affine, ...] = ()
    fronts: tuple[Affine, ...] = ()

    @classmethod
    def of(cls, task: RepairTask, sizes: Mapping[str, tuple[int, ...]] | None = None) -> Room:
        """That of a task.

        Args:
            task: of a repair.
            sizes: of the pruned network's tensors, where it has some that the original lacks.
        """
        task.pruned.settle()
        original, cut = task.net.graph, CutSizes(task.net.channels, task.alive)
        cut.shapes.update({name: size for name, size in (sizes or {}).items() if name not in cut.shapes})
        lost, moved = _lost(task), moved_tensors(task)
        graph = with_biases(task.pruned, cut.changed)
        shared = _shared(graph)

        def own(place: Affine) -> bool:
            weight = (place.key, operators.of(graph.nodes[place.key]).product.weight)  # type: ignore[union-attr]
            return weight not in shared or not lost.isdisjoint((place.key, place.tensor))

        found = [p for p in _places(graph, cut) if own(p)]
        fronts = tuple(_biased(graph, p) for p in found if p.tensor not in original.producer) if sizes else ()
        kept = [p for p in found if p.tensor in original.producer]
        places = tuple(_biased(graph, p) for p in kept if p.tensor in moved)
        return cls(graph, cut, places, tuple(p for p in kept if p.tensor not in moved), fronts)

    def all(self) -> list[Affine]:
        """Places and what could be some, in forward order."""
        order = {key: k for k, key in enumerate(self.graph.nodes)}
        return sorted((*self.places, *self.still), key=lambda p: order[p.key])

    def widened(self, tensors: Collection[str]) -> Room:
        """With more of its layers among the places, where these are at those tensors."""
        places = tuple(_biased(self.graph, p) if p.tensor in tensors else p for p in self.all())
        moved = {p.tensor for p in self.places} | set(tensors)
        still = tuple(p for p in places if p.tensor not in moved)
        return replace(self, places=tuple(p for p in places if p.tensor in moved), still=still)


def with_room(task: RepairTask) -> Graph:
    """The pruned network, as large as a repair of its statistics leaves it; its values mean nothing."""
    return filled(Room.of(task), weights=False)


def filled(room: Room, *, weights: bool) -> Graph:
    """The network, edited: with constants of its own for whatever a repair changes. Their values mean nothing.

    Args:
        room: what is to be repaired.
        weights: whether the weights of layers are written anew, and not only what scales and shifts their outputs.
    """
    graph = room.graph
    for k, place in enumerate((*room.places, *room.fronts)):
        product, norm = operators.of(graph.nodes[place.key]).product, normalization(graph, place)
        uses = [use for use, _ in (*place.scales, *([] if place.shift is None else [place.shift]))]
        if weights and product is not None and place.key != uses[0][0]:
            uses.append((place.key, product.weight))
        for use in uses:
            value = another(graph, use, k)
            if weights and norm is not None and use == (norm[0], 1):
                value = norm[2].astype(value.dtype)  # its slope goes into the weight
            graph.set_constant(use, value)
    return graph


def another(graph: Graph, use: Use, number: int) -> np.ndarray:
    """An array like a constant, and unlike those of other numbers."""
    value = graph.value(use)
    assert value is not None
    return np.full(value.shape, number, value.dtype)


def _biased(graph: Graph, place: Affine) -> Affine:
    """The place, its layer with a bias."""
    if place.shift is not None:
        return place
    (use, axis), product = place.scales[0], operators.of(graph.nodes[place.key]).product
    weight = graph.value(use)
    assert weight is not None and product is not None and product.bias is not None
    add_bias(graph, place.key, np.zeros(weight.shape[axis], weight.dtype))
    return Affine(place.key, place.tensor, place.axis, place.scales, ((place.key, product.bias), 0))


def _places(graph: Graph, cut: CutSizes) -> list[Affine]:
    """Where a layer's output can be corrected, in forward order."""
    consumers, shapes = graph.consumers(), dict(cut.shapes)
    for key, node in graph.nodes.items():  # what `with_biases` has put in between has no size yet
        if is_add(graph, key) and node.output[0] in shapes and node.input[0] in graph.producer:
            shapes.setdefault(node.input[0], shapes[node.output[0]])
    found = [affine(graph, layer, consumers, shapes) for layer in layers(graph, shapes)]
    # a layer along positions has its channels on another axis, and fewer of them than in the original
    return [p for p in found if p is not None and cut.lines.get(p.tensor, (p.axis,))[0] == p.axis]


# ---- what has other values ------------------------------------------------------------------------------------


def _lost(task: RepairTask) -> set[str]:
    """The original's nodes that do without some of what they took in: channels that a weight reads, that a product of
    two activations sums over, or that statistics go over."""
    channels, alive = task.net.channels, task.alive
    lost = {s.use[0] for g in channels.groups for s in g.readers if not alive[channels.params[s.use][s.axis]].all()}
    return lost | {key for (key, _), (_, units) in channels.reads.items() if not alive[units].all()}


def moved_tensors(task: RepairTask) -> set[str]:
    """The original's tensors that have other values in the pruned network, apart from the channels that went."""
    original, pruned, lost = task.net.graph, task.pruned, _lost(task) | set(task.net.channels.inexact)
    found: set[str] = set()
    for key, node in original.nodes.items():
        if key in lost or not found.isdisjoint(node.input) or not _same(original, pruned, key):
            found.update(o for o in node.output if o)
    return found


def _same(original: Graph, pruned: Graph, key: str) -> bool:
    """Whether a node is still there, and reads what it read."""
    if key not in pruned.nodes:
        return original.constant(key) is not None

    def read(graph: Graph) -> tuple[str, list[str]]:
        node = graph.nodes[key]
        return node.op_type, [i for i in node.input if i and graph.constant(i) is None]

    return read(original) == read(pruned)


def _shared(graph: Graph) -> set[Use]:
    """The uses of constants that other nodes use too, under whatever name."""
    uses = {use: _source(graph, name) for name, of in graph.consumers().items() for use in of if _made(graph, use)}
    count = Counter(uses.values())
    count.update(_source(graph, name) for name in graph.captured() if graph.constant(name) is not None)
    return {use for use, source in uses.items() if count[source] > 1}


def _made(graph: Graph, use: Use) -> bool:
    """Whether a use is one of a constant by a node that is none itself."""
    key, i = use
    name = graph.nodes[key].input[i]
    return graph.constant(name) is not None and graph.constant(graph.nodes[key].output[0]) is None


def _source(graph: Graph, name: str) -> str:
    """The constant that one is made of, a chain of Identity, Transpose, Cast and the like in between."""
    while name in graph.producer and graph.nodes[graph.producer[name]].input:
        name = graph.nodes[graph.producer[name]].input[0]
    return name
