"""The linear layers of a graph: what they cost and where their outputs can be corrected.

Conv, ConvTranspose, Gemm, MatMul and an Einsum that is one hold nearly all of a CNN's arithmetic. This module describes
each as a linear map (multiply-accumulates, weight, bias, the tensor behind which a channel-wise affine correction can
be folded), so that statistics and repair need no operator types. What is true of an operator it reads off its line in
`graph.operators`; what else multiplies is known to `graph.work`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune.errors import ModelError, one_line
from onnxprune.graph import operators
from onnxprune.graph.facts import Operator
from onnxprune.graph.model import Graph, Use
from onnxprune.graph.refusals import Refusal, refuse, unless_refused
from onnxprune.graph.work import work
from onnxprune.protobuf.nodes import attr, attributes, subgraphs, titled


def has_layers(node: onnx.NodeProto) -> bool:
    """Whether a node's work matters or is not known: it is a layer, or its bodies have one."""
    line = operators.of(node)
    if line.weighted or line.works or not line.bodies:
        return line.weighted or line.works
    return any(has_layers(n) for body in subgraphs(node) for n in body.node)


@dataclass(frozen=True)
class Layer:
    """A node that multiplies.

    Attributes:
        key: the node.
        operator: its operator.
        weight: the use of its weight, None when both operands are activations.
        macs: multiply-accumulates for the sizes observed.
    """

    key: str
    operator: Operator
    weight: Use | None
    macs: float

    @property
    def op(self) -> str:
        """Its operator's name, to be shown."""
        return self.operator.name


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
    return [layer for layer in products(graph, shapes) if layer.operator.layer]


def products(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> list[Layer]:
    """Every node that multiplies by a weight, with its cost, quantized ones too, in execution order."""
    return graph.once("products", shapes, lambda: _products(graph, shapes))


def _products(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> list[Layer]:
    found, macs = [], {w.key: w.macs for w in work(graph, shapes)}
    for key, node in graph.nodes.items():
        line = operators.of(node)
        product = line.product
        if product is None:
            continue
        if line.recurrent:
            found.append(Layer(key, line, None, macs.get(key, 0.0)))
        elif key in macs:
            # a convolution of a constant has none
            sides = (product.weight, product.data) if product.either else (product.weight,)
            side = next((i for i in sides if graph.constant(node.input[i]) is not None), None)
            found.append(Layer(key, line, None if side is None else (key, side), macs[key]))
    return found


def check_weights(graph: Graph, shapes: Mapping[str, tuple[int, ...]], label: str) -> None:
    """ModelError where a layer's weight is worked out in the file and is not finite; stored ones have been checked."""
    for layer in layers(graph, shapes):
        value = None if layer.weight is None else graph.value(layer.weight)
        if layer.weight is None or value is None or value.dtype.kind != "f":
            continue
        node = graph.nodes[layer.key]
        name = node.input[layer.weight[1]]
        if name not in graph.initializers and not np.isfinite(value).all():
            what = f"tensor {name!r}, read by {titled(node)}, has NaN or Inf once it is worked out"
            raise ModelError(one_line(f"{label}: {what}; train or export the model again"))


def weight_axes(node: onnx.NodeProto) -> tuple[int, int]:
    """The axes of a layer's weight, that count the channels it makes and those it reads (a grouped
    ConvTranspose makes more than its axis counts)."""
    product = operators.of(node).product
    assert product is not None
    turned = product.turned and attr(node, product.turned, 0)
    return (product.reads, product.writes) if turned else (product.writes, product.reads)


def affine(
    graph: Graph, layer: Layer, consumers: Mapping[str, list[Use]], shapes: Mapping[str, tuple[int, ...]]
) -> Affine | None:
    """Where a correction of the layer's output can be folded, or None (grouped ConvTranspose, quantized,
    activations on both sides, a product with its weight on the left)."""
    return unless_refused(affine_or_why(graph, layer, consumers, shapes))


def affine_or_why(
    graph: Graph, layer: Layer, consumers: Mapping[str, list[Use]], shapes: Mapping[str, tuple[int, ...]]
) -> Affine | Refusal:
    """The same, or why there is no such place."""
    node, product, op = graph.nodes[layer.key], layer.operator.product, layer.op
    assert product is not None and layer.operator.channels is not None
    if layer.operator.unfit and not layer.operator.layer:
        return refuse(layer.key, "unfit", why=layer.operator.unfit)
    if layer.weight is None:
        return refuse(layer.key, "two activations" if product.either else "computed", op=op)
    if product.transposed and attr(node, "group", 1) > 1:
        return refuse(layer.key, "grouped, transposed", op=op)
    if layer.weight[1] != product.weight:
        return refuse(layer.key, "on the left", op=op)
    weight = graph.value(layer.weight)
    out = shapes[node.output[0]]
    if weight is None or weight.dtype.kind != "f":
        return refuse(layer.key, "integers", op=op, dtype=None if weight is None else weight.dtype)
    if not product.kernel and weight.ndim != 2:
        return refuse(layer.key, "stacked", op=op, rank=weight.ndim)
    axis = layer.operator.channels % len(out)
    width = out[axis]
    scales = ((layer.weight, weight_axes(node)[0]),)
    behind = _behind(graph, Affine(layer.key, node.output[0], axis, scales, None), consumers, shapes)
    if behind is not None:
        return behind
    if product.bias is None:
        return refuse(layer.key, "no bias", op=op, axis=axis)
    if not has_bias(node):
        return Affine(layer.key, node.output[0], axis, scales, None)
    bias = graph.value((layer.key, product.bias))
    if bias is None or bias.dtype.kind != "f" or bias.size != width:
        return refuse(layer.key, "odd bias", op=op, axis=axis)
    if not unscaled(node):
        return refuse(layer.key, "scaled", op=op)
    return Affine(layer.key, node.output[0], axis, scales, ((layer.key, product.bias), bias.ndim - 1))


def _behind(
    graph: Graph, layer: Affine, consumers: Mapping[str, list[Use]], shapes: Mapping[str, tuple[int, ...]]
) -> Affine | None:
    """The place in what alone reads the layer: a BatchNormalization, or an Add where the layer has no bias."""
    follower, out = _only_reader(graph, consumers, layer.tensor), shapes[layer.tensor]
    if follower is None:
        return None
    key, position = follower
    reader, width = graph.nodes[key], out[layer.axis]
    if keeps_statistics(reader) and position == 0 and all(_floats(graph, (key, i), width) for i in (1, 2)):
        return Affine(layer.key, reader.output[0], layer.axis, (((key, 1), 0),), ((key, 2), 0))
    if is_add(graph, key) and not has_bias(graph.nodes[layer.key]):
        other = (key, 1 - position)
        at = _channel_axis(graph.value(other), layer.axis, len(out), width)
        if at is not None and shapes.get(reader.output[0]) == out:
            return Affine(layer.key, reader.output[0], layer.axis, layer.scales, (other, at))
    return None


def keeps_statistics(node: onnx.NodeProto) -> bool:
    """Whether it is a BatchNormalization that uses the statistics it stores, not those of the batch."""
    return operators.of(node).stored_statistics and not attr(node, "training_mode", 0)


def has_bias(node: onnx.NodeProto) -> bool:
    """Whether a layer has a bias of its own."""
    product = operators.of(node).product
    at = None if product is None else product.bias
    return at is not None and len(node.input) > at and bool(node.input[at])


def unscaled(node: onnx.NodeProto) -> bool:
    """Whether a layer is its weight and its bias, with no further factor (of Gemm)."""
    return attr(node, "alpha", 1.0) == attr(node, "beta", 1.0) == 1.0  # type: ignore[no-any-return]


def filters_of(graph: Graph, key: str) -> np.ndarray | None:
    """The weight of a layer as (out, in, ...); None where it is no float constant, where what it reads is turned or a
    constant, and for transposed convolutions in groups."""
    node, product = graph.nodes[key], operators.of(graph.nodes[key]).product
    assert product is not None
    w = graph.value((key, product.weight))
    read = graph.constant(node.input[product.data])
    if w is None or w.dtype.kind != "f" or read is not None or attr(node, "transA", 0):
        return None
    if (product.transposed and attr(node, "group", 1) > 1) or (not product.kernel and w.ndim != 2):
        return None
    scale = attr(node, "alpha", 1.0)
    writes, reads = weight_axes(node)
    w = w if writes < reads else w.swapaxes(0, 1)
    return w if scale == 1.0 else w * scale


def bias_of(graph: Graph, key: str, width: int) -> np.ndarray | None:
    """(width,) float64, zeros where a layer has no bias; None where that is no constant per channel."""
    node, product = graph.nodes[key], operators.of(graph.nodes[key]).product
    if product is None or product.bias is None or not has_bias(node):
        return np.zeros(width)
    b = graph.value((key, product.bias))
    if b is None or b.size not in (1, width):
        return None
    return np.broadcast_to(b.reshape(-1).astype(np.float64), (width,)) * attr(node, "beta", 1.0)


def adds_columns(node: onnx.NodeProto) -> bool:
    """Whether an input of a node may stand in for another by adding up the weight's columns."""
    return operators.of(node).sums and attr(node, "group", 1) == 1


def takes_constants(graph: Graph, key: str, behind: Mapping[str, tuple[Use, int]]) -> bool:
    """Whether what a constant input contributes can go into the bias of a layer, or into the Add behind it
    (`added_behind`); at the border of a padded convolution it contributes less."""
    product = operators.of(graph.nodes[key]).product
    if product is None or not operators.of(graph.nodes[key]).layer or product.transposed:
        return False
    return key in behind if product.bias is None else unscaled(graph.nodes[key])


def added_behind(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[Use, int]]:
    """Layer without a bias -> the constant that an Add right behind it adds per channel, with its axis."""
    consumers, found = graph.consumers(), {}
    for layer in layers(graph, shapes):
        place = affine(graph, layer, consumers, shapes)
        if place is not None and place.shift is not None and is_add(graph, place.shift[0][0]):
            found[layer.key] = place.shift
    return found


def is_add(graph: Graph, key: str) -> bool:
    """Whether a node is the sum of two tensors."""
    return operators.of(graph.nodes[key]).arithmetic == "+"


def _only_reader(graph: Graph, consumers: Mapping[str, list[Use]], tensor: str) -> Use | None:
    uses = consumers.get(tensor, [])
    return uses[0] if len(uses) == 1 and tensor not in graph.outputs else None


def lacks_bias(node: onnx.NodeProto) -> bool:
    """Whether it is a layer that has no operand for a bias: a MatMul, or an Einsum that is one."""
    line = operators.of(node)
    return line.layer and line.product is not None and line.product.bias is None


def _floats(graph: Graph, use: Use, width: int) -> bool:
    value = graph.value(use)
    return value is not None and value.dtype.kind == "f" and value.shape == (width,)


def _channel_axis(value: np.ndarray | None, axis: int, rank: int, width: int) -> int | None:
    """The axis of a broadcast constant that is the channel axis, when it has no other."""
    if value is None or value.dtype.kind != "f" or value.size != width or value.ndim > rank:
        return None
    at = axis - (rank - value.ndim)
    return at if at >= 0 and value.shape[at] == width else None


def gains(graph: Graph, key: str) -> tuple[Use, ...]:
    """The constants that scale all that a node writes: weight and bias of a layer, slope and shift of a
    BatchNormalization; none where there are others, or none."""
    node = graph.nodes[key]
    line = operators.of(node)
    if not line.stored_statistics and (not line.layer or lacks_bias(node)):
        return ()
    uses = tuple((key, i) for i in (1, 2) if i < len(node.input) and node.input[i])
    return uses if all(graph.value(use) is not None for use in uses) else ()


def signature_of(
    node: onnx.NodeProto, x: Sequence[int], weight: Sequence[int], dtype: np.dtype, *, but: Collection[str] = ()
) -> str:
    """What layers that take the same time have in common, in words.

    Args:
        node: the layer.
        x, weight: sizes of what it reads and of its weight.
        dtype: of both.
        but: attributes that are left out.
    """
    kept = {k: v for k, v in attributes(node).items() if k not in but and isinstance(v, (int, float, list, bytes))}
    return f"{node.op_type} x{tuple(x)} w{tuple(weight)} {sorted(kept.items())} {dtype}"


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
    """The graph, edited: an Add of zeros stands behind every MatMul or Einsum that has no constant behind it: they have
    no bias operand, and without one their mean cannot be mended.

    Args:
        graph: the network.
        reads: whether one that reads this tensor gets one.
    """
    graph.settle()
    consumers = graph.consumers()
    for key, node in list(graph.nodes.items()):
        product = operators.of(node).product if lacks_bias(node) else None
        weight = None if product is None else graph.value((key, product.weight))
        if product is None or weight is None or weight.ndim != 2 or weight.dtype.kind != "f":
            continue
        if not reads(node.input[product.data]):
            continue
        width, behind = weight.shape[weight_axes(node)[0]], -1 - (operators.of(node).channels or -1)
        readers = consumers.get(node.output[0], [])
        adds = [graph.value((k, 1 - i)) for k, i in readers if is_add(graph, k)]
        if any(v is not None and v.size == width for v in adds):
            continue
        own = graph.own(key)
        name, own.output[0] = own.output[0], graph.fresh(f"{key}_unbiased")
        zeros = graph.add_constant(f"{key}_bias", np.zeros((width, *[1] * behind), weight.dtype))
        graph.insert_after(key, onnx.helper.make_node("Add", [own.output[0], zeros], [name]))
    return graph.settle()


def hand_on(graph: Graph, key: str, tensor: str) -> None:
    """Let a node do nothing but hand on a tensor, under the name that its output had."""
    node = graph.own(key)
    node.op_type = "Identity"
    del node.input[:], node.attribute[:]
    node.input.append(tensor)


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
