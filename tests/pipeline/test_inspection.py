"""What `inspect` says of the outputs, with samples and without."""

import numpy as np

from onnxprune import api
from onnxprune.pipeline.inspection import inspection, render
from onnxprune.report.page import render as page
from tests.channels import surgery

DETECTOR = """(float[N,3,8,8] x) => (float[N,7,64] y, float[N,5] z)
    <float[8,3,1,1] w, float[4,8,1,1] a, float[3,8,1,1] b, float[4] up = {40, 40, 40, 40}, float[5,8] c,
     int64[3] flat = {0, 0, -1}>
    { h = Conv(x, w) r = Relu(h) k = Conv(r, a, up) p = Abs(k) g = Conv(r, b) s = Sigmoid(g)
      q = Reshape(p, flat) t = Reshape(s, flat) y = Concat<axis=1>(q, t)
      m = GlobalAveragePool(r) f = Flatten(m) l = Gemm<transB=1>(f, c) z = Softmax(l) }"""
SAMPLES = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)


def outputs(**given):
    found = inspection(api.open_model(surgery.model_of(DETECTOR), **given))
    text = render(found, None, None)
    for one in found["outputs"]:
        for part in one["parts"]:
            assert f"{part['name']}: {part['says']}" in text and part["says"] in page(found, name="m")
    return {part["name"]: part["says"] for one in found["outputs"] for part in one["parts"]}


def test_with_samples_every_part_has_a_kind():
    found = outputs(calibration=SAMPLES)
    assert found == {"y[:, 0:4]": "boxes (xywh)", "y[:, 4:7]": "box scores", "z": "class scores"}


def test_operators_activations_and_layers_are_counted():
    found = inspection(api.open_model(surgery.model_of(DETECTOR)))
    assert found["operators"] == {"Conv": 3, "Reshape": 2} | dict.fromkeys(
        ("Abs", "Concat", "Flatten", "Gemm", "GlobalAveragePool", "Relu", "Sigmoid", "Softmax"), 1
    )
    plane = 8 * 8 * 4
    assert found["activations"] == {"bytes": (3 + 8 + 4 + 3 + 7) * plane, "node": "y"}  # x, r, p, s, y
    assert {one["node"]: (one["op"], one["params"]) for one in found["layers"]} == {
        "h": ("Conv", 24), "k": ("Conv", 36), "g": ("Conv", 24), "l": ("Gemm", 40),
    }  # fmt: skip
    assert sum(one["macs"] for one in found["layers"]) == found["macs"]
    assert sum(one["params"] for one in found["layers"]) == found["params"]
    text = render(found, None, 80)
    assert "operators    Conv 3, Reshape 2," in text and "at once at most, at y" in text and "\nlayers\n" in text
    assert "\nlayers\n" not in render(found, 40, 80)


def test_without_it_is_what_the_graph_says():
    assert outputs() == {"y[:, 4:7]": "0 to 1: labels, a mask or scores of boxes", "z": "class scores"}


def test_what_the_user_says_is_what_it_is():
    assert outputs(calibration=SAMPLES, output_kind={"z": "labels", "y": "values"}) == {"y": "values", "z": "labels"}
    assert outputs(output_kind={"z": "embedding"})["z"] == "embedding"
