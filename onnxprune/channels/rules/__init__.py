"""One rule per operator family: which axes of its operands are the same channels.

A rule gets the walk, and the ids (or `Param`) of every operand, and returns the ids of its outputs. It says
only what is *the same*, what must stay *whole* and why; it computes nothing. To add an operator, look for the
family that it belongs to: usually it is one more name in a decorator. An operator without a rule keeps all its
axes, with that as the reason.

Two things decide whether a channel may leave an axis. The operator must treat channels apart (a ReLU does, a
Softmax over channels does not), or it must contract them with weights that can leave too (a conv).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from onnxprune.channels.ties import LIMIT, READS, WITHIN, WRITES, Ids, Param, Ties
from onnxprune.graph import evaluate
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import UNARY, Observed
from onnxprune.protobuf.nodes import attr, node_key

Value = Ids | Param | None
Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}
CONTRIB: set[tuple[str, str]] = {
    ("com.microsoft", "Gelu"),
    ("com.microsoft", "QuickGelu"),
    ("com.microsoft", "RotaryEmbedding"),
}
"""Operators of other domains that a rule was written for."""


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Enter a rule for one or more operators."""

    def enter(function: Rule) -> Rule:
        for op in ops:
            RULES[op] = function
        return function

    return enter


class Walk:
    """What a rule may ask: the node, sizes, constants, and the ties."""

    def __init__(self, graph: Graph, observed: Observed, ties: Ties, prune_statistics: bool = False):
        self.graph, self.observed, self.ties = graph, observed, ties
        self.prune_statistics = prune_statistics
        self.node = onnx.NodeProto()
        self.key = ""

    def at(self, node: onnx.NodeProto) -> None:
        self.node, self.key = node, node_key(node)
        self.ties.where, self.ties.tensor = self.key, self.key

    def attr(self, name: str, default: Any = None) -> Any:
        return attr(self.node, name, default)

    def dims(self, i: int) -> tuple[int, ...]:
        """Sizes of input i."""
        return self.observed.shapes[self.node.input[i]]

    def out(self, i: int = 0) -> tuple[int, ...]:
        """Sizes of output i."""
        return self.observed.shapes[self.node.output[i]]

    def value(self, i: int) -> np.ndarray | None:
        """The value of input i if it is constant or follows from sizes."""
        if i >= len(self.node.input) or not self.node.input[i]:
            return None
        name = self.node.input[i]
        return self.observed.derived.get(name, self.graph.constant(name))

    def axes(self, i: int = 1, default: Any = None) -> list[int]:
        """Axes given as input i or as the attribute `axes`."""
        given = self.value(i)
        return evaluate.axes_of({"axes": self.attr("axes")} if self.attr("axes") else {}, given, default)

    def fixed(self, ids: Ids, text: str) -> Ids:
        """Pin all ids of a tensor."""
        self.ties.pin(ids, text)
        return ids

    def dead(self, i: int = 0, text: str | None = None) -> Ids:
        """Ids of output i with nothing to cut in it."""
        rank = len(self.observed.shapes.get(self.node.output[i], ()))
        return self.ties.dead_end(rank, text or f"{self.node.op_type} makes an axis that cannot be cut")

    def channels(self, x: Ids, axis: int, i: int = 0) -> Ids:
        """The ids of one axis of input i, (length,), all others kept whole."""
        self.ties.tensor = self.node.input[i]
        length = self.dims(i)[axis]
        return self.ties.along(
            x, axis, length, f"{self.node.op_type} works across this axis, which is not its channel axis"
        )

    def statistics(self) -> bool:
        """Whether the node's statistics over channels may change; notes that they do."""
        if self.prune_statistics:
            self.ties.inexact.append(self.key)
        return self.prune_statistics

    def place(self, ids: Ids, axis: int, rank: int) -> Ids:
        """A tensor of the given rank whose `axis` carries `ids`."""
        shape = [1] * rank
        shape[axis] = -1
        return ids.reshape(shape)


def apply(walk: Walk, values: list[Value]) -> list[Ids | Param]:
    """Run the rule of the walk's node; without one, pin."""
    node, op = walk.node, walk.node.op_type
    known = op in RULES and (node.domain in ("", "ai.onnx") or (node.domain, op) in CONTRIB)
    sized = all(o in walk.observed.shapes for o in node.output if o)
    if not known or not sized:
        why = f"{op} is not known to onnxprune" if not known else f"sizes of {op} are not known"
        if not known and node.domain.startswith("com.microsoft"):
            why = f"{op} of {node.domain} is not known to onnxprune; if ONNX Runtime's optimiser wrote it, give the"
            why += " model as it was before"
        if op in ("If", "Loop", "Scan"):
            why = f"{op} runs a body, into which channels are not followed"
        pin_all(walk, why, *values)
        return [walk.dead(i, why) for i in range(len(node.output))]
    if values and isinstance(values[0], Param) and op not in TAKES_CONSTANTS:
        pin_all(walk, f"{op} of a constant", *values)
        return [walk.dead(i, f"{op} of a constant") for i in range(len(node.output))]
    result = RULES[op](walk, *values)
    results = list(result) if isinstance(result, (tuple, list)) else [result]
    for i in range(len(results), len(node.output)):
        results.append(walk.dead(i))
    return results


# -- weighted operators -----------------------------------------------------------------------------------


def tie_bias(walk: Walk, b: Value, out: Ids, axis: int = -1) -> None:
    """A bias over output channels."""
    if isinstance(b, Param) and b.shape and b.shape[axis] == len(out) and len(out) > 1:
        walk.ties.same(out, b.axis(axis))
    elif isinstance(b, np.ndarray) and b.size:
        walk.fixed(b, f"{walk.node.op_type} has a bias that is computed at run time")
        walk.fixed(out, f"{walk.node.op_type} has a bias that is computed at run time")


def _grouped(walk: Walk, x: Ids, out: Ids, inner: Ids, groups: int) -> None:
    """Tie a grouped conv: `inner` is the weight axis that counts channels within a group.

    Either whole groups go (in and out together, the group count falls), or index j of every group goes: the
    form with more steps to choose from is taken. Depthwise is the first form with groups of one.
    """
    ties = walk.ties
    ins, outs = x.reshape(groups, -1), out.reshape(groups, -1)
    if groups >= inner.size:
        ties.pin(inner, "whole groups are cut, not channels within a group", 1)
        ties.same(ins, ins[:, :1])
        ties.same(outs, ins[:, :1])
    else:
        ties.same(ins, inner[None] if ins.shape[1] == inner.size else ins[:1])
        ties.same(outs, outs[:1])


@rule("Conv")
def conv(walk: Walk, x: Value, w: Value, b: Value = None, *rest: Value) -> Ids:
    rank, why = len(walk.out()), "Conv has weights that are computed at run time, or a constant input"
    if not isinstance(w, Param) or not isinstance(x, np.ndarray):
        pin_all(walk, why, x, w)
        return walk.dead(0, why)
    ties, groups = walk.ties, walk.attr("group", 1)
    channels = walk.channels(x, 1)
    if groups == 1:
        out, inner = w.axis(0, WRITES), w.axis(1, READS, walk.node.input[0])
        ties.same(channels, inner)
    else:
        out, inner = w.axis(0, WITHIN if w.shape[1] == 1 else WRITES), w.axis(1, READS, walk.node.input[0])
        _grouped(walk, channels, out, inner, groups)
    tie_bias(walk, b, out)
    return walk.place(out, 1, rank)


@rule("ConvTranspose")
def conv_transpose(walk: Walk, x: Value, w: Value, b: Value = None, *rest: Value) -> Ids:
    rank, why = (
        len(walk.out()),
        "ConvTranspose has weights that are computed at run time, or a constant input",
    )
    if not isinstance(w, Param) or not isinstance(x, np.ndarray):
        pin_all(walk, why, x, w)
        return walk.dead(0, why)
    ties, groups = walk.ties, walk.attr("group", 1)
    channels = walk.channels(x, 1)
    if groups == 1:
        inner, out = w.axis(0, READS, walk.node.input[0]), w.axis(1, WRITES)
        ties.same(channels, inner)
    else:
        rows, within = w.axis(0, WITHIN), w.axis(1, WRITES)
        ties.same(channels, rows)
        grid = channels.reshape(groups, -1)
        if groups >= within.size:
            ties.pin(within, "whole groups are cut, not channels within a group", 1)
            ties.same(grid, grid[:, :1])
            out = np.repeat(grid[:, 0], within.size)
        else:
            ties.same(grid, grid[:1])
            out = np.tile(within, groups)
    tie_bias(walk, b, out)
    return walk.place(out, 1, rank)


@rule("Gemm")
def gemm(walk: Walk, a: Value, b: Value, c: Value = None) -> Ids:
    if not isinstance(b, Param) or not isinstance(a, np.ndarray):
        why = "Gemm has weights that are computed at run time"
        pin_all(walk, why, a, b)
        return walk.dead(0, why)
    turned = int(bool(walk.attr("transB", 0)))
    contracted = 0 if walk.attr("transA", 0) else 1
    inner, out = b.axis(turned, READS, walk.node.input[0]), b.axis(1 - turned, WRITES)
    walk.ties.same(walk.channels(a, contracted), inner)
    tie_bias(walk, c, out)
    return walk.place(out, 1, 2)


def keep_whole(ties: Ties, why: str, *values: Value) -> None:
    """Pin ids, and every axis of a weight."""
    for v in values:
        if isinstance(v, np.ndarray):
            ties.pin(v, why)
        elif isinstance(v, Param) and len(v.shape) > 1:
            for axis in range(len(v.shape)):
                ties.pin(v.axis(axis, WRITES), why, axis)


def pin_all(walk: Walk, why: str, *values: Value) -> None:
    keep_whole(walk.ties, why, *values)


@rule("MatMul")
def matmul(walk: Walk, x: Value, y: Value) -> Ids:
    if isinstance(x, np.ndarray) and isinstance(y, Param) and len(y.shape) == 2 and x.ndim >= 2:
        return matmul_weight(walk, x, 0, x.ndim - 1, y, 1)
    if isinstance(y, np.ndarray) and isinstance(x, Param) and len(x.shape) == 2 and y.ndim >= 2:
        return matmul_weight(walk, y, 1, y.ndim - 2, x, 0)
    if not (isinstance(x, np.ndarray) and isinstance(y, np.ndarray)) or min(x.ndim, y.ndim) < 2:
        why = "MatMul with a constant that has not two axes"
        pin_all(walk, why, x, y)
        return walk.dead(0, why)
    # Both computed at run time: what is contracted goes on both sides or on neither.
    ties = walk.ties
    if x.shape[-1] > 1 and y.shape[-2] > 1:
        left, right = walk.channels(x, -1, 0), walk.channels(y, -2, 1)
        ties.same(left, right)
        ties.reads[(walk.key, 0)] = (x.ndim - 1, left)
        return walk.dead(0, "MatMul of two activations: its rows and columns are positions")
    why = "MatMul contracts it with an axis that cannot be cut"
    x, y = ties.whole(x, -1, why, y), ties.whole(y, -2, why, x)
    rank = len(walk.out())
    x, y = _lift(x, rank), _lift(y, rank)
    dx, dy = _lift_dims(walk.dims(0), rank), _lift_dims(walk.dims(1), rank)
    return _meet(walk, [(x, (*dx[:-1], 1)), (y, (*dy[:-2], 1, dy[-1]))], [], walk.out())


def matmul_weight(walk: Walk, x: Ids, i: int, contracted: int, w: Param, out_axis: int) -> Ids:
    """Activation times weight, on either side."""
    inner, rank = 1 - out_axis, x.ndim
    passing = [k for k in range(rank) if k != contracted and x.shape[k] > 1]
    if passing and x.shape[contracted] == 1 and not walk.ties.pinned(x):
        # channels lie along another axis (an MLP-mixer's token mixing): they pass, the weight stays
        pin_all(walk, "MatMul works along positions here, not along channels", w)
        return x
    columns = w.axis(inner, READS, walk.node.input[i])
    rows = w.axis(out_axis, WRITES)
    walk.ties.same(walk.channels(x, contracted, i), columns)
    return walk.place(rows, contracted, rank)


@rule("Attention")
def attention(walk: Walk, q: Value, k: Value, v: Value, *rest: Value) -> Ids:
    """softmax(q kᵀ · scale) v, by heads (opset 23): q and k lose the same index of every head, v and the output
    lose theirs. The default scale counts the head's width: the cut writes the old one out."""
    why = "Attention with a cache, with outputs of its own, or of constants"
    plain = all(isinstance(t, np.ndarray) for t in (q, k, v)) and not any(walk.node.input[4:])
    if not plain or len(walk.node.output) > 1:
        pin_all(walk, why, q, k, v, *rest)
        return walk.dead(0, why)
    pin_all(walk, "used as a mask", *rest)
    assert isinstance(q, np.ndarray) and isinstance(k, np.ndarray) and isinstance(v, np.ndarray)
    flat, ties = q.ndim == 3, walk.ties
    heads = [walk.attr(f"{t}_num_heads", 1) if flat else 1 for t in ("q", "kv", "kv")]
    lines = [walk.channels(t, t.ndim - 1, i) for i, t in enumerate((q, k, v))]
    first = []
    for line, count in zip(lines, heads, strict=True):
        grid = line.reshape(count, -1)
        ties.same(grid, grid[:1])
        first.append(grid[0])
    ties.same(first[0], first[1])
    ties.reads[(walk.key, 0)] = (q.ndim - 1, lines[0])
    return walk.place(np.tile(first[2], heads[0]), len(walk.out()) - 1, len(walk.out()))


@rule("RotaryEmbedding")
def rotary_embedding(walk: Walk, x: Value, *rest: Value) -> Ids:
    """Turns pairs of a head's channels by an angle of their own. Heads on an axis of their own may go whole; in one
    axis with the channels, their number is an attribute."""
    pin_all(walk, "used as angles or positions", *rest)
    assert isinstance(x, np.ndarray)
    return walk.ties.whole(x, x.ndim - 1, "RotaryEmbedding turns the channels of a head in pairs")


@rule("LSTM", "GRU", "RNN")
def recurrent(walk: Walk, x: Value, w: Value, *rest: Value) -> list[Ids]:
    why = f"{walk.node.op_type} mixes its hidden state over time"
    if isinstance(x, np.ndarray):
        if isinstance(w, Param):
            walk.ties.same(walk.channels(x, 2), w.axis(2, READS, walk.node.input[0]))
            walk.ties.pin(w.axis(1, WRITES), why, 1)
        else:
            walk.fixed(x, f"{walk.node.op_type} has weights that are computed at run time")
    pin_all(walk, why, *rest)
    return [walk.dead(i, why) for i in range(len(walk.node.output))]


# -- what treats every element alike -------------------------------------------------------------------------


@rule("CastLike")
def cast_like(walk: Walk, x: Value, like: Value = None) -> Value:
    return x


@rule(*UNARY)
def unary(walk: Walk, x: Value, *bounds: Value) -> list[Ids]:
    pin_all(walk, f"{walk.node.op_type} bound computed at run time", *bounds)
    return [x] * len(walk.node.output) if isinstance(x, np.ndarray) else []


ELEMENTWISE = (
    "Add Sub Mul Div Pow Min Max Sum Mean Mod Where PRelu Equal Less Greater LessOrEqual GreaterOrEqual And Or "
    "Xor BitShift BitwiseAnd BitwiseOr BitwiseXor"
).split()


@rule(*ELEMENTWISE)
def elementwise(walk: Walk, *values: Value, at: Sequence[int] | None = None) -> Ids:
    """`at`: the input positions of the values, when not the first ones."""
    rank = len(walk.out())
    places = range(len(values)) if at is None else at
    operands = [
        (_lift(v, rank), _lift_dims(walk.dims(i), rank))
        for i, v in zip(places, values, strict=True)
        if isinstance(v, np.ndarray)
    ]
    params = [v for v in values if isinstance(v, Param)]
    return _meet(walk, operands, params, walk.out()) if operands else walk.dead()


def _lift(ids: Ids, rank: int) -> Ids:
    return ids.reshape((1,) * (rank - ids.ndim) + ids.shape)


def _lift_dims(dims: tuple[int, ...], rank: int) -> tuple[int, ...]:
    return (1,) * (rank - len(dims)) + tuple(dims)


def _meet(walk: Walk, operands: list[tuple[Ids, tuple[int, ...]]], params: list[Param], out: tuple[int, ...]) -> Ids:
    """Operands meet element by element, broadcasting: shared axes are the same channels.

    An operand of true size 1 on an axis says nothing about it. One that has the axis in full but carries no
    ids there keeps it whole for all.
    """
    ties, rank = walk.ties, len(out)
    why = f"{walk.node.op_type} joins it with an axis that cannot be cut"
    ids = [v for v, _ in operands]
    full = [[out[k] > 1 and dims[k] == out[k] for k in range(rank)] for _, dims in operands]
    for k in range(rank):
        stiff = [i for i in range(len(ids)) if full[i][k] and ids[i].shape[k] == 1]
        if stiff:
            for i in range(len(ids)):
                ids[i] = ties.whole(ids[i], k, why, ids[stiff[0]])
    carriers = sorted((i for i in range(len(ids)) if ids[i].size > 1), key=lambda i: -_carried(ids[i]))
    if not carriers:
        return ids[0] if len(ids) == 1 else max(ids, key=lambda v: v.size)
    main = ids[carriers[0]]
    for i in carriers[1:]:
        other = ids[i]
        if [d > 1 for d in other.shape] == [d > 1 for d in main.shape]:
            ties.same(main, other)
            continue
        lacking = tuple(k for k in range(rank) if main.shape[k] > 1 and other.shape[k] == 1)
        if np.array_equal(other, main[tuple(slice(1) if k in lacking else slice(None) for k in range(rank))]):
            ties.same(main, other)  # a statistic of its own groups of channels: whole groups go
            continue
        # the other carries only some of the axes, or different ones: what it carries stays whole
        walk.fixed(other, f"{walk.node.op_type} joins channels with channels on another axis (attention over channels)")
        for k in range(rank):
            if other.shape[k] > 1:
                main = ties.whole(main, k, why)
    for p in params:
        dims = _lift_dims(p.shape, rank)
        shared = [k for k in range(rank) if main.shape[k] > 1 and dims[k] == out[k]]
        if len(shared) == sum(d > 1 for d in main.shape):
            own = p.joint([k - rank + len(p.shape) for k in shared])
            ties.same(main, _lift(own, rank))
        else:
            for k in shared:
                main = ties.whole(main, k, why)
    return main


def _carried(ids: Ids) -> int:
    return sum(d > 1 for d in ids.shape)


TAKES_CONSTANTS = {
    *ELEMENTWISE,
    "MatMul",
    "Gemm",
    "Conv",
    "ConvTranspose",
    "Concat",
    "Gather",
    "Einsum",
    "Transpose",
    "Expand",
    "ConstantOfShape",
}
"""Operators whose first operand may be a constant; their rules say what that means."""


# -- normalisation, pooling, reduction -------------------------------------------------------------------------


@rule("BatchNormalization")
def batch_norm(walk: Walk, x: Value, *params: Value) -> list[Ids]:
    if not isinstance(x, np.ndarray):
        return []
    channels = walk.channels(x, 1)
    for p in params:
        tie_bias(walk, p, channels)
    return [walk.place(channels, 1, x.ndim)]


@rule("InstanceNormalization")
def instance_norm(walk: Walk, x: Value, *params: Value) -> Ids:
    return batch_norm(walk, x, *params)[0]


@rule("GroupNormalization")
def group_norm(walk: Walk, x: Value, scale: Value, bias: Value) -> Ids:
    if not isinstance(x, np.ndarray):
        return walk.dead()
    channels, groups = walk.channels(x, 1), walk.attr("num_groups")
    grid = channels.reshape(groups, -1)
    if walk.statistics():
        walk.ties.same(grid, grid[:1])  # index j of every group
    else:
        walk.ties.same(grid, grid[:, :1])  # whole groups: the statistics of the others do not change
    for p in (scale, bias):
        if isinstance(p, Param):
            own = p.axis(0)
            walk.ties.same(own, channels if len(own) == len(channels) else grid[:, 0])
    return walk.place(channels, 1, x.ndim)


@rule(
    "LayerNormalization",
    "RMSNormalization",
    "Softmax",
    "LogSoftmax",
    "Hardmax",
    "LpNormalization",
    "MeanVarianceNormalization",
    "CumSum",
    "CumProd",
)
def mixes(walk: Walk, x: Value, *params: Value) -> list[Ids]:
    """Operators that mix the elements of an axis: it stays whole."""
    op = walk.node.op_type
    if not isinstance(x, np.ndarray):
        return []
    default = 1 if op in ("Softmax", "LogSoftmax", "Hardmax") and walk.graph.opset < 13 else -1
    axis = walk.attr("axis", default)
    axes = [axis % x.ndim]
    if op in ("LayerNormalization", "RMSNormalization") or default == 1:
        axes = list(range(axis % x.ndim, x.ndim))
    elif op == "MeanVarianceNormalization":
        axes = [a % x.ndim for a in walk.attr("axes", [0, 2, 3])]
    elif op in ("CumSum", "CumProd"):
        given = walk.value(1)
        axes = list(range(x.ndim)) if given is None else [int(given.reshape(-1)[0]) % x.ndim]
    if op in STATISTICS and any(x.shape[a] > 1 for a in axes) and walk.statistics():
        return [_meet(walk, [(x, walk.dims(0))], [p for p in params if isinstance(p, Param)], walk.out())]
    for a in axes:
        x = walk.ties.whole(x, a, f"{op} mixes the channels of this axis{_remedy(op)}")
    return [x]


STATISTICS = {"LayerNormalization", "RMSNormalization", "MeanVarianceNormalization", "ReduceMean", "ReduceL2"}
"""Operators whose statistics over channels still make sense when some have gone."""


def _remedy(op: str) -> str:
    return " - --prune-statistics cuts it, inexactly" if op in STATISTICS else ""


@rule("LRN")
def lrn(walk: Walk, x: Ids) -> Ids:
    return walk.ties.whole(x, 1, "LRN mixes neighbouring channels")


POOLS = "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool".split()


@rule(*POOLS)
def pool(walk: Walk, x: Value) -> list[Ids]:
    if not isinstance(x, np.ndarray):
        return []
    for a in range(2, x.ndim):
        x = walk.ties.whole(x, a, "pooled over")
    if len(walk.node.output) > 1 and walk.node.output[1]:
        x = walk.ties.whole(x, 1, "MaxPool hands on where in the whole tensor each maximum was")
    return [x]


REDUCTIONS = (
    "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp"
).split()


@rule(*REDUCTIONS, "ArgMax", "ArgMin")
def reduction(walk: Walk, x: Value, given: Value = None) -> Ids:
    if not isinstance(x, np.ndarray):
        return walk.dead()
    op = walk.node.op_type
    if op in ("ArgMax", "ArgMin"):
        axes = [walk.attr("axis", 0)]
    elif isinstance(given, np.ndarray) and walk.value(1) is None:
        axes = list(range(x.ndim))
    else:
        axes = walk.axes(1, None)
        if axes is None or (not axes and not walk.attr("noop_with_empty_axes", 0)):
            axes = list(range(x.ndim))
    axes = [a % x.ndim for a in axes]
    if op == "ReduceMean" and len(axes) == 1 and x.shape[axes[0]] > 1 and _is_norm(walk):
        # Global response normalisation: the mean over channels of one norm a channel. A channel that goes
        # leaves a zero behind; the cut keeps the divisor.
        line = walk.channels(x, axes[0])
        walk.ties.reads[(walk.key, 0)] = (axes[0], line)
        return walk.dead(0, "a mean over channels")
    crossed = [a for a in axes if x.shape[a] > 1]
    if op in STATISTICS and crossed and x.size == x.shape[crossed[0]] and walk.statistics():
        return walk.dead(0, "a statistic over channels")
    for a in axes:
        x = walk.ties.whole(x, a, f"{op} mixes the channels of this axis{_remedy(op)}")
    if walk.attr("keepdims", 1):
        return x
    return x.reshape([d for k, d in enumerate(x.shape) if k not in axes])


# -- what moves indices about --------------------------------------------------------------------------------


def _is_norm(walk: Walk) -> bool:
    """Whether the operand is a norm over positions."""
    producer = walk.graph.producer.get(walk.node.input[0])
    return producer is not None and walk.graph.nodes[producer].op_type == "ReduceL2"


@rule("Transpose")
def transpose(walk: Walk, x: Ids | Param) -> Ids | Param:
    return x.turned(walk.attr("perm")) if isinstance(x, Param) else np.transpose(x, walk.attr("perm"))


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(walk: Walk, x: Value, *rest: Value) -> Ids:
    if not isinstance(x, np.ndarray):
        return walk.dead()
    before, after = walk.dims(0), walk.out()
    if x.size == 1:
        return x.reshape((1,) * len(after))
    if 0 in before:
        walk.fixed(x, "an empty tensor is reshaped")
        return walk.dead()
    full, target = list(x.shape), [1] * len(after)
    for ins, outs in blocks(before, after):
        if any(x.shape[k] > 1 for k in ins):
            for k in ins:
                full[k] = before[k]
            for k in outs:
                target[k] = after[k]
    if math.prod(full) > LIMIT:
        return _spread_too_wide(walk, x, full, target)
    ids = np.broadcast_to(x, full).reshape(target)
    for k in range(ids.ndim):  # an axis along which the ids repeat carries none
        if ids.shape[k] > 1 and ids.size > ids.shape[k] and (ids == ids.take([0], k)).all():
            ids = ids.take([0], k)
    walk.ties.joints.append(ids)
    return ids


def _spread_too_wide(walk: Walk, x: Ids, full: list[int], target: list[int]) -> Ids:
    walk.fixed(x, f"{walk.node.op_type} mixes channels with {math.prod(full) // x.size} positions")
    return walk.dead()


def blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The least runs of axes that a reshape turns into each other: [(axes before, axes after), …]."""
    found: list[tuple[list[int], list[int]]] = []
    i, j = 0, 0
    while i < len(before) or j < len(after):
        ins: list[int] = []
        outs: list[int] = []
        p = q = 1
        while not (ins or outs) or p != q:
            if (p <= q and i < len(before)) or j >= len(after):
                p *= before[i]
                ins.append(i)
                i += 1
            else:
                q *= after[j]
                outs.append(j)
                j += 1
        found.append((ins, outs))
    # axes of size 1 fall into blocks of their own or at the head of the next: both are right
    return found


@rule("Concat")
def concat(walk: Walk, *values: Value, at: Sequence[int] | None = None) -> Ids:
    """`at`: the input positions of the values, when not the first ones."""
    ties, rank = walk.ties, len(walk.out())
    axis = walk.attr("axis", 1) % rank
    why = "Concat joins it with an axis that cannot be cut"
    carrying = {k for v in values if isinstance(v, np.ndarray) for k in range(rank) if v.shape[k] > 1}
    ids, sizes = [], []
    for i, v in zip(range(len(values)) if at is None else at, values, strict=True):
        if v is None or walk.dims(i)[axis] == 0:
            continue
        sizes.append(walk.dims(i)[axis])
        if isinstance(v, Param):
            ids.append(v.joint(sorted(carrying)) if carrying else ties.dead_end(rank, "constant"))
        else:
            ids.append(v)
    if not ids:
        return walk.dead()
    for k in range(rank):
        if k != axis and walk.out()[k] > 1:
            stiff = [v for v in ids if v.shape[k] == 1]
            if stiff:
                ids = [ties.whole(v, k, why, stiff[0]) for v in ids]
    if all(v.shape[axis] == 1 for v in ids):  # joined along positions: the channels of all are the same
        return ids[0] if all(v.size == 1 for v in ids) else ties.same(*ids)
    wide = [
        np.broadcast_to(v, [s if k == axis else d for k, d in enumerate(v.shape)])
        for v, s in zip(ids, sizes, strict=True)
    ]
    joined = np.concatenate(wide, axis)
    ties.joints.append(joined)
    return joined


@rule("Split")
def split(walk: Walk, x: Value, *rest: Value) -> list[Ids]:
    if not isinstance(x, np.ndarray):
        return []
    axis = walk.attr("axis", 0) % x.ndim
    if x.shape[axis] == 1:
        return [x] * len(walk.node.output)
    sizes = [walk.out(i)[axis] for i in range(len(walk.node.output))]
    return np.split(x, np.cumsum(sizes)[:-1], axis)


@rule("Slice")
def slice_(walk: Walk, x: Value, *rest: Value) -> Ids:
    if not isinstance(x, np.ndarray):
        return walk.dead()
    given = [walk.value(i) for i in range(1, len(walk.node.input))]
    missing = any(v is None and walk.node.input[i + 1] for i, v in enumerate(given))
    if missing:
        return _resized(walk, x, "Slice has bounds that are computed from data")
    attrs = {k: walk.attr(k) for k in ("starts", "ends", "axes") if walk.attr(k) is not None}
    cut = evaluate.slices(attrs, walk.dims(0), *given)
    for k, piece in enumerate(cut):
        if x.shape[k] == 1 or piece == slice(None):
            continue
        if (piece.step or 1) != 1:
            x = walk.ties.whole(x, k, "Slice takes every n-th or reverses")
        elif walk.out()[k] == 1 and x.size > x.shape[k]:  # q, k or v of a packed tensor
            x = walk.ties.whole(x, k, "Slice takes one of them")
        else:
            x = x[(slice(None),) * k + (piece,)]
            if x.shape[k] == 1:
                walk.fixed(x, "Slice takes a single channel out, which must stay")
    return x


def _resized(walk: Walk, x: Ids, why: str, out: int = 0) -> Ids:
    """Keep whole every axis whose size changes; without the same rank, every axis."""
    before, after = walk.dims(0), walk.out(out)
    if len(before) != len(after):
        walk.fixed(x, why)
        return walk.dead(out, why)
    for k in range(x.ndim):
        if before[k] != after[k]:
            x = walk.ties.whole(x, k, why)
    return x


@rule("Gather")
def gather(walk: Walk, x: Value, indices: Value) -> Ids:
    axis, index = walk.attr("axis", 0), walk.value(1)
    if isinstance(x, Param):  # an embedding: its columns are channels
        if isinstance(indices, Param) or len(x.shape) != 2 or axis % 2 != 0:
            pin_all(walk, "Gather of a constant", x)
            return walk.dead()
        rank = len(walk.out())
        walk.ties.pin(x.axis(0, WRITES), "rows of an embedding are looked up by the model's input", 0)
        return walk.place(x.axis(1, WRITES), rank - 1, rank)
    if not isinstance(x, np.ndarray):
        return walk.dead()
    axis %= x.ndim
    pin_all(walk, "used as an index", indices)
    shape = np.shape(index) if index is not None else walk.dims(1)
    if x.shape[axis] > 1 and index is not None and len(shape) == 1 and x.size == x.shape[axis]:
        return x.take(np.asarray(index), axis)  # picks or reorders channels: the index is mended at the cut
    x = walk.ties.whole(x, axis, "Gather picks along this axis")
    return x.reshape(x.shape[:axis] + (1,) * len(shape) + x.shape[axis + 1 :])


@rule("ConstantOfShape")
def _filled(walk: Walk, *shape: Value) -> Ids:
    """One number everywhere (a first hidden state): it has as many channels as whatever it meets."""
    out = walk.out()
    carried = [d if len(out) <= 3 or k == 1 else 1 for k, d in enumerate(out)]
    if not 1 < math.prod(carried) <= FILLED or len(out) < 2:
        return walk.dead(0, "a constant")
    ids = walk.ties.fresh(math.prod(carried)).reshape(carried)
    walk.ties.joints.append(ids)
    return ids


FILLED = 1 << 16
"""Largest id array of a constant that is one number everywhere."""


@rule("Expand")
def expand(walk: Walk, x: Value, shape: Value) -> Ids:
    if isinstance(x, Param):  # a class token, one for every image
        wide = [k for k, d in enumerate(x.shape) if d > 1]
        if not wide:
            return _filled(walk)
        if math.prod(x.shape) > LIMIT:
            return walk.dead(0, "Expand of a constant")
        x = x.joint(wide)
    return _lift(x, len(walk.out())) if isinstance(x, np.ndarray) else walk.dead()


@rule("Tile")
def tile(walk: Walk, x: Value, repeats: Value) -> Ids:
    if not isinstance(x, np.ndarray):
        return walk.dead()
    times = [b // a if a else 1 for a, b in zip(walk.dims(0), walk.out(), strict=True)]
    return np.tile(x, [n if x.shape[k] > 1 else 1 for k, n in enumerate(times)])


@rule("Pad")
def pad(walk: Walk, x: Value, *rest: Value) -> Ids:
    if not isinstance(x, np.ndarray):
        return walk.dead()
    pin_all(walk, "used as padding", *rest)
    pads = walk.attr("pads") if walk.value(1) is None else walk.value(1)
    if walk.attr("mode", "constant") != "constant" or pads is None or walk.value(3) is not None:
        return _resized(walk, x, "Pad changes this axis")
    for k in range(x.ndim):
        before, after = int(pads[k]), int(pads[k + x.ndim])
        if x.shape[k] == 1 or (before == 0 and after == 0):
            continue
        if x.size != x.shape[k] or before < 0 or after < 0:
            x = walk.ties.whole(x, k, "Pad changes this axis")
            continue
        frame = walk.ties.dead_end(x.ndim, "channels that Pad adds")
        x = np.concatenate([*[frame] * before, x, *[frame] * after], k)
    return x


@rule("Resize", "Upsample")
def resize(walk: Walk, x: Value, *rest: Value) -> Ids:
    return _resized(walk, x, "resized along this axis") if isinstance(x, np.ndarray) else walk.dead()


@rule("DepthToSpace")
def depth_to_space(walk: Walk, x: Ids) -> Ids:
    r, ids = walk.attr("blocksize"), walk.channels(x, 1)
    if walk.attr("mode", "DCR") == "DCR":
        grid = ids.reshape(r * r, -1)
        walk.ties.same(grid, grid[:1])
        return walk.place(grid[0], 1, 4)
    grid = ids.reshape(-1, r * r)
    walk.ties.same(grid, grid[:, :1])
    return walk.place(grid[:, 0], 1, 4)


@rule("SpaceToDepth")
def space_to_depth(walk: Walk, x: Ids) -> Ids:
    square, ids = walk.attr("blocksize") ** 2, walk.channels(x, 1)
    return walk.place(np.tile(ids, square) if walk.attr("mode", "DCR") == "DCR" else np.repeat(ids, square), 1, 4)


@rule("RoiAlign", "MaxRoiPool")
def roi_align(walk: Walk, x: Value, *rest: Value) -> Ids:
    pin_all(walk, "used as regions", *rest)
    return walk.place(walk.channels(x, 1), 1, 4) if isinstance(x, np.ndarray) else walk.dead()


@rule("Shape", "Size")
def shape(walk: Walk, x: Value) -> Ids:
    return walk.dead(0, "a size")


@rule("Einsum")
def einsum(walk: Walk, *values: Value) -> Ids:
    """Letters are axes: contracted ones go on all operands that have them or on none."""
    equation = walk.attr("equation").replace(" ", "")
    left, _, right = equation.partition("->")
    terms = left.split(",")
    why = "Einsum that is not a plain product of two operands"
    if "..." in equation or not right or len(terms) != 2 or any(len(set(t)) != len(t) for t in (*terms, right)):
        pin_all(walk, why, *values)
        return walk.dead(0, why)
    weights = [i for i, v in enumerate(values) if isinstance(v, Param)]
    if len(weights) == 1:
        return _einsum_weight(walk, values, terms, right, weights[0])
    if weights:
        pin_all(walk, why, *values)
        return walk.dead(0, why)
    return _einsum_activations(walk, values, terms, right)


def _einsum_weight(walk: Walk, values: tuple[Value, ...], terms: list[str], right: str, i: int) -> Ids:
    w, x, ties = values[i], values[1 - i], walk.ties
    assert isinstance(w, Param) and isinstance(x, np.ndarray)
    letters, own = terms[1 - i], terms[i]
    summed = [c for c in letters if c in own and c not in right]
    made = [c for c in own if c not in letters]
    carried = [c for k, c in enumerate(letters) if x.shape[k] > 1]
    if len(summed) == 1 and len(made) == 1 and (not carried or summed[0] in carried):
        ids = walk.channels(x, letters.index(summed[0]), 1 - i)
        ties.same(ids, w.axis(own.index(summed[0]), READS, walk.node.input[1 - i]))
        rows = w.axis(own.index(made[0]), WRITES)
        return walk.place(rows, right.index(made[0]), len(right))
    pin_all(walk, "Einsum with this constant is not a plain product over channels", w)
    for k, c in enumerate(letters):
        if c in own or c not in right:
            x = ties.whole(x, k, "Einsum works across this axis")
    return _by_letters(x, letters, right)


def _einsum_activations(walk: Walk, values: tuple[Value, ...], terms: list[str], right: str) -> Ids:
    ties = walk.ties
    x, y = values
    assert isinstance(x, np.ndarray) and isinstance(y, np.ndarray)
    (a, b), why = terms, "Einsum works across this axis"
    for c in sorted((set(a) | set(b)) - set(right)):
        if c in a and c in b and x.shape[a.index(c)] > 1 and y.shape[b.index(c)] > 1:
            left, other = walk.channels(x, a.index(c), 0), walk.channels(y, b.index(c), 1)
            ties.same(left, other)
            ties.reads[(walk.key, 0)] = (a.index(c), left)
            return walk.dead(0, "Einsum of two activations: its axes are positions")
        if c in a:
            x = ties.whole(x, a.index(c), why)
        if c in b:
            y = ties.whole(y, b.index(c), why)
    sizes = dict(zip(a, walk.dims(0), strict=True)) | dict(zip(b, walk.dims(1), strict=True))
    ox, oy = _by_letters(x, a, right), _by_letters(y, b, right)
    dx = tuple(sizes[c] if c in a else 1 for c in right)
    dy = tuple(sizes[c] if c in b else 1 for c in right)
    return _meet(walk, [(ox, dx), (oy, dy)], [], walk.out())


def _by_letters(ids: Ids, letters: str, right: str) -> Ids:
    """Rearrange ids to the order of the output's letters; letters that are summed carry none."""
    kept = [c for c in letters if c in right]
    ids = ids.reshape([d for c, d in zip(letters, ids.shape, strict=True) if c in right])
    ids = ids.transpose([kept.index(c) for c in right if c in kept])
    shape, k = [], 0
    for c in right:
        shape.append(ids.shape[k] if c in kept else 1)
        k += c in kept
    return ids.reshape(shape)
