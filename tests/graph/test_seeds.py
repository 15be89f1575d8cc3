"""Noise is the same in the pruned model while the two are compared, and free again in what is written."""

import numpy as np
import pytest

from onnxprune import api
from onnxprune.graph import operators
from onnxprune.graph.seeds import with_seeds
from onnxprune.protobuf.nodes import attr
from tests.channels.surgery import model_of

NOISE = """(float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] a, float[4,8,1,1] b, float[8,4,1,1] c, float[5,8,1,1] d, float[8] s>
    { h0 = Conv(x, a) h1 = Mul(h0, one) h = Relu(h1) m = Conv(h, b) n = NODE z = Add(m, n) k0 = Conv(z, c) k = Relu(k0)
      y = Conv(k, d) }""".replace("float[8] s>", "float one = {1}>")


def noisy(node: str):
    return model_of(NOISE.replace("NODE", node))


@pytest.mark.parametrize(
    "node", ["RandomNormalLike(m)", "RandomUniformLike<low=-3.0>(m)", "RandomNormalLike<seed=7.0>(m)"]
)
def test_the_cut_is_compared_under_the_same_noise(node):
    model = noisy(node)
    x = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    seed = attr(next(n for n in model.graph.node if operators.of(n).random), "seed")
    for samples in (None, x):
        result = api.prune(model, 0.3, calibration=samples, round_to=1)
        (left,) = [n for n in result.model.graph.node if operators.of(n).random]
        assert result.surgery.exact and attr(left, "seed") == seed
    assert result.fidelity.sqnr_db > 8, "the noise itself is several times as large as what the repair leaves"
    again = api.prune(model, 0.3, calibration=x, round_to=1)
    assert again.model.SerializeToString() == result.model.SerializeToString()


def test_a_model_without_chance_is_left_as_it_is():
    model = model_of("(float[N,3] x) => (float[] y) { y = Relu(x) }")
    assert with_seeds(model) is model
    seeded = with_seeds(noisy("RandomNormalLike(m)"))
    assert with_seeds(seeded) is seeded
