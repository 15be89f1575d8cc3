"""Targets that see the ReLU behind a layer, and targets for the layer in front."""

import itertools

import numpy as np

from onnxprune import numerics as nm
from tests.numerics.designs import design, ones


def test_relu_target_lowers_the_error_after_the_relu():
    x, z = design(rows=600, n=8, seed=3)
    z = z - 1.0
    x = x[:, :3]  # half the inputs are gone
    solver, X = nm.Ridge(nm.SecondMoments.of(x, z).H, 1e-9), ones(x)
    W = solver.solve(X.T @ z)
    errors = []
    for _ in range(12):
        now = X @ W
        errors.append(np.square(np.maximum(now, 0) - np.maximum(z, 0)).sum())
        W = solver.solve(X.T @ nm.relu_target(z, now))
    assert errors[-1] < 0.93 * errors[0]


def test_propagated_targets_let_the_producer_repair_its_reader():
    rng = np.random.default_rng(0)
    x, hidden, out = rng.normal(size=(500, 8)), rng.normal(size=(9, 12)), rng.normal(size=(12, 4))
    want = np.maximum(ones(x) @ hidden, 0) @ out
    A, B = hidden[:, :5], out[:5]
    X = ones(x)
    solver = nm.Ridge(X.T @ X, 1e-9)
    errors = []
    for _ in range(15):
        pre = X @ A
        h = np.maximum(pre, 0)
        B = np.linalg.lstsq(h, want, rcond=None)[0]
        r = want - h @ B
        errors.append(np.square(r).sum())
        moved = pre + r @ B.T / np.linalg.norm(B, 2) ** 2
        A = solver.solve(X.T @ np.where(pre > 0, np.maximum(moved, 0), pre))
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(errors))
    assert errors[-1] < 0.8 * errors[0]
