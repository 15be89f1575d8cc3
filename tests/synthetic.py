"""Synthetic CNNs of any number of nodes, for tests of run time: small widths, many of everything.

Residual blocks, Concats of branches and Splits, as the exporters write them; weights are seeded.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 8


class Net:
    """Nodes and weights collected so far; `conv`, `bn` and `op` return the name of their output."""

    def __init__(self, seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        names = [f"t{len(self.nodes)}" if k == 0 else f"t{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0]

    def weight(self, *shape: int, low: float = -0.5, high: float = 0.5) -> str:
        name = f"w{len(self.weights)}"
        value = self.rng.uniform(low, high, shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def conv(self, x: str, ins: int, outs: int, kernel: int = 1) -> str:
        w = self.weight(outs, ins, kernel, kernel)
        return self.op("Conv", x, w, self.weight(outs), kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4)

    def bn(self, x: str, width: int) -> str:
        scales = [self.weight(width, low=0.5, high=1.5) for _ in range(4)]
        return self.op("BatchNormalization", x, *scales)

    def model(self, output: str, size: int = 4) -> onnx.ModelProto:
        ports = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, size, size]),
            helper.make_tensor_value_info(output, TensorProto.FLOAT, None),
        ]
        graph = helper.make_graph(self.nodes, "synthetic", ports[:1], ports[1:], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def residual(net: Net, x: str) -> str:
    y = net.op("Relu", net.bn(net.conv(x, WIDTH, WIDTH, 3), WIDTH))
    return net.op("Relu", net.op("Add", net.bn(net.conv(y, WIDTH, WIDTH), WIDTH), x))


def branches(net: Net, x: str) -> str:
    parts = [net.op("Relu", net.conv(x, WIDTH, WIDTH)) for _ in range(3)]
    return net.op("Relu", net.conv(net.op("Concat", *parts, axis=1), 3 * WIDTH, WIDTH))


def halves(net: Net, x: str) -> str:
    y = net.conv(x, WIDTH, 2 * WIDTH)
    a = net.op("Split", y, outputs=2, axis=1)
    b = net.op("Relu", f"{a}_1")
    return net.conv(net.op("Concat", net.op("Relu", a), b, axis=1), 2 * WIDTH, WIDTH)


def reshaped(net: Net, x: str) -> str:
    """Sizes computed at run time, as the exporters write a flatten and its way back."""
    y = net.conv(x, WIDTH, WIDTH)
    size = net.op("Shape", y)
    flat = net.op("Reshape", y, net.op("Concat", net.op("Slice", size, "zero", "two"), "minus", axis=0))
    return net.op("Relu", net.conv(net.op("Reshape", net.op("Relu", flat), size), WIDTH, WIDTH))


BLOCKS = (residual, branches, halves, reshaped)


def network(nodes: int) -> onnx.ModelProto:
    """A CNN of about so many nodes."""
    net = Net()
    for name, value in (("zero", [0]), ("two", [2]), ("minus", [-1])):
        net.weights.append(numpy_helper.from_array(np.array(value, np.int64), name))
    x = net.conv("x", 3, WIDTH, 3)
    while len(net.nodes) < nodes - 4:
        for block in BLOCKS:
            x = net.bn(block(net, x), WIDTH)
    return net.model(head(net, x))


def head(net: Net, x: str, width: int = WIDTH) -> str:
    pooled = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.op("Gemm", pooled, net.weight(width, 10))


def chain(nodes: int) -> onnx.ModelProto:
    """One Conv, then a chain of element-wise nodes."""
    net = Net()
    x = net.conv("x", 3, WIDTH)
    for _ in range(nodes):
        x = net.op("Relu", x)
    return net.model(head(net, net.conv(x, WIDTH, WIDTH)))


def wide_concat(operands: int) -> onnx.ModelProto:
    """One Concat of so many convolutions of one tensor."""
    net = Net()
    parts = [net.conv("x", 3, WIDTH) for _ in range(operands)]
    x = net.op("Concat", *parts, axis=1)
    return net.model(head(net, net.conv(x, operands * WIDTH, WIDTH)))


def many_readers(readers: int) -> onnx.ModelProto:
    """One tensor read by so many convolutions, whose outputs are added up."""
    net = Net()
    x = net.op("Relu", net.conv("x", 3, WIDTH))
    total = net.op("Sum", *[net.conv(x, WIDTH, WIDTH) for _ in range(readers)])
    return net.model(head(net, net.conv(total, WIDTH, WIDTH)))


def dense(layers: int) -> onnx.ModelProto:
    """Every layer reads the Concat of all layers before it (DenseNet)."""
    net = Net()
    parts = [net.conv("x", 3, WIDTH)]
    for k in range(layers):
        joined = net.op("Concat", *parts, axis=1) if k else parts[0]
        parts.append(net.op("Relu", net.conv(joined, WIDTH * len(parts), WIDTH)))
    return net.model(head(net, net.op("Concat", *parts, axis=1), WIDTH * len(parts)))
