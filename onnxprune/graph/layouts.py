"""Nodes that ONNX Runtime's optimiser has put into layouts of its own, put back into the layout of ONNX.

Two of these there are. Operators of `com.microsoft.nchwc` lay channels out in blocks (8 or 16, as the machine has it
whose file it is), with zeros up to a whole number of them: weights are blocks too, and `ReorderInput` and
`ReorderOutput` go in and out. Operators like `NhwcConv` have their channels last. What comes of either computes the
same, and ONNX Runtime chooses its layout anew when it loads it. Knows protobuf and no channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.graph.branches import rename
from onnxprune.graph.export import tensor_of
from onnxprune.graph.model import all_names, free_name
from onnxprune.graph.operators import BLOCKED, MICROSOFT
from onnxprune.protobuf.nodes import attr, inferred, node_key, set_attr
from onnxprune.protobuf.serialize import copied, copy_all_but
from onnxprune.runtime import sessions

BLOCKS = (16, 8)
"""Channels that a block may have."""
LAST = {
    "NhwcConv": ("Conv", ""), "NhwcFusedConv": ("FusedConv", MICROSOFT), "NhwcMaxPool": ("MaxPool", ""),
    "QLinearConv": ("QLinearConv", ""), "QLinearAveragePool": ("QLinearAveragePool", MICROSOFT),
    "QLinearGlobalAveragePool": ("QLinearGlobalAveragePool", MICROSOFT),
}  # fmt: skip
"""Operators of `com.microsoft` that may have channels last -> those that have them first."""
IMAGES = {"NhwcFusedConv": (0, 3)}
"""Which of their operands are images, where not the first alone."""


def plain_layouts(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the nodes of its outermost graph in the layout of ONNX; itself where they are."""
    if any(n.domain == BLOCKED for n in model.graph.node):
        model = _Blocked(model).unblocked()
    if any(_last(n) for n in model.graph.node):
        model = _channels_first(model)
    return model


def _last(node: onnx.NodeProto) -> bool:
    """Whether a node has its channels last."""
    if node.domain != MICROSOFT or node.op_type not in LAST:
        return False
    return node.op_type.startswith("Nhwc") or node.op_type == "QLinearConv" or bool(attr(node, "channels_last", 0))


def _emptied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without nodes."""
    found = onnx.ModelProto()
    copy_all_but(model, found, "graph")
    copy_all_but(model.graph, found.graph, "node")
    return found


def _without(node: onnx.NodeProto, *names: str) -> None:
    """Take attributes out, in place."""
    kept = [a for a in node.attribute if a.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)


# -- channels last -------------------------------------------------------------------------------------------------


def _channels_first(model: onnx.ModelProto) -> onnx.ModelProto:
    found, reserved = _emptied(model), all_names(model.graph)
    for node in model.graph.node:
        if not _last(node):
            found.graph.node.append(node)
            continue
        new = copied(node)
        last = node.op_type.startswith("Nhwc") or attr(node, "channels_last", 0)
        new.op_type, new.domain = LAST[node.op_type]
        _without(new, "channels_last")
        if not last:
            found.graph.node.append(new)
            continue
        for i in IMAGES.get(node.op_type, (0,)):
            if i < len(new.input) and new.input[i]:
                source, new.input[i] = new.input[i], free_name(f"{node.input[i]}_first", reserved)
                found.graph.node.append(helper.make_node("Transpose", [source], [new.input[i]], perm=[0, 3, 1, 2]))
        new.output[0] = free_name(f"{node.output[0]}_first", reserved)
        back = helper.make_node("Transpose", [new.output[0]], [node.output[0]], perm=[0, 2, 3, 1])
        found.graph.node.extend([new, back])
    return found


# -- channels in blocks --------------------------------------------------------------------------------------------


@dataclass
class _Blocked:
    """A model with channels in blocks.

    Attributes:
        model: the model.
        weights: its constants.
        alike: a tensor in blocks -> another that has as many channels, or itself.
        padded: such -> its channels with what fills the last block.
        told: such -> its channels, where the model says so.
        used: such -> the last channel that is no zero, at least.
        whole: tensors of which every block is full.
    """

    model: onnx.ModelProto
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    alike: dict[str, str] = field(default_factory=dict)
    padded: dict[str, int] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        read = {i for n in self.model.graph.node if n.domain == BLOCKED for i in n.input[1:3]}
        self.weights = {t.name: numpy_helper.to_array(t) for t in self.model.graph.initializer if t.name in read}
        outs = [self.weights[n.input[1]].shape[0] for n in self._convs()]
        here = block_here()
        self.block = next((b for b in (here, *BLOCKS) if b and not any(o % b for o in outs)), min(BLOCKS))

    def _convs(self) -> Iterator[onnx.NodeProto]:
        """The convolutions whose weights are constants."""
        return (
            n for n in self.model.graph.node
            if n.domain == BLOCKED and n.op_type == "Conv" and n.input[1] in self.weights
        )  # fmt: skip

    def unblocked(self) -> onnx.ModelProto:
        """The model without blocks; itself where the weights of some convolution are no constants."""
        convs = sum(n.domain == BLOCKED and n.op_type == "Conv" for n in self.model.graph.node)
        if convs != len(list(self._convs())):
            return self.model
        for node in self.model.graph.node:
            self._look(node)
        found = self._written()
        known = inferred(found).graph
        sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*known.value_info, *known.input)}
        for node in self.model.graph.node:  # what comes from outside has as many channels as it has
            if node.op_type == "ReorderInput" and node.domain == BLOCKED:
                shape, axis = sizes.get(node.input[0], []), 3 if attr(node, "channels_last", 0) else 1
                if len(shape) == 4 and shape[axis]:
                    self.told.setdefault(self._root(node.output[0]), shape[axis])
        return self._written()

    def _root(self, name: str) -> str:
        while self.alike.get(name, name) != name:
            name = self.alike[name]
        return name

    def _tie(self, name: str, *others: str) -> None:
        """These have as many channels as one another."""
        first = self._root(name)
        self.alike.setdefault(name, first)
        for other in others:
            second = self._root(other)
            self.alike.setdefault(other, second)
            if first != second:
                self.alike[second] = first
                self.alike.setdefault(first, first)
                for known, better in ((self.padded, max), (self.used, max), (self.told, min)):
                    if second in known:
                        known[first] = better(known[second], known.get(first, known[second]))
                self.whole |= {first} if second in self.whole else set()

    def _look(self, node: onnx.NodeProto) -> None:
        """Note what a node tells of the channels of what it reads and makes."""
        if node.domain != BLOCKED:
            inside = [i for i in node.input if i in self.alike]
            if inside and node.op_type == "Concat":  # ONNX Runtime joins full blocks alone
                for name in (*inside, *node.output):
                    self._tie(name)
                    self.whole.add(self._root(name))
            elif inside:
                self._tie(inside[0], *inside[1:], *node.output)
        elif node.op_type == "ReorderInput":
            self._tie(node.output[0])
        elif node.op_type == "ReorderOutput":
            self._tie(node.input[0])
            self.told[self._root(node.input[0])] = attr(node, "channels")
        elif node.op_type == "Conv":
            self._look_at_conv(node)
        else:
            self._tie(node.input[0], *node.output)

    def _look_at_conv(self, node: onnx.NodeProto) -> None:
        weight, group = self._plain(node), attr(node, "group", 1)
        bias = self.weights.get(node.input[2]) if len(node.input) > 2 else None
        out = node.output[0]
        self._tie(out, *(node.input[k] for k in (3,) if k < len(node.input) and node.input[k]))
        rows = np.abs(weight).reshape(len(weight), -1).max(axis=1, initial=0)
        rows = rows if bias is None else rows + np.abs(bias)
        self._note(out, len(rows), rows)
        if group > 1 and weight.shape[1] == 1:
            self._tie(node.input[0], out)
        elif group > 1:
            for name in (node.input[0], out):
                self._tie(name)
                self.whole.add(self._root(name))
        elif node.input[0] in self.alike:
            self._note(node.input[0], weight.shape[1], np.abs(weight).max(axis=(0, 2, 3), initial=0))

    def _note(self, name: str, padded: int, there: np.ndarray) -> None:
        root = self._root(name)
        self.padded[root] = padded
        last = int(np.flatnonzero(there).max(initial=0)) + 1
        self.used[root] = max(self.used.get(root, 1), last, padded - self.block + 1)

    def _count(self, name: str) -> int:
        """How many channels a tensor in blocks has."""
        root = self._root(name)
        if root in self.told:
            return self.told[root]
        return (self.padded if root in self.whole else self.used).get(root, 0)

    def _plain(self, node: onnx.NodeProto) -> np.ndarray:
        """The weights of a convolution as ONNX has them, filled up: (out, in, kh, kw)."""
        stored, b = self.weights[node.input[1]], self.block
        rows, columns, *kernel = stored.shape
        if columns < b:  # it reads single channels, or images that are in no blocks
            return stored.reshape(rows // b, columns, *kernel, b).transpose(0, 4, 1, 2, 3).reshape(stored.shape)
        blocks = stored.reshape(rows // b, columns // b, *kernel, b, b)
        return blocks.transpose(0, 5, 1, 4, 2, 3).reshape(stored.shape)

    def _written(self) -> onnx.ModelProto:
        """The model without blocks, by what is known of channels."""
        model, reserved = _emptied(self.model), all_names(self.model.graph)
        graph, new, outputs = model.graph, dict[str, str](), {o.name for o in self.model.graph.output}
        for node in self.model.graph.node:
            body = onnx.GraphProto(node=[node])
            rename(body, new)
            made = body.node[0]
            if node.domain == BLOCKED and node.op_type.startswith("Reorder"):
                perm = [0, 3, 1, 2] if node.op_type == "ReorderInput" else [0, 2, 3, 1]
                if attr(node, "channels_last", 0):
                    made = helper.make_node("Transpose", list(made.input), list(node.output), perm=perm)
                elif node.output[0] in outputs:
                    made = helper.make_node("Identity", list(made.input), list(node.output))
                else:
                    new[node.output[0]] = made.input[0]
                    continue
            elif node.domain != BLOCKED and node.op_type == "Reshape" and node.input[0] in self.alike:
                new[node.output[0]] = made.input[0]  # blocks on an axis of their own, for what is broadcast, or back
                continue
            elif node.domain == BLOCKED and node.op_type == "Conv":
                self._conv(node, made, graph, reserved)
            elif node.domain == BLOCKED and node.op_type == "Upsample":
                self._upsample(made, graph, reserved)
            elif node.domain == BLOCKED:
                made.domain = ""
            graph.node.append(made)
        read = {i for n in graph.node for i in n.input} | outputs
        for stated in (graph.initializer, graph.value_info):
            left = [t for t in stated if t.name not in self.alike and (t.name in read or t.name not in self.weights)]
            del stated[:]
            stated.extend(left)
        left = [o for o in model.opset_import if o.domain != BLOCKED]
        del model.opset_import[:]
        model.opset_import.extend(left)
        return model

    def _conv(self, node: onnx.NodeProto, made: onnx.NodeProto, graph: onnx.GraphProto, reserved: set[str]) -> None:
        """Make a convolution of blocks one of ONNX, or of ONNX Runtime with what is fused with it, in place."""
        weight, count = self._plain(node), self._count(node.output[0])
        fused = bool(attr(node, "activation", "")) or len(node.input) > 3
        made.op_type, made.domain = ("FusedConv", MICROSOFT) if fused else ("Conv", "")
        weight = weight[:count]
        if attr(node, "group", 1) == 1 and node.input[0] in self.alike:
            weight = weight[:, : self._count(node.input[0])]
        elif attr(node, "group", 1) > 1 and weight.shape[1] == 1:
            set_attr(made, "group", count)
        values = [weight]
        if len(node.input) > 2 and node.input[2]:
            values.append(self.weights[node.input[2]][:count])
        for i, value in enumerate(values, 1):
            made.input[i] = free_name(node.input[i], reserved)
            graph.initializer.append(tensor_of(value, made.input[i]))

    def _upsample(self, made: onnx.NodeProto, graph: onnx.GraphProto, reserved: set[str]) -> None:
        """Make an enlargement of blocks a Resize, in place."""
        scales = free_name(f"{node_key(made)}_scales", reserved)
        graph.initializer.append(tensor_of(np.array(attr(made, "scales"), np.float32), scales))
        mode, turned = attr(made, "mode", "nearest"), attr(made, "coordinate_transformation_mode", "asymmetric")
        made.op_type, made.domain = "Resize", ""
        made.input.extend(["", scales])
        _without(made, "scales", "mode", "coordinate_transformation_mode")
        given: dict[str, str] = {"mode": mode, "coordinate_transformation_mode": turned}
        for name, value in (given | ({"nearest_mode": "floor"} if mode == "nearest" else {})).items():
            set_attr(made, name, value)


def block_here() -> int | None:
    """How many channels a block has on this machine; None where ONNX Runtime has no such layout here."""
    wide = 2 * max(BLOCKS)
    values = np.arange(wide * wide, dtype=np.float32).reshape(wide, wide, 1, 1)
    node = helper.make_node("Conv", ["b", "w"], ["c"], domain=BLOCKED, kernel_shape=[1, 1])
    ports = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, wide, 1, 1]) for n in "xy"]
    graph = helper.make_graph(
        [
            helper.make_node("ReorderInput", ["x"], ["b"], domain=BLOCKED),
            node,
            helper.make_node("ReorderOutput", ["c"], ["y"], domain=BLOCKED, channels=wide),
        ],
        "block", ports[:1], ports[1:], [tensor_of(values, "w")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid(BLOCKED, 1)]
    x = np.arange(wide, dtype=np.float32).reshape(1, wide, 1, 1)
    try:
        session = sessions.open_session(helper.make_model(graph, opset_imports=opsets, ir_version=8), optimise=False)
        found = session.run({"x": x})[0].ravel()
    except Exception:  # whatever it says: it has no such operators here
        return None
    for block in BLOCKS:
        blocks = values.reshape(wide // block, wide // block, 1, 1, block, block)
        plain = blocks.transpose(0, 5, 1, 4, 2, 3).reshape(wide, wide)
        if np.allclose(found, plain @ x.ravel()):
            return block
    return None
