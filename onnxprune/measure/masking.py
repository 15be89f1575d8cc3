"""The yardstick of surgery: the original with every removed channel masked.

Knows the published list of cuts and nothing of how they came about. An operand that is cut is multiplied by
zeros and ones where it is read; a constant has the zeros in it, a quantized one its zero point, which is what zero
means there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from onnxprune.errors import UsageError
from onnxprune.graph.model import Graph
from onnxprune.protobuf.nodes import captured, element_types, inferred_types, node_key
from onnxprune.protobuf.serialize import without_initializers
from onnxprune.runtime.weights import EXTERNAL_TYPES, LARGE_BYTES, ModelAndWeights, add_external_weights

ZERO_POINT: Mapping[tuple[str, int], int] = {
    ("DequantizeLinear", 0): 2,
    ("QLinearConv", 3): 5,
    ("QLinearMatMul", 3): 5,
    ("QLinearAdd", 0): 2,
    ("QLinearAdd", 3): 5,
    ("QLinearMul", 0): 2,
    ("QLinearMul", 3): 5,
    ("QGemm", 3): 5,
    ("ConvInteger", 1): 3,
    ("MatMulInteger", 1): 3,
}
"""(operator, operand) -> the operand that says which integer stands for zero."""
ROWS_FIRST = ("QLinearConv", "ConvInteger")
"""Operators whose zero points, one per output channel, belong to the weight's first axis; else the last."""


def masked(model: onnx.ModelProto, cuts: Sequence[Mapping], *, graph: Graph | None = None) -> ModelAndWeights:
    """The original with every removed index of every listed input multiplied by zero; weights that are not cut are
    those of the graph and not copied.

    Args:
        model: the original, left untouched.
        cuts: {node, input, axis, rank, length, removed} each, as `removed_cuts` publishes them.
        graph: the model's graph, unedited, where there is one.

    Raises:
        UsageError: a cut names a node that the model does not have.
    """
    graph = graph or Graph(model)
    result = without_initializers(model)
    nodes = {node_key(n): n for n in result.graph.node}
    shields: dict[str, list[onnx.NodeProto]] = {}
    constants: dict[tuple[str, int], np.ndarray] = {}
    masks: dict[str, np.ndarray] = {}
    types = element_types(result)
    for k, cut in enumerate(cuts):
        node = nodes.get(cut["node"])
        if node is None or cut["input"] >= len(node.input):
            raise UsageError(f"cut {k} names {cut['node']!r}[{cut['input']}], which the model does not have")
        use, name = (cut["node"], cut["input"]), node.input[cut["input"]]
        keep = np.ones(cut["length"], bool)
        keep[list(cut["removed"])] = False
        keep = keep.reshape([-1 if a == cut["axis"] else 1 for a in range(cut["rank"])])
        constant = constants.get(use, graph.constant(name))
        if constant is not None and constant.dtype.kind in "iuf":
            zero = _zero_point(graph, node, use[1]) if constant.dtype.kind in "iu" else 0
            if use not in constants:
                constants[use] = constant = constant.copy()
            np.copyto(constant, zero, where=~keep, casting="unsafe")  # in place: weights may be large
            continue
        if constant is None and name not in types:
            types = {**inferred_types(model), **types}
        dtype = constant.dtype if constant is not None else types.get(name, np.dtype(np.float32))
        mask, types[f"__masked_{k}"] = keep.astype(dtype), dtype
        masks[f"__mask_{k}"] = mask
        shield = helper.make_node("Mul", [name, f"__mask_{k}"], [f"__masked_{k}"])
        shields.setdefault(cut["node"], []).append(shield)
        node.input[cut["input"]] = f"__masked_{k}"
    replaced = set()
    for k, ((key, i), value) in enumerate(constants.items()):
        masks[f"__zeroed_{k}"] = value
        replaced.add(nodes[key].input[i])
        nodes[key].input[i] = f"__zeroed_{k}"
    read = {i for n in nodes.values() for i in (*n.input, *captured(n))} | set(graph.outputs)
    listed = {port.name for port in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.name in replaced - read - listed:
            continue
        outside = tensor.data_type in EXTERNAL_TYPES and tensor.name not in listed
        weight = graph.constant(tensor.name) if outside else None
        if weight is None or weight.nbytes < LARGE_BYTES:
            result.graph.initializer.add().CopyFrom(tensor)
        else:
            masks[tensor.name] = weight
    ordered: list[onnx.NodeProto] = []
    for node in result.graph.node:
        ordered += shields.get(node_key(node), ())
        ordered.append(node)
    body = [onnx.NodeProto.FromString(n.SerializeToString()) for n in ordered]
    del result.graph.node[:]
    result.graph.node.extend(body)
    return ModelAndWeights(result, add_external_weights(result, masks))


def _zero_point(graph: Graph, node: onnx.NodeProto, i: int) -> np.ndarray:
    """The integer that stands for zero in operand i, shaped to broadcast against it."""
    at = ZERO_POINT.get((node.op_type, i))
    zero = graph.constant(node.input[at]) if at is not None and at < len(node.input) and node.input[at] else None
    if zero is None:
        return np.zeros((), np.int8)
    if zero.size == 1:
        return zero.reshape(())
    value = graph.constant(node.input[i])
    rank = 1 if value is None else value.ndim
    axis = 0 if node.op_type in ROWS_FIRST else rank - 1
    if node.op_type == "QGemm":
        axis = 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    if node.op_type == "DequantizeLinear":
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % rank
    return zero.reshape([-1 if a == axis else 1 for a in range(rank)])
