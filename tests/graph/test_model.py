"""An export is the original but for the edits: trap by trap, field by field."""

import pickle

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxprune.errors import ModelError
from onnxprune.graph.export import write_sizes
from onnxprune.graph.model import Graph, digest
from onnxprune.runtime.sessions import open_session

RNG = np.random.default_rng(0)
W = RNG.standard_normal((4, 3)).astype(np.float32)
V = RNG.standard_normal((3, 2)).astype(np.float32)
B = RNG.standard_normal(4).astype(np.float32)
X = RNG.standard_normal((2, 4)).astype(np.float32)


def model_of(body, *, opset=18, ir=8, **weights):
    model = parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]> g {body}')
    for name, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


def dense(**weights):
    """Two dense layers: y = relu(x·w)·v."""
    return model_of(
        "(float[N,4] x) => (float[N,2] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }",
        w=W,
        v=V,
        **weights,
    )


def same_bytes(a, b):
    return a.SerializeToString(deterministic=True) == b.SerializeToString(deterministic=True)


def runs(model, **feeds):
    """The outputs, after the checker has passed the model."""
    onnx.checker.check_model(model, full_check=not model.graph.sparse_initializer)
    return open_session(model, optimise=False, threads=1).run(feeds or {"x": X})


def weights_of(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def edited(model, *edits):
    """The export after `set_constant` for each (key, position, value)."""
    graph, before = Graph(model), model.SerializeToString(deterministic=True)
    for key, i, value in edits:
        graph.set_constant((key, i), value)
    out = graph.export()
    assert model.SerializeToString(deterministic=True) == before, "the original was edited"
    return out


# -- what no edit touches is the same ---------------------------------------------------------------------------


def about(model):
    helper.set_model_props(model, {"author": "someone", "stats": "{}"})
    model.doc_string, model.domain, model.model_version = "words", "com.example", 7
    model.producer_name, model.producer_version = "exporter", "1.2"
    model.graph.doc_string = "more words"
    model.graph.metadata_props.add(key="k", value="v")


def node_metadata(model):
    for n in model.graph.node:
        n.doc_string = f"doc {n.output[0]}"
        n.metadata_props.add(key="stack", value="trace\nline")


def value_metadata(model):
    for v in (*model.graph.input, *model.graph.output):
        v.doc_string = "a value"
        v.metadata_props.add(key="axis", value="batch")
        v.type.denotation = "TENSOR"
        v.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"


def tensor_metadata(model):
    for t in model.graph.initializer:
        t.doc_string = "a weight"
        t.metadata_props.add(key="k", value="v")


def value_infos(model):
    model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 3]))
    model.graph.value_info.append(helper.make_tensor_value_info("nowhere", TensorProto.FLOAT, [1]))
    model.graph.value_info.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3], "a weight"))


def quantization_annotation(model):
    note = model.graph.quantization_annotation.add(tensor_name="h")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    model.graph.initializer.append(numpy_helper.from_array(np.float32([0.5]), "scale"))


def function_overloads(model):
    model.opset_import.append(helper.make_opsetid("local", 1))
    for overload in ("", "other"):
        function = helper.make_function(
            "local",
            "Twice",
            ["a"],
            ["b"],
            [helper.make_node("Add", ["a", "a"], ["b"])],
            model.opset_import[:1],
        )
        function.overload = overload
        model.functions.append(function)
    node = helper.make_node("Twice", ["r"], ["twice"], domain="local", overload="other")
    model.ir_version = 10
    model.graph.node.insert(2, node)
    model.graph.node[3].input[0] = "twice"


def initializers_as_inputs(model):
    model.graph.input.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, [3, 2]))


def unused_initializers(model):
    model.graph.initializer.insert(0, numpy_helper.from_array(W, "unused"))


def dead_nodes(model):
    model.graph.node.insert(1, helper.make_node("Neg", ["h"], ["dead"], name="dead"))
    model.graph.node.insert(2, helper.make_node("MatMul", ["dead", "v"], ["deader"]))


def empty_ints(model):
    node = helper.make_node("ReduceSum", ["r"], ["sum"], keepdims=1)
    empty = node.attribute.add(name="axes", type=onnx.AttributeProto.INTS)
    assert not empty.ints
    model.graph.node.insert(2, node)


def not_utf8(model):
    node = helper.make_node("Relu", ["h"], ["other"], domain="com.example")
    node.attribute.add(name="tag", type=onnx.AttributeProto.STRING, s=b"\xff\xfe")
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    model.graph.node.insert(1, node)


def sparse(model):
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [2], [1.0, 2.0])
    where = helper.make_tensor("sparse_at", TensorProto.INT64, [2], [0, 5])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, [2, 3]))
    model.graph.node.append(helper.make_node("MatMul", ["y", "sparse"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 3]))


def small_types(model):
    model.ir_version = 10
    for name in ("int4", "uint4", "float8_e4m3fn", "bfloat16"):
        value = np.array([[1, 2, 3]], np.float32).astype(getattr(ml_dtypes, name))
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    model.graph.initializer.append(helper.make_tensor("text", TensorProto.STRING, [1], [b"\xff"]))


def names(model):
    for n in model.graph.node:
        n.name = "twin"
    model.graph.node[1].name = ""


def typed_data(model):
    tensor = helper.make_tensor("typed", TensorProto.FLOAT, [2], [1.0, 2.0])
    assert not tensor.raw_data
    model.graph.initializer.append(tensor)


def training(model):
    model.training_info.add().algorithm.name = "algorithm"


def control_flow(model):
    branch = lambda op, o: helper.make_graph(  # noqa: E731
        [helper.make_node(op, ["y"], [o], doc_string="inner")],
        o,
        [],
        [helper.make_empty_tensor_value_info(o)],
    )
    model.graph.node.append(
        helper.make_node("If", ["c"], ["z"], then_branch=branch("Neg", "p"), else_branch=branch("Abs", "q"))
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 2]))


TRAPS = [
    about, node_metadata, value_metadata, tensor_metadata, value_infos, quantization_annotation, function_overloads,
    initializers_as_inputs, unused_initializers, dead_nodes, empty_ints, not_utf8, sparse, small_types, names,
    typed_data, training, control_flow,
]  # fmt: skip
RUNNABLE = [t for t in TRAPS if t not in (not_utf8, training, empty_ints, names)]


@pytest.mark.parametrize("trap", TRAPS)
def test_no_edit_is_the_same_bytes(trap):
    model = dense()
    trap(model)
    graph = Graph(model)
    for node in model.graph.node:
        for name in (*node.input, *node.output):
            graph.constant(name)
    assert same_bytes(graph.export(), model)


@pytest.mark.parametrize("trap", TRAPS)
def test_one_edit_changes_one_tensor(trap):
    model = dense()
    trap(model)
    out = edited(model, ("h", 1, -W))
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    tensor = next(t for t in expected.graph.initializer if t.name == "w")
    tensor.raw_data = (-W).tobytes()
    assert same_bytes(out, expected)


@pytest.mark.parametrize("trap", RUNNABLE)
def test_the_edited_model_computes_what_the_edit_says(trap):
    model = dense()
    trap(model)
    out = edited(model, ("h", 1, -W))
    reference = onnx.ModelProto()
    reference.CopyFrom(model)
    next(t for t in reference.graph.initializer if t.name == "w").raw_data = (-W).tobytes()
    for mine, theirs in zip(runs(out), runs(reference), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_every_input_and_every_opset_stays():
    model = dense()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.input.append(helper.make_tensor_value_info("idle", TensorProto.INT64, [None, "M"]))
    out = edited(model, ("h", 1, -W))
    assert list(out.graph.input) == list(model.graph.input)
    assert list(out.graph.output) == list(model.graph.output)
    assert list(out.opset_import) == list(model.opset_import) and out.ir_version == model.ir_version


# -- one use, all uses -----------------------------------------------------------------------------------------

SHARED = "(float[N,4] x) => (float[N,4] y) { a = Add(x, b) r = Relu(a) y = Mul(r, b) }"


@pytest.mark.parametrize(
    "edits, expected",
    [
        ({"a": 2.0}, {"b": 1.0, "b_1": 2.0}),
        ({"y": 2.0}, {"b": 1.0, "b_1": 2.0}),
        ({"a": 2.0, "y": 2.0}, {"b": 2.0}),
        ({"a": 2.0, "y": 3.0}, {"b_1": 2.0, "b_2": 3.0}),
    ],
)
def test_shared_initializers_are_edited_by_use(edits, expected):
    out = edited(model_of(SHARED, b=B), *((key, 1, B * factor) for key, factor in edits.items()))
    assert {k: (v / B).round(3).tolist() for k, v in weights_of(out).items()} == {
        k: [factor] * 4 for k, factor in expected.items()
    }
    (y,) = runs(out)
    np.testing.assert_allclose(y, np.maximum(X + B * edits.get("a", 1), 0) * B * edits.get("y", 1), rtol=1e-6)


def test_the_same_constant_twice_in_one_node():
    out = edited(model_of("(float[N,4] x) => (float[N,4] y) { y = Clip(x, lo, lo) }", lo=np.float32(0)),
                 ("y", 2, np.array(1, np.float32)))  # fmt: skip
    np.testing.assert_array_equal(runs(out)[0], np.clip(X, 0, 1))


BODY = """(float[N,4] x, bool c) => (float[N,4] y) { a = Add(x, b)
    y = If(c) <then_branch = t () => (float[N,4] p) { p = Mul(a, b) }, else_branch = e () => (float[N,4] b_1) { b_1 = Neg(a) }> }"""


def test_a_captured_constant_is_not_changed_for_the_body():
    out = edited(model_of(BODY, b=B), ("a", 1, 2 * B))
    assert "b_1" not in weights_of(out), "a body has this name"
    (y,) = runs(out, x=X, c=np.array(True))
    np.testing.assert_allclose(y, (X + 2 * B) * B, rtol=1e-6)


def test_a_constant_that_is_an_output_keeps_its_value():
    model = model_of("(float[N,4] x) => (float[N,4] y, float[4] b) { y = Add(x, b) }", b=B)
    y, b = runs(edited(model, ("y", 1, 2 * B)))
    np.testing.assert_array_equal(b, B)
    np.testing.assert_allclose(y, X + 2 * B, rtol=1e-6)


# -- where exporters put weights -------------------------------------------------------------------------------

PATHS = [
    ("i = Identity(s)", W, W),
    ("i = Transpose(s)", np.ascontiguousarray(W.T), W),
    ("i = Reshape(s, shape)", W.reshape(-1), W),
    ("i = Cast<to=1>(s)", W.astype(np.float16), W.astype(np.float16).astype(np.float32)),
    ("j = Cast<to=1>(s) i = Transpose(j)", W.T.astype(np.float16), W.astype(np.float16).astype(np.float32)),
    ("i, j = Split<axis=1>(s, sizes)", np.hstack([W, W]), W),
    ("j, i = Split<axis=1>(s, sizes)", np.hstack([2 * W, W]), W),
    ("i = Neg(s) j = Relu(i)", W, -W),
]


@pytest.mark.parametrize("path, stored, value", PATHS, ids=[p[0] for p in PATHS])
@pytest.mark.parametrize("as_node", (False, True))
@pytest.mark.parametrize("opset, ir", ((18, 8), (18, 3)))
def test_weights_behind_other_nodes(path, stored, value, as_node, opset, ir):
    tail = "j" if "j" in path and "Cast" not in path else ""
    tail = f"z = Identity({tail})" if tail else ""
    body = f"(float[N,4] x) => (float[N,K] y{', z' if tail else ''}) {{ {path} {tail} y = MatMul(x, i) }}"
    extra = {"shape": np.array([4, 3]), "sizes": np.array([3, 3])}
    extra = {k: v for k, v in extra.items() if k in path}
    model = model_of(body, opset=opset, ir=ir, **extra, **({} if as_node else {"s": np.ascontiguousarray(stored)}))
    if as_node:
        node = helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(np.ascontiguousarray(stored)))
        model.graph.node.insert(0, node)
    if ir < 4:
        for t in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    for info in model.graph.output:
        if info.name == "z":
            info.CopyFrom(helper.make_tensor_value_info("z", TensorProto.FLOAT, [4, 3]))
    model.graph.value_info.append(helper.make_tensor_value_info("i", TensorProto.FLOAT, [4, 3]))
    graph = Graph(model)
    np.testing.assert_array_equal(graph.constant("i"), value)
    out = edited(model, ("y", 1, value[:, :2]))
    before, after = runs(model), runs(out)
    np.testing.assert_allclose(after[0], before[0][:, :2], rtol=1e-5)
    for a, b in zip(before[1:], after[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    assert {n.op_type for n in out.graph.node} <= {n.op_type for n in model.graph.node} | {"Constant"}


def test_a_folded_path_leaves_nothing_dead_behind():
    model = model_of("(float[N,4] x) => (float[N,3] y) { j = Identity(s) i = Transpose(j) y = MatMul(x, i) }",
                     s=np.ascontiguousarray(W.T))  # fmt: skip
    out = edited(model, ("y", 1, 2 * W))
    assert [n.op_type for n in out.graph.node] == ["MatMul"] and list(weights_of(out)) == ["i"]


def test_a_constant_node_keeps_its_place_and_words():
    tensor = numpy_helper.from_array(W, "value")
    tensor.doc_string = "stored"
    node = helper.make_node("Constant", [], ["w"], name="const", doc_string="words", value=tensor)
    model = dense()
    del model.graph.initializer[0]
    model.graph.node.insert(1, helper.make_node("Relu", ["x"], ["idle"]))
    model.graph.node.insert(0, node)
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    expected.graph.node[0].attribute[0].t.raw_data = (-W).tobytes()
    assert same_bytes(edited(model, ("h", 1, -W)), expected)


@pytest.mark.parametrize("name", ("int4", "uint4", "float8_e4m3fn", "float8_e5m2", "bfloat16"))
def test_small_types_survive_an_edit(name):
    kind = np.dtype(getattr(ml_dtypes, name))
    value = np.array([[1, 2, 3], [3, 2, 1], [1, 1, 1]], np.float32).astype(kind)
    model = model_of("(float[N,3] x) => (float[N,K] y) { f = DequantizeLinear(q, s) y = MatMul(x, f) }", opset=21, ir=10,
                     q=value, s=np.float32(0.5))  # fmt: skip
    graph = Graph(model)
    np.testing.assert_array_equal(graph.constant("q"), value)
    graph.set_constant(("f", 0), value[:, :2])
    tensor = next(t for t in graph.export().graph.initializer if t.name == "q")
    assert tensor.data_type == model.graph.initializer[0].data_type and list(tensor.dims) == [3, 2]
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), value[:, :2])


def test_inputs_with_a_default_follow_its_size():
    model = model_of("(float[N,4] x, float[4,3] w) => (float[N,K] y) { y = MatMul(x, w) }", ir=3, opset=8, w=W)
    out = edited(model, ("y", 1, W[:, :2]))
    assert [d.dim_value for d in out.graph.input[1].type.tensor_type.shape.dim] == [4, 2]
    assert runs(out)[0].shape == (2, 2)


def test_before_ir_4_a_new_constant_is_a_node():
    model = model_of("(float[N,4] x, float[4] b) => (float[N,K] y) { a = Add(x, b) y = Mul(a, b) }", ir=3, opset=8, b=B)
    out = edited(model, ("a", 1, 2 * B))
    assert [n.op_type for n in out.graph.node] == ["Constant", "Add", "Mul"]
    np.testing.assert_allclose(runs(out)[0], (X + 2 * B) * B, rtol=1e-6)


def test_what_is_computed_at_run_time_can_be_frozen():
    model = model_of("""(float[N,4] x) => (float[N,K] y) <int64[2] k = {1, 2}, int64[2] d = {1, 2}>
        { s = Shape(x) t = Mul(s, k) u = Div(t, d) y = Reshape(x, u) }""")
    out = edited(model, ("y", 1, np.array([4, 2])))
    assert [n.op_type for n in out.graph.node] == ["Reshape"] and runs(out)[0].shape == (4, 2)


def test_a_model_input_is_never_overwritten():
    model = model_of("(float[N,4] x, float[4] b) => (float[N,K] y) { y = Add(x, b) }")
    out = edited(model, ("y", 1, B))
    assert [i.name for i in out.graph.input] == ["x", "b"]
    np.testing.assert_allclose(runs(out, x=X, b=0 * B)[0], X + B)


@pytest.mark.parametrize("body", ("y = Gemm(x, w)", "y = Gemm(x, w, )"))
def test_an_operand_that_was_left_out(body):
    model = model_of(f"(float[N,4] x) => (float[N,3] y) {{ {body.replace(', )', ')')} }}", w=W)
    if body.endswith(", )"):
        model.graph.node[0].input.append("")
    np.testing.assert_allclose(runs(edited(model, ("y", 2, B[:3])))[0], X @ W + B[:3], rtol=1e-5)


# -- nodes -----------------------------------------------------------------------------------------------------


def test_own_insert_and_rename():
    graph = Graph(dense())
    node = graph.own("h")
    inner, scale = graph.fresh("h"), graph.add_constant("h", np.array(2, np.float32))
    assert inner != scale
    node.output[0] = inner
    graph.insert_after("h", helper.make_node("Mul", [inner, scale], ["h"]))
    graph.set_constant(("h", 1), -W)
    np.testing.assert_allclose(runs(graph.export())[0], np.maximum(-2 * X @ W, 0) @ V, rtol=1e-5)
    assert same_bytes(Graph(dense()).export(), dense()), "own() edits a copy"


def test_inserted_nodes_are_uses_too():
    graph = Graph(dense())
    name = graph.fresh("extra")
    graph.own("y").input[0] = name
    graph.insert_after("r", helper.make_node("MatMul", ["x", "w"], [name]))
    graph.set_constant(("h", 1), -W)
    np.testing.assert_allclose(runs(graph.export())[0], X @ W @ V, rtol=1e-5)


def test_insert_in_order_and_in_place_of_a_dropped_node():
    graph = Graph(dense())
    graph.drop("r")
    graph.insert_after("r", helper.make_node("Neg", ["h"], ["n"]))
    graph.insert_after("r", helper.make_node("Relu", ["n"], ["r"]))
    np.testing.assert_allclose(runs(graph.export())[0], np.maximum(-X @ W, 0) @ V, rtol=1e-5)


def test_drop_and_rewire():
    graph = Graph(dense())
    graph.own("y").input[0] = "h"
    graph.drop("r")
    out = graph.export()
    assert [n.op_type for n in out.graph.node] == ["MatMul", "MatMul"]
    np.testing.assert_allclose(runs(out)[0], X @ W @ V, rtol=1e-5)


def test_what_an_edit_leaves_unused_goes_and_what_was_unused_stays():
    model = dense()
    unused_initializers(model)
    dead_nodes(model)
    initializers_as_inputs(model)
    graph = Graph(model)
    graph.set_constant(("y", 1), V)
    graph.own("y").input[0] = "x"
    graph.set_constant(("y", 1), B.reshape(4, 1) + V[:1])
    out = graph.export()
    assert [n.op_type for n in out.graph.node] == ["MatMul", "Neg", "MatMul", "MatMul"]  # Relu went
    assert set(weights_of(out)) == {"unused", "w", "v", "v_1"}


@pytest.mark.parametrize("taken", ("w_1", "in_body", "an_input", "value_info"))
def test_fresh_names_are_fresh(taken):
    model = {"w_1": lambda: dense(w_1=B), "in_body": lambda: model_of(BODY, b=B),
             "an_input": lambda: model_of("(float[N,4] x, float[4] w_1) => (float[N,K] y) { y = Add(x, w_1) }"),
             "value_info": dense}[taken]()  # fmt: skip
    if taken == "value_info":
        model.graph.value_info.append(helper.make_tensor_value_info("w_1", TensorProto.FLOAT, [1]))
    graph = Graph(model)
    stem = "b" if taken == "in_body" else "w"
    assert graph.fresh(stem) == f"{stem}_2" and graph.fresh(stem) == f"{stem}_3"
    assert graph.add_constant(stem, B) == f"{stem}_4"


def test_value_infos_of_changed_tensors():
    model = dense()
    for name, shape in (("h", ["N", 3]), ("r", ["N", 3]), ("w", [4, 3]), ("v", [3, 2])):
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    out = edited(model, ("h", 1, W[:, :2]), ("y", 1, V[:2]))
    write_sizes(out, {"h": {1: 2}, "r": {1: 2}, "y": {0: 9}, "gone": {0: 1}})
    sizes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in out.graph.value_info}
    assert sizes == {"h": ["N", 2], "r": ["N", 2], "w": [4, 2], "v": [2, 2]}
    assert out.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert runs(out)[0].shape == (2, 2)


def test_long_chains_do_not_recurse():
    body = "(float[N,4] x) => (float[N,K] y) { y = Add(x, c3000) }"
    model = model_of(body, c0=B)
    for k in range(3000):
        model.graph.node.insert(k, helper.make_node("Identity", [f"c{k}"], [f"c{k + 1}"]))
    graph = Graph(model)
    np.testing.assert_array_equal(graph.constant("c3000"), B)
    out = edited(model, ("y", 1, 2 * B))
    assert len(out.graph.node) == 1
    np.testing.assert_allclose(runs(out)[0], X + 2 * B)


def test_a_node_without_output_is_refused():
    model = dense()
    model.graph.node.append(helper.make_node("Print", ["x"], [], name="log", domain="com.example"))
    with pytest.raises(ModelError, match="'log'"):
        Graph(model)


def test_what_is_random_or_quantized_is_no_constant():
    graph = Graph(model_of("""(float[N,4] x) => (float[N,K] y) <float s = {0.5}>
        { r = RandomNormal<shape=[4]>() q = DequantizeLinear(b, s) a = Add(x, q) y = Add(a, r) }""",
                           b=np.arange(4, dtype=np.int8)))  # fmt: skip
    assert graph.constant("r") is None and graph.constant("q") is None and graph.constant("nowhere") is None


def test_digest_is_of_the_bytes():
    assert digest(dense()) == digest(dense()) != digest(edited(dense(), ("h", 1, -W)))


def test_a_graph_that_is_sent_holds_its_edits_and_one_that_is_forked_is_not_made_anew(monkeypatch):
    graph = Graph(model_of("(float[N,4] x) => (float[N,3] y) { y = MatMul(x, w) }", w=W))
    forked = graph.fork()
    forked.set_constant(("y", 1), np.ones((4, 3), np.float32))
    there = pickle.loads(pickle.dumps(forked))
    assert (there.value(("y", 1)) == 1).all() and list(there.nodes) == ["y"] and (graph.value(("y", 1)) == W).all()
    monkeypatch.setattr(Graph, "__init__", None)
    assert graph.fork().nodes == graph.nodes
