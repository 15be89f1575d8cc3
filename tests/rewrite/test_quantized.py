"""Quantized networks: in floats they are what they stand for, and what a repair makes of that is quantized again."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnxprune
from onnxprune.graph.model import Graph
from onnxprune.pipeline.apply import FLOATS_FIRST
from onnxprune.rewrite.held import Held
from onnxprune.rewrite.quantized import floating, held, in_floats, requantized
from onnxprune.runtime.sessions import open_session
from tests.channels import surgery

CONVS = """<ir_version: 8, opset_import: ["": 17]> net (float[n,3,12,12] x) => (float[n,10] y)
    <float sx = {0.03}, int8 zx = {0}, float sa = {0.03}, uint8 za = {0}, float sb = {0.05}, uint8 zb = {0}>
    { qx = QuantizeLinear(x, sx, zx) dx = DequantizeLinear(qx, sx, zx)
      w0 = DequantizeLinear<axis=0>(w0_q, w0_s, w0_z) b0 = DequantizeLinear<axis=0>(b0_q, b0_s)
      a = Conv<pads=[1,1,1,1]>(dx, w0, b0) qa = QuantizeLinear(a, sa, za) da = DequantizeLinear(qa, sa, za)
      w1 = DequantizeLinear(w1_q, w1_s, w1_z) b = Conv<pads=[1,1,1,1]>(da, w1) s = Add(b, da)
      qb = QuantizeLinear(s, sb, zb) db = DequantizeLinear(qb, sb, zb)
      g = GlobalAveragePool(db) f = Flatten(g) w2 = DequantizeLinear<axis=1>(w2_q, w2_s) y = MatMul(f, w2) }"""


def net() -> onnx.ModelProto:
    """Two convs, a shortcut and a product; the integers of one each a channel, of one for all, of one along axis 1."""
    rng, model = np.random.default_rng(0), parser.parse_model(CONVS)

    def put(name: str, value: np.ndarray) -> None:
        model.graph.initializer.append(numpy_helper.from_array(value, name))

    put("w0_q", rng.integers(-127, 128, (16, 3, 3, 3)).astype(np.int8))
    put("w0_s", rng.uniform(0.002, 0.004, 16).astype(np.float32))
    put("w0_z", np.zeros(16, np.int8))
    put("b0_q", rng.integers(-2000, 2000, 16).astype(np.int32))
    put("b0_s", (0.03 * numpy_helper.to_array(model.graph.initializer[-3])).astype(np.float32))
    put("w1_q", rng.integers(1, 256, (16, 16, 3, 3)).astype(np.uint8))
    put("w1_s", np.array(0.001, np.float32))
    put("w1_z", np.array(128, np.uint8))
    put("w2_q", rng.integers(-127, 128, (16, 10)).astype(np.int8))
    put("w2_s", rng.uniform(0.005, 0.01, 10).astype(np.float32))
    return model


def samples(count: int = 96) -> np.ndarray:
    smooth = np.random.default_rng(1).standard_normal((count, 3, 6, 6)).astype(np.float32)
    return smooth.repeat(2, axis=2).repeat(2, axis=3)


def analysed():
    return onnxprune.open_model(net(), trusted=True).net


def test_in_floats_it_computes_nearly_the_same():
    found = floating(analysed())
    assert found is not None
    assert not [n for n in found.graph.nodes.values() if "Quantize" in n.op_type]
    assert [n.op_type for n in found.graph.nodes.values() if n.op_type == "Clip"] == [
        "Clip",
        "Clip",
    ]  # ranges from zero
    feeds = {"x": samples(8)}
    want, got = (open_session(m).run(feeds)[0] for m in (net(), found.model))
    assert np.corrcoef(want.ravel(), got.ravel())[0, 1] > 0.995
    onnx.checker.check_model(found.model, full_check=True)
    read = {i for n in found.graph.nodes.values() for i in n.input}
    assert {
        t.name for t in found.model.graph.initializer
    } <= read  # ONNX Runtime refuses large weights that nobody reads


def test_the_channels_are_the_same():
    own = analysed()
    found = floating(own)
    assert [g.name for g in found.channels.groups] == [g.name for g in own.channels.groups]
    for group in found.channels.groups:
        assert group.weights and group.readers
        for s in (*group.weights, *group.readers):
            value = found.graph.value(s.use)
            assert value is not None
            assert value.shape[s.axis] == len(s.channel)
            assert s.axis in found.channels.params[s.use]


def test_some_layers_may_be_of_floats():
    model = net()
    value = Graph(model)
    product = held(value)["w2"].value()
    (node,) = [n for n in model.graph.node if n.output[0] == "w2"]
    model.graph.node.remove(node)
    kept = [t for t in model.graph.initializer if t.name not in ("w2_q", "w2_s")]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, numpy_helper.from_array(product, "w2")])
    result = onnxprune.prune(model, 0.4, calibration=samples(), allocation="uniform")
    assert result.repair == "refit"
    assert held(Graph(result.model)).keys() >= {"w0", "w1"}


def test_what_is_not_changed_keeps_its_integers():
    graph = Graph(net())
    assert requantized(in_floats(Graph(net())), graph).export() == net()


def test_where_something_is_lost_it_is_said_what_loses_less():
    given = {"calibration": samples(), "allocation": "uniform", "criterion": "l1"}
    lost, kept = onnxprune.prune(net(), 0.4, repair="none", **given), onnxprune.prune(net(), 0.01, **given)
    assert lost.fidelity.verdict != "kept" and FLOATS_FIRST in lost.notes
    assert kept.fidelity.verdict == "kept" and FLOATS_FIRST not in kept.notes
    floats = Graph(net())
    plain = onnxprune.prune(in_floats(floats).export(), 0.4, repair="none", **given)
    assert plain.fidelity.verdict != "kept" and not plain.notes


@pytest.mark.parametrize("repair", ["refit", "statistics"])
def test_a_repair_gets_closer_and_leaves_the_format(repair, tmp_path):
    given = {"calibration": samples(), "allocation": "uniform", "criterion": "l1"}
    plain, mended = (onnxprune.prune(net(), 0.4, repair=how, **given) for how in ("none", repair))
    assert mended.repair == repair
    assert mended.fidelity.sqnr_db > plain.fidelity.sqnr_db + 1
    assert mended.macs_removed == plain.macs_removed
    kinds = {t.name: t.data_type for t in mended.model.graph.initializer}
    assert kinds["w0_q"] == onnx.TensorProto.INT8
    assert kinds["w1_q"] == onnx.TensorProto.UINT8
    before, after = held(Graph(plain.model)), held(Graph(mended.model))
    for name in ("w0", "w1", "w2"):
        assert after[name].scale.shape == before[name].scale.shape
        assert after[name].integers.shape == before[name].integers.shape
    assert not [r for r in mended.refused if r.what == "refitted"]
    onnx.checker.check_model(str(mended.save(tmp_path / "pruned.onnx")), full_check=True)


def test_a_new_bias_is_of_integers_whose_scale_fits():
    result = onnxprune.prune(net(), 0.4, calibration=samples(), allocation="uniform", criterion="l1")
    graph = Graph(result.model)
    (conv,) = [n for n in graph.nodes.values() if n.op_type == "Conv" and n.output[0] == "b"]
    bias = held(graph)[conv.input[2]]
    assert bias.integers.dtype == np.int32
    np.testing.assert_allclose(bias.scale, 0.03 * held(graph)["w1"].scale, rtol=1e-6)
    first = held(graph)["b0"]
    np.testing.assert_allclose(first.scale, 0.03 * held(graph)["w0"].scale, rtol=1e-6)


def test_pruning_twice_gives_the_same_bytes():
    given = {"calibration": samples(), "allocation": "uniform"}
    one, two = (onnxprune.prune(net(), 0.4, **given).model.SerializeToString() for _ in range(2))
    assert one == two


def constant(kind: type, scale: np.ndarray, zero: np.ndarray | None) -> Held:
    limits = np.iinfo(kind)
    ints = np.random.default_rng(0).integers(limits.min, limits.max + 1, (6, 5)).astype(kind)
    return Held("d", ("d", 0), (("d", 1),), (), ints, scale, zero, 0)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16])
@pytest.mark.parametrize("channels", [(), (1,), (6,)])
@pytest.mark.parametrize("zero", [None, "middle", "odd"])
def test_scales_are_chosen_anew(kind, channels, zero):
    middle = 0 if np.iinfo(kind).min < 0 else (np.iinfo(kind).max + 1) // 2
    at = None if zero is None else np.full(channels, middle + (5 if zero == "odd" else 0), kind)
    before = constant(kind, np.full(channels, 0.01, np.float32), at)
    value = np.random.default_rng(1).standard_normal((6, 5)).astype(np.float32)
    value = np.abs(value) if zero is None and middle else value  # nothing below zero can be held
    now = before.again(value)
    assert now.scale.shape == before.scale.shape
    assert now.integers.dtype == kind
    assert (now.zero is None) == (zero is None)
    steps = np.broadcast_to(now.scale.reshape((-1, *[1] * (now.scale.ndim > 0))), value.shape)
    assert (np.abs(now.value() - value) <= 25 * steps).all()
    assert np.abs(now.value() - value).mean() < 0.02


def test_a_value_that_two_nodes_read_is_quantized_for_each():
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[n,8,6,6] x) => (float[n,8,6,6] y)
        <float s = {0.05}> { w = DequantizeLinear(q, s) a = Conv(x, w) r = Relu(a) b = Conv(r, w) y = Relu(b) }"""
    model = parser.parse_model(text)
    q = np.random.default_rng(0).integers(-30, 31, (8, 8, 1, 1)).astype(np.int8)
    model.graph.initializer.append(numpy_helper.from_array(q, "q"))
    repaired, graph = in_floats(Graph(model)), Graph(model)
    repaired.set_constant(("b", 1), repaired.value(("b", 1)) * 1.5)
    found = requantized(repaired, graph)
    names = [n.input[1] for n in found.nodes.values() if n.op_type == "Conv"]
    values = held(found)
    np.testing.assert_array_equal(values[names[0]].integers, q)
    np.testing.assert_allclose(values[names[1]].value(), 1.5 * 0.05 * q, atol=0.02)
    onnx.checker.check_model(found.export(), full_check=True)


FOUR_BITS = """<ir_version: 10, opset_import: ["": 21]> net (float[n,32] x) => (float[n,10] y)
    { w0 = DequantizeLinear<HOW>(q0, s0, z0) a = MatMul(x, w0) r = Relu(a) w1 = DequantizeLinear<HOW>(q1, s1, z1) d = MatMul(r, w1)
      e = Relu(d) w2 = DequantizeLinear<HOW>(q2, s2, z2) y = MatMul(e, w2) }"""


@pytest.mark.parametrize("kind", ["INT4", "UINT4"])
@pytest.mark.parametrize(("axis", "block"), [(1, 0), (0, 8), (0, 16)])
def test_weights_of_four_bits_are_cut_and_repaired(kind, axis, block, tmp_path):
    """Along the blocks, blocks go whole."""
    if not hasattr(onnx.TensorProto, kind) or surgery.newest_opset() < 21:
        pytest.skip("no such type, or no such opset")
    how = f"axis={axis}" + f", block_size={block}" * bool(block)
    rng, model = np.random.default_rng(0), parser.parse_model(FOUR_BITS.replace("HOW", how))
    kind, low = getattr(onnx.TensorProto, kind), -8 if kind == "INT4" else 0
    for k, shape in enumerate(((32, 32), (32, 64), (64, 10))):
        scales = [shape[0] // block, shape[1]] if block else [shape[axis]]
        ints, zeros = rng.integers(low, low + 16, shape), np.full(scales, low + 8)
        for name, dims, values in ((f"q{k}", shape, ints), (f"z{k}", scales, zeros)):
            model.graph.initializer.append(onnx.helper.make_tensor(name, kind, dims, values.ravel().tolist()))
        scale = rng.uniform(0.02, 0.04, scales).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(scale, f"s{k}"))
    x = rng.standard_normal((256, 12)).astype(np.float32) @ rng.standard_normal((12, 32)).astype(np.float32)
    given = {"calibration": x, "allocation": "uniform", "criterion": "l1", "round_to": 1}
    plain, mended = (onnxprune.prune(model, 0.4, repair=how, **given) for how in ("none", "refit"))
    assert plain.surgery.exact and mended.repair == "refit"
    assert mended.fidelity.sqnr_db > plain.fidelity.sqnr_db + 1
    kinds = {t.name: t for t in mended.model.graph.initializer}
    for k in range(3):
        assert kinds[f"q{k}"].data_type == kind and kinds[f"z{k}"].dims == kinds[f"s{k}"].dims
        assert not block or kinds[f"q{k}"].dims[0] == block * kinds[f"s{k}"].dims[0]
    assert kinds["q1"].dims != [32, 64]
    onnx.checker.check_model(str(mended.save(tmp_path / "pruned.onnx")), full_check=True)
