"""Ridge: least squares where that exists, and something finite where it does not."""

import numpy as np
import pytest

from onnxprune import numerics as nm
from tests.numerics.designs import design, lstsq_error, ones


def test_ridge_without_ridge_is_lstsq():
    x, y = design()
    m = nm.SecondMoments.of(x, y)
    assert np.allclose(nm.ridge(m.H, m.G, 0.0), np.linalg.lstsq(ones(x), y, rcond=None)[0])


def test_ridge_does_not_penalise_the_intercept_and_is_drawn_to_W0():
    x, y = design()
    m = nm.SecondMoments.of(x - x.mean(0), y)
    strong = nm.ridge(m.H, m.G, 1e9)
    assert np.allclose(strong[:-1], 0, atol=1e-6) and np.allclose(strong[-1], y.mean(0))
    W0 = np.random.default_rng(2).normal(size=strong.shape)
    assert np.allclose(nm.ridge(m.H, m.G, 1e9, W0)[:-1], W0[:-1], atol=1e-5)


@pytest.mark.parametrize("spoil", ["dead", "twin", "few rows", "huge"])
def test_ridge_survives(spoil):
    x, y = design(rows=4 if spoil == "few rows" else 400)
    if spoil == "dead":
        x[:, 2] = 0
    if spoil == "twin":
        x[:, 3] = x[:, 1]
    if spoil == "huge":
        x[:, 0] *= 1e7
    m = nm.SecondMoments.of(x, y)
    W = nm.ridge(m.H, m.G, 0.0)
    assert np.isfinite(W).all()
    assert np.isclose(np.square(y - ones(x) @ W).sum(), lstsq_error(x, y), rtol=1e-3, atol=1e-3)


def test_inverse_of_moments_that_float32_left_indefinite():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(12, 60)) * 0.01 + 5).astype(np.float32)  # fewer rows than inputs, one common mean
    H = nm.SecondMoments.of(x, x[:, :1]).H
    H[-1, -1] *= 1 - 1e-4  # what rounding in another order does
    V = nm.inverse(H, 1e-7)
    assert np.isfinite(V).all() and (np.linalg.eigvalsh(V) > 0).all()


@pytest.mark.parametrize("spoil", ["nothing", "dead", "twin"])
def test_several_designs_side_by_side_are_solved_as_each_alone(spoil):
    """A part with an input that is always zero must not send all of them to the slow way, nor change them."""
    rng = np.random.default_rng(3)
    x, y, W0 = rng.normal(size=(5, 300, 4)), rng.normal(size=(5, 300, 2)), rng.normal(size=(5, 5, 2))
    if spoil == "dead":
        x[2, :, 1], x[3] = 0, 0
    if spoil == "twin":
        x[2, :, 3] = x[2, :, 1]
    m, each = nm.SecondMoments.of(x, y), [nm.SecondMoments.of(a, b) for a, b in zip(x, y, strict=True)]
    assert np.allclose(m.H, [e.H for e in each]) and np.allclose(m.G, [e.G for e in each]) and m.count == 300
    for lam in (0.0, 1e-4, 10.0):
        several = nm.Ridges(m.H, lam)
        W = several.solve(m.G, W0)
        assert np.allclose(W, [nm.ridge(e.H, e.G, lam, w) for e, w in zip(each, W0, strict=True)], atol=1e-8)
        assert np.isclose(m.error(W), sum(e.error(w) for e, w in zip(each, W, strict=True)))
        assert bool(several._each) == (spoil == "twin" and lam == 0)
