"""A quantized network repaired: taken to floats, repaired as any other, and quantized again.

In the format of QuantizeLinear and DequantizeLinear, weights are integers behind a DequantizeLinear, and activations go
through a pair of both. `floating` gives the network that these stand for: weights as their values, pairs left out, or a
Clip where a pair's range begins at zero, which is a ReLU that the quantizer has swallowed. What a repair makes of that
goes back by `requantized`: integers with scales that are chosen anew, one a channel where the file has that; all else
is as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper

from onnxprune.channels import Analysed, ChannelGroup, Slice
from onnxprune.graph import operators
from onnxprune.graph.branches import rename
from onnxprune.graph.export import tensor_of
from onnxprune.graph.layers import is_add
from onnxprune.graph.model import Graph, Use
from onnxprune.protobuf.nodes import attr, captured, node_key
from onnxprune.protobuf.serialize import copy_all_but

SHRINK = tuple(np.linspace(1.0, 0.8, 9))
"""Shares of the full range that a scale is tried for; that of least square error is taken."""
BIAS = np.int32


@dataclass(frozen=True)
class Held:
    """A constant that a file holds as integers.

    Attributes:
        key: the DequantizeLinear.
        ints: the use of the integers, or of the floats that the graph quantizes.
        scales: the uses of its scale.
        zeros: the uses of its zero point.
        integers: their values, after quantization.
        scale: () or (channels,).
        zero: like the scale, integers; None: zero.
        axis: of the channels.
    """

    key: str
    ints: Use
    scales: tuple[Use, ...]
    zeros: tuple[Use, ...]
    integers: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None
    axis: int

    def value(self) -> np.ndarray:
        """What it stands for, in the type of the scale."""
        zero = 0 if self.zero is None else self._along(self.zero.astype(np.int64))
        return ((self.integers.astype(np.int64) - zero) * self._along(self.scale)).astype(self.scale.dtype)

    def _along(self, value: np.ndarray) -> np.ndarray:
        if value.ndim == 0 or self.integers.ndim == 0:
            return value.reshape(())
        shape = [1] * self.integers.ndim
        shape[self.axis] = -1
        return value.reshape(shape)

    def again(self, value: np.ndarray) -> Held:
        """The same for another value: with a scale of least square error, symmetric where it was."""
        kind = self.integers.dtype
        low, high = int(np.iinfo(kind).min), int(np.iinfo(kind).max)
        middle = 0 if low < 0 else (high + 1) // 2
        zero = np.zeros((), kind) if self.zero is None else self.zero
        rows = self._rows(value.astype(np.float64))
        most = int(np.abs(self.integers.astype(np.int64) - int(zero.reshape(-1)[0])).max(initial=1))
        if (zero == (0 if low < 0 else middle)).all():
            reach = high - middle if most > (high - middle) // 2 + 1 else max(1, (high - middle) // 2 + 1)
            scale = np.abs(rows).max(axis=1) / reach
            scale = _best(rows, scale, np.full(len(rows), middle), low if low < 0 else 0, high)
            found, zeros = scale, np.full(len(rows), int(zero.reshape(-1)[0]))
        else:
            bottom, top = np.minimum(rows.min(axis=1), 0), np.maximum(rows.max(axis=1), 0)
            found = np.where(top > bottom, (top - bottom) / (high - low), 1.0)
            zeros = np.clip(np.rint(low - bottom / found), low, high).astype(np.int64)
        return self._with(value, found.reshape(self.scale.shape), zeros.reshape(zero.shape) if zero.ndim else zeros[0])

    def with_scale(self, value: np.ndarray, scale: np.ndarray) -> Held:
        """The same for another value, with a scale that is given."""
        return self._with(value, scale, np.zeros(()))

    def _with(self, value: np.ndarray, scale: np.ndarray, zero: np.ndarray | int) -> Held:
        kind = self.integers.dtype
        scale = np.where(scale > 0, scale, 1.0).astype(self.scale.dtype)
        zeros = np.asarray(zero, np.int64).reshape(np.shape(zero))
        wide = replace(self, scale=scale, integers=np.zeros(value.shape, kind))
        found = np.rint(value.astype(np.float64) / wide._along(scale.astype(np.float64))) + wide._along(zeros)
        limits = np.iinfo(kind)
        ints = np.clip(found, limits.min, limits.max).astype(kind)
        kept = None if self.zero is None else np.broadcast_to(zeros, self.zero.shape).astype(self.zero.dtype)
        return replace(self, integers=ints, scale=scale, zero=kept)

    def _rows(self, value: np.ndarray) -> np.ndarray:
        """(scales, values each)."""
        if self.scale.ndim == 0 or self.scale.size == 1 or value.ndim == 0:
            return value.reshape(1, -1)
        return np.moveaxis(value, self.axis, 0).reshape(value.shape[self.axis], -1)


def _best(rows: np.ndarray, scale: np.ndarray, zero: np.ndarray, low: int, high: int) -> np.ndarray:
    """The scale of each row, somewhat smaller where that makes less square error."""
    best, least = scale, np.full(len(rows), np.inf)
    for share in SHRINK:
        tried = np.where(scale > 0, scale * share, 1.0)[:, None]
        ints = np.clip(np.rint(rows / tried) + zero[:, None], low, high) - zero[:, None]
        error = np.square(ints * tried - rows).sum(axis=1)
        best, least = np.where(error < least, scale * share, best), np.minimum(error, least)
    return best


def held(graph: Graph) -> dict[str, Held]:
    """The constants that a network holds as integers, by the name of their value."""
    found = {}
    for key, node in graph.nodes.items():
        if operators.of(node).dequantizes and not attr(node, "block_size", 0):
            constant = _held(graph, key, node)
            if constant is not None:
                found[node.output[0]] = constant
    return found


def _held(graph: Graph, key: str, node: onnx.NodeProto) -> Held | None:
    scale, zero = graph.value((key, 1)), graph.value((key, 2))
    value, source = graph.value((key, 0)), graph.nodes.get(graph.producer.get(node.input[0], ""))
    ints, uses = (key, 0), [key]
    if value is None and source is not None and operators.of(source).quantizer:
        first = node_key(source)
        value, ints = graph.value((first, 0)), (first, 0)
        same = [graph.value((first, i)) for i in (1, 2)]
        if value is None or scale is None or not all(map(_same, same, (scale, zero))):
            return None
        uses.append(first)
    if value is None or scale is None or scale.dtype.kind != "f" or scale.ndim > 1:
        return None
    axis = attr(node, "axis", 1)
    axis = axis % value.ndim if scale.ndim and value.ndim else 0
    zeros = () if zero is None else tuple((k, 2) for k in uses)
    found = Held(key, ints, tuple((k, 1) for k in uses), zeros, value, scale, zero, axis)
    if value.dtype.kind == "f":  # quantized by the graph
        kind = np.dtype(np.uint8) if zero is None else zero.dtype
        if kind.kind not in "iu":
            return None
        blank = replace(found, integers=np.zeros(value.shape, kind))
        found = blank._with(value, scale, np.zeros(()) if zero is None else zero.astype(np.int64))
    return found if found.integers.dtype.kind in "iu" else None


def floating(net: Analysed) -> Analysed | None:
    """The network that a quantized one stands for, with the same channels; None where no weight is held as integers."""
    return net.graph.once("floating", net.channels, lambda: _floating(net))


def _floating(net: Analysed) -> Analysed | None:
    graph, constants = net.graph, held(net.graph)
    if not constants:
        return None
    found = Graph(_floats(graph, constants))
    params = {
        use: axes for use, axes in net.channels.params.items()
        if use[0] in found.nodes and found.nodes[use[0]].op_type == graph.nodes[use[0]].op_type
    }  # fmt: skip
    gone = graph.producer.keys() - found.producer.keys() - found.initializers.keys()
    lines = {name: line for name, line in net.channels.lines.items() if name not in gone}
    groups = tuple(replace(g, slices=tuple(_slices(net, found, params, g))) for g in net.channels.groups)
    return Analysed(found, replace(net.channels, groups=groups, params=params, lines=lines), net.feeds, net.said)


def _slices(
    net: Analysed, found: Graph, params: Mapping[Use, Mapping[int, np.ndarray]], group: ChannelGroup
) -> Iterator[Slice]:
    """A group's slices in the network of floats: those of integers are of what reads their values."""
    graph, made = net.graph, dict[str, list[Use]]()
    for use in params:
        name = graph.nodes[use[0]].input[use[1]]
        while name in graph.producer and not operators.of(graph.nodes[graph.producer[name]]).quantizer:
            name = (*graph.nodes[graph.producer[name]].input, "")[0]  # a Transpose or the like
        made.setdefault(graph.producer.get(name, ""), []).append(use)
    for s in group.slices:
        if not s.use[0] or s.use in params:
            yield s
            continue
        for use in made.get(s.use[0], ()):
            value, ints = found.value(use), graph.value(s.use)
            if value is None or ints is None:
                continue
            axis = s.axis if value.shape == ints.shape and s.axis in params[use] else value.ndim - 1 - s.axis
            if axis in params[use] and value.shape[axis] == len(s.channel):
                data = found.nodes[use[0]].input[0]
                yield replace(s, tensor=found.nodes[use[0]].input[use[1]], use=use, axis=axis, reads=s.reads and data)


def in_floats(graph: Graph) -> Graph:
    """A cut network in floats, as `floating` makes the whole."""
    graph.settle()
    return Graph(_floats(graph, held(graph)))


def _floats(graph: Graph, constants: Mapping[str, Held]) -> onnx.ModelProto:
    old, model = graph.model, onnx.ModelProto()
    copy_all_but(old, model, "graph")
    copy_all_but(old.graph, model.graph, "node")
    pairs, new, out = dict(_pairs(graph)), dict[str, str](), model.graph.node
    between = {graph.producer[graph.nodes[key].input[0]] for key in pairs}
    made = {key for c in constants.values() for key, _ in c.scales}
    read = {i for key, n in graph.nodes.items() if key not in made for i in n.input}
    for key, node in graph.nodes.items():
        if key in made and (node.output[0] in constants or node.output[0] not in read):
            if node.output[0] in constants:
                tensor = tensor_of(constants[node.output[0]].value(), node.output[0])
                if old.ir_version < 4:
                    out.append(helper.make_node("Constant", [], [node.output[0]], value=tensor))
                else:
                    model.graph.initializer.append(tensor)
        elif key in pairs:
            source = graph.nodes[graph.producer[node.input[0]]].input[0]
            source = new.get(source, source)
            high = pairs[key]
            if high is not None:
                out.append(_clip(model, source, node.output[0], high, graph.opset))
            elif node.output[0] in graph.outputs:
                out.append(helper.make_node("Identity", [source], [node.output[0]]))
            else:
                new[node.output[0]] = source
        elif key not in between:
            body = onnx.GraphProto(node=[node])
            if new:
                rename(body, {name: to for name, to in new.items() if name not in node.output})
            out.append(body.node[0])
    used = {i for n in out for i in n.input} | {name for n in out for name in captured(n)} | set(graph.outputs)
    was = {name for n in old.graph.node for name in (*n.input, *captured(n))} | set(graph.outputs)
    lost = {t.name for t in model.graph.initializer if t.name in was - used}  # the integers
    for stated in (model.graph.initializer, model.graph.input):
        left = [t for t in stated if t.name not in lost]
        del stated[:]
        stated.extend(left)
    gone = {o for n in old.graph.node for o in n.output} - {o for n in out for o in n.output}
    stored = {t.name for t in model.graph.initializer}
    kept = [v for v in model.graph.value_info if v.name not in gone or v.name in stored]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    return model


def _clip(model: onnx.ModelProto, source: str, name: str, high: np.ndarray, opset: int) -> onnx.NodeProto:
    """A node that does what a pair does whose range begins at zero, but for the rounding."""
    if opset < 11:
        return helper.make_node("Clip", [source], [name], min=0.0, max=float(high))
    bounds = [f"{name}_low", f"{name}_high"]
    for bound, value in zip(bounds, (np.zeros_like(high), high), strict=True):
        model.graph.node.append(helper.make_node("Constant", [], [bound], value=tensor_of(value, bound)))
    return helper.make_node("Clip", [source, *bounds], [name])


def _pairs(graph: Graph) -> Iterator[tuple[str, np.ndarray | None]]:
    """Every DequantizeLinear that undoes a QuantizeLinear of an activation which nothing else reads, with the largest
    value where the least is zero, else None."""
    consumers = graph.consumers()
    for first, node in graph.nodes.items():
        line = operators.of(node)
        if not line.quantizer or line.dequantizes or graph.constant(node.input[0]) is not None:
            continue
        readers = [key for key, _ in consumers.get(node.output[0], [])]
        scale, zero = graph.value((first, 1)), graph.value((first, 2))
        alike = all(operators.of(graph.nodes[k]).dequantizes for k in readers) and all(
            _same(graph.value((k, i)), v) for k in readers for i, v in ((1, scale), (2, zero))
        )
        if not readers or scale is None or scale.size != 1 or not alike or node.output[0] in graph.outputs:
            continue
        kind = np.dtype(np.uint8) if zero is None else zero.dtype
        if kind.kind not in "iu":
            continue
        low, high = np.iinfo(kind).min, np.iinfo(kind).max
        at = 0 if zero is None else int(zero.reshape(-1)[0])
        most = np.asarray((high - at) * scale.reshape(()), scale.dtype) if at == low else None
        yield from ((key, most) for key in readers)


def requantized(repaired: Graph, quantized: Graph) -> Graph:
    """A cut network with what a repair has made of it in floats.

    Args:
        repaired: `in_floats` of the other, repaired.
        quantized: the cut network, edited.
    """
    repaired.settle()
    start, constants = in_floats(quantized), held(quantized)
    consumers = quantized.consumers()
    for key, node in list(quantized.nodes.items()):
        inner = _behind_bias(repaired, key, node)
        if inner is None:
            continue
        weights: dict[int, Held] = {}
        for i, name in enumerate(list(node.input)):
            value = repaired.value((inner, i)) if name else None
            if value is None:
                continue
            before = start.value((key, i))
            if name not in constants:
                if before is not None and not _same(before, value):
                    quantized.set_constant((key, i), value)
                continue
            was = constants[name]
            bias = was.integers.dtype == BIAS
            scale = _bias_scale(quantized, key, weights) if bias and weights else None
            if before is not None and _same(before, value) and scale is None:
                continue
            now = was.again(value) if not bias else was.with_scale(value, was.scale if scale is None else scale)
            weights |= {} if bias else {i: now}
            _put(quantized, (key, i), now, shared=len(consumers[name]) > 1)
        _add_biases(repaired, quantized, key, inner, weights)
    return quantized.settle()


def _behind_bias(repaired: Graph, key: str, node: onnx.NodeProto) -> str | None:
    """What a node of the quantized network is called in the repaired one, where an Add of a bias may have taken its
    name; None where it is not there."""
    found = repaired.nodes.get(key)
    if found is None or found.op_type == node.op_type:
        return None if found is None else key
    inner = repaired.producer.get(found.input[0], "") if is_add(repaired, key) else ""
    return inner if inner and repaired.nodes[inner].op_type == node.op_type else None


def _put(graph: Graph, use: Use, now: Held, *, shared: bool) -> None:
    """Give a use another constant of integers; one that others read too stays theirs."""
    key, i = use
    if shared:
        _dequantized(graph, key, i, now, graph.nodes[key].input[i], now.key)
        return
    graph.set_constant(now.ints, now.integers if now.ints[0] == now.key else now.value())
    for scale in now.scales:
        graph.set_constant(scale, now.scale, exact=True)
    for zero in now.zeros if now.zero is not None else ():
        graph.set_constant(zero, now.zero)  # type: ignore[arg-type]


def _dequantized(graph: Graph, key: str, i: int, now: Held, stem: str, behind: str) -> None:
    """Let an operand of a node be what a new DequantizeLinear makes, which stands behind another node."""
    names = [graph.add_constant(f"{stem}_{what}", v) for what, v in (("quantized", now.integers), ("scale", now.scale))]
    if now.zero is not None:
        names.append(graph.add_constant(f"{stem}_zero_point", now.zero))
    name = graph.fresh(f"{stem}_dequantized")
    graph.insert_after(behind, helper.make_node("DequantizeLinear", names, [name], axis=now.axis))
    own = graph.own(key)
    own.input.extend([""] * (i + 1 - len(own.input)))
    own.input[i] = name


def _bias_scale(graph: Graph, key: str, weights: Mapping[int, Held]) -> np.ndarray | None:
    """The scale that ONNX Runtime wants a bias to have: that of what a layer reads times that of its weight; None where
    it reads nothing quantized."""
    product = operators.of(graph.nodes[key]).product
    if product is None or product.weight not in weights:
        return None
    source = graph.nodes.get(graph.producer.get(graph.nodes[key].input[product.data], ""))
    scale = None if source is None or not operators.of(source).dequantizes else graph.value((node_key(source), 1))
    return None if scale is None or scale.size != 1 else scale.reshape(()) * weights[product.weight].scale


def _add_biases(repaired: Graph, graph: Graph, key: str, inner: str, weights: Mapping[int, Held]) -> None:
    """Give a layer the bias that the repair has given it, and that it did not have."""
    product = operators.of(graph.nodes[key]).product
    if inner != key:
        bias = repaired.value((key, 1))
        if bias is None:
            return
        own = graph.own(key)
        name, own.output[0] = own.output[0], graph.fresh(f"{key}_unbiased")
        added = graph.add_constant(f"{key}_bias", bias)
        graph.insert_after(key, helper.make_node("Add", [own.output[0], added], [name]))
        return
    at = None if product is None else product.bias
    if at is None or (len(graph.nodes[key].input) > at and graph.nodes[key].input[at]):
        return
    bias = repaired.value((key, at)) if len(repaired.nodes[key].input) > at else None
    if bias is None:
        return
    scale = _bias_scale(graph, key, weights)
    if scale is None:
        graph.set_constant((key, at), bias)
        return
    blank = Held(key, (key, at), (), (), np.zeros(bias.shape, BIAS), scale, None, 0)
    weight = next(iter(weights.values()))
    _dequantized(graph, key, at, blank.with_scale(bias, scale), f"{key}_bias", weight.key)


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
