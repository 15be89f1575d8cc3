"""How many channels each group keeps, and which blocks go, under one budget.

Both simple allocations are one-parameter families of cuts, so the budget is met by bisection: `uniform` removes the
same share of every group; `global` removes the channels whose normalised score per cost is lowest, wherever
they are. Widths are rounded to what runs fast, and a last pass closes the gap that rounding left. The third,
`adaptive`, is a search of its own (`decide.adaptive`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.channels import Channels
from onnxprune.decide.adaptive import BlockMove, Ranked, adaptive
from onnxprune.decide.limits import Ladder, Limits
from onnxprune.errors import UsageError, unknown
from onnxprune.measure.cost import CostModel, Running
from onnxprune.measure.states import GONE

TOLERANCE = 0.01
"""By how much of the cost an allocation may miss its budget."""
HALVINGS = 40
"""Of the range of the one parameter."""


@dataclass(frozen=True)
class Allocation:
    """The outcome: kept channels of every group, blocks that go, the way of each layer that is made of two, how much of
    the cost is gone, the summed damage where the allocation is adaptive, and the layers that blocks become, by name."""

    keep: Mapping[str, tuple[int, ...]]
    removed: float
    asked: float
    drop: tuple[str, ...] = ()
    ways: Mapping[str, int] = field(default_factory=dict)
    damage: float = 0.0
    merge: tuple[str, ...] = ()

    @property
    def met(self) -> bool:
        return self.removed >= self.asked - TOLERANCE


def allocate(
    channels: Channels,
    scores: Mapping[str, np.ndarray],
    cost: CostModel,
    ratio: float,
    *,
    how: str = "global",
    limits: Limits | None = None,
    damages: Mapping[str, np.ndarray] | None = None,
    heights: Mapping[str, np.ndarray] | None = None,
    blocks: Sequence[BlockMove] = (),
    ranks: Sequence[Ranked] = (),
) -> Allocation:
    """Choose widths so that the share `ratio` of the cost goes.

    Args:
        channels: the analysis.
        scores: (width,) importance of every group.
        cost: what counts.
        ratio: share to remove, 0 < ratio < 1.
        how: "adaptive", "global" or "uniform".
        limits: allowed widths.
        damages: (width + 1,) damage to the outputs at every width of every group, for "adaptive".
        heights: (width,) at which each channel goes, on one scale for all groups: "global" then lowers one
            height for all, in place of its own measure.
        blocks: what may go whole, for "adaptive"; as many, and in the order, as `cost` knows.
        ranks: the layers that may be made of two, likewise.
    """
    if not 0 < ratio < 1:
        raise UsageError(f"ratio {ratio} is not between 0 and 1 - 0.5 removes half")
    if how not in ALLOCATIONS:
        raise unknown("allocation", how, ALLOCATIONS)
    ladders = [Ladder(g, scores[g.name], limits or Limits()) for g in channels.groups]
    if how == "adaptive":
        if damages is None:
            raise UsageError("the adaptive allocation needs samples; give --calib, or --allocation uniform")
        return _adaptive(channels, ladders, damages, cost, ratio, blocks, ranks)
    if how == "global" and heights is not None:
        widths_at = _lowest_first(ladders, [heights[ladder.group.name] for ladder in ladders])
    else:
        widths_at = FAMILIES[how](ladders, scores, cost, channels)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if cost.removed(_alive(channels, ladders, widths_at(middle))) < ratio:
            low = middle
        else:
            high = middle
    widths = _close_gap(channels, ladders, widths_at(low), widths_at(high), cost, ratio)
    return _allocation(channels, ladders, widths, cost, ratio)


def _adaptive(
    channels: Channels,
    ladders: list[Ladder],
    damages: Mapping[str, np.ndarray],
    cost: CostModel,
    ratio: float,
    blocks: Sequence[BlockMove],
    ranks: Sequence[Ranked],
) -> Allocation:
    """What the search finds, by the names of what stays and goes."""
    widths, standing, damage = adaptive(ladders, damages, cost, ratio, blocks, ranks)
    drop = tuple(b.name for b, state in zip(blocks, standing, strict=False) if state == GONE)
    became = (b.became(float(state)) for b, state in zip(blocks, standing, strict=False))
    merge = tuple(name for name in became if name is not None)
    ways = {
        r.layer: round(state * len(r.damages)) - 1
        for r, state in zip(ranks, standing[len(blocks) :], strict=True)
        if state < 1
    }
    removed = cost.removed(_alive(channels, ladders, widths), standing)
    found = _allocation(channels, ladders, widths, cost, ratio)
    return replace(found, removed=removed, drop=drop, merge=merge, ways=ways, damage=damage)


def _allocation(
    channels: Channels, ladders: list[Ladder], widths: list[int], cost: CostModel, ratio: float
) -> Allocation:
    """The kept channels at those widths."""
    alive = _alive(channels, ladders, widths)
    keep = {
        ladder.group.name: tuple(int(c) for c in np.sort(ladder.order[:w]))
        for ladder, w in zip(ladders, widths, strict=True)
        if w < ladder.group.width
    }
    return Allocation(keep, cost.removed(alive), ratio)


def _alive(channels: Channels, ladders: list[Ladder], widths: list[int]) -> np.ndarray:
    alive = np.ones(channels.unit_count + 1, bool)
    for ladder, width in zip(ladders, widths, strict=True):
        alive[ladder.group.units[ladder.order[width:]]] = False
    return alive


def _close_gap(
    channels: Channels,
    ladders: list[Ladder],
    above: list[int],
    below: list[int],
    cost: CostModel,
    ratio: float,
) -> list[int]:
    """Walk from the widths just above the budget to those just below, group by group, and keep the closest."""
    widths = list(above)
    best, gap = list(below), abs(cost.removed(_alive(channels, ladders, below)) - ratio)
    running = Running(cost, _alive(channels, ladders, above))
    for k in np.argsort([a - b for a, b in zip(above, below, strict=True)], kind="stable"):
        if above[k] == below[k]:
            continue
        widths[k] = below[k]
        _resize(running, ladders[k], widths[k])
        off = abs(running.removed() - ratio)
        if off < gap:
            best, gap = list(widths), off
    if gap <= TOLERANCE / 2:
        return best
    # still off: single steps up or down on any ladder, greedily, largest gain first
    running = Running(cost, _alive(channels, ladders, best))
    for _ in range(4 * len(ladders)):
        moves = []
        for k, ladder in enumerate(ladders):
            at = ladder.widths.index(best[k]) if best[k] in ladder.widths else 0
            for to in (at - 1, at + 1):
                if 0 <= to < len(ladder.widths):
                    _resize(running, ladder, ladder.widths[to])
                    moves.append((abs(running.removed() - ratio), k, ladder.widths[to]))
            _resize(running, ladder, best[k])
        if not moves or min(moves)[0] >= gap - 1e-9:
            return best
        gap, k, width = min(moves)
        best[k] = width
        _resize(running, ladders[k], width)
        if gap <= TOLERANCE / 2:
            return best
    return best


def _resize(running: Running, ladder: Ladder, width: int) -> None:
    """Keep the `width` most important channels of one group."""
    running.set(ladder.group.units[ladder.order], np.arange(len(ladder.order)) < width)


Widths = Callable[[float], list[int]]


def uniform(ladders: list[Ladder], scores: Mapping[str, np.ndarray], cost: CostModel, channels: Channels) -> Widths:
    """Every group keeps the share 1 - t of its channels."""
    return lambda t: [ladder.nearest(ladder.group.width * (1 - t)) for ladder in ladders]


def global_(ladders: list[Ladder], scores: Mapping[str, np.ndarray], cost: CostModel, channels: Channels) -> Widths:
    """One threshold for all: a channel's score is taken relative to its group's total (what share of what the
    readers see it carries) and per share of the cost it saves. Ours."""
    price = cost.per_unit(np.ones(channels.unit_count + 1, bool)) / max(cost.total, 1e-300)
    worth = []
    for ladder in ladders:
        s = np.maximum(scores[ladder.group.name], 0)
        s = s / max(s.sum(), 1e-300)
        worth.append(s / np.maximum(price[ladder.group.units], 1e-12))
    return _lowest_first(ladders, worth)


def _lowest_first(ladders: list[Ladder], worth: list[np.ndarray]) -> Widths:
    """The share t of all channels goes, those of least worth, wherever they are."""
    owners = np.repeat(np.arange(len(ladders)), [len(w) for w in worth])
    order = np.argsort(np.concatenate(worth), kind="stable")

    def widths(t: float) -> list[int]:
        gone = np.bincount(owners[order[: round(t * len(order))]], minlength=len(ladders))
        return [ladder.nearest(ladder.group.width - g) for ladder, g in zip(ladders, gone, strict=True)]

    return widths


FAMILIES: dict[str, Callable[..., Widths]] = {"global": global_, "uniform": uniform}
ALLOCATIONS = ("adaptive", *FAMILIES)
