"""Take whole blocks out of a network: the Add behind a branch hands its other operand on.

In between, the Add becomes an Identity of the same name, so that every tensor of the pruned network that a repair
looks for is still there; `bypass` takes these out at the end.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnxprune.graph import operators
from onnxprune.graph.layers import hand_on
from onnxprune.graph.model import Graph
from onnxprune.plan import DropBlock


def drop_blocks(graph: Graph, drops: Iterable[DropBlock]) -> Graph:
    """The graph, edited: those branches, and what only they needed, are gone.

    An Add that is not there has gone with a group that kept no channel: whether the original has one was asked before.
    """
    graph.settle()
    for drop in drops:
        if drop.block not in graph.nodes:
            continue
        hand_on(graph, drop.block, graph.nodes[drop.block].input[1 - drop.branch])
    return graph.settle()


def bypass(graph: Graph, drops: Iterable[DropBlock]) -> Graph:
    """The graph, edited: without the Identities that `drop_blocks` left; those that make an output stay."""
    graph.settle()
    stays = set(graph.outputs) | set(graph.captured())
    consumers = graph.consumers()
    instead: dict[str, str] = {}
    for drop in drops:
        node = graph.nodes.get(drop.block)
        if node is not None and operators.of(node).hands_on and node.output[0] not in stays:
            instead[node.output[0]] = node.input[0]
    for gone in instead:
        source = instead[gone]
        while source in instead:
            source = instead[source]
        for key, i in consumers.get(gone, ()):
            graph.own(key).input[i] = source
    for gone in instead:
        graph.drop(graph.producer[gone])
    return graph.settle()
