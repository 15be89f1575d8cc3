"""A small convolution, and ways to spoil it."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper, parser

CONV = """<ir_version: 8, opset_import: ["": 17], producer_name: "someone">
net (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
    [first] a = Conv <kernel_shape = [1, 1]> (x, w)
    [second] b = Relu (a)
    [third] y = Add (b, c)
}"""


def conv() -> ModelProto:
    model = parser.parse_model(CONV)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (4, 3, 1, 1)), ("c", (1, 4, 1, 1))):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32), name))
    return model


def changed(*edits) -> ModelProto:
    model = conv()
    for edit in edits:
        edit(model)
    return model


def weight(model: ModelProto) -> TensorProto:
    return model.graph.initializer[0]


def set_weight(value: float):
    def edit(model):
        array = numpy_helper.to_array(weight(model)).copy()
        array.flat[5] = value
        weight(model).raw_data = array.tobytes()

    return edit


def external(location="w.data", **entries):
    """The weight in an external file, as the entries say."""

    def edit(model):
        tensor = weight(model)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=str(value))

    return edit
