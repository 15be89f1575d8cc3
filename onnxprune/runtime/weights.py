"""Weights on their way into ONNX Runtime.

Serialised with its model, a weight is copied four times and parsed once more. Here a model goes without its large
weights, which stay where they are: a session reads them as external data that lie in memory already, or, where
nothing gains from their being constant (a run or two, nothing optimised), is fed with them and copies none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

from onnxprune.protobuf.nodes import DEFAULT_DOMAINS, captured
from onnxprune.protobuf.serialize import nbytes, without_initializers
from onnxprune.runtime.stored import PLAIN, array_of

LARGE_BYTES = 1 << 12
"""Bytes from which a weight stays outside."""


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
    """The model with its large weights beside it, each copied once at most; those that are also inputs stay inside,
    and those that nobody reads, which ORT does not know any more when it is given them."""
    bare = without_initializers(model)
    ports = {port.name for port in model.graph.input}
    read = {name for node in model.graph.node for name in (*node.input, *captured(node))}
    read = (read | {port.name for port in model.graph.output}) - ports
    weights: dict[str, np.ndarray] = {}
    for tensor in model.graph.initializer:
        plain = tensor.data_type in PLAIN and tensor.HasField("raw_data") and tensor.name in read
        if not plain or nbytes(tensor) < LARGE_BYTES:
            bare.graph.initializer.add().CopyFrom(tensor)
            continue
        weights[tensor.name] = array_of(tensor)
        _declare(bare, tensor.name, tensor.data_type, weights[tensor.name])
    return ModelAndWeights(bare, weights)


def to_feed(apart: ModelAndWeights, most: int) -> set[str]:
    """The outside weights that are fed where no more than `most` bytes may be copied: those that matrix products read
    and nothing else, as no kernel of theirs wants constants; then those of convolutions, which lose by it."""
    sizes = {name: value.nbytes for name, value in apart.weights.items()}
    found: set[str] = set()
    for kinds in (("Gemm", "MatMul"), ("Conv",)):
        if sum(size for name, size in sizes.items() if name not in found) > most:
            found |= sizes.keys() & _weights_of(apart.model, kinds)
    return found


def _weights_of(model: ModelProto, kinds: Collection[str]) -> set[str]:
    """Floats that layers of these kinds alone read, as weights."""
    found, others = set[str](), {port.name for port in model.graph.output}
    for node in model.graph.node:
        layer = node.op_type in kinds and node.domain in DEFAULT_DOMAINS
        found.update(node.input[1:2] if layer else ())
        others.update((*node.input[:1], *node.input[2:]) if layer else node.input, captured(node))
    types = {t.name: t.data_type for t in model.graph.initializer}
    return {name for name in found - others if types.get(name) == TensorProto.FLOAT}


def add_external_weights(model: ModelProto, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Declare arrays as initializers of a model without copying their data into it.

    Returns:
        What a session must be given as `weights`. What is small, or no plain number, is stored in the model.
    """
    beside = {}
    for name, value in weights.items():
        data_type = helper.np_dtype_to_tensor_dtype(value.dtype)
        value = np.ascontiguousarray(value).reshape(value.shape)
        if value.nbytes < LARGE_BYTES or data_type not in PLAIN:
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


def with_weights_as_inputs(apart: ModelAndWeights, fed: Collection[str]) -> ModelProto:
    """The model as one that takes these of its outside weights as inputs."""
    model = without_initializers(apart.model)
    known = {port.name for port in model.graph.input}
    for tensor in apart.model.graph.initializer:
        if tensor.name not in fed:
            model.graph.initializer.add().CopyFrom(tensor)
        elif tensor.name not in known:
            port = model.graph.input.add(name=tensor.name).type.tensor_type
            port.elem_type = tensor.data_type
            for length in tensor.dims:
                port.shape.dim.add(dim_value=length)
    return model
