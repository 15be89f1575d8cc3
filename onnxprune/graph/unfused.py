"""Layers that ONNX Runtime's optimiser has made one with what follows them, taken apart again.

What a layer writes before its activation is then a tensor, which a repair needs. ONNX Runtime puts the two together
again when it loads the file. A layer keeps the name of its output; the activation's has a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.graph.branches import rename
from onnxprune.graph.model import all_names
from onnxprune.protobuf.nodes import attr, node_key, opset
from onnxprune.protobuf.serialize import copied, copy_all_but

FUSED = ("FusedConv", "FusedGemm")
"""Operators of `com.microsoft` that are those of ONNX without "Fused", an activation behind them."""
PARAMETERS = {
    "Relu": (), "Sigmoid": (), "Tanh": (), "LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"),
    "Clip": ("min", "max"), "HardSwish": (),
}  # fmt: skip
"""Activation -> what its parameters are called, in the order in which a fused node has them."""


def unfused(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the fused layers of its outermost graph taken apart; itself where there are none. A layer that
    makes an output stays as it is."""
    outputs = {o.name for o in model.graph.output}
    if not any(_apart(node, outputs) for node in model.graph.node):
        return model
    found = onnx.ModelProto()
    copy_all_but(model, found, "graph")
    copy_all_but(model.graph, found.graph, "node")
    work = _Work(found, all_names(model.graph), model.ir_version < 4 or opset(model) < 11, opset(model) < 14)
    for node in model.graph.node:
        if _apart(node, outputs):
            work.take_apart(node)
        else:
            found.graph.node.append(work.reading(node))
    return found


def _apart(node: onnx.NodeProto, outputs: set[str]) -> bool:
    """Whether a node is to be taken apart."""
    fused = node.domain == "com.microsoft" and node.op_type in FUSED
    return fused and node_key(node) not in outputs and attr(node, "activation", "") in ("", *PARAMETERS)


@dataclass
class _Work:
    """A model under way; `new` are the names of what was called otherwise before, `by_attributes` whether a Clip has
    its bounds as attributes, `no_swish` whether its opset has no HardSwish."""

    model: onnx.ModelProto
    reserved: set[str]
    by_attributes: bool
    no_swish: bool
    new: dict[str, str] = field(default_factory=dict)

    def reading(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """The node, reading what activations make."""
        body = onnx.GraphProto(node=[node])
        rename(body, self.new)
        return body.node[0]

    def take_apart(self, node: onnx.NodeProto) -> None:
        """Add the nodes of a fused one."""
        layer, add = copied(self.reading(node)), self.model.graph.node.append
        layer.op_type, layer.domain = node.op_type.removeprefix("Fused"), ""
        activation = attr(node, "activation", "")
        values = list(attr(node, "activation_params", ())) or [
            attr(node, f"activation_{name}") for name in ("alpha", "beta", "gamma")
        ]
        kept = [a for a in layer.attribute if not a.name.startswith("activation")]
        del layer.attribute[:]
        layer.attribute.extend(kept)
        summand = layer.input[3] if len(layer.input) > 3 else ""
        del layer.input[3:]
        add(layer)
        last = node.output[0]
        if summand:
            last = self._put(node, "Add", [last, summand])
        if activation:
            known = [(n, v) for n, v in zip(PARAMETERS[activation], values, strict=False) if v is not None]
            if activation == "HardSwish" and self.no_swish:
                last = self._put(node, "Mul", [last, self._put(node, "HardSigmoid", [last], alpha=1 / 6, beta=0.5)])
            elif activation == "Clip" and not self.by_attributes:
                last = self._put(node, activation, [last, *(self._number(node, n, v) for n, v in known)])
            else:
                last = self._put(node, activation, [last], **dict(known))
        if last != node.output[0]:
            self.new[node.output[0]] = last

    def _put(self, node: onnx.NodeProto, op: str, reads: Sequence[str], **given: float) -> str:
        """Add a node behind the layer; the name of what it makes."""
        made = self._free(f"{node.output[0]}_{op.lower()}")
        name = f"{node.name}_{op.lower()}" if node.name else ""
        new = helper.make_node(op, list(reads), [made], name=name, **given)  # type: ignore[arg-type]
        self.model.graph.node.append(new)
        return made

    def _number(self, node: onnx.NodeProto, what: str, value: float) -> str:
        name = self._free(f"{node.output[0]}_{what}")
        self.model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
        return name

    def _free(self, name: str) -> str:
        k, found = 1, name
        while found in self.reserved:
            found, k = f"{name}_{k}", k + 1
        self.reserved.add(found)
        return found
