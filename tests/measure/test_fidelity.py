"""How alike the answers of two models are."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import api
from onnxprune.graph.model import Graph
from onnxprune.measure.fidelity import check_fidelity
from onnxprune.runtime import sessions
from tests.channels import surgery

CLASSES = """(float[N,3,8,8] x) => (int64[N,8,8] y) <float[16,3,1,1] w, float[5,16,1,1] v>
    { h = Conv(x, w) r = Relu(h) s = Conv(r, v) y = ArgMax<axis=1, keepdims=0>(s) }"""


def test_a_model_that_answers_in_integers_is_compared_by_them() -> None:
    model = surgery.model_of(CLASSES)
    samples = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    result = api.prune(model, 0.3, calibration=samples, round_to=1)
    found = result.fidelity
    assert found is not None and found.cosine is found.sqnr_db is found.top1 is None
    session = sessions.open_session(result.model)
    assert found.equal is not None and 0.2 < found.equal <= 1  # five classes
    same = check_fidelity(Graph(model), model, [{"x": samples}])
    assert same.equal == 1 and same.in_words() == "same integers 100.0%"
    (wanted,), (got,) = sessions.open_session(model).run({"x": samples}), session.run({"x": samples})
    found = check_fidelity(Graph(model), result.model, [{"x": samples[:9]}, {"x": samples[9:]}])
    assert found.equal == pytest.approx((wanted == got).mean())
    assert f"same integers {result.fidelity.equal:.1%}" in result.summary()
    assert f"same integers {result.fidelity.equal:.1%}" in result.to_html()


def test_an_output_of_words_is_not_compared() -> None:
    model = surgery.model_of("(float[N,3] x) => (string[N,3] y) { y = Cast<to=8>(x) }")
    found = check_fidelity(Graph(model), model, [{"x": np.ones((2, 3), np.float32)}])
    assert found.in_words() == "no output to compare" and found.samples == 2
