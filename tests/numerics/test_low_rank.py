"""Low-rank factors: the errors are those of the product, and no other factors do better."""

import time

import numpy as np
import pytest

from onnxprune.numerics import SecondMoments, low_rank


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("outputs", [7, 36, 60])
@pytest.mark.parametrize("kind", ["channel", "spatial"])
def test_errors_are_what_the_product_loses(kind, outputs, parts):
    rng = np.random.default_rng(0)
    W = rng.standard_normal((parts, 4 * 9, outputs))
    X = rng.standard_normal((parts, 500, 36)) @ rng.standard_normal((parts, 36, 36))
    S = X.transpose(0, 2, 1) @ X / 500
    split = low_rank.channel_split(W, S) if kind == "channel" else low_rank.spatial_split(W, S, (3, 3))
    total = sum(np.vdot(w, s @ w) for w, s in zip(W, S, strict=True))
    for rank in range(1, split.most + 1):
        left = W - split.product(rank)
        lost = sum(np.vdot(w, s @ w) for w, s in zip(left, S, strict=True)) / total
        assert abs(lost - split.errors[rank]) < 1e-6
    assert split.errors[0] == 1 and split.errors[-1] < 1e-6 and (np.diff(split.errors) <= 0).all()


@pytest.mark.parametrize("outputs", [9, 12, 40])
def test_the_channel_kind_is_optimal(outputs):
    """No other projection of the outputs loses less: the tail of the singular values of LᵀW."""
    rng = np.random.default_rng(1)
    W, X = rng.standard_normal((1, 12, outputs)), rng.standard_normal((200, 12)) * np.geomspace(1, 30, 12)
    S = (X.T @ X / 200)[None]
    sigma = np.linalg.svd(np.linalg.cholesky(S[0]).T @ W[0], compute_uv=False) ** 2
    tail = 1 - np.append(0, np.cumsum(sigma)) / sigma.sum()
    assert np.allclose(low_rank.channel_split(W, S).errors, tail, atol=1e-7)


@pytest.mark.slow
def test_a_classifier_of_thousands_of_classes_is_split_on_its_smaller_side():
    rng = np.random.default_rng(2)
    W, S = rng.standard_normal((1, 20, 8000)), np.eye(20)[None]
    W[0, :, 1:] = np.outer(W[0, :, 1], np.ones(7999)) + 1e-9 * W[0, :, 1:]
    start = time.process_time()
    split = low_rank.channel_split(W, S, 3)
    assert time.process_time() - start < 1  # 8000 x 8000 eigenvalues take minutes
    assert np.allclose(split.product(2), W, atol=1e-7) and np.isfinite(split.product(3)).all()


VARY_BY_NOTHING = {
    "the same number": lambda rng: np.full((500, 36), 0.7),
    "zeros": lambda rng: np.zeros((500, 36)),
    "rounding": lambda rng: 5 + 1e-6 * rng.standard_normal((500, 36)),
    "one direction": lambda rng: rng.standard_normal((500, 1)) * rng.standard_normal(36),
    "far from zero": lambda rng: 1e4 + rng.standard_normal((500, 36)),
}


@pytest.mark.parametrize("kind", ["channel", "spatial"])
@pytest.mark.parametrize("outputs", [7, 60])
@pytest.mark.parametrize("name", VARY_BY_NOTHING)
def test_inputs_that_hardly_vary_have_factors_at_every_rank(name, outputs, kind):
    """Sums in float32 leave their covariance no positive direction."""
    rng = np.random.default_rng(0)
    x = VARY_BY_NOTHING[name](rng).astype(np.float32)
    moments = SecondMoments.of(x, x[:, :0])
    S = low_rank.covariances(moments.H[None])
    W = rng.standard_normal((1, 36, outputs))
    split = low_rank.channel_split(W, S) if kind == "channel" else low_rank.spatial_split(W, S, (3, 3))
    assert np.isfinite(split.errors).all()
    assert all(np.isfinite(split.product(rank)).all() for rank in range(1, split.most + 1))
    assert kind == "spatial" or np.allclose(split.product(split.most), W, atol=1e-6)


def test_a_covariance_of_rounding_alone_is_made_positive_definite():
    rng = np.random.default_rng(1)
    half = rng.standard_normal((3, 8, 8))
    S = np.stack([-half[0] @ half[0].T, half[1] + half[1].T, 0 * half[2]])
    assert all(np.linalg.eigvalsh(one).min() > 0 for one in low_rank.positive_definite(S))
