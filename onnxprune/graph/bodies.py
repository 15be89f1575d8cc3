"""What only a run tells: how often the bodies of If, Loop, Scan and SequenceMap multiply, and how long sequences are.

Which branch ran, how many trips a loop made and which sizes its tensors had is known while it runs, so the model counts
itself: behind every node inside a body stands the arithmetic of its rule (`graph.macs`), on the sizes that are really
there, and every body hands its sum out. A run of that model says what one of the original does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.graph import operators
from onnxprune.graph.macs import OUT, Axes, Call, Factor, Part, Values
from onnxprune.graph.model import Graph
from onnxprune.graph.work import works_inside
from onnxprune.protobuf.nodes import subgraphs

SLICES = 10
"""The first opset whose Slice takes its bounds as operands."""
END = 2**31 - 1
PREFIX = "onnxprune::macs"


def counted_inside(graph: Graph) -> list[str]:
    """Keys of the nodes in whose bodies something multiplies."""
    return [key for key, node in graph.nodes.items() if works_inside(node)]


def summed(graph: Graph) -> list[str]:
    """The tensors whose values are lengths of sequences, where they are no constants."""
    found = []
    for key, node in graph.nodes.items():
        rule = operators.of(node).macs
        if rule is not None and node.input and graph.constant(key) is None:
            factors = {f.operand for part in rule(Call(node)) for f in part if isinstance(f, Values)}
            found += [node.input[k] for k in sorted(factors) if graph.value((key, k)) is None]
    return list(dict.fromkeys(found))


class SelfCounting:
    """Nodes that count themselves; tensors that add themselves up.

    Attributes:
        opset: of the model.
    """

    def __init__(self, opset: int):
        self.opset = opset
        self._names = (f"{PREFIX}::{k}" for k in itertools.count())

    def instead(self, node: onnx.NodeProto) -> tuple[list[onnx.NodeProto], str | None]:
        """(what stands in a node's place, where its multiply-accumulates are; None for none)."""
        line = operators.of(node)
        if works_inside(node):
            return self._with_bodies(node)
        if line.macs is None:
            return [node], None
        made, total = self._sum([self._product(node, part) for part in line.macs(Call(node))])
        return [node, *made], total

    def _with_bodies(self, node: onnx.NodeProto) -> tuple[list[onnx.NodeProto], str]:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for body in subgraphs(copy):
            total = self._body(body)
            body.output.append(helper.make_tensor_value_info(total, onnx.TensorProto.DOUBLE, []))
        for attribute in copy.attribute:
            if attribute.name in ("scan_output_axes", "scan_output_directions"):
                attribute.ints.append(0)
        found = next(self._names)
        copy.output.append(found)
        if operators.of(node).branches:
            return [copy], found
        made = [copy]
        if operators.of(node).name == "SequenceMap":
            made.append(self._node("ConcatFromSequence", [found], axis=0, new_axis=1))
        made.append(self._node("ReduceSum", [made[-1].output[-1]], keepdims=0))
        return made, made[-1].output[0]

    def _body(self, body: onnx.GraphProto) -> str:
        """Let a body count itself, in place. Returns where its sum is."""
        nodes: list[onnx.NodeProto] = []
        totals: list[tuple[list[onnx.NodeProto], str]] = []
        for node in body.node:
            made, total = self.instead(node)
            nodes += made
            totals += [] if total is None else [([], total)]
        made, total = self._sum(totals)
        del body.node[:]
        body.node.extend([*nodes, *made])
        return total

    def _product(self, node: onnx.NodeProto, part: Part) -> tuple[list[onnx.NodeProto], str]:
        """(nodes, where their result is): the factors of a part multiplied."""
        return self._chain("Mul", 1.0, [self._factor(node, factor) for factor in part])

    def _sum(self, parts: Iterable[tuple[Sequence[onnx.NodeProto], str]]) -> tuple[list[onnx.NodeProto], str]:
        return self._chain("Add", 0.0, parts)

    def _chain(
        self, op: str, start: float, parts: Iterable[tuple[Sequence[onnx.NodeProto], str]]
    ) -> tuple[list[onnx.NodeProto], str]:
        made = [self._constant(np.array(start, np.float64))]
        for nodes, name in parts:
            so_far = made[-1].output[0]
            made += [*nodes, self._node(op, [so_far, name])]
        return made, made[-1].output[0]

    def _factor(self, node: onnx.NodeProto, factor: Factor) -> tuple[list[onnx.NodeProto], str]:
        if isinstance(factor, Axes):
            made = self._axes(node.output[0] if factor.operand == OUT else node.input[factor.operand], factor)
        elif isinstance(factor, Values):
            made = self.sum_of(node.input[factor.operand])
        else:
            made = [self._constant(np.array(factor, np.float64))]
        return made, made[-1].output[0]

    def sum_of(self, tensor: str) -> list[onnx.NodeProto]:
        """What adds a tensor's values up; the last writes the sum."""
        cast = self._node("Cast", [tensor], to=onnx.TensorProto.DOUBLE)
        return [cast, self._node("ReduceSum", [cast.output[0]], keepdims=0)]

    def _axes(self, tensor: str, axes: Axes) -> list[onnx.NodeProto]:
        made = [self._node("Shape", [tensor])]
        start, stop = axes.start or 0, END if axes.stop is None else axes.stop
        if self.opset < SLICES:
            made.append(self._node("Slice", [made[-1].output[0]], axes=[0], starts=[start], ends=[stop]))
        else:
            bounds = [self._constant(np.array([n], np.int64)) for n in (start, stop)]
            made = [*bounds, *made]
            made.append(self._node("Slice", [made[-1].output[0], *(b.output[0] for b in bounds)]))
        one = self._constant(np.array([1], np.int64))
        made += [one, self._node("Concat", [one.output[0], made[-1].output[0]], axis=0)]
        made.append(self._node("ReduceProd", [made[-1].output[0]], keepdims=0))
        return [*made, self._node("Cast", [made[-1].output[0]], to=onnx.TensorProto.DOUBLE)]

    def _node(self, op: str, inputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, list(inputs), [next(self._names)], **attributes)

    def _constant(self, value: np.ndarray) -> onnx.NodeProto:
        return self._node("Constant", [], value=numpy_helper.from_array(value))
