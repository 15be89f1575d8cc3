"""Searches by measuring: the least that still reaches a goal, and the most that still works.

What a cost model promises is checked: propose, measure, correct, until what was asked for holds. Knows neither models
nor plans.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from onnxprune.errors import BudgetError

SLACK = 0.07
"""A measured gain may exceed the one asked for by this share."""
AIM = 0.03
"""What the loop aims at lies that far above what was asked for."""
STEPS = 9
"""Most proposals of one loop."""
GREATEST = 0.985
"""Largest ratio that is tried."""
T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One proposal and what was measured of it."""

    ratio: float
    gain: float


def close_loop(
    propose: Callable[[float], T | None],
    measure: Callable[[T], float],
    goal: float,
    *,
    start: float | None = None,
    whole: float = 1.0,
    slack: float = SLACK,
) -> tuple[T, Step] | None:
    """The proposal of least gain that still reaches the goal.

    Args:
        propose: ratio of the cost to remove -> a candidate; None or `BudgetError` where there is none.
        measure: candidate -> gain, old over new; grows with the ratio, noise and stairs aside.
        goal: gain that must be reached, > 1.
        start: ratio to begin with; None: the one that would do if the cost model were right.
        whole: gain where nothing is removed, below the goal.
        slack: gains up to goal · (1 + slack) are close enough.

    Returns:
        None when no proposal reaches the goal.
    """
    aim = goal * (1 + min(AIM, slack / 2))
    ratio, limit = start or 1 - whole / aim, GREATEST
    seen = {0.0: 1 / whole}  # ratio -> time that is left, as a share
    best: tuple[T, Step] | None = None
    for _ in range(STEPS):
        try:
            candidate = propose(ratio)
        except BudgetError:
            candidate, limit = None, ratio
        if candidate is None:
            if limit > ratio:
                return best
        else:
            gain = measure(candidate)
            seen[ratio] = 1 / gain
            if gain >= goal and (best is None or gain < best[1].gain):
                best = candidate, Step(ratio, gain)
            if goal <= gain <= goal * (1 + slack):
                return best
        low = max(r for r, left in seen.items() if left > 1 / goal)
        high = min((r for r, left in seen.items() if left <= 1 / goal and r > low), default=limit)
        if high - low < 2e-3:
            return best
        guess = _where(seen, low, high, 1 / aim)
        ratio = guess if low + 1e-3 < guess < high - 1e-3 else (low + high) / 2
    return best


def _where(seen: Mapping[float, float], low: float, high: float, left: float) -> float:
    """The ratio at which that share of the time would be left, on the line through the two points that matter."""
    before = max((r for r in seen if r < low), default=None)
    other = high if high in seen else before
    if other is None or seen[other] == seen[low]:
        return math.nan
    return low + (left - seen[low]) * (other - low) / (seen[other] - seen[low])


def largest(works: Callable[[float], T | None], *, steps: int = 6) -> tuple[T, float] | None:
    """The outcome at the largest ratio that works, by bisection.

    Args:
        works: ratio -> the outcome, or None where it does not work.
        steps: how often to try.
    """
    low, high, best = 0.0, GREATEST, None
    ratio = 0.5
    for _ in range(steps):
        found = works(ratio)
        if found is None:
            high = ratio
        else:
            low, best = ratio, (found, ratio)
        ratio = (low + high) / 2
    return best
