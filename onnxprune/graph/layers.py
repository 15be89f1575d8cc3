"""The linear layers of a graph: what they cost and where their outputs can be corrected.

Conv, ConvTranspose, Gemm and MatMul hold nearly all of a CNN's arithmetic. This module describes each as a
linear map (multiply-accumulates, weight, bias, the tensor behind which a channel-wise affine correction can be
folded), so that cost, statistics and repair need no operator types.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune.graph.model import Graph, Use
from onnxprune.protobuf.nodes import DEFAULT_DOMAINS, WITH_BODIES, attr, subgraphs

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
PRODUCTS: Mapping[tuple[str, str], tuple[int, int]] = {
    **{("", op): (0, 1) for op in (*LINEAR, "ConvInteger", "MatMulInteger")},
    **{("", op): (0, 3) for op in ("QLinearConv", "QLinearMatMul")},
    ("com.microsoft", "QGemm"): (0, 3),
}
"""(domain, operator) -> which operands it multiplies."""
INTEGER = frozenset(op for _, op in PRODUCTS) - set(LINEAR)
"""Those that read integers, and as their third operand the integer that stands for zero."""
RECURRENT = frozenset(("LSTM", "GRU", "RNN"))
SUMS = frozenset((*LINEAR, "Einsum", *RECURRENT))
"""Nodes whose output is a sum over what they read, column by column of a weight."""
WORK = SUMS | INTEGER | {"Loop", "Scan"}
"""Operators whose work matters, or is not known."""


def has_layers(node: onnx.NodeProto) -> bool:
    """Whether a node is a layer, or its bodies have one."""
    if node.op_type in WORK or node.op_type not in WITH_BODIES:
        return node.op_type in WORK
    return any(has_layers(n) for body in subgraphs(node) for n in body.node)


@dataclass(frozen=True)
class Layer:
    """A node that multiplies.

    Attributes:
        key: the node.
        op: its operator.
        weight: the use of its weight, None when both operands are activations.
        macs: multiply-accumulates for the sizes observed.
    """

    key: str
    op: str
    weight: Use | None
    macs: float


@dataclass(frozen=True)
class Affine:
    """Where `a·y + b` per output channel can be folded in without a new node.

    Attributes:
        key: the layer's node.
        tensor: the activation that the correction applies to.
        axis: its channel axis.
        scales: uses (with their channel axis) to multiply by `a`.
        shift: use (with axis) to become `a·v + b`; None: the layer has no bias yet.
        nodes: the nodes in between, last first: `tensor` is the output of the first.
    """

    key: str
    tensor: str
    axis: int
    scales: tuple[tuple[Use, int], ...]
    shift: tuple[Use, int] | None


def layers(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> list[Layer]:
    """The multiplying nodes that compute in floats, with their cost, in execution order."""
    return [layer for layer in products(graph, shapes) if layer.op in LINEAR]


def products(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> list[Layer]:
    """Every multiplying node with its cost, quantized ones too, in execution order.

    Multiply-accumulates: Conv prod(out)·prod(w[1:]); ConvTranspose prod(in)·prod(w[1:]); Gemm and MatMul
    prod(out)·contracted; LSTM, GRU and RNN (steps)·(samples)·(prod(w) + prod(r)).
    """
    return graph.once("products", shapes, lambda: _products(graph, shapes))


def _products(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> list[Layer]:
    found = []
    for key, node in graph.nodes.items():
        sides = PRODUCTS.get((node.domain.removeprefix("ai.onnx"), node.op_type))
        if node.op_type in RECURRENT and node.domain in DEFAULT_DOMAINS:
            found.append(Layer(key, node.op_type, None, sum(recurrent_macs(graph, key, shapes))))
        if sides is None or node.output[0] not in shapes or graph.constant(node.output[0]) is not None:
            continue
        x, w, out = (_size(graph, key, i, shapes) for i in (*sides, None))
        if x is None or w is None or out is None:
            continue
        if "Conv" in node.op_type:
            macs = _volume(x if node.op_type == "ConvTranspose" else out) * _volume(w[1:])
        else:
            macs = _volume(out) * (x[0] if attr(node, "transA", 0) else x[-1] if x else 1)
        either = sides if "Conv" not in node.op_type else sides[1:]  # a convolution of a constant has no weight
        side = next((i for i in reversed(either) if graph.constant(node.input[i]) is not None), None)
        found.append(Layer(key, node.op_type, None if side is None else (key, side), float(macs)))
    return found


def recurrent_macs(graph: Graph, key: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[float, float]:
    """(for what an LSTM, GRU or RNN reads, for its own state)."""
    x, w, r = (_size(graph, key, i, shapes) or () for i in range(3))
    steps = _volume(x[:-1])
    return steps * _volume(w), steps * _volume(r)


def _size(graph: Graph, key: str, i: int | None, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """The size of an operand (its own, for constants) or of the output."""
    node = graph.nodes[key]
    if i is None:
        return shapes.get(node.output[0])
    name = node.input[i]
    if name in graph.initializers and not graph.edited((key, i)):
        return tuple(graph.initializers[name].dims)
    value = graph.value((key, i))
    return value.shape if value is not None else shapes.get(node.input[i])


def _volume(shape: tuple[int, ...]) -> float:
    return math.prod((float(d) for d in shape), start=1.0)


def writes_axis(node: onnx.NodeProto, side: int) -> int:
    """The weight axis of a layer's output channels (ungrouped ConvTranspose; others always)."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if attr(node, "transB", 0) else 1
    return 1 if side == 1 else 0


def affine(
    graph: Graph, layer: Layer, consumers: Mapping[str, list[Use]], shapes: Mapping[str, tuple[int, ...]]
) -> Affine | None:
    """Where a correction of the layer's output can be folded, or None (grouped ConvTranspose, quantized,
    activations on both sides, a product with its weight on the left)."""
    node = graph.nodes[layer.key]
    if layer.weight is None or (node.op_type == "ConvTranspose" and attr(node, "group", 1) > 1):
        return None
    if node.op_type in ("MatMul", "Gemm") and layer.weight[1] == 0:
        return None
    weight = graph.value(layer.weight)
    out = shapes[node.output[0]]
    if weight is None or weight.dtype.kind != "f" or (node.op_type == "MatMul" and weight.ndim != 2):
        return None
    axis = 1 if node.op_type in ("Conv", "ConvTranspose", "Gemm") else len(out) - 1
    width = out[axis]
    scales = [(layer.weight, writes_axis(node, layer.weight[1]))]
    tensor = node.output[0]
    follower = _only_reader(graph, consumers, tensor)
    if follower is not None:
        key, position = follower
        reader = graph.nodes[key]
        if reader.op_type == "BatchNormalization" and position == 0 and not attr(reader, "training_mode", 0):
            if all(_floats(graph, (key, i), width) for i in (1, 2)):
                return Affine(layer.key, reader.output[0], axis, (((key, 1), 0),), ((key, 2), 0))
        has_bias = len(node.input) > 2 and bool(node.input[2])
        if reader.op_type == "Add" and not has_bias:
            other = (key, 1 - position)
            at = _channel_axis(graph.value(other), axis, len(out), width)
            if at is not None and shapes.get(reader.output[0]) == out:
                return Affine(layer.key, reader.output[0], axis, tuple(scales), (other, at))
    if node.op_type == "MatMul":
        return None
    if len(node.input) > 2 and node.input[2]:
        bias = graph.value((layer.key, 2))
        if bias is None or bias.dtype.kind != "f" or bias.size != width:
            return None
        if node.op_type == "Gemm" and (attr(node, "beta", 1.0) != 1.0 or attr(node, "alpha", 1.0) != 1.0):
            return None
        return Affine(layer.key, tensor, axis, tuple(scales), ((layer.key, 2), bias.ndim - 1))
    return Affine(layer.key, tensor, axis, tuple(scales), None)


def added_behind(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[Use, int]]:
    """Layer without a bias -> the constant that an Add right behind it adds per channel, with its axis."""
    consumers, found = graph.consumers(), {}
    for layer in layers(graph, shapes):
        place = affine(graph, layer, consumers, shapes)
        if place is not None and place.shift is not None and graph.nodes[place.shift[0][0]].op_type == "Add":
            found[layer.key] = place.shift
    return found


def _only_reader(graph: Graph, consumers: Mapping[str, list[Use]], tensor: str) -> Use | None:
    uses = consumers.get(tensor, [])
    return uses[0] if len(uses) == 1 and tensor not in graph.outputs else None


def _floats(graph: Graph, use: Use, width: int) -> bool:
    value = graph.value(use)
    return value is not None and value.dtype.kind == "f" and value.shape == (width,)


def _channel_axis(value: np.ndarray | None, axis: int, rank: int, width: int) -> int | None:
    """The axis of a broadcast constant that is the channel axis, when it has no other."""
    if value is None or value.dtype.kind != "f" or value.size != width or value.ndim > rank:
        return None
    at = axis - (rank - value.ndim)
    return at if at >= 0 and value.shape[at] == width else None


def scale_along(value: np.ndarray, factor: np.ndarray, axis: int) -> np.ndarray:
    """`value` times `factor` along one axis, in the value's own type."""
    shape = [1] * value.ndim
    shape[axis] = -1
    return (value.astype(np.float64) * factor.reshape(shape)).astype(value.dtype)


def shift_along(value: np.ndarray, factor: np.ndarray, offset: np.ndarray, axis: int) -> np.ndarray:
    """`factor·value + offset` along one axis, in the value's own type."""
    shape = [1] * value.ndim
    shape[axis] = -1
    return (value.astype(np.float64) * factor.reshape(shape) + offset.reshape(shape)).astype(value.dtype)


def with_biases(graph: Graph, reads: Callable[[str], bool]) -> Graph:
    """The graph, edited: an Add of zeros stands behind every MatMul that has no constant behind it: a MatMul has no
    bias operand, and without one its mean cannot be mended.

    Args:
        graph: the network.
        reads: whether a MatMul that reads this tensor gets one.
    """
    graph.settle()
    consumers = graph.consumers()
    for key, node in list(graph.nodes.items()):
        weight = graph.value((key, 1)) if node.op_type == "MatMul" else None
        if weight is None or weight.ndim != 2 or weight.dtype.kind != "f" or not reads(node.input[0]):
            continue
        readers = consumers.get(node.output[0], [])
        adds = [graph.value((k, 1 - i)) for k, i in readers if graph.nodes[k].op_type == "Add"]
        if any(v is not None and v.size == weight.shape[1] for v in adds):
            continue
        own = graph.own(key)
        name, own.output[0] = own.output[0], graph.fresh(f"{key}_unbiased")
        zeros = graph.add_constant(f"{key}_bias", np.zeros(weight.shape[1], weight.dtype))
        graph.insert_after(key, onnx.helper.make_node("Add", [own.output[0], zeros], [name]))
    return graph.settle()


def add_bias(graph: Graph, key: str, bias: np.ndarray) -> None:
    """Give a Conv, ConvTranspose or Gemm without bias one."""
    node = graph.own(key)
    name = graph.fresh(f"{key}_bias")
    if len(node.input) < 3:
        node.input.append(name)
    else:
        node.input[2] = name
    graph.set_constant((key, 2), bias)


def normalization(graph: Graph, place: Affine) -> tuple[str, np.ndarray, np.ndarray] | None:
    """The BatchNormalization that a layer writes through: its key, and (slope, deviation) per channel."""
    if place.shift is None or place.shift[0][1] != 2 or place.shift[0][0] == place.key:
        return None
    key = place.shift[0][0]
    scale, var = graph.value((key, 1)), graph.value((key, 4))
    assert scale is not None and var is not None
    deviation = np.sqrt(var.astype(np.float64) + attr(graph.nodes[key], "epsilon", 1e-5))
    return key, scale / deviation, deviation


def fold(graph: Graph, place: Affine, a: np.ndarray, b: np.ndarray) -> None:
    """Fold `a·y + b` per channel into the constants of a layer."""
    for use, axis in place.scales:
        value = graph.value(use)
        assert value is not None
        graph.set_constant(use, scale_along(value, a, axis))
    if place.shift is None:
        weight = graph.value(place.scales[0][0])
        assert weight is not None
        add_bias(graph, place.key, b.astype(weight.dtype))
    else:
        use, axis = place.shift
        value = graph.value(use)
        assert value is not None
        graph.set_constant(use, shift_along(value, a, b, axis))
