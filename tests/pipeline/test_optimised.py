"""Files that ONNX Runtime's optimiser has written: pruned and repaired like the ones that they were made of."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import onnxprune
from onnxprune import cli
from onnxprune.graph.layouts import plain_layouts
from onnxprune.graph.operators import BLOCKED
from onnxprune.graph.unfused import unfused
from onnxprune.runtime.sessions import open_session
from tests.channels import surgery

TEXT = """<ir_version: 8, opset_import: ["": 17]> net (float[n,3,12,12] x) => (float[n,10] y)
    <float[24,3,3,3] w0, float[24] b0, float[24,24,3,3] w1, float[24] b1, float[24,24,3,3] w2, float[24] b2,
     float[24,1,3,3] w3, float[24] b3, float zero = {0}, float six = {6}, float[10,24] w4, float[10] b4>
    { a = Conv<pads=[1,1,1,1]>(x, w0, b0) ra = Relu(a)
      b = Conv<pads=[1,1,1,1]>(ra, w1, b1) rb = LeakyRelu<alpha=0.2>(b)
      c = Conv<pads=[1,1,1,1]>(rb, w2, b2) s = Add(c, ra) rs = Relu(s)
      d = Conv<pads=[1,1,1,1], group=24>(rs, w3, b3) rd = Clip(d, zero, six)
      g = GlobalAveragePool(rd) f = Flatten(g) y = Gemm<transB=1>(f, w4, b4) }"""
LEVELS = {
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def net() -> onnx.ModelProto:
    model, rng = parser.parse_model(TEXT), np.random.default_rng(0)
    for port in ("w0 24,3,3,3", "b0 24", "w1 24,24,3,3", "b1 24", "w2 24,24,3,3", "b2 24", "w3 24,1,3,3", "b3 24",
                 "w4 10,24", "b4 10"):  # fmt: skip
        name, sizes = port.split()
        shape = tuple(map(int, sizes.split(",")))
        value = rng.standard_normal(shape) * np.sqrt(2 / max(1, np.prod(shape[1:])))
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    return model


def optimised(model: onnx.ModelProto, level: str, folder) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = LEVELS[level], 4
    options.optimized_model_filepath = str(folder / f"{level}.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / f"{level}.onnx")


def samples(count: int = 64) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, 3, 12, 12)).astype(np.float32)


def test_an_extended_file_is_pruned_and_repaired_as_well(tmp_path):
    fused = optimised(net(), "extended", tmp_path)
    assert "FusedConv" in {n.op_type for n in fused.graph.node}
    given = {"calibration": samples(), "allocation": "uniform"}
    before, after = (onnxprune.prune(m, 0.5, **given) for m in (net(), fused))
    assert after.macs_removed == pytest.approx(before.macs_removed, abs=0.01)
    assert after.fidelity.sqnr_db > before.fidelity.sqnr_db - 0.5
    assert not after.refused
    assert {n.domain for n in after.model.graph.node} == {""}


def test_layers_are_taken_apart_and_compute_the_same(tmp_path):
    fused = optimised(net(), "extended", tmp_path)
    apart = unfused(fused)
    onnx.checker.check_model(apart, full_check=True)
    feeds = {"x": samples(2)}
    want, got = (open_session(m).run(feeds)[0] for m in (fused, apart))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert unfused(apart) is apart
    assert unfused(net()) == net()


PARAMETERS = [
    ("Relu", []), ("Sigmoid", []), ("Tanh", []), ("LeakyRelu", [0.3]), ("HardSigmoid", [0.3, 0.4]), ("Clip", [-0.5, 0.7]),
    ("HardSwish", []),
]  # fmt: skip


def layer(op: str, weights: dict[str, tuple[int, ...]], ports: tuple, opset: int, **given) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    held = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()]
    node = helper.make_node(op, ["x", *weights, *given.pop("more", ())], ["a"], domain="com.microsoft", **given)
    last = helper.make_node("Neg", ["a"], ["y"])
    made = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in zip("xy", ports, strict=True)
    ]
    graph = helper.make_graph([node, last], "net", made[:1], made[1:], held)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize(("activation", "values"), PARAMETERS)
@pytest.mark.parametrize("opset", [9, 17])
def test_every_activation_of_a_fused_convolution(activation, values, opset):
    given = {"activation": activation} | ({"activation_params": values} if values else {})
    model = layer("FusedConv", {"w": (4, 3, 1, 1), "b": (4,)}, ([1, 3, 4, 4], [1, 4, 4, 4]), opset, **given)
    check(model, (1, 3, 4, 4))


@pytest.mark.parametrize(("activation", "values"), PARAMETERS[:5])
def test_every_activation_of_a_fused_product(activation, values):
    given = {f"activation_{n}": v for n, v in zip(("alpha", "beta"), values, strict=False)}
    model = layer("FusedGemm", {"w": (4, 3), "b": (4,)}, ([2, 3], [2, 4]), 17, activation=activation, transB=1, **given)
    check(model, (2, 3))


def check(model: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    x = {"x": np.random.default_rng(2).standard_normal(shape).astype(np.float32)}
    apart = unfused(model)
    assert not any(n.domain for n in apart.graph.node)
    want, got = (open_session(m).run(x)[0] for m in (model, apart))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_what_is_fused_with_an_output_stays(tmp_path):
    model = layer("FusedGemm", {"w": (4, 3), "b": (4,)}, ([2, 3], [2, 4]), 17, activation="Relu", transB=1)
    model.graph.output[0].name = "a"
    del model.graph.node[1:]
    assert unfused(model) is model


BLOCKS = """<ir_version: 8, opset_import: ["": 17]> net (float[n,3,16,16] x) => (float[n,10] y)
    <float[20,3,3,3] w0, float[20] b0, float[24,20,3,3] w1, float[24] b1, float[20,24,1,1] w2, float[20] b2, float[20,1,3,3] w3, float[20] b3,
     float[32,20,1,1] w4, float[32] b4, float[32,20,3,3] w5, float[32,64,1,1] w6, float[32] b6, float[32,16,3,3] w7, float[4] up = {1, 1, 2, 2},
     float[6,32,1,1] s0, float[32,6,1,1] s1, float[40,32,1,1] w8, float[10,40] w9, float[10] b9>
    { a = Conv<pads=[1,1,1,1]>(x, w0, b0) ra = Relu(a) b = Conv<pads=[1,1,1,1]>(ra, w1, b1) rb = HardSwish(b)
      c = Conv(rb, w2, b2) d = Add(c, ra) e = Conv<pads=[1,1,1,1], group=20>(d, w3, b3) re = Relu(e) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(re)
      f = Conv(p, w4, b4) g = Conv<pads=[1,1,1,1]>(p, w5) j = Concat<axis=1>(f, g) k = Conv(j, w6, b6) l = Conv<pads=[1,1,1,1], group=2>(k, w7)
      q = GlobalAveragePool(l) q0 = Conv(q, s0) q1 = Relu(q0) q2 = Conv(q1, s1) q3 = Sigmoid(q2) se = Mul(l, q3)
      u = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(se, , up) m = Conv(u, w8)
      v = AveragePool<kernel_shape=[2,2], strides=[2,2]>(m) z = GlobalAveragePool(v) t = Flatten(z) y = Gemm<transB=1>(t, w9, b9) }"""


def blocks() -> onnx.ModelProto:
    return surgery.fill(parser.parse_model(BLOCKS))


@pytest.fixture
def blocked(tmp_path) -> onnx.ModelProto:
    model = optimised(blocks(), "all", tmp_path)
    if not any(n.domain == BLOCKED for n in model.graph.node):
        pytest.skip("this machine has no such layout")
    return model


def test_blocks_of_channels_are_undone(blocked):
    plain = plain_layouts(blocked)
    onnx.checker.check_model(plain, full_check=True)
    assert not any(n.domain == BLOCKED for n in plain.graph.node)
    shapes = {tuple(t.dims) for t in plain.graph.initializer}
    assert {
        (20, 3, 3, 3),
        (24, 20, 3, 3),
        (20, 1, 3, 3),
        (32, 20, 1, 1),
        (32, 64, 1, 1),
        (32, 16, 3, 3),
        (6, 32, 1, 1),
        (40, 32, 1, 1),
    } <= shapes
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)}
    want, got, first = (open_session(m).run(feeds)[0] for m in (blocked, plain, blocks()))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got, first, rtol=1e-5, atol=1e-6)
    assert plain_layouts(plain) is plain


def test_a_file_of_blocks_is_pruned_and_repaired_as_well(blocked):
    x = np.random.default_rng(1).standard_normal((64, 3, 16, 16)).astype(np.float32)
    before, after = (onnxprune.prune(m, 0.5, calibration=x, allocation="uniform") for m in (blocks(), blocked))
    assert after.macs_removed == pytest.approx(before.macs_removed, abs=0.02)
    assert after.fidelity.sqnr_db > before.fidelity.sqnr_db - 0.5
    assert {n.domain for n in after.model.graph.node} == {""} and not after.refused


def test_blocks_of_another_size_are_read():
    """As a machine with shorter vectors writes them; here nobody could run it."""
    weight = np.random.default_rng(0).standard_normal((24, 16, 3, 3)).astype(np.float32)
    stored = weight.reshape(3, 8, 2, 8, 3, 3).transpose(0, 2, 4, 5, 3, 1).reshape(weight.shape)
    nodes = [
        helper.make_node("ReorderInput", ["x"], ["a"], domain=BLOCKED),
        helper.make_node("Conv", ["a", "w"], ["b"], domain=BLOCKED, kernel_shape=[3, 3]),
        helper.make_node("ReorderOutput", ["b"], ["y"], domain=BLOCKED, channels=24),
    ]
    ports = [helper.make_tensor_value_info("x", 1, [1, 16, 5, 5]), helper.make_tensor_value_info("y", 1, [1, 24, 3, 3])]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], [numpy_helper.from_array(stored, "w")])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(BLOCKED, 1)]
    plain = plain_layouts(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    assert np.array_equal(numpy_helper.to_array(plain.graph.initializer[0]), weight)
    assert [n.op_type for n in plain.graph.node] == ["Conv", "Identity"]


LAST = [
    ("NhwcConv", {"w": (8, 6, 3, 3), "b": (8,)}, {"pads": [1] * 4, "strides": [2, 2]}),
    ("NhwcFusedConv", {"w": (8, 6, 3, 3), "b": (8,)}, {"pads": [1] * 4, "activation": "Relu"}),
]


@pytest.mark.parametrize(("op", "weights", "given"), LAST, ids=[row[0] for row in LAST])
def test_channels_that_come_last_come_first(op, weights, given):
    """ONNX Runtime has no kernel of these for a CPU and floats."""
    model = layer(op, weights, ((1, 8, 8, 6), None), 17, **given)
    x = np.random.default_rng(2).standard_normal((1, 8, 8, 6)).astype(np.float32)
    own = {k: v for k, v in given.items() if k != "activation"}
    text = helper.make_graph(
        [helper.make_node("Transpose", ["x"], ["f"], perm=[0, 3, 1, 2]),
         helper.make_node("Conv", ["f", "w", "b"], ["c"], **own), helper.make_node("Relu" if "activation" in given else "Identity", ["c"], ["d"]),
         helper.make_node("Transpose", ["d"], ["t"], perm=[0, 2, 3, 1]), helper.make_node("Neg", ["t"], ["y"])],
        "plain", [model.graph.input[0]], [model.graph.output[0]], list(model.graph.initializer),
    )  # fmt: skip
    plain = helper.make_model(text, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    want, got = (open_session(m).run({"x": x})[0] for m in (plain, unfused(plain_layouts(model))))
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_net_with_channels_last_is_pruned():
    rng = np.random.default_rng(0)
    held = [("w", (16, 3, 3, 3)), ("b", (16,)), ("v", (16, 16, 3, 3)), ("u", (4, 16, 1, 1))]
    nodes = [
        helper.make_node("NhwcConv", ["x", "w", "b"], ["h"], domain="com.microsoft", pads=[1] * 4),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("NhwcFusedConv", ["r", "v", "b", "r"], ["s"], domain="com.microsoft", pads=[1] * 4, activation="Relu"),
        helper.make_node("NhwcConv", ["s", "u"], ["y"], domain="com.microsoft"),
    ]  # fmt: skip
    ports = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", ["n", 8, 8, 3]), ("y", ["n", 8, 8, 4]))]
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in held]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    result = onnxprune.prune(model, 0.4, repair="none", best_effort=True)
    assert result.surgery.exact and result.macs_removed > 0.4


def test_a_normalization_that_the_optimiser_puts_into_an_old_opset_is_read():
    rng = np.random.default_rng(0)
    held = [("w", (8, 16)), ("s", (16,)), ("b", (16,)), ("v", (16, 4))]
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in held]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("LayerNormalization", ["h", "s", "b"], ["n"], axis=-1),
        helper.make_node("MatMul", ["n", "v"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [2, 8]), ("y", [2, 4]))]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8)
    reasons = {p.reason for p in onnxprune.open_model(model).channels.pinned}
    assert any("LayerNormalization mixes the channels" in r for r in reasons)


@pytest.mark.parametrize("level", ["extended", "all"])
def test_such_a_file_goes_through_plan_apply_and_verify(tmp_path, capsys, level):
    onnx.save(optimised(net(), level, tmp_path), tmp_path / "net.onnx")
    names = [str(tmp_path / name) for name in ("net.onnx", "plan.json", "out.onnx")]
    assert cli.main(["plan", names[0], "--ratio", "0.4", "-o", names[1]]) == 0
    assert cli.main(["apply", names[0], names[1], "-o", names[2]]) == 0
    assert cli.main(["verify", names[0], names[2], "--plan", names[1]]) == 0
    assert "as planned" in capsys.readouterr().out
