"""Moments of activations, reduced inside the graph."""

import numpy as np
import pytest

from onnxprune.measure.moments import moments
from tests.channels.surgery import model_of
from tests.measure.test_cost import QUANTIZED


@pytest.mark.parametrize("zero", [128, 100])
def test_what_a_quantized_layer_reads_is_measured_from_the_integer_that_stands_for_zero(zero):
    model = model_of(QUANTIZED.replace("uint8 z = {128}", f"uint8 z = {{{zero}}}"))
    x = np.random.default_rng(0).standard_normal((12, 3, 8, 8)).astype(np.float32)
    taps = {"h": (1, 4), "p": (1, 4)}
    found = moments(model, taps, [{"x": x[:1]}, {"x": x[1:2]}], zeros={"h": zero, "p": zero})
    plain = moments(model, taps, [{"x": x[:1]}, {"x": x[1:2]}], zeros={"h": 0.0, "p": 0.0})
    for name in taps:
        np.testing.assert_allclose(found[name].mean, plain[name].mean - zero, rtol=1e-5)
        np.testing.assert_allclose(found[name].std, plain[name].std, rtol=1e-3, atol=1e-2)
