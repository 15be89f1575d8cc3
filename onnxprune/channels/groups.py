"""From ids to channel groups: walk the graph once, then read off what lives and dies together.

The result knows no operators. A *unit* is one set of coupled channels; a `ChannelGroup` is the units that
appear on the very same axes, so they are alike and compete with each other. Everything after this stage
(criteria, allocation, cutting, repair) sees slices of named tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np

from onnxprune.channels import rules
from onnxprune.channels.ties import READS, WITHIN, WRITES, Ids, Param, Reason, Ties, along, carrying_axis, distinct
from onnxprune.graph.model import Graph, Use, body_weights
from onnxprune.graph.shapes import Observed
from onnxprune.graph.work import NOTHING, Ran
from onnxprune.protobuf.nodes import node_key

PINNED = -1


@dataclass(frozen=True)
class Slice:
    """One axis of one tensor, and which of the group's channels each index belongs to.

    Attributes:
        tensor: name of the constant or activation.
        use: (node, input position) that reads the constant; ("", 0) for an activation.
        axis: the axis.
        channel: (length,) int, the group's channel at each index; -1 where the index is not the group's.
        role: "writes" (rows: they make the channel), "reads" (columns: they read it), "within" (a depthwise
            filter, a bias, a scale), "carries" (an activation).
        reads: for "reads", the activation that the columns contract with.
    """

    tensor: str
    use: Use
    axis: int
    channel: np.ndarray
    role: str
    reads: str | None = None


@dataclass(frozen=True)
class ChannelGroup:
    """Coupled channels that are alike: one may be exchanged for another in every count.

    Attributes:
        name: stable, from the first tensor that makes the channels.
        width: number of channels.
        slices: where they appear, constants first, in graph order.
        units: (width,) their numbers in `Channels.unit_count`.
    """

    name: str
    width: int
    slices: tuple[Slice, ...]
    units: np.ndarray

    @cached_property
    def weights(self) -> tuple[Slice, ...]:
        """The slices that make the channels."""
        return tuple(s for s in self.slices if s.role == WRITES)

    @cached_property
    def readers(self) -> tuple[Slice, ...]:
        """The slices that read the channels."""
        return tuple(s for s in self.slices if s.role == READS)

    @cached_property
    def activations(self) -> tuple[Slice, ...]:
        """The activations that carry the channels."""
        return tuple(s for s in self.slices if s.role == "carries")


@dataclass(frozen=True)
class Pinned:
    """An axis of a weight that stays as it is, wholly or in part, and why."""

    tensor: str
    axis: int
    count: int
    reason: str
    node: str
    use: Use = ("", 0)


def common_reasons(pinned: Iterable[Pinned], most: int = 3) -> list[tuple[str, int]]:
    """The most common reasons and how many channels each keeps, most first."""
    count: dict[str, int] = {}
    for p in pinned:
        count[p.reason] = count.get(p.reason, 0) + p.count
    return sorted(count.items(), key=lambda item: (-item[1], item[0]))[:most]


@dataclass(frozen=True)
class Channels:
    """What can be cut, and what cannot.

    Attributes:
        groups: the coupled channels, in graph order.
        pinned: the weight axes that stay, with reasons.
        flow: activation name -> unit per index (-1 pinned), an array with the tensor's rank.
        params: use -> {axis: (length,) unit per index}, for every constant that is cut.
        reads: use -> (axis, (length,) units): a product of two activations contracts these channels.
        unit_count: number of units.
        shapes: tensor name -> sizes in the run that was looked at.
        derived: tensor name -> value, for what the graph computes from sizes.
        lines: activation name -> (axis that carries its channels, (length,) unit per index), where any may go.
        unlisted: uses that `params` cuts but that are no operand of arithmetic: scales and zero points, and
            quantized weights, which appear a second time under the uses of their dequantized value.
        inexact: nodes whose statistics change with every cut (only with `prune_statistics`).
        ran: what else only a run tells of the work that was done.
    """

    groups: tuple[ChannelGroup, ...]
    pinned: tuple[Pinned, ...]
    flow: Mapping[str, np.ndarray]
    params: Mapping[Use, Mapping[int, np.ndarray]]
    reads: Mapping[Use, tuple[int, np.ndarray]]
    unit_count: int
    shapes: Mapping[str, tuple[int, ...]]
    derived: Mapping[str, np.ndarray]
    lines: Mapping[str, tuple[int, np.ndarray]]
    unlisted: frozenset[Use] = frozenset()
    inexact: tuple[str, ...] = ()
    ran: Ran = NOTHING

    def alive(self, keep: Mapping[str, Iterable[int]]) -> np.ndarray:
        """(unit_count + 1,) bool, from the kept channels of every group; the last entry stands for pinned."""
        alive = np.ones(self.unit_count + 1, bool)
        for group in self.groups:
            if group.name in keep:
                alive[group.units] = False
                alive[group.units[np.asarray(list(keep[group.name]), int)]] = True
        return alive


def walk_graph(
    graph: Graph, observed: Observed, prune_statistics: bool = False, reasons: Mapping[str, str] = MappingProxyType({})
) -> tuple[Ties, dict[str, Ids]]:
    """Carry ids through the graph, node by node. Returns the ties and the ids of every activation."""
    ties = Ties()
    walk = rules.Walk(graph, observed, ties, prune_statistics)
    for name in graph.inputs:
        ties.where = ties.tensor = name
        walk.flow[name] = ties.dead_end(len(observed.shapes.get(name, ())), reasons.get(name, "model input"))
    rules.walk_nodes(walk)
    ties.joints += walk.flow.values()
    for name, why in {name: reasons.get(name, "model output") for name in graph.outputs}.items():
        ties.where = ties.tensor = name
        rules.keep_whole(ties, why, walk.flow.get(name, walk.made.get(name)))
    return ties, walk.flow


def read_off(graph: Graph, observed: Observed, ties: Ties, flow: dict[str, Ids]) -> Channels:
    """Number the free components and collect where each appears."""
    labels, reason = ties.resolve()
    unit_of = np.full(len(reason), PINNED)
    per_use = {use: _axes(p, labels, reason) for use, p in ties.params.items()}
    # only components that some weight makes or reads are worth a unit
    worth = np.zeros(len(reason), bool)
    for use, axes in per_use.items():
        for axis, ids in axes.items():
            if ties.params[use].roles.get(axis, WITHIN) != WITHIN:
                worth[labels[ids]] = True
    free = (reason < 0) & worth
    reason_of = np.where(free, -1, np.where(reason < 0, -2, reason))
    unit_of[free] = np.arange(int(free.sum()))

    def units(ids: Ids) -> np.ndarray:
        return unit_of[labels[ids]]

    params: dict[Use, dict[int, np.ndarray]] = {}
    pinned: list[Pinned] = []
    for use, axes in per_use.items():
        param = ties.params[use]
        for axis, ids in axes.items():
            found = units(ids)
            if (found != PINNED).any():
                params.setdefault(use, {})[axis] = found
            if len(ids) > 1 and axis in param.roles and (param.roles[axis] != WITHIN or len(param.shape) > 1):
                pinned += _reasons(graph, use, axis, reason_of[labels[ids]], ties.reasons)
        for axis, ids in _beside(param, axes).items():
            pinned += _reasons(graph, use, axis, reason_of[labels[ids]], ties.reasons, "they go along another axis")
    pinned += _in_bodies(graph)
    carried = {name: units(ids) for name, ids in flow.items()}
    reads = {use: (axis, units(ids)) for use, (axis, ids) in ties.reads.items()}
    lines = _lines(carried, observed.shapes)
    groups = _groups(graph, ties, params, lines, int(free.sum()))
    for p in (*ties.params.values(), *ties.views):  # as the readers of the dequantized values know them
        mine = params.get(p.use, {})
        seen = {p.perm.index(a) if p.perm else a: u for a, u in mine.items()}
        params.update({use: seen for use in p.seen if seen})
    return Channels(
        groups=groups,
        pinned=tuple(pinned),
        flow=carried,
        params=params,
        reads={u: v for u, v in reads.items() if (v[1] != PINNED).any()},
        unit_count=int(free.sum()),
        shapes=observed.shapes,
        derived=observed.derived,
        lines=lines,
        unlisted=frozenset(ties.quantizers) | {u for u, p in ties.params.items() if p.seen},
        inexact=tuple(dict.fromkeys(ties.inexact)),
        ran=observed.ran,
    )


def _axes(param: Param, labels: np.ndarray, reason: np.ndarray) -> dict[int, Ids]:
    """The ids of a parameter axis by axis."""
    axes = dict(param.axes)
    for box in param.boxes:
        now = np.where(reason[labels[box]] >= 0, PINNED, labels[box])
        axis = carrying_axis(now)
        if axis is not None and box.shape[axis] > 1:
            axes[axis] = along(box, axis)
    return axes


def _beside(param: Param, axes: Mapping[int, Ids]) -> dict[int, Ids]:
    """The ids of the axes of a weight that make or read channels together with others, and stay for them."""
    return {
        axis: along(box, axis)
        for box in param.boxes
        for axis in range(box.ndim)
        if box.shape[axis] > 1 and axis in param.roles and axis not in axes
    }


def _reasons(graph: Graph, use: Use, axis: int, why: np.ndarray, reasons: list[Reason], free: str = "") -> list[Pinned]:
    """Why the indices of an axis stay; `free`: why those do that nothing pins, "" where they need not."""
    tensor = graph.nodes[use[0]].input[use[1]]
    words = {-1: free, -2: "no weight makes or reads it"}
    found = []
    for index in distinct(why if free else why[why != -1]):
        count = int((why == index).sum())
        r = reasons[index] if index >= 0 else Reason(use[0], tensor, axis, words[int(index)])
        found.append(Pinned(tensor, axis, count, r.text, r.node, use))
    return found


def _in_bodies(graph: Graph) -> list[Pinned]:
    """The weights that only the bodies of control-flow nodes read: every axis stays."""
    found = []
    for key, node in graph.nodes.items():
        why = f"read inside the body of {key}"
        for name, shape in body_weights(graph, node).items():
            found += [Pinned(name, axis, d, why, key) for axis, d in enumerate(shape) if d > 1 and len(shape) > 1]
    return found


def _lines(flow: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, np.ndarray]]:
    found: dict[str, tuple[int, np.ndarray]] = {}
    for name, units in flow.items():
        if units.ndim and (units != PINNED).any():
            axis = carrying_axis(units)
            assert axis is not None, f"{name} would not stay a box"
            if units.size == 1:  # a single channel: the batch is another axis, if there is one
                axis = next((k for k in range(1, units.ndim) if shapes[name][k] == 1), 0)
            found[name] = (axis, along(units, axis))
    return found


def _groups(
    graph: Graph,
    ties: Ties,
    params: Mapping[Use, Mapping[int, np.ndarray]],
    lines: Mapping[str, tuple[int, np.ndarray]],
    count: int,
) -> tuple[ChannelGroup, ...]:
    """Units with the same set of (tensor, axis) form a group."""
    slots: list[tuple[str, Use, int, np.ndarray, str, str | None]] = []
    for use, axes in params.items():
        p = ties.params[use]
        name = graph.nodes[use[0]].input[use[1]]
        for axis, units in axes.items():
            slots.append((name, use, axis, units, p.roles.get(axis, "within"), p.reads.get(axis)))
    for name, (axis, line) in lines.items():
        slots.append((name, ("", 0), axis, line, "carries", None))
    # a unit's signature: the sum of a random number for each slot that it is in
    rng = np.random.default_rng(0)
    marks = rng.integers(1, 2**63, len(slots), dtype=np.uint64)
    signature = np.zeros(count, np.uint64)
    present = [distinct(s[3][s[3] != PINNED]) for s in slots]
    for mark, units in zip(marks, present, strict=True):
        signature[units] += mark
    _, first, group_of = np.unique(signature, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")  # groups in the order of their first unit
    rank = np.empty(len(order), int)
    rank[order] = np.arange(len(order))
    group_of = rank[group_of]
    by_group = np.argsort(group_of, kind="stable")
    members = np.split(by_group, np.cumsum(np.bincount(group_of, minlength=len(order)))[:-1]) if count else []
    inside: list[list[Slice]] = [[] for _ in order]
    local = np.empty(count + 1, int)
    for units in members:
        local[units] = np.arange(len(units))
    for (name, use, axis, units, role, reads), there in zip(slots, present, strict=True):
        own = group_of[units]
        for g in distinct(group_of[there]):
            channel = np.where((units != PINNED) & (own == g), local[units], -1)
            inside[g].append(Slice(name, use, axis, channel, role, reads))
    taken: dict[str, int] = {}
    groups = []
    for g, units in enumerate(members):
        slices = inside[g]
        maker = next((s for s in slices if s.role == WRITES), slices[0])
        stem = maker.tensor or f"group {g}"
        taken[stem] = taken.get(stem, 0) + 1
        name = stem if taken[stem] == 1 else f"{stem}#{taken[stem]}"
        groups.append(ChannelGroup(name, len(units), tuple(slices), units))
    return tuple(groups)


def ahead_of(graph: Graph, channels: Channels, keys: Iterable[str]) -> tuple[str, ...]:
    """Names of the groups that some of the nodes `keys` depend on."""
    stack, seen = list(keys), set()
    while stack:
        key = stack.pop()
        if key not in seen:
            seen.add(key)
            stack += [graph.producer[i] for i in graph.nodes[key].input if i in graph.producer]
    return tuple(g.name for g in channels.groups if any(s.use[0] in seen for s in g.slices))


def removed_cuts(graph: Graph, channels: Channels, alive: np.ndarray) -> list[dict]:
    """The published `cuts`: every index of every input that the cut removes, named in the *original* graph.

    A node goes by its first output; where that is left out, `output` names the first that is not."""
    cuts = []
    where = {node_key(n): next(iter(n.output)) for n in graph.model.graph.node}

    def add(use: Use, axis: int, rank: int, units: np.ndarray) -> None:
        gone = np.flatnonzero(~alive[units])
        if len(gone) and use[0] in where:
            cuts.append(
                {
                    "node": where[use[0]],
                    "input": use[1],
                    "axis": int(axis),
                    "rank": rank,
                    "length": len(units),
                    "removed": [int(i) for i in gone],
                }
                | ({} if where[use[0]] else {"output": use[0]})
            )

    for use, axes in channels.params.items():
        if use not in channels.unlisted:
            rank = len(channels.shapes[graph.nodes[use[0]].input[use[1]]])
            for axis, units in axes.items():
                add(use, axis, rank, units)
    for use, (axis, units) in channels.reads.items():
        rank = len(channels.shapes[graph.nodes[use[0]].input[use[1]]])
        add(use, axis, rank, units)
    return cuts
