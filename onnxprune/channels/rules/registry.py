"""What rules are written with: the walk, the table of rules, and how the rule of a node is found and run.

A rule gets the walk, and the ids (or `Param`) of every operand, and returns the ids of its outputs. It says
only what is *the same*, what must stay *whole* and why; it computes nothing. It is entered for operators, by name, or
for a whole family of the table of operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from onnxprune.channels.ties import WRITES, Ids, Param, Ties
from onnxprune.errors import one_line
from onnxprune.graph import evaluate, operators
from onnxprune.graph.facts import Facts, Operator
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import Observed
from onnxprune.protobuf.nodes import attr, node_key

Value = Ids | Param | None
Rule = Callable[..., Any]
UNDO = {operators.BLOCKED: "ORT_ENABLE_EXTENDED (its layouts are of one machine)"}
"""Domain -> up to which level ONNX Runtime optimises without operators of it."""
RULES: dict[tuple[str, str], Rule] = {}
"""(domain, operator) -> its rule."""
FAMILIES: dict[str, Rule] = {}
"""Family of operators -> their rule, for those that have none of their own."""


def rule(*of: str | Facts, domain: str = "") -> Callable[[Rule], Rule]:
    """Enter a rule for one or more operators, or for a family of them (`operators.UNARY`).

    Raises:
        LookupError: an operator without a line in the table of operators.
    """

    def enter(function: Rule) -> Rule:
        for name in of:
            if not isinstance(name, str):
                FAMILIES[name["family"]] = function
            elif operators.named(name, domain) is operators.UNKNOWN:
                raise LookupError(f"{name} has a rule, but no line in graph/operators.py")
            else:
                RULES[domain, name] = function
        return function

    return enter


def rule_of(line: Operator) -> Rule | None:
    """The rule of an operator; None: it is not known what it does to channels."""
    return RULES.get((line.domain, line.name)) or FAMILIES.get(line.family)


class Walk:
    """What a rule may ask: the node, sizes, constants, and the ties."""

    def __init__(self, graph: Graph, observed: Observed, ties: Ties, prune_statistics: bool = False):
        self.graph, self.observed, self.ties = graph, observed, ties
        self.prune_statistics = prune_statistics
        self.node = onnx.NodeProto()
        self.key = ""

    def at(self, node: onnx.NodeProto) -> None:
        self.node, self.key = node, node_key(node)
        self.ties.where, self.ties.tensor = self.key, self.key

    def attr(self, name: str, default: Any = None) -> Any:
        return attr(self.node, name, default)

    def dims(self, i: int) -> tuple[int, ...]:
        """Sizes of input i."""
        return self.observed.shapes[self.node.input[i]]

    def out(self, i: int = 0) -> tuple[int, ...]:
        """Sizes of output i."""
        return self.observed.shapes[self.node.output[i]]

    def value(self, i: int) -> np.ndarray | None:
        """The value of input i if it is constant or follows from sizes."""
        if i >= len(self.node.input) or not self.node.input[i]:
            return None
        name = self.node.input[i]
        return self.observed.derived.get(name, self.graph.constant(name))

    def axes(self, i: int = 1, default: Any = None) -> list[int]:
        """Axes given as input i or as the attribute `axes`."""
        given = self.value(i)
        return evaluate.axes_of({"axes": self.attr("axes")} if self.attr("axes") else {}, given, default)

    def fixed(self, ids: Ids, text: str) -> Ids:
        """Pin all ids of a tensor."""
        self.ties.pin(ids, text)
        return ids

    def dead(self, i: int = 0, text: str | None = None) -> Ids:
        """Ids of output i with nothing to cut in it."""
        rank = len(self.observed.shapes.get(self.node.output[i], ()))
        return self.ties.dead_end(rank, text or f"{self.node.op_type} makes an axis that cannot be cut")

    def channels(self, x: Ids, axis: int, i: int = 0) -> Ids:
        """The ids of one axis of input i, (length,), all others kept whole."""
        self.ties.tensor = self.node.input[i]
        length = self.dims(i)[axis]
        return self.ties.along(
            x, axis, length, f"{self.node.op_type} works across this axis, which is not its channel axis"
        )

    def statistics(self) -> bool:
        """Whether the node's statistics over channels may change; notes that they do."""
        if self.prune_statistics:
            self.ties.inexact.append(self.key)
        return self.prune_statistics

    def place(self, ids: Ids, axis: int, rank: int) -> Ids:
        """A tensor of the given rank whose `axis` carries `ids`."""
        shape = [1] * rank
        shape[axis] = -1
        return ids.reshape(shape)


def apply(walk: Walk, values: list[Value]) -> list[Ids | Param]:
    """Run the rule of the walk's node; without one, pin."""
    node, op, line = walk.node, walk.node.op_type, operators.of(walk.node)
    how = rule_of(line)
    sized = all(o in walk.observed.shapes for o in node.output if o)
    if how is None or not sized:
        why = f"{op} is not known to onnxprune" if how is None else f"sizes of {op} are not known"
        if how is None and node.domain.startswith(operators.MICROSOFT):
            why = _optimised(node)
        if line.bodies:
            why = f"{op} runs a body, into which channels are not followed"
        pin_all(walk, why, *values)
        return [walk.dead(i, why) for i in range(len(node.output))]
    if values and isinstance(values[0], Param) and not line.takes_constants:
        pin_all(walk, f"{op} of a constant", *values)
        return [walk.dead(i, f"{op} of a constant") for i in range(len(node.output))]
    result = how(walk, *values)
    results = list(result) if isinstance(result, (tuple, list)) else [result]
    for i in range(len(results), len(node.output)):
        results.append(walk.dead(i))
    return results


def _optimised(node: onnx.NodeProto) -> str:
    """Why channels stay at an operator of ONNX Runtime's own that has no rule, and what undoes it."""
    op, undo = node.op_type, UNDO.get(node.domain, "ORT_ENABLE_BASIC")
    why = f"{op} of {node.domain} is not known to onnxprune; if ONNX Runtime's optimiser wrote it, give the"
    return f"{why} model as it was before, or saved with graph_optimization_level {undo}"


def written_by_optimiser(graph: Graph) -> list[str]:
    """A line for every operator of ONNX Runtime's own that has no rule: one of its nodes, why channels stay, and what
    undoes it."""
    found: dict[tuple[str, str], list[str]] = {}
    for key, node in graph.nodes.items():
        if node.domain.startswith(operators.MICROSOFT) and rule_of(operators.of(node)) is None:
            found.setdefault((node.domain, node.op_type), []).append(key)
    lines = []
    for keys in found.values():
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        lines.append(one_line(f"node {keys[0]!r}{more}: {_optimised(graph.nodes[keys[0]])}"))
    return lines


def keep_whole(ties: Ties, why: str, *values: Value) -> None:
    """Pin ids, and every axis of a weight."""
    for v in values:
        if isinstance(v, np.ndarray):
            ties.pin(v, why)
        elif isinstance(v, Param) and len(v.shape) > 1:
            for axis in range(len(v.shape)):
                ties.pin(v.axis(axis, WRITES), why, axis)


def pin_all(walk: Walk, why: str, *values: Value) -> None:
    keep_whole(walk.ties, why, *values)
