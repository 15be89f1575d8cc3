"""Rounding with feedback: on a grid, and closer in what the layer computes than the nearest integers are."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.numerics import round_with_feedback


def problem(parts=2, inputs=12, outputs=5):
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((parts, 400, inputs)) @ rng.standard_normal((parts, inputs, inputs))
    S = np.swapaxes(mixed, 1, 2) @ mixed / 400
    return rng.standard_normal((parts, inputs, outputs)), S, np.full((parts, outputs), 0.2)


def error(W, S, ints, scale):
    off = W - ints * scale[:, None]
    return float(np.einsum("pio,pij,pjo->", off, S, off))


def test_it_is_closer_than_the_nearest_integers():
    W, S, scale = problem()
    nearest = np.rint(W / scale[:, None])
    found = round_with_feedback(W, S, scale, -64, 63)
    assert found.dtype == np.int64
    assert error(W, S, found, scale) < 0.6 * error(W, S, nearest, scale)


def test_inputs_that_have_nothing_in_common_are_rounded_to_the_nearest():
    W, _, scale = problem()
    S = np.broadcast_to(np.diag(np.arange(1.0, 13.0)), (2, 12, 12))
    assert (round_with_feedback(W, S, scale, -64, 63) == np.rint(W / scale[:, None])).all()


def test_the_range_is_kept_and_dead_inputs_do_no_harm():
    W, S, scale = problem()
    S[:, 3] = S[:, :, 3] = 0
    found = round_with_feedback(W, S, scale, -3, 3)
    assert found.min() >= -3
    assert found.max() <= 3
    assert (round_with_feedback(W, np.zeros_like(S), scale, -99, 99) == np.rint(W / scale[:, None])).all()


def test_what_is_not_finite_is_refused():
    W, S, scale = problem()
    with pytest.raises(ValueError, match="finite"):
        round_with_feedback(W, S * np.nan, scale, -3, 3)
