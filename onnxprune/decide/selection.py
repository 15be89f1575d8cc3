"""What a criterion chooses of one group, and the choices of channels together: which stay depends on how many stay.

A `Choice` is an order, for curves and for the global allocation, and where the sets of different widths are not
nested, the set itself, made anew for the width that the allocation has settled on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxprune import numerics
from onnxprune.channels import ChannelGroup
from onnxprune.decide.curves import Curves


@dataclass(frozen=True)
class Choice:
    """What a criterion would keep of one group.

    Attributes:
        order: (width,) channels, first to go first; None: the order of least error, which the group's curve finds.
        kept: gives the channels that stay at a width, ascending; None: the last ones of the order.
        heights: (width,) at which each channel goes, comparable between groups; None where there is no such thing.
        scores: (width,) importance, where that is what the order comes from.
    """

    order: np.ndarray | None
    kept: Callable[[int], np.ndarray] | None = None
    heights: np.ndarray | None = None
    scores: np.ndarray | None = None

    @property
    def importance(self) -> np.ndarray:
        """(width,) scores, or the places in the order."""
        if self.scores is not None:
            return self.scores
        assert self.order is not None
        return places(self.order)


def places(order: np.ndarray) -> np.ndarray:
    """(width,) importance of each channel as the place that it has in an order, first to go first."""
    return np.argsort(order).astype(float)


def by_lasso(curves: Curves, group: ChannelGroup, energies: np.ndarray | None) -> Choice:
    """LASSO on what each channel adds to its readers (He, Zhang, Sun, ICCV 2017), all of them at once.

    Args:
        curves: holds the readers' second moments.
        group: the group.
        energies: (width,) share of what its other readers read; None when it has none.
    """
    parts = numerics.Contributions(np.zeros((group.width, group.width)), np.zeros(group.width))
    if energies is not None:
        parts += numerics.Contributions(np.diag(energies), energies)
    for r in curves.readings[group.name]:
        s = curves.solvers[r.design.key]
        scale = 1.0 / s.energy
        for H, W in zip(s.H, s.W, strict=True):
            parts += numerics.contributions(H, W, r.rows, scale)
    return Choice(numerics.lasso_order(parts), lambda width: numerics.select_lasso(parts, width))


def by_likeness(distance: np.ndarray) -> Choice:
    """One channel of each cluster of like channels: the medoids of average linkage.

    Args:
        distance: (width, width), from `measure.likeness`.
    """
    order, heights = numerics.merge_order(distance)
    return Choice(order, lambda width: numerics.cluster(distance, width=width)[0], heights)
