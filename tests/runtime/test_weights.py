"""Weights that lie beside their model: the same outputs, nothing copied, and constants where a kernel wants some."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxprune.errors import ModelError
from onnxprune.graph.model import Graph
from onnxprune.runtime import ports, sessions, weights
from tests import synthetic

WAYS = {
    "inside": {"optimise": False},
    "optimised": {"optimise": True},
    "fed": {"optimise": False, "feed": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("least", [0, 1 << 60], ids=["outside", "inside"])
def test_the_outputs_are_the_same(monkeypatch, way, least):
    model = synthetic.dense(12)
    feeds = ports.default_feed(ports.input_specs(model))
    (wanted,) = sessions.open_session(model, optimise=False).run(feeds)
    monkeypatch.setattr(sessions, "SHARED_BYTES", least)
    monkeypatch.setattr(weights, "LARGE_BYTES", 16)
    session = sessions.open_session(model, **WAYS[way])
    assert [spec.name for spec in session.inputs] == list(feeds)
    (found,) = session.run(feeds)
    if way == "optimised":  # other kernels
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_array_equal(found, wanted)


def test_a_model_without_its_weights_keeps_what_is_small_or_an_input():
    model = synthetic.dense(12)
    model.graph.input.append(helper.make_tensor_value_info("listed", TensorProto.FLOAT, [64, 64]))
    listed = numpy_helper.from_array(np.ones((64, 64), np.float32), "listed")
    model.graph.initializer.extend([listed, numpy_helper.from_array(np.ones(2, np.float32), "small")])
    apart = weights.with_external_weights(model)
    inside = {t.name: t for t in apart.model.graph.initializer}
    assert list(inside) == [t.name for t in model.graph.initializer]
    assert inside["listed"].raw_data == listed.raw_data and inside["small"].raw_data
    assert "listed" not in apart.weights and "small" not in apart.weights
    for name, value in apart.weights.items():
        assert inside[name].data_location == TensorProto.EXTERNAL
        np.testing.assert_array_equal(value, Graph(model).constant(name))
        np.testing.assert_array_equal(value, Graph(apart.model, apart.weights).constant(name))


def test_feeding_copies_no_weight():
    value = np.ones((64, 64), np.float32)
    model = net()
    beside = weights.add_external_weights(model, {"w": value})
    session = sessions.open_session(model, optimise=False, weights=beside, feed=True)
    x = np.ones((1, 64), np.float32)
    before = session.run({"x": x})[0][0, 0]
    value[0, 0] = 11  # the very array is fed
    assert (before, session.run({"x": x})[0][0, 0]) == (64, 74)


@pytest.mark.parametrize("when", ["made", "run"])
def test_a_kernel_that_wants_constants_gets_them(monkeypatch, when):
    def refused(apart, fed):
        model = as_inputs(apart, fed)
        if when == "made":
            model.graph.node[0].op_type = "NoSuchOperator"
        else:
            model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 63
            model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 63
        return model

    as_inputs = weights.with_weights_as_inputs
    monkeypatch.setattr(sessions, "with_weights_as_inputs", refused)
    model = net()
    beside = weights.add_external_weights(model, {"w": np.eye(64, dtype=np.float32)})
    session = sessions.open_session(model, optimise=False, weights=beside, feed=True)
    x = np.arange(64, dtype=np.float32)[None]
    for _ in range(2):
        np.testing.assert_array_equal(session.run({"x": x})[0], x)
    with pytest.raises(ModelError, match="cannot be run with x float32"):
        session.run({"x": x[:, :5]})


def net():
    """y = x @ w, with w still to be put beside it."""
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 64]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "net", ports[:1], ports[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_weight_that_nobody_reads_is_no_reason_not_to_load(monkeypatch):
    model = net()
    values = {"w": np.eye(64, dtype=np.float32), "unread": np.ones((64, 64), np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    monkeypatch.setattr(sessions, "SHARED_BYTES", 0)
    np.testing.assert_array_equal(sessions.open_session(model).run({"x": np.ones((1, 64), np.float32)})[0], 1)


@pytest.mark.parametrize("optimise", [False, True])
def test_what_is_large_and_not_packed_is_read_where_it_is(monkeypatch, optimise):
    monkeypatch.setattr(sessions, "PACKED_BYTES", 0)
    value = np.eye(64, dtype=np.float32)
    model = net()
    beside = weights.add_external_weights(model, {"w": value})
    session = sessions.open_session(model, optimise=optimise, pack=False, weights=beside)
    value[0, 0] = 11  # the very array is read
    assert session.run({"x": np.ones((1, 64), np.float32)})[0].sum() == 74


def test_only_weights_of_layers_are_read_where_they_are(monkeypatch):
    # ORT moves the transpositions together and turns w
    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]> g (float[8,1,16,32] x) => (float[8,1,16,32] y) {
        t = Transpose<perm=[0,2,3,1]>(x) a = Mul(t, w) r = Relu(a) y = Transpose<perm=[0,3,1,2]>(r) }""")
    w, x = np.random.default_rng(0).standard_normal((2, 8, 16, 32, 1)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    apart = weights.with_external_weights(model)
    assert apart.weights and not weights.to_feed(apart, 0)
    monkeypatch.setattr(sessions, "SHARED_BYTES", 0)
    monkeypatch.setattr(sessions, "PACKED_BYTES", 0)
    x = x.transpose(0, 3, 1, 2)
    found = sessions.open_session(model, pack=False).run({"x": x})[0]
    np.testing.assert_array_equal(found, np.maximum(x.transpose(0, 2, 3, 1) * w, 0).transpose(0, 3, 1, 2))


def test_weights_of_convolutions_are_fed_only_where_those_of_matrices_are_not_enough():
    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]> g (float[2,64,8,8] x) => (float[2,64] y) {
        a = Conv(x, c) p = GlobalAveragePool(a) f = Flatten(p) h = MatMul(f, m) s = Add(h, b) y = Gemm(s, w, w) }""")
    sizes = {"c": (64, 64, 1, 1), "m": (64, 64), "b": (64, 64), "w": (64, 64)}
    values = (numpy_helper.from_array(np.ones(size, np.float32), name) for name, size in sizes.items())
    model.graph.initializer.extend(values)
    apart, each = weights.with_external_weights(model), 4 * 64 * 64
    assert sorted(apart.weights) == ["b", "c", "m", "w"]
    for most, fed in ((4, ""), (3, "m"), (2, "cm"), (0, "cm")):
        assert sorted(weights.to_feed(apart, most * each)) == sorted(fed)
