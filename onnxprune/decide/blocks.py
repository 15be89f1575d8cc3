"""Which blocks may go whole: residual branches that map a shape to itself.

A block is everything between a tensor `s` and an Add of `s` and a branch that depends on `s` alone: a basic,
bottleneck or inverted residual block, attention or a gated branch, whatever the operators are. Without the block
the Add hands on `s`. Found from the graph alone; whether one *should* go is a question of its damage, which
`decide.allocation` weighs against its cost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from onnxprune.errors import UsageError
from onnxprune.graph.model import Graph, captured

LONGEST = 400
"""Nodes that a branch may have."""


@dataclass(frozen=True)
class Block:
    """A residual branch.

    Attributes:
        add: key of the Add behind it; the block goes by this name.
        branch: which of the Add's operands the branch makes.
        shortcut: the tensor that is left when the branch goes.
        nodes: keys of all nodes inside, the Add too, in execution order.
        shape: sizes of what it maps to itself.
    """

    add: str
    branch: int
    shortcut: str
    nodes: tuple[str, ...]
    shape: tuple[int, ...]

    def named(self, pattern: str) -> bool:
        """Whether any of its nodes goes by a name that matches."""
        return any(re.search(pattern, key) for key in self.nodes)


def find_blocks(graph: Graph, shapes: Mapping[str, tuple[int, ...]], keep: str | None = None) -> tuple[Block, ...]:
    """Every residual block, in execution order.

    Args:
        graph: the network.
        shapes: sizes of its tensors.
        keep: blocks with a node whose name matches this regular expression stay.

    Raises:
        UsageError: `keep` is no regular expression.
    """
    order = {key: k for k, key in enumerate(graph.nodes)}
    consumers, inner = graph.consumers(), graph.captured()
    found = []
    for key, node in graph.nodes.items():
        if node.op_type != "Add" or graph.constant(node.output[0]) is not None or len(set(node.input)) < 2:
            continue
        sizes = [shapes.get(i) for i in node.input]
        if sizes[0] is None or sizes[0] != sizes[1] or len(sizes[0]) < 2:
            continue
        for branch in (0, 1):
            nodes = _branch(graph, key, node.input[branch], node.input[1 - branch], order, consumers, inner)
            if nodes:
                found.append(Block(key, branch, node.input[1 - branch], (*nodes, key), sizes[0]))
                break
    if keep is None:
        return tuple(found)
    try:
        re.compile(keep)
    except re.error as error:
        raise UsageError(f"{keep!r} is not a regular expression: {error} - see --keep-block") from error
    return tuple(b for b in found if not b.named(keep))


def _branch(
    graph: Graph,
    add: str,
    end: str,
    start: str,
    order: Mapping[str, int],
    consumers: Mapping[str, list[tuple[str, int]]],
    inner: Mapping[str, str],
) -> list[str]:
    """The nodes that make `end` out of `start` alone and serve nothing else; none where there are others."""
    if graph.constant(start) is not None or end in graph.inputs:
        return []
    earliest = order.get(graph.producer.get(start, ""), -1)
    inside: set[str] = set()
    stack, reached = [end], False
    while stack:
        name = stack.pop()
        if name == start:
            reached = True
            continue
        key = graph.producer.get(name)
        if key in inside or graph.constant(name) is not None:
            continue
        if key is None or order[key] <= earliest or len(inside) >= LONGEST or captured(graph.nodes[key]):
            return []
        inside.add(key)
        stack += [i for i in graph.nodes[key].input if i]
    made = {o for key in inside for o in graph.nodes[key].output if o}
    outside = any(reader not in inside and reader != add for o in made for reader, _ in consumers.get(o, ()))
    if not reached or outside or made & (set(graph.outputs) | set(inner)):
        return []
    return sorted(inside, key=order.__getitem__)
