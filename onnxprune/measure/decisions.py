"""Nodes that decide: their outputs jump where what they read moves by the last bit (TopK, NonMaxSuppression, >).

Rounding in the layers before may turn such a decision over, and by luck it may not. One run of a detector takes
seconds, what follows its layers next to nothing: `Tail` runs that part alone, with the rounding that two models were
seen to differ by, larger and with other signs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx
from onnx import helper

from onnxprune.graph import operators
from onnxprune.graph.layers import has_layers
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import depends_on_sizes
from onnxprune.protobuf.nodes import captured, node_key
from onnxprune.runtime import sessions
from onnxprune.runtime.weights import add_external_weights

AMPLE = 3.0
"""Rounding is enlarged by this much when it is played through again."""
DRAWS = 4

Values = Mapping[str, np.ndarray]


def picks(model: onnx.ModelProto) -> bool:
    """Whether anything is picked by order, so that a cut model may rightly differ."""
    return any(operators.of(n).orders for n in model.graph.node)


def ordering(graph: Graph, keys: Iterable[str]) -> list[str]:
    """Those of the nodes that pick by order: what follows them is not comparable. The others move single values."""
    return [key for key in keys if operators.of(graph.nodes[key]).orders]


def picked_from(graph: Graph) -> tuple[list[str], set[str]]:
    """The tensors from which something is picked in an order of its own, as far as they follow no other pick, and all
    that follows such picks: which boxes a detector picks, and in which order, hangs on the last bit. What is picked
    from is what the order is made by, and where no layer follows, all else that what was picked is taken from."""
    picks = [n for n in graph.nodes.values() if operators.of(n).rearranges]
    first = {o for n in picks for o in n.output if o}
    behind = first | _following(graph, first)
    read = [i for n in picks for i in n.input]
    after = [n for n in graph.nodes.values() if not behind.isdisjoint(n.output)]
    if not any(map(has_layers, after)):
        sizes = depends_on_sizes(graph)
        read += [i for n in after for i in (*n.input, *captured(n)) if i not in sizes]
    fixed = {*graph.inputs, *graph.outputs, *behind, ""}
    return [i for i in dict.fromkeys(read) if i not in fixed and graph.constant(i) is None], behind


def comparable(graph: Graph) -> tuple[list[str], set[str]]:
    """The outputs and what is picked from, and those outputs that what is picked from stands for: they follow a pick,
    and no layer lies between."""
    read, behind = picked_from(graph)
    apart = any(has_layers(n) for n in graph.nodes.values() if not behind.isdisjoint(n.output))
    return [*graph.outputs, *read], set() if apart or not read else behind & set(graph.outputs)


def deciding(graph: Graph) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that may decide, and the tensors that they read."""
    nodes = [n for n in graph.nodes.values() if operators.of(n).decides and not _constant(graph, n)]
    return nodes, {i for n in nodes for i in n.input if i and graph.constant(i) is None and i not in graph.inputs}


def _constant(graph: Graph, node: onnx.NodeProto) -> bool:
    return all(graph.constant(i) is not None for i in node.input if i)


class Tail:
    """What follows the first tensors that decisions are made from.

    Attributes:
        basis: those tensors, of any type.
        reads: whose values are needed to run it, inputs of the model left out; the basis among them.
        outputs: outputs of the model that it makes.
        decisions: keys of all nodes that decide.
        picked: outputs that depend on what was picked by order.
        short: whether it can be run alone, and takes next to no time.
    """

    def __init__(self, graph: Graph):
        self._source = graph.model
        nodes, read = deciding(graph)
        sizes = depends_on_sizes(graph)
        nodes = [n for n in nodes if sizes.isdisjoint(n.output)]
        self.decisions = tuple(map(node_key, nodes))
        orders = {o for n in nodes if operators.of(n).orders for o in n.output if o}
        self.picked = (_following(graph, orders) | orders) & set(graph.outputs)
        behind = _following(graph, {o for n in nodes for o in n.output if o})
        first = {i for n in nodes for i in n.input if i in read} - behind - sizes
        made = _following(graph, first)
        self._body = [n for n in graph.nodes.values() if not made.isdisjoint(n.output)]
        self.basis = sorted(first - made)
        outside = self._read() - made
        self._constants = {i: v for i in outside if (v := graph.constant(i)) is not None}
        self.reads = sorted((outside | set(self.basis)) - self._constants.keys() - set(graph.inputs))
        self.outputs = [o for o in graph.outputs if o in made]
        self.short = bool(self.outputs) and not any(map(has_layers, self._body))

    def stirred(self, feeds: Values, values: Values, other: Values) -> Iterator[dict[str, np.ndarray]]:
        """The outputs of the original, its basis moved by enlarged rounding; nothing where there is none.

        Args:
            feeds: of the model.
            values: of `reads`, in the original.
            other: of the basis, in the other model.
        """
        noise = {}
        for name in self.basis:
            value = values[name]
            if value.dtype.kind == "f":
                with np.errstate(invalid="ignore"):
                    noise[name] = np.nan_to_num(other[name] - value, posinf=0.0, neginf=0.0)
        if not any(n.any() for n in noise.values()):
            return
        read = self._read()
        inputs = {k: values[k] for k in self.reads} | {k: v for k, v in feeds.items() if k in read}
        session = self._session(inputs)
        rng = np.random.default_rng(0)
        for _ in range(DRAWS):
            moved = {
                k: (inputs[k] + AMPLE * rng.choice((-1, 1), n.shape) * n).astype(n.dtype) for k, n in noise.items()
            }
            yield dict(zip(self.outputs, session.run({**inputs, **moved}), strict=True))

    def _read(self) -> set[str]:
        return {i for n in self._body for i in (*n.input, *captured(n)) if i}

    def _session(self, inputs: Values) -> sessions.Session:
        source = self._source
        ports = [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in inputs.items()
        ]
        results = [helper.make_empty_tensor_value_info(o) for o in self.outputs]
        body = helper.make_graph(self._body, "tail", ports, results)
        model = helper.make_model(body, opset_imports=source.opset_import, ir_version=source.ir_version)
        model.functions.extend(source.functions)
        beside = add_external_weights(model, self._constants)
        return sessions.open_session(model, optimise=False, name="masked original", weights=beside, feed=True)


def _following(graph: Graph, names: set[str]) -> set[str]:
    """Tensors that depend on some of the tensors `names`."""
    found: set[str] = set()
    for node in graph.nodes.values():
        read = {*node.input, *captured(node)}
        if not names.isdisjoint(read) or not found.isdisjoint(read):
            found.update(o for o in node.output if o)
    return found
