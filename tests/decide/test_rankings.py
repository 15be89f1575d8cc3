"""What each criterion keeps, on weights and activations that tell it from every other one."""

import numpy as np
import pytest

import onnxprune
from onnxprune import api
from tests.channels import surgery

NET = """(float[N,2,1,3] x) => (float[] y, float[] z) <float[4,2,1,3] w, float[4] b, float[2,4,1,1] v, float[1,4,1,1] u>
    { h = Conv(x, w, b) y = Conv(h, v) z = Conv(h, u) }"""
ONE, ALIKE = np.ones((2, 4)), np.full((4, 6), 0.1)


def kept(criterion, makers=ALIKE, readers=ONE, others=ONE[:1], bias=(0, 0, 0, 0), samples=None, **settings):
    """The two channels of four that stay: rows of `makers` make them, columns of `readers` and of `others` read them."""
    model = surgery.model_of(NET)
    values = {"w": makers, "b": bias, "v": readers, "u": others}
    for t in model.graph.initializer:
        t.raw_data = np.asarray(values[t.name], np.float32).tobytes()
    how = {"criterion": criterion, "allocation": "uniform", "of": "channels", "round_to": 1, **settings}
    plan = api.make_plan(api.open_model(model, calibration=samples), api.Ratio(), api.Settings(**how))
    return plan.keep()["w"]


SPREAD, PEAKED, FAINT = np.full(6, 0.5), np.eye(6)[2] * -2.0, np.full(6, 0.1)
"""Sums of |w| 3, 2 and 0.6; norms 1.2, 2 and 0.2."""
RANDOM, FLAT = (
    np.random.default_rng(0).standard_normal((64, 2, 1, 3)).astype(np.float32),
    np.ones((8, 2, 1, 3), np.float32),
)
LOUD = 10 * ALIKE * np.array([[1], [2], [3], [4]])
"""Channels that differ by nothing but their size: mean squares 1, 4, 9, 16 times the first's."""
ROWS = {  # name: (criterion, what is known, the channels that stay)
    "l1: many small weights before a large one": ("l1", {"makers": [SPREAD, PEAKED, FAINT, SPREAD]}, (0, 3)),
    "l1: the sign does not matter": ("l1", {"makers": [FAINT, PEAKED, FAINT, -SPREAD]}, (1, 3)),
    "l2: a large weight before many small ones": ("l2", {"makers": [SPREAD, PEAKED, FAINT, PEAKED]}, (1, 3)),
    "l1: readers do not matter": ("l1", {"makers": [SPREAD, SPREAD, FAINT, FAINT], "readers": [[0, 0, 9, 9]] * 2}, (0, 1)),
    "activation without samples: who is read": ("activation", {"makers": LOUD, "readers": [[3, 3, 1, 1]] * 2}, (0, 1)),
    "activation without samples: by squares": ("activation", {"readers": [[2, 0, 1.6, 0], [0, 1.5, 1.6, 1.9]], "others": [[1] * 4]}, (0, 2)),
    "activation: who is read and how loud it is": ("activation", {"makers": LOUD, "readers": [[4, 1, 1, 1]] * 2, "others": [[4, 1, 1, 1]], "samples": RANDOM}, (0, 3)),
    "activation: a mean that never changes counts too": ("activation", {"makers": ALIKE * [[1], [-1], [2], [-3]], "samples": FLAT}, (2, 3)),
    "activation: what swings around nothing counts too": ("activation", {"makers": 10 * ALIKE * [[1], [-1], [0], [0]], "bias": (0, 0, 1.5, 1.5), "samples": RANDOM}, (0, 1)),
    "activation: every reader counts alike": ("activation", {"readers": [[9, 9, 8, 8]] * 2, "others": [[0, 0.1, 0.5, 0.5]]}, (2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_what_is_kept(name):
    criterion, known, expected = ROWS[name]
    assert kept(criterion, **known) == expected


def test_random_goes_by_the_seed_and_by_nothing_else():
    chosen = [kept("random", makers=makers, seed=seed) for makers in (ALIKE, LOUD) for seed in range(6)]
    assert chosen[:6] == chosen[6:] and len(set(chosen)) > 2


def test_a_matrix_counts_by_its_columns():
    """A MatMul's makers are columns, a transposed Gemm's rows."""
    text = "(float[N,3] x) => (float[] y) <float[{}] w, float[4,2] v> {{ h = {}(x, w) y = MatMul(h, v) }}"
    w = np.array([[1, 1, 1, 9], [1, 1, 9, 1], [1, 1, 1, 1]], np.float32)
    for shape, op, value in (("3,4", "MatMul", w), ("4,3", "Gemm<transB=1>", w.T)):
        model = surgery.model_of(text.format(shape, op))
        for t in model.graph.initializer:
            if t.name == "w":
                t.raw_data = np.ascontiguousarray(value).tobytes()
        result = onnxprune.prune(model, 0.5, criterion="l1", round_to=1, repair="none")
        assert result.plan.keep() == {"w": (2, 3)}
