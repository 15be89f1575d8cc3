"""Rules of what multiplies by a weight: output channels are its rows, input channels its columns."""

from __future__ import annotations

import numpy as np

from onnxprune.channels.rules.elementwise import lift, lift_dims, meet
from onnxprune.channels.rules.registry import Value, Walk, pin_all, rule
from onnxprune.channels.ties import READS, WITHIN, WRITES, Ids, Param


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
    x, y = lift(x, rank), lift(y, rank)
    dx, dy = lift_dims(walk.dims(0), rank), lift_dims(walk.dims(1), rank)
    return meet(walk, [(x, (*dx[:-1], 1)), (y, (*dy[:-2], 1, dy[-1]))], [], walk.out())


def matmul_weight(walk: Walk, x: Ids, i: int, contracted: int, w: Param, out_axis: int) -> Ids:
    """Activation times weight, on either side.

    Args:
        walk: the analysis at this node.
        x: ids of the activation.
        i: which operand it is.
        contracted: its axis that is summed over.
        w: the weight.
        out_axis: the weight's axis that counts outputs.
    """
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
    return meet(walk, [(ox, dx), (oy, dy)], [], walk.out())


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
