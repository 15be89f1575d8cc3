"""Whether one network does better than another on the same samples by more than chance.

A sample may be looked at in several views (as it came first, then varied). These are no samples of their own: what
counts is the mean of a sample's views, whose chance is that of the samples.
"""

from __future__ import annotations

import numpy as np
from scipy.special import stdtrit

SURE = 0.975
"""How sure one must be that a difference of means is there."""
LITTLE = 0.05
"""Relative fall of a mean distance that does not count: what was chosen by a hundred samples, from many looks at them,
is a few percent worse on others, and the classes that outputs say are noisier still."""


def standard_error(after: np.ndarray, before: np.ndarray) -> float:
    """That of the mean difference of pairs. Infinite for fewer than two.

    Args:
        after, before: (samples,) or (samples, views) figures of the same samples.
    """
    falls = _views(np.subtract(before, after)).mean(1)
    return float(np.std(falls, ddof=1) / np.sqrt(len(falls))) if len(falls) > 1 else float("inf")


def _views(figures: np.ndarray) -> np.ndarray:
    """(samples, views)"""
    return np.reshape(figures, (len(np.atleast_1d(figures)), -1))


def noise(after: np.ndarray, before: np.ndarray, little: float = LITTLE) -> float:
    """The least fall of the mean that counts: what is no chance by a t test of pairs, and not too little to matter.
    Infinite for fewer than two samples.

    Args:
        after, before: (samples,) or (samples, views) figures of the same samples, the lower the better.
        little: relative fall that does not matter.
    """
    count = len(np.atleast_1d(after))
    if count < 2:
        return float("inf")
    chance = float(stdtrit(count - 1, SURE)) * standard_error(after, before)
    return max(chance, little * abs(float(np.mean(before))))


def beats(after: np.ndarray, before: np.ndarray, little: float = LITTLE) -> bool:
    """Whether the mean has fallen by more than that, and has not risen on the samples as they came."""
    fall, plain = float(np.mean(before) - np.mean(after)), _views(np.subtract(before, after))[:, 0].mean()
    return fall > 0 and fall > noise(after, before, little) and plain >= 0
