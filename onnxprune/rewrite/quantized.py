"""A quantized network repaired: taken to floats, repaired as any other, and quantized again.

In the format of QuantizeLinear and DequantizeLinear, weights are integers behind a DequantizeLinear, and activations go
through a pair of both; where scales are chosen at run time, products of integers are scaled (`integers`). `floating`
gives the network that these stand for: weights as their values, pairs left out, or a Clip where a pair's range begins
at zero, which is a ReLU that the quantizer has swallowed. What a repair makes of that goes back by `requantized`:
integers with scales that are chosen anew, one a channel where the file has that; all else is as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper

from onnxprune.channels import Analysed, ChannelGroup, Slice
from onnxprune.graph import operators
from onnxprune.graph.branches import rename
from onnxprune.graph.export import tensor_of
from onnxprune.graph.layers import is_add
from onnxprune.graph.model import Graph, Use
from onnxprune.protobuf.nodes import attr, captured, node_key, set_attr
from onnxprune.protobuf.serialize import copy_all_but
from onnxprune.rewrite.activation_scales import pairs
from onnxprune.rewrite.held import Held, limits, same_bytes
from onnxprune.rewrite.integers import Product, products, put_back

BIAS = np.int32


def held(graph: Graph) -> dict[str, Held]:
    """The constants that a network holds as integers, by the name of their value."""
    return graph.once("held as integers", graph, lambda: _constants(graph))


def _constants(graph: Graph) -> dict[str, Held]:
    found = {}
    for key, node in graph.nodes.items():
        if operators.of(node).dequantizes:
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
        if value is None or scale is None or not all(map(same_bytes, same, (scale, zero))):
            return None
        uses.append(first)
    block = attr(node, "block_size", 0)
    if value is None or scale is None or scale.dtype.kind != "f" or (scale.ndim > 1 and not block):
        return None
    axis = attr(node, "axis", 1)
    axis = axis % value.ndim if scale.ndim and value.ndim else 0
    zeros = () if zero is None else tuple((k, 2) for k in uses)
    found = Held(key, ints, tuple((k, 1) for k in uses), zeros, value, scale, zero, axis, block)
    if value.dtype.kind == "f":  # quantized by the graph
        kind = np.dtype(np.uint8) if zero is None else zero.dtype
        if limits(kind) is None:
            return None
        blank = replace(found, integers=np.zeros(value.shape, kind))
        found = blank._with(value, scale, np.zeros(()) if zero is None else zero.astype(np.int64))
    return found if limits(found.integers.dtype) is not None else None


def floating(net: Analysed) -> Analysed | None:
    """The network that a quantized one stands for, with the same channels; None where no weight is held as integers."""
    return net.graph.once("floating", net.channels, lambda: _floating(net))


def _floating(net: Analysed) -> Analysed | None:
    graph, constants, integers = net.graph, held(net.graph), products(net.graph)
    if not constants and not integers:
        return None
    found = Graph(_floats(graph, constants, integers))
    params = {
        use: axes for use, axes in net.channels.params.items()
        if use[0] in found.nodes
        and (found.nodes[use[0]].op_type == graph.nodes[use[0]].op_type or (use[0] in integers and use[1] == 1))
    }  # fmt: skip
    gone = graph.producer.keys() - found.producer.keys() - found.initializers.keys()
    lines = {name: line for name, line in net.channels.lines.items() if name not in gone}
    groups = tuple(replace(g, slices=tuple(_slices(net, found, params, g))) for g in net.channels.groups)
    reads = {use: read for use, read in net.channels.reads.items() if use[0] in found.nodes}
    channels = replace(net.channels, groups=groups, params=params, lines=lines, reads=reads)
    return Analysed(found, channels, net.feeds, net.said)


def _slices(
    net: Analysed, found: Graph, params: Mapping[Use, Mapping[int, np.ndarray]], group: ChannelGroup
) -> Iterator[Slice]:
    """A group's slices in the network of floats: those of integers are of what reads their values."""
    graph, made, constants = net.graph, dict[str, list[Use]](), held(net.graph)
    for use in params:
        name = graph.nodes[use[0]].input[use[1]]
        while name in graph.producer and not operators.of(graph.nodes[graph.producer[name]]).quantizer:
            name = (*graph.nodes[graph.producer[name]].input, "")[0]  # a Transpose or the like
        made.setdefault(constants[name].ints[0] if name in constants else graph.producer.get(name, ""), []).append(use)
    for s in group.slices:
        if not s.use[0] or s.use in params:
            node = found.nodes.get(s.use[0])
            other = node is not None and node.op_type != graph.nodes[s.use[0]].op_type
            yield s if node is None or not other else replace(s, tensor=node.input[1], reads=s.reads and node.input[0])
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
    return Graph(_floats(graph, held(graph), products(graph)))


def weights_in_floats(graph: Graph) -> Graph:
    """The network with its weights as the floats that they stand for; activations stay quantized."""
    return Graph(_floats(graph, held(graph), {}, {}))


def _floats(
    graph: Graph,
    constants: Mapping[str, Held],
    integers: Mapping[str, Product],
    undone: Mapping[str, np.ndarray | None] | None = None,
) -> onnx.ModelProto:
    """The model; `undone`: the nodes of which activations do without their pair, None: all (`pairs`)."""
    old, model = graph.model, onnx.ModelProto()
    undone = {key: p.most for p in pairs(graph) for key in p.readers} if undone is None else undone
    copy_all_but(old, model, "graph")
    copy_all_but(old.graph, model.graph, "node")
    new, out = dict[str, str](), model.graph.node
    between = {graph.producer[graph.nodes[key].input[0]] for key in undone}
    made = {key for c in constants.values() for key, _ in c.scales}
    read = {i for key, n in graph.nodes.items() if key not in made for i in n.input}
    scaled = {key for p in integers.values() for key in p.gone}
    for key, node in graph.nodes.items():
        if key in scaled:
            continue
        if key in integers:
            p = integers[key]
            layer, weight = p.floating(graph, node, new.get(p.source, p.source))
            model.graph.initializer.append(weight)
            out.append(layer)
            if p.end in graph.outputs:
                out.append(helper.make_node("Identity", [key], [p.end]))
            else:
                new[p.end] = key
        elif key in made and (node.output[0] in constants or node.output[0] not in read):
            if node.output[0] in constants:
                tensor = tensor_of(constants[node.output[0]].value(), node.output[0])
                if old.ir_version < 4:
                    out.append(helper.make_node("Constant", [], [node.output[0]], value=tensor))
                else:
                    model.graph.initializer.append(tensor)
        elif key in undone:
            source = graph.nodes[graph.producer[node.input[0]]].input[0]
            source = new.get(source, source)
            high = undone[key]
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
    kept = [v for v in model.graph.value_info if (v.name not in gone or v.name in stored) and v.name not in integers]
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
                if before is not None and not same_bytes(before, value):
                    quantized.set_constant((key, i), value)
                continue
            was = constants[name]
            bias = was.integers.dtype == BIAS
            scale = bias_scale(quantized, key, weights) if bias and weights else None
            fits = scale is None or np.allclose(scale, was.scale, 1e-6)
            if fits and before is not None and same_bytes(before, value):
                weights |= {} if bias else {i: was}
                continue
            now = was.again(value) if not bias else was.with_scale(value, was.scale if scale is None else scale)
            weights |= {} if bias else {i: now}
            put(quantized, (key, i), now, shared=len(consumers[name]) > 1)
        _add_biases(repaired, quantized, key, inner, weights)
    put_back(repaired, quantized)
    return quantized.settle()


def _behind_bias(repaired: Graph, key: str, node: onnx.NodeProto) -> str | None:
    """What a node of the quantized network is called in the repaired one, where an Add of a bias may have taken its
    name; None where it is not there."""
    found = repaired.nodes.get(key)
    if found is None or found.op_type == node.op_type:
        return None if found is None else key
    inner = repaired.producer.get(found.input[0], "") if is_add(repaired, key) else ""
    return inner if inner and repaired.nodes[inner].op_type == node.op_type else None


def put(graph: Graph, use: Use, now: Held, *, shared: bool) -> None:
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
    new = helper.make_node("DequantizeLinear", names, [name], axis=now.axis)
    if now.block:
        set_attr(new, "block_size", now.block)
    graph.insert_after(behind, new)
    own = graph.own(key)
    own.input.extend([""] * (i + 1 - len(own.input)))
    own.input[i] = name


def bias_scale(graph: Graph, key: str, weights: Mapping[int, Held]) -> np.ndarray | None:
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
    scale = bias_scale(graph, key, weights)
    if scale is None:
        graph.set_constant((key, at), bias)
        return
    blank = Held(key, (key, at), (), (), np.zeros(bias.shape, BIAS), scale, None, 0)
    weight = next(iter(weights.values()))
    _dequantized(graph, key, at, blank.with_scale(bias, scale), f"{key}_bias", weight.key)
