"""A run without arithmetic measures what the whole run measures, and is not used where it could not."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxprune.errors import ModelError
from onnxprune.graph import shapes
from onnxprune.graph import sizes_only as sizes_only
from onnxprune.graph.model import Graph

RNG = np.random.default_rng(0)
IMAGE, ROWS = (2, 6, 9, 8), (2, 5, 6)


def w(*shape, dtype=np.float32):
    return RNG.standard_normal(shape).astype(dtype)


def graph_of(body, opset=18, **weights):
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g {body}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return Graph(model)


def image(nodes, **weights):
    return graph_of("(float[N,C,H,W] x) => (y) { " + nodes + " }", **weights)


def rows(nodes, **weights):
    return graph_of("(float[N,T,C] x) => (y) { " + nodes + " }", **weights)


def by_value(nodes):
    """`u` is a size made of what the layer computes."""
    made = "c = Conv(x, w) f = ReduceMax<keepdims=0>(c) i = Cast<to=7>(f) k = Abs(i) u = Unsqueeze(k, z) "
    return image(made + nodes, w=w(4, 6, 1, 1), z=np.array([0]))


def branch(one, other, **weights):
    return image(
        "c = Conv(x, w) f = ReduceMax<keepdims=0>(c) b = Cast<to=9>(f) y = If(b) <then_branch = a () => (float[] p)"
        f" {{ p = {one} }}, else_branch = b () => (float[] q) {{ q = {other} }}>",
        w=w(4, 6, 1, 1),
        **weights,
    )


EMPTIED = {
    "Conv": image("y = Conv<pads=[1,1,1,1]>(x, w)", w=w(4, 6, 3, 3)),
    "Conv with strides, dilations, a bias": image(
        "y = Conv<strides=[2,1], dilations=[1,2], kernel_shape=[3,2]>(x, w, b)", w=w(4, 6, 3, 2), b=w(4)
    ),
    "Conv that pads for itself": image('y = Conv<auto_pad="SAME_LOWER", strides=[2,3]>(x, w)', w=w(4, 6, 3, 2)),
    "grouped Conv": image("y = Conv<group=3>(x, w)", w=w(9, 2, 2, 2)),
    "depthwise Conv": image("y = Conv<group=6>(x, w)", w=w(12, 1, 3, 3)),
    "Conv1d": rows("y = Conv(x, w)", w=w(7, 5, 3)),
    "Conv in float16": image("h = Cast<to=10>(x) c = Conv(h, w) y = Cast<to=1>(c)", w=w(4, 6, 1, 1, dtype=np.float16)),
    "ConvTranspose": image("y = ConvTranspose<strides=[2,2], output_padding=[1,0]>(x, w)", w=w(6, 4, 3, 3)),
    "grouped ConvTranspose": image("y = ConvTranspose<group=2, pads=[1,0,1,0]>(x, w, b)", w=w(6, 4, 3, 3), b=w(8)),
    "ConvTranspose to a size": image("y = ConvTranspose<output_shape=[20,18], strides=[2,2]>(x, w)", w=w(6, 4, 3, 3)),
    "MatMul": rows("y = MatMul(x, w)", w=w(6, 3)),
    "Gemm": image("f = Flatten(x) y = Gemm(f, w, b)", w=w(432, 3), b=w(3)),
    "Gemm on its side": image("f = Flatten(x) y = Gemm<transB=1, alpha=0.5>(f, w)", w=w(3, 432)),
    "two readers": image("a = Conv(x, w) b = Conv(x, v) y = Concat<axis=1>(a, b)", w=w(4, 6, 1, 1), v=w(3, 6, 1, 1)),
    "shapes at run time": image(
        "c = Conv(x, w) s = Shape(x) n = Gather(s, z) t = Concat<axis=0>(n, m) y = Reshape(c, t)",
        w=w(4, 6, 1, 1),
        z=np.array([0]),
        m=np.array([-1]),
    ),
}
WHOLE = {
    "a layer behind what is counted": image(
        "c = Conv(x, w) n = NonZero(c) f = Cast<to=1>(n) t = Transpose<perm=[1,0]>(f) y = MatMul(t, v)",
        w=w(4, 6, 1, 1),
        v=w(4, 2),
    ),
    "a layer sized by a value": by_value("e = Expand(f, u) y = MatMul(e, e)"),
    "a layer in a branch": branch("Conv(c, v)", "Identity(c)", v=w(4, 4, 1, 1)),
    "an old Slice": graph_of("(float[N,C,H,W] x) => (y) { y = Conv(x, w) }", opset=9, w=w(4, 6, 1, 1)),
    "no weight": image("k = GlobalAveragePool(x) y = Conv(x, k)"),
    "turned operand": rows("s = Squeeze(x, z) y = Gemm<transA=1>(s, w)", w=w(5, 3), z=np.array([0])),
    "a bias that is no constant": image(
        "v = ReduceMax<keepdims=0>(x) b = Expand(v, four) y = Conv(x, w, b)", w=w(4, 6, 1, 1), four=np.array([4])
    ),
    "weight on the left": rows("y = MatMul(w, x)", w=w(3, 5)),
}


COUNTED = {
    "counts what it finds": image("c = Conv(x, w) y = NonZero(c)", w=w(4, 6, 1, 1)),
    "sized by a value": by_value("y = Expand(u, u)"),
    "a branch": branch("Relu(c)", "Flatten(c)"),
}


def feeds_of(graph):
    rank = len(graph.model.graph.input[0].type.tensor_type.shape.dim)
    shape = IMAGE if rank == 4 else ROWS
    if any(n.op_type == "Squeeze" for n in graph.nodes.values()) or any("k" in n.output for n in graph.nodes.values()):
        shape = (1, *shape[1:])
    return {"x": w(*shape)}


def both(monkeypatch, graph):
    """Sizes by a run without arithmetic if there is one, by a whole run, and the first run's nodes."""
    made = []
    monkeypatch.setattr(shapes, "sizes_only", lambda *args: made.append(sizes_only.sizes_only(*args)) or made[-1])
    feeds = feeds_of(graph)
    found = shapes.observe(graph, feeds)
    monkeypatch.setattr(shapes, "sizes_only", lambda *_: None)
    return found, shapes.observe(graph, feeds), made[0]


@pytest.mark.parametrize("name", EMPTIED)
def test_the_sizes_are_the_same(monkeypatch, name):
    graph = EMPTIED[name]
    found, wanted, made = both(monkeypatch, graph)
    assert found.shapes == wanted.shapes
    assert found.derived.keys() == wanted.derived.keys()
    assert made.fits(found.shapes)
    left = [n for n in made.nodes if n.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm")]
    assert left and all(made.constants[n.input[1]].shape.count(1) for n in left)


@pytest.mark.parametrize("name", COUNTED)
def test_what_values_size_may_come_last(monkeypatch, name):
    found, wanted, made = both(monkeypatch, COUNTED[name])
    assert made.fits(found.shapes) and found.shapes.keys() == wanted.shapes.keys()
    assert found.shapes["c"] == wanted.shapes["c"]


@pytest.mark.parametrize("name", WHOLE)
def test_the_rest_is_run_as_it_is(monkeypatch, name):
    found, wanted, made = both(monkeypatch, WHOLE[name])
    assert found.shapes == wanted.shapes and made is None


@pytest.mark.parametrize(
    "graph",
    [
        image("y = Conv(x, w)", w=w(4, 5, 1, 1)),
        image("y = Conv(x, w, b)", w=w(4, 6, 1, 1), b=w(3)),
        image("y = Conv<group=4>(x, w)", w=w(6, 2, 1, 1)),
        image("y = Conv<kernel_shape=[2,2]>(x, w)", w=w(4, 6, 1, 1)),
        rows("y = MatMul(x, w)", w=w(7, 3)),
        image("f = Flatten(x) y = Gemm(f, w)", w=w(430, 3)),
    ],
    ids=["channels", "bias", "groups", "kernel", "rows", "features"],
)
def test_what_does_not_fit_is_said_by_the_model_itself(graph):
    with pytest.raises(ModelError) as error:
        shapes.observe(graph, feeds_of(graph))
    assert "::" not in str(error.value)


def test_an_equation_that_lacks_an_operand_is_the_model_s_fault():
    with pytest.raises(ModelError, match="operands in the equation"):
        shapes.observe(rows('y = Einsum<equation="ntc,cd->ntd">(x)'), {"x": w(*ROWS)})
