"""Files with nodes that ONNX Runtime cannot run: what does not depend on them is pruned, and the rest is kept as it is."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import cli
from onnxprune.errors import LoadError, ModelError, UnsupportedError
from onnxprune.graph.barrier import Barrier
from onnxprune.graph.model import Graph
from onnxprune.graph.stops import stopping
from onnxprune.runtime.sessions import open_session

RNG = np.random.default_rng(0)


def weight(name: str, *shape: int) -> onnx.TensorProto:
    scale = np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else 4.0)
    return numpy_helper.from_array((RNG.standard_normal(shape) / scale).astype(np.float32), name)


def conv(x: str, y: str, ins: int, outs: int, kernel: int = 3) -> tuple[list, list]:
    """Nodes and weights of a Conv with a Relu."""
    nodes = [
        helper.make_node("Conv", [x, f"{y}.w", f"{y}.b"], [f"{y}.c"], pads=[kernel // 2] * 4, name=f"conv_{y}"),
        helper.make_node("Relu", [f"{y}.c"], [y]),
    ]
    return nodes, [weight(f"{y}.w", outs, ins, kernel, kernel), weight(f"{y}.b", outs)]


def model(parts: list, outputs: dict[str, list], stated: dict[str, list] | None = None, **given) -> onnx.ModelProto:
    """A model of nodes and convs, in order."""
    nodes, weights = [], list(given.pop("weights", ()))
    for part in parts:
        nodes += part[0] if isinstance(part, tuple) else [part]
        weights += part[1] if isinstance(part, tuple) else []
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", floats, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info(name, floats, sizes) for name, sizes in outputs.items()], weights,
        value_info=[helper.make_tensor_value_info(name, floats, sizes) for name, sizes in (stated or {}).items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", given.pop("opset", 17)), helper.make_opsetid("TRT", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=given.pop("ir_version", 8))


NMS = helper.make_node("EfficientNMS_TRT", ["y"], ["det"], domain="TRT", name="nms", score_threshold=0.25, top=[1, 2])


def plugin(x: str, y: str, **attributes) -> onnx.NodeProto:
    return helper.make_node("MyAct", [x], [y], domain="vendor.ops", name=f"act_{y}", **attributes)


def with_vendor(found: onnx.ModelProto) -> onnx.ModelProto:
    found.opset_import.append(helper.make_opsetid("vendor.ops", 3))
    return found


def tail(last: onnx.NodeProto = NMS, **given) -> onnx.ModelProto:
    parts = [conv("x", "a", 3, 16), conv("a", "b", 16, 16), conv("b", "y", 16, 5, 1), last]
    return model(parts, {"det": ["n", 100, 4]}, **given)


def middle(stated: dict[str, list] | None = None) -> onnx.ModelProto:
    parts = [
        conv("x", "a", 3, 16),
        conv("a", "b", 16, 8),
        plugin("b", "m"),
        conv("m", "c", 8, 12),
        conv("c", "y", 12, 4),
    ]
    return with_vendor(model(parts, {"y": ["n", 4, 8, 8]}, stated))


def node_of(found: onnx.ModelProto, op: str) -> onnx.NodeProto:
    (node,) = [n for n in found.graph.node if n.op_type == op]
    return node


def sizes(found: onnx.ModelProto) -> dict[str, list[int]]:
    return {t.name: list(t.dims) for t in found.graph.initializer}


def written_as(node: onnx.NodeProto, result: onnxprune.Result) -> bool:
    """Whether the node is in the outcome byte by byte."""
    return node.SerializeToString() in [n.SerializeToString() for n in result.model.graph.node]


def test_what_comes_before_a_plugin_is_pruned_and_proven(tmp_path):
    source = tail()
    result = onnxprune.prune(source, 0.5, repair="none", calibration=RNG.standard_normal((32, 3, 8, 8)).astype("f4"))
    assert result.macs_removed >= 0.49
    assert result.surgery.exact
    assert result.fidelity is not None
    assert written_as(NMS, result)
    assert [o.domain for o in result.model.opset_import] == ["", "TRT"]
    assert result.model.graph.output == source.graph.output
    assert result.model.graph.input == source.graph.input
    assert any("'nms' (TRT.EfficientNMS_TRT) does not run: ONNX Runtime knows no" in w for w in result.warnings)
    saved = result.save(tmp_path / "pruned.onnx")
    onnx.checker.check_model(str(saved))
    reasons = {p.reason for p in result.pinned}
    assert "read by node 'nms' (TRT.EfficientNMS_TRT), which does not run" in reasons


def test_the_head_equals_the_masked_original():
    source = tail()
    subject = onnxprune.open_model(source)
    result = onnxprune.prune(source, 0.5, repair="none", allocation="uniform")
    masked = subject.part_of(source)
    stored = {t.name: t for t in masked.graph.initializer}
    for group in subject.channels.groups:
        keep = result.plan.keep().get(group.name, range(group.width))
        gone = sorted(set(range(group.width)) - set(keep))
        assert gone
        for made in group.weights:
            for name in (made.tensor, made.tensor.replace(".w", ".b")):
                value = numpy_helper.to_array(stored[name]).copy()
                value[gone] = 0
                stored[name].CopyFrom(numpy_helper.from_array(value, name))
    x = {"x": RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)}
    want, got = (open_session(m).run(x) for m in (masked, result.runs))
    for a, b in zip(want, got, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("EfficientNMS_TRT", ["y"], ["det"], name="nms", plugin_version="1"),
        helper.make_node("BatchedNMS_TRT", ["y"], ["det"], name="nms"),
        helper.make_node("BatchedNMSDynamic_TRT", ["y", "y"], ["det"], name="nms", plugin_version="1"),
        helper.make_node("Whatever", ["y"], ["det"], plugin_version="1", plugin_namespace=""),
        helper.make_node("Frob", ["y"], ["det"], domain="com.microsoft"),
        helper.make_node("Frob", ["y"], ["det"], domain="a:b"),
    ],
    ids=lambda node: f"{node.domain}.{node.op_type}",
)
def test_plugins_of_every_domain(node):
    source = tail(node)
    source.opset_import.extend([helper.make_opsetid(node.domain, 1)] if node.domain else [])
    result = onnxprune.prune(source, 0.4)
    assert result.macs_removed > 0.39
    assert written_as(node, result)


def test_a_missing_kernel_is_a_barrier():
    nodes = [
        helper.make_node("Cast", ["y"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Softsign", ["wide"], ["soft"]),  # no kernel for doubles
        helper.make_node("Cast", ["soft"], ["det"], to=TensorProto.FLOAT),
    ]
    source = tail(([*nodes], []))
    assert stopping(source) == {"soft": "ONNX Runtime has no kernel for it and the type of what it reads"}
    result = onnxprune.prune(source, 0.5)
    assert result.macs_removed > 0.49
    assert [n.op_type for n in result.model.graph.node][-2:] == ["Softsign", "Cast"]


def test_a_kernel_that_is_missing_inside_a_function_of_onnx():
    nodes = [
        helper.make_node("Cast", ["y"], ["narrow"], to=TensorProto.BFLOAT16),
        helper.make_node("Mish", ["narrow"], ["mish"], name="act"),  # ONNX Runtime makes other nodes of it
        helper.make_node("Cast", ["mish"], ["det"], to=TensorProto.FLOAT),
    ]
    assert list(stopping(tail((nodes, []), opset=22))) == ["mish"]


def test_behind_a_plugin_of_unknown_sizes_all_stays_whole():
    result = onnxprune.prune(middle(), 0.5, best_effort=True)
    before, after = sizes(middle()), sizes(result.model)
    assert after["a.w"][0] < before["a.w"][0]
    assert {k: after[k] for k in ("b.b", "c.w", "y.w")} == {k: before[k] for k in ("b.b", "c.w", "y.w")}
    assert written_as(node_of(middle(), "MyAct"), result)
    assert any("what is behind stays whole (4 nodes)" in w for w in result.warnings)


@pytest.mark.parametrize(("stated", "shapes"), [({"m": ["n", 8, 8, 8]}, None), (None, {"m": (1, 8, 8, 8)})])
def test_behind_a_plugin_of_known_sizes_the_rest_is_pruned(stated, shapes, tmp_path):
    result = onnxprune.prune(middle(stated), 0.6, input_shapes=shapes, allocation="uniform")
    after = sizes(result.model)
    assert after["a.w"][0] < 16
    assert after["c.w"][:2] == [after["y.w"][1], 8]
    assert after["c.w"][0] < 12
    assert after["b.w"][0] == 8
    assert written_as(node_of(middle(), "MyAct"), result)
    assert [i.name for i in result.model.graph.input] == ["x"]
    assert result.model.graph.output == middle().graph.output
    onnx.checker.check_model(str(result.save(tmp_path / "pruned.onnx")))


def test_samples_may_hold_what_a_plugin_makes():
    stated, x = {"m": ["n", 8, 8, 8]}, RNG.standard_normal((24, 3, 8, 8)).astype(np.float32)
    whole = onnxprune.prune(middle(stated), 0.5, calibration=iter([{"x": x}]), best_effort=True)
    assert sizes(whole.model)["c.w"] == [12, 8, 3, 3]
    both = {"x": x, "m": RNG.standard_normal((24, 8, 8, 8)).astype(np.float32)}
    cut = onnxprune.prune(middle(stated), 0.6, calibration=iter([both]), allocation="uniform")
    assert sizes(cut.model)["c.w"][0] < 12


def test_two_plugins():
    parts = [
        conv("x", "a", 3, 16), conv("a", "b", 16, 8), plugin("b", "m"), conv("m", "c", 8, 12), conv("c", "d", 12, 4),
        plugin("d", "e", gain=2.0), conv("e", "f", 4, 10), conv("f", "y", 10, 4), NMS,
    ]  # fmt: skip
    stated = {"m": ["n", 8, 8, 8], "e": ["n", 4, 8, 8]}
    source = with_vendor(model(parts, {"det": ["n", 100, 4]}, stated))
    result = onnxprune.prune(source, 0.5, allocation="uniform")
    after = sizes(result.model)
    assert all(after[f"{name}.b"][0] < width for name, width in {"a": 16, "c": 12, "f": 10}.items())
    assert [n.op_type for n in result.model.graph.node].count("MyAct") == 2
    order = [o for n in result.model.graph.node for o in n.output]
    assert order.index("m") < order.index("c.c") < order.index("e") < order.index("y") < order.index("det")
    assert list(stopping(source)) == ["m", "e", "det"]


def test_a_plugin_inside_a_branch():
    body = helper.make_graph(
        [plugin("y", "z")], "body", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    )
    flag = [numpy_helper.from_array(np.array(True), "flag")]
    node = helper.make_node("If", ["flag"], ["det"], then_branch=body, else_branch=body, name="if")
    source = with_vendor(tail(node, weights=flag))
    result = onnxprune.prune(source, 0.5)
    assert result.macs_removed > 0.49
    assert written_as(node, result)


def test_constants_that_both_sides_read_stay_what_they_were_for_the_rest(tmp_path):
    scale = helper.make_node("Mul", ["twice", "half"], ["slope"])
    by = [helper.make_node("PRelu", ["a", "slope"], ["p"]), helper.make_node("PRelu", ["m", "slope"], ["y"])]
    parts = [scale, conv("x", "a", 3, 8), by[0], conv("p", "b", 8, 8), plugin("b", "m"), by[1]]
    weights = [weight("twice", 8, 1, 1), weight("half", 8, 1, 1)]
    source = with_vendor(model(parts, {"y": ["n", 8, 8, 8]}, weights=weights))
    result = onnxprune.prune(source, 0.5)
    found = result.model
    made = next(n for n in found.graph.node if n.output[0] == "y").input[1]
    value = Graph(found).constant(made)
    assert value is not None
    assert len(Graph(found).constant(next(n for n in found.graph.node if n.output[0] == "p").input[1])) < 8
    np.testing.assert_allclose(value, stored(source, "twice") * stored(source, "half"), rtol=1e-6)
    onnx.checker.check_model(str(result.save(tmp_path / "pruned.onnx")))


def stored(found: onnx.ModelProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(t) for t in found.graph.initializer if t.name == name)


@pytest.mark.parametrize("ir_version", [3, 8])
def test_quantized_weights_behind_a_plugin_are_no_outputs(ir_version):
    held = [
        numpy_helper.from_array(RNG.integers(-100, 100, (4, 8, 1, 1)).astype(np.int8), "q"),
        numpy_helper.from_array(np.float32(0.01), "s"),
    ]
    dequantized = helper.make_node("DequantizeLinear", ["q", "s"], ["w"])
    last = helper.make_node("Conv", ["m", "w"], ["y"])
    parts = [dequantized, conv("x", "a", 3, 16), conv("a", "b", 16, 8), plugin("b", "m"), last]
    source = with_vendor(model(parts, {"y": ["n", 4, 8, 8]}, weights=held, ir_version=ir_version))
    if ir_version < 4:
        stated = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in source.graph.initializer]
        source.graph.input.extend(stated)
    subject = onnxprune.open_model(source)
    assert [o.name for o in subject.model.graph.output] == ["b"]
    result = onnxprune.prune(source, 0.3)
    assert written_as(dequantized, result)
    assert {"q", "s"} <= sizes(result.model).keys()
    onnx.checker.check_model(result.model)


def test_put_back_without_edits_it_is_the_same_model():
    for source in (tail(), middle(), middle({"m": ["n", 8, 8, 8]})):
        barrier = Barrier.of(source, stopping(source))
        assert barrier.whole_of(barrier.part) == source


def test_nothing_runs_before_a_plugin():
    source = with_vendor(model([plugin("x", "m"), conv("m", "y", 3, 4)], {"y": ["n", 4, 8, 8]}))
    with pytest.raises(UnsupportedError, match=r"act_m' \(vendor\.ops\.MyAct\) does not run: .*--input-shape TENSOR="):
        onnxprune.open_model(source)
    assert onnxprune.open_model(source, input_shapes={"m": (1, 3, 8, 8)}).channels.shapes["y"] == (1, 4, 8, 8)


def test_what_is_wrong_besides_is_told():
    source = tail()
    source.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("pads", [1, 1]))
    with pytest.raises(ModelError, match="pads"):
        onnxprune.open_model(source)


def test_a_session_of_such_a_file_says_that_it_does_not_load():
    with pytest.raises(LoadError, match="is not a registered function"):
        open_session(tail())


# ---- the commands ----------------------------------------------------------------------------------------


def run(capsys, *words) -> tuple[int, str, str]:
    code = cli.main([str(w) for w in words])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def files(tmp_path):
    onnx.save(tail(), tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", RNG.standard_normal((32, 3, 8, 8)).astype(np.float32))
    return tmp_path


def test_plan_apply_and_verify(files, capsys):
    net, plan, out = files / "net.onnx", files / "plan.json", files / "out.onnx"
    assert run(capsys, "plan", net, "--ratio", 0.4, "--calib", files / "x.npy", "-o", plan)[0] == 0
    assert run(capsys, "apply", net, plan, "--calib", files / "x.npy", "-o", out, "--allow-destroyed")[0] == 0
    code, said, _ = run(capsys, "verify", net, out, "--plan", plan, "--calib", files / "x.npy", "--allow-destroyed")
    assert code == 0
    assert "exact" in said
    assert "as planned" in said
    other = files / "other.onnx"
    onnx.save(tail(), other)
    assert run(capsys, "verify", net, other, "--plan", plan)[0] == 6
    assert node_of(onnx.load(out), "EfficientNMS_TRT") == NMS


def test_the_result_says_what_was_timed(files, capsys):
    out, page = files / "out.onnx", files / "page.html"
    code, said, _ = run(
        capsys, "prune", files / "net.onnx", "-o", out, "--ratio", 0.5, "--bench", "--best-effort", "--json",
        "--report", page,
    )  # fmt: skip
    assert code == 0
    told = json.loads(said)
    assert "the part that runs, up to 'y'" in told["latency"]["part"]
    assert "not all of it runs" in page.read_text()


def test_bench_times_the_part(files, capsys):
    code, said, _ = run(capsys, "bench", files / "net.onnx", "--rounds", 10)
    assert code == 0
    assert "not all of it runs: net: node 'nms' (TRT.EfficientNMS_TRT) does not run" in " ".join(said.split())


def test_inspect_names_the_node(files, capsys):
    code, said, _ = run(capsys, "inspect", files / "net.onnx")
    assert code == 0
    assert "node 'nms' (TRT.EfficientNMS_TRT) does not run" in " ".join(said.split())
    code, said, _ = run(capsys, "inspect", files / "net.onnx", "--json")
    assert "'nms'" in json.loads(said)["barriers"][0]


def test_sizes_may_be_given_on_the_command_line(tmp_path, capsys):
    onnx.save(middle(), tmp_path / "net.onnx")
    words = ["prune", tmp_path / "net.onnx", "-o", tmp_path / "out.onnx", "--ratio", 0.6, "--allocation", "uniform"]
    assert run(capsys, *words, "--input-shape", "m=1,8,8,8", "--allow-destroyed")[0] == 0
    assert sizes(onnx.load(tmp_path / "out.onnx"))["c.w"][0] < 12
