"""Rows of recurrent layers, sums by letters, indices, warps, reductions over channels, and what optimisers fuse.

Widths are those of a cut by hand; as in `test_rules`, the cut model must equal the masked original.
"""

from __future__ import annotations

import math

import pytest

import onnxprune
from tests.channels import surgery
from tests.channels.test_rules import Row
from tests.channels.test_rules import test_cut_is_exact as cut_is_exact
from tests.channels.test_rules import test_widths_and_reasons as widths_and_reasons

ROWS: list[Row] = []
STEM = "float[8,3,3,3] w0, float[8] b0"


def row(name: str, text: str, widths: list[int], *pins: str, opset: int = 18) -> None:
    ROWS.append(Row(name, text, widths, pins, opset))


def net(name: str, weights: str, body: str, widths: list[int], *pins: str, read: int = 8, opset: int = 18) -> None:
    """A row that is the middle of a small net: a conv makes 8 channels `h`, another reads `z`."""
    text = f"""(float[N,3,8,8] x) => (float[] y) <{STEM}, float[4,{read},1,1] w9{", " * bool(weights)}{weights}>
        {{ h = Conv<pads=[1,1,1,1]>(x, w0, b0) {body} y = Conv(z, w9) }}"""
    row(name, text, widths, *pins, opset=opset)


def numbers(declared: str, below: int) -> str:
    """A constant of indices: `int64[2,3] i`, below a size."""
    count = math.prod(int(d) for d in declared[declared.index("[") + 1 : declared.index("]")].split(","))
    return f"{declared} = {{{', '.join(str(7 * k % below) for k in range(count))}}}"


# fmt: off
# -- recurrent layers -------------------------------------------------------------------------------------------------

STEPS = "(float[6,2,12] x) => (float[] y)"
row("LSTM, its states read as well", f"""{STEPS} <float[1,20,12] w, float[1,20,5] r, float[1,40] b, float[5,3] v>
    {{ o, h, c = LSTM<hidden_size=5>(x, w, r, b) a = Add(o, h) m = Mul(a, c) y = MatMul(m, v) }}""", [5])
row("LSTM both ways, joined", f"""{STEPS} <float[2,20,12] w, float[2,20,5] r, float[2,40] b, float[10,3] v, int64[3] s = {{0, 0, -1}}>
    {{ o = LSTM<hidden_size=5, direction="bidirectional">(x, w, r, b) t = Transpose<perm=[0,2,1,3]>(o)
       f = Reshape(t, s) y = MatMul(f, v) }}""", [5])
row("LSTM after LSTM", f"""{STEPS} <float[2,20,12] w, float[2,20,5] r, float[2,40] b, float[1,16,10] u, float[1,16,4] q, float[4,3] v,
    int64[3] s = {{0, 0, -1}}, int64[1] one = {{1}}>
    {{ o = LSTM<hidden_size=5, direction="bidirectional">(x, w, r, b) t = Transpose<perm=[0,2,1,3]>(o) f = Reshape(t, s)
       p = LSTM<hidden_size=4>(f, u, q) g = Squeeze(p, one) y = MatMul(g, v) }}""", [4, 5])
row("LSTM with peepholes, lengths and given states", """(float[6,2,12] x) => (float[] y)
    <float[1,20,12] w, float[1,20,5] r, float[1,40] b, int32[2] n = {6, 4}, float[1,2,5] h0, float[1,2,5] c0, float[1,15] p, float[5,3] v>
    { o = LSTM<hidden_size=5>(x, w, r, b, n, h0, c0, p) y = MatMul(o, v) }""", [5])
row("LSTM that starts with what a layer makes", """(float[6,2,12] x, float[2,7] z) => (float[] y)
    <float[1,20,12] w, float[1,20,5] r, float[7,5] u, float[5] d, float[5,3] v, int64[1] zero = {0}>
    { g = Gemm(z, u, d) h0 = Unsqueeze(g, zero) c0 = Tanh(h0) o = LSTM<hidden_size=5>(x, w, r, , , h0, c0) y = MatMul(o, v) }""", [5])
row("LSTM that starts with zeros of any batch", """(float[6,N,12] x) => (float[] y)
    <float[2,20,12] w, float[2,20,5] r, float[2,40] b, float[5,3] v, int64[1] i = {1}, int64[1] two = {2}, int64[1] five = {5}>
    { s = Shape(x) n = Gather(s, i) k = Concat<axis=0>(two, n, five) e = ConstantOfShape(k)
      o = LSTM<hidden_size=5, direction="bidirectional">(x, w, r, b, , e, e) y = MatMul(o, v) }""", [5])
row("LSTM, only its last state is read", f"""{STEPS} <float[1,20,12] w, float[1,20,5] r, float[5,3] v>
    {{ , h = LSTM<hidden_size=5>(x, w, r) y = MatMul(h, v) }}""", [5])
row("LSTM that hands its output out", """(float[6,2,12] x) => (float[] y, float[] o) <float[1,20,12] w, float[1,20,5] r, float[5,3] v>
    { o = LSTM<hidden_size=5>(x, w, r) y = MatMul(o, v) }""", [], "model output")
row("LSTM with its bias computed at run time", """(float[6,2,12] x, float[1,40] b) => (float[] y) <float[1,20,12] w, float[1,20,5] r, float[5,3] v>
    { o = LSTM<hidden_size=5>(x, w, r, b) y = MatMul(o, v) }""", [], "model input")
row("LSTM with weights computed at run time", """(float[6,2,12] x, float[1,20,8] w) => (float[] y) <float[12,8] u, float[1,20,5] r, float[5,3] v>
    { m = MatMul(x, u) o = LSTM<hidden_size=5>(m, w, r) y = MatMul(o, v) }""", [], "computed at run time")
for reset in (0, 1):
    row(f"GRU, linear_before_reset={reset}", f"""{STEPS} <float[1,15,12] w, float[1,15,5] r, float[1,30] b, float[1,2,5] h0, float[5,3] v>
        {{ o = GRU<hidden_size=5, linear_before_reset={reset}>(x, w, r, b, , h0) y = MatMul(o, v) }}""", [5])
row("RNN backwards", f"""{STEPS} <float[1,5,12] w, float[1,5,5] r, float[1,10] b, float[5,3] v>
    {{ o = RNN<hidden_size=5, direction="reverse", activations=["Relu"]>(x, w, r, b) y = MatMul(o, v) }}""", [5])
QLSTM = "int8[2,12,20] w, int8[2,5,20] r, float[2,40] b"
row("DynamicQuantizeLSTM", f"""{STEPS} <{QLSTM}, float[2] pos_w = {{0.01, 0.02}}, int8[2] z = {{3, 3}}, float[5,3] v>
    {{ o, h, c = com.microsoft.DynamicQuantizeLSTM<hidden_size=5, direction="bidirectional">(x, w, r, b, , , , , pos_w, z, pos_w, z)
       a = Add(o, h) y = MatMul(a, v) }}""", [5])
row("DynamicQuantizeLSTM, a scale for every row", f"""{STEPS} <{QLSTM}, float[2,20] pos_w, int8[2,20] z = {{{", ".join("0" * 40)}}}, float[5,3] v>
    {{ o = com.microsoft.DynamicQuantizeLSTM<hidden_size=5, direction="bidirectional">(x, w, r, b, , , , , pos_w, z, pos_w, z) y = MatMul(o, v) }}""", [5])
row("DynamicQuantizeLSTM, zero points that differ", f"""{STEPS} <{QLSTM}, float[2] pos_w, int8[2] z = {{3, 5}}, float[5,3] v>
    {{ o = com.microsoft.DynamicQuantizeLSTM<hidden_size=5, direction="bidirectional">(x, w, r, b, , , , , pos_w, z, pos_w, z) y = MatMul(o, v) }}""",
    [], "different zero points")
row("a text reader: conv, LSTM, classifier", """(float[N,1,8,16] x) => (float[] y)
    <float[6,1,8,3] k, float[2,20,6] w, float[2,20,5] r, float[2,40] b, float[10,3] v, int64[1] two = {2}, int64[3] s = {0, 0, -1}>
    { c = Conv<pads=[0,1,0,1]>(x, k) a = Relu(c) q = Squeeze(a, two) t = Transpose<perm=[2,0,1]>(q)
      o = LSTM<hidden_size=5, direction="bidirectional">(t, w, r, b) p = Transpose<perm=[0,2,1,3]>(o) f = Reshape(p, s)
      y = MatMul(f, v) }""", [5, 6])

# -- sums by letters --------------------------------------------------------------------------------------------------

SEQ = "(float[N,6,12] x) => (float[] y)"
row("Einsum, implied output", f"""{SEQ} <float[12,8] w, float[8,5] v>
    {{ m = Einsum<equation="bnc, cd">(x, w) r = Relu(m) y = Einsum<equation="bcn,ca">(r, v) }}""", [8])
row("Einsum, dots and implied output", f"""{SEQ} <float[12,8] w, float[8,5] v>
    {{ m = Einsum<equation="...c,cd">(x, w) y = Einsum<equation="...c,cd">(m, v) }}""", [8])
row("Einsum of maps, the weight first", """(float[1,3,4,4] x) => (float[] y) <float[8,3] w, float[5,8] v>
    { m = Einsum<equation="oi,bihw->bohw">(w, x) r = Relu(m) y = Einsum<equation="oi,bi...->bo...">(v, r) }""", [8])
row("Keras attention: weights of three axes", f"""{SEQ}
    <float[12,2,4] wq, float[12,2,4] wk, float[12,2,4] wv, float[2,4] bq, float[2,4,5] wo>
    {{ q0 = Einsum<equation="abc,cde->abde">(x, wq) q = Add(q0, bq) k = Einsum<equation="abc,cde->abde">(x, wk)
       v = Einsum<equation="abc,cde->abde">(x, wv) s = Einsum<equation="aecd,abcd->acbe">(k, q) a = Softmax<axis=3>(s)
       c = Einsum<equation="acbe,aecd->abcd">(a, v) y = Einsum<equation="abcd,cde->abe">(c, wo) }}""", [4, 4])
row("Einsum, a weight of three axes read by heads", f"""{SEQ} <float[12,4,2] w, float[4,2,5] v>
    {{ m = Einsum<equation="abc,cde->abde">(x, w) r = Relu(m) y = Einsum<equation="abcd,cde->abe">(r, v) }}""", [4])
row("Einsum by groups, whole groups", """(float[N,6,4,2] x) => (float[] y) <float[2,3] u, float[4,3,2] w, float[4,2,5] v>
    { h = Einsum<equation="bngi,ij->bngj">(x, u) m = Einsum<equation="bngi,gio->bngo">(h, w)
      y = Einsum<equation="bngo,god->bnd">(m, v) }""", [2, 3])
row("Einsum, a scale for every channel", f"""{SEQ} <float[12,8] w, float[8] s, float[8,5] v>
    {{ m = MatMul(x, w) z = Einsum<equation="bnc,c->bnc">(m, s) y = MatMul(z, v) }}""", [8])
row("Einsum, a factor for every head and channel", f"""{SEQ} <float[12,8] w, float[2,4] s, float[8,5] v, int64[4] a = {{0, 0, 2, 4}}, int64[3] b = {{0, 0, 8}}>
    {{ m = MatMul(x, w) r = Reshape(m, a) z = Einsum<equation="bnhd,hd->bnhd">(r, s) f = Reshape(z, b) y = MatMul(f, v) }}""", [4])
row("Einsum of one operand", f"""{SEQ} <float[12,8] w, float[5,8] v>
    {{ m = MatMul(x, w) t = Einsum<equation="bnc->bcn">(m) y = MatMul(v, t) }}""", [8])
row("Einsum sums over channels", f"""{SEQ} <float[12,8] w, float[8,5] v>
    {{ m = MatMul(x, w) s = Einsum<equation="bnc->bn">(m) z = Einsum<equation="bnc,bn->bnc">(m, s) y = MatMul(z, v) }}""", [8])
row("Einsum of three", f"""{SEQ} <float[12,8] w, float[12,8] u, float[8,5] v>
    {{ m = MatMul(x, w) g = MatMul(x, u) y = Einsum<equation="bnc,bnc,cd->bnd">(m, g, v) }}""", [8])
row("Einsum takes a diagonal", """(float[1,6,6] x) => (float[] y) <float[6,8] w, float[8,6] u, float[6,5] v>
    { m = MatMul(x, w) q = MatMul(m, u) d = Einsum<equation="bii->bi">(q) y = MatMul(d, v) }""", [8], "diagonal")
row("Einsum along positions", f"""{SEQ} <float[12,8] w, float[6,7] p, float[8,5] v>
    {{ m = MatMul(x, w) z = Einsum<equation="bnc,nk->bkc">(m, p) y = MatMul(z, v) }}""", [8], "Einsum")
row("Einsum, linear attention", f"""{SEQ} <float[12,8] wk, float[12,8] wv, float[12,8] wq, float[8,5] wo>
    {{ k = MatMul(x, wk) v = MatMul(x, wv) q = MatMul(x, wq) c = Einsum<equation="bnd,bne->bde">(k, v)
       o = Einsum<equation="bnd,bde->bne">(q, c) y = MatMul(o, wo) }}""", [8])
row("Einsum by groups of a window", """(float[N,6,8] x) => (float[] y) <float[8,12] w, float[3,4,4] g, float[12,5] v, int64[4] a = {0, 0, 3, 4}, int64[3] b = {0, 0, 12}>
    { m = MatMul(x, w) r = Reshape(m, a) z = Einsum<equation="bngi,gio->bngo">(r, g) f = Reshape(z, b) y = MatMul(f, v) }""", [4, 4])
row("MatMul of a stack, one matrix for each group", """(float[2,3,6,12] x) => (float[] y) <float[12,8] w, float[3,8,7] u, float[7,5] v>
    { m = MatMul(x, w) z = MatMul(m, u) y = MatMul(z, v) }""", [7, 8])
row("MatMul with a vector", f"""{SEQ} <float[12,8] w, float[8] v> {{ m = MatMul(x, w) y = MatMul(m, v) }}""", [8])
row("FusedMatMul", f"""{SEQ} <float[8,12] w, float[8,5] v>
    {{ m = com.microsoft.FusedMatMul<transB=1, alpha=0.5>(x, w) y = com.microsoft.FusedMatMul(m, v) }}""", [8])
row("FusedMatMul of two activations", f"""{SEQ} <float[12,8] wq, float[12,8] wk, float[12,8] wv, float[8,5] wo>
    {{ q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) s = com.microsoft.FusedMatMul<transB=1, alpha=0.3>(q, k)
       a = Softmax<axis=-1>(s) c = MatMul(a, v) y = MatMul(c, wo) }}""", [8, 8])
row("TransposeMatMul", """(float[12,6] x) => (float[] y) <float[12,8] w, float[8,5] v>
    { m = com.microsoft.TransposeMatMul<transA=1>(x, w) y = MatMul(m, v) }""", [8])

# -- convolutions by activations, by offsets, and fused ---------------------------------------------------------------

row("cross-correlation", """(float[1,3,6,6] z, float[1,3,9,9] x) => (float[] y) <float[8,3,3,3] w, float[8] b>
    { k = Conv(z, w, b) h = Conv(x, w, b) y = Conv(h, k) }""", [8])
row("cross-correlation by channel", """(float[1,3,6,6] z, float[1,3,9,9] x) => (float[] y)
    <float[8,3,3,3] w, float[8,3,3,3] u, float[5,8,1,1] v, int64[4] a = {8, 1, 4, 4}>
    { k = Conv(z, w) h = Conv(x, u) r = Reshape(k, a) c = Conv<group=8>(h, r) y = Conv(c, v) }""", [8])
row("cross-correlation with kernels for several answers", """(float[1,3,6,6] z, float[1,3,9,9] x) => (float[] y)
    <float[16,3,3,3] w, float[8,3,3,3] u, int64[4] a = {2, 8, 4, 4}>
    { k = Conv(z, w) h = Conv(x, u) r = Reshape(k, a) y = Conv(h, r) }""", [8])
row("a conv whose kernel a layer makes", """(float[1,3,8,8] x) => (float[] y)
    <float[3,216] u, float[216] c, float[3,8] m, float[8] n, float[5,8,1,1] v, int64[4] a = {8, 3, 3, 3}, int64[1] e = {8}>
    { p = GlobalAveragePool(x) f = Flatten(p) g = Gemm(f, u, c) k = Reshape(g, a) d = Gemm(f, m, n) b = Reshape(d, e)
      h = Conv(x, k, b) r = Relu(h) y = Conv(r, v) }""", [8])
row("a grouped conv by an activation", """(float[1,4,6,6] x, float[8,2,3,3] k) => (float[] y) <float[8,4,1,1] w, float[4,8,1,1] u, float[5,8,1,1] v>
    { a = Conv(x, w) b = Conv(a, u) h = Conv<group=2>(b, k) y = Conv(h, v) }""", [8], "model input")
row("a conv of a batch, each image with kernels that a router mixes", """(float[2,3,8,8] x) => (float[] y) <float[8,3,3,3] w0, float[8,2] t,
    float[2,432] e, int64[4] s = {12, 8, 3, 3}, int64[4] a = {1, 16, 8, 8}, int64[4] b = {2, 6, 6, 6}, float[5,6,1,1] v>
    { h = Conv<pads=[1,1,1,1]>(x, w0) p = GlobalAveragePool(h) f = Flatten(p) r = MatMul(f, t) g = Sigmoid(r) k = MatMul(g, e) q = Reshape(k, s)
      m = Reshape(h, a) c = Conv<group=2>(m, q) d = Reshape(c, b) y = Conv(d, v) }""", [2, 8])
DEFORM = "float[18,8,3,3] wo, float[6,8,3,3] w, float[6] b"
net("DeformConv", DEFORM, "o = Conv<pads=[1,1,1,1]>(h, wo) z = DeformConv<pads=[1,1,1,1]>(h, w, o, b)", [6, 8], read=6, opset=19)
net("DeformConv with a mask", f"{DEFORM}, float[9,8,3,3] wm", """o = Conv<pads=[1,1,1,1]>(h, wo) k = Conv<pads=[1,1,1,1]>(h, wm)
    m = Sigmoid(k) z = DeformConv<pads=[1,1,1,1]>(h, w, o, b, m)""", [6, 8], "used as offsets", read=6, opset=19)
net("DeformConv, offsets in groups", "float[36,8,3,3] wo, float[6,8,3,3] w", """o = Conv<pads=[1,1,1,1]>(h, wo)
    z = DeformConv<pads=[1,1,1,1], offset_group=2>(h, w, o)""", [4, 6], read=6, opset=19)
net("DeformConv in groups", "float[18,8,3,3] wo, float[6,4,3,3] w", """o = Conv<pads=[1,1,1,1]>(h, wo)
    z = DeformConv<pads=[1,1,1,1], group=2>(h, w, o)""", [3, 4], read=6, opset=19)
net("DeformConv, depthwise", "float[18,8,3,3] wo, float[8,1,3,3] w", """o = Conv<pads=[1,1,1,1]>(h, wo)
    z = DeformConv<pads=[1,1,1,1], group=8>(h, w, o)""", [8], opset=19)
net("FusedConv", "float[6,8,3,3] w, float[6] b", 'z = com.microsoft.FusedConv<activation="Relu">(h, w, b)', [6, 8], read=6)
net("FusedConv that adds", "float[8,8,3,3] w, float[8] b", 'z = com.microsoft.FusedConv<activation="Relu", pads=[1,1,1,1]>(h, w, b, h)', [8])
net("FusedConv, depthwise", "float[8,1,3,3] w, float[8] b",
    'z = com.microsoft.FusedConv<activation="Clip", activation_params=[0.0, 6.0], group=8>(h, w, b)', [8])
row("FusedGemm", """(float[N,12] x) => (float[] y) <float[8,12] w, float[8] b, float[8,5] v>
    { h = com.microsoft.FusedGemm<transB=1, activation="Relu">(x, w, b) y = com.microsoft.FusedGemm<activation="Tanh">(h, v) }""", [8])
for op in ("BiasGelu", "FastGelu"):
    row(op, f"""{SEQ} <float[12,8] w, float[8] b, float[8,5] v> {{ h = MatMul(x, w) g = com.microsoft.{op}(h, b) y = MatMul(g, v) }}""", [8])
net("FastGelu without a bias", "", "z = com.microsoft.FastGelu(h)", [8])
row("SkipLayerNormalization", f"""{SEQ} <float[12,8] w, float[8] g, float[8] e, float[8] b, float[8,7] u, float[7,8] q, float[8,5] v>
    {{ h = MatMul(x, w) n, , , t = com.microsoft.SkipLayerNormalization(h, h, g, e, b) m = MatMul(n, u) r = Relu(m) k = MatMul(r, q)
       s = Add(t, k) y = MatMul(s, v) }}""", [7], "SkipLayerNormalization mixes")
row("SkipSimplifiedLayerNormalization", f"""{SEQ} <float[12,8] w, float[8] g, float[8,7] u, float[7,5] v>
    {{ h = MatMul(x, w) n = com.microsoft.SkipSimplifiedLayerNormalization(h, h, g) m = MatMul(n, u) y = MatMul(m, v) }}""", [7],
    "SkipSimplifiedLayerNormalization mixes")

row("Attention of ORT, whole heads", f"""{SEQ} <float[12,16] u, float[16,48] w, float[48] b, float[16,5] v>
    {{ h = MatMul(x, u) a = com.microsoft.Attention<num_heads=4>(h, w, b) y = MatMul(a, v) }}""", [4, 16])
row("Attention of ORT, values of another width, biased scores", f"""{SEQ} <float[12,40] w, float[40] b, float[1,4,6,6] s, float[8,5] v>
    {{ a = com.microsoft.Attention<num_heads=4, qkv_hidden_sizes=[16,16,8]>(x, w, b, , , s) y = MatMul(a, v) }}""", [4])
row("MultiHeadAttention of ORT", f"""{SEQ} <float[12,16] wq, float[12,16] wk, float[12,8] wv, float[40] b, float[8,5] v>
    {{ q = MatMul(x, wq) k = MatMul(x, wk) t = MatMul(x, wv) a = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, t, b) y = MatMul(a, v) }}""", [4])
row("MultiHeadAttention of ORT that hands on its keys", f"""{SEQ} <float[12,8] w, float[8,5] v>
    {{ q = MatMul(x, w) a, k, t = com.microsoft.MultiHeadAttention<num_heads=4>(q, q, q) y = MatMul(a, v) }}""", [], "outputs of its own")

GQA = "com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>"
row("GroupQueryAttention", f"""(float[1,6,16] x) => (float[] y) <float[16,32] wq, float[16,16] wk, float[16,16] wv, float[32,5] wo, int32[1,1] n = {{5}}, int32 t = {{6}}>
    {{ q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) o, a, b = {GQA}(q, k, v, , , n, t) y = MatMul(o, wo) }}""", [2])
row("GroupQueryAttention of queries, keys and values side by side, with a past", f"""(float[1,6,16] x) => (float[] y) <float[16,128] w, float[64,5] wo,
    float[1,2,2,16] pk, float[1,2,2,16] pv, int32[1,1] n = {{7}}, int32 t = {{8}}>
    {{ q = MatMul(x, w) o, a, b = {GQA}(q, , , pk, pv, n, t) y = MatMul(o, wo) }}""", [2])
row("GroupQueryAttention that hands on what it remembers", f"""(float[1,6,16] x) => (float[] y, float[] a) <float[16,32] wq, float[16,16] wk, float[16,16] wv,
    float[32,5] wo, int32[1,1] n = {{5}}, int32 t = {{6}}>
    {{ q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) o, a, b = {GQA}(q, k, v, , , n, t) y = MatMul(o, wo) }}""", [], "model output")

# -- indices and warps ------------------------------------------------------------------------------------------------

UNPOOL = "MaxUnpool<kernel_shape=[2,2], strides=[2,2]>"
net("MaxUnpool, a layer between", "float[8,8,3,3] u", f"""p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(h) c = Conv<pads=[1,1,1,1]>(p, u)
    z = {UNPOOL}(c, i)""", [8])
net("MaxUnpool to a size that is spelled out", "int64[4] s = {2, 8, 8, 8}", f"p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(h) z = {UNPOOL}(p, i, s)", [8])
net("MaxUnpool by places that something else reads too", "float[8,8,3,3] u", f"""p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(h) f = Cast<to=1>(i)
    c = Add(p, f) z = {UNPOOL}(c, i)""", [], "where in the whole tensor")
net("TopK over positions", "int64[1] k = {3}", "z, i = TopK<axis=3>(h, k)", [8])
net("TopK, its indices gather", "int64[1] k = {3}", "v, i = TopK<axis=2>(h, k) z = GatherElements<axis=2>(h, i)", [8])
net("TopK over channels", "int64[1] k = {3}", "z, i = TopK<axis=1>(h, k)", [], "TopK chooses", read=3)
FIRST = "int64[1] zero = {0}, int64[1] one = {1}, "
net("GatherElements by what is Constant", FIRST + numbers("int64[1,8,2,8] i", 8), "s = Slice(h, zero, one, zero) z = GatherElements<axis=2>(s, i)", [8])
net("GatherElements over channels", FIRST + numbers("int64[1,2,8,8] i", 8), "s = Slice(h, zero, one, zero) z = GatherElements<axis=1>(s, i)", [],
    "GatherElements goes by indices", read=2)
net("GatherElements from a part", FIRST + numbers("int64[1,5,2,8] i", 8), "s = Slice(h, zero, one, zero) z = GatherElements<axis=2>(s, i)", [],
    "from a part", read=5)
row("GatherElements of the best tokens", """(float[1,3,4,4] x) => (float[] y) <float[8,3,3,3] w, float[8,1] s, float[8,5] v,
    int64[3] f = {0, 8, -1}, int64[1] two = {2}, int64[1] three = {3}, int64[3] e = {1, 3, 8}>
    { h = Conv<pads=[1,1,1,1]>(x, w) q = Reshape(h, f) t = Transpose<perm=[0,2,1]>(q) c = MatMul(t, s) d = Squeeze(c, two)
      b, i = TopK<axis=1>(d, three) u = Unsqueeze(i, two) j = Expand(u, e) g = GatherElements<axis=1>(t, j) y = MatMul(g, v) }""", [8])
row("GatherElements by indices that Tile repeats", """(float[1,3,4,4] x) => (float[] y) <float[8,3,3,3] w, float[8,1] s, float[8,5] v,
    int64[3] f = {0, 8, -1}, int64[1] two = {2}, int64[1] three = {3}, int64[3] e = {1, 1, 8}>
    { h = Conv<pads=[1,1,1,1]>(x, w) q = Reshape(h, f) t = Transpose<perm=[0,2,1]>(q) c = MatMul(t, s) d = Squeeze(c, two)
      b, i = TopK<axis=1>(d, three) u = Unsqueeze(i, two) j = Tile(u, e) g = GatherElements<axis=1>(t, j) y = MatMul(g, v) }""", [8])
row("GatherElements by indices of a size computed at run time", """(float[1,3,4,4] x) => (float[] y) <float[8,3,3,3] w, float[8,1] s, float[8,5] v,
    int64[3] f = {0, 8, -1}, int64[1] two = {2}, int64[1] three = {3}, int64[2] b0 = {1, 3}, int64 at = {2}, int64[1] zero = {0}>
    { h = Conv<pads=[1,1,1,1]>(x, w) q = Reshape(h, f) t = Transpose<perm=[0,2,1]>(q) c = MatMul(t, s) d = Squeeze(c, two)
      b, i = TopK<axis=1>(d, three) u = Unsqueeze(i, two) n = Shape(t) m = Gather(n, at) o = Unsqueeze(m, zero)
      e = Concat<axis=0>(b0, o) j = Expand(u, e) g = GatherElements<axis=1>(t, j) y = MatMul(g, v) }""", [8])
row("points that Expand repeats, read by a layer", """(float[2,1,3] p, float[2,6,12] x) => (float[] y)
    <float[3,8] w, float[12,8] u, float[8,5] v, int64[3] e = {2, 6, 3}>
    { g = Expand(p, e) q = MatMul(g, w) m = MatMul(x, u) a = Add(q, m) y = MatMul(a, v) }""", [8])
row("a grey image that Expand makes three of", """(float[N,1,8,8] x) => (float[] y) <float[8,3,3,3] w, float[5,8,1,1] v, int64[4] e = {1, 3, 1, 1}>
    { g = Expand(x, e) h = Conv(g, w) y = Conv(h, v) }""", [3, 8])
row("GatherND of tokens", """(float[N,6,12] x) => (float[] y) <float[12,8] w, float[8,5] v, int64[3,2] i = {0, 1, 1, 3, 0, 5}>
    { h = MatMul(x, w) g = GatherND(h, i) y = MatMul(g, v) }""", [8])
row("GatherND in every sample", """(float[2,6,12] x) => (float[] y) <float[12,8] w, float[8,5] v, int64[2,3,1] i = {1, 2, 5, 0, 0, 4}>
    { h = MatMul(x, w) g = GatherND<batch_dims=1>(h, i) y = MatMul(g, v) }""", [8])
net("GatherND of channels", "int64[3,2] i = {0, 1, 0, 3, 0, 5}, int64[4] s = {1, 3, 8, 8}", "g = GatherND(h, i) z = Reshape(g, s)", [],
    "GatherND picks", read=3)
row("ScatterND of pillars into a map", """(float[5,6] x, int64[5,1] i) => (float[] y)
    <float[6,8] w, float[16,8] zeros, float[5,8,1,1] v, int64[4] s = {1, 8, 4, 4}>
    { h = MatMul(x, w) r = Relu(h) d = ScatterND(zeros, i, r) t = Transpose(d) m = Reshape(t, s) y = Conv(m, v) }""", [8])
row("ScatterND into what ConstantOfShape makes", """(float[5,6] x, int64[5,1] i) => (float[] y)
    <float[6,8] w, float[5,8,1,1] v, int64[2] z = {16, 8}, int64[4] s = {1, 8, 4, 4}>
    { h = MatMul(x, w) c = ConstantOfShape(z) d = ScatterND(c, i, h) t = Transpose(d) m = Reshape(t, s) y = Conv(m, v) }""", [8])
row("ScatterND of a constant into tokens", """(float[2,6,12] x) => (float[] y) <float[12,8] w, float[3,8] u, float[8,5] v, int64[3,2] i = {0, 1, 1, 3, 0, 5}>
    { h = MatMul(x, w) d = ScatterND<reduction="add">(h, i, u) y = MatMul(d, v) }""", [8])
row("ScatterElements along tokens", """(float[2,6,12] x, int64[2,3,8] i) => (float[] y) <float[12,8] w, float[12,8] u, float[8,5] v,
    int64[1] zero = {0}, int64[1] three = {3}, int64[1] one = {1}>
    { h = MatMul(x, w) k = MatMul(x, u) p = Slice(k, zero, three, one) d = ScatterElements<axis=1>(h, i, p) y = MatMul(d, v) }""", [],
    "model input")
row("ScatterElements by a constant", """(float[2,6,12] x) => (float[] y) <float[12,8] w, float[12,8] u, float[8,5] v,
    {I}, int64[1] zero = {0}, int64[1] three = {3}, int64[1] one = {1}>
    { h = MatMul(x, w) k = MatMul(x, u) p = Slice(k, zero, three, one) d = ScatterElements<axis=1, reduction="add">(h, i, p) y = MatMul(d, v) }""".replace("{I}", numbers("int64[2,3,8] i", 6)), [8])
row("ScatterElements into a constant", """(float[1,6,12] x) => (float[] y) <float[12,8] w, float[1,9,8] base, float[8,5] v, {I}>
    { h = MatMul(x, w) d = ScatterElements<axis=1, reduction="add">(base, i, h) y = MatMul(d, v) }""".replace("{I}", numbers("int64[1,6,8] i", 9)), [8])
row("ScatterElements as torch writes it, of a part as large as the indices", """(float[P,9] x, int64[P] i) => (float[] y)
    <float[9,8] w, float[4,8] base, float[5,8,1,1] v, int64[1] one = {1}, int64[2] e = {1, 8}, int64[2] zeros = {0, 0}, int64[4] s = {1, 8, 2, 2}>
    { h = MatMul(x, w) u = Unsqueeze(i, one) j = Expand(u, e) n = Shape(j) p = Slice(h, zeros, n)
      d = ScatterElements<axis=0, reduction="add">(base, j, p) t = Transpose(d) m = Reshape(t, s) y = Conv(m, v) }""", [8])
row("ScatterElements into a part", """(float[1,6,12] x) => (float[] y) <float[12,8] w, float[1,6,3] u, float[8,5] v, {I}>
    { h = MatMul(x, w) d = ScatterElements<axis=1, reduction="add">(h, i, u) y = MatMul(d, v) }""".replace("{I}", numbers("int64[1,6,3] i", 6)), [], "into a part")
row("Scatter, opset 10", """(float[1,6,12] x) => (float[] y) <float[12,8] w, float[1,2,8] u, float[8,5] v, {I}>
    { h = MatMul(x, w) d = Scatter<axis=1>(h, i, u) y = MatMul(d, v) }""".replace("{I}", numbers("int64[1,2,8] i", 4)), [8], opset=10)
for domain, opset in (("", 18), ("com.microsoft.", 18)):
    net(f"{domain}GridSample", "float[2,4,4,2] g", f"z = {domain}GridSample(h, g)", [8], opset=opset)
net("GridSample by a flow that a conv makes", "float[2,8,1,1] u, int64[1] one = {1}", """f = Conv(h, u) t = Tanh(f)
    g = Transpose<perm=[0,2,3,1]>(t) z = GridSample(h, g)""", [8], "regions or places")

# -- reductions over channels -----------------------------------------------------------------------------------------

net("L2 norm as F.normalize writes it", "int64[1] c = {1}, float e = {0.0001}, float[1,8,1,1] g", """n = ReduceL2(h, c) m = Clip(n, e)
    s = Shape(h) k = Expand(m, s) d = Div(h, k) z = Mul(d, g)""", [8])
net("L2 norm of squares", "int64[1] c = {1}, float e = {0.0001}", """q = Mul(h, h) n = ReduceSum(q, c) r = Sqrt(n) m = Add(r, e)
    z = Div(h, m)""", [8])
net("L2 norm, opset 13", "float e = {0.1}", "n = ReduceL2<axes=[1]>(h) m = Add(n, e) z = Div(h, m)", [8], opset=13)
net("sum over channels and positions", "int64[2] a = {1, 2}", "s = ReduceSum(h, a) t = Sigmoid(s) z = Mul(h, t)", [8])
net("spatial attention: mean and maximum over channels", "int64[1] c = {1}, float[1,2,3,3] u", """r = Relu(h) m = ReduceMean(r, c)
    k = ReduceMax(r, c) j = Concat<axis=1>(m, k) a = Conv<pads=[1,1,1,1]>(j, u) s = Sigmoid(a) z = Mul(r, s)""", [1, 8])
net("maximum over channels of either sign", "int64[1] c = {1}", "k = ReduceMax(h, c) s = Sigmoid(k) z = Mul(h, s)", [], "ReduceMax mixes")
net("minimum over channels that are never positive", "int64[1] c = {1}", "r = Relu(h) n = Neg(r) k = ReduceMin(n, c) z = Mul(h, k)", [8])
for head, why in (("Sigmoid(h)", None), ("MaxPool<kernel_shape=[1,1]>(r)", None), ("Mul(h, h)", None), ("Add(r, r)", None),
                  ("Clip(h, zero)", None), ("Sub(r, r)", "ReduceMax"), ("Clip(h, minus)", "ReduceMax"), ("Add(r, minus)", "ReduceMax"),
                  ("Pad(r, pads, minus)", "ReduceMax"), ("Pad(r, pads)", None), ("Pad<mode=\"reflect\">(r, pads)", None)):
    net(f"maximum over channels of {head}", "int64[1] c = {1}, float zero = {0.0}, float minus = {-1.0}, int64[8] pads = {0,0,0,0,0,0,0,0}",
        f"r = Relu(h) p = {head} k = ReduceMax(p, c) z = Mul(h, k)", [] if why else [8], *([why] if why else []))
net("a mean that is taken off", "int64[1] c = {1}", "m = ReduceMean(h, c) z = Sub(h, m)", [], "ReduceMean mixes")
net("a mean that is cast, spread and taken off", "int64[1] c = {1}", """m = ReduceMean(h, c) d = Cast<to=1>(m) s = Shape(h)
    e = Expand(d, s) z = Sub(h, e)""", [], "ReduceMean mixes")
net("a mean of squares", "int64[1] c = {1}, float two = {2.0}, float e = {0.1}", """q = Pow(h, two) m = ReduceMean(q, c) a = Add(m, e)
    r = Sqrt(a) z = Div(h, r)""", [], "ReduceMean mixes")
row("norm of each head's channels", f"""{SEQ} <float[12,8] wq, float[12,8] wk, float[12,8] wv, float[8,5] wo, int64[4] a = {{0, 0, 2, 4}},
    int64[3] b = {{0, 0, 8}}, int64[1] last = {{-1}}, float e = {{0.01}}>
    {{ q0 = MatMul(x, wq) q1 = Reshape(q0, a) q2 = Transpose<perm=[0,2,1,3]>(q1) qn = ReduceL2(q2, last) qc = Clip(qn, e) qs = Shape(q2)
       qe = Expand(qc, qs) q = Div(q2, qe) k0 = MatMul(x, wk) k1 = Reshape(k0, a) k = Transpose<perm=[0,2,3,1]>(k1) s = MatMul(q, k)
       v0 = MatMul(x, wv) v1 = Reshape(v0, a) v = Transpose<perm=[0,2,1,3]>(v1) c0 = MatMul(s, v) c1 = Transpose<perm=[0,2,1,3]>(c0)
       c = Reshape(c1, b) y = MatMul(c, wo) }}""", [4, 4])
# -- others that pass along axes --------------------------------------------------------------------------------------

net("Trilu of maps", "", "z = Trilu<upper=0>(h)", [8])
net("Compress along the width", "bool[8] c = {1, 0, 1, 1, 0, 0, 1, 1}", "z = Compress<axis=3>(h, c)", [8])
net("Compress of all", "bool[8] c = {1, 0, 1, 1, 0, 0, 1, 1}, int64[4] s = {1, 1, 1, -1}, float[1,8,1,1] e",
    "f = Compress(h, c) g = Reshape(f, s) t = ReduceMean<keepdims=1>(g) z = Mul(e, t)", [8], "Compress goes along")
net("CenterCropPad of maps", "int64[2] s = {4, 4}", "z = CenterCropPad<axes=[2,3]>(h, s)", [8])
net("Col2Im", "int64[2] im = {9, 9}, int64[2] bl = {2, 2}, float[24,8,1,1] u, int64[3] s = {0, 24, 64}", "k = Conv(h, u) f = Reshape(k, s) z = Col2Im(f, im, bl)", [6, 8], read=6)
row("ReverseSequence", """(float[6,2,12] x) => (float[] y) <float[12,8] w, float[8,5] v, int64[2] l = {4, 5}>
    { h = MatMul(x, w) r = ReverseSequence(h, l) y = MatMul(r, v) }""", [8])
row("bilinear form of two layers", f"""{SEQ} <float[12,8] u, float[12,6] w, float[8,6,5] b>
    {{ p = MatMul(x, u) q = MatMul(x, w) y = Einsum<equation="bnp,bnq,pqo->bno">(p, q, b) }}""", [6, 8])
row("graph convolution of several neighbourhoods", """(float[N,3,6,5] x) => (float[] y) <float[24,3,1,1] w, float[3,5,5] a, float[4,8,1,1] v, int64[5] s = {0, 3, 8, 6, 5}>
    { h = Conv(x, w) r = Reshape(h, s) g = Einsum<equation="nkctv,kvw->nctw">(r, a) y = Conv(g, v) }""", [8], "not a plain product")
HEADS4 = "float[12,8] wq, float[12,8] wk, float[12,8] wv, float[8,5] wo"
row("MultiHeadAttention of keys with heads apart", f"""{SEQ} <{HEADS4}, int64[4] s = {{0, 0, 4, 2}}>
    {{ q = MatMul(x, wq) k0 = MatMul(x, wk) v0 = MatMul(x, wv) k1 = Reshape(k0, s) v1 = Reshape(v0, s) k = Transpose<perm=[0,2,1,3]>(k1)
       v = Transpose<perm=[0,2,1,3]>(v1) o = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v) y = MatMul(o, wo) }}""", [4])
for turned in ("", "<num_heads=4>"):
    row(f"RotaryEmbedding of ORT {turned or 'without a number of heads'}", f"""(float[2,6,12] x) => (float[] y) <float[12,16] wq, float[12,16] wk, float[12,16] wv, float[16,5] wo,
        float[6,2] c, float[6,2] s, int64[2,6] p = {{0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5}}>
        {{ q0 = MatMul(x, wq) k0 = MatMul(x, wk) v = MatMul(x, wv) q = com.microsoft.RotaryEmbedding{turned}(q0, p, c, s)
           k = com.microsoft.RotaryEmbedding{turned}(k0, p, c, s) o = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v) y = MatMul(o, wo) }}""", [4])

# -- control flow -----------------------------------------------------------------------------------------------------

BODY = "(int64 t, bool g, float[] s) => (bool go, float[] o)"
ODD = "float edge = {0.0}"
CHOICE = "top = ReduceMax<keepdims=0>(x) k = Greater(top, edge)"


def choice(name: str, then: str, other: str, widths: list[int], *pins: str, weights: str = "", body: str = "z = IF") -> None:
    """A row where values decide which branch runs."""
    both = f"If(k) <then_branch = a () => (float[] q) {{ {then} }}, else_branch = b () => (float[] q) {{ {other} }}>"
    net(name, ODD + ", " * bool(weights) + weights, f"{CHOICE} {body.replace('IF', both)}", widths, *pins)


def loop(name: str, inner: str, widths: list[int], *pins: str, weights: str = "", body: str = "z = LOOP") -> None:
    """A row with a Loop of three trips."""
    trips = f"Loop(trips, yes, h) <body = c {inner}>"
    net(name, "int64 trips = {3}, bool yes = {1}" + ", " * bool(weights) + weights, body.replace("LOOP", trips), widths, *pins)


choice("If, both branches carry", "q = Relu(h)", "q = Neg(h)", [8])
choice("If, one reads what another layer makes", "q = Relu(h)", "q = Tanh(o)", [8], weights="float[8,8,1,1] u", body="o = Conv(h, u) z = IF")
choice("If in If", "q = If(k) <then_branch = aa () => (float[] i) { i = Relu(h) }, else_branch = bb () => (float[] j) { j = Tanh(h) }>",
       "q = Neg(h)", [8])
choice("If, pooled either way", "q = GlobalAveragePool(h)", "q = GlobalMaxPool(h)", [8], body="s = IF z = Mul(h, s)")
choice("If, cut out along the width", "q = Slice(h, zero, four, three)", "q = Slice(h, four, eight, three)", [8],
       weights="int64[1] zero = {0}, int64[1] four = {4}, int64[1] eight = {8}, int64[1] three = {3}")
choice("If, resized either way", "q = Resize(h, , up)", "q = Resize<mode=\"linear\">(h, , up)", [8], weights="float[4] up = {1, 1, 2, 2}")
choice("If without channels", "q = Mul(edge, edge)", "q = Neg(edge)", [8], body="s = IF z = Mul(h, s)")
choice("If, a layer in a branch", "q = Conv(h, u)", "q = Identity(h)", [], "read inside", weights="float[8,8,1,1] u")
choice("If, a factor for every channel in a branch", "q = Mul(h, c)", "q = Identity(h)", [], "read inside", weights="float[1,8,1,1] c")
choice("If, a branch that mixes", "q = Softmax<axis=1>(h)", "q = Identity(h)", [], "Softmax mixes")
choice("If, a branch that would ask for a mask", "n = ReduceL2(h, one) q = Div(h, n)", "q = Identity(h)", [], "contracted inside",
       weights="int64[1] one = {1}")
choice("If, a size spelled out in a branch", "s = Shape(h) q = Reshape(h, s)", "q = Identity(h)", [], "spelled out inside")
choice("If, a layer in a branch pins nothing behind", "q = Conv(h, u)", "q = Identity(h)", [6, 8], "read inside",
       weights="float[8,8,1,1] u, float[6,8,1,1] v, float[8,6,1,1] p", body="s = IF m = Conv(s, v) z = Conv(m, p)")
choice("If, a constant in a branch", "q = Identity(c)", "q = Identity(h)", [], "a constant inside",
       weights="float[1,8,8,8] c")

loop("Loop that carries", f"{BODY} {{ go = Identity(g) o = Relu(s) }}", [8])
loop("Loop that adds what it reads from outside", f"{BODY} {{ go = Identity(g) e = Tanh(s) o = Add(e, h) }}", [8])
loop("Loop with an If", f"""{BODY} {{ go = Identity(g) k = Equal(t, none) o = If(k) <then_branch = a () => (float[] q) {{ q = Relu(s) }},
       else_branch = b () => (float[] r) {{ r = Mul(s, h) }}> }}""", [8], weights="int64 none = {0}")
loop("Loop that hands every trip out", "(int64 t, bool g, float[] s) => (bool go, float[] o, float[] each) { go = Identity(g) o = Relu(s) each = Neg(o) }",
     [8], weights="int64[1] zero = {0}", body="last, all = LOOP z = ReduceMean<keepdims=0>(all, zero)")
loop("Loop whose state grows along the width", f"{BODY} {{ go = Identity(g) o = Concat<axis=3>(s, h) }}", [8])
loop("Loop that picks a row each trip", f"{BODY} {{ go = Identity(g) r = Gather<axis=2>(h, t) u = Unsqueeze(r, two) o = Add(s, u) }}", [8],
     weights="int64[1] two = {2}")
loop("Loop with a layer", f"{BODY} {{ go = Identity(g) o = Conv(s, u) }}", [], "read inside", weights="float[8,8,1,1] u")
loop("Loop over groups of channels", f"{BODY} {{ go = Identity(g) a, b = Split<axis=1, num_outputs=2>(s) o = Concat<axis=1>(b, a) }}", [],
     "spelled out inside")
net("Loop whose states change places", "int64 trips = {3}, bool yes = {1}, float[8,8,1,1] u", """h2 = Conv(h, u)
    a, b = Loop(trips, yes, h, h2) <body = c (int64 t, bool g, float[1,8,8,8] s, float[1,8,8,8] r) => (bool go, float[1,8,8,8] o, float[1,8,8,8] p)
    { go = Identity(g) o = Identity(r) p = Identity(s) }> z = Add(a, b)""", [8])
row("Scan that carries", """(float[6,2,12] x) => (float[] y) <float[12,8] w, float[8,3] v, int64[1] zero = {0}>
    { m = MatMul(x, w) s0 = ReduceMean<keepdims=0>(m, zero) last, o = Scan<num_scan_inputs=1, body = b (float[] s, float[] e) => (float[] t, float[] q)
      { a = Add(s, e) t = Tanh(a) q = Identity(t) }>(s0, m) y = MatMul(o, v) }""", [8])
row("Scan along other axes", """(float[2,6,12] x) => (float[] y) <float[12,8] w, float[8,3] v, int64[1] one = {1}>
    { m = MatMul(x, w) s0 = ReduceMean<keepdims=0>(m, one) last, o = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1],
      body = b (float[2,8] s, float[2,8] e) => (float[2,8] t, float[2,8] q) { a = Add(s, e) t = Tanh(a) q = Identity(t) }>(s0, m) y = MatMul(o, v) }""", [8])
row("Scan from a constant", """(float[6,2,12] x) => (float[] y) <float[12,8] w, float[8,3] v, float[2,8] s0>
    { m = MatMul(x, w) last, o = Scan<num_scan_inputs=1, body = b (float[] s, float[] e) => (float[] t, float[] q)
      { a = Add(s, e) t = Tanh(a) q = Identity(t) }>(s0, m) y = MatMul(o, v) }""", [], "a constant")

# fmt: on


@pytest.mark.parametrize("case", surgery.rows(ROWS))
def test_widths_and_reasons(case: Row) -> None:
    widths_and_reasons(case)


@pytest.mark.parametrize("case", surgery.rows(ROWS))
def test_cut_is_exact(case: Row) -> None:
    cut_is_exact(case)


def test_a_mean_over_channels_of_half_precision() -> None:
    model = surgery.model_of("""(float16[N,3,8,8] x) => (float16[] y)
        <float16[8,3,3,3] w, float16[4,8,1,1] v, int64[1] c = {1}>
        { h = Conv(x, w) r = Relu(h) m = ReduceMean(r, c) z = Mul(r, m) y = Conv(z, v) }""")
    result = onnxprune.prune(model, ratio=0.5, repair="none", best_effort=True)
    assert result.surgery.exact and [g.width for g in surgery.find(result.model)[1].groups] == [4]
