"""The logger `onnxprune`: every phase once, and nothing where nobody listens."""

import logging

import numpy as np
import pytest

import onnxprune
from tests.channels import surgery

TEXT = """(float[N,4,6,6] x) => (float[N,3] y)
<float[16,4,3,3] w, float[16] c, float[3,16] g>
{ a = Conv <pads = [1, 1, 1, 1]> (x, w, c)  b = Relu(a)  p = GlobalAveragePool(b)  f = Flatten(p)
  y = Gemm <transB = 1> (f, g) }"""
SAMPLES = np.random.default_rng(0).standard_normal((24, 4, 6, 6)).astype(np.float32)


def test_every_phase_is_logged(caplog):
    seen = []
    with caplog.at_level(logging.INFO, logger="onnxprune"):
        onnxprune.prune(surgery.model_of(TEXT), 0.4, calibration=SAMPLES, progress=lambda *told: seen.append(told[0]))
    phases = [record.getMessage().split(": ")[1] for record in caplog.records if record.name == "onnxprune"]
    assert "verify" in phases and set(phases) == set(seen)


def test_a_callback_may_stop_the_work():
    def stop(phase, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        onnxprune.prune(surgery.model_of(TEXT), 0.4, calibration=SAMPLES, progress=stop)


def test_nothing_is_logged_unless_it_is_asked_for(caplog):
    with caplog.at_level(logging.WARNING, logger="onnxprune"):
        onnxprune.prune(surgery.model_of(TEXT), 0.4, calibration=SAMPLES)
    assert not [record for record in caplog.records if record.name == "onnxprune"]
