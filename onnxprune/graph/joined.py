"""Where an output was joined of several tensors, seen from the graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import onnx

from onnxprune.graph import operators
from onnxprune.graph.model import Graph
from onnxprune.protobuf.nodes import attr

MOST = 64
"""Stretches of one output that are told apart; an output of more is taken whole."""
RECURRENT = frozenset(("LSTM", "GRU", "RNN"))
"""Whose outputs behind the first are states."""
SAME_ORDER = ("Identity", "Dropout", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Operators that leave the elements in their order."""

Region = tuple[tuple[int, int, int], ...]
"""A stretch of a tensor: (axis, start, stop) for every axis that it does not fill."""
Sizes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class _Copied:
    """A tensor whose values stand in the output.

    Attributes:
        tensor: its name.
        axes: for each of its axes, the axis of the output that it is; None where it is one with others.
        region: axis of the output -> where along it the values stand.
    """

    tensor: str
    axes: tuple[int | None, ...]
    region: Mapping[int, tuple[int, int]]


def joined(graph: Graph, output: str, shapes: Sizes) -> list[Region]:
    """The stretches of an output that were joined to make it; one empty region where nothing was.

    Args:
        graph: the network.
        output: name of the output.
        shapes: tensor name -> sizes.
    """
    return [region for region, _ in joined_of(graph, output, shapes)]


def joined_of(graph: Graph, output: str, shapes: Sizes) -> list[tuple[Region, str]]:
    """The same, each with the tensor that stands there."""
    if output not in shapes:
        return [((), output)]
    producers = {o: node for node in graph.nodes.values() for o in node.output if o}
    found: list[_Copied] = []
    waiting = [_Copied(output, tuple(range(len(shapes[output]))), {})]
    while waiting:
        now = waiting.pop()
        operands = list(_operands(producers.get(now.tensor), now, shapes))
        waiting += reversed(operands)
        found += [] if operands else [now]
        if len(found) + len(waiting) > MOST:
            return [((), output)]
    return [(tuple((axis, *c.region[axis]) for axis in sorted(c.region)), c.tensor) for c in found]


def _operands(node: onnx.NodeProto | None, now: _Copied, shapes: Sizes) -> Iterator[_Copied]:
    """What a tensor is a copy of, from front to back; nothing where it is computed."""
    if node is None or not node.input or any(i not in shapes for i in node.input[:1]):
        return
    axes, first = now.axes, node.input[0]
    if operators.of(node).joins:
        axis = attr(node, "axis", 0) % len(axes)
        along = axes[axis]
        if not along or any(i not in shapes for i in node.input):  # samples are nothing that is told apart
            return
        start = now.region.get(along, (0, 0))[0]
        for i, end in zip(node.input, accumulate(shapes[i][axis] for i in node.input), strict=True):
            place = (start + end - shapes[i][axis], start + end)
            yield replace(now, tensor=i, region={**now.region, along: place})
    elif node.op_type == "Transpose":
        order = list(attr(node, "perm", None) or reversed(range(len(axes))))
        yield replace(now, tensor=first, axes=tuple(axes[order.index(k)] for k in range(len(order))))
    elif node.op_type in SAME_ORDER:
        yield replace(now, tensor=first, axes=_before(shapes[first], shapes[now.tensor], axes))


def _before(sizes: Sequence[int], after: Sequence[int], axes: Sequence[int | None]) -> tuple[int | None, ...]:
    """The axes before a change of shape: None where one was split or made of several."""
    places = {(int(np.prod(after[:k])), size): axes[k] for k, size in enumerate(after) if size != 1}
    return tuple(places.get((int(np.prod(sizes[:k])), size)) for k, size in enumerate(sizes))


def makers(graph: Graph, tensor: str) -> set[str]:
    """The operators that compute a tensor's values, what only moves or joins them left out."""
    return {node.op_type for node, _ in _computed(graph, tensor)}


def is_state(graph: Graph, tensor: str) -> bool:
    """Whether something in it is the last state of a recurrent layer."""
    return any(node.op_type in RECURRENT and name != node.output[0] for node, name in _computed(graph, tensor))


def _computed(graph: Graph, tensor: str) -> Iterator[tuple[onnx.NodeProto, str]]:
    """(node, its output) of what a tensor is put together of."""
    waiting, seen = [tensor], {tensor}
    while waiting:
        name = waiting.pop()
        node = graph.nodes.get(graph.producer.get(name, ""))
        if node is None:
            continue
        moves = node.op_type in (*SAME_ORDER, "Transpose")
        if not moves and not operators.of(node).joins:
            yield node, name
            continue
        before = [i for i in (node.input[:1] if moves else node.input) if i not in seen]
        seen.update(before)
        waiting += before
