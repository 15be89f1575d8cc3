"""The sizes of a model without its arithmetic.

A convolution's output has a size that no weight and no other channel has a part in: one channel is convolved by a
kernel of zeros and spread over all channels. What every tensor measures is the same, the multiply-accumulates are
gone. Only where sizes follow from sizes: a detector that counts what it finds must be run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from onnxprune.graph import operators
from onnxprune.graph.layers import has_layers, weight_axes
from onnxprune.graph.model import Graph
from onnxprune.protobuf.nodes import DEFAULT_DOMAINS, attr

Shape = tuple[int, ...]

OLDEST = 10
"""The first opset whose Slice takes its bounds as operands."""


@dataclass
class SizesOnly:
    """Nodes without arithmetic, and what must hold for their outputs to have the sizes of the originals'.

    Attributes:
        nodes: in order.
        constants: what they read that the original has not.
        needs: (tensor, axis, length) that it must turn out to have.
    """

    nodes: list[onnx.NodeProto]
    constants: dict[str, np.ndarray]
    needs: list[tuple[str, int, int]]

    def fits(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether every operand has the length that the weight it meets asks for."""
        return all(
            -len(shape) <= axis < len(shape) and shape[axis] == length
            for shape, axis, length in ((shapes.get(name, ()), axis, length) for name, axis, length in self.needs)
        )


def sizes_only(graph: Graph, nodes: Sequence[onnx.NodeProto], computed: Collection[str]) -> SizesOnly | None:
    """The nodes with their convolutions and products emptied; None where sizes may depend on values.

    Args:
        graph: where constants are looked up.
        nodes: those to run, in order.
        computed: tensors that depend on nothing but sizes and constants.
    """
    if graph.opset < OLDEST or not _by_sizes(graph, nodes, computed):
        return None
    made = SizesOnly([], {}, [])
    for node in nodes:
        made.nodes += _emptied(graph, node, made) or [node]
    return made if made.needs else None


def _by_sizes(graph: Graph, nodes: Sequence[onnx.NodeProto], computed: Collection[str]) -> bool:
    """Whether the sizes of all layers follow from sizes."""
    counted: set[str] = set()
    for node in nodes:
        line = operators.of(node)
        branches = line.branches and not has_layers(node)
        if node.domain not in DEFAULT_DOMAINS or (line.sequences and not branches):
            return False
        behind = branches or not counted.isdisjoint(node.input)
        if behind and has_layers(node):
            return False
        operands = () if line.sized_by is None else node.input[line.sized_by :]
        by_value = any(i and i not in computed and graph.constant(i) is None for i in operands)
        if behind or by_value or line.counts:
            counted.update(o for o in node.output if o)
    return True


def _emptied(graph: Graph, node: onnx.NodeProto, made: SizesOnly) -> list[onnx.NodeProto] | None:
    """What a layer becomes; None for what stays as it is."""
    line = operators.of(node)
    if not line.layer or line.product is None or len(node.input) < 2:  # an equation may have one operand
        return None
    return (_convolution if line.product.kernel else _product)(graph, node, made)


def _convolution(graph: Graph, node: onnx.NodeProto, made: SizesOnly) -> list[onnx.NodeProto] | None:
    weight = graph.constant(node.input[1])
    if weight is None or weight.ndim < 3:
        return None
    group, kernel = int(attr(node, "group", 1)), weight.shape[2:]
    before, after = weight.shape[1] * group, weight.shape[0]
    if weight_axes(node) == (1, 0):
        before, after = weight.shape[0], weight.shape[1] * group
    bias = _bias(graph, node)
    fits = weight.shape[0] % group == 0 and tuple(attr(node, "kernel_shape", kernel)) == kernel
    if not fits or (bias is not None and bias != (after,)):
        return None
    kept = [a for a in node.attribute if a.name != "group"]
    spread = _constant(made, np.array([1, after] + [1] * len(kernel)))
    thin = _thin(node, made, axis=1, length=before, weight=np.zeros((1, 1, *kernel), weight.dtype))
    thin[-1].attribute.extend(kept)
    return [*thin, helper.make_node("Expand", [thin[-1].output[0], spread], list(node.output))]


def _product(graph: Graph, node: onnx.NodeProto, made: SizesOnly) -> list[onnx.NodeProto] | None:
    weight = graph.constant(node.input[1])
    if weight is None or weight.ndim != 2 or attr(node, "transA", 0):
        return None
    _, reads = weight_axes(node)
    size = list(weight.shape)
    size[reads] = 1
    axis = min(operators.of(node).channels or -1, -1)
    thin = _thin(node, made, axis=axis, length=weight.shape[reads], weight=np.zeros(size, weight.dtype))
    thin[-1].input.extend(node.input[2:])
    thin[-1].attribute.extend(node.attribute)
    thin[-1].output[0] = node.output[0]
    return thin


def _bias(graph: Graph, node: onnx.NodeProto) -> tuple[int, ...] | None:
    """The size of a bias; None where there is none; () where it is no constant."""
    if len(node.input) < 3 or not node.input[2]:
        return None
    value = graph.constant(node.input[2])
    return () if value is None else value.shape


def _thin(node: onnx.NodeProto, made: SizesOnly, *, axis: int, length: int, weight: np.ndarray) -> list[onnx.NodeProto]:
    """The first channel of a node's operand, and the node on that alone, without its attributes."""
    made.needs.append((node.input[0], axis, length))
    first = f"{node.output[0]}::first"
    bounds = [_constant(made, np.array([k])) for k in (0, 1, axis)]
    zeros = _constant(made, weight)
    return [
        helper.make_node("Slice", [node.input[0], *bounds], [first]),
        helper.make_node(node.op_type, [first, zeros], [f"{node.output[0]}::thin"]),
    ]


def _constant(made: SizesOnly, value: np.ndarray) -> str:
    """The name under which a small constant is kept once."""
    name = f"::{value.dtype}{value.shape}" + ("" if value.dtype.kind == "f" else str(value.tolist()))
    made.constants[name] = value
    return name
