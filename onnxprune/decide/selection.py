"""Criteria that choose channels together: which stay depends on how many stay.

A `Choice` is one group's answer: an order, for curves and for the global allocation, and where the sets of
different widths are not nested, the set itself, made anew for the width that the allocation has settled on.
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
        order: (width,) channels, first to go first.
        kept: gives the channels that stay at a width, ascending; None: the last ones of the order.
        heights: (width,) at which each channel goes, comparable between groups; None where there is no such thing.
    """

    order: np.ndarray
    kept: Callable[[int], np.ndarray] | None = None
    heights: np.ndarray | None = None


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
