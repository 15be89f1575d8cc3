"""Weights on their way into ONNX Runtime.

Serialised with its model, a weight is copied four times and parsed once more. Here a model goes without its large
weights, which stay where they are: a session reads them as external data that lie in memory already, or, where
nothing gains from their being constant (a run or two, nothing optimised), is fed with them and copies none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

from onnxprune.protobuf.serialize import without_initializers

LARGE_BYTES = 1 << 12
"""Bytes from which a weight stays outside."""
EXTERNAL_TYPES: Mapping[int, str] = {
    TensorProto.FLOAT: "<f4",
    TensorProto.DOUBLE: "<f8",
    TensorProto.FLOAT16: "<f2",
    TensorProto.INT8: "i1",
    TensorProto.UINT8: "u1",
    TensorProto.INT32: "<i4",
}


@dataclass(frozen=True)
class ModelAndWeights:
    """A model whose large weights lie beside it.

    Attributes:
        model: says of each such weight that it lies in memory.
        weights: their arrays, by name.
    """

    model: ModelProto
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)


def with_external_weights(model: ModelProto) -> ModelAndWeights:
    """The model with its large weights beside it, each copied once; those that are also inputs stay inside."""
    bare = without_initializers(model)
    ports = {port.name for port in model.graph.input}
    weights: dict[str, np.ndarray] = {}
    for tensor in model.graph.initializer:
        dtype = EXTERNAL_TYPES.get(tensor.data_type)
        raw = tensor.raw_data if dtype and tensor.HasField("raw_data") and tensor.name not in ports else b""
        if len(raw) < LARGE_BYTES:
            bare.graph.initializer.add().CopyFrom(tensor)
            continue
        weights[tensor.name] = np.frombuffer(raw, dtype).reshape(tensor.dims)
        _declare(bare, tensor.name, tensor.data_type, weights[tensor.name])
    return ModelAndWeights(bare, weights)


def add_external_weights(model: ModelProto, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Declare arrays as initializers of a model without copying their data into it.

    Returns:
        What a session must be given as `weights`. What is small, or no plain number, is stored in the model.
    """
    beside = {}
    for name, value in weights.items():
        data_type = helper.np_dtype_to_tensor_dtype(value.dtype)
        value = np.ascontiguousarray(value).reshape(value.shape)
        if value.nbytes < LARGE_BYTES or data_type not in EXTERNAL_TYPES:
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
            continue
        _declare(model, name, data_type, value)
        beside[name] = value
    return beside


def _declare(model: ModelProto, name: str, data_type: int, value: np.ndarray) -> None:
    """An initializer whose data lie in memory already."""
    tensor = model.graph.initializer.add()
    tensor.name, tensor.data_type, tensor.data_location = name, data_type, TensorProto.EXTERNAL
    tensor.dims.extend(value.shape)
    for key, said in (("location", "memory"), ("offset", "0"), ("length", str(value.nbytes))):
        tensor.external_data.add(key=key, value=said)


def with_weights_as_inputs(apart: ModelAndWeights) -> ModelProto:
    """The model as one that takes its outside weights as inputs."""
    model = without_initializers(apart.model)
    known = {port.name for port in model.graph.input}
    for tensor in apart.model.graph.initializer:
        if tensor.name not in apart.weights:
            model.graph.initializer.add().CopyFrom(tensor)
        elif tensor.name not in known:
            port = model.graph.input.add(name=tensor.name).type.tensor_type
            port.elem_type = tensor.data_type
            for length in tensor.dims:
                port.shape.dim.add(dim_value=length)
    return model
