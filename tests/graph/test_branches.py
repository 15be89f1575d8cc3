"""Branches put in the place of their If: the same function, with names that clash with nothing."""

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxprune.graph.branches import chosen, with_branches
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from tests.channels import surgery

SIZED = """(float[N,4,H] x) => (float[N,4,H] y) <int64 two = {2}, int64 one = {1}>
    { s = Shape(x) h = Gather(s, two) c = Equal(h, one) BODY }"""
BODIES = {
    "a computed output": "y = If(c) <then_branch = t () => (float[] u) { k = Neg(x) u = Abs(k) }, else_branch = e () => (float[] u) { u = Relu(x) }>",
    "a constant output": """k = If(c) <then_branch = t () => (float[1] p) <float[1] p = {2.0}> {}, else_branch = e () => (float[1] q) <float[1] q = {3.0}> {}>
        y = Mul(x, k)""",
    "names that others have too": """z = If(c) <then_branch = t () => (float[] k) { k = Neg(x) }, else_branch = e () => (float[] k) { m = Neg(x) k = Abs(m) }>
        w = If(c) <then_branch = t () => (float[] k) { k = Abs(z) }, else_branch = e () => (float[] k) { m = Exp(z) k = Neg(m) }>
        m = Neg(w) y = Sigmoid(m)""",
    "a branch in a branch": """y = If(c) <then_branch = t () => (float[] k) { k = Neg(x) },
        else_branch = e () => (float[] q) { r = Abs(x) q = If(c) <then_branch = t2 () => (float[] p) { p = Neg(r) },
        else_branch = e2 () => (float[] p) { r2 = Neg(r) p = Exp(r2) }> }>""",
    "constants inside": """y = If(c) <then_branch = t () => (float[] k) { k = Neg(x) },
        else_branch = e () => (float[] k) <float[4,1] b = {1.0, 2.0, 3.0, 4.0}> { k = Add(x, b) }>""",
}  # fmt: skip


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_the_branch_taken_is_the_function(body: str, length: int) -> None:
    model = surgery.model_of(SIZED.replace("BODY", body))
    feeds = surgery.feeds_of(model, H=length)
    result = model
    for _ in range(2):
        graph = Graph(result)
        result = with_branches(result, chosen(graph, observe(graph, feeds)))
    assert all(n.op_type != "If" for n in result.graph.node)
    onnx.checker.check_model(result)
    for a, b in zip(surgery.run(model, feeds), surgery.run(result, feeds), strict=True):
        assert np.array_equal(a, b)


def test_data_decides_nothing() -> None:
    model = surgery.model_of("""(float[2,4] x, bool c) => (float[] y)
        { y = If(c) <then_branch = t () => (float[] k) { k = Neg(x) }, else_branch = e () => (float[] k) { k = Abs(x) }> }""")
    graph = Graph(model)
    assert chosen(graph, observe(graph, surgery.feeds_of(model))) == {}


def test_constants_of_a_branch_of_an_old_model_become_nodes() -> None:
    info = helper.make_tensor_value_info
    bodies = [
        helper.make_graph([helper.make_node("Add", ["x", f"b{k}"], [f"u{k}"])], "body", [], [info(f"u{k}", 1, [2])],
                          [onnx.numpy_helper.from_array(np.float32([k, 1]), f"b{k}")])
        for k in range(2)
    ]  # fmt: skip
    node = helper.make_node("If", ["c"], ["y"], then_branch=bodies[1], else_branch=bodies[0])
    inputs = [info("x", 1, [2]), info("c", onnx.TensorProto.BOOL, [])]
    graph = helper.make_graph([node], "g", inputs, [info("y", 1, [2])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=3)
    result = with_branches(model, {"y": True})
    assert [n.op_type for n in result.graph.node] == ["Constant", "Add"]
    feeds = {"x": np.float32([2, 3]), "c": np.array(True)}
    assert np.array_equal(surgery.run(result, feeds)[0], [3, 4])
