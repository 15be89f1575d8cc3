"""Files that ONNX Runtime's optimiser has written: pruned and repaired like the ones that they were made of."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import onnxprune
from onnxprune import cli
from onnxprune.errors import UnsupportedError
from onnxprune.graph.unfused import unfused
from onnxprune.runtime.sessions import open_session

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


def test_layouts_of_one_machine_are_named_with_what_undoes_them(tmp_path):
    model = optimised(net(), "all", tmp_path)
    if not any(n.domain == "com.microsoft.nchwc" for n in model.graph.node):
        pytest.skip("this machine has no such layout")
    with pytest.raises(UnsupportedError, match="saved with graph_optimization_level ORT_ENABLE_EXTENDED"):
        onnxprune.prune(model, 0.5)
    said = " ".join(onnxprune.open_model(model).warnings)
    assert "node '" in said
    assert "Conv of com.microsoft.nchwc is not known" in said


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


def test_such_a_file_goes_through_plan_apply_and_verify(tmp_path, capsys):
    onnx.save(optimised(net(), "extended", tmp_path), tmp_path / "net.onnx")
    names = [str(tmp_path / name) for name in ("net.onnx", "plan.json", "out.onnx")]
    assert cli.main(["plan", names[0], "--ratio", "0.4", "-o", names[1]]) == 0
    assert cli.main(["apply", names[0], names[1], "-o", names[2]]) == 0
    assert cli.main(["verify", names[0], names[2], "--plan", names[1]]) == 0
    assert "as planned" in capsys.readouterr().out
