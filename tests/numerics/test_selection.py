"""LASSO and clusters: what is planted is found."""

import numpy as np
import pytest

from onnxprune import numerics as nm
from tests.numerics.designs import design


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
