"""Branches that are known to be taken, put in the place of the `If` that would choose them.

Exporters write an `If` where a network looks at a size (a Squeeze of an axis that may have another length than 1).
Where sizes alone decide, the network is the one with that branch, and nothing in it is behind an `If`. Knows protobuf
and no channel; whether other sizes decide otherwise is not looked at here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx

from onnxprune.graph import operators
from onnxprune.graph.model import Graph, all_names
from onnxprune.graph.shapes import Observed
from onnxprune.protobuf.nodes import node_key, subgraphs
from onnxprune.protobuf.serialize import copied, copy_all_but

NAMES = {True: "then_branch", False: "else_branch"}


def chosen(graph: Graph, observed: Observed) -> dict[str, bool]:
    """Key of an `If` -> what it decides, for those of the outermost graph that constants and sizes decide."""
    found = {}
    for key, node in graph.nodes.items():
        if operators.of(node).branches:
            value = observed.derived.get(node.input[0], graph.constant(node.input[0]))
            if value is not None and value.size == 1:
                found[key] = bool(value.reshape(-1)[0])
    return found


def with_branches(model: onnx.ModelProto, taken: Mapping[str, bool]) -> onnx.ModelProto:
    """The model with the branch that each of these `If` nodes takes in its place; the model itself is left as it is."""
    result = onnx.ModelProto()
    copy_all_but(model, result, "graph")
    copy_all_but(model.graph, result.graph, "node")
    reserved, defined = all_names(model.graph), _definitions(model.graph)
    for node in model.graph.node:
        if node_key(node) not in taken:
            result.graph.node.append(node)
            continue
        name = NAMES[taken[node_key(node)]]
        body = next(a.g for a in copied(node).attribute if a.name == name)
        rename(body, _new_names(body, list(node.output), defined, reserved))
        _place(body, node, result)
    return result


def _definitions(graph: onnx.GraphProto) -> Counter[str]:
    """Name -> how many graphs and bodies give it to something."""
    found: Counter[str] = Counter()
    stack = [graph]
    while stack:
        body = stack.pop()
        found.update({i.name for i in body.input} | set(_made(body)))
        for node in body.node:
            stack.extend(subgraphs(node))
    return found


def _made(body: onnx.GraphProto) -> list[str]:
    """What a graph holds or computes."""
    tensors = [*(t.name for t in body.initializer), *(t.values.name for t in body.sparse_initializer)]
    return [*tensors, *(o for n in body.node for o in n.output if o)]


def _new_names(
    body: onnx.GraphProto, outputs: list[str], defined: Mapping[str, int], reserved: set[str]
) -> dict[str, str]:
    """What a body makes -> another name for it outside: that of the output that it is, or a new one where something
    else in the model is called the same. New names are added to the reserved ones."""
    computed = {o for n in body.node for o in n.output}
    new: dict[str, str] = {}
    for inner, outer in zip((o.name for o in body.output), outputs, strict=False):
        if outer and inner in computed:
            new.setdefault(inner, outer)
    for name in _made(body):
        if name not in new and defined[name] > 1:
            k = 1
            while f"{name}_{k}" in reserved:
                k += 1
            new[name] = f"{name}_{k}"
            reserved.add(new[name])
    return new


def rename(body: onnx.GraphProto, new: Mapping[str, str]) -> None:
    """Give tensors other names, in place, in the bodies inside as well unless these have something so named."""
    stack = [(body, new)]
    while stack:
        graph, names = stack.pop()
        if graph is not body:
            own = {i.name for i in graph.input} | set(_made(graph))
            names = {old: name for old, name in names.items() if old not in own}
        for node in graph.node:
            for names_of in (node.input, node.output):
                for k, old in enumerate(names_of):
                    if old in names:
                        names_of[k] = names[old]
            stack += [(inner, names) for inner in subgraphs(node)]
        stored = (*graph.initializer, *(t.values for t in graph.sparse_initializer))
        for named in (*graph.output, *graph.value_info, *stored):
            named.name = names.get(named.name, named.name)


def _place(body: onnx.GraphProto, node: onnx.NodeProto, model: onnx.ModelProto) -> None:
    """Put a body, its names free, at the end of a model that is being made, in the place of its node."""
    graph = model.graph
    for tensor in body.initializer:
        if model.ir_version < 4:  # there an initializer had to be an input too
            graph.node.append(onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
        else:
            graph.initializer.append(tensor)
    graph.sparse_initializer.extend(body.sparse_initializer)
    graph.node.extend(body.node)
    stated = {v.name for v in (*graph.value_info, *graph.output, *graph.input)}
    graph.value_info.extend(v for v in body.value_info if v.name not in stated)
    for inner, outer in zip((o.name for o in body.output), node.output, strict=False):
        if outer and inner != outer:
            graph.node.append(onnx.helper.make_node("Identity", [inner], [outer]))
