"""Nodes as protobuf holds them: their name, their attributes, their bodies, and what a file states of its tensors.

Knows no `Graph` and no operator besides `Constant` and the four that carry bodies.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx

DEFAULT_DOMAINS = ("", "ai.onnx")
WITH_BODIES = frozenset(("If", "Loop", "Scan", "SequenceMap"))
"""The operators of the default domain that carry bodies."""
LOOPS = frozenset(("Loop",))
"""Those of them that may never come to an end."""
FLOATS = frozenset(getattr(onnx.TensorProto, kind) for kind in ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16"))


def node_key(node: onnx.NodeProto) -> str:
    """The name a node goes by: its first non-empty output (node names may be missing or repeat)."""
    return next((o for o in node.output if o), "")


def titled(node: onnx.NodeProto) -> str:
    """`node 'conv1' (Conv)`; a node without a name goes by its first output."""
    return f"node {node.name or node_key(node)!r} ({node.op_type})"


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """All attributes of a node as Python values (tensors and graphs stay protobuf)."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def attr(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """One attribute of a node, or `default`."""
    for a in node.attribute:
        if a.name == name:
            value = onnx.helper.get_attribute_value(a)
            return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return default


def set_attr(node: onnx.NodeProto, name: str, value: Any) -> None:
    """Replace one attribute, in place and at its place; add it when missing."""
    for a in node.attribute:
        if a.name == name:
            a.CopyFrom(onnx.helper.make_attribute(name, value))
            return
    node.attribute.append(onnx.helper.make_attribute(name, value))


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies a control-flow node carries."""
    for a in node.attribute:
        if a.type == onnx.AttributeProto.GRAPH:
            yield a.g
        elif a.type == onnx.AttributeProto.GRAPHS:
            yield from a.graphs


def has_loops(graph: onnx.GraphProto) -> bool:
    """Whether how often something is done may depend on what is computed."""
    carriers = [node for node in graph.node if node.op_type in WITH_BODIES]
    return any(node.op_type in LOOPS or any(map(has_loops, subgraphs(node))) for node in carriers)


def captured(node: onnx.NodeProto) -> set[str]:
    """Names that the bodies of a control-flow node read from outside."""
    if node.op_type not in WITH_BODIES and node.domain in DEFAULT_DOMAINS:
        return set()  # without a look at its attributes, which is slow
    return set[str]().union(*map(from_outside, subgraphs(node)))


def read_by(node: onnx.NodeProto) -> Iterator[str]:
    """What a node and its bodies read."""
    yield from filter(None, node.input)
    yield from sorted(captured(node))


def from_outside(body: onnx.GraphProto) -> set[str]:
    """Names that a body reads, the bodies inside it too, and that it does not make itself."""
    inside = {i.name for i in body.input} | {t.name for t in body.initializer}
    inside |= {t.values.name for t in body.sparse_initializer}
    read = {o.name for o in body.output}
    for n in body.node:
        inside.update(n.output)
        read.update(i for i in n.input if i)
        read |= captured(n)
    return read - inside


def stored_tensors(body: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """The constants that a graph or body holds itself, by name: initializers, then those of `Constant` nodes."""
    yield from ((t.name, t) for t in body.initializer)
    for node in body.node:
        if node.op_type == "Constant":
            yield from ((node.output[0], a.t) for a in node.attribute if a.name == "value")


def opset(model: onnx.ModelProto) -> int:
    """The opset of the default domain."""
    return next((o.version for o in model.opset_import if o.domain in DEFAULT_DOMAINS), 0)


def element_types(model: onnx.ModelProto) -> dict[str, np.dtype]:
    """Element types of activations that the file states (masks, for one, must match them)."""
    return {
        info.name: onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        for info in (*model.graph.input, *model.graph.value_info, *model.graph.output)
        if info.type.HasField("tensor_type") and info.type.tensor_type.elem_type
    }


def inferred_types(model: onnx.ModelProto) -> dict[str, np.dtype]:
    """The same, worked out; what is stated for a model that cannot be inferred."""
    return element_types(inferred(model))


def inferred(model: onnx.ModelProto, *, data: bool = False) -> onnx.ModelProto:
    """The model with the types and sizes that can be worked out; as it is where it contradicts itself or has
    operators without inference.

    Args:
        model: it is left as it is.
        data: also follow the values of small constants.
    """
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=data)
    except MemoryError:
        raise
    except Exception:  # of a type that onnx has in no public place; or the model is too large for protobuf
        return model
