"""Sizes come from the run: dynamic axes, computed shapes, bodies and sequences included."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxprune.errors import ModelError
from onnxprune.graph import shapes
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import follow, observe

RNG = np.random.default_rng(0)
BIG = RNG.standard_normal((64, 4, 3, 3)).astype(np.float32)  # large: lies beside the model


def model_of(body, *, opset=18, weights=None, ir=8):
    model = parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]> g {body}')
    for name, value in (weights or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


def seen(model, **feeds):
    return observe(Graph(model), feeds)


def x(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


CONV = model_of("(float[N,4,H,W] x) => (y) { c = Conv<pads=[1,1,1,1]>(x, w) y = Relu(c) }", weights={"w": BIG})
VIEW = model_of("""(float[N,4,H,W] x) => (y)
    <int64 zero = {0}, int64[1] axes = {0}, int64[1] minus = {-1}> {
    s = Shape(x) n = Gather(s, zero) u = Unsqueeze(n, axes) t = Concat<axis=0>(u, minus) y = Reshape(x, t) }""")
LOOP = model_of("""(float[N,4] x, int64 trips) => (y, all) <bool true = {1}> {
    y, all = Loop(trips, true, x) <body = b (int64 i, bool go, float[N,4] v) => (bool on, float[N,4] w, float[N,4] e)
        { on = Identity(go) w = Add(v, v) e = Identity(w) }> }""")
IF = model_of("""(float[N,4] x, bool c) => (y) {
    r = Relu(x)
    y = If(c) <then_branch = a () => (float[N,4] p) { p = Neg(r) },
               else_branch = b () => (float[K,4] q) { q = Concat<axis=0>(r, r) }> }""")
SEQUENCE = model_of("""(float[N,4] x) => (y) <int64 one = {1}> {
    s = SplitToSequence<axis=1>(x) t = SequenceAt(s, one) y = Relu(t) }""")
BODY_SEQUENCE = model_of("""(float[N,4] x, bool c) => (y) <int64 zero = {0}> {
    s = If(c) <then_branch = a () => (seq(float[N,4]) p) { p = SequenceConstruct(x, x) },
               else_branch = b () => (seq(float[N,4]) q) { q = SequenceConstruct(x) }>
    y = SequenceAt(s, zero) }""")
OPTIONAL_OUTPUTS = model_of("(float[N,4] x) => (y, d) <float[4] s = {1,1,1,1}> { y, , d = LayerNormalization(x, s) }")
DATA = model_of(
    "(float[N,4] x) => (y) <int64[1] minus = {-1}> { n = NonZero(x) f = Reshape(n, minus) y = Cast<to=1>(f) }"
)
INTEGER = model_of("(int64[N,T] x) => (y) { y = Gather(w, x) }", weights={"w": BIG.reshape(64, -1)})
FOLDED = model_of(
    "(float[N,4,H,W] x) => (y) <int64[4] p = {64,4,3,3}> { i = Identity(w) t = Reshape(i, p) y = Conv(x, t) }",
    weights={"w": BIG.reshape(-1)},
)
SCALAR = model_of("(float[N,4] x) => (y) <int64 two = {2}, int64[1] zero = {0}, int64[1] m = {-1}> "
                  "{ i = Identity(two) u = Unsqueeze(i, zero) t = Concat<axis=0>(u, m) y = Reshape(x, t) }")  # fmt: skip
# nobody but ONNX Runtime can say what y is
UNTYPED = model_of("(float[N,4] x) => (y) { a = com.microsoft.QuickGelu(x) y = Add(a, x) }")
UNTYPED.opset_import.append(helper.make_opsetid("com.microsoft", 1))

ROWS = [
    (CONV, {"x": x(1, 4, 5, 5)}, {"c": (1, 64, 5, 5), "y": (1, 64, 5, 5), "w": (64, 4, 3, 3)}, {}),
    (CONV, {"x": x(3, 4, 2, 7)}, {"y": (3, 64, 2, 7)}, {}),
    (VIEW, {"x": x(2, 4, 3, 3)}, {"y": (2, 36), "s": (4,), "n": (), "t": (2,)}, {"t": [2, -1], "n": 2}),
    (LOOP, {"x": x(2, 4), "trips": np.array(3)}, {"y": (2, 4), "all": (3, 2, 4)}, {}),
    (IF, {"x": x(2, 4), "c": np.array(True)}, {"y": (2, 4), "r": (2, 4)}, {}),
    (IF, {"x": x(2, 4), "c": np.array(False)}, {"y": (4, 4)}, {}),
    (SEQUENCE, {"x": x(2, 4)}, {"t": (2, 1), "y": (2, 1), "s": None}, {}),
    (BODY_SEQUENCE, {"x": x(2, 4), "c": np.array(True)}, {"y": (2, 4), "s": None}, {}),
    (OPTIONAL_OUTPUTS, {"x": x(2, 4)}, {"y": (2, 4), "d": (2, 1)}, {}),
    (DATA, {"x": np.eye(4, dtype=np.float32)}, {"n": (2, 4), "f": (8,)}, {}),
    (INTEGER, {"x": np.zeros((2, 5), np.int64)}, {"y": (2, 5, 36)}, {}),
    (FOLDED, {"x": x(1, 4, 5, 5)}, {"t": (64, 4, 3, 3), "i": (2304,), "y": (1, 64, 3, 3)}, {}),
    (SCALAR, {"x": x(4, 4)}, {"y": (2, 8), "i": (), "t": (2,)}, {}),
    (UNTYPED, {"x": x(2, 4)}, {"a": (2, 4), "y": (2, 4)}, {}),
]


@pytest.mark.parametrize("model, feeds, expected, derived", ROWS)
def test_sizes(model, feeds, expected, derived):
    found = seen(model, **feeds)
    assert {k: found.shapes.get(k) for k in expected} == expected
    assert {k: found.derived[k].tolist() for k in derived} == derived
    tensors = {o for n in model.graph.node for o in n.output if o} - {k for k, v in expected.items() if v is None}
    assert tensors <= found.shapes.keys()


@pytest.mark.parametrize("model, feeds", [(r[0], r[1]) for r in ROWS])
def test_sizes_are_those_of_the_values(model, feeds):
    """Against the tensors themselves, fetched."""
    found = seen(model, **feeds)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    names = [o for n in model.graph.node for o in n.output if o in found.shapes]
    copy.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names)
    values = dict(zip(names, shapes.sessions.open_session(copy, optimise=False).run(feeds), strict=True))
    assert {n: np.shape(v) for n, v in values.items()} == {n: found.shapes[n] for n in names}
    for name, value in found.derived.items():
        np.testing.assert_array_equal(value, values[name])


def test_the_model_is_run_once_and_its_weights_stay_outside(monkeypatch):
    taps = []
    tap = shapes._tap
    monkeypatch.setattr(shapes, "sizes_only", lambda *_: None)

    def noted(net, tensors, feeds, title, wanted):
        taps.extend([(net.model.ByteSize(), set(net.weights))] if wanted else [])
        return tap(net, tensors, feeds, title, wanted)

    monkeypatch.setattr(shapes, "_tap", noted)
    seen(CONV, x=x(1, 4, 5, 5))
    ((size, beside),) = taps
    assert beside == {"w"} and size < 1000


def test_arithmetic_beyond_the_table_is_measured(monkeypatch):
    """A node of the table that cannot be evaluated after all: its size, and what follows from it, is still known."""

    def refuse(attrs, *xs, opset):
        raise ValueError

    monkeypatch.setitem(shapes.evaluate.TABLE, "Concat", refuse)
    found = seen(VIEW, x=x(2, 4, 3, 3))
    assert found.shapes["t"] == (2,) and found.shapes["y"] == (2, 36)
    assert "t" not in found.derived and found.derived["n"] == 2


def test_weights_in_constant_nodes_and_bodies():
    node = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(BIG))
    model = model_of("(float[N,4,H,W] x, bool c) => (y) { y = If(c) "
                     "<then_branch = a () => (p) { p = Conv(x, k) }, else_branch = b () => (q) { q = Conv(x, w) }> }",
                     weights={"w": BIG})  # fmt: skip
    model.graph.node.insert(0, node)
    assert seen(model, x=x(1, 4, 5, 5), c=np.array(True)).shapes["y"] == (1, 64, 3, 3)


@pytest.mark.parametrize("ir", (3, 8))
def test_initializers_that_are_inputs_too(ir):
    model = model_of("(float[N,4,H,W] x, float[64,4,3,3] w, float[64] b) => (y) { y = Conv(x, w, b) }",
                     weights={"w": BIG, "b": BIG[:, 0, 0, 0]}, opset=8, ir=ir)  # fmt: skip
    assert seen(model, x=x(1, 4, 5, 5)).shapes["y"] == (1, 64, 3, 3)


def test_sparse_initializers_have_a_size():
    model = model_of("(float[N,4] x) => (y) { y = MatMul(x, w) }")
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    where = helper.make_tensor("w_at", TensorProto.INT64, [2], [0, 5])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, [4, 3]))
    found = seen(model, x=x(2, 4))
    assert found.shapes["w"] == (4, 3) and found.shapes["y"] == (2, 3)


def test_a_model_that_does_not_run_says_so_in_one_line():
    with pytest.raises(ModelError) as error:
        seen(CONV, x=x(1, 5, 5, 5))
    assert "\n" not in str(error.value) and "[1, 5, 5, 5]" in str(error.value)


def test_follow_gives_the_values_for_other_sizes():
    graph = Graph(VIEW)
    found = observe(graph, {"x": x(2, 4, 3, 3)})
    assert follow(graph, {**found.shapes, "x": (7, 2, 3, 3)})["t"].tolist() == [7, -1]


def test_a_chain_of_two_thousand_nodes():
    model = model_of("(float[N,4] x0) => (y) { y = Relu(x2000) }")
    chain = [helper.make_node("Neg", [f"x{k}"], [f"x{k + 1}"]) for k in range(2000)]
    for k, node in enumerate(chain):
        model.graph.node.insert(k, node)
    assert seen(model, x0=x(3, 4)).shapes["x1999"] == (3, 4)
