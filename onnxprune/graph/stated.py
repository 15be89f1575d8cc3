"""How much a model multiplies, from what its file says alone: nothing of it is run and no constant is worked out."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
from onnx import ModelProto, helper

from onnxprune.graph import operators
from onnxprune.graph.facts import Operator
from onnxprune.graph.macs import OUT, Call, Size, volume
from onnxprune.protobuf.nodes import inferred
from onnxprune.protobuf.serialize import BITS, nbytes, without_initializers
from onnxprune.runtime.ports import Feeds

SMALL_BYTES = 1 << 12
"""Stored tensors up to this size may say sizes."""
PLACES = 1 << 18
"""Places at which a weight may be used however little is fed."""
UNKNOWN = 1 / 64
"""Places at which one is taken to be used whose sizes cannot be inferred, as a share of what is fed: behind a Resize to
a size that is worked out on the way, as detectors have it, no size is known."""


def stated_macs(model: ModelProto, feeds: Feeds) -> float:
    """Multiply-accumulates of one run: those by weights that the file stores, each counted once, and at no more places
    than there are for what is fed; at a few where sizes cannot be inferred. What is blown up or repeated on the way is
    no honest work; bodies are not looked into."""
    fed = sum(value.size for value in feeds.values())
    places = max(PLACES, 4 * fed)
    sizes = _inferred(model, {name: value.shape for name, value in feeds.items()})
    sizes |= {t.name: tuple(t.dims) for t in model.graph.initializer}
    stored = {t.name: t.name for t in model.graph.initializer}  # tensor -> the weight that it is a form of
    counted: set[str] = set()
    macs = 0.0
    for node in model.graph.node:
        line = operators.of(node)
        if (line.layout or line.dequantizes or line.keeps_size) and node.input and node.input[0] in stored:
            weight = stored[node.input[0]]
            if node.output[0] in sizes and math.prod(sizes[node.output[0]]) <= math.prod(sizes[weight]):
                stored[node.output[0]] = weight
        weights = {stored[name] for name in node.input if name in stored} if line.macs is not None else set()
        if weights and counted.isdisjoint(weights):
            counted |= weights
            stored_values = sum(float(math.prod(sizes[w])) for w in weights)
            known = _macs(node, line, sizes)
            macs += UNKNOWN * fed * stored_values if known is None else min(known, places * stored_values)
    return macs


def _macs(node: onnx.NodeProto, line: Operator, sizes: Mapping[str, Size]) -> float | None:
    """Those of a node; None where a size is not known."""

    def size(operand: int) -> Size | None:
        name = node.output[0] if operand == OUT else node.input[operand] if operand < len(node.input) else ""
        return sizes.get(name)

    assert line.macs is not None
    try:
        return sum(volume(part, size, lambda operand: None) for part in line.macs(Call(node, size)))
    except LookupError:
        return None


def _inferred(model: ModelProto, fed: Mapping[str, tuple[int, ...]]) -> dict[str, Size]:
    """Tensor -> size, of the outermost graph."""
    bare = without_initializers(model)
    del bare.graph.value_info[:]
    for port in bare.graph.input:
        if port.name in fed:
            port.type.tensor_type.shape.CopyFrom(_shape(fed[port.name]))
    ports = {port.name for port in bare.graph.input}
    for tensor in model.graph.initializer:
        if tensor.data_type in BITS and nbytes(tensor) <= SMALL_BYTES:
            bare.graph.initializer.add().CopyFrom(tensor)
        elif tensor.name not in ports:
            bare.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    found = inferred(bare, data=True).graph
    return {
        port.name: tuple(d.dim_value for d in port.type.tensor_type.shape.dim)
        for port in (*found.value_info, *found.input, *found.output)
        if port.type.tensor_type.HasField("shape")
        and all(d.HasField("dim_value") and d.dim_value > 0 for d in port.type.tensor_type.shape.dim)
    }


def _shape(lengths: tuple[int, ...]) -> onnx.TensorShapeProto:
    shape = onnx.TensorShapeProto()
    for length in lengths:
        shape.dim.add(dim_value=length)
    return shape
