"""A linear layer as two nodes of lower rank: which nodes, and the sizes of their weights. No numbers here.

    channel  Conv k×k, n filters    →  the same Conv with r filters (strides, pads, dilations stay), then Conv 1×1
    spatial  Conv kh×kw             →  Conv kh×1 with the vertical stride and pads, then Conv 1×kw with the horizontal
    matrix   Gemm or MatMul         →  MatMul, then the layer with a smaller weight

The first has no bias, so what the second's padding adds is zero, as in the original. Grouped convs stay grouped; the
rank counts per group.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from onnxprune.graph import operators
from onnxprune.graph.layers import weight_axes
from onnxprune.graph.refusals import Refusal, refuse
from onnxprune.protobuf.nodes import attr, set_attr


def kinds_of(node: onnx.NodeProto, weight: tuple[int, ...]) -> tuple[str, ...]:
    """The kinds of pairs that a layer with such a weight can become."""
    line = operators.of(node)
    product = line.product
    if product is None or not product.kernel:
        last = (line.channels or -1) >= -1  # a MatMul goes along the last axis
        return ("matrix",) if last and (product is None or not product.data) else ()
    kernel = weight[2:]
    both = len(kernel) == 2 and min(kernel) > 1
    depthwise = attr(node, "group", 1) > 1 and weight[1] == 1
    return (() if depthwise else ("channel",)) + (("spatial",) if both else ())


def why_not(key: str, node: onnx.NodeProto, weight: tuple[int, ...]) -> Refusal | None:
    """Why a layer with such a weight cannot become a pair; None where it can."""
    line = operators.of(node)
    assert line.product is not None
    reason = "thin" if line.product.kernel else "on the left" if line.product.data else "in between"
    return None if kinds_of(node, weight) else refuse(key, reason, op=line.name)


def highest(node: onnx.NodeProto, weight: tuple[int, ...], kind: str) -> int:
    """The largest rank that the factors of a layer can have."""
    a, b = pair_sizes(node, weight, kind, 1)
    if kind == "matrix":
        return min(weight)
    parts = attr(node, "group", 1)
    return min(_volume(a[1:]), _volume(b) // parts)


def _volume(sizes: tuple[int, ...]) -> int:
    total = 1
    for n in sizes:
        total *= n
    return total


def pair_sizes(
    node: onnx.NodeProto, weight: tuple[int, ...], kind: str, rank: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sizes of the two weights, as they are stored."""
    if kind == "matrix":
        turned = weight_axes(node)[0] == 0
        inputs, outputs = weight[::-1] if turned else weight
        return (inputs, rank), ((outputs, rank) if turned else (rank, outputs))
    n, c, *kernel = weight
    total = rank * attr(node, "group", 1)
    if kind == "channel":
        return (total, c, *kernel), (n, rank, *[1] * len(kernel))
    return (total, c, kernel[0], 1), (n, rank, 1, kernel[1])


def pair_nodes(
    node: onnx.NodeProto, weight: tuple[int, ...], kind: str, first: str, middle: str, second: str
) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """The two nodes in place of one.

    Args:
        node: the layer.
        weight: the sizes of its weight.
        kind: "channel", "spatial" or "matrix".
        first, second: names of the weights.
        middle: name of the tensor in between.
    """
    head, tail = onnx.NodeProto(), onnx.NodeProto()
    head.CopyFrom(node)
    tail.CopyFrom(node)
    del head.input[1:]
    head.input.append(first)
    head.output[0] = middle
    tail.input[0], tail.input[1] = middle, second
    if node.name:
        head.name = middle  # as unique as the tensor: a layer may be split twice
    if kind == "matrix":
        head.op_type = "MatMul"
        del head.attribute[:]
        return head, tail
    a, b = _attributes(node, len(weight) - 2, kind, weight[2:])
    for target, settings in ((head, a), (tail, b)):
        for name in ("kernel_shape", "strides", "pads", "dilations"):
            if name in settings:
                set_attr(target, name, settings[name])
    if kind == "channel":
        for k in range(len(tail.attribute) - 1, -1, -1):
            if tail.attribute[k].name == "auto_pad":
                del tail.attribute[k]
    return head, tail


def _attributes(
    node: onnx.NodeProto, n: int, kind: str, kernel: tuple[int, ...]
) -> tuple[Mapping[str, list[int]], Mapping[str, list[int]]]:
    """What the attributes of the two convs become; those that the layer has not and that stay at their default are
    left out."""
    if kind == "channel":
        plain = {"kernel_shape": [1] * n, "strides": [1] * n, "dilations": [1] * n, "pads": [0] * (2 * n)}
        return {}, {k: v for k, v in plain.items() if attr(node, k) is not None}
    a, b = {"kernel_shape": [kernel[0], 1]}, {"kernel_shape": [1, kernel[1]]}
    for name in ("strides", "dilations"):
        given = attr(node, name)
        if given is not None:
            a[name], b[name] = [given[0], 1], [1, given[1]]
    pads = attr(node, "pads")
    if pads is not None:
        a["pads"], b["pads"] = [pads[0], 0, pads[2], 0], [0, pads[1], 0, pads[3]]
    return a, b


def centred(kernel: int, stride: int, axes: int) -> dict[str, list[int]]:
    """The attributes of a convolution with half of its kernel as padding, the same on every axis."""
    return {"kernel_shape": [kernel] * axes, "strides": [stride] * axes, "pads": [kernel // 2] * 2 * axes}
