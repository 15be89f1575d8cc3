"""Which layers are solved for together: the two that an Add sums up, and a layer with the one in front of it.

A layer that reads what it always read is written anew only where it is one of such two and the other has something to
make up for: what a branch has lost the shortcut's layer may see, and what a layer lacks the one in front can make.
All of it is read off the network; no sample is looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.graph.behaviour import clipping
from onnxprune.graph.layers import Affine, is_add
from onnxprune.graph.model import Graph, Use
from onnxprune.measure.designs import WIDEST
from onnxprune.rewrite.repair import room as rooms
from onnxprune.rewrite.repair.layer_fit import LayerFit
from onnxprune.rewrite.repair.room import Room
from onnxprune.rewrite.repair.task import RepairTask

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Shortcut:
    """The add behind a layer: its other operand, and its output."""

    other: str
    total: str


@dataclass
class Together:
    """The layers of a network as least squares problems, and what they share.

    Attributes:
        graph: the network.
        consumers: its tensors' uses.
        fits: tensor that a layer's place is -> the layer.
        producers: the same -> the layer in front, and the bounds of what is in between.
        partners: the same -> the earlier layer that the same Add reads.
        visited: the same of those that are fitted, in their turn.
    """

    graph: Graph
    consumers: Mapping[str, list[Use]]
    fits: dict[str, LayerFit] = field(default_factory=dict)
    producers: dict[str, tuple[LayerFit, Bounds]] = field(default_factory=dict)
    partners: dict[str, LayerFit] = field(default_factory=dict)
    visited: frozenset[str] = frozenset()

    @classmethod
    def of(cls, room: Room, *, only: Collection[str] | None, thorough: bool) -> Together:
        """Those of a room.

        Args:
            room: the network and its layers.
            only: keys of the layers to look at; None: all.
            thorough: whether the layer in front has a turn too.
        """
        found, fronts = cls(room.graph, room.graph.consumers()), {p.key: p for p in room.fronts}
        moved = {p.tensor for p in room.places if only is None or p.key in only}
        visited = set(moved)
        for place in room.all():
            if only is None or place.key in only:
                found._look(place, fronts, thorough)
                partner = found.partners.get(place.tensor)
                if partner is not None and partner.place.tensor in moved:
                    visited.add(place.tensor)
        found.visited = frozenset(visited)
        return found

    def beside(self, tensor: str) -> Iterator[LayerFit]:
        """The layers that are written anew in the turn of another."""
        if tensor in self.producers:
            yield self.producers[tensor][0]
        if tensor in self.partners:
            yield self.partners[tensor]

    def written(self) -> set[str]:
        """The tensors that are places of all layers that may be written."""
        return set(self.visited).union(other.place.tensor for t in self.visited for other in self.beside(t))

    def _look(self, place: Affine, fronts: Mapping[str, Affine], thorough: bool) -> None:
        fit = LayerFit.of(self.graph, place)
        if fit is None or fit.design.inputs > WIDEST:
            return
        self.fits[place.tensor] = fit
        producer = self._producer(fit, fronts) if thorough else None
        if producer is not None:
            self.producers[place.tensor] = producer
        shortcut = self.shortcut(place.tensor)
        other = None if shortcut is None else self.fits.get(shortcut.other)
        if other is not None and shortcut == self._behind(other.place.tensor):
            if fit.design.parts == other.design.parts == 1:
                self.partners[place.tensor] = other

    def _producer(self, fit: LayerFit, fronts: Mapping[str, Affine]) -> tuple[LayerFit, Bounds] | None:
        """The layer in front and the bounds of what is in between, when nothing else reads what it makes."""
        key = self.graph.producer.get(fit.design.tensor)
        if key is None or self._only_reader(fit.design.tensor) is None:
            return None
        clip, hidden = clipping(self.graph, key), self.graph.nodes[key].input[0]
        front = self.fits.get(hidden)
        if key in fronts:  # the first of a factorised layer's two
            clip, front, hidden = (-np.inf, np.inf), LayerFit.of(self.graph, fronts[key]), fit.design.tensor
        if clip is None or front is None or self._only_reader(hidden) is None:
            return None
        plain = all(f.design.parts == 1 and _plain(f) for f in (front, fit))
        return (front, clip) if plain else None

    def shortcut(self, tensor: str) -> Shortcut | None:
        """The Add of two activations that alone reads the tensor."""
        use = self._only_reader(tensor)
        if use is None or not is_add(self.graph, use[0]):
            return None
        node = self.graph.nodes[use[0]]
        other = node.input[1 - use[1]]
        return None if self.graph.constant(other) is not None else Shortcut(other, node.output[0])

    def _behind(self, tensor: str) -> Shortcut | None:
        """The same Add, as its other operand sees it."""
        found = self.shortcut(tensor)
        return None if found is None else Shortcut(tensor, found.total)

    def _only_reader(self, tensor: str) -> Use | None:
        uses = self.consumers.get(tensor, [])
        return uses[0] if len(uses) == 1 and tensor not in self.graph.outputs else None


def _plain(fit: LayerFit) -> bool:
    """Whether what the layer reads can be handed back: a 2-d conv with pads written out, or a Gemm."""
    conv = fit.design.conv
    return fit.design.flat if conv is None else len(conv["kernel"]) == 2 and "pads" in conv


def opened(
    task: RepairTask,
    sizes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    only: Collection[str] | None = None,
    thorough: bool = True,
) -> tuple[Room, Together]:
    """The pruned network with room for all that a refit may write, and what is solved for together.

    Args:
        task: of the refit.
        sizes: of the pruned network's tensors, where it has some that the original lacks.
        only: keys of the layers to look at; None: all.
        thorough: whether the layer in front has a turn too.
    """
    room = Room.of(task, sizes)
    first = Together.of(room, only=only, thorough=thorough)
    room = room.widened(first.written())
    return room, replace(Together.of(room, only=only, thorough=thorough), visited=first.visited)


def with_room(task: RepairTask, sizes: Mapping[str, tuple[int, ...]] | None = None) -> Graph:
    """The pruned network, as large as a refit leaves it; its values mean nothing. Arguments as for `opened`."""
    room, _ = opened(task, sizes)
    return rooms.filled(room, weights=True)
