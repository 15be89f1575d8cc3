"""What times say: on made-up ones whose ratio is known."""

import numpy as np
import pytest

from onnxprune.timing.statistics import RESOLUTION, Interval, noise_floor, paired_ratio, round_orders, verdict

NONE = "no measurable change"


def noisy(rng: np.random.Generator, ms: float, rounds: int = 40) -> np.ndarray:
    return ms * np.exp(np.abs(rng.normal(0, 0.03, rounds)))  # only ever slower than the undisturbed time


@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.0, 1.1, 2.0, 10.0])
def test_a_known_ratio_lies_in_its_interval(ratio):
    inside = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found = paired_ratio(noisy(rng, ratio), noisy(rng, 1.0), seed=seed)
        assert found.low <= found.median <= found.high
        assert found.median == pytest.approx(ratio, rel=0.03)
        inside += found.low <= ratio <= found.high
    assert inside >= 17  # 95 % of 20, and three of luck


def test_the_pairing_removes_what_disturbs_a_whole_round():
    rng = np.random.default_rng(0)
    load = np.exp(rng.normal(0, 0.5, 40))
    found = paired_ratio(1.2 * load * noisy(rng, 1.0), load * noisy(rng, 1.0))
    assert 1.17 < found.low <= found.high < 1.23


def test_outliers_do_not_move_the_median():
    rng = np.random.default_rng(0)
    a, b = noisy(rng, 2.0), noisy(rng, 1.0)
    clean = paired_ratio(a, b)
    a[[3, 17, 21]] *= 50
    b[[5, 30]] *= 80
    assert paired_ratio(a, b).median == pytest.approx(clean.median, rel=0.01)


def test_the_same_samples_and_seed_give_the_same_interval():
    rng = np.random.default_rng(0)
    a, b = noisy(rng, 1.0), noisy(rng, 1.0)
    assert paired_ratio(a, b, seed=3) == paired_ratio(a, b, seed=3)


@pytest.mark.parametrize("a, b", [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]])])
def test_rows_that_are_not_pairs_are_refused(a, b):
    with pytest.raises(ValueError, match="equal, non-empty"):
        paired_ratio(a, b)


@pytest.mark.parametrize("scatter", [0.001, 0.01, 0.05, 0.3])
@pytest.mark.parametrize("offset", [0.0, 0.004])  # a session's own constant offset
def test_same_against_same_is_no_change_in_19_of_20(scatter, offset):
    def outcome(seed: int) -> str:
        rng = np.random.default_rng(seed)
        first, second, twin = np.exp(rng.normal(rng.normal(0, offset, (3, 1)), scatter, (3, 40)))
        return verdict(paired_ratio(first, second), noise_floor(paired_ratio(first, twin)))

    assert sum(outcome(seed) == NONE for seed in range(100)) >= 95


@pytest.mark.parametrize(
    "aa, floor",
    [
        ((0.999, 1.001), 1 + RESOLUTION),  # never narrower than the resolution
        ((0.95, 1.01), 1 / 0.95),  # one-sided by chance: taken to both sides
        ((0.99, 1.2), 1.2),
    ],
)
def test_the_noise_floor_reaches_as_far_on_both_sides(aa, floor):
    low, high = noise_floor(Interval(1.0, *aa))
    assert high == pytest.approx(floor) and low == pytest.approx(1 / floor)


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (1.06, 1.10, "faster"),
        (1.04, 1.10, NONE),  # reaches into the floor
        (0.80, 0.90, "slower"),
        (0.90, 0.96, NONE),
        (0.99, 1.01, NONE),
        (0.50, 2.00, NONE),
    ],
)
def test_verdict(low, high, expected):
    assert verdict(Interval((low + high) / 2, low, high), (1 / 1.05, 1.05)) == expected


def test_orders_are_permutations_fixed_by_the_seed():
    orders = round_orders(4, 50, seed=7)
    assert (np.sort(orders, axis=1) == np.arange(4)).all()
    assert (orders == round_orders(4, 50, seed=7)).all()
    assert (orders != round_orders(4, 50, seed=8)).any()
    assert len(np.unique(orders[:, 0])) == 4  # nobody is always first
