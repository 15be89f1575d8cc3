"""Nodes and inputs that no runtime survives: strides, groups, kernels, empty weights, impossible shapes."""

from __future__ import annotations

import math

from onnx import GraphProto, TensorProto, TypeProto

from onnxprune.files.refuse import refuse
from onnxprune.files.tensors import MAX_DIM
from onnxprune.files.walk import Walk
from onnxprune.graph import operators
from onnxprune.protobuf.nodes import subgraphs, titled
from onnxprune.protobuf.serialize import BITS


def check_nodes(walk: Walk, label: str) -> None:
    """Strides, groups and kernels that no runtime survives, and layers that read nothing."""
    stored: dict[str, list[int]] = {}
    for name, tensor in walk.tensors:
        stored.setdefault(name, list(tensor.dims))
    stored.update((name, list(tensor.dims)) for name, tensor in walk.sparse)
    for node, line in walk.nodes:
        own = operators.of(node)  # ONNX's checker knows none but its own
        if (own.keeps_size or own.layer or own.windowed) and not (node.input and node.input[0]):
            refuse(label, f"{titled(node)} has no input; export the model again")
        if line.layer and not line.windowed:
            if len(node.input) > 1 and 0 in stored.get(node.input[1], ()):
                refuse(label, f"{titled(node)} has an empty weight {node.input[1]!r}; export the model again")
            continue
        if not line.windowed:
            continue
        group = 1
        for attribute in node.attribute:
            if attribute.name in ("strides", "dilations", "kernel_shape") and min(attribute.ints, default=1) < 1:
                refuse(
                    label,
                    f"{titled(node)} has {attribute.name} {list(attribute.ints)}; each must be at least 1",
                )
            if attribute.name == "group":
                group = attribute.i
                if group < 1:
                    refuse(label, f"{titled(node)} has group {group}; it must be at least 1")
        at = line.kernel
        if at is None or len(node.input) <= at or node.input[at] not in stored:
            continue
        dims = stored[node.input[at]]
        if 0 in dims:
            refuse(
                label,
                f"{titled(node)} has a weight {node.input[at]!r} of shape {dims}, with zero channels"
                "; export the model again",
            )
        if dims and dims[0] % group:
            refuse(
                label,
                f"{titled(node)} splits {dims[0]} channels of weight {node.input[at]!r} into {group} groups"
                "; they do not divide, export the model again",
            )


def check_references(graph: GraphProto, label: str) -> None:
    """Attributes that refer to those of a function, where there is none around them: in a graph and its bodies."""
    bodies = [graph]
    while bodies:
        for node in bodies.pop().node:
            for attribute in node.attribute:
                if name := attribute.ref_attr_name:
                    refuse(
                        label,
                        f"{titled(node)} takes its {attribute.name!r} from attribute {name!r} of a function, but is in "
                        "none; export the model again",
                    )
            bodies += subgraphs(node)


def check_types(walk: Walk, label: str) -> None:
    """Element types of inputs, outputs and of what lies between, that nobody knows."""
    for graph in walk.graphs:
        for what, ports in (("input", graph.input), ("output", graph.output), ("tensor", graph.value_info)):
            for port in ports:
                kind = _element_type(port.type)
                if kind and kind not in BITS and kind != TensorProto.STRING:
                    refuse(label, f"{what} {port.name!r} has the unknown data type {kind}; export the model again")


def _element_type(kind: TypeProto) -> int:
    """Of a tensor, or of the tensors that a sequence, a map or an optional holds; 0 where it is not said."""
    while (which := kind.WhichOneof("value")) in ("sequence_type", "optional_type"):
        kind = getattr(kind, which).elem_type
    if which == "map_type":
        return _element_type(kind.map_type.value_type)
    return getattr(kind, which).elem_type if which in ("tensor_type", "sparse_tensor_type") else 0


def check_ports(graph: GraphProto, label: str) -> None:
    """Graph inputs whose fixed dimensions no array can have, and a graph without outputs, of which nothing could be
    compared. A dimension of -1 means dynamic (Paddle)."""
    if not graph.output:
        refuse(label, "has no outputs; export the model again")
    for port in (*graph.input, *graph.output):
        odd = next((d.dim_param for d in port.type.tensor_type.shape.dim if not isinstance(d.dim_param, str)), None)
        if odd is not None:
            refuse(label, f"{port.name!r} has an axis {odd!r}, which is not UTF-8 text; export the model again")
    for port in graph.input:
        dims = [d.dim_value for d in port.type.tensor_type.shape.dim if d.HasField("dim_value")]
        if any(d > MAX_DIM for d in dims) or math.prod(d for d in dims if d > 0) * 16 > 2**63:
            refuse(label, f"input {port.name!r} has the impossible shape {dims}; export the model again")
