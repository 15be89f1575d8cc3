"""Rules of what multiplies by a weight: output channels are its rows, input channels its columns."""

from __future__ import annotations

import numpy as np

from onnxprune.channels.rules.contraction import matrices
from onnxprune.channels.rules.elementwise import lift, lift_dims, meet
from onnxprune.channels.rules.registry import Value, Walk, pin_all, rule
from onnxprune.channels.ties import READS, WITHIN, WRITES, Ids, Param
from onnxprune.graph import operators
from onnxprune.graph.operators import MICROSOFT


def tie_bias(walk: Walk, b: Value, out: Ids, axis: int = -1) -> None:
    """A bias over output channels."""
    if isinstance(b, Param) and b.shape and b.shape[axis] == len(out) and len(out) > 1:
        walk.ties.same(out, b.axis(axis))
    elif isinstance(b, np.ndarray) and b.ndim and b.shape[axis] == len(out) > 1:  # computed at run time
        walk.ties.same(out, walk.ties.along(b, axis % b.ndim, len(out), "a bias over several axes"))
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
@rule("FusedConv", domain=MICROSOFT)
def conv(walk: Walk, x: Value, w: Value, b: Value = None, z: Value = None) -> Ids:
    """`z`, of ONNX Runtime's FusedConv, is added to the output."""
    why = f"{walk.node.op_type} has a constant input"
    if not isinstance(x, np.ndarray):
        pin_all(walk, why, x, w, b, z)
        return walk.dead(0, why)
    out = _convolved(walk, x, w) if isinstance(w, Param) else _correlated(walk, x, w)
    tie_bias(walk, b, out)
    placed = walk.place(out, 1, len(walk.out()))
    if isinstance(z, np.ndarray):
        return meet(walk, [(placed, walk.out()), (z, walk.dims(3))], [], walk.out())
    return placed if z is None else meet(walk, [(placed, walk.out())], [z], walk.out())


def _convolved(walk: Walk, x: Ids, w: Param) -> Ids:
    """The channels, (out,), that a convolution by a constant makes."""
    ties, groups, channels = walk.ties, walk.attr("group", 1), walk.channels(x, 1)
    whole = groups > 1 and w.shape[1] == 1
    out, inner = w.axis(0, WITHIN if whole else WRITES), w.axis(1, READS, walk.node.input[0])
    if groups == 1:
        ties.same(channels, inner)
    else:
        _grouped(walk, channels, out, inner, groups)
    return out


def _correlated(walk: Walk, x: Ids, w: Value) -> Ids:
    """The channels, (out,), of a convolution by an activation (a cross-correlation): what is summed over goes from
    both, or one kernel a channel with its channel."""
    ties, groups, line = walk.ties, walk.attr("group", 1), operators.of(walk.node)
    rows, inputs = walk.dims(line.kernel or 1)[:2]
    assert isinstance(w, np.ndarray)
    if line.integer:
        pin_all(walk, f"{line.name} has weights that are computed at run time", x, w)
    elif groups > 1 and inputs == 1:
        kernels = walk.channels(w, 0, 1)
        ties.same(walk.channels(x, 1)[:, None], kernels.reshape(groups, -1))
        return kernels
    else:
        why = f"{line.name} has weights that are computed at run time, with an axis that cannot be cut"
        x, w = ties.only(x, [1], why), ties.only(w, [0, 1], why)
        if x.shape[1] == 1 or w.shape[1] == 1 or (w.shape[0] > 1 and ties.pinned(x)):
            ties.whole(x, 1, why)
            made = walk.channels(ties.whole(w, 1, why), 0, 1)
            ties.same(made.reshape(groups, -1), made.reshape(groups, -1)[:1])
            return made
        inner = walk.channels(x, 1)
        ties.same(inner.reshape(groups, -1), walk.channels(w, 1, 1)[None])
        ties.reads[(walk.key, 0)] = (1, inner)
    return np.broadcast_to(walk.dead(0, f"{line.name} of two activations").reshape(-1), (rows,))


@rule("DeformConv")
def deform_conv(walk: Walk, x: Value, w: Value, offset: Value, b: Value = None, mask: Value = None) -> Ids:
    """A convolution whose taps are moved by offsets, the same for all channels of each of some groups: of these every
    one loses its index j."""
    pin_all(walk, "used as offsets", offset, mask)
    why = f"{walk.node.op_type} has weights that are computed at run time, or a constant input"
    if not isinstance(x, np.ndarray) or not isinstance(w, Param):
        pin_all(walk, why, x, w, b)
        return walk.dead(0, why)
    moved = walk.channels(x, 1).reshape(walk.attr("offset_group", 1), -1)
    walk.ties.same(moved, moved[:1])
    out = _convolved(walk, x, w)
    tie_bias(walk, b, out)
    return walk.place(out, 1, len(walk.out()))


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
@rule("FusedGemm", domain=MICROSOFT)
def gemm(walk: Walk, a: Value, b: Value, c: Value = None) -> Ids:
    if not isinstance(b, Param) or not isinstance(a, np.ndarray):
        why = f"{walk.node.op_type} has weights that are computed at run time"
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
        return matrices(walk, x, y)
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
    if passing and x.shape[contracted] == 1 and not walk.ties.filled(x) and not walk.ties.pinned(x):
        # channels lie along another axis (an MLP-mixer's token mixing): they pass, the weight stays
        pin_all(walk, "MatMul works along positions here, not along channels", w)
        return x
    columns = w.axis(inner, READS, walk.node.input[i])
    rows = w.axis(out_axis, WRITES)
    walk.ties.same(walk.channels(x, contracted, i), columns)
    return walk.place(rows, contracted, rank)
