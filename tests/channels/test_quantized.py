"""Quantized graphs: int8 weights stay int8, and their scales, zero points and int32 biases are cut with them.

Scales are powers of two, so that sums are exact in float32 whatever their order and no rounding of a
QuantizeLinear can tip over.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.channels import removed_cuts
from tests.channels import surgery
from tests.channels.test_rules import Row
from tests.rewrite.steps import cut

ROWS: list[Row] = []


def row(name: str, text: str, widths: list[int], *pins: str, opset: int = 18) -> None:
    ROWS.append(Row(name, text, widths, pins, opset))


# fmt: off
S, Z = "float s = {0.125}", "int8 z = {3}"
ACT = "q{0} = QuantizeLinear({1}, s, z) {0} = DequantizeLinear(q{0}, s, z)"
row("QDQ, one scale a channel", f"""(float[N,3,8,8] x) => (float[] y)
    <{S}, {Z}, int8[8,3,3,3] w, float[8] exact_w, int8[8] zw, int32[8] b, float[8] exact_b, int32[8] zb,
     int8[4,8,1,1] v, float[4] exact_v>
    {{ {ACT.format("a", "x")} dw = DequantizeLinear<axis=0>(w, exact_w, zw) db = DequantizeLinear<axis=0>(b, exact_b, zb)
       h = Conv<pads=[1,1,1,1]>(a, dw, db) {ACT.format("c", "h")} r = Relu(c)
       dv = DequantizeLinear<axis=0>(v, exact_v) y = Conv(r, dv) }}""", [8])
row("QDQ, one scale for all", f"""(float[N,3,8,8] x) => (float[] y)
    <{S}, {Z}, int8[8,3,3,3] w, int8[8,8,3,3] u, int32[8] b, int8[4,8,1,1] v>
    {{ {ACT.format("a", "x")} dw = DequantizeLinear(w, s) db = DequantizeLinear(b, s)
       h = Conv<pads=[1,1,1,1]>(a, dw, db) {ACT.format("c", "h")} du = DequantizeLinear(u, s)
       g = Conv<pads=[1,1,1,1]>(c, du, db) {ACT.format("d", "g")} e = Add(c, d) {ACT.format("f", "e")}
       dv = DequantizeLinear(v, s) y = Conv(f, dv) }}""", [8])
row("QDQ, one dequantized weight for two convs", f"""(float[1,3,8,8] x) => (float[] y)
    <{S}, int8[8,3,3,3] w, int8[8,8,1,1] u, float[8] exact_u, int8[4,8,1,1] v>
    {{ dw = DequantizeLinear(w, s) du = DequantizeLinear<axis=0>(u, exact_u) dv = DequantizeLinear(v, s)
       h = Conv(x, dw) a = Conv(h, du) b = Conv(a, du) y = Conv(b, dv) }}""", [8])
row("QDQ, grouped and depthwise", f"""(float[1,3,8,8] x) => (float[] y)
    <{S}, int8[8,3,3,3] w, int8[8,1,3,3] d, float[8] exact_d, int8[12,4,1,1] g, float[12] exact_g, int8[4,12,1,1] v>
    {{ dw = DequantizeLinear(w, s) dd = DequantizeLinear<axis=0>(d, exact_d) dg = DequantizeLinear<axis=0>(g, exact_g)
       h = Conv(x, dw) a = Conv<group=8>(h, dd) b = Conv<group=2>(a, dg) dv = DequantizeLinear(v, s) y = Conv(b, dv) }}""",
    [4, 6])
row("QDQ, transposed conv, scales along axis 1", f"""(float[1,3,8,8] x) => (float[] y)
    <{S}, int8[8,3,3,3] w, int8[8,6,2,2] t, float[6] exact_t, int8[4,6,1,1] v>
    {{ dw = DequantizeLinear(w, s) h = Conv(x, dw) dt = DequantizeLinear<axis=1>(t, exact_t)
       a = ConvTranspose<strides=[2,2]>(h, dt) dv = DequantizeLinear(v, s) y = Conv(a, dv) }}""", [6, 8])
row("QDQ, dense layers, one behind Transpose", f"""(float[N,12] x) => (float[] y)
    <{S}, int8[10,12] w, float[10] exact_w, int32[10] b, int8[12,16] u, int8[10,16] t, float[10] exact_t, int8[6,10] v>
    {{ dw = DequantizeLinear<axis=0>(w, exact_w) db = DequantizeLinear<axis=0>(b, exact_w)
       h = Gemm<transB=1>(x, dw, db) r = Relu(h) dt = DequantizeLinear<axis=0>(t, exact_t) a = MatMul(r, dt)
       dv = DequantizeLinear(v, s) tv = Transpose(dv) i = Slice(a, zero, ten, one) y = MatMul(i, tv) }}""".replace(
    "int8[12,16] u", "int64[1] zero = {0}, int64[1] ten = {10}, int64[1] one = {1}"), [6, 10, 10])
row("QDQ, float weights quantized in the graph", f"""(float[1,3,8,8] x) => (float[] y)
    <{S}, {Z}, float[8,3,3,3] w, float[8] exact_w, int8[8] zw, float[5,8] v, float[5] b, int8 zz = {{0}}>
    {{ qw = QuantizeLinear<axis=0>(w, exact_w, zw) dw = DequantizeLinear<axis=0>(qw, exact_w, zw) h = Conv(x, dw)
       p = GlobalAveragePool(h) f = Flatten(p) {ACT.format("c", "f")} qv = QuantizeLinear(v, s, zz)
       dv = DequantizeLinear(qv, s, zz) t = Transpose<perm=[1,0]>(dv) m = MatMul(c, t) y = Add(m, b) }}""", [8])
row("QDQ, scales of an activation a channel", f"""(float[1,3,8,8] x) => (float[] y)
    <{S}, float[8,3,3,3] w, float[8] exact_a, uint8[8] za, float[4,8,1,1] v>
    {{ h = Conv(x, w) q = QuantizeLinear<axis=1>(h, exact_a, za) d = DequantizeLinear<axis=1>(q, exact_a, za)
       y = Conv(d, v) }}""", [8])
row("QDQ, quantized embedding and position table", f"""(int64[N,6] x) => (float[] y)
    <{S}, int8[10,8] e, int8[6,8] p, float[8,5] v>
    {{ de = DequantizeLinear(e, s) dp = DequantizeLinear(p, s) m = Gather(de, x) a = Add(m, dp) y = MatMul(a, v) }}""", [8],
    "looked up")
row("QDQ, scales in blocks", f"""(float[1,8] x) => (float[] y)
    <float[8,6] u, int8[6,4] w, float[3,4] exact_w, {S}>
    {{ h = MatMul(x, u) d = DequantizeLinear<axis=0, block_size=2>(w, exact_w) y = MatMul(h, d) }}""", [3],
    "model output", opset=21)
row("QDQ, a dequantized weight is an output too", f"""(float[1,3,8,8] x) => (float[] y, float[] d)
    <{S}, int8[8,3,3,3] w, float[4,8,1,1] v> {{ d = DequantizeLinear(w, s) h = Conv(x, d) y = Conv(h, v) }}""", [],
    "model output")
row("QLinearConv", f"""(uint8[1,3,8,8] x) => (uint8[] y)
    <{S}, uint8 z = {{128}}, int8[8,3,3,3] w, float[8] exact_w, int8[8] zw, int32[8] b, float t = {{2.0}},
     int8[8,1,3,3] d, float[8] exact_d, int8[8] zd, int8[6,4,1,1] g, int8[4,6,1,1] v, int8 zv = {{2}}>
    {{ h = QLinearConv<pads=[1,1,1,1]>(x, s, z, w, exact_w, zw, t, z, b)
       a = QLinearConv<group=8>(h, t, z, d, exact_d, zd, t, z) c = QLinearConv<group=2>(a, t, z, g, s, zv, t, z)
       y = QLinearConv(c, t, z, v, s, zv, t, z) }}""", [3, 4])
row("QLinearMatMul", f"""(uint8[2,12] x) => (uint8[] y)
    <{S}, uint8 z = {{128}}, int8[12,8] w, float[8] exact_w, int8[8] zw, float t = {{2.0}}, int8[8,5] v, int8 zv = {{0}}>
    {{ h = QLinearMatMul(x, s, z, w, exact_w, zw, t, z) y = QLinearMatMul(h, t, z, v, s, zv, t, z) }}""", [8])
row("ConvInteger and MatMulInteger", """(uint8[1,3,4,4] x) => (int32[] y)
    <uint8 z = {128}, uint8[8,3,4,4] w, uint8 zw = {120}, float[8] exact_b, int8[8,5] v, int64[2] t = {1,8}, float s = {8.0}>
    { h = ConvInteger(x, w, z, zw) f = Cast<to=1>(h) r = Reshape(f, t) q = QuantizeLinear(r, s, z)
      y = MatMulInteger(q, v, z) }""", [8])
row("dynamic quantization", """(float[1,12] x) => (float[] y)
    <float[12,8] u, int8[8,5] w>
    { h = MatMul(x, u) q, s, z = DynamicQuantizeLinear(h) m = MatMulInteger(q, w, z) f = Cast<to=1>(m) y = Mul(f, s) }""",
    [8])
row("dynamic quantization, a scale a channel", """(float[1,3,6,6] x) => (float[] y)
    <uint8[8,3,3,3] w, float[1,8,1,1] pos_w, uint8 zw = {120}, float[1,8,1,1] b, uint8[4,8,1,1] v, float pos_v>
    { q, s, z = DynamicQuantizeLinear(x) m = ConvInteger(q, w, z, zw) f = Cast<to=1>(m) t = Mul(s, pos_w) g = Mul(f, t) h = Add(g, b) r = Relu(h)
      q2, s2, z2 = DynamicQuantizeLinear(r) m2 = ConvInteger(q2, v, z2, zw) f2 = Cast<to=1>(m2) t2 = Mul(s2, pos_v) y = Mul(f2, t2) }""", [8])
row("quantized operators of ORT", f"""(uint8[1,3,8,8] x) => (uint8[] y)
    <{S}, uint8 z = {{128}}, int8[8,3,3,3] w, int8 zv = {{0}}, float t = {{2.0}}, int8[8,8,1,1] u, int8[5,16] v, int32[5] b,
     uint8[1,8,1,1] k>
    {{ h = QLinearConv(x, s, z, w, s, zv, t, z) g = QLinearConv(h, t, z, u, s, zv, t, z)
       a = com.microsoft.QLinearAdd(h, t, z, g, t, z, t, z) e = com.microsoft.QLinearSigmoid(a, t, z, s, z)
       l = com.microsoft.QLinearLeakyRelu(e, s, z, t, z) k2 = com.microsoft.QLinearMul(l, t, z, k, s, z, t, z)
       c = com.microsoft.QLinearConcat<axis=1>(t, z, k2, t, z, e, s, z)
       o = com.microsoft.QLinearAveragePool<kernel_shape=[1,1]>(c, t, z, t, z)
       p = com.microsoft.QLinearGlobalAveragePool(o, t, z, t, z) f = Flatten(p)
       y = com.microsoft.QGemm<transB=1>(f, t, z, v, s, zv, b, t, z) }}""", [8])
# fmt: on


@pytest.mark.parametrize("case", surgery.rows(ROWS))
def test_quantized(case: Row) -> None:
    model = surgery.model_of(case.text, case.opset)
    graph, channels = surgery.find(model)
    assert sorted(g.width for g in channels.groups) == case.widths
    reasons = "\n".join(p.reason for p in channels.pinned)
    assert all(fragment in reasons for fragment in case.pins), reasons
    surgery.assert_explained(graph, channels)
    for how in ("half", "one", 1, 2):
        pruned = surgery.assert_exact(model, graph, channels, how)
        dtypes = {t.name: t.data_type for t in pruned.graph.initializer}
        assert all(dtypes.get(t.name, t.data_type) == t.data_type for t in model.graph.initializer)


def _small_net() -> onnx.ModelProto:
    text = """(float[1,3,16,16] x) => (float[1,5] y)
        <float[8,3,3,3] w0, float[8] b0, float[8,1,3,3] w1, float[8] b1, float[8,8,1,1] w2, float[8] b2, float[5,8] w3,
         float[5] b3>
        { a = Conv<pads=[1,1,1,1]>(x, w0, b0) b = Relu(a) c = Conv<pads=[1,1,1,1], group=8>(b, w1, b1) d = Relu(c)
          e = Conv(d, w2, b2) f = Add(e, b) g = GlobalAveragePool(f) h = Flatten(g) y = Gemm<transB=1>(h, w3, b3) }"""
    return surgery.model_of(text, 13)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_what_onnxruntime_quantizes(tmp_path, form: str, per_channel: bool) -> None:
    """Files of quantize_static. Rounding may tip over by a step of the output's scale: its scales are free."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    model = _small_net()
    onnx.save(model, tmp_path / "m.onnx")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [surgery.feeds_of(model, seed=k) for k in range(3)]

        def get_next(self):
            return self.left.pop() if self.left else None

    quantization.quantize_static(
        tmp_path / "m.onnx",
        tmp_path / "q.onnx",
        Reader(),
        quant_format=quantization.QuantFormat[form],
        per_channel=per_channel,
    )
    quantized = onnx.load(tmp_path / "q.onnx")
    graph, channels = surgery.find(quantized)
    assert sorted(g.width for g in channels.groups) == [8], channels.pinned
    alive = channels.alive(surgery.choose(channels, "half"))
    pruned = cut(graph, channels, alive)
    feeds = surgery.feeds_of(quantized, seed=9)
    (wanted,) = surgery.run(surgery.masked(quantized, removed_cuts(graph, channels, alive)), feeds)
    (found,) = surgery.run(pruned, feeds)
    assert np.abs(wanted - found).max() <= 0.02 * np.abs(wanted).max()
    kinds = {t.name: numpy_helper.to_array(t).dtype for t in quantized.graph.initializer}
    assert all(numpy_helper.to_array(t).dtype == kinds[t.name] for t in pruned.graph.initializer if t.name in kinds)
