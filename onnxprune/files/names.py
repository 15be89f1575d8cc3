"""Names: every one defined once and before it is read; nodes out of order are put in order."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import NoReturn

from onnx import GraphProto, NodeProto

from onnxprune.files.refuse import refuse
from onnxprune.files.walk import called
from onnxprune.protobuf.nodes import titled


def check_names(
    graph: GraphProto, label: str, orders: list[tuple[GraphProto, list[int]]], *, top: bool = False
) -> dict[str, NodeProto | None]:
    """Every name defined once and before it is read, here and in the subgraphs.

    Args:
        graph: the graph; recursion is as deep as its subgraphs, which `walk_model` has capped.
        label: what messages call the model.
        orders: receives (graph, node indices) for each graph whose nodes must be sorted.
        top: whether this is the outermost graph, where no name can come from outside.

    Returns:
        The names taken from outer graphs, each with the node that reads it; None where an output takes it.
    """
    if not isinstance(graph.name, str):
        refuse(label, f"the graph's name {graph.name!r} is not UTF-8 text; export the model again")
    given = _given(graph, label)
    nodes = list(graph.node)
    maker: dict[str, int] = {}  # output → index of its node
    reads: list[list[str]] = []
    for index, node in enumerate(nodes):
        if not all(isinstance(text, str) for text in (node.name, *called(node), *node.input)):
            refuse(label, f"{titled(node)} has a name that is not UTF-8 text; export the model again")
        for name in filter(None, node.output):
            if name in maker or name in given:
                other = titled(nodes[maker[name]]) if name in maker else "an input or initializer"
                refuse(label, f"output {name!r} of {titled(node)} is also made by {other}; rename one")
            maker[name] = index
        reads.append(_read_by(node, label, orders))
    # protobuf hands over text that is not UTF-8 as bytes
    odd = next((name for name in (*given, *maker) if not isinstance(name, str)), None)
    if odd is not None:
        refuse(label, f"the name {odd!r} is not UTF-8 text; export the model again")
    outer = _from_outside(graph, reads, given, maker)
    if top and outer:
        _refuse_unmade(*next(iter(outer.items())), label)
    if not _in_order(nodes, reads, maker):
        orders.append((graph, _sorted(nodes, reads, maker, label)))
    return outer


def _given(graph: GraphProto, label: str) -> set[str]:
    """The names of inputs and initializers, each of which stands once among its kind."""
    given: set[str] = set()
    for port in graph.input:
        if port.name in given:
            refuse(label, f"input {port.name!r} is declared twice; rename one")
        given.add(port.name)
    stored: set[str] = set()
    for name in [t.name for t in graph.initializer] + [s.values.name for s in graph.sparse_initializer]:
        if not name:
            refuse(label, "an initializer has no name; export the model again")
        if name in stored:
            refuse(label, f"initializer {name!r} is stored twice; remove one")
        stored.add(name)
    return given | stored


def _read_by(node: NodeProto, label: str, orders: list[tuple[GraphProto, list[int]]]) -> list[str]:
    """What a node reads, and what its bodies take from outside."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        bodies = [attribute.g] if attribute.HasField("g") else []
        for body in bodies or attribute.graphs:
            names += check_names(body, label, orders)
    return names


def _from_outside(
    graph: GraphProto, reads: list[list[str]], given: set[str], maker: Mapping[str, int]
) -> dict[str, NodeProto | None]:
    """The names that nothing here makes, each with its first reader; None where that is an output of the graph."""
    outer: dict[str, NodeProto | None] = {}
    for node, names in zip(graph.node, reads, strict=True):
        for name in names:
            if name not in given and name not in maker:
                outer.setdefault(name, node)
    for port in graph.output:
        if port.name not in given and port.name not in maker:
            outer.setdefault(port.name, None)
    return outer


def _refuse_unmade(name: str, reader: NodeProto | None, label: str) -> NoReturn:
    if reader is None:
        refuse(label, f"output {name!r} is made by no node; the model is incomplete, export it again")
    refuse(
        label,
        f"{titled(reader)} reads {name!r}, which no node, input or initializer defines"
        "; the model is incomplete, export it again",
    )


def _in_order(nodes: list[NodeProto], reads: list[list[str]], maker: Mapping[str, int]) -> bool:
    """Whether every node stands behind the nodes that make what it reads."""
    return all(maker.get(name, -1) < index for index, names in enumerate(reads) for name in names)


def _sorted(nodes: list[NodeProto], reads: list[list[str]], maker: dict[str, int], label: str) -> list[int]:
    """Node indices in topological order, always the lowest index that may go next (Kahn's algorithm)."""
    waits = [{maker[name] for name in names if name in maker} for names in reads]
    frees: list[list[int]] = [[] for _ in nodes]
    for index, needed in enumerate(waits):
        for other in needed:
            frees[other].append(index)
    missing = [len(needed) for needed in waits]
    ready = [index for index, count in enumerate(missing) if not count]  # ascending: already a heap
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for other in frees[index]:
            missing[other] -= 1
            if not missing[other]:
                heapq.heappush(ready, other)
    if len(order) < len(nodes):
        placed = set(order)
        at = next(index for index in range(len(nodes)) if index not in placed)
        seen: dict[int, int] = {}  # in order
        while at not in seen:  # a node that cannot go waits for another such node: follow until it repeats
            seen[at] = len(seen)
            at = min(waits[at] - placed)
        around = list(seen)[seen[at] :]
        names = ", ".join(titled(nodes[i]) for i in around[:3]) + (", …" if len(around) > 3 else "")
        refuse(label, f"the graph has a cycle through {names}; export the model again")
    return order


def reorder(graph: GraphProto, order: list[int]) -> None:
    """Put the nodes in this order, in place."""
    shelf = GraphProto()
    shelf.node.extend([graph.node[index] for index in order])
    del graph.node[:]
    graph.node.extend(shelf.node)
