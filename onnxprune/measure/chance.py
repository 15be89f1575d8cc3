"""Whether one network does better than another on the same samples by more than chance."""

from __future__ import annotations

import numpy as np
from scipy.special import stdtrit

SURE = 0.975
"""How sure one must be that a difference of means is there."""
LITTLE = 0.05
"""Relative fall of a mean distance that does not count: what was chosen by a hundred samples, from many looks at them,
is a few percent worse on others, and the classes that outputs say are noisier still."""


def noise(after: np.ndarray, before: np.ndarray, little: float = LITTLE) -> float:
    """The least fall of the mean that counts: what is no chance by a t test of pairs, and not too little to matter.
    Infinite for fewer than two samples.

    Args:
        after, before: (samples,) figures of the same samples, the lower the better.
        little: relative fall that does not matter.
    """
    count = len(np.atleast_1d(after))
    if count < 2:
        return float("inf")
    chance = float(stdtrit(count - 1, SURE) * np.std(np.subtract(before, after), ddof=1) / np.sqrt(count))
    return max(chance, little * abs(float(np.mean(before))))


def beats(after: np.ndarray, before: np.ndarray, little: float = LITTLE) -> bool:
    """Whether the mean has fallen by more than that."""
    fall = float(np.mean(before) - np.mean(after))
    return fall > 0 and fall > noise(after, before, little)
