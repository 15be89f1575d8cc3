"""Everything in a model, seen once: graphs, nodes and stored tensors, those of bodies and functions too."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from onnxprune.files.refuse import refuse
from onnxprune.graph import operators
from onnxprune.graph.facts import Operator

MAX_DEPTH = 16
"""Subgraphs inside subgraphs."""
MAX_BODIES = 1_000
"""Subgraphs in all; they double with every If inside of both branches of another."""
MAX_NODES = 1_000_000
"""In all graphs, after inlining."""
_RARE_ATTRIBUTES = {AttributeProto.GRAPHS, AttributeProto.TENSORS}


@dataclass
class Walk:
    """Everything in a model, seen once. Subgraphs follow the graph they are in."""

    graphs: list[GraphProto] = field(default_factory=list)
    nodes: list[tuple[NodeProto, Operator]] = field(default_factory=list)  # with what is known of such a name
    tensors: list[tuple[str, TensorProto]] = field(default_factory=list)  # the name it goes by, the tensor
    sparse: list[tuple[str, SparseTensorProto]] = field(default_factory=list)  # their values are among the tensors

    def add_sparse(self, name: str, tensor: SparseTensorProto) -> None:
        self.sparse.append((name, tensor))
        self.tensors += [(name, tensor.values), (f"indices of {name}", tensor.indices)]


def called(node: NodeProto) -> tuple[str, str]:
    """What a node calls, an operator or a function: domain and name."""
    return node.domain, node.op_type


def walk_model(model: ModelProto, label: str) -> Walk:
    """Walks graphs, subgraphs and functions without recursion; stops at the caps."""
    walk = Walk()
    todo: list[tuple[GraphProto | onnx.FunctionProto, int]] = [(model.graph, 0)]
    todo += [(function, 0) for function in model.functions]
    while todo:
        body, depth = todo.pop()
        if depth > MAX_DEPTH:
            refuse(label, f"subgraphs are nested more than {MAX_DEPTH} deep; simplify the model first")
        if isinstance(body, GraphProto):
            walk.graphs.append(body)
            if len(walk.graphs) > MAX_BODIES:
                refuse(label, f"has more than {MAX_BODIES:,} subgraphs; simplify the model first")
            walk.tensors.extend((t.name, t) for t in body.initializer)
            for sparse in body.sparse_initializer:
                walk.add_sparse(sparse.values.name, sparse)
        # whatever the domain: what others call Conv has strides as well
        walk.nodes.extend((node, operators.named(called(node)[1])) for node in body.node)
        if len(walk.nodes) > MAX_NODES:
            refuse(label, f"has more than {MAX_NODES:,} nodes; simplify the model first")
        for node in body.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    todo.append((attribute.g, depth + 1))
                elif attribute.HasField("t"):
                    walk.tensors.append((node.output[0] if node.output else node.name, attribute.t))
                elif attribute.HasField("sparse_tensor"):
                    walk.add_sparse(node.output[0] if node.output else node.name, attribute.sparse_tensor)
                elif attribute.type in _RARE_ATTRIBUTES:
                    todo.extend((graph, depth + 1) for graph in attribute.graphs)
                    walk.tensors.extend((node.name, t) for t in attribute.tensors)
    return walk
