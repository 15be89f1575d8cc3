"""Formulas against numbers worked out by hand, or by a slower way that is easy to see through."""

import numpy as np
import pytest

from onnxprune import numerics as nm
from tests.numerics.designs import design, lstsq_error, ones

I3 = np.eye(3)
SQUARES = np.diag([1.0, 3.0, 100.0])  # two inputs and the intercept
ROWS = {  # name: (what comes out, what should)
    "the ridge goes by the mean of the inputs and leaves the intercept": lambda: (nm.penalty(SQUARES, 0.1), [0.2, 0.2, 0]),
    "the ridge of no input": lambda: (nm.penalty(np.diag([5.0]), 0.1), [0]),
    "an inverse with its ridge": lambda: (nm.inverse(SQUARES, 0.1), np.diag([1 / 1.2, 1 / 3.2, 1 / 100])),
    "inputs that are always zero get a row of their own": lambda: (nm.inverse(np.diag([0, 0, 5.0])), np.diag([1, 1, 0.2])),
    "ReLU: what is wanted is met": lambda: (nm.relu_target(np.array([2.0, 2, 2]), np.array([-1.0, 1, 5])), [2, 2, 2]),
    "ReLU: what is to be off may be off by any amount": lambda: (nm.relu_target(np.array([-1.0, -1]), np.array([-3.0, 4])), [-3, 0]),
    "Clip: what is to be at the top may be above it": lambda: (nm.relu_target(np.array([7.0, 7, 3]), np.array([9.0, 4, 8]), 6), [9, 6, 3]),
    "similarity": lambda: (nm.similarity(np.array([0.0, 3]), np.array([1.0, -2]), np.array([[1, 0.5], [0.5, 1]])), [[0, 12], [12, 0]]),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_numbers_by_hand(name):
    found, expected = ROWS[name]()
    assert np.allclose(found, expected, atol=1e-12)


def test_an_inverse_is_one_and_symmetric():
    x, _ = design(c=260, rows=600)  # wider than a block of the copy from one triangle to the other
    H = nm.SecondMoments.of(x, x[:, :0]).H
    V = nm.inverse(H, 1e-3)
    assert np.array_equal(V, V.T) and np.allclose(V @ (H + np.diag(nm.penalty(H, 1e-3))), np.eye(261), atol=1e-8)


def test_least_norm_whatever_the_units():
    """Two inputs are the same, one is a ten-thousandth of the others', one hardly differs from another."""
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(3, 400))
    x, y = np.stack([1e-5 * a, 1e5 * b, 1e5 * b, b + 0.01 * c], axis=1), (a + b + c)[:, None]
    m = nm.SecondMoments.of(x, y)
    solver = nm.Ridge(m.H, 0.0)
    W = solver.solve(m.G)
    assert not solver.conditioned and np.allclose(ones(x) @ W, y, atol=1e-2) and np.allclose(W[1], W[2])


@pytest.mark.parametrize("rows", [11, 39, 40, 80])
def test_correlations_are_believed_less_where_rows_are_few(rows):
    x, _ = design(c=10, rows=rows)
    H = nm.SecondMoments.of(x, x[:, :0]).H
    found = nm.shrunk_covariance(H)
    assert (found is H) == (rows >= nm.FEW * 10)
    before, after = nm.covariance(H), nm.covariance(found)
    assert np.allclose(np.diag(before), np.diag(after)) and np.allclose(found[-1], H[-1])
    off = ~np.eye(10, dtype=bool)
    rho = 1 - after[off] / before[off]
    S, d = before, 10
    tr, tr2 = np.trace(S), np.square(S).sum()
    oas = min(1.0, (tr2 + tr**2) / ((rows + 1) * (tr2 - tr**2 / d)))
    assert np.allclose(rho, 0 if rows >= 40 else oas)


def test_covariance_and_error_over_chunks():
    x, y = design()
    parts = nm.SecondMoments.of(x[:100], y[:100]) + nm.SecondMoments.of(x[100:], y[100:])
    assert np.allclose(nm.covariance(parts.H), np.cov(x.T, bias=True))
    W = np.random.default_rng(1).normal(size=(7, 5))
    assert np.isclose(parts.error(W), np.square(y - ones(x) @ W).sum())


@pytest.mark.parametrize("what", ["H", "G"])
def test_what_is_not_finite_is_refused(what):
    x, y = design()
    m = nm.SecondMoments.of(x, y)
    getattr(m, what)[1, 1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        nm.ridge(m.H, m.G)


# ---- elimination ------------------------------------------------------------------------------------------------


def reader(x, y, taps=1, scale=1.0):
    m = nm.SecondMoments.of(x, y)
    return nm.Reader.of(m.H, nm.ridge(m.H, m.G, 0.0), taps, scale, lam=1e-11)


def test_a_reader_counts_by_its_scale():
    x = np.random.default_rng(0).normal(size=(200, 2))
    for scales, first in (((1, 100), 0), ((100, 1), 1)):
        readers = [reader(x, x[:, [k]], scale=s) for k, s in enumerate(scales)]  # each needs one of the two
        assert nm.eliminate(readers)[0].tolist() == [first, 1 - first]


@pytest.mark.parametrize("step", [1, 3])
def test_the_curve_of_an_order_that_is_given(step):
    c = 7
    x, y = design(c=c, taps=2)
    order = np.random.default_rng(1).permutation(c)
    found, errors = nm.eliminate([reader(x, y, 2)], order=order, step=step)
    assert found.tolist() == order.tolist()
    for gone in range(0, c, step):
        stay = np.sort(order[gone:])
        brute = lstsq_error(x.reshape(len(x), c, 2)[:, stay].reshape(len(x), -1), y) - lstsq_error(x, y)
        assert np.isclose(errors[c - gone], brute, rtol=1e-4, atol=1e-6)


def test_no_more_outputs_than_inputs_are_worked_with():
    x, y = design(c=4, n=9)
    whole = reader(x, y)
    narrow = whole.narrowed()
    assert narrow.W.shape == (4, 4)
    (order, errors), (again, same) = nm.eliminate([whole]), nm.eliminate([narrow])
    assert order.tolist() == again.tolist() and np.allclose(errors, same)


@pytest.mark.parametrize(("step", "keep"), [(1, 3), (4, 3), (8, 7)])
def test_it_stops_at_what_is_to_be_kept(step, keep):
    x, y = design(c=8)
    order, errors = nm.eliminate([reader(x, y)], step=step, keep=keep)
    assert len(order) == 8 - keep and np.isnan(errors[:keep]).all() and np.isfinite(errors[keep:]).all()


# ---- choosing together ------------------------------------------------------------------------------------------


def by_definition(parts, keep):
    """The `keep` largest |β| of the LASSO with the strongest penalty that leaves as many, by coordinate descent."""
    norms = np.sqrt(parts.square)
    cross, gain = parts.gram / np.outer(norms, norms), parts.gram.sum(1) / norms
    beta = np.zeros(len(norms))
    for alpha in np.abs(gain).max() * np.geomspace(1, 1e-4, 600):
        for _ in range(200):
            before = beta.copy()
            for i in range(len(beta)):
                rest = gain[i] - cross[i] @ beta + cross[i, i] * beta[i]
                beta[i] = np.sign(rest) * max(abs(rest) - alpha, 0) / cross[i, i]
            if np.abs(beta - before).max() < 1e-9:
                break
        if np.count_nonzero(beta) >= keep:
            break
    return np.sort(np.argsort(-np.abs(beta))[:keep]).tolist()


@pytest.mark.parametrize(("seed", "keep"), [(0, 2), (1, 3), (2, 4), (4, 3), (13, 2)])
def test_lasso_is_the_lasso(seed, keep):
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, 6)) @ (np.eye(6) + 0.8 * rng.normal(size=(6, 6)))
    W = rng.normal(size=(6, 2)) * rng.uniform(0.1, 2, size=(6, 1))
    parts = nm.contributions(nm.SecondMoments.of(x, x[:, :1]).H, W, np.arange(6)[:, None])
    assert nm.select_lasso(parts, keep).tolist() == by_definition(parts, keep)


def apart(*places):
    """Distances of points on a line."""
    at = np.array(places)
    return np.abs(at[:, None] - at)


def test_clusters_go_by_average_distance_and_are_kept_by_their_middle():
    medoids, member_of = nm.cluster(apart(0, 1, 2.1, 3.3), width=2)
    assert medoids.tolist() == [0, 2] and member_of.tolist() == [0, 0, 1, 1]  # by the nearest it would be 3 and 1
    medoids, member_of = nm.cluster(apart(0, 9, 1, 2.1), height=5)
    assert medoids.tolist() == [1, 2] and member_of.tolist() == [1, 0, 1, 1]


def test_one_order_for_all_widths_by_hand():
    """At 0.9 the middle two meet, at 1.45 the first joins them, at (3 + 2 + 1.1) / 3 the last; who stays is nearest to
    all that it stands for."""
    order, heights = nm.merge_order(apart(0, 1, 1.9, 3))
    assert np.allclose(np.sort(heights)[:3], [0.9, 1.45, 6.1 / 3]) and np.isinf(heights[order[-1]])
    assert order.tolist() == [2, 0, 3, 1]
