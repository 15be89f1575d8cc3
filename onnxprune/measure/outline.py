"""What a network looks like before and after: its layers and joins, how wide each is, and which reads which.

A spot is a node that multiplies, or that brings several others together; what follows it alone (an activation, a
normalization, a pool) counts as part of it. Knows nothing of how it is drawn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from onnxprune.graph import operators
from onnxprune.graph.model import Graph
from onnxprune.graph.work import NOTHING, Ran, named, work
from onnxprune.measure.cost import parameters
from onnxprune.measure.layer_costs import constants, stored_bytes
from onnxprune.protobuf.nodes import read_by

VERSION = 1
MOST = 2000
"""Spots that are told; of a network with more, only how many there are."""
FOLLOWING = 4
"""Operators behind a spot that are named."""
INPUT = "Input"
"""The operator of what is read from outside."""


@dataclass(frozen=True)
class Side:
    """A spot in one of the two networks.

    Attributes:
        op: its operator, with the domain where that is not ONNX's own.
        then: operators that follow it alone, the first few.
        channels: that it makes; None where its size is not known, or it has no such axis.
        macs: multiply-accumulates, of what follows too.
        params, bytes: of the constants that it and what follows read, also of those that others read too.
        reads: the spots that it reads, by their place in the list.
        node: its key, where that is another than the spot's.
        ms: measured, of what follows too (`timing.node_times.by_node`); None where it was not timed.
    """

    op: str
    then: tuple[str, ...]
    channels: int | None
    macs: float
    params: int
    reads: tuple[int, ...]
    bytes: int = 0
    node: str = ""
    ms: float | None = None


@dataclass(frozen=True)
class Spot:
    """A layer or join, and what has become of it.

    Attributes:
        node: its key, the name of its first output.
        before, after: in the original and in the pruned network; None where it is not there.
    """

    node: str
    before: Side | None
    after: Side | None

    def __post_init__(self) -> None:
        if self.before is None and self.after is None:
            raise ValueError("a spot is in one of the two networks")


@dataclass(frozen=True)
class Outline:
    """Both networks side by side.

    Attributes:
        version: of this form.
        spots: in the order in which they run; of what is new, before the next that was there.
        left_out: how many spots there are, where there are too many to tell; else 0.
        timed_on: the provider that spots were timed on; empty where they were not.
    """

    version: int = VERSION
    spots: tuple[Spot, ...] = ()
    left_out: int = 0
    timed_on: str = ""


@dataclass(frozen=True)
class Seen:
    """A spot of one network, while its partner in the other is not known: reads by name, sizes whole."""

    node: str
    title: str
    op: str
    then: tuple[str, ...]
    sizes: tuple[int, ...]
    axis: int | None
    macs: float
    params: int
    bytes: int
    reads: tuple[str, ...]


def spots_of(graph: Graph, shapes: Mapping[str, tuple[int, ...]], ran: Ran = NOTHING) -> tuple[Seen, ...]:
    """The spots of one network, in the order in which they run.

    Args:
        graph: the network, without edits.
        shapes: tensor name -> sizes in the run that was looked at.
        ran: what else that run told.
    """
    macs = {done.key: done.macs for done in work(graph, shapes, ran)}
    found = {name: _input(name, shapes) for name in graph.inputs}
    at = {name: name for name in graph.inputs}  # tensor -> its spot
    for key, held in constants(graph).items():
        node = graph.nodes[key]
        reads = tuple(dict.fromkeys(at[n] for n in read_by(node) if n in at))
        kept = sum(map(parameters, held.values())), sum(map(stored_bytes, held.values()))
        if operators.of(node).measures or not reads:  # sizes are no flow of values
            continue
        if macs.get(key) or len(reads) > 1:
            found[key] = _seen(graph, key, shapes, macs.get(key, 0.0), kept, tuple(found[r] for r in reads))
            home = key
        else:
            (home,) = reads
            found[home] = _followed(found[home], node, kept)
        at |= dict.fromkeys(filter(None, node.output), home)
    used = {name for seen in found.values() for name in seen.reads}
    return tuple(s for s in found.values() if s.op != INPUT or s.node in used)


def _input(name: str, shapes: Mapping[str, tuple[int, ...]]) -> Seen:
    sizes = tuple(map(int, shapes.get(name, ())))
    return Seen(name, "", INPUT, (), sizes, 1 if len(sizes) > 1 else None, 0.0, 0, 0, ())


def _seen(
    graph: Graph,
    key: str,
    shapes: Mapping[str, tuple[int, ...]],
    macs: float,
    kept: tuple[int, int],
    reads: Sequence[Seen],
) -> Seen:
    node, sizes = graph.nodes[key], tuple(map(int, shapes.get(key, ())))
    axis = operators.of(node).channels
    if axis is None or not -len(sizes) <= axis < len(sizes):
        like = [r.axis for r in reads if r.axis is not None and len(r.sizes) == len(sizes)]
        axis = like[0] if like else 1 if len(sizes) > 1 else None
    axis = None if axis is None or not sizes else axis % len(sizes)
    if axis is not None and not macs and sizes[axis] > sum(r.sizes[r.axis] for r in reads if r.axis is not None):
        axis = None  # positions, boxes: more than all that it brings together
    return Seen(key, node.name, named(node), (), sizes, axis, macs, *kept, tuple(r.node for r in reads))


def _followed(seen: Seen, node: onnx.NodeProto, kept: tuple[int, int]) -> Seen:
    """A spot with one more node behind it."""
    told = named(node)
    then = (*seen.then, told) if told not in seen.then and len(seen.then) < FOLLOWING else seen.then
    return replace(seen, then=then, params=seen.params + kept[0], bytes=seen.bytes + kept[1])


def outline(before: Sequence[Seen], after: Sequence[Seen]) -> Outline:
    """Both networks side by side: a spot is the same where its name is, else where the node's name is."""
    partner = _partners(before, after)
    back = {new: old for old, new in partner.items()}
    order = list(_order(before, after, partner))
    if len(order) > MOST:
        return Outline(left_out=len(order))
    place = {name: k for k, (name, _, _) in enumerate(order)}
    place_after = {s.node: place[back.get(s.node, s.node)] for s in after}
    return Outline(spots=tuple(_spot(name, a, b, place, place_after) for name, a, b in order))


def _partners(before: Sequence[Seen], after: Sequence[Seen]) -> dict[str, str]:
    """Spot of the original -> the same in the pruned network."""
    new, old = {s.node for s in after}, {s.node for s in before}
    found = {s.node: s.node for s in before if s.node in new}
    left, right = [s for s in before if s.node not in new], [s for s in after if s.node not in old]
    once = Counter((s.title, s.op) for s in left), Counter((s.title, s.op) for s in right)
    named = {(s.title, s.op): s.node for s in right if s.title and once[1][s.title, s.op] == 1}
    return found | {
        s.node: named[s.title, s.op] for s in left if once[0][s.title, s.op] == 1 and (s.title, s.op) in named
    }


def _order(
    before: Sequence[Seen], after: Sequence[Seen], partner: Mapping[str, str]
) -> Iterator[tuple[str, Seen | None, Seen | None]]:
    """(name, before, after) of every spot."""
    pruned = {s.node: s for s in after}
    known, ahead, waiting = set(partner.values()), dict[str, list[Seen]](), list[Seen]()
    for seen in after:
        if seen.node in known:
            ahead[seen.node], waiting = waiting, []
        else:
            waiting.append(seen)
    taken = {s.node for s in before}
    names = {s.node: f"{s.node} (new)" if s.node in taken else s.node for s in after}
    for seen in before:
        other = partner.get(seen.node)
        yield from ((names[s.node], None, s) for s in ahead.get(other or "", ()))
        yield seen.node, seen, None if other is None else pruned[other]
    yield from ((names[s.node], None, s) for s in waiting)


def _spot(
    name: str, before: Seen | None, after: Seen | None, place: Mapping[str, int], place_after: Mapping[str, int]
) -> Spot:
    axes = _axis(before, after)
    return Spot(name, _side(before, axes, place, name), _side(after, axes, place_after, name))


def _axis(before: Seen | None, after: Seen | None) -> int | None:
    """The axis that counts channels: the one that was cut, if one was."""
    if before is not None and after is not None and len(before.sizes) == len(after.sizes):
        cut = [k for k, (a, b) in enumerate(zip(before.sizes, after.sizes, strict=True)) if a != b]
        if len(cut) == 1:
            return cut[0]
    seen = before or after
    return None if seen is None else seen.axis


def _side(seen: Seen | None, axis: int | None, place: Mapping[str, int], name: str) -> Side | None:
    if seen is None:
        return None
    channels = seen.sizes[axis] if axis is not None and axis < len(seen.sizes) else None
    reads = tuple(sorted(_places(seen.reads, place)))
    macs = seen.macs if math.isfinite(seen.macs) else 0.0
    own = "" if seen.node == name else seen.node
    return Side(seen.op, seen.then, channels, macs, seen.params, reads, seen.bytes, own)


def _places(names: Iterable[str], place: Mapping[str, int]) -> set[int]:
    return {place[name] for name in names if name in place}


# ---- what a spot takes ---------------------------------------------------------------------------------------


def timed(
    network: Outline,
    before: tuple[Graph, Mapping[str, float]],
    after: tuple[Graph, Mapping[str, float]],
    provider: str,
) -> Outline:
    """The same, with what every spot takes.

    Args:
        network: both networks.
        before, after: of the original and of the pruned one, the graph and node key -> ms of a run, for the nodes that
            were timed; what was fused into a node counts with it.
        provider: that they were timed on.
    """
    first, last = (_taken(network.spots, name, *side) for name, side in (("before", before), ("after", after)))
    spots = (replace(s, before=_with(s, s.before, first), after=_with(s, s.after, last)) for s in network.spots)
    return replace(network, spots=tuple(spots), timed_on=provider)


def _with(spot: Spot, side: Side | None, ms: Mapping[str, float]) -> Side | None:
    return None if side is None else replace(side, ms=ms.get(side.node or spot.node, 0.0))


def _taken(spots: Sequence[Spot], which: str, graph: Graph, times: Mapping[str, float]) -> dict[str, float]:
    """Key of a spot in one of the two -> ms, of what counts as part of it too."""
    names = {side.node or spot.node for spot in spots if (side := getattr(spot, which)) is not None}
    found = dict.fromkeys(names, 0.0)
    at = {name: name for name in graph.inputs}
    for key in constants(graph):
        node = graph.nodes[key]
        reads = [at[n] for n in read_by(node) if n in at]
        if operators.of(node).measures or not reads:
            continue
        home = key if key in names else reads[0]
        found[home] = found.get(home, 0.0) + times.get(key, 0.0)
        at |= dict.fromkeys(filter(None, node.output), home)
    return found
