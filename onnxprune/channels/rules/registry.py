"""What rules are written with: the walk, the table of rules, and how the rule of a node is found and run.

A rule gets the walk, and the ids (or `Param`) of every operand, and returns the ids of its outputs. It says
only what is *the same*, what must stay *whole* and why; it computes nothing. It is entered for operators, by name, or
for a whole family of the table of operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from onnxprune.channels.ties import WRITES, Ids, Param, Ties
from onnxprune.errors import one_line
from onnxprune.graph import evaluate, operators
from onnxprune.graph.facts import Facts, Operator
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import Observed
from onnxprune.protobuf.nodes import attr, captured, node_key

Value = Ids | Param | None
Rule = Callable[..., Any]
UNDO = {operators.BLOCKED: "ORT_ENABLE_EXTENDED (its layouts are of one machine)"}
"""Domain -> up to which level ONNX Runtime optimises without operators of it."""
UNFOLLOWED = "{} runs a body, into which channels are not followed"
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
    """What a rule may ask: the node, sizes, constants, and the ties.

    Attributes:
        flow: the ids of every activation so far.
        made: quantized constants, seen through DequantizeLinear.
        constants: the constants that were read.
        outer: the node of the outermost graph in whose body the walk goes; "" for that graph itself.
    """

    def __init__(self, graph: Graph, observed: Observed, ties: Ties, prune_statistics: bool = False, outer: str = ""):
        self.graph, self.observed, self.ties = graph, observed, ties
        self.prune_statistics = prune_statistics
        self.flow: dict[str, Ids] = {}
        self.made: dict[str, Param] = {}
        self.constants: list[Param] = []
        self.outer = outer
        self.node = onnx.NodeProto()
        self.key = ""

    def at(self, node: onnx.NodeProto) -> None:
        self.node, self.key = node, node_key(node)
        self.ties.where, self.ties.tensor = self.outer or self.key, self.key

    def operand(self, i: int, name: str) -> Value:
        """What a rule gets for one input: ids, a constant, or None."""
        if not name:
            return None
        if name in self.flow:
            return self.flow[name]
        if name in self.made:
            if not operators.of(self.node).quantizer:
                self.made[name].seen.append((self.key, i))
            return self.made[name]
        if (constant := self.graph.constant(name)) is not None:
            self.constants.append(Param(self.ties, (self.key, i), constant.shape))
            return self.constants[-1]
        # an opaque constant (sparse), or a name from an outer scope
        return self.ties.dead_end(len(self.observed.shapes.get(name, ())), "not a plain tensor")

    def heard(self, values: Sequence[Value], results: Sequence[Ids | Param]) -> None:
        """Told what went into a rule, and what came out of it."""

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

    def read_by(self, name: str, op: str) -> bool:
        """Whether nothing but one kind of operator reads a tensor."""
        readers = [self.graph.nodes[key].op_type for key, _ in self.graph.consumers().get(name, ())]
        return name not in self.graph.outputs and name not in self.graph.captured() and {*readers} <= {op}

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
    node, line = walk.node, operators.of(walk.node)
    how, why = rule_of(line), _unruled(walk, line, values)
    constant = not line.takes_constants and not line.bodies and bool(values) and isinstance(values[0], Param)
    result = None if how is None or why or constant else how(walk, *values)
    if result is None:  # bodies into which channels cannot be followed, too
        why = why or (f"{node.op_type} of a constant" if constant else UNFOLLOWED.format(node.op_type))
        _keep_captured(walk)
        pin_all(walk, why, *values)
        return [walk.dead(i, why) for i in range(len(node.output))]
    results = list(result) if isinstance(result, (tuple, list)) else [result]
    for i in range(len(results), len(node.output)):
        results.append(walk.dead(i))
    return results


def _unruled(walk: Walk, line: Operator, values: Sequence[Value]) -> str:
    """Why no rule can be asked; "" where one can."""
    node = walk.node
    if rule_of(line) is None:
        if line.bodies:
            return UNFOLLOWED.format(node.op_type)
        microsoft = node.domain.startswith(operators.MICROSOFT)
        return _optimised(node) if microsoft else f"{node.op_type} is not known to onnxprune"
    known = walk.observed.shapes
    read = [name for name, v in zip(node.input, values, strict=True) if isinstance(v, np.ndarray)]
    if not all(name in known for name in (*read, *filter(None, node.output))):
        return UNFOLLOWED.format(node.op_type) if line.bodies else f"sizes of {node.op_type} are not known"
    return f"{node.op_type} works on an empty tensor" if any(0 in known[name] for name in read) else ""


def _keep_captured(walk: Walk) -> None:
    """Pin what the bodies of the walk's node read from outside."""
    why, tensor = f"read inside the body of {walk.key} ({walk.node.op_type})", walk.ties.tensor
    for name in sorted(captured(walk.node)):
        walk.ties.tensor = name
        keep_whole(walk.ties, why, walk.flow.get(name, walk.made.get(name)))
    walk.ties.tensor = tensor


def walk_nodes(walk: Walk) -> None:
    """Carry ids through the graph, node by node, from the inputs in `walk.flow`."""
    for node in walk.graph.nodes.values():
        if all(walk.graph.constant(o) is not None for o in node.output if o):
            continue  # folded
        walk.at(node)
        values = [walk.operand(i, name) for i, name in enumerate(node.input)]
        results = apply(walk, values)
        walk.heard(values, results)
        for name, value in zip(node.output, results, strict=True):
            if isinstance(value, Param):
                walk.made[name] = value
            elif name:
                walk.flow[name] = value


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
