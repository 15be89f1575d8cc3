"""A convolution and a ReLU, and what they are fed."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, parser

TEXT = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) {
    [first] a = Conv <kernel_shape = [1, 1]> (x, w)
    [second] y = Relu (a)
}"""


def net() -> onnx.ModelProto:
    model = parser.parse_model(TEXT)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w"))
    return model


X = {"x": np.ones((2, 3, 8, 8), np.float32)}
