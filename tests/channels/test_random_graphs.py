"""Random small graphs out of an operator table: whatever is cut, the result equals the masked original.

Every entry of the table appends a few nodes to a net that grows from one image, and hands the new map on. A
graph is 3 to 10 entries and a head. ONNXPRUNE_GRAPHS sets how many graphs are tried (default 500).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from random import Random

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from tests.channels import surgery

COUNT = int(os.environ.get("ONNXPRUNE_GRAPHS", "500"))
TABLE: list[Callable[[Net, str], str]] = []


class Net:
    """A growing graph: nodes, weights, and the maps (1, C, H, W) that an entry may read."""

    def __init__(self, rnd: Random):
        self.rnd, self.numbers = rnd, np.random.default_rng(rnd.randrange(1 << 30))
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.maps: dict[str, tuple[int, int]] = {"x": (3, 8)}
        self.count = 0

    def name(self, stem: str = "t") -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def op(self, op: str, *inputs: str, outputs: int = 1, **attrs: object) -> str | list[str]:
        outs = [self.name() for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), outs, **attrs))
        return outs[0] if outputs == 1 else outs

    def ints(self, *values: int) -> str:
        name = self.name("i")
        self.weights[name] = np.array(values, np.int64)
        return name

    def weight(self, *shape: int) -> str:
        """A float weight: fresh or shared with an earlier one, plain, in a Constant node, or behind a path."""
        alike = [n for n, v in self.weights.items() if v.shape == shape and v.dtype == np.float32]
        if alike and self.rnd.random() < 0.25:
            return self.rnd.choice(alike)
        name = self.name("w")
        fan = max(1, int(np.prod(shape[1:])))
        value = (self.numbers.standard_normal(shape) / np.sqrt(fan) * 1.4).astype(np.float32)
        way = self.rnd.randrange(8)
        if way == 0:
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)))
            return name
        self.weights[name] = value
        if way == 1:
            return self.op("Identity", name)
        if way == 2:
            order = list(range(len(shape)))[::-1]
            self.weights[name] = np.ascontiguousarray(value.transpose(order))
            return self.op("Transpose", name, perm=order)
        if way == 3:
            self.weights[name] = value.reshape(-1)
            return self.op("Reshape", name, self.ints(*shape))
        return name

    def add(self, name: str, channels: int, size: int) -> str:
        self.maps[name] = (channels, size)
        return name

    def conv(self, x: str, out: int, kernel: int = 1, group: int = 1) -> str:
        channels, size = self.maps[x]
        inputs = [x, self.weight(out, channels // group, kernel, kernel)]
        if self.rnd.random() < 0.5:
            inputs.append(self.weight(out))
        y = self.op("Conv", *inputs, group=group, pads=[kernel // 2] * 4)
        return self.add(y, out, size)

    def like(self, x: str, channels: int) -> str:
        """Some map of the size of x with so many channels: an earlier one, or a conv of x."""
        size = self.maps[x][1]
        fits = [m for m, s in self.maps.items() if s == (channels, size)]
        return self.rnd.choice(fits) if fits and self.rnd.random() < 0.7 else self.conv(x, channels)


def entry(function: Callable[[Net, str], str]) -> Callable[[Net, str], str]:
    TABLE.append(function)
    return function


@entry
def conv(net: Net, x: str) -> str:
    return net.conv(x, net.rnd.choice((2, 4, 6, 8, 12)), net.rnd.choice((1, 3)))


@entry
def grouped(net: Net, x: str) -> str:
    channels = net.maps[x][0]
    groups = net.rnd.choice([g for g in (1, 2, 3, 4, 6) if channels % g == 0])
    return net.conv(x, groups * net.rnd.randint(1, 4), 3, groups)


@entry
def depthwise(net: Net, x: str) -> str:
    channels = net.maps[x][0]
    return net.conv(x, channels * net.rnd.choice((1, 1, 2)), 3, channels)


@entry
def transposed(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    group = net.rnd.choice([g for g in (1, 2, channels) if channels % g == 0])
    out = net.rnd.choice((1, 2, 3))
    y = net.op("ConvTranspose", x, net.weight(channels, out, 3, 3), group=group, pads=[1] * 4)
    return net.add(y, out * group, size)


@entry
def batch_norm(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    var = net.name("w")
    net.weights[var] = net.numbers.uniform(0.5, 1.5, channels).astype(np.float32)
    y = net.op("BatchNormalization", x, *(net.weight(channels) for _ in range(3)), var)
    return net.add(y, channels, size)


@entry
def unary(net: Net, x: str) -> str:
    return net.add(net.op(net.rnd.choice(("Relu", "Sigmoid", "Tanh", "HardSwish")), x), *net.maps[x])


@entry
def residual(net: Net, x: str) -> str:
    return net.add(net.op(net.rnd.choice(("Add", "Mul", "Max")), x, net.like(x, net.maps[x][0])), *net.maps[x])


@entry
def constant(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    shape = net.rnd.choice(((channels, 1, 1), (1, channels, 1, 1), (size,), (1, channels, size, size), (1,)))
    return net.add(net.op(net.rnd.choice(("Add", "Mul", "Sub")), x, net.weight(*shape)), channels, size)


@entry
def prelu(net: Net, x: str) -> str:
    return net.add(net.op("PRelu", x, net.weight(net.maps[x][0], 1, 1)), *net.maps[x])


@entry
def concat(net: Net, x: str) -> str:
    size = net.maps[x][1]
    others = [m for m, s in net.maps.items() if s[1] == size]
    parts = [x, *net.rnd.choices(others, k=net.rnd.randint(1, 2))]
    total = sum(net.maps[p][0] for p in parts)
    if total > 24:
        return x
    return net.add(net.op("Concat", *parts, axis=net.rnd.choice((1, -3))), total, size)


@entry
def split(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    if channels < 2:
        return x
    first = net.rnd.randint(1, channels - 1)
    if channels % 2 == 0 and net.rnd.random() < 0.5:
        first = channels // 2
        a, b = net.op("Split", x, axis=1, num_outputs=2, outputs=2)
    else:
        a, b = net.op("Split", x, net.ints(first, channels - first), axis=1, outputs=2)
    net.add(a, first, size)
    return net.add(b, channels - first, size)


@entry
def slice_(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    first = net.rnd.randint(0, channels - 1)
    last = net.rnd.randint(first + 1, channels)
    start = net.rnd.choice((first, first - channels))
    end = net.rnd.choice((last, last - channels if last < channels else (1 << 31) - 1))
    return net.add(net.op("Slice", x, net.ints(start), net.ints(end), net.ints(1)), last - first, size)


@entry
def gather(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    index = net.rnd.choices(range(-channels, channels), k=net.rnd.randint(2, channels + 1))
    return net.add(net.op("Gather", x, net.ints(*index), axis=1), len(index), size)


@entry
def shuffle(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    groups = net.rnd.choice([g for g in (2, 3, 4) if channels % g == 0] or [1])
    a = net.op("Reshape", x, net.ints(net.rnd.choice((0, -1)), groups, channels // groups, size, size))
    b = net.op("Transpose", a, perm=[0, 2, 1, 3, 4])
    return net.add(net.op("Reshape", b, net.ints(0, net.rnd.choice((channels, -1)), size, size)), channels, size)


@entry
def squeeze_excite(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    p = net.add(net.op("GlobalAveragePool", x), channels, 1)
    s = net.op("Sigmoid", net.conv(net.op_map("Relu", net.conv(p, 2)), channels))
    return net.add(net.op("Mul", x, s), channels, size)


def _op_map(net: Net, op: str, x: str) -> str:
    return net.add(net.op(op, x), *net.maps[x])


Net.op_map = _op_map  # type: ignore[attr-defined]


@entry
def pooled(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    if size < 4:
        return x
    op = net.rnd.choice(("MaxPool", "AveragePool"))
    return net.add(net.op(op, x, kernel_shape=[2, 2], strides=[2, 2]), channels, size // 2)


@entry
def resized(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    if size > 8:
        return x
    y = net.op("Resize", x, "", "", net.ints(1, channels, 2 * size, 2 * size), mode="nearest")
    return net.add(y, channels, 2 * size)


@entry
def depth_space(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    if channels % 4 == 0 and size <= 8:
        y = net.op("DepthToSpace", x, blocksize=2, mode=net.rnd.choice(("DCR", "CRD")))
        return net.add(y, channels // 4, size * 2)
    if size % 2 == 0 and channels <= 6:
        return net.add(net.op("SpaceToDepth", x, blocksize=2), channels * 4, size // 2)
    return x


@entry
def channels_last(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    t = net.op("Transpose", x, perm=[0, 2, 3, 1])
    y = net.op("Add", net.op("Mul", t, net.weight(channels)), net.weight(1, 1, 1, channels))
    if net.rnd.random() < 0.3:
        y = net.op("LayerNormalization", y, net.weight(channels), net.weight(channels))
    elif net.rnd.random() < 0.5:
        wide = net.rnd.choice((4, 8))
        h = net.op("Relu", net.op("Add", net.op("MatMul", y, net.weight(channels, wide)), net.weight(wide)))
        y = net.op("Add", y, net.op("MatMul", h, net.weight(wide, channels)))
    return net.add(net.op("Transpose", y, perm=[0, 3, 1, 2]), channels, size)


@entry
def group_norm(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    groups = net.rnd.choice([g for g in (1, 2, 3, 4) if channels % g == 0])
    r = net.op("Reshape", x, net.ints(0, groups, -1))
    n = net.op("InstanceNormalization", r, net.weight(groups), net.weight(groups))
    return net.add(net.op("Reshape", n, net.ints(0, channels, size, size)), channels, size)


def pad(net: Net, x: str, before: int, after: int) -> str:
    """More channels, or fewer, in one of the ways in which a Pad says how many."""
    channels, size = net.maps[x]
    number = net.name("n")
    net.weights[number] = np.array(net.rnd.choice((0.0, 0.5)), np.float32)
    way = net.rnd.randrange(4)
    if way == 0:
        y = net.op("Pad", x, net.ints(0, before, 0, 0, 0, after, 0, 0), number)
    elif way == 1:
        y = net.op("Pad", x, net.ints(0, before, 0, after), "", net.ints(2, -3))
    elif way == 2:  # as many as are still wanting
        counted = net.op("Slice", net.op("Shape", x), net.ints(1), net.ints(2))
        more = net.op("Sub", net.ints(channels + before + after), net.op("Add", counted, net.ints(before)))
        y = net.op("Pad", x, net.op("Concat", net.ints(0, before, 0, 0, 0), more, net.ints(0, 0), axis=0), number)
    else:  # zeros of their own on either side
        wide = [net.op("Expand", number, net.ints(1, n, size, size)) for n in (before, after) if n > 0]
        kept = net.op("Slice", x, net.ints(max(0, -before)), net.ints(channels + min(0, after)), net.ints(1))
        y = net.op("Concat", *(wide[:1] if before > 0 else []), kept, *(wide[-1:] if after > 0 else []), axis=1)
    return net.add(y, channels + before + after, size)


@entry
def padded(net: Net, x: str) -> str:
    least = 0 if net.maps[x][0] < 4 else -1
    return pad(net, x, net.rnd.randint(least, 2), net.rnd.randint(least, 2))


@entry
def padded_shortcut(net: Net, x: str) -> str:
    """Fewer positions and more channels without a weight, beside a conv that makes as many of both."""
    channels, size = net.maps[x]
    if size % 2 or channels > 8:
        return x
    far = net.rnd.choice((size, 1 << 40))
    small = net.op("Slice", x, net.ints(0, 0), net.ints(far, far), net.ints(2, 3), net.ints(2, 2))
    shortcut = pad(net, net.add(small, channels, size // 2), net.rnd.randint(0, 3), net.rnd.randint(0, 3))
    y = net.conv(small, net.maps[shortcut][0], 3)
    return net.add(net.op("Relu", net.op("Add", y, shortcut)), *net.maps[shortcut])


@entry
def tiled(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    if channels > 8:
        return x
    return net.add(net.op("Tile", x, net.ints(1, 2, 1, 1)), 2 * channels, size)


@entry
def gate(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    if channels % 2:
        return x
    a, b = net.op("Split", x, axis=1, num_outputs=2, outputs=2)
    return net.add(net.op("Mul", a, net.op("Sigmoid", b)), channels // 2, size)


@entry
def spatial_gate(net: Net, x: str) -> str:
    y = net.op(net.rnd.choice(("ReduceMean", "ReduceMax")), x, net.ints(1))
    return net.add(net.op("Mul", x, net.op("Sigmoid", y)), *net.maps[x])


@entry
def view(net: Net, x: str) -> str:
    """Flatten and back by sizes that the graph computes."""
    channels, size = net.maps[x]
    s = net.op("Shape", x)
    n = net.op("Slice", s, net.ints(0), net.ints(1))
    c = net.op("Slice", s, net.ints(1), net.ints(2)) if net.rnd.random() < 0.5 else net.ints(channels)
    f = net.op("Reshape", x, net.op("Concat", n, c, net.ints(-1), axis=0))
    if net.rnd.random() < 0.5:
        f = net.op("MatMul", net.weight(channels, channels), f)
    return net.add(net.op("Reshape", f, s), channels, size)


@entry
def attention(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    if size > 8:
        return x
    heads, width = net.rnd.choice((1, 2)), net.rnd.choice((2, 4))
    tokens = net.op("Transpose", net.op("Reshape", x, net.ints(0, channels, -1)), perm=[0, 2, 1])
    inner = heads * width
    packed = net.op("MatMul", tokens, net.weight(channels, 3 * inner))
    packed = net.op("Add", packed, net.weight(3 * inner))
    parts = net.op("Split", packed, axis=-1, num_outputs=3, outputs=3)
    q, k, v = (net.op("Reshape", p, net.ints(0, 0, heads, width)) for p in parts)
    q, v = (net.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
    scores = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 3, 1])), axis=-1)
    mixed = net.op("Transpose", net.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    y = net.op("MatMul", net.op("Reshape", mixed, net.ints(0, 0, inner)), net.weight(inner, channels))
    y = net.op("Transpose", net.op("Add", y, tokens), perm=[0, 2, 1])
    return net.add(net.op("Reshape", y, net.ints(0, channels, size, size)), channels, size)


@entry
def selective(net: Net, x: str) -> str:
    """Two branches stacked, weighed by a softmax over the branches, and summed."""
    channels, size = net.maps[x]
    stack = [net.op("Unsqueeze", net.like(x, channels), net.ints(1)) for _ in range(2)]
    f = net.op("Concat", *stack, axis=1)
    return net.add(
        net.op("ReduceSum", net.op("Mul", f, net.op("Softmax", f, axis=1)), net.ints(1), keepdims=0), channels, size
    )


@entry
def norms(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    groups = net.rnd.choice([g for g in (1, 2, 4, channels) if channels % g == 0])
    if net.rnd.random() < 0.5:
        y = net.op("GroupNormalization", x, net.weight(groups), net.weight(groups), num_groups=groups, epsilon=1e-2)
    else:
        y = net.op("InstanceNormalization", x, net.weight(channels), net.weight(channels), epsilon=1e-2)
    return net.add(y, channels, size)


@entry
def where(net: Net, x: str) -> str:
    channels = net.maps[x][0]
    c = net.op("Greater", x, net.op("Mul", x, x))
    other = net.rnd.choice((net.like(x, channels), net.weight(1, channels, 1, 1)))
    return net.add(net.op("Where", c, x, other), *net.maps[x])


@entry
def einsum(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    out = net.rnd.choice((2, 4, 6))
    return net.add(net.op("Einsum", x, net.weight(channels, out), equation="bchw,cd->bdhw"), out, size)


@entry
def token_mixing(net: Net, x: str) -> str:
    """Dense layers along positions, then back."""
    channels, size = net.maps[x]
    if size > 8:
        return x
    f = net.op("Reshape", x, net.ints(0, channels, size * size))
    h = net.op("Relu", net.op("MatMul", f, net.weight(size * size, 6)))
    y = net.op("Reshape", net.op("MatMul", h, net.weight(6, size * size)), net.ints(0, channels, size, size))
    return net.add(net.op("Add", x, y), channels, size)


@entry
def twice(net: Net, x: str) -> str:
    """One weight, read by two convs in a row."""
    channels, size = net.maps[x]
    w = net.weight(channels, channels, 3, 3)
    y = net.op("Relu", net.op("Conv", x, w, pads=[1] * 4))
    return net.add(net.op("Conv", y, w, pads=[1] * 4), channels, size)


@entry
def by_position(net: Net, x: str) -> str:
    """Coordinate attention: rows and columns pooled apart, joined along positions, split again."""
    channels, size = net.maps[x]
    a = net.op("ReduceMean", x, net.ints(3))
    b = net.op("Transpose", net.op("ReduceMean", x, net.ints(2)), perm=[0, 1, 3, 2])
    j = net.op("Concat", a, b, axis=2)
    s = net.op("Sigmoid", net.op("Conv", j, net.weight(channels, channels, 1, 1)))
    a, b = net.op("Split", s, net.ints(size, size), axis=2, outputs=2)
    b = net.op("Transpose", b, perm=[0, 1, 3, 2])
    return net.add(net.op("Mul", net.op("Mul", x, a), b), channels, size)


@entry
def expanded(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    p = net.op("GlobalAveragePool", x)
    shape = net.op("Shape", x) if net.rnd.random() < 0.5 else net.ints(1, net.rnd.choice((1, channels)), size, size)
    return net.add(net.op("Expand", p, shape), channels, size)


@entry
def unstacked(net: Net, x: str) -> str:
    """Halves of the channels by Reshape and Gather, as packed tensors are taken apart."""
    channels, size = net.maps[x]
    if channels % 2:
        return x
    r = net.op("Reshape", x, net.ints(0, 2, channels // 2, size, size))
    parts = [net.op("Squeeze", net.op("Gather", r, net.ints(k), axis=1), net.ints(1)) for k in range(2)]
    return net.add(net.op("Max", *parts), channels // 2, size)


def tokens(net: Net, x: str) -> str:
    """(1, positions, channels)."""
    channels, _ = net.maps[x]
    return net.op("Transpose", net.op("Reshape", x, net.ints(0, channels, -1)), perm=[0, 2, 1])


def image(net: Net, t: str, channels: int, size: int) -> str:
    """Tokens as a map again."""
    y = net.op("Reshape", net.op("Transpose", t, perm=[0, 2, 1]), net.ints(0, channels, size, size))
    return net.add(y, channels, size)


@entry
def recurrent(net: Net, x: str) -> str:
    """Positions as steps of an LSTM, GRU or RNN, one way or both, from given states or from zeros of any batch."""
    channels, size = net.maps[x]
    if size > 8:
        return x
    op, gates = net.rnd.choice((("LSTM", 4), ("GRU", 3), ("RNN", 1)))
    ways, units, steps = net.rnd.choice((1, 2)), net.rnd.choice((2, 3, 4)), size * size
    t = net.op("Transpose", tokens(net, x), perm=[1, 0, 2])
    inputs = [t, net.weight(ways, gates * units, channels), net.weight(ways, gates * units, units)]
    start = net.rnd.randrange(3)
    if start:
        zeros = net.op("ConstantOfShape", net.ints(ways, 1, units)) if start == 1 else net.weight(ways, 1, units)
        inputs += [net.weight(ways, 2 * gates * units), "", zeros]
        if op == "LSTM" and net.rnd.random() < 0.5:  # a cell's start, and peepholes
            inputs += [zeros, net.weight(ways, 3 * units)]
    attrs = {"direction": "bidirectional"} if ways == 2 else {"direction": net.rnd.choice(("forward", "reverse"))}
    y = net.op(op, *inputs, hidden_size=units, outputs=2, **attrs)[0]
    j = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints(steps, 1, ways * units))
    return image(net, net.op("Transpose", j, perm=[1, 0, 2]), ways * units, size)


@entry
def by_letters(net: Net, x: str) -> str:
    """Sums of products: heads made by a weight of three axes and read by another, groups, dots, scales."""
    channels, size = net.maps[x]
    t, way = tokens(net, x), net.rnd.randrange(4)
    heads, width = net.rnd.choice((2, 3)), net.rnd.choice((2, 3))
    if way == 0:
        m = net.op("Einsum", t, net.weight(channels, heads, width), equation="abc,cde->abde")
        m = net.op("Mul", m, net.weight(heads, width)) if net.rnd.random() < 0.5 else net.op("Tanh", m)
        m = net.op("Einsum", m, net.weight(heads, width, channels), equation="...de,dec")
    elif way == 1 and channels % heads == 0:
        part = channels // heads
        m = net.op("Reshape", t, net.ints(0, 0, heads, part))
        m = net.op("Einsum", m, net.weight(heads, part, part), equation="bngi,gio->bngo")
        m = net.op("Reshape", m, net.ints(0, 0, channels))
    elif way == 2:
        m = net.op("Einsum", t, net.weight(channels), equation="...c,c->...c")
    else:
        m = net.op("MatMul", net.op("Einsum", t, equation="bnc->bcn"), net.weight(size * size, 4))
        m = net.op("Einsum", m, net.weight(4, size * size), equation="bck,kn->bnc")
    return image(net, m, channels, size)


@entry
def deformed(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    groups = net.rnd.choice([g for g in (1, 1, 2, channels) if channels % g == 0])
    moved = net.rnd.choice([g for g in (1, 2) if channels % g == 0])
    out = groups * net.rnd.choice((1, 2, 3))
    offsets = net.op("Conv", x, net.weight(18 * moved, channels, 1, 1))
    y = net.op("DeformConv", x, net.weight(out, channels // groups, 3, 3), net.op("Tanh", offsets), pads=[1] * 4,
               group=groups, offset_group=moved)  # fmt: skip
    return net.add(y, out, size)


@entry
def fused(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    domain = "com.microsoft"
    if net.rnd.random() < 0.5:
        inputs = [x, net.weight(channels, channels, 3, 3), net.weight(channels)]
        inputs += [net.like(x, channels)] if net.rnd.random() < 0.5 else []
        return net.add(net.op("FusedConv", *inputs, pads=[1] * 4, activation="Relu", domain=domain), channels, size)
    t = tokens(net, x)
    m = net.op("FusedMatMul", t, net.weight(6, channels), transB=1, alpha=0.7, domain=domain)
    m = net.op(net.rnd.choice(("BiasGelu", "FastGelu")), m, net.weight(6), domain=domain)
    return image(net, net.op("MatMul", m, net.weight(6, channels)), channels, size)


@entry
def correlated(net: Net, x: str) -> str:
    """A map convolved by kernels that are another, pooled: by channel, or over all of them."""
    channels, size = net.maps[x]
    if size > 8:
        return x
    kernel = net.op("ReduceMax", net.like(x, channels), net.ints(2, 3))
    if net.rnd.random() < 0.5:
        kernel = net.op("Reshape", kernel, net.ints(channels, 1, 1, 1))
        return net.add(net.op("Conv", x, kernel, group=channels), channels, size)
    score = net.op("Sigmoid", net.op("Conv", net.op("Tanh", x), kernel))
    return net.add(net.op("Mul", x, score), channels, size)


@entry
def normed(net: Net, x: str) -> str:
    """Divided by a norm over channels, as it is or spread to the size of what it divides."""
    channels, size = net.maps[x]
    if net.rnd.random() < 0.2:
        return net.add(net.op("LpNormalization", x, axis=1, p=net.rnd.choice((1, 2))), channels, size)
    op = net.rnd.choice(("ReduceL2", "ReduceL1", "ReduceSumSquare"))
    n = net.op("Add", net.op(op, x, net.ints(1)), net.op("Exp", net.weight(1)))
    n = net.op("Expand", n, net.op("Shape", x)) if net.rnd.random() < 0.5 else n
    return net.add(net.op("Div", x, n), channels, size)


@entry
def attended(net: Net, x: str) -> str:
    """Positions weighed by the mean and the maximum over channels."""
    channels, size = net.maps[x]
    r = net.add(net.op("Relu", x), channels, size)
    j = net.op("Concat", net.op("ReduceMean", r, net.ints(1)), net.op("ReduceMax", r, net.ints(1)), axis=1)
    a = net.op("Sigmoid", net.op("Conv", j, net.weight(1, 2, 3, 3), pads=[1] * 4))
    return net.add(net.op("Mul", r, a), channels, size)


@entry
def picked(net: Net, x: str) -> str:
    """Columns by indices: of each channel its largest, or the same for all, spread or as tuples; or put back."""
    channels, size = net.maps[x]
    way = net.rnd.randrange(4)
    if way == 0:
        values, index = net.op("TopK", x, net.ints(size), axis=3, outputs=2)
        return net.add(values if net.rnd.random() < 0.5 else net.op("GatherElements", x, index, axis=3), channels, size)
    t, count = tokens(net, x), size * size
    if way == 1:  # indices that are computed, although they are the same for every input: a TopK may turn over
        score = net.op("Cast", net.op("Sub", t0 := net.op("MatMul", t, net.weight(channels, 1)), t0), to=7)
        order = net.op("Reshape", net.ints(*(5 * k % count for k in range(count))), net.ints(1, count, 1))
        index = net.op("Add", score, order)
        spread = net.op("Expand", index, net.ints(1, count, channels)) if net.rnd.random() < 0.5 else None
        index = spread or net.op("Tile", index, net.ints(1, 1, channels))
        return image(net, net.op("GatherElements", t, index, axis=1), channels, size)
    pairs = net.ints(*(v for k in range(count) for v in (0, (5 * k) % count)))
    pairs = net.op("Reshape", pairs, net.ints(count, 2))
    if way == 2:
        y = net.op("Reshape", net.op("GatherND", t, pairs), net.ints(1, count, channels))
    else:
        flat = net.op("Reshape", t, net.ints(count, channels))
        base = t if net.rnd.random() < 0.5 else net.op("ConstantOfShape", net.ints(1, count, channels))
        y = net.op("ScatterND", base, pairs, net.op("Neg", flat), reduction="add")
    return image(net, y, channels, size)


@entry
def warped(net: Net, x: str) -> str:
    channels, size = net.maps[x]
    grid = net.numbers.uniform(-1, 1, (1, size, size, 2)).astype(np.float32)
    name = net.name("g")
    net.weights[name] = grid
    return net.add(net.op("GridSample", x, name), channels, size)


@entry
def dequantized(net: Net, x: str) -> str:
    """A convolution or product by a weight of integers, with a scale for all, each channel it makes, or each it reads."""
    channels, size = net.maps[x]
    dense = net.rnd.random() < 0.4
    out = net.rnd.choice((4, 6, 8))
    shape = (channels, out) if dense else (out, channels, 1, 1)
    axis = net.rnd.choice((None, 0, 1))
    ints, scale, zero = net.name("q"), net.name("s"), net.name("z")
    net.weights[ints] = net.numbers.integers(-100, 100, shape).astype(np.int8)
    along = () if axis is None else (shape[axis],)
    net.weights[scale] = net.numbers.uniform(0.004, 0.01, along).astype(np.float32)
    net.weights[zero] = net.numbers.integers(-3, 4, along).astype(np.int8)
    operands = [ints, scale, zero] if net.rnd.random() < 0.5 else [ints, scale]
    w = net.op("DequantizeLinear", *operands, **({} if axis is None else {"axis": axis}))
    if dense:
        return image(net, net.op("MatMul", tokens(net, x), w), out, size)
    return net.add(net.op("Conv", x, w), out, size)


@entry
def swished(net: Net, x: str) -> str:
    """Activations that came to ONNX late, as others spell them."""
    channels, size = net.maps[x]
    op, domain = net.rnd.choice(
        (("QuickGelu", "com.microsoft"), ("Gelu", "com.microsoft"), ("Mish", ""), ("HardSwish", ""))
    )
    return net.add(net.op(op, x, **({"domain": domain} if domain else {})), channels, size)


def body(
    net: Net, name: str, nodes: list[onnx.NodeProto], inputs: list[tuple[str, int]], outputs: list[tuple[str, int]]
) -> onnx.GraphProto:
    """A body; ports are names and element types: floats of any size, single numbers of others."""
    return helper.make_graph(
        nodes, name, *([helper.make_tensor_value_info(n, kind, None if kind == 1 else []) for n, kind in ports] for ports in (inputs, outputs))
    )  # fmt: skip


def carried(net: Net, start: str, captured: list[str]) -> tuple[list[onnx.NodeProto], str]:
    """A few nodes that treat channels apart, from a tensor on, with others from outside; what they make."""
    nodes, last = [], start
    for _ in range(net.rnd.randint(1, 3)):
        made, way = net.name("b"), net.rnd.randrange(6)
        if way < 2 and captured:
            nodes.append(
                helper.make_node(net.rnd.choice(("Add", "Mul", "Max")), [last, net.rnd.choice(captured)], [made])
            )
        elif way == 2:
            pooled = net.name("b")
            nodes += [
                helper.make_node("GlobalAveragePool", [last], [pooled]),
                helper.make_node("Mul", [last, pooled], [made]),
            ]
        elif way == 3:
            nodes.append(helper.make_node("AveragePool", [last], [made], kernel_shape=[3, 3], pads=[1] * 4))
        else:
            nodes.append(helper.make_node(net.rnd.choice(("Relu", "Neg", "Sigmoid", "Tanh")), [last], [made]))
        last = made
    return nodes, last


@entry
def chosen(net: Net, x: str) -> str:
    """An If that values decide; its branches carry channels, one of them may hold a weight."""
    channels, size = net.maps[x]
    others = [net.like(x, channels) for _ in range(net.rnd.randrange(3))]
    top = net.op("ReduceMax", net.rnd.choice(("x", x)), keepdims=0)
    decides = net.op("Greater", top, net.op("Neg", top))
    branches = []
    for _ in range(2):
        nodes, last = carried(net, net.rnd.choice([x, *others]), others)
        if net.rnd.random() < 0.15:
            made = net.name("b")
            nodes.append(helper.make_node("Conv", [last, net.weight(channels, channels, 1, 1)], [made]))
            last = made
        branches.append(body(net, net.name("g"), nodes, [], [(last, onnx.TensorProto.FLOAT)]))
    return net.add(net.op("If", decides, then_branch=branches[0], else_branch=branches[1]), channels, size)


@entry
def looped(net: Net, x: str) -> str:
    """A Loop whose state is a map, or what a Scan makes of positions one by one."""
    channels, size = net.maps[x]
    others = [net.like(x, channels) for _ in range(net.rnd.randrange(2))]
    floats, state = onnx.TensorProto.FLOAT, net.name("b")
    nodes, last = carried(net, state, others)
    more, trip, go = net.name("b"), net.name("b"), net.name("b")
    nodes.append(helper.make_node("Identity", [go], [more]))
    ports = [(trip, onnx.TensorProto.INT64), (go, onnx.TensorProto.BOOL), (state, floats)]
    inner = body(net, net.name("g"), nodes, ports, [(more, onnx.TensorProto.BOOL), (last, floats)])
    yes = net.name("yes")
    net.weights[yes] = np.array(True)
    trips = net.op("Squeeze", net.ints(net.rnd.randint(1, 3)))
    return net.add(net.op("Loop", trips, yes, x, body=inner), channels, size)


@entry
def scanned(net: Net, x: str) -> str:
    """Positions one by one, added up by a Scan."""
    channels, size = net.maps[x]
    t, floats = tokens(net, x), onnx.TensorProto.FLOAT
    start = net.op("ReduceMean", t, net.ints(1), keepdims=0)
    state, each, total, out = (net.name("b") for _ in range(4))
    nodes = [helper.make_node("Add", [state, each], [total]), helper.make_node("Tanh", [total], [out])]
    inner = body(net, net.name("g"), nodes, [(state, floats), (each, floats)], [(total, floats), (out, floats)])
    _, y = net.op("Scan", start, t, body=inner, num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1], outputs=2)
    return image(net, y, channels, size)


@entry
def by_heads(net: Net, x: str) -> str:
    """Attention of ONNX Runtime, heads within the channels or on an axis of their own."""
    channels, size = net.maps[x]
    if size > 8:
        return x
    t, heads, width = tokens(net, x), net.rnd.choice((2, 3)), net.rnd.choice((2, 4))
    q, k, v = (net.op("MatMul", t, net.weight(channels, heads * width)) for _ in range(3))
    if net.rnd.random() < 0.5:
        k, v = (
            net.op("Transpose", net.op("Reshape", part, net.ints(0, 0, heads, width)), perm=[0, 2, 1, 3])
            for part in (k, v)
        )
    m = net.op("MultiHeadAttention", q, k, v, num_heads=heads, domain="com.microsoft")
    return image(net, net.op("MatMul", m, net.weight(heads * width, channels)), channels, size)


@entry
def along_axes(net: Net, x: str) -> str:
    """Positions left out."""
    channels, size = net.maps[x]
    if net.rnd.random() < 0.5:
        return net.add(net.op("Trilu", x, upper=net.rnd.randrange(2)), channels, size)
    kept = net.name("c")
    net.weights[kept] = np.arange(size) % 2 == 0
    return net.add(net.op("Compress", net.op("Compress", x, kept, axis=2), kept, axis=3), channels, (size + 1) // 2)


@entry
def bilinear(net: Net, x: str) -> str:
    """A form of two layers; or graph convolution, groups of channels weighed by matrices of positions."""
    channels, size = net.maps[x]
    if net.rnd.random() < 0.5:
        t, out = tokens(net, x), net.rnd.choice((2, 4))
        p, q = (net.op("MatMul", t, net.weight(channels, n)) for n in (4, 3))
        return image(net, net.op("Einsum", p, q, net.weight(4, 3, out), equation="bnp,bnq,pqo->bno"), out, size)
    m = net.op("Reshape", net.conv(x, 2 * channels), net.ints(0, 2, channels, size, size))
    return net.add(net.op("Einsum", m, net.weight(2, size, size), equation="nkctv,kvw->nctw"), channels, size)


@entry
def unpooled(net: Net, x: str) -> str:
    """Maxima put back to where they were, with or without a layer between."""
    channels, size = net.maps[x]
    if size % 2:
        return x
    window = {"kernel_shape": [2, 2], "strides": [2, 2]}
    p, places = net.op("MaxPool", x, outputs=2, **window)
    if net.rnd.random() < 0.5:
        p = net.op("Conv", p, net.weight(channels, channels, 1, 1))
    size_of = [net.ints(1, channels, size, size)] if net.rnd.random() < 0.3 else []
    return net.add(net.op("MaxUnpool", p, places, *size_of, **window), channels, size)


@entry
def routed(net: Net, x: str) -> str:
    """Kernels that a layer makes of the pooled map, in groups or not."""
    channels, size = net.maps[x]
    groups = net.rnd.choice([g for g in (1, 2, 3, channels) if channels % g == 0])
    out, inner = groups * net.rnd.choice((1, 2)), channels // groups
    route = net.op("MatMul", net.op("Flatten", net.op("GlobalAveragePool", x)), net.weight(channels, out * inner))
    kernel = net.op("Reshape", route, net.ints(out, inner, 1, 1))
    return net.add(net.op("Conv", x, kernel, group=groups), out, size)


@entry
def grouped_queries(net: Net, x: str) -> str:
    """Attention with two heads of queries for one of keys, apart or side by side."""
    channels, size = net.maps[x]
    if size > 8:
        return x
    t, shared, width, count = tokens(net, x), net.rnd.choice((1, 2)), 16, size * size
    last, total = net.name("n"), net.name("n")
    net.weights[last] = np.array([[count - 1]], np.int32)
    net.weights[total] = np.array(count, np.int32)
    if net.rnd.random() < 0.5:
        parts = [net.op("MatMul", t, net.weight(channels, 4 * shared * width)), "", ""]
    else:
        parts = [net.op("MatMul", t, net.weight(channels, n * shared * width)) for n in (2, 1, 1)]
    y = net.op("GroupQueryAttention", *parts, "", "", last, total, num_heads=2 * shared, kv_num_heads=shared,
               outputs=3, domain="com.microsoft")[0]  # fmt: skip
    return image(net, net.op("MatMul", y, net.weight(2 * shared * width, channels)), channels, size)


@entry
def turned(net: Net, x: str) -> str:
    """ONNX Runtime's attention with one weight for queries, keys and values; or with queries and keys turned by angles."""
    channels, size = net.maps[x]
    if size > 8:
        return x
    t, heads, width, domain = tokens(net, x), net.rnd.choice((2, 3)), 4, "com.microsoft"
    inner = heads * width
    if net.rnd.random() < 0.5:
        y = net.op(
            "Attention", t, net.weight(channels, 3 * inner), net.weight(3 * inner), num_heads=heads, domain=domain
        )
    else:
        parts = [net.op("MatMul", t, net.weight(channels, inner)) for _ in range(3)]
        at, tables = net.ints(0), [net.weight(size * size, width // 2) for _ in range(2)]
        q, k = (net.op("RotaryEmbedding", part, at, *tables, num_heads=heads, domain=domain) for part in parts[:2])
        y = net.op("MultiHeadAttention", q, k, parts[2], num_heads=heads, domain=domain)
    return image(net, net.op("MatMul", y, net.weight(inner, channels)), channels, size)


@entry
def skipped(net: Net, x: str) -> str:
    """A sum that is normalized in one node, a small perceptron ahead of it."""
    channels, size = net.maps[x]
    t = tokens(net, x)
    h = net.op("MatMul", net.op("Relu", net.op("MatMul", t, net.weight(channels, 6))), net.weight(6, channels))
    op, more = net.rnd.choice((("SkipLayerNormalization", 2), ("SkipSimplifiedLayerNormalization", 1)))
    y = net.op(op, t, h, *(net.weight(channels) for _ in range(more)), domain="com.microsoft")
    return image(net, y, channels, size)


@entry
def by_size(net: Net, x: str) -> str:
    """An If that sizes decide; a layer stands in the branch that runs, or in the other."""
    channels, size = net.maps[x]
    least = net.op("Squeeze", net.ints(net.rnd.choice((2, size + 1))))
    height = net.op("Gather", net.op("Shape", x), net.op("Squeeze", net.ints(2)))
    branches = []
    for layer in net.rnd.sample((True, False), 2):
        made = net.name("b")
        node = ("Conv", [x, net.weight(channels, channels, 1, 1)]) if layer else ("Tanh", [x])
        nodes = [helper.make_node(*node, [made])]
        branches.append(body(net, net.name("g"), nodes, [], [(made, onnx.TensorProto.FLOAT)]))
    taken = net.op("Less", least, height)
    return net.add(net.op("If", taken, then_branch=branches[0], else_branch=branches[1]), channels, size)


@entry
def regions(net: Net, x: str) -> str:
    """Regions, sums along an axis, or sums over neighbours."""
    channels, size = net.maps[x]
    way = net.rnd.randrange(4)
    if way == 0:
        boxes, batch = net.name("g"), net.op("Reshape", net.ints(0), net.ints(1))
        net.weights[boxes] = np.array([[0, 0, size / 2, size]], np.float32)
        y = net.op("RoiAlign", x, boxes, batch, output_height=4, output_width=4)
        return net.add(y, channels, 4)
    if way == 1:
        boxes = net.name("g")
        net.weights[boxes] = np.array([[0, 0, 0, size - 1, size - 1]], np.float32)
        return net.add(net.op("MaxRoiPool", x, boxes, pooled_shape=[2, 2]), channels, 2)
    if way == 2:
        return net.add(net.op("CumSum", x, net.op("Squeeze", net.ints(net.rnd.choice((1, 3))))), channels, size)
    return net.add(net.op("LRN", x, size=3), channels, size)


def head(net: Net, x: str) -> str:
    """To a dense layer: pooled, or flattened in either order."""
    channels, size = net.maps[x]
    way = net.rnd.randrange(5)
    if way == 0:
        f, wide = net.op("Flatten", net.op("GlobalAveragePool", x)), channels
    elif way == 1:
        f, wide = net.op("Reshape", net.op("ReduceMean", x, net.ints(2, 3)), net.ints(-1, channels)), channels
    elif way == 2:
        f, wide = net.op("Flatten", x), channels * size * size
    elif way == 3 and size <= 8:  # columns as steps of an LSTM
        t = net.op("Reshape", net.op("Transpose", x, perm=[3, 0, 1, 2]), net.ints(size, 1, channels * size))
        y = net.op("LSTM", t, net.weight(1, 16, channels * size), net.weight(1, 16, 4), hidden_size=4, outputs=3)[0]
        f, wide = net.op("Reshape", net.op("Gather", y, net.ints(size - 1), axis=0), net.ints(1, 4)), 4
    else:
        t = net.op("Transpose", x, perm=[0, 2, 3, 1])
        f, wide = net.op("Reshape", t, net.ints(1, -1)), channels * size * size
    hidden = net.op("Relu", net.op("Gemm", f, net.weight(6, wide), net.weight(6), transB=1))
    return net.op("Gemm", hidden, net.weight(6, 5))


def random_model(rnd: Random) -> onnx.ModelProto:
    net = Net(rnd)
    x = net.conv("x", rnd.choice((4, 6, 8, 12)), 3)
    for _ in range(rnd.randint(3, 10)):
        x = rnd.choice(TABLE)(net, rnd.choice([x, x, x, *list(net.maps)[1:]]))
    out = head(net, x)
    graph = helper.make_graph(
        net.nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_empty_tensor_value_info(out)],
        [numpy_helper.from_array(v, n) for n, v in net.weights.items()],
    )
    domains = [helper.make_opsetid("", 19), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=9)


@settings(
    max_examples=COUNT,
    derandomize="ONNXPRUNE_GRAPHS" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.randoms(use_true_random=False), st.integers(0, 1 << 16))
def test_random_graphs(rnd: Random, seed: int) -> None:
    model = random_model(rnd)
    graph, channels = surgery.find(model)
    surgery.assert_explained(graph, channels)
    for how in ("half", seed):
        surgery.assert_exact(model, graph, channels, how)
