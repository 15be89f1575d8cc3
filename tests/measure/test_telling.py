"""Samples that cannot tell are said so, and others are not."""

import numpy as np
import pytest
from onnx import numpy_helper

from onnxprune import api
from onnxprune.graph.model import Graph
from onnxprune.measure.moments import moments
from tests.channels import surgery

NET = """(float[N,3,12,12] x) => (float[N,8] y)
    <float[16,3,3,3] a, float[16] s, float[16] o, float[16] m, float[16] v, float[24,16,3,3] b, float[24,24,3,3] d,
     float[8,24] c>
    { h = Conv<pads=[1,1,1,1]>(x, a) n = BatchNormalization(h, s, o, m, v) r = Relu(n)
      i = Conv<pads=[1,1,1,1],strides=[2,2]>(r, b) t = Relu(i) j = Conv<pads=[1,1,1,1]>(t, d) u = Relu(j)
      p = GlobalAveragePool(u) f = Flatten(p) y = Gemm<transB=1>(f, c) }"""
COUNT = 64


def pictures(count=COUNT, seed=0):
    """Smooth pictures: coarse noise, blown up."""
    coarse = np.random.default_rng(seed).standard_normal((count, 3, 4, 4))
    return np.kron(coarse, np.ones((1, 1, 3, 3))).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    """A network whose stored statistics are those of `pictures`, and whose classes are all seen."""
    net = surgery.model_of(NET)
    seen = moments(net, {"h": (1, 4)}, [{"x": pictures(256, 1)}])["h"]
    for tensor in net.graph.initializer:
        value = {"m": seen.mean, "v": seen.std**2, "s": np.ones(16), "o": np.zeros(16)}.get(tensor.name)
        if value is not None:
            tensor.raw_data = value.astype(np.float32).tobytes()
    (scores,) = surgery.run(net, {"x": pictures(256, 2)})
    shift = -scores.mean(axis=0)
    last = next(n for n in net.graph.node if n.op_type == "Gemm")
    net.graph.initializer.append(numpy_helper.from_array(shift.astype(np.float32), "bias"))
    last.input.append("bias")
    return net


def copies():
    return pictures(4)[np.arange(COUNT) % 4] + 0.01 * pictures(COUNT, 3)


ROWS = {
    "as it should be": (pictures(), []),
    "too few": (pictures(4), ["judged on 1 held-out sample, which tells next to nothing"]),
    "one": (pictures(1), ["judged on no held-out sample"]),
    "not scaled": (255 * (pictures() + 1), ["times as far as BatchNormalization", "the original sees one class in"]),
    "scaled twice": (0.3 * pictures(), ["values spread 0.30 times as far"]),
    "off": (pictures() + np.float32(2.5), ["means are off by"]),
    "copies": (copies(), ["64 of 64 samples have a near copy"]),
    "all the same": (np.repeat(pictures(1), COUNT, axis=0), ["all 64 samples are the same"]),
}


@pytest.mark.parametrize("row", ROWS)
def test_what_is_said(model, row):
    samples, words = ROWS[row]
    found = api.open_model(model, calibration=samples).doubts
    assert len(found) >= len(words) and all(any(w in text for text in found) for w in words), found
    assert words or not found, found


def test_classes(model):
    x = pictures(600, 7)
    said = surgery.run(model, {"x": x})[0].argmax(axis=1)
    one = x[said == np.bincount(said).argmax()][:40]
    (found,) = [t for t in api.open_model(model, calibration=one).doubts if "class" in t]
    assert "one class in 100% of 40 samples (y)" in found
    two = np.argsort(np.bincount(said, minlength=8))[-2:]
    few = x[np.isin(said, two)][:40]
    (found,) = [t for t in api.open_model(model, calibration=few).doubts if "class" in t]
    assert "2 of its 8 classes in 40 samples" in found


def test_samples_along_one_line_vary_in_few_directions(model):
    along = np.linspace(-1, 1, COUNT, dtype=np.float32)[:, None, None, None] * pictures(1, 5)
    assert any("vary in about" in text for text in api.open_model(model, calibration=along).doubts)


def test_it_is_a_warning_of_the_result_and_of_the_run(model):
    result = api.prune(model, 0.3, calibration=pictures(4), round_to=1)
    assert any("held-out sample" in text for text in result.warnings)
    assert not any("sample" in w for w in api.prune(model, 0.3, calibration=pictures(), round_to=1).warnings)


def test_a_network_without_statistics_or_scores_is_looked_at_all_the_same():
    net = surgery.model_of(
        "(float[N,3,12,12] x) => (float[N,5,12,12] y) <float[8,3,1,1] a, float[5,8,1,1] b> { h = Conv(x, a) y = Conv(h, b) }"
    )
    assert Graph(net) and api.open_model(net, calibration=pictures()).doubts == ()
