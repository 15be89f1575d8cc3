"""Elimination: its errors are those of a refit, and what is redundant goes first."""

import time

import numpy as np
import pytest

from onnxprune import numerics as nm
from onnxprune.numerics import elimination
from tests.numerics.designs import design, lstsq_error


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


@pytest.mark.slow
def test_elimination_of_a_wide_conv_is_quick():
    c, taps, n = 128, 9, 64
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, c * taps)).astype(np.float32)
    m = nm.SecondMoments.of(x, x[:, :n])
    start = time.process_time()  # CPU seconds: the machine may be busy with something else
    order, errors = nm.eliminate([nm.Reader.of(m.H, rng.normal(size=(c * taps + 1, n)), taps)])
    assert time.process_time() - start < 8 and len(order) == c and (np.diff(errors) <= 1e-6).all()


def test_independent_channels_are_a_reader_with_the_identity():
    x, y = design(c=6, taps=2, seed=5)
    m = nm.SecondMoments.of(x, y)
    first = nm.Reader.of(m.H, nm.ridge(m.H, m.G, 0.0), 2, lam=1e-11)
    energies = np.random.default_rng(3).random(6)
    as_reader = nm.Reader(np.eye(6), np.sqrt(energies)[:, None], np.arange(6)[:, None])
    for step in (1, 4):
        wanted, found = (nm.eliminate([first, other], step=step) for other in (as_reader, nm.Independent(energies)))
        np.testing.assert_array_equal(found[0], wanted[0])
        np.testing.assert_allclose(found[1], wanted[1], rtol=1e-12)


def test_channels_are_compared_a_few_at_a_time(monkeypatch):
    x, y = design(c=8, taps=3)
    m = nm.SecondMoments.of(x, y)
    reader = nm.Reader.of(m.H, nm.ridge(m.H, m.G, 0.0), 3, lam=1e-11)
    wanted = nm.eliminate([reader])
    monkeypatch.setattr(elimination, "AT_ONCE", 1)
    np.testing.assert_array_equal(nm.eliminate([reader])[0], wanted[0])
