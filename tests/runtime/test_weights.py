"""Weights that lie beside their model: the same outputs, nothing copied, and constants where a kernel wants some."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

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
    def refused(apart):
        model = as_inputs(apart)
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
