import itertools
import time

import numpy as np
import pytest

from onnxprune import numerics as nm


def design(rows=400, c=6, taps=1, n=5, seed=0, mix=True):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, c * taps)) + 0.5
    if mix:
        x = x @ (np.eye(c * taps) + 0.3 * rng.normal(size=(c * taps, c * taps)))
    y = x @ rng.normal(size=(c * taps, n)) + rng.normal(size=n) + 0.1 * rng.normal(size=(rows, n))
    return x, y


def ones(x):
    return np.c_[x, np.ones(len(x))]


def lstsq_error(x, y):
    X = ones(x)
    return float(np.square(y - X @ np.linalg.lstsq(X, y, rcond=None)[0]).sum())


# ------------------------------------------------------------------------------------------ moments, ridge


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


# ------------------------------------------------------------------------------------------ patches, adjoint


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


# ------------------------------------------------------------------------------------------ through a ReLU


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


# ------------------------------------------------------------------------------------------ elimination


@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("step", [1, 2])
def test_elimination_errors_are_refit_errors(taps, step):
    c = 8
    x, y = design(c=c, taps=taps)
    m = nm.SecondMoments.of(x, y)
    W = nm.ridge(m.H, m.G, 0.0)
    order, errors = nm.eliminate([nm.Reader.of(m.H, W, taps, lam=1e-11)], step=step)
    assert sorted(order) == list(range(c)) and errors[c] == 0 and (np.diff(errors) <= 1e-9).all()
    base = lstsq_error(x, y)
    for left in range(0, c, step):
        kept = np.sort(order[c - left :])
        at = (kept[:, None] * taps + np.arange(taps)).ravel()
        assert np.isclose(errors[left], lstsq_error(x[:, at], y) - base, rtol=1e-4)


def test_elimination_takes_the_best_single_removal():
    x, y = design(c=6, taps=2, seed=5)
    m = nm.SecondMoments.of(x, y)
    order, _ = nm.eliminate([nm.Reader.of(m.H, nm.ridge(m.H, m.G, 0.0), 2, lam=1e-11)])
    brute = [lstsq_error(np.delete(x, [2 * g, 2 * g + 1], axis=1), y) for g in range(6)]
    assert order[0] == int(np.argmin(brute))


def test_two_readers_add_up():
    x, _ = design(c=5, seed=1)
    rng = np.random.default_rng(9)
    ys = [x @ rng.normal(size=(5, 3)) for _ in range(2)]
    scales = [1.0, 7.0]
    readers = []
    for y, s in zip(ys, scales, strict=True):
        m = nm.SecondMoments.of(x, y)
        readers.append(nm.Reader.of(m.H, nm.ridge(m.H, m.G, 0.0), 1, s, lam=1e-11))
    order, errors = nm.eliminate(readers)
    brute = [
        sum(s * lstsq_error(np.delete(x, g, axis=1), y) for y, s in zip(ys, scales, strict=True)) for g in range(5)
    ]
    assert order[0] == int(np.argmin(brute)) and np.isclose(errors[4], min(brute), rtol=1e-4)
    with pytest.raises(ValueError, match="disagree"):
        nm.eliminate([readers[0], nm.Reader.of(np.eye(4), np.ones((4, 2)))])


def test_planted_redundancy_goes_first_and_costs_nothing():
    x, _ = design(c=8, seed=2)
    x[:, 3] = 2 * x[:, 1] - x[:, 6]  # in the span of others
    x[:, 5] = 4.0  # constant: the intercept has it
    y = x @ np.random.default_rng(3).normal(size=(8, 4))
    m = nm.SecondMoments.of(x, y)
    order, errors = nm.eliminate([nm.Reader.of(m.H, nm.ridge(m.H, m.G, 1e-8), lam=1e-8)], keep=2)
    gone = set(order[:2].tolist())
    assert 5 in gone and gone & {1, 3, 6} and errors[6] < 1e-5 * errors[5]
    assert len(order) == 6 and np.isnan(errors[:2]).all()


def test_inverse_of_moments_that_float32_left_indefinite():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(12, 60)) * 0.01 + 5).astype(np.float32)  # fewer rows than inputs, one common mean
    H = nm.SecondMoments.of(x, x[:, :1]).H
    H[-1, -1] *= 1 - 1e-4  # what rounding in another order does
    V = nm.inverse(H, 1e-7)
    assert np.isfinite(V).all() and (np.linalg.eigvalsh(V) > 0).all()


def test_few_rows_do_not_make_channels_redundant():
    """Sixty independent inputs, and half as many rows: to the moments every input is a combination of others."""
    rng = np.random.default_rng(0)
    x, W = rng.normal(size=(30, 60)) + 1, np.vstack([rng.normal(size=(60, 8)), np.zeros((1, 8))])
    m = nm.SecondMoments.of(x, x @ W[:-1])
    variance = np.square(x @ W[:-1] - (x @ W[:-1]).mean(0)).sum()
    plain, honest = (nm.eliminate([nm.Reader.of(H, W, 1, 1 / variance)])[1] for H in (m.H, nm.shrunk_covariance(m.H)))
    assert plain[40] < 0.01 < 0.1 < honest[40]  # a third of the inputs gone
    many = rng.normal(size=(300, 60))
    H = nm.SecondMoments.of(many, many).H
    assert nm.shrunk_covariance(H) is H


def test_elimination_of_a_wide_conv_is_quick():
    c, taps, n = 128, 9, 64
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, c * taps)).astype(np.float32)
    m = nm.SecondMoments.of(x, x[:, :n])
    start = time.process_time()  # CPU seconds: the machine may be busy with something else
    order, errors = nm.eliminate([nm.Reader.of(m.H, rng.normal(size=(c * taps + 1, n)), taps)])
    assert time.process_time() - start < 8 and len(order) == c and (np.diff(errors) <= 1e-6).all()


# ------------------------------------------------------------------------------------------ other selections


@pytest.mark.parametrize("keep", [0, 1, 3, 5, 8])
def test_lasso_keeps_what_matters(keep):
    pytest.importorskip("sklearn")
    x, _ = design(c=8, taps=2, mix=False)
    size = np.repeat([0.01, 3, 0.01, 2, 0.01, 2.5, 0.01, 0.01], 2)
    W = np.vstack([np.random.default_rng(0).normal(size=(16, 4)) * size[:, None], np.zeros((1, 4))])
    parts = nm.contributions(nm.SecondMoments.of(x, x @ W[:-1]).H, W, np.arange(16).reshape(8, 2))
    kept = nm.select_lasso(parts, keep)
    assert len(kept) == keep and (np.diff(kept) > 0).all()
    if keep == 3:
        assert kept.tolist() == [1, 3, 5]


def test_contributions_to_two_readers_are_those_to_one_that_writes_both():
    x, _ = design(c=5, taps=2)
    rng = np.random.default_rng(1)
    H, rows = nm.SecondMoments.of(x, x[:, :1]).H, rng.permutation(10).reshape(5, 2)
    a, b = rng.normal(size=(11, 3)), rng.normal(size=(11, 4))
    apart = nm.contributions(H, a, rows, 4.0) + nm.contributions(H, b, rows, 0.25)
    joint = nm.contributions(H, np.hstack([2 * a, b / 2]), rows)
    assert np.allclose(apart.gram, joint.gram) and np.allclose(apart.square, joint.square)
    centred = x - x.mean(0)
    Y = np.stack([(centred[:, r] @ np.hstack([2 * a, b / 2])[r]).ravel() for r in rows])
    assert np.allclose(joint.gram, Y @ Y.T)
    assert nm.select_lasso(apart, 2).tolist() == nm.select_lasso(joint, 2).tolist()


def test_lasso_order_is_that_of_entering_the_path():
    pytest.importorskip("sklearn")
    gram = np.diag([4.0, 0.0, 9.0, 1.0, 16.0])  # alone: channel i enters at α ∝ its own energy / its norm
    parts = nm.Contributions(gram, np.ones(5))
    order = nm.lasso_order(parts)
    assert order.tolist() == [1, 3, 0, 2, 4]
    assert nm.select_lasso(parts, 3).tolist() == [0, 2, 4]
    assert sorted(nm.lasso_order(nm.Contributions(np.zeros((3, 3)), np.zeros(3))).tolist()) == [0, 1, 2]


def test_lasso_drops_one_of_two_that_say_the_same():
    """By size alone 0 and 1 would both stay; they are one direction, so one of them and the faint 3 explain more."""
    pytest.importorskip("sklearn")
    x = np.random.default_rng(0).normal(size=(400, 4))
    x[:, 1] = x[:, 0] + 1e-3 * x[:, 1]
    W = np.array([[2.0, 0], [1.9, 0], [0, 0], [0, 0.5]])
    H = nm.SecondMoments.of(x, x[:, :1]).H
    kept = nm.select_lasso(nm.contributions(H, W, np.arange(4)[:, None]), 2)
    assert 3 in kept.tolist() and len(set(kept.tolist()) & {0, 1}) == 1


def test_merge_order_follows_the_tree():
    place = np.array([0.0, 0.1, 5.0, 5.3, 11.0])
    distance = np.abs(place[:, None] - place)
    order, heights = nm.merge_order(distance)
    assert {order[0]} <= {0, 1} and {order[1]} <= {2, 3} and sorted(order.tolist()) == [0, 1, 2, 3, 4]
    assert np.isinf(heights[order[-1]]) and (np.diff(heights[order[:-1]]) >= 0).all()
    assert heights[order[0]] == pytest.approx(0.1) and heights[order[1]] == pytest.approx(0.3)
    assert nm.merge_order(np.zeros((1, 1)))[0].tolist() == [0]


def test_similarity_formulas():
    mean, std = np.array([0.0, 1.0, 1.0]), np.array([1.0, 2.0, 2.0])
    assert np.allclose(nm.similarity(mean, std), [[0, 6, 6], [6, 0, 8], [6, 8, 0]])
    assert np.allclose(nm.similarity(mean, std, np.ones((3, 3))), [[0, 2, 2], [2, 0, 0], [2, 0, 0]])


def test_cluster_keeps_medoids_and_merging_twins_is_exact():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 6))
    x[:, 4], x[:, 5] = x[:, 1], x[:, 1]
    distance = nm.similarity(x.mean(0), x.std(0), np.corrcoef(x.T))
    medoids, member_of = nm.cluster(distance, width=4)
    assert medoids.tolist() == [0, 1, 2, 3] and member_of.tolist() == [0, 1, 2, 3, 1, 1]
    W = rng.normal(size=(3, 6))
    merged = np.zeros((4, 3))
    np.add.at(merged, member_of, W.T)  # each cluster's columns added onto its medoid's
    assert np.allclose(x[:, medoids] @ merged, x @ W.T)
    again, _ = nm.cluster(distance, height=1e-9)
    assert again.tolist() == medoids.tolist()
    assert all(len(nm.cluster(np.zeros((5, 5)), width=w)[0]) == w for w in range(1, 6))  # ties
    with pytest.raises(ValueError, match="either"):
        nm.cluster(distance)


def test_blas_has_one_thread_while_it_computes_and_its_own_number_afterwards():
    from threadpoolctl import threadpool_info, threadpool_limits

    from onnxprune.parallel import one_blas_thread

    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    with threadpool_limits(2, user_api="blas"):
        before = threads()
        assert set(one_blas_thread(threads)()) == {1}
        assert threads() == before
