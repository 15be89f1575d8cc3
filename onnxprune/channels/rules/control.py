"""Rules of control flow: channels are followed into bodies that only carry them.

A body is walked like the network around it, with the same ties: what goes in and what comes out of it are the same
channels, whichever branch runs and however often. Nothing in a body is edited: weights in it and sizes that it spells
out stay whole, and so do the channels that meet them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from onnxprune.channels.rules.registry import Value, Walk, rule, walk_nodes
from onnxprune.channels.size_rules import size_rule_of
from onnxprune.channels.ties import Ids, Param
from onnxprune.graph import operators
from onnxprune.graph.inside import inside
from onnxprune.graph.shapes import Shape
from onnxprune.protobuf.nodes import from_outside, subgraphs

Sized = tuple[Ids, Shape]
"""The ids of a tensor, and its sizes."""


@rule("If")
def branches(walk: Walk, condition: Value) -> list[Ids] | None:
    """What either branch makes are the same channels."""
    made = [_followed(walk, body, {}) for body in subgraphs(walk.node)]
    if any(m is None for m in made):
        return None
    return [_joined(walk, *outputs)[0] for outputs in zip(*(m for m in made if m is not None), strict=True)]


@rule("Loop")
def loop(walk: Walk, trips: Value, go_on: Value, *states: Value) -> list[Ids] | None:
    """A state has the channels that it starts with, and those that every trip makes of it; what a trip hands out is set
    up along a new first axis."""
    body = next(subgraphs(walk.node))
    start = [_sized(walk, v, 2 + k) for k, v in enumerate(states)]
    given = [(walk.ties.dead_end(0, "a number"), ())] * 2 + start
    found = _followed(walk, body, dict(zip((i.name for i in body.input), given, strict=False)))
    if found is None or len(given) != len(body.input):
        return None
    kept = [_joined(walk, a, b)[0] for a, b in zip(start, found[1:], strict=False)]
    return [*kept, *(ids[None] for ids, _ in found[1 + len(start) :])]


@rule("Scan")
def scan(walk: Walk, *values: Value) -> list[Ids] | None:
    """The same, with what goes along an axis of some operands."""
    body, count = next(subgraphs(walk.node)), walk.attr("num_scan_inputs", 0)
    if walk.graph.opset < 9:  # with a batch
        return None
    states = len(values) - count
    start = [_sized(walk, v, k) for k, v in enumerate(values)]
    axes = walk.attr("scan_input_axes") or [0] * count
    given = start[:states]
    for (ids, sizes), axis in zip(start[states:], axes, strict=True):
        axis %= len(sizes)
        ids = walk.ties.whole(ids, axis, "Scan goes along this axis").squeeze(axis)
        given.append((ids, (*sizes[:axis], *sizes[axis + 1 :])))
    found = _followed(walk, body, dict(zip((i.name for i in body.input), given, strict=False)))
    if found is None or len(given) != len(body.input):
        return None
    kept = [_joined(walk, a, b)[0] for a, b in zip(start[:states], found, strict=False)]
    handed = [ids for ids, _ in found[states:]]
    ends = walk.attr("scan_output_axes") or [0] * len(handed)
    return [*kept, *(np.expand_dims(ids, a % (ids.ndim + 1)) for ids, a in zip(handed, ends, strict=True))]


def _sized(walk: Walk, value: Value, i: int) -> Sized:
    """An operand; a constant stays whole."""
    sizes = walk.dims(i)
    return (value if isinstance(value, np.ndarray) else walk.ties.dead_end(len(sizes), "a constant")), sizes


def _joined(walk: Walk, *made: Sized) -> Sized:
    """What is one of several: axes that not all have alike stay whole."""
    why = f"{walk.node.op_type} joins it with what has no such channels"
    ranks = {len(sizes) for _, sizes in made}
    if len(ranks) > 1:
        for ids, _ in made:
            walk.ties.pin(ids, why)
        return walk.ties.dead_end(len(made[0][1]), why), made[0][1]
    found = [ids for ids, _ in made]
    for k in range(ranks.pop()):
        carried = {ids.shape[k] for ids in found}
        if len({sizes[k] for _, sizes in made}) > 1 or len(carried) > 1:
            stiff = next((ids for ids in found if ids.shape[k] == 1), None)
            found = [walk.ties.whole(ids, k, why, stiff) for ids in found]
    return walk.ties.same(*found), made[0][1]


def _followed(walk: Walk, body: onnx.GraphProto, given: Mapping[str, Sized]) -> list[Sized] | None:
    """What a body makes; None where sizes in it do not follow from those outside.

    Args:
        walk: at the node.
        body: one of the node.
        given: its inputs.
    """
    known = dict(given)
    for name in sorted(from_outside(body)):
        if name in walk.flow:
            known[name] = walk.flow[name], walk.observed.shapes[name]
        elif name in walk.made or walk.graph.constant(name) is None:
            return None
    found = inside(walk.graph, body, {name: sizes for name, (_, sizes) in known.items()})
    if found is None:
        return None
    graph, observed = found
    inner = _Inside(graph, observed, walk.ties, outer=walk.outer or walk.key)
    inner.place_of = f"inside the body of {inner.outer} ({walk.node.op_type})"
    inner.flow.update({name: ids for name, (ids, _) in known.items()})
    read = set(walk.ties.reads)
    walk_nodes(inner)
    inner.keep_constants()
    for use in walk.ties.reads.keys() - read:
        walk.ties.pin(walk.ties.reads.pop(use)[1], f"contracted {inner.place_of}")
    walk.at(walk.node)
    rank = {name: len(observed.shapes.get(name, ())) for name in graph.outputs}
    constant = f"a constant {inner.place_of}"
    made = [inner.flow.get(n) if n in inner.flow else walk.ties.dead_end(rank[n], constant) for n in graph.outputs]
    return [(ids, observed.shapes[n]) for ids, n in zip(made, graph.outputs, strict=True) if ids is not None]


class _Inside(Walk):
    """A walk through a body, of which nothing is edited; `place_of` says where it is, for messages."""

    place_of = ""

    def heard(self, values: Sequence[Value], results: Sequence[Ids | Param]) -> None:
        """Pin what goes through a node that looks at sizes, or spells those of what it makes."""
        node, line = self.node, operators.of(self.node)
        spells = size_rule_of(line) is not None
        if line.kernel is not None:  # its groups
            spells = self.attr("group", 1) > 1
        elif line.spelled_axes:
            spells = not self._same(values, results)
        elif line.spells:
            spells = any(i < len(node.input) and node.input[i] for i in line.spells)
        if spells or line.measures:
            why = f"its size is spelled out {self.place_of}"
            for ids in (*values, *results):
                if isinstance(ids, np.ndarray):
                    self.ties.pin(ids, why)

    def _same(self, values: Sequence[Value], results: Sequence[Ids | Param]) -> bool:
        """Whether every channel of the first operand is in every output."""
        first = values[0]
        if not isinstance(first, np.ndarray):
            return False
        return all(isinstance(r, np.ndarray) and np.array_equal(np.ravel(r), np.ravel(first)) for r in results)

    def keep_constants(self) -> None:
        """Pin the channels that meet constants of the body."""
        why = f"read {self.place_of}"
        for param in self.constants:
            for ids in (*param.axes.values(), *param.boxes):
                self.ties.pin(ids, why)
            if self.ties.params.get(param.use) is param:
                del self.ties.params[param.use]
