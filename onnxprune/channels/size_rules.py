"""Operators that spell sizes: what their operands and attributes become when channels go.

A rule gets the cut and says what must be replaced: (operand or attribute, new value). Which operands spell sizes is on
the operator's line in `graph.operators`; an operand computed at run time is `sizes`' business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxprune.graph import operators
from onnxprune.graph.behaviour import padding
from onnxprune.graph.facts import Operator
from onnxprune.graph.model import Graph
from onnxprune.graph.operators import MICROSOFT
from onnxprune.protobuf.nodes import attr

if TYPE_CHECKING:
    from onnxprune.channels.cut_sizes import CutSizes

NewSizes = list[tuple[int | str, Any]]
SizeRule = Callable[[Graph, "CutSizes", str, onnx.NodeProto], NewSizes]
SIZE_RULES: dict[tuple[str, str], SizeRule] = {}


def size_rule(*names: str, domain: str = "") -> Callable[[SizeRule], SizeRule]:
    """Enter a rule for operators.

    Raises:
        LookupError: an operator without a line in the table of operators.
    """

    def enter(function: SizeRule) -> SizeRule:
        for name in names:
            if operators.named(name, domain) is operators.UNKNOWN:
                raise LookupError(f"{name} spells sizes, but has no line in graph/operators.py")
            SIZE_RULES[domain, name] = function
        return function

    return enter


def size_rule_of(line: Operator) -> SizeRule | None:
    """The rule of an operator that spells sizes; None for others. Every convolution spells its groups."""
    if line.kernel is not None:
        return _transposed_groups if line.product is not None and line.product.transposed else _groups
    return SIZE_RULES.get((line.domain, line.name))


def _operand(graph: Graph, cut: CutSizes, node: onnx.NodeProto, i: int) -> np.ndarray | None:
    """The operand's value before the cut, constant or computed from sizes."""
    if i >= len(node.input) or not node.input[i]:
        return None
    return cut.before.get(node.input[i], graph.constant(node.input[i]))


def _target(graph: Graph, cut: CutSizes, node: onnx.NodeProto, i: int, leave: tuple[int, ...]) -> NewSizes:
    """A list of sizes, one per output axis; entries in `leave` mean themselves."""
    old, new = cut.channels.shapes[node.output[0]], cut.shapes[node.output[0]]
    given = _operand(graph, cut, node, i)
    if given is None:
        return [(i, None)]
    if len(given) != len(new):
        return []
    source = cut.shapes[node.input[0]]
    target = given.copy()
    for k, entry in enumerate(given):
        if entry == 0 and 0 in leave:
            if k < len(source) and source[k] == new[k]:
                continue
        elif entry in leave:
            continue
        elif old[k] == new[k]:
            continue
        target[k] = new[k]
    return [] if np.array_equal(target, given) else [(i, target)]


@size_rule("Reshape")
def _reshape(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    if len(node.input) < 2:
        return []
    leave = (-1,) if attr(node, "allowzero", 0) else (0, -1)
    return _target(graph, cut, node, 1, leave)


@size_rule("MaxUnpool")
def _unpooled(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    return _target(graph, cut, node, 2, ()) if len(node.input) > 2 else []


@size_rule("ConstantOfShape")
def _filled(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    return _target(graph, cut, node, 0, ())


@size_rule("Expand")
def _expand(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    given = _operand(graph, cut, node, 1)
    if given is not None and len(given) < len(cut.shapes[node.output[0]]):
        lead = len(cut.shapes[node.output[0]]) - len(given)
        old, new = cut.channels.shapes[node.output[0]][lead:], cut.shapes[node.output[0]][lead:]
        target = np.where((np.array(old) != np.array(new)) & (given != 1), new, given)
        return [] if np.array_equal(target, given) else [(1, target.astype(given.dtype))]
    return _target(graph, cut, node, 1, (1,))


@size_rule("Resize")
def _resize(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    if len(node.input) < 4 or not node.input[3]:
        return []
    axes = attr(node, "axes")
    if axes is None:
        return _target(graph, cut, node, 3, ())
    given, new = _operand(graph, cut, node, 3), cut.shapes[node.output[0]]
    old = cut.channels.shapes[node.output[0]]
    if given is None:
        return [(3, None)]
    target = np.array([new[a] if new[a] != old[a] else s for a, s in zip(axes, given, strict=True)], given.dtype)
    return [] if np.array_equal(target, given) else [(3, target)]


@size_rule("Slice")
def _slice(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    name = node.input[0]
    if not cut.changed(name):
        return []
    axis, line = cut.lines[name]
    rank, length = len(cut.shapes[name]), len(line)
    by_input = len(node.input) > 1
    read = lambda i, word: _operand(graph, cut, node, i) if by_input else attr(node, word)  # noqa: E731
    starts, ends, axes = read(1, "starts"), read(2, "ends"), read(3, "axes")
    if starts is None or ends is None:  # computed from data
        return [(1, None)]
    axes = list(range(len(starts if starts is not None else ends))) if axes is None else [int(a) % rank for a in axes]
    if axis not in axes:
        return []
    k = axes.index(axis)
    first, stop, _ = slice(int(starts[k]), int(ends[k])).indices(length)
    alive = cut.alive[line]
    new_first = int(alive[:first].sum())
    new_stop = new_first + int(alive[first:stop].sum())
    begins, stops = np.array(starts), np.array(ends)
    if begins[k] != 0 or first != 0:
        begins[k] = new_first
    if int(ends[k]) < length:
        stops[k] = new_stop
    found: NewSizes = []
    for where, word, new, old in ((1, "starts", begins, starts), (2, "ends", stops, ends)):
        if not np.array_equal(new, old):
            found.append((where if by_input else word, new if by_input else [int(v) for v in new]))
    return found


@size_rule("Split")
def _split(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    if not cut.changed(node.input[0]):
        return []
    axis = attr(node, "axis", 0) % len(cut.shapes[node.input[0]])
    if cut.lines[node.input[0]][0] != axis:
        return []
    sizes = [cut.shapes[o][axis] for o in node.output]
    if len(node.input) > 1 and node.input[1]:
        return [(1, np.array(sizes, np.int64))]
    if attr(node, "split") is not None or graph.opset < 13:
        return [("split", sizes)]
    return [] if len(set(sizes)) == 1 else [("+split", np.array(sizes, np.int64))]


@size_rule("Gather")
def _gather(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    name = node.input[0]
    if not cut.changed(name) or cut.lines[name][0] != attr(node, "axis", 0) % len(cut.shapes[name]):
        return []
    _, line = cut.lines[name]
    given = _operand(graph, cut, node, 1)
    if given is None:
        return [(1, None)]
    alive = cut.alive[line]
    index = np.asarray(given) % len(line)
    return [(1, (np.cumsum(alive) - 1)[index[alive[index]]].astype(given.dtype))]


@size_rule("ReduceMean")
def _reduce_mean(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    """A mean over channels that were cut still divides by their old number."""
    read = cut.channels.reads.get((key, 0))
    if read is None or cut.alive[read[1]].all():
        return []
    return [("*scale", float(cut.alive[read[1]].mean()))]


@size_rule("Attention")
def _attention(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    """The default scale is one over the root of a head's width, as it was."""
    if attr(node, "scale") is not None or not cut.changed(node.input[0]):
        return []
    shape = cut.channels.shapes[node.input[0]]
    return [("scale", float((shape[-1] / (attr(node, "q_num_heads", 1) if len(shape) == 3 else 1)) ** -0.5))]


@size_rule("Attention", "MultiHeadAttention", "RotaryEmbedding", "GroupQueryAttention", domain=MICROSOFT)
def _heads(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    """The heads that stay, and the sizes of q, k and v where they are spelled out."""
    heads = attr(node, "num_heads", 0)
    if not heads or not cut.changed(node.output[0]) or len(cut.shapes[node.output[0]]) != 3:
        return []
    line = cut.alive[cut.lines[node.output[0]][1]]
    left = int(line.reshape(heads, -1)[:, 0].sum())
    sizes, shared = attr(node, "qkv_hidden_sizes"), attr(node, "kv_num_heads")
    if shared:
        return [("num_heads", left), ("kv_num_heads", left * shared // heads)]
    return [("num_heads", left), *([("qkv_hidden_sizes", [s // heads * left for s in sizes])] if sizes else [])]


@size_rule("Tile")
def _tile(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    """What has size 1 is repeated as often as there are channels left."""
    source, old = (cut.channels.shapes[name] for name in (node.input[0], node.output[0]))
    new, given = cut.shapes[node.output[0]], _operand(graph, cut, node, 1)
    spread = [a == 1 and b != c for a, b, c in zip(source, old, new, strict=True)]
    if not any(spread):
        return []
    return [(1, None if given is None else np.where(spread, new, given).astype(given.dtype))]


@size_rule("LSTM", "GRU", "RNN")
@size_rule("DynamicQuantizeLSTM", domain=MICROSOFT)
def _hidden_size(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    units = cut.channels.params.get((key, 2), {}).get(1 if node.domain == MICROSOFT else 2)
    return [] if units is None or cut.alive[units].all() else [("hidden_size", int(cut.alive[units].sum()))]


@size_rule("Pad")
def _pad(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    """As many on either side as stay of those that it adds, or takes off."""
    ends = node.input[0], node.output[0]
    axis = next((cut.lines[name][0] for name in ends if cut.changed(name)), None)
    sides = padding(node, len(cut.shapes[ends[0]]), lambda i: _operand(graph, cut, node, i))
    if sides is None or axis not in sides:
        return []
    source, target = (
        cut.alive[cut.lines[name][1]] if cut.changed(name) else np.ones(cut.shapes[name][axis], bool) for name in ends
    )
    before, after = sides[axis]
    ahead = target[:before].sum() if before > 0 else -source[:-before].sum()
    behind = target[len(target) - after :].sum() if after > 0 else -source[len(source) + after :].sum()
    new = [n for pair in zip(*(sides | {axis: (ahead, behind)}).values(), strict=True) for n in map(int, pair)]
    if new == [n for pair in zip(*sides.values(), strict=True) for n in pair]:
        return []
    return [(1, np.array(new, np.int64)) if len(node.input) > 1 else ("pads", new)]


def _groups(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    groups = attr(node, "group", 1)
    if groups == 1 or not cut.changed(node.input[0]):
        return []
    width = cut.shapes[node.input[0]][1]
    kernel = operators.of(node).kernel
    assert kernel is not None
    per_group = cut.channels.params.get((key, kernel), {}).get(1)
    before = cut.channels.shapes[node.input[0]][1] // groups
    if cut.changed(node.input[kernel]):  # an activation
        before = cut.shapes[node.input[kernel]][1]
    now = before if per_group is None else int(cut.alive[per_group].sum())
    return [] if width // now == groups else [("group", width // now)]


def _transposed_groups(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    groups = attr(node, "group", 1)
    if groups == 1:
        return []
    out, width = cut.shapes[node.output[0]][1], cut.channels.shapes[node.output[0]][1] // groups
    per_group = cut.channels.params.get((key, 1), {}).get(1)
    now = width if per_group is None else int(cut.alive[per_group].sum())
    return [] if out // now == groups else [("group", out // now)]


@size_rule("GroupNormalization")
def _group_norm(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    groups = attr(node, "num_groups")
    if not cut.changed(node.input[0]) or key in cut.channels.inexact:
        return []
    size = cut.channels.shapes[node.input[0]][1] // groups
    return [("num_groups", cut.shapes[node.input[0]][1] // size)]
