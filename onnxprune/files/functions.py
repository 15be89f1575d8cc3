"""Local functions put in the place of their calls, and the checker of onnx: both see a model without its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxprune.errors import ModelError, one_line
from onnxprune.files import sandbox
from onnxprune.files.refuse import first_line, refuse
from onnxprune.files.walk import MAX_NODES, called
from onnxprune.protobuf.nodes import DEFAULT_DOMAINS

APART = "onnxprune.deprecated"
"""The domain of what the checker is not to look at."""

PLUGINS = re.compile(
    r"TRT|Plugin|^(BatchedNMS|NMS|Proposal|CropAndResize)(Dynamic)?$|^ModulatedDeformConv2d$|^CoordConvAC$"
)
"""What plugins of TensorRT are called."""

EARLIER = ("LayerNormalization", "SimplifiedLayerNormalization")
"""What ONNX Runtime knows as operators of ONNX in every opset; its optimiser writes them."""

MOST_NODES, MOST_TIMES = 10_000, 50
"""Nodes that functions may grow to, and for every node of the file."""


def inline(model: ModelProto, label: str) -> None:
    """Replaces calls of local functions by their bodies, in place."""
    bodies = {(f.domain, f.name): f for f in model.functions}
    size: dict[tuple[str, str], int] = {}
    active: set[tuple[str, str]] = set()
    # How many nodes will there be? Counted without expanding: a short chain of functions, each calling the
    # one before twice, doubles with every link.
    todo = [(key, False) for key in bodies]
    while todo:
        key, leaving = todo.pop()
        if leaving:
            size[key] = sum(size.get(called(node), 1) for node in _flat_nodes(bodies[key]))
            active.discard(key)
            if size[key] > MAX_NODES:
                refuse(label, f"function {key[1]!r} grows to more than {MAX_NODES:,} nodes; simplify the model")
            continue
        if key in size or key in active:
            continue
        active.add(key)
        todo.append((key, True))
        for node in _flat_nodes(bodies[key]):
            inner = called(node)
            if inner in active:
                refuse(label, f"function {key[1]!r} calls {inner[1]!r}, which is recursive; export without it")
            if inner in bodies and inner not in size:
                todo.append((inner, False))
    total = sum(size.get(called(node), 1) for node in _flat_nodes(model.graph))
    written = sum(1 for body in (model.graph, *model.functions) for _ in _flat_nodes(body))
    if total > MAX_NODES:
        refuse(label, f"its functions grow to more than {MAX_NODES:,} nodes; simplify the model first")
    if total > MOST_NODES + MOST_TIMES * written:
        refuse(label, f"its functions grow {written:,} nodes to {total:,}; simplify the model first")
    flat = ModelProto.FromString(sandbox.in_child("inline", skeleton(model), label))
    del model.graph.node[:]
    model.graph.node.extend(flat.graph.node)
    del model.functions[:]
    model.functions.extend(flat.functions)  # those of another opset than the model's cannot be inlined
    have = {entry.domain for entry in model.opset_import}
    model.opset_import.extend(entry for entry in flat.opset_import if entry.domain not in have)


def _flat_nodes(body: GraphProto | onnx.FunctionProto) -> Iterator[NodeProto]:
    todo: list[GraphProto | onnx.FunctionProto] = [body]
    while todo:
        for node in todo.pop().node:
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    todo.append(attribute.g)
                todo.extend(attribute.graphs)


def skeleton(model: ModelProto) -> ModelProto:
    """The model without its weights: each stored tensor becomes an input of the same shape.

    The checker and the inliner want serialised models; this keeps the weights out of that, and out of the
    child. Ports without a type or shape (which ONNX Runtime accepts) get one.
    """
    graph = model.graph
    bare = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    bare.graph.name = graph.name or "graph"
    bare.graph.node.extend(graph.node)
    bare.graph.input.extend(_with_shape(port) for port in graph.input)
    bare.graph.output.extend(_with_shape(port) for port in graph.output)
    ports = {port.name for port in graph.input}
    stored = [(t.name, t.data_type, t.dims) for t in graph.initializer]
    stored += [(s.values.name, s.values.data_type, s.dims) for s in graph.sparse_initializer]
    for name, kind, dims in stored:
        if name not in ports:
            bare.graph.input.append(helper.make_tensor_value_info(name, kind, list(dims)))
    return bare


def checkable(model: ModelProto) -> ModelProto:
    """The skeleton as the checker takes it. It refuses versions of operators that are deprecated, whether or not ONNX
    Runtime runs them (GroupNormalization of opset 18): these go by a domain that nobody knows."""
    bare, known = skeleton(model), dict[tuple[str, str], bool]()
    versions = {"" if entry.domain in DEFAULT_DOMAINS else entry.domain: entry.version for entry in model.opset_import}
    for node in _flat_nodes(bare.graph):
        key = "" if node.domain in DEFAULT_DOMAINS else node.domain, node.op_type
        if key not in known:
            known[key] = _deprecated(*key, versions.get(key[0], 0))
        if known[key] or (not key[0] and (node.op_type in EARLIER or is_plugin(node))):
            node.domain = APART
    if any(node.domain == APART for node in _flat_nodes(bare.graph)):
        bare.opset_import.add(domain=APART, version=1)
    return bare


def is_plugin(node: NodeProto) -> bool:
    """Whether a node of the default domain is a plugin of TensorRT: its exporters leave the domain out."""
    if onnx.defs.has(node.op_type):
        return False
    named = any(a.name in ("plugin_version", "plugin_namespace") for a in node.attribute)
    return named or PLUGINS.search(node.op_type) is not None


def _deprecated(domain: str, name: str, version: int) -> bool:
    try:
        return bool(onnx.defs.get_schema(name, version, domain).deprecated)
    except onnx.defs.SchemaError:  # not an operator, or not yet
        return False


def _with_shape(port: ValueInfoProto) -> ValueInfoProto:
    if port.HasField("type") and not port.type.HasField("tensor_type"):
        return port
    if port.type.tensor_type.HasField("shape") and port.type.tensor_type.elem_type:
        return port
    patched = ValueInfoProto()
    patched.CopyFrom(port)
    patched.type.tensor_type.elem_type = port.type.tensor_type.elem_type or TensorProto.FLOAT
    patched.type.tensor_type.shape.SetInParent()
    return patched


def run_checker(model: ModelProto, label: str) -> None:
    try:
        onnx.checker.check_model(checkable(model))
    except Exception as error:
        raise ModelError(one_line(f"{label}: {first_line(error)}; export the model again")) from error
