"""Networks of integers: operators of integers taken apart, and products whose scales are chosen at run time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune.graph.layouts import plain_layouts
from onnxprune.graph.pairs_of_integers import in_pairs
from onnxprune.graph.unfused import unfused
from onnxprune.rewrite.integers import products
from onnxprune.rewrite.quantized import floating
from onnxprune.runtime.sessions import open_session
from tests.channels import surgery
from tests.pipeline.test_optimised import optimised

CONVS = """(float[n,3,12,12] x) => (float[n,10] y)
    <float[16,3,3,3] w0, float[16] b0, float[16,16,3,3] w1, float[16] b1, float[16,1,3,3] w2, float[16] b2, float[16,10] w3, float[10] b3>
    { a = Conv<pads=[1,1,1,1]>(x, w0, b0) ra = Relu(a) b = Conv<pads=[1,1,1,1]>(ra, w1, b1) s = Add(b, ra) rs = Relu(s)
      c = Conv<pads=[1,1,1,1], group=16>(rs, w2, b2) rc = Relu(c) g = GlobalAveragePool(rc) f = Flatten(g) y = Gemm(f, w3, b3) }"""


def samples(count: int = 96) -> np.ndarray:
    smooth = np.random.default_rng(1).standard_normal((count, 3, 6, 6)).astype(np.float32)
    return smooth.repeat(2, axis=2).repeat(2, axis=3)


def quantized(tmp_path, form: str, **given) -> onnx.ModelProto:
    """As ONNX Runtime writes it, "dynamic" or a format of static ones."""
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):
        left = [samples()]

        def get_next(self):
            return {"x": self.left.pop()} if self.left else None

    onnx.save(surgery.model_of(CONVS, 17), tmp_path / "m.onnx")
    if form == "dynamic":
        quantization.quantize_dynamic(tmp_path / "m.onnx", tmp_path / "q.onnx", **given)
    else:
        form = quantization.QuantFormat[form]
        quantization.quantize_static(tmp_path / "m.onnx", tmp_path / "q.onnx", Reader(), quant_format=form, **given)
    return onnx.load(tmp_path / "q.onnx")


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(n.op_type for n in model.graph.node)


@pytest.mark.parametrize("per_channel", [False, True])
def test_operators_of_integers_are_taken_apart(tmp_path, per_channel):
    model = quantized(tmp_path, "QOperator", per_channel=per_channel)
    assert operators(model)["QLinearConv"] == 3
    apart = in_pairs(model)
    onnx.checker.check_model(apart, full_check=True)
    assert {"Conv", "Add", "Gemm", "QuantizeLinear", "DequantizeLinear"} <= operators(apart).keys()
    assert not [n for n in apart.graph.node if n.op_type.startswith(("QLinear", "QGemm"))]
    want, got = (open_session(m).run({"x": samples(4)})[0] for m in (model, apart))
    assert np.abs(want - got).max() <= 0.02 * np.abs(want).max()
    assert in_pairs(apart) is apart


@pytest.mark.parametrize("level", ["extended", "all"])
@pytest.mark.parametrize("form", ["QOperator", "QDQ", "dynamic"])
def test_what_the_optimiser_makes_of_them_is_taken_apart(tmp_path, form, level):
    model = optimised(quantized(tmp_path, form), level, tmp_path)
    apart = in_pairs(unfused(plain_layouts(model)))
    assert {n.domain for n in apart.graph.node} == {""}
    want, got = (open_session(m).run({"x": samples(4)})[0] for m in (model, apart))
    assert np.abs(want - got).max() <= 0.02 * np.abs(want).max()
    subject = onnxprune.open_model(model, trusted=True)
    assert [g.width for g in subject.channels.groups] == [16] and not subject.warnings


SCALES = "float s = {0.125}, float t = {0.25}, uint8 z = {128}"
ALONE = [
    ("QLinearMul", f"(uint8[2,8] x) => (uint8[] y) <{SCALES}, uint8[2,8] k> {{ y = com.microsoft.QLinearMul(x, s, z, k, s, z, t, z) }}"),
    ("QLinearConcat", f"(uint8[2,8] x) => (uint8[] y) <{SCALES}, uint8[2,8] k> {{ y = com.microsoft.QLinearConcat<axis=1>(t, z, x, s, z, k, s, z) }}"),
    ("QLinearSigmoid", f"(uint8[2,8] x) => (uint8[] y) <{SCALES}, float u = {{0.004}}, uint8 o = {{0}}> {{ y = com.microsoft.QLinearSigmoid(x, s, z, u, o) }}"),
    ("QLinearLeakyRelu", f"(uint8[2,8] x) => (uint8[] y) <{SCALES}> {{ y = com.microsoft.QLinearLeakyRelu<alpha=0.2>(x, s, z, t, z) }}"),
    ("QLinearAveragePool", f"(uint8[1,4,6,6] x) => (uint8[] y) <{SCALES}> {{ y = com.microsoft.QLinearAveragePool<kernel_shape=[2,2]>(x, s, z, s, z) }}"),
    ("QLinearMatMul", f"(uint8[2,8] x) => (uint8[] y) <{SCALES}, int8[8,5] w, float[5] exact_w, int8[5] zw> {{ y = QLinearMatMul(x, s, z, w, exact_w, zw, t, z) }}"),
    ("QGemm", f"(uint8[2,8] x) => (float[] y) <{SCALES}, int8[5,8] w, float[5] exact_w, int8[5] zw, int32[5] b> {{ y = com.microsoft.QGemm<transB=1>(x, s, z, w, exact_w, zw, b) }}"),
    ("MatMulIntegerToFloat", f"""(uint8[2,8] x) => (float[] y) <{SCALES}, uint8[8,5] w, float[5] pos_w, uint8[5] zw, float[5] b>
        {{ y = com.microsoft.MatMulIntegerToFloat(x, w, s, pos_w, z, zw, b) }}"""),
    ("DynamicQuantizeMatMul", "(float[2,8] x) => (float[] y) <uint8[8,5] w, float pos_w> { y = com.microsoft.DynamicQuantizeMatMul(x, w, pos_w) }"),
    ("MaxPool of integers", f"""(float[1,4,6,6] x) => (uint8[] y) <{SCALES}, int8[6,4,1,1] w, int8 zw = {{0}}>
        {{ q = QuantizeLinear(x, s, z) m = MaxPool<kernel_shape=[2,2]>(q) y = QLinearConv(m, s, z, w, s, zw, t, z) }}"""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), ALONE, ids=[name for name, _ in ALONE])
def test_each_computes_the_same(name, text):
    model = surgery.model_of(text, 17)
    feeds = surgery.feeds_of(model)
    feeds = {k: v * 60 if v.dtype == np.uint8 else v for k, v in feeds.items()}
    apart = in_pairs(model)
    assert not [n for n in apart.graph.node if n.op_type.startswith(("QLinear", "QGemm")) or n.domain]
    want, got = (open_session(m, optimise=False).run(feeds)[0] for m in (model, apart))
    if want.dtype.kind == "f":
        np.testing.assert_allclose(got, want, rtol=1e-5)
    else:  # a half may be rounded either way
        assert np.abs(want.astype(int) - got.astype(int)).max() <= 1


def test_scales_that_no_constant_gives_stay():
    text = f"(uint8[2,8] x, float v) => (uint8[] y) <{SCALES}, uint8[2,8] k> {{ y = com.microsoft.QLinearMul(x, v, z, k, s, z, t, z) }}"
    model = surgery.model_of(text, 17)
    assert operators(in_pairs(model))["QLinearMul"] == 1


KINDS = {
    "QOperator": {}, "dynamic": {}, "weights quantized by the graph": {"extra_options": {"AddQDQPairToWeight": True}},
    "operators of ONNX Runtime": {"extra_options": {"UseQDQContribOps": True}},
    "a pair for every reader": {"extra_options": {"DedicatedQDQPair": True}}, "biases of floats": {"extra_options": {"QuantizeBias": False}},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_pruned_and_repaired(tmp_path, kind):
    model = quantized(tmp_path, kind if kind in ("QOperator", "dynamic") else "QDQ", **KINDS[kind])
    given = {"calibration": samples(), "allocation": "uniform", "best_effort": True}
    cut, repaired = (onnxprune.prune(model, 0.4, repair=how, **given) for how in ("none", "refit"))
    assert repaired.surgery.exact and repaired.macs_removed > 0.39
    assert repaired.fidelity.sqnr_db > cut.fidelity.sqnr_db + 3
    assert not [r for r in repaired.refused if r.what == "refitted"]
    wanted, weights = (
        Counter(t.data_type for t in m.graph.initializer if len(t.dims) > 1 and t.data_type != 1)
        for m in (model, repaired.model)
    )
    assert weights == wanted  # integers are integers


def test_in_floats_no_scale_is_chosen(tmp_path):
    net = onnxprune.open_model(quantized(tmp_path, "dynamic"), trusted=True).net
    assert sorted(p.kind for p in products(net.graph).values()) == ["Conv", "Conv", "Conv", "MatMul"]
    floats = floating(net)
    assert floats is not None
    assert not operators(floats.model).keys() & {"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "Cast"}
    want, got = (open_session(m).run({"x": samples(4)})[0] for m in (net.model, floats.model))
    assert np.abs(want - got).max() <= 0.05 * np.abs(want).max()
    assert len(floats.channels.groups) == len(net.channels.groups)


def test_a_dynamic_file_stays_one(tmp_path):
    model = quantized(tmp_path, "dynamic")
    result = onnxprune.prune(model, 0.4, calibration=samples(), best_effort=True)
    for op in ("DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "Cast", "Mul", "Add"):
        assert operators(result.model)[op] == operators(model)[op]
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    assert all(kinds.get(t.name, t.data_type) == t.data_type for t in result.model.graph.initializer)


def test_a_scale_that_something_else_reads_keeps_what_chooses_it():
    text = """(float[n,12] x) => (float[] y, float s) <uint8[12,8] w, uint8 zw = {128}, float pos_w, uint8[8,5] v, float pos_v>
        { q, s, z = DynamicQuantizeLinear(x) m = MatMulInteger(q, w, z, zw) f = Cast<to=1>(m) t = Mul(s, pos_w) h = Mul(f, t)
          q2, s2, z2 = DynamicQuantizeLinear(h) m2 = MatMulInteger(q2, v, z2, zw) f2 = Cast<to=1>(m2) t2 = Mul(s2, pos_v) y = Mul(f2, t2) }"""
    net = onnxprune.open_model(surgery.model_of(text, 17), trusted=True).net
    floats = floating(net)
    assert floats is not None
    assert operators(floats.model)["DynamicQuantizeLinear"] == 1 and operators(floats.model)["MatMul"] == 2
    assert [g.width for g in net.channels.groups] == [8]


def test_zero_points_are_those_of_the_weight():
    model = surgery.model_of(
        """(float[n,12] x) => (float[] y) <uint8[12,8] w, uint8 zw = {117}, float pos_w>
        { q, s, z = DynamicQuantizeLinear(x) m = MatMulInteger(q, w, z, zw) f = Cast<to=1>(m) t = Mul(s, pos_w) y = Mul(f, t) }""",
        17,
    )
    (product,) = products(onnxprune.open_model(model, trusted=True).net.graph).values()
    w, scale = (numpy_helper.to_array(t) for t in model.graph.initializer if t.name in ("w", "pos_w"))
    assert np.allclose(product.held.value(), (w.astype(float) - 117) * scale)


OLD = """q{k}, s{k}, z{k} = DynamicQuantizeLinear({x}) t{k} = Mul(s{k}, pos_w{k}) d{k} = Div(b{k}, t{k}) r{k} = Floor(d{k})
    i{k} = Cast<to=6>(r{k}) v{k} = Reshape(i{k}, sizes) m{k} = ConvInteger<group={group}, pads=[{pad},{pad},{pad},{pad}]>(q{k}, w{k}, z{k}, o)
    a{k} = Add(m{k}, v{k}) f{k} = Cast<to=1>(a{k}) u{k} = Mul(s{k}, pos_w{k}) {y} = Mul(f{k}, u{k})"""


def old() -> onnx.ModelProto:
    """As ONNX Runtime's first quantizer wrote it: biases become integers at run time."""
    first, second, third = (
        OLD.format(k=k, x=x, y=y, group=group, pad=pad)
        for k, (x, y, group, pad) in enumerate((("x", "h", 1, 1), ("r", "g", 16, 1), ("e", "y", 1, 0)))
    )
    model = surgery.model_of(
        f"""(float[n,3,12,12] x) => (float[] y) <uint8[16,3,3,3] w0, uint8[16,1,3,3] w1, uint8[10,16,1,1] w2, uint8 o = {{128}},
        float pos_w0, float pos_w1, float pos_w2, float[16] b0, float[16] b1, float[10] b2, int64[4] sizes = {{1, -1, 1, 1}}>
        {{ {first} r = Relu(h) {second} e = Relu(g) {third} }}""",
        17,
    )
    for tensor in model.graph.initializer:
        if tensor.name.startswith("pos_w"):
            tensor.CopyFrom(numpy_helper.from_array(np.float32(0.01), tensor.name))
    return model


def test_biases_that_become_integers_at_run_time():
    net = onnxprune.open_model(old(), trusted=True).net
    floats = floating(net)
    assert floats is not None
    assert operators(floats.model) == {"Conv": 3, "Relu": 2, "Identity": 1}  # of the output
    want, got = (open_session(m).run({"x": samples(4)})[0] for m in (net.model, floats.model))
    assert np.abs(want - got).max() <= 0.05 * np.abs(want).max()
    given = {"calibration": samples(), "allocation": "uniform", "criterion": "l1", "best_effort": True}
    cut, repaired = (onnxprune.prune(old(), 0.4, repair=how, **given) for how in ("none", "refit"))
    assert repaired.surgery.exact and not [r for r in repaired.refused if r.what == "refitted"]
    assert repaired.fidelity.sqnr_db > cut.fidelity.sqnr_db + 3
    assert operators(repaired.model) == operators(old())
    graph = repaired.model.graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    factors = [constants[n.input[1]] for n in graph.node if n.op_type == "Mul" and n.input[1] in constants]
    assert len(factors) == 6 and all(a == b for a, b in zip(factors[::2], factors[1::2], strict=True))
