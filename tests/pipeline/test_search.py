"""Loops that measure: on made-up machines with stairs, noise and limits."""

import math

import numpy as np
import pytest

from onnxprune.errors import BudgetError
from onnxprune.pipeline.search import SLACK, STEPS, close_loop, largest

MACHINES = {  # ratio of the cost that goes -> gain that is measured
    "as promised": lambda r: 1 / (1 - r),
    "half of it is fixed": lambda r: 1 / (1 - 0.7 * r),
    "faster than promised": lambda r: 1 / (1 - r) ** 1.4,
    "stairs": lambda r: 1 / (1 - math.floor(r * 40) / 40),
}


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("goal", [1.1, 1.5, 2.0, 3.0])
def test_the_goal_is_reached_and_hardly_exceeded(name, goal):
    tried = []

    def measure(ratio):
        tried.append(ratio)
        return MACHINES[name](ratio)

    ratio, step = close_loop(lambda r: r, measure, goal)
    assert goal <= step.gain <= goal * (1.1 if name == "stairs" else 1 + SLACK)
    assert step.ratio == ratio and len(tried) <= STEPS


@pytest.mark.parametrize("seed", range(5))
def test_noise_does_not_lead_astray(seed):
    rng = np.random.default_rng(seed)
    found = close_loop(lambda r: r, lambda r: (1 / (1 - r)) * rng.uniform(0.985, 1.015), 2.0)
    assert 1.96 <= 1 / (1 - found[0]) <= 2.2


def test_what_no_cut_reaches_is_not_claimed():
    assert close_loop(lambda r: r, lambda r: 1 / (1 - 0.4 * r), 2.0) is None


def test_a_ratio_that_cannot_be_planned_bounds_the_search():
    def propose(ratio):
        if ratio > 0.45:
            raise BudgetError("no more")
        return ratio

    assert close_loop(propose, lambda r: 1 / (1 - r), 2.0) is None
    ratio, step = close_loop(propose, lambda r: 1 / (1 - 1.2 * r), 2.0)
    assert 2.0 <= step.gain and ratio <= 0.45


def test_no_candidate_no_outcome():
    assert close_loop(lambda r: None, lambda r: 1.0, 2.0) is None


def test_the_least_gain_that_does_is_kept():
    gains = iter([3.0, 2.5, 1.5, 2.4, 1.9, 2.3, 1.9, 1.9, 1.9])
    _, step = close_loop(lambda r: r, lambda r: next(gains), 2.0)
    assert step.gain == 2.3


@pytest.mark.parametrize("limit", [0.0, 0.1, 0.5, 0.77, 0.98])
def test_the_largest_ratio_that_works(limit):
    found = largest(lambda r: r if r <= limit else None, steps=8)
    if limit == 0.0:
        assert found is None
    else:
        assert found is not None and limit - 0.01 <= found[1] <= limit
