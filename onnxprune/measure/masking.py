"""The yardstick of surgery: the original with every removed channel masked.

Knows the published list of cuts and nothing of how they came about. An operand that is cut is multiplied by
zeros and ones where it is read; a constant has the zeros in it, a quantized one its zero point, which is what zero
means there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnxprune.errors import UsageError
from onnxprune.graph.behaviour import zero_axis, zero_point
from onnxprune.graph.model import Graph, Use
from onnxprune.numerics import on_disk
from onnxprune.protobuf.nodes import captured, element_types, inferred_types, node_key
from onnxprune.protobuf.serialize import copied, without_initializers
from onnxprune.runtime.stored import PLAIN
from onnxprune.runtime.weights import LARGE_BYTES, ModelAndWeights, add_external_weights


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
    made = _Masks(graph, {node_key(n): n for n in result.graph.node}, element_types(result))
    for k, cut in enumerate(cuts):
        made.add(k, cut)
    weights = made.weights | _kept_weights(graph, result, made.store_zeroed())
    ordered = [n for node in result.graph.node for n in (*made.ahead.get(node_key(node), ()), node)]
    body = list(map(copied, ordered))
    del result.graph.node[:]
    result.graph.node.extend(body)
    return ModelAndWeights(result, add_external_weights(result, weights))


def key_of(cut: Mapping) -> str:
    """The key of the node that a cut names."""
    return str(cut.get("output", cut["node"]))


@dataclass
class _Masks:
    """What is put into the model, cut by cut.

    Attributes:
        graph: of the original.
        nodes: those of the masked model, by key.
        types: the element types of activations, as far as they are known.
        ahead: node key -> new nodes ahead of it.
        zeroed: constants with the zeros in them, by use.
        weights: masks, and constants with zeros, by name.
        keeper: where constants with zeros lie.
    """

    graph: Graph
    nodes: Mapping[str, onnx.NodeProto]
    types: dict[str, np.dtype]
    ahead: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    zeroed: dict[Use, np.ndarray] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    keeper: on_disk.Keeper = field(default_factory=on_disk.Keeper)

    def add(self, k: int, cut: Mapping) -> None:
        """Mask what a cut removes: `k` is its number."""
        use = key_of(cut), cut["input"]
        node = self.nodes.get(use[0])
        if node is None or cut["input"] >= len(node.input):
            raise UsageError(f"cut {k} names {use[0]!r}[{cut['input']}], which the model does not have")
        keep = np.ones(cut["length"], bool)
        keep[list(cut["removed"])] = False
        keep = keep.reshape([-1 if a == cut["axis"] else 1 for a in range(cut["rank"])])
        constant = self.zeroed.get(use, self.graph.constant(node.input[use[1]]))
        if constant is not None and constant.dtype.kind in "iuf":
            zero = _zero_point(self.graph, node, use[1]) if constant.dtype.kind in "iu" else 0
            if use not in self.zeroed:
                self.zeroed[use] = constant = self.keeper.keep(constant.copy())
            np.copyto(constant, zero, where=~keep, casting="unsafe")  # in place: weights may be large
        else:
            self._multiply(k, node, use, keep, None if constant is None else constant.dtype)

    def _multiply(self, k: int, node: onnx.NodeProto, use: Use, keep: np.ndarray, dtype: np.dtype | None) -> None:
        """Put a product with zeros and ones ahead of the node."""
        name, masked_name = node.input[use[1]], f"__masked_{k}"
        if dtype is None:
            if name not in self.types:
                self.types = {**inferred_types(self.graph.model), **self.types}
            dtype = self.types.get(name, np.dtype(np.float32))
        self.weights[f"__mask_{k}"], self.types[masked_name] = keep.astype(dtype), dtype
        product = onnx.helper.make_node("Mul", [name, f"__mask_{k}"], [masked_name])
        self.ahead.setdefault(use[0], []).append(product)
        node.input[use[1]] = masked_name

    def store_zeroed(self) -> set[str]:
        """Have the nodes read the constants with zeros; returns the names that they read before."""
        replaced = set()
        for k, ((key, i), value) in enumerate(self.zeroed.items()):
            self.weights[f"__zeroed_{k}"] = value
            replaced.add(self.nodes[key].input[i])
            self.nodes[key].input[i] = f"__zeroed_{k}"
        return replaced


def _kept_weights(graph: Graph, result: onnx.ModelProto, replaced: set[str]) -> dict[str, np.ndarray]:
    """The large weights that are still read, as the graph holds them; small ones and those that are inputs too are
    stored in the model."""
    read = {i for n in result.graph.node for i in (*n.input, *captured(n))} | set(graph.outputs)
    listed = {port.name for port in result.graph.input}
    weights, unread = {}, replaced - read - listed
    for tensor in graph.model.graph.initializer:
        if tensor.name in unread:
            continue
        outside = tensor.data_type in PLAIN and tensor.name not in listed
        weight = graph.constant(tensor.name) if outside else None
        if weight is None or weight.nbytes < LARGE_BYTES:
            result.graph.initializer.add().CopyFrom(tensor)
        else:
            weights[tensor.name] = weight
    return weights


def _zero_point(graph: Graph, node: onnx.NodeProto, i: int) -> np.ndarray:
    """The integer that stands for zero in operand i, shaped to broadcast against it."""
    zero = zero_point(graph, node, i)
    if zero is None:
        return np.zeros((), np.int8)
    if (zero == zero.flat[0]).all():
        return zero.flat[0].reshape(())
    value = graph.constant(node.input[i])
    rank = 1 if value is None else value.ndim
    axis = zero_axis(node, rank)
    return zero.reshape([-1 if a == axis else 1 for a in range(rank)])
