"""Second moments add up and hold the error; patches are what a conv reads, and its adjoint hands back."""

import numpy as np
import pytest

from onnxprune import numerics as nm
from tests.numerics.designs import design, ones


def test_moments_add_up_over_chunks():
    x, y = design()
    whole = nm.SecondMoments.of(x, y)
    parts = nm.SecondMoments.of(x[:150], y[:150]) + nm.SecondMoments.of(x[150:], y[150:])
    X = ones(x)
    assert np.allclose(whole.H, X.T @ X) and np.allclose(whole.G, X.T @ y)
    assert np.allclose(parts.H, whole.H) and np.allclose(parts.G, whole.G)
    assert parts.count == 400 == whole.H[-1, -1]


def test_error_from_moments_is_the_error():
    x, y = design()
    W = np.random.default_rng(1).normal(size=(x.shape[1] + 1, y.shape[1]))
    assert np.isclose(nm.SecondMoments.of(x, y).error(W), np.square(y - ones(x) @ W).sum())


def naive_conv(x, kernel, strides, pads, dilations):
    top, left, bottom, right = pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    n, _, kh, kw = kernel.shape
    ho = (x.shape[2] - (kh - 1) * dilations[0] - 1) // strides[0] + 1
    wo = (x.shape[3] - (kw - 1) * dilations[1] - 1) // strides[1] + 1
    out = np.zeros((len(x), n, ho, wo))
    for i in range(ho):
        for j in range(wo):
            y, z = i * strides[0], j * strides[1]
            win = x[
                :,
                :,
                y : y + (kh - 1) * dilations[0] + 1 : dilations[0],
                z : z + (kw - 1) * dilations[1] + 1 : dilations[1],
            ]
            out[:, :, i, j] = np.einsum("bcij,ncij->bn", win, kernel)
    return out


CONVS = [
    ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((3, 3), (2, 2), (0, 0, 1, 1), (1, 1)),
    ((1, 1), (2, 2), (0, 0, 0, 0), (1, 1)),
    ((3, 2), (1, 2), (2, 1, 2, 0), (2, 1)),
]


@pytest.mark.parametrize("kernel,strides,pads,dilations", CONVS)
def test_patches_times_kernel_is_the_conv_and_its_adjoint(kernel, strides, pads, dilations):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(3, 4, 7, 8)), rng.normal(size=(5, 4, *kernel))
    how = {"strides": strides, "pads": pads, "dilations": dilations}
    want = naive_conv(x, w, strides, pads, dilations)
    rows = want.transpose(0, 2, 3, 1).reshape(-1, 5)
    assert np.allclose(nm.patches(x, kernel, **how) @ w.reshape(5, -1).T, rows)
    area = want[0, 0].size
    at = nm.sample_positions(3, area, 4, rng)
    assert all(len(set(p)) == 4 for p in at.tolist())
    some = nm.patches(x, kernel, positions=at, **how) @ w.reshape(5, -1).T
    assert np.allclose(some, rows.reshape(3, area, 5)[np.arange(3)[:, None], at].reshape(-1, 5))
    r = rng.normal(size=want.shape)
    back = nm.propagate_target(r, w, hidden_hw=(7, 8), **how)
    assert np.isclose(np.vdot(r, want), np.vdot(back, x))  # <r, Kx> = <K'r, x>
