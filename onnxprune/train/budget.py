"""What a method that learns which channels go must know of costs, and the most valuable choice that fits.

It knows no cost model and no network: groups, what a channel of each costs, and whether enough is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.channels import ChannelGroup

Removed = Callable[[Mapping[str, tuple[int, ...]], frozenset[str]], float]
"""(kept channels of every group, names of dropped blocks) -> share of the cost that is gone."""


@dataclass(frozen=True)
class Budget:
    """How much is to go, and what may.

    Attributes:
        groups: those that may lose channels.
        steps: group -> what its width is a multiple of.
        costs: group -> share of the cost of one of its channels.
        removed: what is gone with a choice; less of anything never removes less.
        ratio: the share of the cost that has to go.
    """

    groups: Sequence[ChannelGroup]
    steps: Mapping[str, int]
    costs: Mapping[str, float]
    removed: Removed
    ratio: float

    def holds(self, keep: Mapping[str, tuple[int, ...]], dropped: frozenset[str] = frozenset()) -> bool:
        """Whether enough is gone."""
        return self.removed(keep, dropped) >= self.ratio


def most_valuable(
    widths: Mapping[str, int],
    worth: Mapping[str, np.ndarray],
    steps: Mapping[str, int],
    fits: Callable[[Mapping[str, np.ndarray]], bool],
) -> dict[str, np.ndarray]:
    """The channels of the largest worth that fit: group -> (width,) bool.

    Args:
        widths: of every group.
        worth: (width,) of every channel.
        steps: what a group's width is a multiple of; 0: it may vanish.
        fits: whether a choice meets the budget.
    """
    flat = np.concatenate([worth[name] for name in widths])
    group = np.repeat(np.arange(len(widths)), list(widths.values()))
    order = group[np.argsort(-flat, kind="stable")]
    best = {name: np.argsort(-worth[name], kind="stable") for name in widths}

    def taken(count: int) -> dict[str, np.ndarray]:
        active = {}
        for (name, width), n in zip(widths.items(), np.bincount(order[:count], minlength=len(widths)), strict=True):
            step = steps[name]
            on = np.zeros(width, bool)
            on[best[name][: max(step, -(-int(n) // max(1, step)) * max(1, step))]] = True
            active[name] = on
        return active

    low, high = 0, len(flat)  # with none wanted, every group is as narrow as it gets
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(taken(middle)) else (low, middle - 1)
    return taken(low)


def indices(active: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Group -> the channels that are active."""
    return {name: tuple(map(int, np.flatnonzero(on))) for name, on in active.items()}
