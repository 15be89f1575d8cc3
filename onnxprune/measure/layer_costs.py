"""What each layer of a network costs by itself, which operators there are, and what a run holds at once.

A layer is here whatever multiplies or has parameters of its own. Sizes are those of the run that was looked at.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from onnxprune.graph.model import Graph
from onnxprune.graph.work import NOTHING, Ran, named, work
from onnxprune.measure.cost import parameters
from onnxprune.protobuf.nodes import captured, inferred_types, read_by, stored_tensors
from onnxprune.protobuf.serialize import nbytes

VIEWS = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"))
"""What hands on the memory that it reads."""
FLOAT_BYTES = 4
"""Of a number whose type nobody states."""


@dataclass(frozen=True)
class Layer:
    """A layer, and what it costs.

    Attributes:
        node: its key, the name of its first output.
        title: the node's name in the file; empty where it has none.
        op: the operator, with its domain where that is not ONNX's own.
        reads, writes: sizes of its first operand and output; empty where they are not known.
        weight: sizes of the largest constant that it reads.
        macs: multiply-accumulates.
        params, bytes: of the constants that it reads, also of those that others read too.
    """

    node: str
    title: str
    op: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    weight: tuple[int, ...]
    macs: float
    params: int
    bytes: int


@dataclass(frozen=True)
class Activations:
    """The most that activations take at once.

    Attributes:
        bytes: of all that are still to be read, each in its own memory, but for views; inputs and outputs stay.
        node: key of the node that runs then; empty where nothing runs.
    """

    bytes: int
    node: str


def layers(graph: Graph, shapes: Mapping[str, tuple[int, ...]], ran: Ran = NOTHING) -> tuple[Layer, ...]:
    """Every layer, in the order of the file.

    Args:
        graph: the network, without edits.
        shapes: tensor name -> sizes in the run that was looked at.
        ran: what else that run told.
    """
    macs = {done.key: done.macs for done in work(graph, shapes, ran)}
    found = []
    for key, held in constants(graph).items():
        node = graph.nodes[key]
        params = sum(map(parameters, held.values()))
        if key not in macs and not params:
            continue
        largest = max(held.values(), key=lambda t: math.prod(t.dims), default=onnx.TensorProto())
        found.append(
            Layer(
                key, node.name, named(node),
                tuple(shapes.get(node.input[0], ())) if node.input else (), tuple(shapes.get(key, ())),
                tuple(largest.dims), macs.get(key, 0.0), params, sum(map(stored_bytes, held.values())),
            )
        )  # fmt: skip
    return tuple(found)


def constants(graph: Graph) -> dict[str, dict[str, onnx.TensorProto]]:
    """Key of a node that runs -> the stored constants that it reads, by name, through whatever unpacks them."""
    stored = dict(stored_tensors(graph.model.graph))
    behind: dict[str, dict[str, onnx.TensorProto]] = {name: {name: t} for name, t in stored.items()}
    runs = set(graph.inputs)
    found = {}
    for key, node in graph.nodes.items():
        if key in stored:  # of a `Constant`
            continue
        names = list(read_by(node))
        held = {k: t for name in names for k, t in behind.get(name, {}).items()}
        if not runs.isdisjoint(names) or not (names or node.op_type == "Constant"):
            runs.update(node.output)
            found[key] = held
        else:
            behind |= dict.fromkeys(filter(None, node.output), held)
    return found


def operators(graph: Graph) -> dict[str, int]:
    """Operator -> how many nodes of it there are, the commonest first; those of bodies are not looked into."""
    count = Counter(named(node) for node in graph.nodes.values())
    return dict(sorted(count.items(), key=lambda item: (-item[1], item[0])))


def activations(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> Activations:
    """The most that activations take at once where nodes run one by one, in the order of the file.

    A runtime needs more for what it computes with, and less where it writes over what it reads.

    Args:
        graph: the network, without edits.
        shapes: tensor name -> sizes in the run that was looked at.
    """
    types = graph.once("types", graph, lambda: inferred_types(graph.model))
    order = list(constants(graph))
    home = {name: name for name in graph.inputs}
    last: dict[str, int] = {}
    for k, key in enumerate(order):
        node = graph.nodes[key]
        for name in filter(None, node.output):
            view = node.op_type in VIEWS and node.input[0] in home
            home[name] = home[node.input[0]] if view else name
        for name in (*node.input, *captured(node), *node.output):
            if name in home:
                last[home[name]] = k
    last |= {home[name]: len(order) for name in (*graph.inputs, *graph.outputs) if name in home}

    def size(name: str) -> int:
        wide = types[name].itemsize if name in types else FLOAT_BYTES
        return math.prod(shapes[name]) * wide if name in shapes else 0

    live = sum(map(size, graph.inputs))
    most = Activations(live, "")
    ending: dict[int, list[str]] = {}
    for name, k in last.items():
        ending.setdefault(k, []).append(name)
    for k, key in enumerate(order):
        live += sum(size(name) for name in graph.nodes[key].output if name and home[name] == name)
        if live > most.bytes:
            most = Activations(live, key)
        live -= sum(map(size, ending.get(k, ())))
    return most


def stored_bytes(tensor: onnx.TensorProto) -> int:
    """What a constant takes in the file; text counts as nothing."""
    return 0 if tensor.data_type == onnx.TensorProto.STRING else nbytes(tensor)
