"""Targets that see a function of single elements behind a layer."""

import itertools

import numpy as np
import pytest

from onnxprune import numerics as nm
from tests.numerics.designs import design, ones


def silu(v):
    return v / (1 + np.exp(-v))


def test_the_table_tells_value_slope_and_error():
    table, at = nm.Table(silu, -10.0, 10.0), np.linspace(-9, 9, 700).reshape(100, 7).astype(np.float32)
    assert np.allclose(table.of(at), silu(at), atol=2e-3) and table.useful
    error, steep = table.error(at, table.of(at) + np.float32(0.5))
    assert np.allclose(error, 100 * 0.25)
    sigma = 1 / (1 + np.exp(-at))
    assert np.allclose(steep, np.square(sigma * (1 + at * (1 - sigma))).mean(axis=0), atol=1e-2)
    assert np.array_equal(table.target(at, table.of(at), steep), at)


@pytest.mark.parametrize(
    "function", [lambda v: 3 * v - 1, np.ones_like, lambda v: v / 0.0], ids=["line", "flat", "inf"]
)
def test_what_is_of_no_use(function):
    with np.errstate(all="ignore"):
        assert not nm.Table(function, -1.0, 1.0).useful


def test_targets_lower_the_error_behind():
    x, z = design(rows=600, n=8, seed=3)
    z, x = (3 * z - 2).astype(np.float32), x[:, :3]  # half the inputs are gone
    solver, X = nm.Ridge(nm.SecondMoments.of(x, z).H, 1e-9), ones(x)
    table = nm.Table(silu, float(z.min()) - 5, float(z.max()) + 5)
    W, errors = solver.solve(X.T @ z), []
    steep = np.full(8, table.steepest)
    for _ in range(20):
        now = (X @ W).astype(np.float32)
        errors.append(table.error(now, table.of(z))[0].sum())
        W = solver.solve(X.T @ table.target(now, table.of(z), steep))
    assert errors[-1] < 0.97 * errors[0] and all(b <= a * (1 + 1e-3) for a, b in itertools.pairwise(errors))
