"""Constants and attributes that spell a channel count, and shapes computed at run time.

A cut changes sizes. Some operands state those sizes: a Reshape target, the ends of a Slice, the sizes of a
Split or a Resize, `group` of a Conv. `mend` says what each must become. Where an operand is computed at run
time, the computation is followed with the new sizes (`shapes.follow`): what comes out right needs nothing, a
constant that feeds it is mended, and anything else is a `Conflict`: those channels are pinned, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxprune.channels.groups import Channels
from onnxprune.channels.rules import ELEMENTWISE
from onnxprune.graph.model import Graph, Use
from onnxprune.graph.shapes import UNARY, Observed, follow
from onnxprune.protobuf.nodes import attr


@dataclass(frozen=True)
class SizeEdit:
    """One constant operand (`use`, `value`) or one attribute (`use[0]`, `attribute`, `value`) to replace."""

    use: Use
    value: Any
    attribute: str | None = None


@dataclass(frozen=True)
class Conflict:
    """A size that the graph computes and that would come out wrong: pin these tensors."""

    node: str
    tensors: tuple[str, ...]
    reason: str


class CutSizes:
    """The sizes of every activation once the units that are not alive have gone."""

    def __init__(self, channels: Channels, alive: np.ndarray):
        self.channels, self.alive, self.before = channels, alive, channels.derived
        self.lines: dict[str, tuple[int, np.ndarray]] = {}
        self.shapes = dict(channels.shapes)
        for name, kept in zip(channels.lines, self._kept_counts(), strict=True):
            axis, line = channels.lines[name]
            if kept < len(line):
                self.lines[name] = (axis, line)
                shape = list(self.shapes[name])
                shape[axis] = kept
                self.shapes[name] = tuple(shape)

    def _kept_counts(self) -> list[int]:
        """How many channels of every line stay."""
        lines = [line for _, line in self.channels.lines.values()]
        if not lines:
            return []
        ends = np.cumsum([len(line) for line in lines])
        total = np.concatenate([[0], np.cumsum(self.alive[np.concatenate(lines)])])
        return np.diff(total[np.concatenate([[0], ends])]).tolist()  # type: ignore[no-any-return]

    def changed(self, name: str) -> bool:
        return name in self.lines

    def kept(self) -> dict[str, tuple[int, np.ndarray]]:
        """Activation -> (axis, (length,) bool: what stays), for those that lose channels."""
        return {name: (axis, self.alive[line]) for name, (axis, line) in self.lines.items()}


def adapt_sizes(graph: Graph, cut: CutSizes) -> tuple[list[SizeEdit], list[Conflict]]:
    """Everything that spells a size which the cut changes.

    Args:
        graph: the graph, unedited.
        cut: the sizes after the cut.

    Returns:
        What to replace, and what cannot be mended.
    """
    mends: list[SizeEdit] = []
    wanted: dict[Use, np.ndarray | None] = {}  # operands computed at run time, and what they must be
    for key, node, spell, tensors in graph.once("spelling", graph, lambda: _spelling(graph)):
        for where, value in spell(graph, cut, key, node) if not cut.lines.keys().isdisjoint(tensors) else ():
            if isinstance(where, str):
                mends.append(SizeEdit((key, -1), value, where))
            elif graph.constant(node.input[where]) is not None:
                mends.append(SizeEdit((key, where), value))
            else:
                wanted[key, where] = value
        for i, name in enumerate(node.input):
            if name in cut.before and (node.op_type, i) in TAKES_SIZES:
                wanted.setdefault((key, i), cut.before[name])
    if not cut.before:
        return mends, []
    return _follow(graph, cut, mends, wanted)


def _spelling(graph: Graph) -> list[tuple[str, onnx.NodeProto, SizeRule, tuple[str, ...]]]:
    """The nodes that may spell sizes, with all their tensors."""
    return [
        (key, node, SIZE_RULES[node.op_type], (*node.input, *node.output))
        for key, node in graph.nodes.items()
        if node.op_type in SIZE_RULES
    ]


def _follow(
    graph: Graph, cut: CutSizes, mends: list[SizeEdit], wanted: dict[Use, np.ndarray | None]
) -> tuple[list[SizeEdit], list[Conflict]]:
    """Hold what the graph will compute against what is wanted."""
    seen = Observed(cut.channels.shapes, cut.before)
    after = follow(graph, cut.shapes, seen)
    static = graph.once("stirred", cut.channels, lambda: follow(graph, _stirred(graph, cut)))
    conflicts: list[Conflict] = []
    asked: dict[str, set[Use]] = {}  # node within the computation of sizes -> the operands for which it is mended
    for (key, i), value in wanted.items():
        node = graph.nodes[key]
        pieces = None if value is None else _pieces(graph, cut, (key, i), value, after, static)
        for m in pieces or ():
            if m.use != (key, i):
                asked.setdefault(m.use[0], set()).add((key, i))
        if pieces is None:
            why = f"{node.op_type} takes a size computed at run time"
            conflicts.append(Conflict(key, (node.input[0], node.output[0]), why))
        else:
            mends += pieces
    for key in _clashes(mends):
        conflicts.append(Conflict(key, tuple(graph.nodes[key].input[:1]), "two readers need different sizes"))
    unheard = [
        asked[made]
        for key, i, name in (_readers(graph, cut) if asked else ())
        if (graph.nodes[key].op_type, i) in TAKES_SIZES
        for made in _makers(graph, cut, name) & asked.keys()
        if (key, i) not in asked[made]
    ]
    for key, _ in sorted(set().union(*unheard)):
        node = graph.nodes[key]
        conflicts.append(Conflict(key, (node.input[0], node.output[0]), "two readers of one size need different ones"))
    # values computed from sizes that reach arithmetic on data must not change
    for key, i, name in _readers(graph, cut):
        if (key, i) in wanted or _equal(cut.before[name], after.get(name)) or _is_fill(graph, cut, name):
            continue
        if _equal(cut.before[name], static.get(name)):
            mends.append(SizeEdit((key, i), cut.before[name]))  # a property of the weights: freeze it
        else:
            roots = _roots(graph, name, cut.before, cut)
            why = f"its size is used as a value by {graph.nodes[key].op_type}"
            conflicts.append(Conflict(key, roots, why))
    # neither may those that leave the graph, or enter a body
    ends = {name: f"its size is read inside the body of {key}" for name, key in graph.captured().items()}
    for name, why in {**ends, **dict.fromkeys(graph.outputs, "its size is a model output")}.items():
        if name in cut.before and not _equal(cut.before[name], after.get(name)):
            conflicts.append(Conflict(graph.producer[name], _roots(graph, name, cut.before, cut), why))
    return mends, conflicts


def _makers(graph: Graph, cut: CutSizes, name: str) -> set[str]:
    """The nodes that an operand computed from sizes goes through."""
    stack, found = [name], set()
    while stack:
        top = stack.pop()
        made = graph.producer.get(top)
        if top in cut.before and made is not None and made not in found:
            found.add(made)
            stack.extend(graph.nodes[made].input)
    return found


def _readers(graph: Graph, cut: CutSizes) -> list[tuple[str, int, str]]:
    return graph.once("value readers", cut.before, lambda: _value_readers(graph, cut.before))


def _is_fill(graph: Graph, cut: CutSizes, name: str) -> bool:
    """Whether this is one number everywhere that carries channels: its size is wanted where it is made."""
    producer = graph.producer.get(name)
    return cut.changed(name) and producer is not None and graph.nodes[producer].op_type in ("ConstantOfShape", "Expand")


def _value_readers(graph: Graph, derived: Mapping[str, np.ndarray]) -> list[tuple[str, int, str]]:
    """(node, input position, tensor) of every use of a value computed from sizes by a node that is not."""
    found = []
    for key, node in graph.nodes.items():
        uses = [(key, i, name) for i, name in enumerate(node.input) if name in derived]
        if uses and not all(o in derived or graph.constant(o) is not None for o in node.output if o):
            found += uses
    return found


def _stirred(graph: Graph, cut: CutSizes) -> dict[str, tuple[int, ...]]:
    """The sizes with every axis changed that carries no channels and that no weight fixes: what still comes out the
    same depends on weights alone, whatever the batch or the image size."""
    stirred, fixed = {}, _fixed_axes(graph, cut.channels.shapes)
    for name, shape in cut.channels.shapes.items():
        units, own = cut.channels.flow.get(name), fixed.get(name, ())
        stays = [k in own or (units is not None and k < units.ndim and units.shape[k] > 1) for k in range(len(shape))]
        stirred[name] = tuple(d if s else 2 * d + 5 for d, s in zip(shape, stays, strict=True))
    return stirred


ALIGNED = frozenset((*UNARY, *ELEMENTWISE, "LayerNormalization"))
"""Operators whose operands and output line up at their last axes."""
FIXES = {"Conv": 1, "BatchNormalization": 1, "Gemm": 1, "MatMul": -1}
"""Operator with a constant second operand -> the axis of the first operand and of the output that it fixes."""


def _fixed_axes(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, set[int]]:
    """Activation -> axes that can have no other size, because a constant meets them."""
    found: dict[str, set[int]] = {}
    for node in graph.nodes.values():
        out = node.output[0]
        rank = len(shapes.get(out, ()))
        if node.op_type in FIXES and len(node.input) > 1 and graph.constant(node.input[1]) is not None:
            axis, before = FIXES[node.op_type], len(shapes.get(node.input[0], ()))
            if attr(node, "transA", 0) or before < 2 or before != rank:
                continue
            found.setdefault(node.input[0], set()).add(axis % rank)
            found.setdefault(out, set()).add(axis % rank)
        elif node.op_type in ALIGNED:
            for name in node.input:
                size, whole = shapes.get(name, ()), graph.constant(name) is not None if name else False
                axes = [k for k, d in enumerate(size) if whole and d > 1] or list(found.get(name, ()))
                found.setdefault(out, set()).update(k + rank - len(size) for k in axes if size[k] > 1)
    return found


def _equal(a: np.ndarray, b: np.ndarray | None) -> bool:
    if b is None:
        return False
    if a is b:
        return True
    return np.shape(a) == np.shape(b) and bool(np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f"))


def _pieces(
    graph: Graph,
    cut: CutSizes,
    use: Use,
    value: np.ndarray,
    after: Mapping[str, np.ndarray],
    static: Mapping[str, np.ndarray],
) -> list[SizeEdit] | None:
    """What to mend so that an operand computed at run time comes out as wanted; None when nothing helps."""
    name = graph.nodes[use[0]].input[use[1]]
    now = after.get(name)
    if _equal(value, now):
        return []
    if graph.constant(name) is not None or _equal(cut.before[name], static.get(name)):
        return [SizeEdit(use, np.asarray(value, graph_dtype(graph, cut, name)))]
    node = graph.nodes[graph.producer[name]]
    key = graph.producer[name]
    if node.op_type in ("Cast", "Identity"):
        return _pieces(graph, cut, (key, 0), value, after, static)
    if node.op_type in ("Unsqueeze", "Squeeze", "Reshape"):
        inner = cut.before.get(node.input[0])
        if inner is None or np.size(inner) != np.size(value):
            return None
        return _pieces(graph, cut, (key, 0), np.reshape(value, np.shape(inner)), after, static)
    if now is None or node.op_type != "Concat" or np.ndim(value) != 1 or np.shape(now) != np.shape(value):
        return None
    mends: list[SizeEdit] = []
    position = 0
    for i, piece in enumerate(node.input):
        have = cut.before.get(piece, graph.constant(piece))
        if have is None:
            return None
        part = value[position : position + have.size]
        if not np.array_equal(part, now[position : position + have.size]):
            fixed = _pieces(graph, cut, (key, i), part, after, static)
            if fixed is None:
                return None
            mends += fixed
        position += have.size
    return mends


def graph_dtype(graph: Graph, cut: CutSizes, name: str) -> np.dtype:
    """The element type of a size operand."""
    value = cut.before.get(name, graph.constant(name))
    return np.dtype(np.int64) if value is None else value.dtype


def _clashes(mends: list[SizeEdit]) -> list[str]:
    seen: dict[Use, np.ndarray] = {}
    clash = []
    for m in mends:
        if m.attribute is None:
            if m.use in seen and not np.array_equal(seen[m.use], m.value):
                clash.append(m.use[0])
            seen[m.use] = m.value
    return clash


def _roots(graph: Graph, name: str, derived: Mapping[str, np.ndarray], cut: CutSizes) -> tuple[str, ...]:
    """The cut tensors whose Shape a derived value goes back to."""
    stack, seen, found = [name], set(), []
    while stack:
        top = stack.pop()
        if top in seen:
            continue
        seen.add(top)
        if cut.changed(top):
            found.append(top)
        elif top in derived and top in graph.producer:
            stack.extend(graph.nodes[graph.producer[top]].input)
    return tuple(found)


# -- operators that spell sizes -------------------------------------------------------------------------------

NewSizes = list[tuple[int | str, Any]]
SizeRule = Callable[[Graph, CutSizes, str, onnx.NodeProto], NewSizes]
SIZE_RULES: dict[str, SizeRule] = {}
TAKES_SIZES: set[tuple[str, int]] = set()


def size_operands(op: str, *operands: int) -> Callable:
    def enter(function: Callable) -> Callable:
        SIZE_RULES[op] = function
        TAKES_SIZES.update((op, i) for i in operands)
        return function

    return enter


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


@size_operands("Reshape", 1)
def _reshape(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    if len(node.input) < 2:
        return []
    leave = (-1,) if attr(node, "allowzero", 0) else (0, -1)
    return _target(graph, cut, node, 1, leave)


@size_operands("ConstantOfShape", 0)
def _filled(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    return _target(graph, cut, node, 0, ())


@size_operands("Expand", 1)
def _expand(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    given = _operand(graph, cut, node, 1)
    if given is not None and len(given) < len(cut.shapes[node.output[0]]):
        lead = len(cut.shapes[node.output[0]]) - len(given)
        old, new = cut.channels.shapes[node.output[0]][lead:], cut.shapes[node.output[0]][lead:]
        target = np.where((np.array(old) != np.array(new)) & (given != 1), new, given)
        return [] if np.array_equal(target, given) else [(1, target.astype(given.dtype))]
    return _target(graph, cut, node, 1, (1,))


@size_operands("Resize", 3)
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


@size_operands("Slice", 1, 2, 3, 4)
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


@size_operands("Split", 1)
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


@size_operands("Gather", 1)
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


@size_operands("ReduceMean")
def _reduce_mean(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    """A mean over channels that were cut still divides by their old number."""
    read = cut.channels.reads.get((key, 0))
    if read is None or cut.alive[read[1]].all():
        return []
    return [("*scale", float(cut.alive[read[1]].mean()))]


@size_operands("Attention")
def _attention(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    """The default scale is one over the root of a head's width, as it was."""
    if attr(node, "scale") is not None or not cut.changed(node.input[0]):
        return []
    shape = cut.channels.shapes[node.input[0]]
    return [("scale", float((shape[-1] / (attr(node, "q_num_heads", 1) if len(shape) == 3 else 1)) ** -0.5))]


@size_operands("Tile", 1)
@size_operands("Pad", 1, 3)
def _nothing(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    return []


@size_operands("Conv")
@size_operands("ConvInteger")
@size_operands("QLinearConv")
def _conv(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    groups = attr(node, "group", 1)
    if groups == 1 or not cut.changed(node.input[0]):
        return []
    width = cut.shapes[node.input[0]][1]
    per_group = cut.channels.params.get((key, 3 if node.op_type == "QLinearConv" else 1), {}).get(1)
    before = cut.channels.shapes[node.input[0]][1] // groups
    now = before if per_group is None else int(cut.alive[per_group].sum())
    return [] if width // now == groups else [("group", width // now)]


@size_operands("ConvTranspose")
def _conv_transpose(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    groups = attr(node, "group", 1)
    if groups == 1:
        return []
    out, width = cut.shapes[node.output[0]][1], cut.channels.shapes[node.output[0]][1] // groups
    per_group = cut.channels.params.get((key, 1), {}).get(1)
    now = width if per_group is None else int(cut.alive[per_group].sum())
    return [] if out // now == groups else [("group", out // now)]


@size_operands("GroupNormalization")
def _group_norm(graph: Graph, cut: CutSizes, key: str, node: onnx.NodeProto) -> NewSizes:
    groups = attr(node, "num_groups")
    if not cut.changed(node.input[0]) or key in cut.channels.inexact:
        return []
    size = cut.channels.shapes[node.input[0]][1] // groups
    return [("num_groups", cut.shapes[node.input[0]][1] // size)]
