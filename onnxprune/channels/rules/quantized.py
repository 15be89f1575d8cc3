"""Rules of quantized operators: the float rule, and scales and zero points that are cut together with it.

A constant behind DequantizeLinear stays the int8 constant that it is: DequantizeLinear hands the `Param` on, so
the conv that reads the dequantized value ties the channels of the int8 weight. A removed channel has the value
zero, which is its zero point: nothing is quantized anew.
"""

from __future__ import annotations

import numpy as np

from onnxprune.channels.rules.elementwise import elementwise, unary
from onnxprune.channels.rules.layout import concat
from onnxprune.channels.rules.linear import conv, gemm, matmul_weight
from onnxprune.channels.rules.registry import Value, Walk, pin_all, rule
from onnxprune.channels.rules.statistics import pool
from onnxprune.channels.ties import Ids, Param
from onnxprune.graph.operators import MICROSOFT


def _quantizers(walk: Walk, ids: Ids, *params: Value) -> None:
    """Scales and zero points, one per channel, go with the channel."""
    for p in params:
        if isinstance(p, Param) and len(p.shape) == 1 and p.shape[0] == len(ids) > 1:
            walk.ties.same(ids, p.axis(0))
            walk.ties.quantizers.add(p.use)
        elif isinstance(p, np.ndarray) or (isinstance(p, Param) and np.prod(p.shape) > 1):
            pin_all(walk, f"{walk.node.op_type} has scales in blocks or computed at run time", p, ids)


@rule("QuantizeLinear", "DequantizeLinear")
@rule("QuantizeLinear", "DequantizeLinear", domain=MICROSOFT)
def quantize(walk: Walk, x: Value, scale: Value, zero: Value = None, *rest: Value) -> Value:
    rank = len(walk.dims(0))
    if walk.attr("block_size", 0) and isinstance(x, Param):
        return _in_blocks(walk, x, walk.attr("axis", 1) % rank, scale, zero)
    if all(int(np.prod(walk.dims(i))) == 1 for i in range(1, len(walk.node.input))):
        return x
    axis = walk.attr("axis", 1) % rank if rank > 1 else 0
    assert x is not None
    ids = x.axis(axis) if isinstance(x, Param) else walk.channels(x, axis)
    _quantizers(walk, ids, scale, zero)
    return x if isinstance(x, Param) else walk.place(ids, axis, rank)


def _in_blocks(walk: Walk, x: Param, axis: int, *params: Value) -> Param:
    """One scale a block along an axis: along that one blocks go whole, along the others an index with its scales."""
    ids = x.axis(axis)
    first = ids[:: walk.attr("block_size")]
    walk.ties.same(ids, np.repeat(first, walk.attr("block_size"))[: len(ids)])
    for p in params:
        if isinstance(p, Param):
            for k in range(len(p.shape)):
                walk.ties.same(first if k == axis else x.axis(k), p.axis(k))
            walk.ties.quantizers.add(p.use)
        elif p is not None:
            pin_all(walk, f"{walk.node.op_type} has scales computed at run time", p, x)
    return x


@rule("DynamicQuantizeLinear")
def dynamic(walk: Walk, x: Value) -> list[Ids]:
    """Zero always lies in the range that it chooses, so zeros in the place of channels change nothing: it is masked."""
    if not isinstance(x, np.ndarray):
        return []
    if x.size > 1:
        axis = int(np.argmax(x.shape))
        line = walk.channels(x, axis)
        walk.ties.reads[(walk.key, 0)] = (axis, line)
        x = walk.place(line, axis, x.ndim)
    return [x]


@rule("QLinearConv")
def qlinear_conv(
    walk: Walk,
    x: Value,
    xs: Value,
    xz: Value,
    w: Value,
    ws: Value,
    wz: Value,
    ys: Value,
    yz: Value,
    b: Value = None,
) -> Ids:
    y = conv(walk, x, w, b)
    _quantizers(walk, y.reshape(-1), *(v for v in (ws, wz) if isinstance(v, Param) and v.shape))
    return y


@rule("ConvInteger")
def conv_integer(walk: Walk, x: Value, w: Value, xz: Value = None, wz: Value = None) -> Ids:
    y = conv(walk, x, w)
    _quantizers(walk, y.reshape(-1), wz)
    return y


@rule("QLinearMatMul")
def qlinear_matmul(walk: Walk, a: Value, as_: Value, az: Value, b: Value, bs: Value, bz: Value, *out: Value) -> Ids:
    return _integer_product(walk, a, b, bs, bz)


@rule("MatMulInteger")
def matmul_integer(walk: Walk, a: Value, b: Value, az: Value = None, bz: Value = None) -> Ids:
    return _integer_product(walk, a, b, bz)


def _integer_product(walk: Walk, a: Value, b: Value, *params: Value) -> Ids:
    if not isinstance(a, np.ndarray) or not isinstance(b, Param) or len(b.shape) != 2:
        why = f"{walk.node.op_type} without a constant matrix on its right"
        pin_all(walk, why, a, b)
        return walk.dead(0, why)
    y = matmul_weight(walk, a, 0, a.ndim - 1, b, 1)
    _quantizers(walk, y.reshape(-1), *params)
    return y


@rule("QGemm", domain=MICROSOFT)
def qgemm(
    walk: Walk, a: Value, as_: Value, az: Value, b: Value, bs: Value, bz: Value, c: Value = None, *out: Value
) -> Ids:
    y = gemm(walk, a, b, c)
    _quantizers(walk, y.reshape(-1), bs, bz)
    return y


@rule("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def qlinear_elementwise(walk: Walk, *values: Value) -> Ids:
    return elementwise(walk, values[0], values[3], at=(0, 3))


@rule("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(walk: Walk, *values: Value) -> Ids:
    at = range(2, len(values), 3)
    return concat(walk, *(values[i] for i in at), at=at)


@rule("QLinearSigmoid", "QLinearLeakyRelu", domain=MICROSOFT)
def qlinear_unary(walk: Walk, x: Value, *params: Value) -> list[Ids]:
    return unary(walk, x)


@rule("QLinearGlobalAveragePool", "QLinearAveragePool", domain=MICROSOFT)
def qlinear_pool(walk: Walk, x: Value, *params: Value) -> list[Ids]:
    if walk.attr("channels_last", 0):
        pin_all(walk, "channels come last", x)
    return pool(walk, x)
