"""What multiplies in a graph and how often, and what nobody can count.

The one place where multiply-accumulates are counted: `inspect`, `plan`, `apply` and `verify` ask here, of the original
and of the pruned network alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx

from onnxprune.graph import operators
from onnxprune.graph.facts import Operator
from onnxprune.graph.macs import OUT, Call, Part, Size, volume
from onnxprune.graph.model import Graph
from onnxprune.protobuf.nodes import DEFAULT_DOMAINS, node_key, subgraphs

Shapes = Mapping[str, Size]


@dataclass(frozen=True)
class Ran:
    """What only a run tells.

    Attributes:
        bodies: node key -> multiply-accumulates of the bodies that ran, as often as they did.
        sums: tensor name -> the sum of its values, for lengths of sequences.
    """

    bodies: Mapping[str, float] = field(default_factory=dict)
    sums: Mapping[str, float] = field(default_factory=dict)


NOTHING = Ran()


@dataclass(frozen=True)
class Work:
    """A node that multiplies.

    Attributes:
        key: the node.
        operator: its operator.
        parts: what it multiplies, and how many multiply-accumulates that is. No factors: a run told.
    """

    key: str
    operator: Operator
    parts: tuple[tuple[Part, float], ...]

    @property
    def macs(self) -> float:
        """Multiply-accumulates at the sizes that were looked at."""
        return sum((macs for _, macs in self.parts), start=0.0)


@dataclass(frozen=True)
class Uncounted:
    """A node whose multiply-accumulates are not known.

    Attributes:
        node: its key; inside of a body too.
        op: its operator, with the domain where that is not ONNX's own.
        why: in words.
    """

    node: str
    op: str
    why: str


def work(graph: Graph, shapes: Shapes, ran: Ran = NOTHING) -> list[Work]:
    """Every node that multiplies, in execution order.

    Args:
        graph: the network.
        shapes: tensor name -> sizes.
        ran: what a run at these sizes told (`Observed.ran`).
    """
    known = graph.once("work", shapes, lambda: (ran, _work(graph, shapes, ran)))
    return known[1] if known[0] == ran else _work(graph, shapes, ran)


def _work(graph: Graph, shapes: Shapes, ran: Ran) -> list[Work]:
    found = []
    for key, node in graph.nodes.items():
        line = operators.of(node)
        if key in ran.bodies:
            found.append(Work(key, line, (((), ran.bodies[key]),)))
        elif line.macs is not None and graph.constant(node.output[0]) is None:
            parts = _parts(graph, key, line, shapes, ran)
            if parts is not None:
                found.append(Work(key, line, parts))
    return found


def _parts(graph: Graph, key: str, line: Operator, shapes: Shapes, ran: Ran) -> tuple[tuple[Part, float], ...] | None:
    """What a node multiplies; None where a size or a value is not known."""
    node = graph.nodes[key]
    assert line.macs is not None

    def size(operand: int) -> Size | None:
        return size_of(graph, key, operand, shapes)

    def total(operand: int) -> float | None:
        value = graph.value((key, operand))
        return ran.sums.get(node.input[operand]) if value is None else float(value.sum())

    try:
        return tuple((part, volume(part, size, total)) for part in line.macs(Call(node, size)))
    except LookupError:
        return None


def size_of(graph: Graph, key: str, operand: int, shapes: Shapes) -> Size | None:
    """The size of an operand (its own, for constants) or of the output."""
    node = graph.nodes[key]
    if operand == OUT:
        return shapes.get(node.output[0])
    name = node.input[operand] if operand < len(node.input) else ""
    if name in graph.initializers and not graph.edited((key, operand)):
        return tuple(graph.initializers[name].dims)
    value = graph.value((key, operand))
    return value.shape if value is not None else shapes.get(name)


def uncounted(graph: Graph, shapes: Shapes, ran: Ran = NOTHING) -> tuple[Uncounted, ...]:
    """The nodes whose multiply-accumulates are not known, in execution order; arguments as for `work`."""
    known = {w.key for w in work(graph, shapes, ran)}
    found = []
    for key, node in graph.nodes.items():
        line = operators.of(node)
        if line.uncounted or line.bodies:
            if graph.constant(node_key(node)) is None:
                found += [Uncounted(node_key(n), named(n), operators.of(n).uncounted) for n in _unknown(node)]
        if line.macs is not None or works_inside(node):
            if key not in known and graph.constant(key) is None:
                found.append(Uncounted(key, named(node), "its sizes are not known"))
    return tuple(found)


def named(node: onnx.NodeProto) -> str:
    """A node's operator, with its domain where that is not ONNX's own."""
    return node.op_type if node.domain in DEFAULT_DOMAINS else f"{node.domain}.{node.op_type}"


def _unknown(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The node, and those in its bodies, that nobody can count."""
    if operators.of(node).uncounted:
        yield node
        return
    for body in subgraphs(node):
        for inner in body.node:
            yield from _unknown(inner)


def works_inside(node: onnx.NodeProto) -> bool:
    """Whether something multiplies in a node's bodies."""
    if not operators.of(node).bodies:
        return False
    return any(operators.of(n).macs is not None or works_inside(n) for body in subgraphs(node) for n in body.node)
