"""How a node behaves: what is true of its operator, where its attributes and constants decide as well.

Layers have a module of their own (`graph.layers`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx

from onnxprune.graph import operators
from onnxprune.graph.layers import weight_axes
from onnxprune.graph.model import Graph
from onnxprune.protobuf.nodes import attr, node_key


def unpadded(node: onnx.NodeProto) -> bool:
    """Whether a conv or a pooling reads nothing beyond the border."""
    return not any(attr(node, "pads", [])) and attr(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")


def sees_borders(node: onnx.NodeProto) -> bool:
    """Whether some outputs of a layer are sums over fewer inputs than others."""
    product = operators.of(node).product
    return product is not None and product.kernel and (product.transposed or not unpadded(node))


def scaling(graph: Graph, node: onnx.NodeProto, *, constants: bool) -> str:
    """How a node scales: "linear", f(s·x) = s·f(x), "positive", for s > 0, or "" (not at all).

    Args:
        graph: where its operands are looked up.
        node: the node.
        constants: whether some of what it reads is constant.
    """
    line = operators.of(node)
    if (constants and not line.slopes) or _fills(graph, node) or _crops(node):
        return ""
    return line.scales


def _fills(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether it is a Pad with anything but zeros, or with what is there already."""
    if not operators.of(node).fills or attr(node, "mode", "constant") != "constant":
        return False
    if len(node.input) > 2 and node.input[2]:
        value = graph.constant(node.input[2])
        return value is None or bool(value.any())
    return attr(node, "value", 0.0) != 0  # type: ignore[no-any-return]


def padding(
    node: onnx.NodeProto, rank: int, value: Callable[[int], np.ndarray | None]
) -> dict[int, tuple[int, int]] | None:
    """How a Pad changes the axes that it lists: axis -> how much it adds before and behind, less than nothing where it
    takes off. None where that is computed from data.

    Args:
        node: the Pad.
        rank: axes of what it reads.
        value: gives the value of an operand, None where there is none, or none that is known.
    """
    by_input = len(node.input) > 1
    pads = value(1) if by_input else attr(node, "pads")
    axes = value(3) if len(node.input) > 3 and node.input[3] else range(rank)
    if pads is None or axes is None:
        return None
    sides = zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True)
    return {int(k) % rank: (int(before), int(behind)) for k, before, behind in sides}


def _crops(node: onnx.NodeProto) -> bool:
    """Whether it is a Resize that puts a number of its own beyond the border."""
    return attr(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize"


def keeps_constants(node: onnx.NodeProto) -> bool:
    """Whether a constant goes in and the same constant comes out, at the borders too."""
    kept = operators.of(node).keeps_constants
    return kept == "everywhere" or (kept == "inside" and (not attr(node, "count_include_pad", 0) or unpadded(node)))


def clipping(graph: Graph, key: str) -> tuple[float, float] | None:
    """The bounds of a ReLU, or of a Clip from 0 to a constant; None for others."""
    node = graph.nodes[key]
    clips = operators.of(node).clips
    if clips == "zero":
        return 0.0, np.inf
    if clips != "given":
        return None
    low, high = (attr(node, w) if len(node.input) < 2 else graph.value((key, i)) for i, w in ((1, "min"), (2, "max")))
    if low is None or np.size(low) != 1 or float(np.ravel(low)[0]) != 0.0:
        return None
    return 0.0, float(np.ravel(high)[0]) if high is not None else np.inf


def never_negative(graph: Graph, name: str) -> bool:
    """Whether a tensor has nothing but zeros and positive numbers, whatever the input."""
    stack, seen = [name], {name}
    while stack:
        value = graph.constant(top := stack.pop())
        node = graph.nodes.get(graph.producer.get(top, ""))
        if value is not None:
            if value.dtype.kind not in "fiub" or (value < 0).any():
                return False
            continue
        line = operators.UNKNOWN if node is None else operators.of(node)
        if node is not None and line.arithmetic == "*" and node.input[0] == node.input[1]:
            continue
        if node is None or (line.sign != "always" and clipping(graph, node_key(node)) is None):
            if node is None or line.sign != "kept" or _fills(graph, node):
                return False
            every = line.joins or line.family == "broadcast"
            ahead = {i for i in node.input[: None if every else 1] if i} - seen
            stack += ahead
            seen |= ahead
    return True


def never_positive(graph: Graph, name: str) -> bool:
    """Whether a tensor is what is never negative, with its sign turned."""
    node = graph.nodes.get(graph.producer.get(name, ""))
    return node is not None and operators.of(node).negates and never_negative(graph, node.input[0])


def takes_any_batch(graph: Graph, node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a node surely runs with any number of samples along the first axis, and leaves them there.

    Args:
        graph: the network.
        node: one of its nodes.
        shapes: sizes of all tensors in a run of some batch.
    """
    line, others = operators.of(node), [graph.constant(i) for i in node.input[1:] if i]
    if line.family == "broadcast":  # what has as many axes as the outcome must have one sample, for all of them
        rank = len(shapes.get(node.output[0], ()))
        constants = [v for i in node.input if i and (v := graph.constant(i)) is not None]
        return all(v.ndim < rank or not v.ndim or v.shape[0] == 1 for v in constants)
    if line.layer:
        return all(v is not None for v in others) and not attr(node, "transA", 0)
    if line.joins and any(graph.constant(i) is not None for i in node.input):
        return False
    first = BATCH_FIRST.get(line.name)
    return line.family in ("unary", "pool") or line.stored_statistics if first is None else first(node)


BATCH_FIRST: Mapping[str, Callable[[onnx.NodeProto], bool]] = {
    "Concat": lambda node: attr(node, "axis", 0) != 0,
    "Flatten": lambda node: attr(node, "axis", 1) != 0,
    "Transpose": lambda node: attr(node, "perm", [1])[0] == 0,
}
"""Layout -> whether a node leaves the first axis where it is."""


def zero_point(graph: Graph, node: onnx.NodeProto, i: int) -> np.ndarray | None:
    """The integers that stand for zero in operand i, constants, as they are stored; None where nothing says so."""
    at = operators.of(node).zero_points.get(i)
    return graph.constant(node.input[at]) if at is not None and at < len(node.input) and node.input[at] else None


def zero_axis(node: onnx.NodeProto, rank: int) -> int:
    """The axis of a quantized constant along which it has zero points of its own."""
    line = operators.of(node)
    if line.dequantizes:
        return attr(node, "axis", 1) % rank  # type: ignore[no-any-return]
    return weight_axes(node)[0] if line.product is not None else rank - 1
