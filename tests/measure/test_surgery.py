"""The surgery check: a right cut passes whatever rounding does behind it, a wrong one is caught all the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune import api
from onnxprune.channels import CutSizes, removed_cuts
from onnxprune.errors import UnstableError
from onnxprune.measure.surgery import Surgery, check_surgery
from onnxprune.plan import PrunePlan
from tests.channels import surgery
from tests.rewrite.steps import cut

# fmt: off
PLAIN = """(float[N,3,8,8] x) => (float[] y) <float[32,3,3,3] w0, float[5,32,1,1] w9>
    { h = Conv(x, w0) r = Relu(h) y = Conv(r, w9) }"""
HEAD = "float[32,3,3,3] w0, float[16,32,3,3] alike, float[16,32] v, int64[4] flat = {1,1,3,3}"
ALIKE = """h = Conv(x, w0) r = GlobalAveragePool(h) e = Expand(r, flat) a = Conv(e, alike) s = Flatten(a)
    f = Flatten(r) b = Gemm<transB=1>(f, v)"""
SIGMOID = """(float[N,3,8,8] x) => (float[] y) <float[32,3,3,3] even, float[5,32,3,3] large, float[5] low>
    { h = Conv<pads=[1,1,1,1]>(x, even) l = Conv(h, large, low) y = Sigmoid(l) }"""
TOPK = f"""(float[1,3,8,8] x) => (float[] y, int64[] i) <{HEAD}, int64[1] k = {{4}}, int64[1] zero = {{0}}>
    {{ {ALIKE} t, i = TopK(s, k) j = Squeeze(i, zero) y = Gather<axis=1>(b, j) }}"""
MANY = f"""(float[1,3,8,8] x) => (float[] y) <{HEAD}, int64[2] k = {{0, 1}}>
    {{ {ALIKE} m = ReduceMax<keepdims=1>(s) g = Equal(s, m) n = NonZero(g) q = Transpose<perm=[1,0]>(n)
       y = GatherND(b, q) }}"""
TWO_STAGES = f"""(float[1,3,8,8] x) => (float[] y) <{HEAD}, int64[1] k = {{4}}, int64[1] zero = {{0}},
    int64[3] to = {{16,1,1}}, float[24,1,1] u, float[6,24,1] o>
    {{ {ALIKE} t, i = TopK(s, k) j = Squeeze(i, zero) c = Reshape(b, to)
       g = Gather<axis=0>(c, j) d = Conv(g, u) l = Relu(d) y = Conv(l, o) }}"""
TABLE = [
    ("plain", PLAIN, "", False),
    ("a sigmoid near zero", SIGMOID, "l", False),
    ("TopK among equals", TOPK, "", True),
    ("as many as are the largest", MANY, "", True),
    ("a head behind TopK", TWO_STAGES, "", True),
]
# fmt: on


def net(text: str) -> onnx.ModelProto:
    """`alike` holds the same kernels in each row, their entries in another order, and reads flat maps: 16 scores
    that are equal but for rounding, whatever is cut. `even` has the same filter 32 times, `large` rows that sum up
    to nothing: differences of large numbers."""
    model = surgery.model_of(text)
    rng = np.random.default_rng(5)
    for t in model.graph.initializer:
        value = numpy_helper.to_array(t).copy()
        if t.name == "even":
            value[:] = value[:1]
        elif t.name == "alike":
            for row in value:
                row[:] = rng.permutation(value[0].reshape(32, 9), axis=1).reshape(32, 3, 3)
        elif t.name == "large":  # the even and the odd columns each sum up to nothing
            value *= 1e5
            for k in range(2):
                value[:, k::2] -= value[:, k::2].mean(axis=1, keepdims=True)
        elif t.name == "low":
            value[:] = [-10, -1e6, -1e6, -1e6, -1e6]
        t.CopyFrom(numpy_helper.from_array(value, t.name))
    return model


def check(text: str, spoil: Callable[[onnx.ModelProto], None] | None = None) -> Surgery:
    model = net(text)
    graph, channels = surgery.find(model)
    alive = channels.alive({g.name: np.arange(0, g.width, 2) for g in channels.groups})
    pruned = cut(graph, channels, alive)
    if spoil is not None:
        spoil(pruned)
    feeds = surgery.feeds_of(model)
    kept = CutSizes(channels, alive).kept()
    return check_surgery(model, pruned, removed_cuts(graph, channels, alive), [feeds], kept=kept)


@pytest.mark.parametrize(("name", "text", "inner", "turned"), TABLE, ids=[r[0] for r in TABLE])
def test_a_right_cut_is_exact(name: str, text: str, inner: str, turned: bool) -> None:
    found = check(text)
    assert found.exact and found.worst < 1e-4, found
    assert found.inner == ((inner,) if inner else ()) and bool(found.turned) == turned, found
    assert bool(found.decisions) == turned


@pytest.mark.parametrize("weight", [0, 1, -1])
@pytest.mark.parametrize(("name", "text", "inner", "turned"), TABLE, ids=[r[0] for r in TABLE])
def test_a_wrong_cut_is_caught(name: str, text: str, inner: str, turned: bool, weight: int) -> None:
    def spoil(pruned: onnx.ModelProto) -> None:
        """One weight is off."""
        t = [t for t in pruned.graph.initializer if len(t.dims) > 1][weight]
        value = numpy_helper.to_array(t).copy()
        value *= np.random.default_rng(0).uniform(0.8, 1.2, value.shape).astype(np.float32)
        t.CopyFrom(numpy_helper.from_array(value, t.name))

    assert not check(text, spoil).exact


def test_what_random_input_cannot_prove_keeps_its_first_channels() -> None:
    """Sums that keep their order round as before, so that decisions between equals do too."""
    model = net(TWO_STAGES)
    with pytest.raises(UnstableError, match=r"TopK|'t'.*--calib"):
        api.prune(model, 0.6, round_to=1)
    result = api.prune(model, 0.6, round_to=1, best_effort=True)
    assert result.surgery.exact and not result.surgery.turned and result.macs_removed > 0.5
    keep = result.plan.keep()
    assert keep["w0"] == tuple(range(len(keep["w0"]))) and len(keep["w0"]) < 32
    assert keep["u"] != tuple(range(len(keep["u"]))), "what lies behind the decision goes by importance"
    assert any("first channels" in w for w in result.warnings)
    samples = np.stack([surgery.feeds_of(model, seed=k)["x"][0] for k in range(6)])
    proven = api.prune(model, 0.3, round_to=1, calibration={"x": samples}, repair="none")
    assert proven.surgery.exact and any("original's decisions" in w for w in proven.warnings)


def test_what_cannot_be_proven_at_all_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head behind TopK can be proven, what TopK depends on cannot."""
    model = net(TWO_STAGES)
    monkeypatch.setattr(PrunePlan, "leading", lambda plan, groups: plan)
    result = api.prune(model, 0.3, round_to=1, best_effort=True)
    assert result.surgery.exact and not result.surgery.turned
    assert [b > a for n, b, a in result.groups if n == "u"] == [True]
    assert all(b == a for n, b, a in result.groups if n != "u")
    assert any("left alone" in w for w in result.warnings)


NOISE = """(float[1,3,8,8] x) => (float[] y) <float[32,3,3,3] even, float[5,32,3,3] w, float big = {1000000.0}, float[4,5,1,1] v>
    { h = Conv<pads=[1,1,1,1]>(x, even) l = Conv(h, w) m = Mul(l, big) s = Sin(m) y = Conv(s, v) }"""


def test_numbers_that_show_nothing_keep_their_first_channels() -> None:
    """No decision, but rounding alone moves the output as much as any error would."""
    model = net(NOISE)
    with pytest.raises(UnstableError, match=r"numbers show nothing.*--calib"):
        api.prune(model, 0.5, round_to=1)
    result = api.prune(model, 0.5, round_to=1, best_effort=True, repair="none")
    assert result.surgery.exact and result.macs_removed > 0.4


HALF = """(float16[1,3,8,8] x) => (float16[] y) <float16[16,3,3,3] w0, float16[16,16,3,3] w1, float16[16] b, float16[5,16,1,1] v>
    { h = Conv(x, w0) a = Conv(h, w1, b) r = Relu(a) y = Conv(r, v) }"""
INTEGERS = """(uint8[1,3,8,8] x) => (uint8[] y) <float s = {0.125}, uint8 z = {128}, int8[8,3,3,3] w, float[8] exact_w,
    int8[8] zw, int32[8] b, float t = {2.0}, int8[8,8,3,3] u, float[8] exact_u, int8[8] zu, int8[4,8] v, int8 zv = {2},
    int32[4] c>
    { h = QLinearConv<pads=[1,1,1,1]>(x, s, z, w, exact_w, zw, t, z, b)
      a = QLinearConv<pads=[1,1,1,1]>(h, t, z, u, exact_u, zu, t, z) d = com.microsoft.QLinearAdd(h, t, z, a, t, z, t, z)
      p = com.microsoft.QLinearGlobalAveragePool(d, t, z, t, z) f = Flatten(p)
      y = com.microsoft.QGemm<transB=1>(f, t, z, v, s, zv, c, t, z) }"""
DYNAMIC = """(float[1,12] x) => (float[] y) <float[12,8] u, float s = {0.125}, uint8 z = {128}, int8[8,6] w, int8[6] zw,
    float[6,4] v>
    { h = MatMul(x, u) q = QuantizeLinear(h, s, z) m = MatMulInteger(q, w, z, zw) f = Cast<to=1>(m) r = Relu(f)
      y = MatMul(r, v) }"""


@pytest.mark.parametrize("text", [HALF, INTEGERS, DYNAMIC], ids=["float16", "QOperator", "MatMulInteger"])
def test_other_types_are_masked_too(text: str) -> None:
    """Two cuts of one weight in float16; int8 weights get their zero points."""
    model = surgery.model_of(text)
    result = api.prune(model, 0.4, of="params", round_to=1, best_effort=True)
    assert result.surgery.exact and result.after.params < 0.75 * result.before.params
