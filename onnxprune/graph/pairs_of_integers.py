"""Operators that compute with integers, taken apart: what dequantizes their operands, the same in floats, and what
quantizes the outcome.

That is the format of QuantizeLinear and DequantizeLinear, of which ONNX Runtime makes the operators of integers again
when it loads a file. A scale lies with each tensor, so layers and repairs are as in any other file of that format.
Knows protobuf and no channel.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx
from onnx import helper, numpy_helper

from onnxprune.graph.export import tensor_of
from onnxprune.graph.model import all_names, free_name
from onnxprune.graph.operators import MICROSOFT, of
from onnxprune.protobuf.nodes import attr, opset, set_attr
from onnxprune.protobuf.serialize import copied, copy_all_but

AXES = 13
"""The first opset whose DequantizeLinear has a scale a channel."""


@dataclass(frozen=True)
class Form:
    """An operator of integers.

    Attributes:
        floats: that of floats.
        operands: positions of its operands, of each one's scale and zero point, and the axis of scales a channel.
        output: positions of the output's scale and zero point.
        bias: position of a bias of 32 bits, whose scale is that of the first two operands; -1 for none.
        plain: positions of operands that are no integers, which come first.
        drops: attributes that the other has not.
    """

    floats: str
    operands: tuple[tuple[int, int, int, int], ...]
    output: tuple[int, int]
    bias: int = -1
    plain: tuple[int, ...] = ()
    drops: tuple[str, ...] = ()


def _of_one(floats: str, *drops: str) -> Form:
    return Form(floats, ((0, 1, 2, 1),), (3, 4), drops=drops)


def _of_two(floats: str) -> Form:
    return Form(floats, ((0, 1, 2, 1), (3, 4, 5, 1)), (6, 7))


FORMS = {
    ("", "QLinearConv"): Form("Conv", ((0, 1, 2, 1), (3, 4, 5, 0)), (6, 7), bias=8),
    ("", "QLinearMatMul"): _of_two("MatMul"),
    (MICROSOFT, "QGemm"): Form("Gemm", ((0, 1, 2, 1), (3, 4, 5, 1)), (7, 8), bias=6),
    (MICROSOFT, "QLinearAdd"): _of_two("Add"),
    (MICROSOFT, "QLinearMul"): _of_two("Mul"),
    (MICROSOFT, "QLinearSigmoid"): _of_one("Sigmoid"),
    (MICROSOFT, "QLinearLeakyRelu"): _of_one("LeakyRelu"),
    (MICROSOFT, "QLinearSoftmax"): _of_one("Softmax", "opset"),
    (MICROSOFT, "QLinearGlobalAveragePool"): _of_one("GlobalAveragePool", "channels_last"),
    (MICROSOFT, "QLinearAveragePool"): _of_one("AveragePool", "channels_last"),
    (MICROSOFT, "QLinearWhere"): Form("Where", ((1, 2, 3, 1), (4, 5, 6, 1)), (7, 8), plain=(0,)),
}  # fmt: skip
"""(domain, operator of integers) -> what it is taken apart into."""
JOINS = (MICROSOFT, "QLinearConcat")
CHOOSES, PRODUCT = (MICROSOFT, "DynamicQuantizeMatMul"), (MICROSOFT, "MatMulIntegerToFloat")
"""Products of integers with what scales them, one with what chooses the scale too."""


def in_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the operators of integers of its outermost graph taken apart; itself where there are none."""
    if not any((n.domain, n.op_type) in (*FORMS, JOINS, CHOOSES, PRODUCT) for n in model.graph.node):
        return model
    found = onnx.ModelProto()
    copy_all_but(model, found, "graph")
    copy_all_but(model.graph, found.graph, "node")
    work = _Work(found, all_names(model.graph), {t.name: t for t in model.graph.initializer})
    for node in model.graph.node:
        work.add(node)
    made = {o for n in model.graph.node for o in n.output}
    left = [v for v in found.graph.value_info if v.name in made]
    del found.graph.value_info[:]
    found.graph.value_info.extend(left)
    return found


@dataclass
class _Work:
    """A model under way.

    Attributes:
        model: it.
        reserved: names that are taken.
        stored: constant -> its tensor.
        scales: tensor of integers -> names of its scale and zero point.
        values: (such, scale, zero point, axis) -> what it stands for.
    """

    model: onnx.ModelProto
    reserved: set[str]
    stored: dict[str, onnx.TensorProto]
    scales: dict[str, tuple[str, str]] = field(default_factory=dict)
    values: dict[tuple[str, str, str, int], str] = field(default_factory=dict)

    def add(self, node: onnx.NodeProto) -> None:
        """Add a node, or what it is taken apart into."""
        kind, form = (node.domain, node.op_type), FORMS.get((node.domain, node.op_type))
        if kind == JOINS:
            parts = [(i, i + 1, i + 2, 1) for i in range(2, len(node.input), 3)]
            form = Form("Concat", tuple(parts), (0, 1))
        if form is not None and self._plain(node, form):
            self._take_apart(node, form)
            return
        if kind in (CHOOSES, PRODUCT):
            self._scaled(node, [*node.input, *[""] * (7 - len(node.input))])
            return
        if of(node).quantizer and not of(node).dequantizes and len(node.input) > 2:
            self.scales[node.output[0]] = node.input[1], node.input[2]
        moves = (of(node).layout or node.op_type == "MaxPool") and len(node.output) == 1
        if moves and node.input[0] in self.scales and not of(node).joins:
            scale = self.scales[node.input[0]]  # as if it moved floats: the integers are the same
            new = copied(node)
            new.input[0] = self._value(node.input[0], *scale, 1)
            self._quantize(node, new, *scale)
            return
        self.model.graph.node.append(node)

    def _plain(self, node: onnx.NodeProto, form: Form) -> bool:
        """Whether its scales are of the kinds that can be written down."""
        if len(node.input) <= form.output[0] and node.op_type != "QGemm":
            return False
        sizes = [self._sizes(node.input[s]) for _, s, _, _ in form.operands]
        return all(s is not None and len(s) < (2 if opset(self.model) >= AXES or s == (1,) else 1) for s in sizes)

    def _sizes(self, name: str) -> tuple[int, ...] | None:
        """Those of a constant."""
        return tuple(self.stored[name].dims) if name in self.stored else None

    def _take_apart(self, node: onnx.NodeProto, form: Form) -> None:
        axis = {i: a for i, _, _, a in form.operands}
        if node.op_type == "QGemm" and attr(node, "transB", 0):
            axis[3] = 0
        reads = [node.input[i] for i in form.plain]
        reads += [self._value(node.input[i], node.input[s], node.input[z], axis[i]) for i, s, z, _ in form.operands]
        if 0 <= form.bias < len(node.input) and node.input[form.bias]:
            reads.append(self._bias(node, form))
        new = helper.make_node(form.floats, reads, list(node.output), name=node.name)
        new.attribute.extend(a for a in node.attribute if a.name not in form.drops)
        scale, zero = (node.input[k] if k < len(node.input) else "" for k in form.output)
        if scale:
            self._quantize(node, new, scale, zero)
        else:
            self.model.graph.node.append(new)

    def _scaled(self, node: onnx.NodeProto, reads: list[str]) -> None:
        """Take a product of integers and what scales it apart, as a quantizer writes them."""
        name, add = node.output[0], self.model.graph.node.append
        if node.op_type == CHOOSES[1]:
            x, scale, zero = (
                free_name(f"{name}_{what}", self.reserved) for what in ("quantized", "scale", "zero_point")
            )
            add(helper.make_node("DynamicQuantizeLinear", reads[:1], [x, scale, zero]))
            weight, weight_scale, weight_zero, bias = reads[1:5]
        else:
            x, weight, scale, weight_scale, zero, weight_zero, bias = reads
        operands = [x, weight, zero, weight_zero] if weight_zero else [x, weight, *([zero] if zero else [])]
        made = [free_name(f"{name}_{what}", self.reserved) for what in ("integers", "cast", "scales", "unbiased")]
        add(helper.make_node("MatMulInteger", operands, made[:1], name=node.name))
        add(helper.make_node("Cast", made[:1], made[1:2], to=onnx.TensorProto.FLOAT))
        add(helper.make_node("Mul", [scale, weight_scale], made[2:3]))
        add(helper.make_node("Mul", made[1:3], made[3:] if bias else [name]))
        if bias:
            add(helper.make_node("Add", [made[3], bias], [name]))

    def _quantize(self, node: onnx.NodeProto, new: onnx.NodeProto, scale: str, zero: str) -> None:
        """Add what makes floats, and what makes integers of them under the node's own name."""
        new.output[0] = free_name(f"{node.output[0]}_in_floats", self.reserved)
        last = helper.make_node("QuantizeLinear", [n for n in (new.output[0], scale, zero) if n], [node.output[0]])
        self.model.graph.node.extend([new, last])
        self.scales[node.output[0]] = scale, zero

    def _value(self, name: str, scale: str, zero: str, axis: int) -> str:
        """What integers stand for."""
        key = name, scale, zero, axis
        if key not in self.values:
            self.values[key] = free_name(f"{name}_dequantized", self.reserved)
            new = helper.make_node("DequantizeLinear", [n for n in (name, scale, zero) if n], [self.values[key]])
            if self._sizes(scale) not in ((), (1,)):
                set_attr(new, "axis", axis)
            self.model.graph.node.append(new)
        return self.values[key]

    def _bias(self, node: onnx.NodeProto, form: Form) -> str:
        """What the bias stands for: its scale is that of what is read times that of the weight."""
        name, scale = node.input[form.bias], free_name(f"{node.input[form.bias]}_scale", self.reserved)
        read, weight = (numpy_helper.to_array(self.stored[node.input[s]]) for _, s, _, _ in form.operands[:2])
        self.stored[scale] = tensor_of(read.reshape(()) * weight, scale)
        self.model.graph.initializer.append(self.stored[scale])
        return self._value(name, scale, "", 0)
