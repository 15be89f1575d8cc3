"""Products of integers whose scale is chosen at run time, as the products of floats that they stand for, and back.

An activation goes through DynamicQuantizeLinear, the product of integers is cast and scaled by two numbers: the scale
that was chosen, and that of the weight, one for all or one a channel. A bias is added behind that, or by older
quantizers to the integers, divided by both scales and rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper

from onnxprune.graph import operators
from onnxprune.graph.export import tensor_of
from onnxprune.graph.layers import is_add
from onnxprune.graph.model import Graph, Use
from onnxprune.protobuf.nodes import node_key
from onnxprune.rewrite.held import Held, same_bytes


@dataclass(frozen=True)
class Product:
    """One.

    Attributes:
        source: the activation, before it is quantized.
        end: what the product is once it is scaled.
        last: the node that scales it.
        gone: the nodes that floats do without.
        held: the weight.
        kind: the operator of floats.
        bias: the use of a bias that is added to the integers; None: there is none.
    """

    source: str
    end: str
    last: str
    gone: tuple[str, ...]
    held: Held
    kind: str
    bias: Use | None = None

    def floating(self, graph: Graph, node: onnx.NodeProto, source: str) -> tuple[onnx.NodeProto, onnx.TensorProto]:
        """(the layer in floats, its weight)."""
        name = f"{node.input[1]}_of_{node_key(node)}_in_floats"
        bias = [] if self.bias is None else [graph.nodes[self.bias[0]].input[self.bias[1]]]
        layer = helper.make_node(self.kind, [source, name, *bias], list(node.output), name=node.name)
        layer.attribute.extend(node.attribute)
        return layer, tensor_of(self.held.value(), name)


def products(graph: Graph) -> dict[str, Product]:
    """Node of a product of integers -> what it stands for."""
    return graph.once("products of integers", graph, lambda: dict(_products(graph)))


def _products(graph: Graph) -> Iterator[tuple[str, Product]]:
    consumers = graph.consumers()
    quantized = {key: node for key, node in graph.nodes.items() if operators.of(node).chooses_scale}

    def only(name: str) -> str | None:
        """The one node that reads a tensor."""
        readers = consumers.get(name, [])
        return readers[0][0] if len(readers) == 1 and name not in graph.outputs else None

    for key, node in graph.nodes.items():
        kind, chooser = operators.of(node).in_floats, graph.producer.get(node.input[0], "") if node.input else ""
        weight = graph.value((key, 1)) if kind else None
        added = only(key)
        shift = (
            _shift(graph, added, key, only)
            if added and kind == "Conv" and operators.of(graph.nodes[added]).arithmetic == "+"
            else None
        )
        cast = only(added) if added and shift else added
        if weight is None or chooser not in quantized or cast is None or not operators.of(graph.nodes[cast]).casts:
            continue
        last = only(graph.nodes[cast].output[0])
        found = last and _scales(graph, last, graph.nodes[cast].output[0], quantized[chooser].output[1])
        if not last or not found:
            continue
        use, between = found
        axis = 0 if kind == "Conv" else weight.ndim - 1
        scale, zero = graph.value(use), graph.value((key, 3)) if len(node.input) > 3 else None
        if scale is None or scale.size not in (1, weight.shape[axis]) or (zero is not None and zero.ndim > 1):
            continue
        if weight.dtype.kind not in "iu" or (kind == "MatMul" and weight.ndim != 2):
            continue
        flat = scale.reshape(() if scale.size == 1 else -1)
        held = Held(key, (key, 1), (use,), () if zero is None else ((key, 3),), weight, flat, zero, axis)
        if shift and added:
            held = replace(held, scales=(use, shift.scale))
            between = (*between, added, *shift.gone)
        scaled = [k for k in between if only(graph.nodes[k].output[0])]
        chosen = [chooser] if _only_products(graph, consumers, quantized[chooser]) else []
        yield (
            key,
            Product(
                quantized[chooser].input[0],
                graph.nodes[last].output[0],
                last,
                (cast, last, *scaled, *chosen),
                held,
                kind,
                shift.bias if shift else None,
            ),
        )


@dataclass(frozen=True)
class _Shift:
    """A bias as integers, made at run time: where its floats and the weight's scale are read, and the nodes of it."""

    bias: Use
    scale: Use
    gone: tuple[str, ...]


def _shift(graph: Graph, added: str, product: str, only: Callable[[str], str | None]) -> _Shift | None:
    """What is added to a product of integers, where that is a bias by both scales, rounded; None: it is not."""
    at, gone = next((graph.producer.get(i, "") for i in graph.nodes[added].input if i != product), ""), []
    while at in graph.nodes and only(graph.nodes[at].output[0]):
        node = graph.nodes[at]
        gone.append(at)
        if operators.of(node).arithmetic == "/":
            scales = graph.producer.get(node.input[1], "")
            factors = graph.nodes[scales] if scales in graph.nodes else None
            if graph.value((at, 0)) is None or factors is None or operators.of(factors).arithmetic != "*":
                return None
            side = next((i for i in (0, 1) if graph.value((scales, i)) is not None), None)
            return None if side is None else _Shift((at, 0), (scales, side), (*gone, scales))
        if not (operators.of(node).casts or operators.of(node).decides or operators.of(node).layout):
            return None
        at = graph.producer.get(node.input[0], "")
    return None


def _scales(graph: Graph, last: str, product: str, chosen: str) -> tuple[Use, tuple[str, ...]] | None:
    """(where the scale of the weight is read, the nodes that make the factor of both); None where it is otherwise."""
    node = graph.nodes[last]
    if operators.of(node).arithmetic != "*":
        return None
    other = graph.producer.get(next((i for i in node.input if i != product), ""), "")
    if other not in graph.nodes or operators.of(graph.nodes[other]).arithmetic != "*":
        return None
    factors = list(graph.nodes[other].input)
    if chosen not in factors:
        return None
    at = 1 - factors.index(chosen)
    return ((other, at), (other,)) if graph.value((other, at)) is not None else None


def _only_products(graph: Graph, consumers: dict[str, list[Use]], chooser: onnx.NodeProto) -> bool:
    """Whether nothing reads what was quantized but products of integers, with their scales."""
    readers = [key for name in chooser.output for key, _ in consumers.get(name, ())]
    lines = [operators.of(graph.nodes[key]) for key in readers]
    return not set(chooser.output) & set(graph.outputs) and all(n.in_floats or n.arithmetic == "*" for n in lines)


def put_back(repaired: Graph, quantized: Graph) -> None:
    """Give products of integers, in place, what a repair has made of them in floats.

    Args:
        repaired: the network in floats, repaired.
        quantized: the cut network, edited.
    """
    for key, p in products(quantized).items():
        layer = repaired.nodes.get(key)
        if layer is None:
            continue
        inner = key
        if layer.op_type != p.kind:  # an Add of a bias has taken its name
            inner = repaired.producer.get(layer.input[0], "") if is_add(repaired, key) else ""
            if not inner or repaired.nodes[inner].op_type != p.kind:
                continue
        value = repaired.value((inner, 1))
        if value is not None and not same_bytes(value, p.held.value()):
            now = p.held.again(value)
            old = quantized.value(p.held.scales[0])
            assert old is not None
            quantized.set_constant(now.ints, now.integers)
            for scale in p.held.scales:
                quantized.set_constant(scale, now.scale.reshape(old.shape), exact=True)
            if now.zero is not None:
                quantized.set_constant(p.held.zeros[0], now.zero)
        bias = repaired.value((key, 1)) if inner != key else _bias(repaired, inner)
        if bias is not None and p.bias is not None and inner == key:
            quantized.set_constant(p.bias, bias.reshape(-1))
        elif bias is not None:
            _add(quantized, p, bias)


def _bias(repaired: Graph, key: str) -> np.ndarray | None:
    """The bias of a convolution, as it is added."""
    node = repaired.nodes[key]
    bias = repaired.value((key, 2)) if len(node.input) > 2 and node.input[2] else None
    kernel = repaired.value((key, 1))
    return bias if bias is None or kernel is None else bias.reshape(-1, *[1] * (kernel.ndim - 2))


def _add(graph: Graph, p: Product, bias: np.ndarray) -> None:
    """Add a bias behind the node that scales a product."""
    own = graph.own(p.last)
    own.output[0] = graph.fresh(f"{p.end}_unbiased")
    added = graph.add_constant(f"{p.end}_bias", bias)
    graph.insert_after(p.last, helper.make_node("Add", [own.output[0], added], [p.end]))
