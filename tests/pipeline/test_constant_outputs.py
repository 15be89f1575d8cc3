"""Networks of which an output is constant, from the start or once a branch has gone."""

import numpy as np
import pytest

import onnxprune
from onnxprune import api
from onnxprune.plan import KeepChannels
from tests.channels import surgery

TAIL = {
    "a map": ("float[1,3,8,8] y", "float[3,16,1,1] v", "y = Conv(e, v)"),
    "scores": ("float[1,5] y", "float[16,5] v", "g = GlobalAveragePool(e) f = Flatten(g) y = Gemm(f, v)"),
    "probabilities": ("float[1,5] y", "float[16,5] v", "g = GlobalAveragePool(e) f = Flatten(g) h = Gemm(f, v) y = Softmax(h)"),
    "a label": ("int64[1,1] y", "float[16,5] v", "g = GlobalAveragePool(e) f = Flatten(g) h = Gemm(f, v) y = ArgMax<axis=1>(h)"),
    "another beside it": ("float[1,3,8,8] y, float[1,2] z", "float[3,16,1,1] v, float[1,2] k2", "y = Conv(e, v) z = Neg(k2)"),
    "a residual block": ("float[1,3,8,8] y", "float[3,16,1,1] v, float[16,16,1,1] u", "p = Conv(e, u) q = Add(p, e) y = Conv(q, v)"),
    "normalized": ("float[1,3,8,8] y", "float[3,16,1,1] v, float[16] s, float[16] b, float[16] m", "n = BatchNormalization(e, s, b, m, s2) y = Conv(n, v)"),
}  # fmt: skip


def with_coordinates(tail):
    """A branch that a Concat joins to constants: without it, nothing of the input is left."""
    outputs, weights, nodes = TAIL[tail]
    if "s2" in nodes:
        weights += f", float[16] s2 = {{{', '.join(['1'] * 16)}}}"
    text = f"""(float[1,3,8,8] x) => ({outputs}) <float[16,3,3,3] w1, float[16,18,3,3] w2, float[1,2,8,8] k, {weights}> {{
        a = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(a) c = Concat<axis=1>(r, k)
        d = Conv<pads=[1,1,1,1]>(c, w2) e = Relu(d) {nodes} }}"""
    return surgery.model_of(text)


def samples(count=24):
    return np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("tail", TAIL)
def test_the_default_job_and_the_scan_try_the_branch(tail):
    model = with_coordinates(tail)
    result = onnxprune.prune(model, 0.5, calibration=samples(), threads=1)
    assert result.surgery.exact and result.macs_removed > 0.48
    found = onnxprune.sensitivity(model, calibration=samples(), steps=2, threads=1)
    assert [row.name for row in found.rows if row.kind == "block"]


@pytest.mark.parametrize("repair", ["refit", "statistics", "merge", "none"])
@pytest.mark.parametrize("tail", TAIL)
def test_the_branch_goes(tail, repair):
    """What is left says the same whatever it is given, and is what the masked original says."""
    model = with_coordinates(tail)
    subject = api.open_model(model, calibration=samples())
    plan = api.make_plan(subject, api.Ratio(0.99), api.Settings(threads=1, best_effort=True, methods=("blocks",)))
    assert any(isinstance(e, KeepChannels) and not e.keep for e in plan.edits)
    result = api.apply_plan(subject, plan, api.Settings(repair=repair, threads=1))
    assert result.surgery.exact
    first, second = (surgery.run(result.model, {"x": x[None]}) for x in samples(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
