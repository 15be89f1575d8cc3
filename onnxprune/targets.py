"""Targets that are not a ratio: a speed-up, milliseconds, megabytes, a drop of a metric.

What a cost model promises is checked by measuring: plan, cut, measure, correct, until what was asked for holds. A
plan that a loop proposes is cut but not repaired, since weights do not change how long a model runs or how large its
file is. Only a metric needs the repaired network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from onnxprune.errors import BudgetError, UsageError

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
class Target:
    """What the pruned model must reach.

    Attributes:
        kind: "speedup", "latency_ms", "size_mb" or "max_drop".
        value: in the unit that the kind names; a factor for "speedup".
    """

    kind: str
    value: float

    def __post_init__(self) -> None:
        name = OPTIONS[self.kind]
        if not math.isfinite(self.value) or self.value <= 0:
            raise UsageError(f"{name} {self.value:g} is not a positive number")
        if self.kind == "speedup" and self.value <= 1:
            raise UsageError(f"--speedup {self.value:g} asks for no speed-up; 2 halves the time")

    @property
    def of(self) -> str | None:
        """The cost that serves it best; None: any."""
        return {"speedup": "latency", "latency_ms": "latency", "size_mb": "params"}.get(self.kind)


OPTIONS = {"speedup": "--speedup", "latency_ms": "--latency-ms", "size_mb": "--size-mb", "max_drop": "--max-drop"}


@dataclass(frozen=True)
class Step:
    """One proposal and what was measured of it."""

    ratio: float
    gain: float


def close_loop(
    propose: Callable[[float], T | None], measure: Callable[[T], float], goal: float, *, slack: float = SLACK
) -> tuple[T, Step] | None:
    """The proposal of least gain that still reaches the goal.

    Args:
        propose: ratio of the cost to remove -> a candidate; None or `BudgetError` where there is none.
        measure: candidate -> gain, old over new; grows with the ratio, noise and stairs aside.
        goal: gain that must be reached, > 1.
        slack: gains up to goal · (1 + slack) are close enough.

    Returns:
        None when no proposal reaches the goal.
    """
    aim = goal * (1 + min(AIM, slack / 2))
    ratio, low, high = 1 - 1 / aim, 0.0, 1.0  # low: too slow; high: reaches the goal, or is out of reach
    best: tuple[T, Step] | None = None
    for _ in range(STEPS):
        ratio = min(ratio, GREATEST)
        try:
            candidate = propose(ratio)
        except BudgetError:
            candidate = None
            high = ratio
        if candidate is None:
            if high > ratio:
                return best
        else:
            gain = measure(candidate)
            if gain >= goal:
                high = min(high, ratio)
                if best is None or gain < best[1].gain:
                    best = candidate, Step(ratio, gain)
                if gain <= goal * (1 + slack):
                    return best
            else:
                low = max(low, ratio)
        if high - low < 2e-3 or low >= GREATEST:
            break
        guess = 1 - (1 - ratio) * gain / aim if candidate is not None else (low + high) / 2
        ratio = guess if low < guess < high and abs(guess - ratio) > 1e-3 else (low + high) / 2
    return best


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
