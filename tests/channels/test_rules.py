"""One row an operator or trap: a model as text, the expected widths of its groups, the expected reasons for
what is pinned; and for every row, the cut model must equal the masked original.

Most rows are the middle of one small net, between a conv that makes 8 channels `h` and a conv that reads `z`:

    x → Conv(w0: 8×3×3×3, b0) → h → … → z → Conv(w9: 4×read×1×1) → y
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.channels import surgery


@dataclass(frozen=True)
class Row:
    name: str
    text: str
    widths: list[int]
    pins: tuple[str, ...] = ()
    opset: int = 18


ROWS: list[Row] = []


def row(name: str, text: str, widths: list[int], *pins: str, opset: int = 18) -> None:
    ROWS.append(Row(name, text, widths, pins, opset))


def net(name: str, weights: str, body: str, widths: list[int], *pins: str, read: int = 8, opset: int = 18) -> None:
    """A row that is the middle of the small net."""
    weights = f", {weights}" if weights else ""
    text = f"""(float[N,3,8,8] x) => (float[] y)
        <float[8,3,3,3] w0, float[8] b0, float[4,{read},1,1] w9{weights}>
        {{ h = Conv<pads=[1,1,1,1]>(x, w0, b0)
           {body}
           y = Conv(z, w9) }}"""
    row(name, text, widths, *pins, opset=opset)


# fmt: off
# -- convolutions -------------------------------------------------------------------------------------------

net("conv", "float[6,8,3,3] w", "z = Conv<pads=[1,1,1,1]>(h, w)", [6, 8], "model output", "model input",
    read=6)
net("grouped conv, index j of every group", "float[12,4,3,3] w", "z = Conv<pads=[1,1,1,1], group=2>(h, w)",
    [4, 6], read=12)
net("grouped conv, whole groups", "float[12,2,3,3] w, float[12] b",
    "z = Conv<pads=[1,1,1,1], group=4>(h, w, b)", [4], read=12)
net("depthwise", "float[8,1,3,3] w, float[8] b", "z = Conv<pads=[1,1,1,1], group=8>(h, w, b)", [8])
net("depthwise with multiplier", "float[16,1,3,3] w, float[16] b",
    "z = Conv<pads=[1,1,1,1], group=8>(h, w, b)", [8], read=16)
net("two grouped convs in a row", "float[8,4,3,3] v, float[8,2,3,3] w",
    "g = Conv<pads=[1,1,1,1], group=2>(h, v) z = Conv<pads=[1,1,1,1], group=4>(g, w)", [2, 4])
net("a reduction that keeps no axes, though it says neither 0 nor 1", "int64[1] one = {1}",
    "u = Unsqueeze(h, one) z = ReduceMax<keepdims=-1>(u, one)", [8])
net("a layer that reads an empty tensor", "float[8,8] k, int64[1] zero = {0}, int64[1] two = {2}",
    "e = Slice(h, zero, zero, two) m = MatMul(e, k) s = ReduceSum(m, two) z = Add(h, s)", [], "works on an empty tensor")
net("transposed conv", "float[8,6,2,2] w, float[6] b", "z = ConvTranspose<strides=[2,2]>(h, w, b)", [6, 8],
    read=6)
net("transposed conv, index j of every group", "float[8,6,2,2] w, float[12] b",
    "z = ConvTranspose<strides=[2,2], group=2>(h, w, b)", [4, 6], read=12)
net("transposed conv, whole groups", "float[8,2,2,2] w, float[8] b",
    "z = ConvTranspose<strides=[2,2], group=4>(h, w, b)", [4], "whole groups")
net("transposed conv, depthwise", "float[8,1,2,2] w", "z = ConvTranspose<strides=[2,2], group=8>(h, w)",
    [8])
row("conv 1d", """(float[N,3,16] x) => (float[] y) <float[8,3,3] w, float[8] b, float[5,8,1] v>
    { h = Conv(x, w, b) r = Relu(h) y = Conv(r, v) }""", [8])
row("conv 3d", """(float[N,3,4,4,4] x) => (float[] y) <float[8,3,3,3,3] w, float[8] b, float[5,8,1,1,1] v>
    { h = Conv(x, w, b) r = Relu(h) p = GlobalAveragePool(r) y = Conv(p, v) }""", [8])
net("dilated, strided, auto_pad", "float[6,8,3,3] w",
    'z = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(h, w)', [6, 8], read=6)
net("batch norm", "float[8] s, float[8] b, float[8] m, float[8] var",
    "n = BatchNormalization(h, s, b, m, var) z = Relu(n)", [8])
net("residual add", "float[8,8,3,3] w, float[8] b", "c = Conv<pads=[1,1,1,1]>(h, w, b) z = Add(h, c)", [8])
net("residual whose batch norms share a bias",
    "float[8,8,3,3] w, float[8] s, float[8] t, float[8] b, float[8] m, float[8] var",
    """n = BatchNormalization(h, s, b, m, var) c = Conv<pads=[1,1,1,1]>(n, w)
       k = BatchNormalization(c, t, b, m, var) z = Add(n, k)""", [8])
net("one bias shared by convs of different groups", "float[8,8,3,3] v, float[8,8,3,3] w, float[8] b",
    "c = Conv<pads=[1,1,1,1]>(h, v, b) z = Conv<pads=[1,1,1,1]>(c, w, b)", [8, 8, 8])
net("one weight shared by two convs", "float[8,8,3,3] w",
    "c = Conv<pads=[1,1,1,1]>(h, w) d = Relu(c) z = Conv<pads=[1,1,1,1]>(d, w)", [8, 8, 8])
net("a bias that only an Add writes", "float[1,8,1,1] b, float[6,8,3,3] w",
    "a = Add(h, b) r = Relu(a) z = Conv(r, w)", [6, 8], read=6)
net("a bias with fewer axes", "float[8,1,1] b", "z = Add(b, h)", [8])
net("a bias over positions", "float[8,8] b", "z = Add(h, b)", [8])
net("a bias over channels and positions", "float[1,8,8,8] b", "z = Mul(h, b)", [8])

# -- what treats channels apart -------------------------------------------------------------------------------

for op in (
    "Relu",
    "Sigmoid",
    "Tanh",
    "HardSwish",
    "Softplus",
    "Erf",
    "Exp",
    "Elu",
    "Selu",
    "Neg",
    "Abs",
    "Mish",
):
    net(f"unary {op}", "", f"z = {op}(h)", [8])
for op in "Celu Cos Sin Softsign Sinh Cosh Asinh Atan Ceil Floor Round Sign HardSigmoid LeakyRelu ThresholdedRelu".split():
    net(f"unary {op}", "", f"z = {op}(h)", [8])
for op in ("Asin", "Acos", "Atanh", "Tan"):
    net(f"unary {op}", "float half = {0.5}", f"t = Tanh(h) u = Mul(t, half) z = {op}(u)", [8])
for op in ("Log", "Reciprocal", "Sqrt"):
    net(f"unary {op}", "float one = {1.0}", f"e = Exp(h) a = Add(e, one) z = {op}(a)", [8])
net("Acosh", "", "e = Abs(h) c = Cosh(e) z = Acosh(c)", [8])
net("Shrink", "", "z = Shrink<lambd=0.2, bias=0.1>(h)", [8])
net("Swish, opset 24", "", "z = Swish(h)", [8], opset=24)
net("Sub, Mod", "float[8,1,1] t, float m = {0.7}", "a = Sub(t, h) z = Mod<fmod=1>(a, m)", [8])
net("comparisons", "float[8,1,1] t", """a = Less(h, t) b = GreaterOrEqual(h, t) c = LessOrEqual(t, h) d = Equal(h, t)
    e = And(b, c) f = Or(a, d) g = Xor(e, f) i = Not(g) n = IsNaN(h) o = IsInf(h) j = Or(n, o) l = Or(i, j)
    z = Where(l, h, t)""", [8])
net("bits", "int32 m = {5}, uint8 u = {1}", """i = Cast<to=6>(h) a = BitwiseAnd(i, m) b = BitwiseOr(a, m) c = BitwiseXor(b, i)
    d = BitwiseNot(c) e = Abs(h) f = Cast<to=2>(e) g = BitShift<direction="LEFT">(f, u) j = Cast<to=1>(d) k = Cast<to=1>(g)
    z = Add(j, k)""", [8])
net("Gelu, opset 20", "", "z = Gelu(h)", [8], opset=20)
net("Clip", "float lo = {0.0}, float hi = {6.0}", "z = Clip(h, lo, hi)", [8])
net("HardSwish as Add-Clip-Mul-Div", "float three = {3.0}, float lo = {0.0}, float six = {6.0}",
    "a = Add(h, three) c = Clip(a, lo, six) m = Mul(h, c) z = Div(m, six)", [8])
net("PRelu, a slope a channel", "float[8,1,1] s", "z = PRelu(h, s)", [8])
net("PRelu, one slope", "float[1] s", "z = PRelu(h, s)", [8])
net("PRelu, slope with a batch axis", "float[1,8,1,1] s", "z = PRelu(h, s)", [8])
net("Pow", "float two = {2.0}", "z = Pow(h, two)", [8])
net("Where", "float zero = {0.0}", "c = Greater(h, zero) z = Where(c, h, zero)", [8])
net("Where with channels on both sides", "float[1,8,1,1] t, float zero = {0.0}",
    "c = Greater(h, zero) z = Where(c, h, t)", [8])
net("Min, Max, Sum, Mean", "float zero = {0.0}, float[8,8,1,1] w",
    "a = Conv(h, w) b = Min(h, a) c = Max(h, zero) d = Sum(b, c, a) z = Mean(d, h)", [8])
net("LRN", "", "z = LRN<size=3>(h)", [], "LRN")
net("Dropout, Identity, Cast", "", "a, m = Dropout(h) b = Identity(a) z = Cast<to=1>(b)", [8])

# -- joined and taken apart ----------------------------------------------------------------------------------

net("Concat", "float[4,3,3,3] w", "c = Conv<pads=[1,1,1,1]>(x, w) z = Concat<axis=1>(h, c)", [4, 8],
    read=12)
net("Concat of one tensor twice", "", "r = Relu(h) z = Concat<axis=1>(h, r)", [8], read=16)
net("Concat with the model input", "", "z = Concat<axis=1>(h, x)", [8], "model input", read=11)
net("Concat along positions", "float[8,3,3,3] w", "c = Conv<pads=[1,1,1,1]>(x, w) z = Concat<axis=3>(h, c)",
    [8])
net("Concat at a negative axis", "", "r = Relu(h) z = Concat<axis=-3>(h, r)", [8], read=16)
net("dense block", "float[4,8,3,3] v, float[4,12,3,3] w",
    """a = Conv<pads=[1,1,1,1]>(h, v) c = Concat<axis=1>(h, a) r = Relu(c)
       b = Conv<pads=[1,1,1,1]>(r, w) z = Concat<axis=1>(h, a, b)""", [4, 4, 8], read=16)
net("channel shuffle", "float[8,1,3,3] w, int64[5] s = {0, 2, 4, 8, 8}, int64[4] t = {0, 8, 8, 8}",
    """a = Reshape(h, s) b = Transpose<perm=[0,2,1,3,4]>(a) c = Reshape(b, t)
       z = Conv<pads=[1,1,1,1], group=8>(c, w)""", [4])
net("shuffle unit",
    "float[4,4,1,1] v, float[4,1,3,3] d, int64[2] h2 = {4, 4}, int64[5] s = {-1, 2, 4, 8, 8},"
    " int64[4] t = {-1, 8, 8, 8}, float[8,8,1,1] w",
    """k = Conv(h, w) a, b = Split<axis=1>(k, h2) c = Conv(b, v) e = Conv<pads=[1,1,1,1], group=4>(c, d)
       j = Concat<axis=1>(a, e) r = Reshape(j, s) q = Transpose<perm=[0,2,1,3,4]>(r) z = Reshape(q, t)""",
    [4, 4, 8])
net("shuffle behind grouped conv",
    "float[8,4,1,1] v, float[8,4,1,1] w, int64[5] s = {-1, 2, 4, 8, 8}, int64[4] t = {-1, 8, 8, 8}",
    """k = Conv<group=2>(h, v) r = Reshape(k, s) q = Transpose<perm=[0,2,1,3,4]>(r) j = Reshape(q, t)
       z = Conv<group=2>(j, w)""", [2, 4, 4])
net("Split with sizes", "int64[2] s = {3, 5}, float[3,5,1,1] w",
    "a, b = Split<axis=1>(h, s) c = Conv(b, w) z = Add(a, c)", [3, 5], read=3)
net("Split without sizes, opset 11", "float[4,4,1,1] w",
    "a, b = Split<axis=1>(h) c = Conv(b, w) z = Add(a, c)", [4, 4], read=4, opset=11)
net("Split with an attribute, opset 11", "float[3,5,1,1] w",
    "a, b = Split<axis=1, split=[3,5]>(h) c = Conv(b, w) z = Add(a, c)", [3, 5], read=3, opset=11)
net("Split without sizes, opset 13", "float[4,4,1,1] w",
    "a, b = Split<axis=1>(h) c = Conv(b, w) z = Concat<axis=1>(a, c)", [4, 4, 4], opset=13)
net("Split by num_outputs", "float[4,4,1,1] w",
    "a, b = Split<axis=1, num_outputs=2>(h) c = Conv(b, w) z = Concat<axis=1>(a, c)", [4, 4, 4])
net("Split by num_outputs, uneven", "float[3,2,1,1] w",
    "a, b, c = Split<axis=-3, num_outputs=3>(h) d = Conv(c, w) e = Add(a, d) z = Concat<axis=1>(e, b)",
    [2, 3, 3], read=6)
net("gated linear unit", "", "a, b = Split<axis=1, num_outputs=2>(h) s = Sigmoid(b) z = Mul(a, s)", [4],
    read=4)
net("CSP", "float[4,4,1,1] v, float[4,4,3,3] w, int64[1] zero = {0}, int64[1] four = {4},"
    " int64[1] end = {9223372036854775807}, int64[1] one = {1}",
    """a = Slice(h, zero, four, one) b = Slice(h, four, end, one) c = Conv(b, v) r = Relu(c)
       d = Conv<pads=[1,1,1,1]>(r, w) e = Add(b, d) z = Concat<axis=1>(e, a)""", [4, 4, 4])
net("C2f", "float[4,4,3,3] u, float[4,4,3,3] v, float[4,4,3,3] w, int64[2] s = {4, 4}",
    """a, b = Split<axis=1>(h, s) c = Conv<pads=[1,1,1,1]>(b, u) d = Conv<pads=[1,1,1,1]>(c, v) e = Add(b, d)
       f = Conv<pads=[1,1,1,1]>(e, w) z = Concat<axis=1>(a, b, e, f)""", [4, 4, 4, 4], read=16)
net("Res2Net", "float[2,2,3,3] u, float[2,2,3,3] v, float[2,2,3,3] w",
    """a, b, c, d = Split<axis=1, num_outputs=4>(h) p = Conv<pads=[1,1,1,1]>(b, u) q = Add(p, c)
       r = Conv<pads=[1,1,1,1]>(q, v) s = Add(r, d) t = Conv<pads=[1,1,1,1]>(s, w)
       z = Concat<axis=1>(a, p, r, t)""", [2, 2, 2, 2, 2])
net("Slice from the end", "int64[1] s = {-3}, int64[1] e = {2147483647}, int64[1] a = {1}",
    "z = Slice(h, s, e, a)", [3, 5], read=3)
net("Slice with a negative end", "int64[1] s = {1}, int64[1] e = {-2}, int64[1] a = {-3}",
    "z = Slice(h, s, e, a)", [3, 5], read=5)
net("Slice by attributes, opset 9", "", "z = Slice<axes=[1], starts=[2], ends=[1000]>(h)", [2, 6], read=6,
    opset=9)
net("Slice of every second channel",
    "int64[1] s = {0}, int64[1] e = {8}, int64[1] a = {1}, int64[1] t = {2}", "z = Slice(h, s, e, a, t)",
    [], "every n-th", read=4)
net("Slice of positions",
    "int64[2] s = {1, 0}, int64[2] e = {7, 8}, int64[2] a = {2, 3}, int64[2] t = {2, 2}",
    "z = Slice(h, s, e, a, t)", [8])
net("Slice of positions and channels", "int64[2] s = {1, 2}, int64[2] e = {7, 8}, int64[2] a = {2, 1}",
    "z = Slice(h, s, e, a)", [2, 6], read=6)
net("focus",
    "int64[1] p = {0}, int64[1] q = {1}, int64[1] e = {2147483647}, int64[1] a = {2}, int64[1] two = {2}",
    "a0 = Slice(h, p, e, a, two) a1 = Slice(h, q, e, a, two) z = Concat<axis=1>(a0, a1)", [8], read=16)
net("Gather of channels", "int64[3] i = {5, -8, 2}, int64[5] j = {1, 3, 4, 6, 7}",
    "a = Gather<axis=1>(h, i) b = Gather<axis=1>(h, j) z = Concat<axis=1>(b, a)", [3, 5])
net("Gather with an index twice", "int64[4] i = {1, 1, 2, 3}", "z = Gather<axis=1>(h, i)", [3, 5], read=4)
net("Gather of one channel", "int64 i = {1}, int64[1] one = {1}",
    "a = Gather<axis=1>(h, i) z = Unsqueeze(a, one)", [], "Gather", read=1)
net("Gather of positions", "int64[3] i = {1, 0, 2}", "z = Gather<axis=2>(h, i)", [8])
net("GhostNet", "float[8,1,3,3] w, int64[1] s = {0}, int64[1] e = {12}, int64[1] a = {1}",
    "g = Conv<pads=[1,1,1,1], group=8>(h, w) c = Concat<axis=1>(h, g) z = Slice(c, s, e, a)", [8],
    read=12)
net("Pad of positions", "int64[8] p = {0,0,1,2,0,0,1,0}", "z = Pad(h, p)", [8])
net("Pad of positions by attribute, opset 10", "", "z = Pad<pads=[0,0,1,1,0,0,1,1]>(h)", [8], opset=10)
net("Pad, reflected", "int64[8] p = {0,0,1,2,0,0,1,0}", 'z = Pad<mode="reflect">(h, p)', [8])
net("Pad of channels", "int64[8] p = {0,1,0,0,0,2,0,0}", "z = Pad(h, p)", [3, 8], read=11)
net("Pad of channels with a number", "int64[8] p = {0,1,0,1,0,2,0,0}, float v = {0.5}", "z = Pad(h, p, v)", [3, 8],
    read=11)
net("Pad of channels by attribute, opset 10", "", "z = Pad<pads=[0,1,0,0,0,2,0,0], value=0.5>(h)", [3, 8], read=11,
    opset=10)
net("Pad of channels as a shortcut", "int64[8] p = {0,2,0,0,0,2,0,0}, float[12,8,3,3] w",
    "s = Pad(h, p) c = Conv<pads=[1,1,1,1]>(h, w) z = Add(s, c)", [4, 8], read=12)
net("Pad and Slice of channels as two shortcuts", """int64[8] p = {0,2,0,0,0,2,0,0}, float[12,8,3,3] w, float[16,12,3,3] v,
    int64[2] b = {0, 0}, int64[2] e = {-1, 99}, int64[2] a = {2, 3}, int64[2] t = {2, 2}""",
    """l = Slice(h, b, e, a, t) s = Pad(l, p) c = Conv<pads=[1,1,1,1], strides=[2,2]>(h, w) d = Add(s, c) r = Relu(d)
       q = Pad(r, p) k = Conv<pads=[1,1,1,1]>(r, v) z = Add(q, k)""", [4, 4, 8], read=16)
net("Pad with axes", "int64[2] p = {1,1}, int64[1] a = {1}, float v = {0.5}", "z = Pad(h, p, v, a)", [2, 8], read=10)
net("Pad with axes from behind", "int64[4] p = {1,1,0,2}, int64[2] a = {-1, -3}, float v = {0.5}", "z = Pad(h, p, v, a)",
    [3, 8], read=11)
net("Pad of channels by less than nothing", "int64[8] p = {0,-2,0,0,0,-1,0,0}", "z = Pad(h, p)", [3, 5], read=5)
net("Pad that moves channels along", "int64[8] p = {0,-2,0,0,0,2,0,0}", "z = Pad(h, p)", [2, 2, 6])
net("Pad that moves channels along, by attribute", "", "z = Pad<pads=[0,2,0,0,0,-2,0,0]>(h)", [2, 2, 6], opset=10)
net("Pad that leaves one channel", "int64[8] p = {0,-7,0,0,0,0,0,0}", "z = Pad(h, p)", [7], "single channel", read=1)
for mode in ("reflect", "edge", "wrap"):
    net(f"Pad of channels, {mode}", "int64[8] p = {0,1,0,0,0,2,0,0}", f'z = Pad<mode="{mode}">(h, p)', [],
        f"mode {mode}", read=11, opset=19)
net("Pad of channels, reflected so that their number stays", "int64[8] p = {0,1,0,0,0,-1,0,0}",
    'z = Pad<mode="reflect">(h, p)', [], "mode reflect")
net("Pad of channels as the old TorchScript exporter writes it", """int64[6] six = {0,0,0,0,1,2}, int64[1] i = {0},
    int64 four = {4}, int64 two = {2}, int64[2] w = {-1,2}, int64[1] back = {-1}, int64[1] least = {-9223372036854775807},
    int64[1] flat = {-1}""", """n = Shape(six) l = Gather(n, i) f = Mul(four, two) u = Sub(f, l)
    zero = ConstantOfShape<value = int64[1] {0}>(u) long = Concat<axis=0>(six, zero) pairs = Reshape(long, w) r = Slice(pairs, back, least, i, back)
    t = Transpose<perm=[1,0]>(r) p = Reshape(t, flat) z = Pad(h, p)""", [3, 8], read=11)
net("Pad up to a number of channels", """int64[1] all = {11}, int64[1] one = {1}, int64[1] two = {2}, int64[5] a = {0,0,0,0,0},
    int64[2] b = {0,0}""", """s = Shape(h) c = Slice(s, one, two) d = Sub(all, c) p = Concat<axis=0>(a, d, b) z = Pad(h, p)""", [3, 8],
    read=11)
net("Pad of the image's channels as a shortcut", "int64[8] p = {0,0,0,0,0,5,0,0}, float[4,8,1,1] u",
    "s = Pad(x, p) z = Add(s, h)", [5], "model input")
net("Pad of channels that are last", "int64[8] p = {0,0,0,1,0,0,0,2}, float[11,6] w, float[6,4,1,1] u",
    """t = Transpose<perm=[0,2,3,1]>(h) q = Pad(t, p) k = MatMul(q, w) z = Transpose<perm=[0,3,1,2]>(k)""", [3, 6, 8],
    read=6)
net("Pad behind a Flatten", "int64[4] p = {0,64,0,128}, float[704,11] w, int64[4] t = {0,11,1,1}",
    "f = Flatten(h) q = Pad(f, p) m = MatMul(q, w) z = Reshape(m, t)", [8, 11, 192], read=11)
net("ConstantOfShape joined to channels", "int64[4] i = {2,3,8,8}", "o = ConstantOfShape(i) z = Concat<axis=1>(o, h)",
    [3, 8], read=11)
net("zeros joined to channels, of a size that is computed", """int64[1] three = {3}, int64[1] none = {0}, int64[1] one = {1},
    int64[1] two = {2}, int64[1] four = {4}""", """s = Shape(h) n = Slice(s, none, one) k = Slice(s, two, four)
    i = Concat<axis=0>(n, three, k) o = ConstantOfShape(i) z = Concat<axis=1>(o, h, o)""", [3, 8], read=14)
net("half as many zeros as there are channels joined to them", """int64[1] none = {0}, int64[1] one = {1},
    int64[1] two = {2}, int64[1] four = {4}""", """s = Shape(h) n = Slice(s, none, one) c = Slice(s, one, two) d = Div(c, two)
    k = Slice(s, two, four) i = Concat<axis=0>(n, d, k) o = ConstantOfShape(i) z = Concat<axis=1>(o, h)""", [4, 8], read=12)
net("a zero (Constant) spread and joined to channels", "float[1,1,1,1] zero = {0.0}, int64[4] i = {2,3,8,8}",
    "o = Expand(zero, i) z = Concat<axis=1>(h, o)", [3, 8], read=11)
net("a constant joined to channels", "float[2,3,8,8] o", "z = Concat<axis=1>(h, o)", [3, 8], read=11)
net("constants of one channel joined to channels", "float[2,1,8,8] o, float[2,1,8,8] q", "z = Concat<axis=1>(o, h, q)", [8],
    "single channel", read=10)
net("a constant all of which would go with channels that it is joined to", "float[2,4,8,8] o, float[12,2,1,1] w",
    "c = Concat<axis=1>(h, o) z = ConvTranspose<group=2>(c, w)", [1, 1], "whole groups", read=4)
net("what is multiplied by zero joined to channels", "float zero = {0.0}", "o = Mul(h, zero) z = Concat<axis=1>(h, o)",
    [8], read=16)
net("DepthToSpace, DCR", "", "z = DepthToSpace<blocksize=2>(h)", [2], read=2)
net("DepthToSpace, CRD", "", 'z = DepthToSpace<blocksize=2, mode="CRD">(h)', [2], read=2)
net("SpaceToDepth", "", "z = SpaceToDepth<blocksize=2>(h)", [8], read=32)
net("SpaceToDepth, CRD", "", 'z = SpaceToDepth<blocksize=2, mode="CRD">(h)', [8], read=32, opset=28)
net("pixel shuffle by Reshape and Transpose",
    "int64[6] s = {-1, 2, 2, 2, 8, 8}, int64[4] t = {-1, 2, 16, 16}",
    "a = Reshape(h, s) b = Transpose<perm=[0,1,4,2,5,3]>(a) z = Reshape(b, t)", [2], read=2)
net("Resize by scales", "float[4] s = {1.0, 1.0, 2.0, 2.0}", 'z = Resize<mode="nearest">(h, , s)', [8])
net("Resize by sizes", "int64[4] s = {2, 8, 16, 16}", 'z = Resize<mode="linear">(h, , , s)', [8])
net("Resize with axes", "int64[2] s = {16, 16}", "z = Resize<axes=[2, 3]>(h, , , s)", [8])
net("Upsample, opset 9", "float[4] s = {1.0, 1.0, 2.0, 2.0}", "z = Upsample(h, s)", [8], opset=9)
net("Expand of positions", "int64[4] s = {1, 8, 8, 8}", "p = GlobalAveragePool(h) z = Expand(p, s)", [8])
net("Expand with ones", "int64[4] s = {1, 1, 8, 8}", "p = GlobalAveragePool(h) z = Expand(p, s)", [8])
net("Expand with fewer axes", "int64[3] s = {8, 8, 8}", "p = GlobalAveragePool(h) z = Expand(p, s)", [8])
net("Tile of positions", "int64[4] r = {1, 1, 2, 2}", "z = Tile(h, r)", [8])
net("Tile of channels", "int64[4] r = {1, 2, 1, 1}", "z = Tile(h, r)", [8], read=16)
net("Squeeze and Unsqueeze", "int64[2] a = {2, 3}",
    "p = GlobalAveragePool(h) s = Squeeze(p, a) r = Relu(s) z = Unsqueeze(r, a)", [8])
net("upsampling by Unsqueeze-Tile-Reshape",
    "int64[2] a = {3, 5}, int64[6] r = {1,1,1,2,1,2}, int64[4] s = {0,8,16,16}",
    "u = Unsqueeze(h, a) t = Tile(u, r) z = Reshape(t, s)", [8])

# -- into a dense layer ----------------------------------------------------------------------------------------

STEM = "float[8,3,3,3] w0, float[8] b0"
row("Flatten, channels first", f"""(float[N,3,4,4] x) => (float[] y) <{STEM}, float[5,128] w, float[5] b>
    {{ h = Conv<pads=[1,1,1,1]>(x, w0, b0) f = Flatten(h) y = Gemm<transB=1>(f, w, b) }}""", [8])
row("Reshape, channels first", f"""(float[N,3,4,4] x) => (float[] y)
    <{STEM}, float[5,128] w, float[5] b, int64[2] s = {{0, 128}}>
    {{ h = Conv<pads=[1,1,1,1]>(x, w0, b0) f = Reshape(h, s) y = Gemm<transB=1>(f, w, b) }}""", [8])
row("Transpose and Reshape, channels last", f"""(float[N,3,4,4] x) => (float[] y)
    <{STEM}, float[128,6] w, float[6] b, float[6,5] v, int64[2] s = {{-1, 128}}>
    {{ h = Conv<pads=[1,1,1,1]>(x, w0, b0) t = Transpose<perm=[0,2,3,1]>(h) f = Reshape(t, s)
       m = MatMul(f, w) a = Add(m, b) r = Relu(a) y = MatMul(r, v) }}""", [6, 8])
row("a Keras graph, NHWC", f"""(float[N,4,4,3] x) => (float[] y)
    <{STEM}, float[8] s, float[8] t, float[8,8,3,3] w1, float[1,1,1,8] q, float[8,5] v, int64[2] hw = {{1, 2}}>
    {{ i = Transpose<perm=[0,3,1,2]>(x) c = Conv<pads=[1,1,1,1]>(i, w0, b0) h = Transpose<perm=[0,2,3,1]>(c)
       m = Mul(h, s) a = Add(m, t) r = Relu(a) j = Transpose<perm=[0,3,1,2]>(r) d = Conv<pads=[1,1,1,1]>(j, w1)
       k = Transpose<perm=[0,2,3,1]>(d) e = Add(k, q) g = Add(e, r) p = ReduceMean<keepdims=0>(g, hw)
       y = MatMul(p, v) }}""", [8])
row("ReduceMean and a Reshape that spells the width", f"""(float[N,3,4,4] x) => (float[] y)
    <{STEM}, float[5,8] w, int64[2] a = {{-1, -2}}, int64[2] s = {{-1, 8}}>
    {{ h = Conv<pads=[1,1,1,1]>(x, w0, b0) m = ReduceMean<keepdims=1>(h, a) f = Reshape(m, s)
       y = Gemm<transB=1>(f, w) }}""", [8])
row("Reshape to a number of columns and -1 rows", f"""(float[2,3,4,4] x) => (float[] y)
    <{STEM}, float[5,8] w, int64[2] s = {{2, -1}}>
    {{ h = Conv(x, w0, b0) m = GlobalAveragePool(h) f = Reshape(m, s) y = Gemm<transB=1>(f, w) }}""", [8])
row("AlexNet's pool and two dense layers", f"""(float[N,3,6,6] x) => (float[] y)
    <{STEM}, float[10,72] w, float[10] b, float[5,10] v, float[5] c>
    {{ h = Conv<pads=[1,1,1,1]>(x, w0, b0) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(h) f = Flatten<axis=1>(p)
       g = Gemm<transB=1>(f, w, b) r = Relu(g) y = Gemm<transB=1>(r, v, c) }}""", [8, 10])
row("Gemm without transB, with a bias of one row", f"""(float[N,3,4,4] x) => (float[] y)
    <{STEM}, float[8,6] w, float[1,6] b, float[6,5] v>
    {{ h = Conv(x, w0, b0) p = GlobalMaxPool(h) f = Flatten(p) g = Gemm<alpha=0.5>(f, w, b) y = Gemm(g, v) }}""",
    [6, 8])
row("Gemm with a scalar bias", f"""(float[N,3,4,4] x) => (float[] y)
    <{STEM}, float[8,6] w, float[1] b, float[6,5] v>
    {{ h = Conv(x, w0, b0) p = GlobalMaxPool(h) f = Flatten(p) g = Gemm(f, w, b) y = Gemm(g, v) }}""",
    [6, 8])
row("Gemm with the weight first", f"""(float[1,3,4,4] x) => (float[] y)
    <{STEM}, float[6,8] w, float[6,1] b, float[5,6] v, int64[2] s = {{8, 1}}>
    {{ h = Conv(x, w0, b0) p = GlobalMaxPool(h) f = Reshape(p, s) g = MatMul(w, f) a = Add(g, b) y = MatMul(v, a) }}""",
    [6, 8])
row("MatMul on the left of a map", f"""(float[N,3,4,4] x) => (float[] y)
    <{STEM}, float[6,8] w, float[5,6] v, int64[3] s = {{0, 8, 16}}>
    {{ h = Conv<pads=[1,1,1,1]>(x, w0, b0) f = Reshape(h, s) g = MatMul(w, f) r = Relu(g) y = MatMul(v, r) }}""",
    [6, 8])
row("MatMul over positions (an MLP-mixer)", f"""(float[N,3,4,4] x) => (float[] y)
    <{STEM}, float[16,6] w, float[6,5] v, int64[3] s = {{0, 8, 16}}, float[7,8] u>
    {{ h = Conv<pads=[1,1,1,1]>(x, w0, b0) f = Reshape(h, s) g = MatMul(f, w) r = Relu(g) k = MatMul(r, v)
       t = Transpose<perm=[0,2,1]>(k) q = Transpose<perm=[1,0]>(u) y = MatMul(t, q) }}""", [8], "along positions")

row("MatMul over positions whose channels are pinned anyway", f"""(float[N,3,4,4] x) => (float[] y)
    <{STEM}, float[16,6] w, float[6,16] v, int64[3] s = {{0, 8, 16}}, float[8,5] u, int64[1] one = {{1}}>
    {{ h = Conv<pads=[1,1,1,1]>(x, w0, b0) f = Reshape(h, s) m = ReduceMean<keepdims=1>(f, one) d = Sub(f, m)
       g = MatMul(d, w) r = Relu(g) k = MatMul(r, v) a = Add(f, k) t = Transpose<perm=[0,2,1]>(a) y = MatMul(t, u) }}""",
    [6], "ReduceMean")

# -- attention over channels -----------------------------------------------------------------------------------

net("squeeze and excite", "float[4,8,1,1] u, float[4] a, float[8,4,1,1] v, float[8] b",
    "p = GlobalAveragePool(h) c = Conv(p, u, a) r = Relu(c) d = Conv(r, v, b) s = Sigmoid(d) z = Mul(h, s)",
    [4, 8])
net("squeeze and excite with dense layers",
    "float[4,8] u, float[8,4] v, int64[2] hw = {2, 3}, int64[4] t = {-1,8,1,1}",
    """p = ReduceMean<keepdims=0>(h, hw) c = Gemm<transB=1>(p, u) r = Relu(c) d = Gemm<transB=1>(r, v)
       s = Sigmoid(d) e = Reshape(s, t) z = Mul(h, e)""", [4, 8])
net("ECA", "float[1,1,3] k, int64[3] a = {0,1,-1}, int64[4] t = {0,-1,1,1}",
    """p = GlobalAveragePool(h) f = Reshape(p, a) c = Conv<pads=[1,1]>(f, k) s = Sigmoid(c) e = Reshape(s, t)
       z = Mul(h, e)""", [], "Conv works across")
row("conv with run-time weights", """(float[1,3,4,4] x, float[6,8,1,1] k) => (float[] y)
    <float[8,3,3,3] w0, float[8] b0, float[5,6,1,1] w> { h = Conv(x, w0, b0) z = Conv(h, k) y = Conv(z, w) }""", [],
    "computed at run time")
net("CBAM, spatial part", "int64[1] one = {1}, float[1,2,3,3] k",
    """m = ReduceMean(h, one) t = ReduceMax(h, one) c = Concat<axis=1>(m, t) d = Conv<pads=[1,1,1,1]>(c, k)
       s = Sigmoid(d) z = Mul(h, s)""", [1], "ReduceM")
net("split attention", "float[16,8,3,3] w, int64[5] r = {0,2,8,8,8}, int64[1] one = {1}, float[4,8,1,1] u,"
    " float[16,4,1,1] v, int64[4] q = {-1,1,2,8}, int64[5] t = {-1,2,8,1,1}",
    """k = Conv<pads=[1,1,1,1]>(h, w) s = Reshape(k, r) a = ReduceSum<keepdims=0>(s, one) p = GlobalAveragePool(a)
       c = Conv(p, u) d = Relu(c) e = Conv(d, v) f = Reshape(e, q) g = Transpose<perm=[0,2,1,3]>(f)
       i = Softmax<axis=1>(g) j = Reshape(i, t) l = Mul(s, j) z = ReduceSum<keepdims=0>(l, one)""",
    [4, 8, 8])
net("selective kernels", "float[8,8,3,3] v, float[8,8,1,1] w, int64[1] one = {1}",
    """a = Conv<pads=[1,1,1,1]>(h, v) b = Conv(h, w) c = Unsqueeze(a, one) d = Unsqueeze(b, one)
       e = Concat<axis=1>(c, d) f = Softmax<axis=1>(e) g = Mul(e, f) z = ReduceSum<keepdims=0>(g, one)""",
    [8, 8])

# -- normalisation ---------------------------------------------------------------------------------------------

net("GroupNormalization, opset 18", "float[4] s, float[4] b",
    "z = GroupNormalization<num_groups=4>(h, s, b)", [4])
net("GroupNormalization, opset 21", "float[8] s, float[8] b",
    "z = GroupNormalization<num_groups=4>(h, s, b)", [4], opset=21)
net("group norm by InstanceNormalization",
    "int64[3] a = {0, 4, -1}, int64[4] t = {0, 8, 8, 8}, float[4] one, "
    "float[4] zero, float[8,1,1] s, float[8,1,1] b",
    """r = Reshape(h, a) n = InstanceNormalization(r, one, zero) k = Reshape(n, t) m = Mul(k, s) z = Add(m, b)""",
    [4])
net("spread of groups of channels, by ReduceMean",
    "int64[5] a = {0, 4, 2, 8, 8}, int64[4] t = {0, 8, 8, 8}, int64[3] over = {2, 3, 4}, float[1] tiny = {0.1}",
    """r = Reshape(h, a) m = ReduceMean(r, over) d = Sub(r, m) q = Mul(d, d) v = ReduceMean(q, over)
       e = Add(v, tiny) s = Sqrt(e) n = Div(r, s) z = Reshape(n, t)""",
    [4])
net("group norm with one group",
    "int64[3] a = {0, 1, -1}, int64[4] t = {0, 8, 8, 8}, float[1] one, float[1] zero",
    "r = Reshape(h, a) n = InstanceNormalization(r, one, zero) z = Reshape(n, t)", [],
    "InstanceNormalization")
net("global response normalization", "float[8,1,1] g, float[8,1,1] b, float tiny = {0.000001}, int64[2] hw = {2, 3}, int64[1] c = {1}",
    """l = ReduceL2(h, hw) m = ReduceMean(l, c) e = Add(m, tiny) n = Div(l, e) q = Mul(h, n) k = Mul(q, g)
       r = Add(k, b) z = Add(r, h)""", [8])
net("global response normalization, NHWC, by attributes", "float[8] g, float[8] b, float tiny = {0.000001}",
    """f = Transpose<perm=[0,2,3,1]>(h) l = ReduceL2<axes=[1,2], keepdims=1>(f) m = ReduceMean<axes=[-1], keepdims=1>(l)
       e = Add(m, tiny) n = Div(l, e) q = Mul(f, n) k = Mul(q, g) r = Add(k, b) s = Add(r, f)
       z = Transpose<perm=[0,3,1,2]>(s)""", [8], opset=13)
net("mean over channels of what is no norm", "float one = {1.0}, int64[2] hw = {2, 3}, int64[1] c = {1}",
    "l = ReduceL1(h, hw) m = ReduceMean(l, c) e = Add(m, one) n = Div(l, e) z = Mul(h, n)", [8])
net("InstanceNormalization", "float[8] s, float[8] b", "z = InstanceNormalization(h, s, b)", [8])
net("LayerNormalization over channels", "float[8] s, float[8] b",
    """t = Transpose<perm=[0,2,3,1]>(h) n = LayerNormalization(t, s, b) z = Transpose<perm=[0,3,1,2]>(n)""",
    [], "LayerNormalization")
net("LayerNormalization over positions", "float[8] s, float[8] b", "z = LayerNormalization(h, s, b)", [8])
net("Softmax over channels", "", "z = Softmax<axis=1>(h)", [], "Softmax")
net("Softmax over positions", "", "z = Softmax<axis=3>(h)", [8])
net("Softmax over all but the batch, opset 11", "", "z = Softmax<axis=1>(h)", [], "Softmax", opset=11)
for op in ("LogSoftmax", "Hardmax"):
    net(f"{op} over channels", "", f"z = {op}<axis=1>(h)", [], op)
    net(f"{op} over positions", "", f"z = {op}<axis=-1>(h)", [8])
net("RMSNormalization, opset 23", "float[8] s", "z = RMSNormalization<axis=-1>(h, s)", [8], opset=23)
net("MeanVarianceNormalization of maps", "float[8,8] p",  # a masked channel alone would be 0/0
    "a = Add(h, p) z = MeanVarianceNormalization<axes=[0,2,3]>(a)", [8])
net("MeanVarianceNormalization over channels", "", "z = MeanVarianceNormalization<axes=[1]>(h)", [],
    "MeanVarianceNormalization")
net("CumSum over positions", "int64 a = {3}", "z = CumSum(h, a)", [8])
net("CumSum over channels", "int64 a = {1}", "z = CumSum(h, a)", [], "CumSum")
net("CumProd over positions, opset 26", "int64 a = {3}", "z = CumProd(h, a)", [8], opset=26)
net("RoiAlign", "float[2,4] pos, int64[2] b = {0, 1}",
    "r = RoiAlign<output_height=2, output_width=2>(h, pos, b) z = Relu(r)", [8])
net("MaxRoiPool", "float[2,5] r = {0, 0, 0, 4, 4, 1, 1, 1, 5, 5}", "z = MaxRoiPool<pooled_shape=[2,2]>(h, r)", [8])
net("LpPool", "", "a = LpPool<kernel_shape=[2,2]>(h) z = GlobalLpPool(a)", [8])
net("L2 norm over channels", "", "z = LpNormalization<axis=1>(h)", [8])
net("L1 norm over channels", "", "z = LpNormalization<axis=-3, p=1>(h)", [8])
net("pooling", "", """a = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[1,1]>(h)
    z = AveragePool<kernel_shape=[2,2], strides=[2,2]>(a)""", [8])
net("MaxPool with indices that nobody reads", "", "z, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(h)", [8])
net("MaxPool with indices", "", "p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(h) f = Cast<to=1>(i) z = Add(p, f)", [],
    "where in the whole tensor")
row("MaxPool hands its indices out", f"""(float[1,3,4,4] x) => (float[] y, int64[] i) <{STEM}, float[8,8,1,1] v, float[5,8,1,1] w>
    {{ h = Conv(x, w0, b0) g = Conv(h, v) z, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(g) y = Conv(z, w) }}""", [8],
    "where in the whole tensor")
net("ReduceMean by attribute, opset 13", "", "z = ReduceMean<axes=[2,3], keepdims=1>(h)", [8], opset=13)
net("ReduceSum over everything", "int64[4] t = {1,1,1,1}",
    "s = ReduceSum<keepdims=0>(h) e = Reshape(s, t) z = Mul(h, e)", [8])
UNMASKED = ("ReduceLogSumExp", "ReduceMin", "ReduceProd")  # a zero among what they reduce changes what comes out
for op in "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMin ReduceMax ReduceProd ReduceSum ReduceSumSquare".split():
    net(f"{op} over positions", "int64[2] a = {2, 3}, float one = {1.0}", f"e = Abs(h) f = Add(e, one) z = {op}(f, a)", [8])
    net(f"{op} over channels", "int64[1] a = {1}, float one = {1.0}",
        f"e = Abs(h) f = Add(e, one) r = {op}(f, a) z = Mul(h, r)", *([[], op] if op in UNMASKED else [[8]]))
net("ArgMin over positions", "", "a = ArgMin<axis=3>(h) c = Cast<to=1>(a) z = Add(h, c)", [8])
net("ArgMax over channels", "float[1] one = {1.0}", "a = ArgMax<axis=1>(h) c = Cast<to=1>(a) z = Mul(h, c)",
    [], "ArgMax")

# -- products of activations, attention ---------------------------------------------------------------------------

SEQ = "(float[N,6,12] x) => (float[] y)"
row("MLP", f"{SEQ} <float[12,16] u, float[16] a, float[16,12] v, float[12] b> "
    "{ m = MatMul(x, u) p = Add(m, a) r = Gelu(p) n = MatMul(r, v) q = Add(n, b) y = Add(x, q) }", [16],
    "model input", opset=20)
row("attention, separate q, k, v", f"""{SEQ} <float[12,8] wq, float[8] bq, float[12,8] wk, float[8] bk,
    float[12,10] wv, float[10] bv, float[10,12] wo, float s = {{0.35}}>
    {{ q0 = MatMul(x, wq) q = Add(q0, bq) k0 = MatMul(x, wk) k = Add(k0, bk) v0 = MatMul(x, wv) v = Add(v0, bv)
       kt = Transpose<perm=[0,2,1]>(k) d = MatMul(q, kt) e = Mul(d, s) a = Softmax<axis=-1>(e) c = MatMul(a, v)
       y = MatMul(c, wo) }}""", [8, 10])
HEADS = "int64[4] sp = {0, 6, 2, 4}, int64[3] jo = {0, 6, 8}"
row("attention with heads",
    f"""{SEQ} <float[12,8] wq, float[8] bq, float[12,8] wk, float[12,8] wv, float[8,12] wo, {HEADS}>
    {{ q0 = MatMul(x, wq) q1 = Add(q0, bq) k1 = MatMul(x, wk) v1 = MatMul(x, wv)
       q2 = Reshape(q1, sp) k2 = Reshape(k1, sp) v2 = Reshape(v1, sp)
       q = Transpose<perm=[0,2,1,3]>(q2) k = Transpose<perm=[0,2,3,1]>(k2) v = Transpose<perm=[0,2,1,3]>(v2)
       d = MatMul(q, k) a = Softmax<axis=-1>(d) c = MatMul(a, v) e = Transpose<perm=[0,2,1,3]>(c)
       f = Reshape(e, jo) y = MatMul(f, wo) }}""", [4, 4])
row("attention, packed and split",
    f"""{SEQ} <float[12,24] w, float[24] b, float[8,12] wo, int64[3] th = {{8,8,8}}, {HEADS}>
    {{ p0 = MatMul(x, w) p = Add(p0, b) q1, k1, v1 = Split<axis=2>(p, th)
       q2 = Reshape(q1, sp) k2 = Reshape(k1, sp) v2 = Reshape(v1, sp)
       q = Transpose<perm=[0,2,1,3]>(q2) k = Transpose<perm=[0,2,3,1]>(k2) v = Transpose<perm=[0,2,1,3]>(v2)
       d = MatMul(q, k) a = Softmax<axis=-1>(d) c = MatMul(a, v) e = Transpose<perm=[0,2,1,3]>(c)
       f = Reshape(e, jo) y = MatMul(f, wo) }}""", [4, 4])
row("attention, packed, Reshape and Gather", f"""{SEQ} <float[12,24] w, float[24] b, float[8,12] wo,
    int64[5] sp = {{0, 6, 3, 2, 4}}, int64[3] jo = {{0, 6, 8}}, int64 i0 = {{0}}, int64 i1 = {{1}}, int64 i2 = {{2}}>
    {{ p0 = MatMul(x, w) p1 = Add(p0, b) p2 = Reshape(p1, sp) p = Transpose<perm=[2,0,3,1,4]>(p2)
       q = Gather<axis=0>(p, i0) k1 = Gather<axis=0>(p, i1) v = Gather<axis=0>(p, i2)
       k = Transpose<perm=[0,1,3,2]>(k1) d = MatMul(q, k) a = Softmax<axis=-1>(d) c = MatMul(a, v)
       e = Transpose<perm=[0,2,1,3]>(c) f = Reshape(e, jo) y = MatMul(f, wo) }}""", [4])
row("attention, packed, Reshape and Slice", f"""{SEQ} <float[12,24] w, float[24] b, float[8,12] wo,
    int64[5] sp = {{0, 6, 3, 2, 4}}, int64[3] jo = {{0, 6, 8}}, int64[1] i0 = {{0}}, int64[1] i1 = {{1}},
    int64[1] i2 = {{2}}, int64[1] i3 = {{3}}>
    {{ p0 = MatMul(x, w) p1 = Add(p0, b) p2 = Reshape(p1, sp) p = Transpose<perm=[2,0,3,1,4]>(p2)
       q0 = Slice(p, i0, i1, i0) q = Squeeze(q0, i0) k0 = Slice(p, i1, i2, i0) k1 = Squeeze(k0, i0)
       v0 = Slice(p, i2, i3, i0) v = Squeeze(v0, i0) k = Transpose<perm=[0,1,3,2]>(k1) d = MatMul(q, k)
       a = Softmax<axis=-1>(d) c = MatMul(a, v) e = Transpose<perm=[0,2,1,3]>(c) f = Reshape(e, jo) y = MatMul(f, wo) }}""",
    [4])
TOKENS = "float[12,8] wq, float[12,8] wk, float[12,10] wv, float[10,12] wo"
row("Attention with heads in one axis", f"""{SEQ} <{TOKENS}>
    {{ q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) a = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v)
       y = MatMul(a, wo) }}""", [4, 5], opset=23)
row("Attention, more queries than keys", f"""{SEQ} <float[12,4] wk, float[12,5] wv, float[12,8] wq, float[10,12] wo>
    {{ q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
       a = Attention<q_num_heads=2, kv_num_heads=1, scale=0.3>(q, k, v) y = MatMul(a, wo) }}""", [4, 5], opset=23)
row("Attention with heads on an axis", f"""{SEQ} <float[12,8] wq, float[12,8] wk, float[12,8] wv, float[8,12] wo, {HEADS}, float[6,6] m>
    {{ q0 = MatMul(x, wq) k0 = MatMul(x, wk) v0 = MatMul(x, wv) q1 = Reshape(q0, sp) k1 = Reshape(k0, sp)
       v1 = Reshape(v0, sp) q = Transpose<perm=[0,2,1,3]>(q1) k = Transpose<perm=[0,2,1,3]>(k1)
       v = Transpose<perm=[0,2,1,3]>(v1) a = Attention(q, k, v, m) e = Transpose<perm=[0,2,1,3]>(a)
       f = Reshape(e, jo) y = MatMul(f, wo) }}""", [4, 4], opset=23)
row("Attention that hands its keys on", f"""{SEQ[:-1]}, float[] p) <{TOKENS}>
    {{ q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
       a, p = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v) y = MatMul(a, wo) }}""", [], "Attention with a cache", opset=23)
HEADS_OF = """(float[N,6,12] x) => (float[] y)
    <float[12,12] u, float[12] g, float[12] b, float[12,12] wq, float[12,12] wk, float[12,12] wv, float[12,5] wo,
    int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i2 = {2}, int64[1] i3 = {3}, int64[1] h = {3}>
    { m = MatMul(x, u) n = LayerNormalization(m, g, b) s = Shape(n) B = Slice(s, i0, i1) T = Slice(s, i1, i2)
      C = Slice(s, i2, i3) D = Div(C, h) SPLITS q0 = MatMul(n, wq) k0 = MatMul(n, wk) v0 = MatMul(n, wv)
      q1 = Reshape(q0, sq) k1 = Reshape(k0, sk) v1 = Reshape(v0, sv)
      q = Transpose<perm=[0,2,1,3]>(q1) k = Transpose<perm=[0,2,3,1]>(k1) v = Transpose<perm=[0,2,1,3]>(v1)
      d = MatMul(q, k) a = Softmax<axis=-1>(d) t = MatMul(a, v) e = Transpose<perm=[0,2,1,3]>(t)
      jo = Concat<axis=0>(B, T, C) f = Reshape(e, jo) y = MatMul(f, wo) }"""
row("heads split by the width of a tensor that stays whole", HEADS_OF.replace("SPLITS", """sq = Concat<axis=0>(B, T, h, D)
    sk = Concat<axis=0>(B, T, h, D) sv = Concat<axis=0>(B, T, h, D)"""), [4, 4], "LayerNormalization")
row("heads split by one shape for all", HEADS_OF.replace("SPLITS", """sq = Concat<axis=0>(B, T, h, D) sk = Identity(sq)
    sv = Identity(sq)"""), [], "two readers of one size")
ROTARY = f"""{SEQ} <float[12,8] wq, float[12,8] wk, float[12,8] wv, float[8,12] wo, {HEADS}, float[6,2] c, float[6,2] s,
    int64[1,6] p = {{0, 1, 2, 3, 4, 5}}> {{ q0 = MatMul(x, wq) k0 = MatMul(x, wk) v0 = MatMul(x, wv) q1 = Reshape(q0, sp)
       k1 = Reshape(k0, sp) v1 = Reshape(v0, sp) q2 = Transpose<perm=[0,2,1,3]>(q1) k2 = Transpose<perm=[0,2,1,3]>(k1)
       v = Transpose<perm=[0,2,1,3]>(v1) TURNED k = Transpose<perm=[0,1,3,2]>(k3) d = MatMul(q, k) a = Softmax<axis=-1>(d)
       t = MatMul(a, v) e = Transpose<perm=[0,2,1,3]>(t) f = Reshape(e, jo) y = MatMul(f, wo) }}"""
row("RotaryEmbedding of heads on an axis", ROTARY.replace("TURNED", """pn = Expand(p, en) q = RotaryEmbedding(q2, c, s, pn)
    k3 = RotaryEmbedding(k2, c, s, pn)""").replace("int64[1,6] p", "int64[2] en = {2, 6}, int64[1,6] p"), [4], "MatMul joins", opset=23)
row("RotaryEmbedding of Microsoft's, heads on an axis", ROTARY.replace("TURNED", """pn = Expand(p, en)
    q = com.microsoft.RotaryEmbedding(q2, pn, c, s) k3 = com.microsoft.RotaryEmbedding(k2, pn, c, s)""").replace(
    "int64[1,6] p", "int64[2] en = {2, 6}, int64[1,6] p"), [4], "MatMul joins")
row("RotaryEmbedding of heads in one axis", f"""{SEQ.replace("N", "2")} <{TOKENS}, float[6,2] c, float[6,2] s, int64[2,6] p = {{0,1,2,3,4,5,0,1,2,3,4,5}}>
    {{ q0 = MatMul(x, wq) k0 = MatMul(x, wk) v = MatMul(x, wv) q = RotaryEmbedding<num_heads=2>(q0, c, s, p)
       k = RotaryEmbedding<num_heads=2>(k0, c, s, p) a = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v)
       y = MatMul(a, wo) }}""", [5], "RotaryEmbedding", opset=23)
net("Slice of one channel", "int64[1] s = {2}, int64[1] e = {3}, int64[1] a = {1}",
    "b = Slice(h, s, e, a) z = Mul(h, b)", [7], "single channel")
row("Einsum with a weight", """(float[N,6,12] x) => (float[] y) <float[12,8] w, float[8,5] v>
    { h = Einsum<equation="bnc,cd->bnd">(x, w) r = Relu(h) y = Einsum<equation="bnd,de->bne">(r, v) }""",
    [8])
row("Einsum of two activations", f"""{SEQ} <float[12,8] wq, float[12,8] wk, float[12,8] wv, float[8,5] wo>
    {{ q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) d = Einsum<equation="bic,bjc->bij">(q, k)
       a = Softmax<axis=-1>(d) c = Einsum<equation="bij,bjc->bic">(a, v) y = MatMul(c, wo) }}""", [8, 8])
row("Einsum with dots", f"""{SEQ} <float[12,8] w, float[8,5] v>
    {{ m = MatMul(x, w) y = Einsum<equation="...c,cd->...d">(m, v) }}""", [8])
row("MatMul of a constant of three axes",
    """(float[2,6,12] x) => (float[] y) <float[12,8] w, float[2,8,5] v>
    { m = MatMul(x, w) y = MatMul(m, v) }""", [8])
row("position embedding", f"""{SEQ} <float[12,8] w, float[1,6,8] p, float[8,16] u, float[16,5] v>
    {{ m = MatMul(x, w) a = Add(m, p) h = MatMul(a, u) r = Relu(h) y = MatMul(r, v) }}""", [8, 16])
row("class token", """(float[1,6,12] x) => (float[] y) <float[12,8] w, float[1,1,8] t, float[8,5] v>
    { m = MatMul(x, w) c = Concat<axis=1>(t, m) r = Relu(c) y = MatMul(r, v) }""", [8])
row("class token for every image", """(float[N,6,12] x) => (float[] y) <float[12,8] w, float[1,1,8] t, float[8,5] v,
    int64[1] zero = {0}, int64[1] one = {1}, int64[2] d = {1, 8}>
    { m = MatMul(x, w) s = Shape(x) n = Slice(s, zero, one) k = Concat<axis=0>(n, d) e = Expand(t, k)
      c = Concat<axis=1>(e, m) r = Relu(c) y = MatMul(r, v) }""", [8])
row("embedding", """(int64[N,6] x) => (float[] y) <float[10,8] e, float[8,5] v>
    { m = Gather(e, x) r = Relu(m) y = MatMul(r, v) }""", [8])
row("LSTM",
    """(float[6,2,12] x) => (float[] y) <float[12,8] u, float[1,16,8] w, float[1,16,4] r, float[1,32] b>
    { m = MatMul(x, u) a = Relu(m) y, h, c = LSTM<hidden_size=4>(a, w, r, b) }""", [8], "model output")
row("RNN", """(float[6,2,12] x) => (float[] y) <float[12,8] u, float[1,4,8] w, float[1,4,4] r>
    { m = MatMul(x, u) a = Relu(m) y, h = RNN<hidden_size=4>(a, w, r) }""", [8], "model output")
row("GRU both ways", """(float[6,2,12] x) => (float[] y) <float[12,8] u, float[2,12,8] w, float[2,12,4] r>
    { m = MatMul(x, u) a = Relu(m) y, h = GRU<hidden_size=4, direction="bidirectional">(a, w, r) }""", [8],
    "model output")

# -- constants, wherever they are ------------------------------------------------------------------------------------

net("weights behind Identity", "float[6,8,3,3] w, float[6] b",
    "v = Identity(w) c = Identity(b) z = Conv(h, v, c)", [6, 8], read=6)
net("weights behind Transpose", "float[3,3,8,6] w", "v = Transpose<perm=[3,2,0,1]>(w) z = Conv(h, v)",
    [6, 8], read=6)
net("a bias of zeros by CastLike (torch, not optimised)", "float[6,8,3,3] w, double nought = {0.5}, int64[1] a = {0},"
    " int64[1] e = {1}", """k = CastLike(nought, h) s = Shape(w) n = Slice(s, a, e) b = Expand(k, n)
    z = Conv(h, w, b)""", [6, 8], read=6)
net("CastLike of an activation", "float[6,8,3,3] w", "k = CastLike(h, x) r = Relu(k) z = Conv(r, w)", [6, 8], read=6)
net("weights behind Reshape", "float[6,72] w, int64[4] s = {6,8,3,3}", "v = Reshape(w, s) z = Conv(h, v)",
    [6, 8], read=6)
net("weights behind Cast", "double[6,8,3,3] w", "v = Cast<to=1>(w) z = Conv(h, v)", [6, 8], read=6)
net("a bias behind Reshape (Paddle)", "float[8] b, int64[4] s = {1,8,1,1}",
    "c = Reshape(b, s) z = Add(h, c)", [8])
net("weights in Constant nodes", "",
    """w = Constant<value = float[2,8,1,1] {1,2,3,4,5,6,7,8,8,7,6,5,4,3,2,1}>()
    b = Constant<value_floats = [0.5, -0.5]>() z = Conv(h, w, b)""", [2, 8], read=2)
net("one folded weight for two convs", "float[3,3,8,8] w",
    "v = Transpose<perm=[3,2,0,1]>(w) a = Conv<pads=[1,1,1,1]>(h, v) r = Relu(a) z = Conv<pads=[1,1,1,1]>(r, v)",
    [8, 8, 8])
row("a constant that is also a model output",
    f"""(float[1,3,4,4] x) => (float[] y, float[] b) <{STEM}, float[8,1,1] t,
    float[5,8,1,1] w> {{ b = Identity(t) h = Conv(x, w0, b0) z = Add(h, b) y = Conv(z, w) }}""", [8])

# -- sizes computed at run time ---------------------------------------------------------------------------------------

net("view: Shape-Gather-Concat-Reshape",
    "int64 i = {0}, int64[1] zero = {0}, int64[1] m = {-1}, float[5,8] w, int64[4] t = {0,5,1,1}",
    """p = GlobalAveragePool(h) s = Shape(p) g = Gather(s, i) u = Unsqueeze(g, zero) c = Concat<axis=0>(u, m)
       f = Reshape(p, c) d = Gemm<transB=1>(f, w) z = Reshape(d, t)""", [5, 8], read=5)
net("a view by the width of another tensor", "float[8,8,1,1] w, float[8,8,1,1] u, int64 i0 = {0}, int64 i1 = {1},"
    " int64[1] a = {0}, int64[1] m = {-1}, int64[1] two = {2}, int64[1] four = {4}",
    """v = Conv(h, w) s = Shape(h) sp = Slice(s, two, four) n0 = Gather(s, i0) n = Unsqueeze(n0, a) c0 = Gather(s, i1) c = Unsqueeze(c0, a)
       k = Concat<axis=0>(n, c, m) f = Reshape(v, k) r = Relu(f) l = Concat<axis=0>(n, c, sp) b = Reshape(r, l)
       z = Conv(b, u)""", [8, 8, 8])
net("view that keeps the channels' number",
    "int64[1] i = {0}, int64[1] j = {1}, int64[1] m = {-1}, int64[1] e = {2}",
    """s = Shape(h) b = Slice(s, i, j) c = Slice(s, j, e) k = Concat<axis=0>(b, c, m) f = Reshape(h, k)
       r = Relu(f) z = Reshape(r, s)""", [8])
net("channel shuffle computed at run time",
    "int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}, int64 i3 = {3},"
    " int64[1] a = {0}, int64 two = {2}, int64[1] tw = {2}",
    """s = Shape(h) n0 = Gather(s, i0) b = Unsqueeze(n0, a) c0 = Gather(s, i1) d0 = Div(c0, two) d = Unsqueeze(d0, a)
       h0 = Gather(s, i2) hh = Unsqueeze(h0, a) w0_ = Gather(s, i3) ww = Unsqueeze(w0_, a) c = Unsqueeze(c0, a)
       k = Concat<axis=0>(b, tw, d, hh, ww) f = Reshape(h, k) t = Transpose<perm=[0,2,1,3,4]>(f)
       l = Concat<axis=0>(b, c, hh, ww) z = Reshape(t, l)""", [4])
net("a spelled width in a run-time shape",
    "int64[1] a = {0}, int64[1] b = {1}, int64[1] c = {8}, int64[1] m = {-1}, float[8,8,1,1] w",
    """s = Shape(x) n = Slice(s, a, b) k = Concat<axis=0>(n, c, m) f = Reshape(h, k) r = Relu(f)
       t = Shape(h) q = Reshape(r, t) z = Conv(q, w)""", [8, 8])
net("Resize to another map's size",
    "float[8,8,3,3] w, int64[1] a = {0}, int64[1] b = {2}, int64[1] e = {4}",
    """d = Conv<strides=[2,2]>(h, w) s = Shape(d) n = Slice(s, a, b) t = Shape(h) hw = Slice(t, b, e)
       k = Concat<axis=0>(n, hw) u = Resize<mode="nearest">(d, , , k) z = Add(u, h)""", [8])
net("Slice ends computed from a channel count",
    "int64 i = {1}, int64 two = {2}, int64[1] zero = {0}, int64[1] one = {1}",
    """s = Shape(h) c = Gather(s, i) d = Div(c, two) e = Unsqueeze(d, zero) z = Slice(h, zero, e, one)""",
    [4, 4], read=4)
net("a channel count used as a value", "int64 i = {1}",
    "s = Shape(h) c = Gather(s, i) f = Cast<to=1>(c) q = Sqrt(f) z = Div(h, q)", [8])
net("a size of the map used as a value", "int64 i = {3}",
    "s = Shape(h) c = Gather(s, i) f = Cast<to=1>(c) q = Sqrt(f) z = Div(h, q)", [8])
row("a channel count is a model output", f"""(float[N,3,4,4] x) => (float[] y, int64[] n)
    <{STEM}, float[5,8,1,1] w, int64 i = {{1}}, int64 j = {{2}}>
    {{ h = Conv(x, w0, b0) s = Shape(h) c = Gather(s, i) k = Gather(s, j) n = Mul(c, k) y = Conv(h, w) }}""", [],
    "model output")
row("the size of a map is a model output", f"""(float[N,3,4,4] x) => (float[] y, int64[] n)
    <{STEM}, float[5,8,1,1] w, int64 j = {{2}}>
    {{ h = Conv(x, w0, b0) s = Shape(h) n = Gather(s, j) y = Conv(h, w) }}""", [8])
row("a body reads a channel count", f"""(float[1,3,4,4] x, bool c) => (float[] y) <{STEM}, float[5,8,1,1] w, int64 i = {{1}}>
    {{ h = Conv(x, w0, b0) s = Shape(h) n = Gather(s, i) f = Cast<to=1>(n) g = Conv(h, w)
       y = If(c) <then_branch = t () => (float[1,5,2,2] a) {{ a = Mul(g, f) }},
                  else_branch = e () => (float[1,5,2,2] b) {{ b = Div(g, f) }}> }}""", [], "inside the body")
row("weights inside bodies and out of sight", f"""(float[1,3,4,4] x, bool c) => (float[] y) <{STEM}, float[6,8,1,1] w,
    float[6,6,1,1] v, float[5,6,1,1] u>
    {{ h = Conv(x, w0, b0) z = Conv(h, w)
       q = If(c) <then_branch = t () => (float[1,6,2,2] a) {{ a = Conv(z, v) }},
                  else_branch = e () => (float[1,6,1,2] b) {{ k = Constant<value = float[2,2] {{1, 0, 0, 1}}>()
                      b = MatMul(z, k) }}>
       y = Conv(q, u) }}""", [8], "read inside the body of q")
net("the number of elements used as a value", "", "s = Size(h) f = Cast<to=1>(s) z = Div(h, f)", [],
    "as a value")
net("zeros of a computed shape", "float[8] b",
    """s = Shape(h) c = ConstantOfShape(s) a = Add(h, c) z = Relu(a)""", [8])
net("a first hidden state", "int64[1] a = {0}, int64[1] b = {1}, int64[3] t = {8, 8, 8}, float[8,16,3,3] w",
    """s = Shape(x) n = Slice(s, a, b) k = Concat<axis=0>(n, t) c = ConstantOfShape(k) j = Concat<axis=1>(h, c)
       g = Conv<pads=[1,1,1,1]>(j, w) u = Mul(g, c) e = Add(u, h) z = Relu(e)""", [8])
net("a first hidden state by Expand", "int64[1] i = {0}, int64[1] b = {1}, float v = {0.5}, int64[3] t = {8, 8, 8},"
    " float[8,16,3,3] w", """s = Shape(x) n = Slice(s, i, b) k = Concat<axis=0>(n, t) c = Expand(v, k) j = Concat<axis=1>(h, c) g = Conv<pads=[1,1,1,1]>(j, w) u = Mul(g, c)
       z = Add(u, h)""", [8])
row("zeros that meet tokens", """(float[2,6,12] x) => (float[] y) <float[12,8] w, int64[3] t = {2, 6, 8}, float[8,5] v>
    { m = MatMul(x, w) c = ConstantOfShape(t) a = Add(m, c) y = MatMul(a, v) }""", [8])
row("zeros that are also a model output", f"""(float[N,3,4,4] x) => (float[] y, float[] c) <{STEM}, float[5,8,1,1] w>
    {{ h = Conv(x, w0, b0) s = Shape(h) c = ConstantOfShape(s) a = Add(h, c) y = Conv(a, w) }}""", [],
    "model output")
net("Expand to the shape of another", "", "p = GlobalAveragePool(h) s = Shape(h) z = Expand(p, s)", [8])
net("Range over positions", "int64 i = {3}, int64 zero = {0}, int64 one = {1}",
    "s = Shape(h) n = Gather(s, i) r = Range(zero, n, one) z = Gather<axis=3>(h, r)", [8])
net("Flatten and back", "", "f = Flatten(h) q = Shape(h) z = Reshape(f, q)", [8])
net("Slice with an end computed from data", "int64[1] zero = {0}, int64[1] one = {1}, int64 four = {4}, int64[1] m = {-1}",
    """f = Reshape(x, m) a = ArgMax<axis=0, keepdims=1>(f) b = Min(a, zero) e = Add(b, four)
       z = Slice(h, zero, e, one)""", [], "computed from data", read=4)

# -- as Keras by tf2onnx, and Paddle, write them ------------------------------------------------------------------------

row("keras: NHWC in and out, BN as Mul and Add, HWC flatten",
    """(float[N,8,8,3] x) => (float[] y) <float[8,3,3,3] w, float[8] s, float[8] t, float[16,8,3,3] v, float[16] b,
    float[256,5] d, float[5] e, int64[2] r = {-1, 256}> { a = Transpose<perm=[0,3,1,2]>(x) h =
    Conv<auto_pad="SAME_UPPER">(a, w) g = Transpose<perm=[0,2,3,1]>(h) m = Mul(g, s) n = Add(m, t) q = Relu(n) u
    = Transpose<perm=[0,3,1,2]>(q) k = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(u, v, b) c =
    Transpose<perm=[0,2,3,1]>(k) p = Relu(c) f = Reshape(p, r) z = MatMul(f, d) y = Add(z, e) }""", [8, 16])
row("keras: SE by ReduceMean over NHWC and Reshape",
    """(float[N,8,8,3] x) => (float[] y) <float[8,3,3,3] w, float[8] s, float[8,4] u, float[4] ub, float[4,8] v,
    float[8] vb, float[5,8,1,1] o, int64[2] a = {1, 2}, int64[4] r = {-1, 1, 1, 8}> { t =
    Transpose<perm=[0,3,1,2]>(x) h = Conv<auto_pad="SAME_UPPER">(t, w) g = Transpose<perm=[0,2,3,1]>(h) n =
    Mul(g, s) p = ReduceMean<keepdims=0>(n, a) q = MatMul(p, u) qb = Add(q, ub) qr = Relu(qb) e = MatMul(qr, v)
    eb = Add(e, vb) es = Sigmoid(eb) er = Reshape(es, r) m = Mul(n, er) k = Transpose<perm=[0,3,1,2]>(m) y =
    Conv(k, o) }""", [4, 8])
row("keras: SE by ReduceMean keepdims and convs of 1x1",
    """(float[N,8,8,3] x) => (float[] y) <float[8,3,3,3] w, float[4,8,1,1] u, float[4] ub, float[8,4,1,1] v,
    float[8] vb, float[5,8,1,1] o, int64[2] a = {1, 2}> { t = Transpose<perm=[0,3,1,2]>(x) h =
    Conv<auto_pad="SAME_UPPER">(t, w) n = Transpose<perm=[0,2,3,1]>(h) p = ReduceMean(n, a) pt =
    Transpose<perm=[0,3,1,2]>(p) q = Conv(pt, u, ub) qr = Relu(q) e = Conv(qr, v, vb) es = Sigmoid(e) er =
    Transpose<perm=[0,2,3,1]>(es) m = Mul(er, n) k = Transpose<perm=[0,3,1,2]>(m) y = Conv(k, o) }""", [4, 8])
row("keras: depthwise conv with weight reshaped, explicit Pad",
    """(float[N,8,8,3] x) => (float[] y) <float[8,3,3,3] w, float[3,3,8,1] dw, int64[4] rs = {8, 1, 3, 3}, int64[8]
    pads = {0, 0, 0, 0, 0, 0, 1, 1}, float zero = {0.0}, float[5,8,1,1] o> { t = Transpose<perm=[0,3,1,2]>(x) h
    = Conv<auto_pad="SAME_UPPER">(t, w) c = Clip(h, zero) p = Pad(c, pads, zero) wt =
    Transpose<perm=[2,3,0,1]>(dw) wr = Reshape(wt, rs) d = Conv<group=8, strides=[2,2]>(p, wr) y = Conv(d, o) }""", [8])
row("keras: UpSampling by Resize in NHWC with Transposes and a skip Concat on the last axis",
    """(float[N,8,8,3] x) => (float[] y) <float[8,3,3,3] w, float[6,8,3,3] v, float[] roi, float[4] sc = {1.0, 1.0,
    2.0, 2.0}, float[5,14,1,1] o> { t = Transpose<perm=[0,3,1,2]>(x) h = Conv<auto_pad="SAME_UPPER">(t, w) hn =
    Transpose<perm=[0,2,3,1]>(h) d = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(h, v) u = Resize<mode="nearest",
    coordinate_transformation_mode="asymmetric", nearest_mode="floor">(d, , sc) un =
    Transpose<perm=[0,2,3,1]>(u) c = Concat<axis=3>(un, hn) r = Relu(c) ct = Transpose<perm=[0,3,1,2]>(r) y =
    Conv(ct, o) }""", [6, 8])
row("tf2onnx: upsampling by Unsqueeze, Tile and Reshape",
    """(float[1,3,4,4] x) => (float[] y) <float[8,3,3,3] w, int64[2] ax = {3, 5}, int64[6] rep = {1, 1, 1, 2, 1,
    2}, int64[4] to = {1, 8, 8, 8}, float[5,8,1,1] o> { h = Conv<pads=[1,1,1,1]>(x, w) u = Unsqueeze(h, ax) t =
    Tile(u, rep) r = Reshape(t, to) y = Conv(r, o) }""", [8])
row("tf2onnx: batch size in a Flatten by Shape, StridedSlice, Pack",
    """(float[N,8,8,3] x) => (float[] y) <float[8,3,3,3] w, int64[1] z0 = {0}, int64[1] z1 = {1}, int64[1] n =
    {512}, float[512,5] d> { t = Transpose<perm=[0,3,1,2]>(x) h = Conv<auto_pad="SAME_UPPER">(t, w) g =
    Transpose<perm=[0,2,3,1]>(h) s = Shape(g) c = Cast<to=6>(s) c2 = Cast<to=7>(c) b = Slice(c2, z0, z1, z0) k =
    Concat<axis=0>(b, n) f = Reshape(g, k) y = MatMul(f, d) }""", [8])
row("keras: SpaceToDepth blocks by Reshape and Transpose NHWC",
    """(float[1,8,8,3] x) => (float[] y) <float[8,3,3,3] w, int64[6] r = {1, 4, 2, 4, 2, 8}, int64[4] q = {1, 4, 4,
    32}, float[32,5] d> { t = Transpose<perm=[0,3,1,2]>(x) h = Conv<auto_pad="SAME_UPPER">(t, w) g =
    Transpose<perm=[0,2,3,1]>(h) a = Reshape(g, r) b = Transpose<perm=[0,1,3,2,4,5]>(a) c = Reshape(b, q) y =
    MatMul(c, d) }""", [8])
row("keras: PReLU shared axes, NHWC slope",
    """(float[N,8,8,3] x) => (float[] y) <float[8,3,3,3] w, float[1,1,8] a, float[5,8,1,1] o> { t =
    Transpose<perm=[0,3,1,2]>(x) h = Conv<auto_pad="SAME_UPPER">(t, w) g = Transpose<perm=[0,2,3,1]>(h) p =
    PRelu(g, a) k = Transpose<perm=[0,3,1,2]>(p) y = Conv(k, o) }""", [8])
row("tf2onnx: leaky relu, hard swish by Min Max, L2Normalize head",
    """(float[N,8,8,3] x) => (float[] y) <float[8,3,3,3] w, float six = {6.0}, float zero = {0.0}, float three =
    {3.0}, float[6,8,1,1] o, float eps = {0.0001}, int64[1] ax = {1}> { t = Transpose<perm=[0,3,1,2]>(x) h =
    Conv<auto_pad="SAME_UPPER">(t, w) a = Add(h, three) b = Max(a, zero) c = Min(b, six) d = Mul(h, c) e =
    Div(d, six) k = Conv(e, o) sq = Mul(k, k) ss = ReduceSum(sq, ax) m = Max(ss, eps) r = Sqrt(m) i =
    Reciprocal(r) y = Mul(k, i) }""", [8], "model output")
row("keras LSTM over conv features",
    """(float[1,8,8,3] x) => (float[] y) <float[6,3,3,3] w, int64[3] r = {1, 8, 48}, float[1,20,48] lw,
    float[1,20,5] lr, float[1,40] lb, float[5,4] d> { t = Transpose<perm=[0,3,1,2]>(x) h =
    Conv<auto_pad="SAME_UPPER">(t, w) g = Transpose<perm=[0,2,3,1]>(h) f = Reshape(g, r) q =
    Transpose<perm=[1,0,2]>(f) o, a, b = LSTM<hidden_size=5>(q, lw, lr, lb) i = Identity(a) y = MatMul(i, d) }""", [5, 6])
row("paddle: bias as Reshape of a constant, BN, Identities",
    """(float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] w, float[8] b, int64[4] r = {1, -1, 1, 1}, float[8] s,
    float[8] t, float[8] m, float[8] var, float[8,8,1,1] v, float[8] e, float[8,5] d> { c =
    Conv<pads=[1,1,1,1]>(x, w) b4 = Reshape(b, r) a = Add(c, b4) n = BatchNormalization(a, s, t, m, var) i =
    Identity(n) g = Relu(i) k = Conv(g, v) e4 = Reshape(e, r) q = Add(k, e4) z = Add(q, g) p =
    GlobalAveragePool(z) f = Flatten(p) y = MatMul(f, d) }""", [8])
row("paddle: SE with hard sigmoid as Mul, Add, Clip",
    """(float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] w, float[4,8,1,1] u, float[4] ub, float[8,4,1,1] v,
    float[8] vb, int64[4] r = {1, -1, 1, 1}, float k = {0.2}, float h5 = {0.5}, float zero = {0.0}, float one =
    {1.0}, float[5,8,1,1] o> { h = Conv(x, w) p = GlobalAveragePool(h) q = Conv(p, u) ub4 = Reshape(ub, r) qb =
    Add(q, ub4) qr = Relu(qb) e = Conv(qr, v) vb4 = Reshape(vb, r) eb = Add(e, vb4) em = Mul(eb, k) ea = Add(em,
    h5) ec = Clip(ea, zero, one) m = Mul(h, ec) y = Conv(m, o) }""", [4, 8])
row("paddle: shuffle_channel with computed shape",
    """(float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] w, int64[1] a0 = {0}, int64[1] a1 = {1}, int64[1] two =
    {2}, int64[1] four = {4}, int64[1] eight = {8}, int64[1] b2 = {2}, int64[1] b4 = {4}, float[5,8,1,1] o> { h
    = Conv<pads=[1,1,1,1]>(x, w) s = Shape(h) n = Slice(s, a0, a1, a0) hw = Slice(s, b2, b4, a0) k =
    Concat<axis=0>(n, two, four, hw) r = Reshape(h, k) t = Transpose<perm=[0,2,1,3,4]>(r) q = Concat<axis=0>(n,
    eight, hw) z = Reshape(t, q) y = Conv(z, o) }""", [4])
row("paddle: FPN nearest by Resize with sizes from Shape, Cast and Concat",
    """(float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] w, float[8,8,3,3] v, int64[1] a0 = {0}, int64[1] b2 = {2},
    int64[1] b4 = {4}, float[5,8,1,1] o> { h = Conv<pads=[1,1,1,1]>(x, w) d = Conv<pads=[1,1,1,1],
    strides=[2,2]>(h, v) s = Shape(h) hw = Slice(s, b2, b4, a0) sd = Shape(d) nc = Slice(sd, a0, b2, a0) ci =
    Cast<to=6>(hw) cl = Cast<to=7>(ci) k = Concat<axis=0>(nc, cl) u = Resize<mode="nearest",
    coordinate_transformation_mode="asymmetric", nearest_mode="floor">(d, , , k) z = Add(u, h) y = Conv(z, o) }""", [8])
row("paddle: SVTR attention, qkv by one Linear, Slice and Squeeze",
    """(float[1,3,4,8] x) => (float[] y) <float[8,3,1,1] w, float[8,24] qkv, float[24] qb, int64[3] fl = {0, 8,
    32}, int64[5] r5 = {0, -1, 3, 2, 4}, int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i2 = {2}, int64[1] i3 =
    {3}, float sc = {0.5}, int64[3] back = {0, -1, 8}, float[8,8] pw, float[8,5] d> { h = Conv(x, w) f =
    Reshape(h, fl) t = Transpose<perm=[0,2,1]>(f) m = MatMul(t, qkv) mb = Add(m, qb) r = Reshape(mb, r5) p =
    Transpose<perm=[2,0,3,1,4]>(r) q0 = Slice(p, i0, i1, i0) q1 = Squeeze(q0, i0) q = Mul(q1, sc) k0 = Slice(p,
    i1, i2, i0) k = Squeeze(k0, i0) v0 = Slice(p, i2, i3, i0) v = Squeeze(v0, i0) kt =
    Transpose<perm=[0,1,3,2]>(k) a = MatMul(q, kt) s = Softmax<axis=-1>(a) e = MatMul(s, v) et =
    Transpose<perm=[0,2,1,3]>(e) er = Reshape(et, back) o = MatMul(er, pw) z = Add(t, o) y = MatMul(z, d) }""", [4, 8])
row("paddle: Split of a Conv and multiplying halves (GLU), sum of Split",
    """(float[N,3,8,8] x) => (float[] y) <float[16,3,3,3] w, int64[2] sp = {8, 8}, float[5,8,1,1] o> { h = Conv(x,
    w) a, b = Split<axis=1>(h, sp) g = Sigmoid(b) m = Mul(a, g) y = Conv(m, o) }""", [8])
row("paddle: ReduceMean pooling, Squeeze, Gemm as MatMul Add with x_num_col_dims",
    """(float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] w, float[8,5] d, float[5] e, int64[2] r = {0, -1}> { h =
    Conv(x, w) p = ReduceMean<axes=[2,3], keepdims=1>(h) f = Reshape(p, r) m = MatMul(f, d) a = Add(m, e) y =
    Softmax<axis=-1>(a) }""", [8], "Softmax mixes", opset=13)

# -- what cannot be cut, with the reason ---------------------------------------------------------------------------------

row("model output", f"""(float[N,3,4,4] x) => (float[] h) <{STEM}> {{ h = Conv(x, w0, b0) }}""", [],
    "model output")
row("a hidden layer is an output too",
    f"""(float[N,3,4,4] x) => (float[] y, float[] r) <{STEM}, float[5,8,1,1] w>
    {{ h = Conv(x, w0, b0) r = Relu(h) y = Conv(r, w) }}""", [], "model output")
net("an operator without a rule", "", "n = RandomNormalLike(h) z = Mul(h, n)", [], "RandomNormalLike")
net("QuickGelu of ORT", "", "z = com.microsoft.QuickGelu(h)", [8])
net("another domain", "", "z = com.microsoft.SampleOp(h)", [],
    "SampleOp of com.microsoft is not known to onnxprune; if ONNX Runtime's optimiser wrote it")
row("TopK head", f"""(float[1,3,4,4] x) => (float[] v, int64[] i)
    <{STEM}, float[6,8] w, float[6,8] u, int64[1] k = {{2}}>
    {{ h = Conv(x, w0, b0) p = GlobalAveragePool(h) f = Flatten(p) s = Gemm<transB=1>(f, w) v, i = TopK(s, k) }}""",
    [8], "TopK")
row("NonMaxSuppression head", f"""(float[1,3,4,4] x) => (int64[] y)
    <{STEM}, float[4,8,1,1] wb, float[2,8,1,1] ws, int64[3] rb = {{1,4,-1}}, int64[3] rs = {{1,2,-1}},
     int64 k = {{5}}, float o = {{0.5}}>
    {{ h = Conv(x, w0, b0) r = Relu(h) b0_ = Conv(r, wb) b1 = Reshape(b0_, rb) b = Transpose<perm=[0,2,1]>(b1)
       s0 = Conv(r, ws) s = Reshape(s0, rs) y = NonMaxSuppression(b, s, k, o) }}""", [8],
    "NonMaxSuppression")
row("If captures an activation",
    f"""(float[1,3,4,4] x, bool c) => (float[] y) <{STEM}, float[6,8,1,1] w, float[5,6,1,1] v>
    {{ h = Conv(x, w0, b0) r = Relu(h) z = Conv(r, w)
       q = If(c) <then_branch = t () => (float[1,6,2,2] a) {{ a = Relu(z) }},
                  else_branch = e () => (float[1,6,2,2] b) {{ b = Neg(z) }}>
       y = Conv(q, v) }}""", [6, 8])
row("Loop captures a weight and an activation", f"""(float[1,3,4,4] x) => (float[] y)
    <{STEM}, float[8,8,1,1] w, float[5,8,1,1] v, int64 n = {{2}}, bool go = {{1}}>
    {{ h = Conv(x, w0, b0) k = Conv(h, w) r = Relu(k)
       q = Loop(n, go, r) <body = b (int64 i, bool g, float[1,8,2,2] s) => (bool g2, float[1,8,2,2] s2)
            {{ g2 = Identity(g) t = Conv(s, w) s2 = Add(t, r) }}>
       y = Conv(q, v) }}""", [8], "Loop")

# fmt: on


@pytest.mark.parametrize("case", surgery.rows(ROWS))
def test_widths_and_reasons(case: Row) -> None:
    model = surgery.model_of(case.text, case.opset)
    graph, channels = surgery.find(model)
    assert sorted(g.width for g in channels.groups) == case.widths
    reasons = "\n".join(p.reason for p in channels.pinned)
    for fragment in case.pins:
        assert fragment in reasons, reasons
    surgery.assert_explained(graph, channels)


@pytest.mark.parametrize("case", surgery.rows(ROWS))
def test_cut_is_exact(case: Row) -> None:
    model = surgery.model_of(case.text, case.opset)
    graph, channels = surgery.find(model)
    for how in ("half", "one", 1, 2):
        pruned = surgery.assert_exact(model, graph, channels, how)
        size = [sum(len(t.raw_data) for t in m.graph.initializer) for m in (pruned, model)]
        assert how != "half" or not any(w > 1 for w in case.widths) or size[0] < size[1] or "Constant" in case.name


def test_weights_of_bodies_are_listed() -> None:
    case = next(r for r in ROWS if r.name.startswith("weights inside bodies"))
    _, channels = surgery.find(surgery.model_of(case.text, case.opset))
    inside = [(p.tensor, p.axis, p.count) for p in channels.pinned if p.use == ("", 0)]
    assert sorted(inside) == [("k", 0, 2), ("k", 1, 2), ("v", 0, 6), ("v", 1, 6)]


def test_every_rule_has_a_row() -> None:
    """A new operator needs a row: in this table, the further or the quantized one."""
    from onnxprune.channels.rules import rule_of
    from onnxprune.channels.size_rules import size_rule_of
    from onnxprune.graph import operators
    from tests.channels import test_further_rules, test_quantized

    cases = (*ROWS, *test_further_rules.ROWS, *test_quantized.ROWS)
    nodes = [n for case in cases for n in surgery.model_of(case.text, case.opset).graph.node]
    seen = {operators.of(n).name for n in nodes} - {""}
    ruled = {line.name for line in operators.lines() if rule_of(line) or size_rule_of(line)}
    assert not ruled - seen
