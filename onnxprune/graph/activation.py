"""What stands behind a layer and looks at single elements only: its activation, however many nodes spell it.

Exporters write a HardSwish as Add, Clip, Mul and Div, a SiLU as Sigmoid and Mul, a GELU as six nodes, and some scale
and shift the outcome by learnt numbers. All of that is one function of one number, so a table of it is all that is
needed. Constants that differ between channels end it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph import operators
from onnxprune.graph.model import Graph, Use
from onnxprune.protobuf.nodes import captured, node_key
from onnxprune.runtime import sessions

MOST = 32
"""Nodes that are followed at most."""


@dataclass(frozen=True)
class Activation:
    """A function of single elements, as nodes.

    Attributes:
        graph: their network.
        tensor: what it reads.
        end: what it makes; whatever else reads `tensor` makes no more than that.
        keys: the nodes, in order.
    """

    graph: Graph
    tensor: str
    end: str
    keys: tuple[str, ...]

    def values(self, at: np.ndarray) -> np.ndarray:
        """(n,) float32: the function at (n,) numbers."""
        nodes = [self.graph.nodes[key] for key in self.keys]
        made = {self.tensor, *(o for node in nodes for o in node.output)}
        names = dict.fromkeys(i for node in nodes for i in node.input if i and i not in made)
        constants = [numpy_helper.from_array(np.asarray(self.graph.constant(name)), name) for name in names]
        ends = [helper.make_tensor_value_info(self.tensor, TensorProto.FLOAT, [len(at)])]
        out = [helper.make_tensor_value_info(self.end, TensorProto.FLOAT, None)]
        whole = self.graph.model
        model = helper.make_model(
            helper.make_graph(nodes, "activation", ends, out, constants),
            opset_imports=whole.opset_import,
            ir_version=whole.ir_version,
        )
        session = sessions.open_session(model, threads=1, name="activation")
        return np.asarray(session.run({self.tensor: at.astype(np.float32)})[0], np.float32).ravel()


def activation(graph: Graph, tensor: str, consumers: Mapping[str, Sequence[Use]]) -> Activation | None:
    """The longest function of single elements that a tensor goes through, whatever else becomes of it; None where
    nothing of that kind follows."""
    inside, keys, waiting = [tensor], list[str](), [tensor]
    found = None
    while len(keys) < MOST and tensor not in graph.outputs:
        ready = (k for t in waiting for k, _ in consumers.get(t, ()) if k not in keys)
        key = next((k for k in ready if _elementwise(graph, graph.nodes[k], inside)), None)
        if key is None:
            break
        keys.append(key)
        inside.append(graph.nodes[key].output[0])
        waiting = [t for t in inside if t in graph.outputs or any(k not in keys for k, _ in consumers.get(t, ()))]
        if len(waiting) == 1 and waiting[0] != tensor:
            found = Activation(graph, tensor, waiting[0], tuple(keys))  # each was ready once those before it were
            if waiting[0] in graph.outputs:
                break
    return found


def _elementwise(graph: Graph, node: onnx.NodeProto, inside: Collection[str]) -> bool:
    """Whether a node makes one number of each that it reads from `inside`, the same everywhere."""
    line = operators.of(node)
    if line.family not in ("unary", "broadcast") or line.random or line.decides or len(node.output) != 1:
        return False
    if captured(node) or node_key(node) not in graph.nodes:
        return False
    for name in node.input:
        value = graph.constant(name) if name and name not in inside else None
        if name and name not in inside and (value is None or value.size != 1 or value.dtype != np.float32):
            return False
    return True
