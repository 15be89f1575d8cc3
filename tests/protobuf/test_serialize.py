"""A model in parts is the same bytes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.protobuf.serialize import LARGE_TENSOR, byte_size, serialized
from tests import synthetic


def strange_model() -> onnx.ModelProto:
    """Every way of storing a tensor, large and small, empty and absent texts, fields after the graph."""
    big = np.arange(40_000, dtype=np.float32)
    tensors = [
        numpy_helper.from_array(big, "raw"),
        helper.make_tensor("typed", TensorProto.FLOAT, [6000], big[:6000]),
        helper.make_tensor("long", TensorProto.INT64, [3], [1, -2, 3]),
        helper.make_tensor("text", TensorProto.STRING, [2], [b"a", b""]),
        numpy_helper.from_array(big.astype(np.float16).reshape(200, 200), "half"),
        numpy_helper.from_array(big[:0], "empty"),
    ]
    tensors[0].doc_string = ""
    tensors[4].doc_string = "documented"
    tensors[4].metadata_props.add(key="k", value="v")
    tensors.append(numpy_helper.from_array(big[::-1].copy(), ""))
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "raw"], ["y"])],
        "strange",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [40_000])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [40_000])],
        tensors,
        doc_string="",
    )
    model = helper.make_model(graph, producer_name="test", opset_imports=[helper.make_opsetid("", 17)])
    helper.set_model_props(model, {"a": "b"})
    return model


@pytest.mark.parametrize("make", [strange_model, onnx.ModelProto, lambda: synthetic.network(60)])
def test_parts_are_the_serialised_model(make):
    model = make()
    assert b"".join(serialized(model)) == model.SerializeToString(deterministic=True)
    assert byte_size(model) == model.ByteSize()


@pytest.mark.parametrize("size", [LARGE_TENSOR - 4, LARGE_TENSOR, LARGE_TENSOR + 4])
def test_parts_at_the_edge_of_large(size):
    model = strange_model()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(size, np.uint8), "edge"))
    assert b"".join(serialized(model)) == model.SerializeToString(deterministic=True)
