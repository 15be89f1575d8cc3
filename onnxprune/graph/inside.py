"""The body of a control-flow node as a network of its own, with the sizes that follow from what it reads.

Which body runs, and how often, only a run tells; what sizes its tensors have follows from those outside where nothing
in it depends on values. Knows protobuf and sizes, and no channel.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from onnxprune.errors import ModelError
from onnxprune.graph.export import tensor_of
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import Observed, Shape, follow
from onnxprune.protobuf.nodes import from_outside, inferred, inferred_types
from onnxprune.protobuf.serialize import copy_all_but

SMALL = 64
"""Constants of so many values are looked at where sizes are worked out."""


def inside(graph: Graph, body: onnx.GraphProto, shapes: Mapping[str, Shape]) -> tuple[Graph, Observed] | None:
    """(the network, its sizes); None where some do not follow.

    Args:
        graph: the network around it.
        body: one of a node of that.
        shapes: of all that the body reads and that is no constant: its inputs, and names from outside.
    """
    types = graph.once("types", graph, lambda: inferred_types(graph.model))
    model = onnx.ModelProto(ir_version=max(4, graph.model.ir_version))
    model.opset_import.extend(graph.model.opset_import)
    net, weights = model.graph, dict[str, np.ndarray]()
    copy_all_but(body, net, "input", "output", "value_info")
    net.name = net.name or "body"
    stated = {i.name: i.type.tensor_type.elem_type for i in body.input}
    for name, shape in shapes.items():
        kind = stated.get(name) or helper.np_dtype_to_tensor_dtype(types.get(name, np.dtype(np.float32)))
        net.input.append(helper.make_tensor_value_info(name, kind, shape))
    for name in sorted(from_outside(body) - shapes.keys()):
        value = graph.constant(name)
        if value is None:
            return None
        weights[name] = value
        if value.size <= SMALL:
            net.initializer.append(tensor_of(value, name))
        else:
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            net.input.append(helper.make_tensor_value_info(name, kind, value.shape))
    net.output.extend(helper.make_empty_tensor_value_info(o.name) for o in body.output)
    try:
        found = Graph(model, weights)
    except ModelError:  # a node without an output
        return None
    sizes = _sizes(model) | {name: value.shape for name, value in weights.items()} | dict(shapes)
    made = {o for node in net.node for o in node.output if o}
    if not made <= sizes.keys():
        return None
    return found, Observed(sizes, follow(found, sizes))


def _sizes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Tensor -> its sizes, of those of which all are known."""
    found, known = inferred(model, data=True).graph, {}
    for info in (*found.value_info, *found.output):
        kind = info.type.tensor_type
        if info.type.HasField("tensor_type") and kind.HasField("shape"):
            if all(d.HasField("dim_value") for d in kind.shape.dim):
                known[info.name] = tuple(d.dim_value for d in kind.shape.dim)
    return known
