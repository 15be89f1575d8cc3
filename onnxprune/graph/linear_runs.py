"""Runs of nodes that are linear, in whatever spelling, as one convolution: found here, from the graph alone.

A run goes from one tensor to the output of one node, and nobody else reads what lies inside. What its operators do
to the axes is followed: a map is of (samples, channels, positions), and each tensor has these axes in some order, so
that a BatchNormalization spelled with channels last, between two Transposes, is what it is. Only float constants that
are stored as they are read count: what is quantized, or stored in half precision, would not stay so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnxprune.graph import operators
from onnxprune.graph.behaviour import padding, scaling
from onnxprune.graph.layers import keeps_statistics, weight_axes
from onnxprune.graph.model import Graph, Use
from onnxprune.numerics.convolutions import ConvMap, after, beside, identity, scaled
from onnxprune.protobuf.nodes import attr, captured

LONGEST = 24
"""Nodes that a run may have."""
OLDEST = 7
"""The opset from which on operands of two sizes meet at their last axes."""
Perm = tuple[int, ...]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Run:
    """A run of nodes as one map.

    Attributes:
        source: the tensor that it reads.
        nodes: their keys, in execution order; the last one's output is the run's.
        map: what it does.
        start, end: for each axis of what it reads and writes, which one of (samples, channels, positions) that is.
        dtype: of all its constants.
        weights: numbers in the weights of its layers, those that nobody else reads.
        macs: multiply-accumulates.
    """

    source: str
    nodes: tuple[str, ...]
    map: ConvMap
    start: Perm
    end: Perm
    dtype: np.dtype
    weights: int
    macs: float


@dataclass(frozen=True)
class _At:
    """A tensor inside a run: the map that makes it, and the order of its axes."""

    map: ConvMap
    perm: Perm

    @property
    def channels(self) -> int:
        """The axis of channels."""
        return self.perm.index(1)


def runs_to(
    graph: Graph, end: str, shapes: Shapes, order: Mapping[str, int], consumers: Mapping[str, list[Use]]
) -> Iterator[Run]:
    """Every run that ends at a node, the shortest first.

    Args:
        graph: the network.
        end: key of the node.
        shapes: sizes of its tensors in a run.
        order: place of each key.
        consumers: of every tensor.
    """
    for source, inside in _regions(graph, end, order, consumers):
        rank = len(shapes.get(source, ()))
        for start in dict.fromkeys((tuple(range(rank)), (0, *range(2, rank), 1))) if rank > 1 else ():
            run = _lifted(graph, source, sorted(inside, key=order.__getitem__), start, shapes, consumers)
            if run is not None:
                yield run
                break


def _regions(
    graph: Graph, end: str, order: Mapping[str, int], consumers: Mapping[str, list[Use]]
) -> Iterator[tuple[str, set[str]]]:
    """(what is read, keys of nodes) for ever more nodes ahead of one, as long as nobody else reads what they make."""

    def reads(key: str) -> set[str]:
        return {name for name in graph.nodes[key].input if name and graph.constant(name) is None}

    kept = set(graph.outputs) | set(graph.captured())
    front, inside = reads(end), {end}
    while front and _known(graph.nodes[end]) and len(inside) < LONGEST:
        if len(front) == 1:
            yield next(iter(front)), set(inside)
        key = max((graph.producer.get(name, "") for name in front), key=lambda k: order.get(k, -1))
        made = [o for o in graph.nodes[key].output if o] if key else []
        if not key or not _known(graph.nodes[key]) or captured(graph.nodes[key]) or kept.intersection(made):
            return
        if any(reader not in inside for o in made for reader, _ in consumers.get(o, ())):
            return
        inside.add(key)
        front = (front - set(made)) | reads(key)


def _known(node: onnx.NodeProto) -> bool:
    line = operators.of(node)
    return not line.domain and line.name in RULES


def _lifted(
    graph: Graph, source: str, keys: list[str], start: Perm, shapes: Shapes, consumers: Mapping[str, list[Use]]
) -> Run | None:
    """The nodes as one map of a tensor whose axes are in that order; None where they are none."""
    layers = [key for key in keys if operators.of(graph.nodes[key]).product]
    if (
        graph.opset < OLDEST
        or not layers
        or _ends_an_activation(graph, source, keys)
        or (values := _constants(graph, keys)) is None
    ):
        return None
    channels = shapes[source][start.index(1)]
    at: dict[str, _At | None] = {source: _At(identity(channels, len(start) - 2), start)}
    macs = weights = 0.0
    for key in keys:
        node = graph.nodes[key]
        found = RULES[node.op_type](graph, node, at)
        if found is None or len(shapes.get(key, ())) != len(start):
            return None
        at[node.output[0]] = found
        if key in layers:
            W = values[node.input[1]]
            weights += W.size if _own(graph, node.input[1], keys, consumers) else 0
            macs += W.size * positions(shapes[key], found.perm)
    last, dtypes = at[keys[-1]], {v.dtype for v in values.values()}
    if last is None or len(dtypes) != 1 or (dtype := dtypes.pop()).char not in "fd":
        return None
    return Run(source, tuple(keys), last.map, start, last.perm, dtype, int(weights), macs)


def _ends_an_activation(graph: Graph, source: str, keys: Collection[str]) -> bool:
    """Whether a run begins with one number for all channels behind a product of two tensors: the half of a GELU that is
    spelled out, say, which a runtime makes one operator of as long as it is whole."""
    maker = graph.nodes.get(graph.producer.get(source, ""))
    gate = maker is not None and operators.of(maker).arithmetic == "*"
    first = [graph.nodes[key] for key in keys if source in graph.nodes[key].input]
    sides = [graph.constant(name) for node in first if operators.of(node).arithmetic for name in node.input]
    return gate and any(v is not None and v.size == 1 for v in sides)


def positions(shape: tuple[int, ...], perm: Perm) -> int:
    """Outputs of one channel, all samples together."""
    return int(np.prod([n for n, axis in zip(shape, perm, strict=True) if axis != 1]))


def _own(graph: Graph, name: str, keys: Collection[str], consumers: Mapping[str, list[Use]]) -> bool:
    """Whether nobody but those nodes reads a constant, or what it is made of: directly or by way of others."""
    while (maker := graph.nodes.get(graph.producer.get(name, ""))) and maker.input:
        name = maker.input[0]
    waiting = [name]
    while waiting:
        made = waiting.pop()
        if made in graph.outputs:
            return False
        for key in {key for key, _ in consumers.get(made, ())}.difference(keys):
            if graph.constant(graph.nodes[key].output[0]) is None:
                return False
            waiting += graph.nodes[key].output
    return True


def _constants(graph: Graph, keys: Collection[str]) -> dict[str, np.ndarray] | None:
    """The float constants that nodes read; None where one is not stored as it is read."""
    found = {}
    for key in keys:
        for name in graph.nodes[key].input:
            value = graph.constant(name) if name else None
            if value is None or value.dtype.kind != "f":
                continue
            if not np.isfinite(value).all():
                return None
            back = name
            while maker := graph.nodes.get(graph.producer.get(back, "")):
                line = operators.of(maker)
                if line.casts or line.quantizer:
                    return None
                back = maker.input[0] if maker.input else ""
            found[name] = value
    return found


# -- one rule an operator: what it makes of the maps of what it reads, None where that is no map ----------------------

Rule = Callable[[Graph, onnx.NodeProto, Mapping[str, "_At | None"]], "_At | None"]


def _handed_on(graph: Graph, node: onnx.NodeProto, at: Mapping[str, _At | None]) -> _At | None:
    training = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    return None if training is None or training.any() or any(node.output[1:]) else at.get(node.input[0])


def _transposed(graph: Graph, node: onnx.NodeProto, at: Mapping[str, _At | None]) -> _At | None:
    x = at.get(node.input[0])
    return x and _At(x.map, tuple(x.perm[k] for k in attr(node, "perm", range(len(x.perm))[::-1])))


def _normalized(graph: Graph, node: onnx.NodeProto, at: Mapping[str, _At | None]) -> _At | None:
    x, stored = at.get(node.input[0]), [graph.constant(name) for name in node.input[1:5]]
    if x is None or x.channels != 1 or not keeps_statistics(node) or any(node.output[1:]):
        return None
    if any(v is None for v in stored):
        return None
    scale, shift, mean, var = (np.asarray(v, np.float64) for v in stored)
    if (var < 0).any() or not attr(node, "spatial", 1):
        return None
    factor = scale / np.sqrt(var + attr(node, "epsilon", 1e-5))
    return _At(scaled(x.map, factor, shift - factor * mean), x.perm)


def _vector(value: np.ndarray, x: _At) -> np.ndarray | None:
    """(channels,) float64: a constant that meets a tensor, where it is one number a channel."""
    sizes = (1,) * (len(x.perm) - value.ndim) + value.shape
    if len(sizes) > len(x.perm) or any(n > 1 for k, n in enumerate(sizes) if k != x.channels):
        return None
    fits = value.size in (1, x.map.outputs)
    return np.broadcast_to(value.astype(np.float64).ravel(), (x.map.outputs,)) if fits else None


def _computed(graph: Graph, node: onnx.NodeProto, at: Mapping[str, _At | None]) -> _At | None:
    """Sums of two maps, and a map with a constant."""
    kind, sides = operators.of(node).arithmetic, [at.get(name) for name in node.input]
    known = [graph.constant(name) for name in node.input]
    one, other = sides
    if one is not None and other is not None:
        negative = np.full(other.map.outputs, -1.0)
        both = other.map if kind == "+" else scaled(other.map, negative, 0 * negative)
        joined = beside(one.map, both) if kind in ("+", "-") and one.perm == other.perm else None
        return None if joined is None else _At(joined, one.perm)
    x, value = (one, known[1]) if one is not None else (other, known[0])
    v = None if x is None or value is None else _vector(value, x)
    if x is None or v is None or (kind == "/" and (one is None or not v.all())):
        return None
    none, ones = np.zeros_like(v), np.ones_like(v)
    factor, shift = {
        "*": (v, none),
        "/": (1 / np.where(v == 0, 1, v), none),
        "+": (ones, v),
        "-": (ones, -v) if one is not None else (-ones, v),
    }[kind]
    return _At(scaled(x.map, factor, shift), x.perm)


def _padded(graph: Graph, node: onnx.NodeProto, at: Mapping[str, _At | None]) -> _At | None:
    """Zeros around positions; not around channels or samples, and nothing taken off."""
    x = at.get(node.input[0])
    if x is None or attr(node, "mode", "constant") != "constant" or not scaling(graph, node, constants=False):
        return None
    sides = padding(node, len(x.perm), lambda i: graph.constant(node.input[i]))
    if sides is None or any(min(s) < 0 or (any(s) and x.perm[k] < 2) for k, s in sides.items()):
        return None
    of = {x.perm[k]: s for k, s in sides.items()}
    ends = [tuple(of.get(axis, (0, 0))[side] for axis in range(2, len(x.perm))) for side in (0, 1)]
    return _then(x, identity(x.map.outputs, len(x.perm) - 2, *ends))


def _then(x: _At, layer: ConvMap) -> _At | None:
    whole = after(x.map, layer)
    return None if whole is None else _At(whole, x.perm)


def _convolved(graph: Graph, node: onnx.NodeProto, at: Mapping[str, _At | None]) -> _At | None:
    x, W = at.get(node.input[0]), graph.constant(node.input[1])
    if x is None or W is None or x.perm != tuple(range(len(x.perm))) or W.ndim != len(x.perm):
        return None
    axes, own = W.ndim - 2, W
    ones, taps = [1] * axes, W.shape[2:]
    steps = tuple(attr(node, "dilations", ones))
    sides = _sides(node, taps, steps)
    bias = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(len(W))
    if sides is None or bias is None:
        return None
    groups, strides = attr(node, "group", 1), tuple(attr(node, "strides", ones))
    layer = ConvMap(
        len(W), W.shape[1] * groups, groups, taps, strides, steps, *sides, bias.astype(np.float64),
        lambda: own.astype(np.float64),
    )  # fmt: skip
    return _then(x, layer)


def _sides(node: onnx.NodeProto, taps: tuple[int, ...], steps: tuple[int, ...]) -> tuple[Perm, Perm] | None:
    """Zeros before and behind each axis; None where they depend on how long it is, or where something is cut off."""
    axes, kind = len(taps), attr(node, "auto_pad", "NOTSET")
    if kind in ("SAME_UPPER", "SAME_LOWER"):
        more = [s * (n - 1) for s, n in zip(steps, taps, strict=True)]
        less = tuple(n // 2 for n in more)
        rest = tuple(n - n // 2 for n in more)
        if any(s > 1 for s in attr(node, "strides", [])):
            return None
        return (less, rest) if kind == "SAME_UPPER" else (rest, less)
    pads = attr(node, "pads", [0] * 2 * axes) if kind == "NOTSET" else [0] * 2 * axes
    return None if min(pads, default=0) < 0 else (tuple(pads[:axes]), tuple(pads[axes:]))


def _multiplied(graph: Graph, node: onnx.NodeProto, at: Mapping[str, _At | None]) -> _At | None:
    """MatMul and Gemm: a layer of points, whose channels are the last axis."""
    x, W = at.get(node.input[0]), graph.constant(node.input[1])
    if x is None or W is None or W.ndim != 2 or x.channels != len(x.perm) - 1 or attr(node, "transA", 0):
        return None
    W = W.astype(np.float64) * attr(node, "alpha", 1.0)
    W = W if weight_axes(node)[0] == 0 else W.T
    points = W.reshape(*W.shape, *[1] * (len(x.perm) - 2))
    if len(W[0]) != x.map.outputs:
        return None
    point = identity(len(W), points.ndim - 2)
    found = _then(x, replace(point, inputs=len(W[0]), groups=1, make=lambda: points))
    if found is None or len(node.input) < 3 or not node.input[2]:
        return found
    bias = graph.constant(node.input[2])
    v = None if bias is None else _vector(bias * attr(node, "beta", 1.0), found)
    return None if v is None else _At(scaled(found.map, np.ones_like(v), v), found.perm)


RULES: Mapping[str, Rule] = {
    "Identity": _handed_on,
    "Dropout": _handed_on,
    "Transpose": _transposed,
    "BatchNormalization": _normalized,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _computed),
    "Pad": _padded,
    "Conv": _convolved,
    **dict.fromkeys(("MatMul", "Gemm"), _multiplied),
}
"""Operator -> what it does to a map. Whether nobody trains through it, it asks itself."""
EMPTY = frozenset(("Identity", "Dropout", "Transpose"))
"""Those that no run ends at: they compute nothing."""
