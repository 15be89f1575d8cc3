"""Statistics of paired timings: arrays in, numbers out.

A benchmark times every model once in each round, so what disturbs the machine for a while disturbs all of
them: the ratio *within* a round is steadier than any of its two times. What is left is asked of the
measurement itself: the same model, opened twice and timed in the same rounds (A/A), shows how far from 1 a
ratio lands when nothing changed. Knows nothing of models, sessions or clocks.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Verdict = Literal["faster", "slower", "no measurable change"]

# Two sessions of one file keep a constant offset (where their memory happens to lie), with a standard
# deviation of 0.2 to 0.6 % on small CNNs. One A/A pair cannot rule it out: a smaller change is never claimed.
RESOLUTION = 0.01


@dataclass(frozen=True)
class Interval:
    """A median and its 95 % interval."""

    median: float
    low: float
    high: float


def round_orders(models: int, rounds: int, seed: int) -> NDArray[np.intp]:
    """In which order each round times the models: (rounds, models), every row a permutation."""
    rng = np.random.default_rng([seed, 0])
    return rng.permuted(np.tile(np.arange(models), (rounds, 1)), axis=1)


def paired_ratio(
    baseline_ms: ArrayLike,
    candidate_ms: ArrayLike,
    *,
    seed: int = 0,
    confidence: float = 0.95,
    draws: int = 2000,
) -> Interval:
    """The median over rounds of baseline / candidate (> 1: the candidate is faster), with its interval.

    The interval is the percentile bootstrap of the median: rounds are drawn with replacement, so a pair is never torn.

    Args:
        baseline_ms, candidate_ms: (rounds,), entry r of each from the same round.
        seed: of the draws.
        confidence: that the interval is to have.
        draws: of as many rounds as there are.
    """
    a, b = np.asarray(baseline_ms, np.float64), np.asarray(candidate_ms, np.float64)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise ValueError(f"paired times must be two equal, non-empty rows, not {a.shape} and {b.shape}")
    ratio = a / b
    rng = np.random.default_rng([seed, 1])
    medians = np.median(ratio[rng.integers(0, ratio.size, (draws, ratio.size))], axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return Interval(float(np.median(ratio)), float(low), float(high))


def noise_floor(same_against_same: Interval) -> tuple[float, float]:
    """The ratios that mean nothing: a band around 1, symmetric in log, as wide as the A/A interval reaches.

    Symmetric, because which of two equal sessions came out ahead is chance. Never narrower than RESOLUTION.
    """
    reach = max(-np.log(same_against_same.low), np.log(same_against_same.high), np.log1p(RESOLUTION))
    return float(np.exp(-reach)), float(np.exp(reach))


def verdict(ratio: Interval, noise: tuple[float, float]) -> Verdict:
    """A change only where the whole interval of the ratio lies outside the noise floor."""
    if ratio.low > noise[1]:
        return "faster"
    if ratio.high < noise[0]:
        return "slower"
    return "no measurable change"
