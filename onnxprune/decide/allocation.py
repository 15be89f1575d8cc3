"""How many channels each group keeps, and which blocks go, under one budget.

Both simple allocations are one-parameter families of cuts, so the budget is met by bisection: `uniform` removes the
same share of every group; `global` removes the channels whose normalised score per cost is lowest, wherever
they are. Widths are rounded to what runs fast, and a last pass closes the gap that rounding left. `adaptive` weighs
widths, whole blocks and ranks against each other by what they do to the outputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from onnxprune.channels import ChannelGroup, Channels
from onnxprune.errors import UsageError
from onnxprune.measure.cost import CostModel, Running, WidthCost, switches

TOLERANCE = 0.01
SWEEPS = 3
"""Rounds of local search over all groups."""
MOVES = 400
"""Up to so many widths in all, every width of a group is tried; beyond, the next ones."""


@dataclass(frozen=True)
class Limits:
    """What widths are allowed.

    Attributes:
        round_to: kept widths are multiples of this; "auto" picks per group.
        min_width: least width of a group.
        include, exclude: regular expressions on group names; only groups that match `include` and not
            `exclude` are cut.
        on_gpu: what "auto" picks for: a GPU or a CPU.
    """

    round_to: int | str = "auto"
    min_width: int = 1
    include: str | None = None
    exclude: str | None = None
    on_gpu: bool = False

    def allows(self, group: ChannelGroup) -> bool:
        return self.allows_any(_names(group))

    def allows_any(self, names: Collection[str]) -> bool:
        """Whether what goes by these names may be cut."""
        try:
            wanted = self.include is None or any(re.search(self.include, n) for n in names)
            barred = self.exclude is not None and any(re.search(self.exclude, n) for n in names)
        except re.error as error:
            raise UsageError(f"not a regular expression: {error} - see --include and --exclude") from error
        return wanted and not barred

    def step(self, group: ChannelGroup) -> int:
        """Widths of the group are multiples of this (or its full width).

        "auto": ORT's CPU kernels pay for blocks of 16 channels and leave the blocked layout where a count is
        not a multiple of 4 (depthwise convs then run 6-10x slower); narrow groups cannot afford 16. On a GPU (H200,
        CUDA, batch 32, half the MACs) multiples of 32 made a ResNet-50 1.35x as fast instead of 1.26x, and a RegNet
        was no longer slower than before; groups too narrow for 32 go as on a CPU.
        """
        size = int(np.bincount(_positions(group)).max()) if len(_positions(group)) else 1
        if self.round_to != "auto":
            step = int(self.round_to)
        elif group.width * size < 8:
            step = 1
        elif self.on_gpu:
            step = 32 if group.width * size >= 64 else 4
        else:
            step = 16 if group.width * size >= 256 else 8 if group.width * size >= 128 else 4
        # a unit that spans several channels (a group of a grouped conv) counts for all of them
        return max(1, step // int(np.gcd(step, size)))


def _names(group: ChannelGroup) -> set[str]:
    return {group.name} | {s.tensor for s in group.slices if s.role in ("writes", "within")}


def _positions(group: ChannelGroup) -> np.ndarray:
    maker = next(iter(group.weights), group.slices[0])
    return maker.channel[maker.channel >= 0]


class Ladder:
    """A group's allowed widths and the order in which its channels go.

    Attributes:
        order: channels, most important first (ties: lower index first).
        widths: allowed widths, ascending; the last is the full width.
    """

    def __init__(self, group: ChannelGroup, scores: np.ndarray, limits: Limits):
        self.group = group
        self.order = np.argsort(-scores, kind="stable")
        step = limits.step(group)
        least = min(group.width, max(1, limits.min_width))
        widths = [w for w in range(step, group.width, step) if w >= least]
        if not limits.allows(group):
            widths = []
        elif not widths and group.width > least and step > 1 and limits.round_to == "auto":
            widths = [w for w in (group.width // 2,) if w >= least]
        self.widths = [*widths, group.width]

    def floor(self, width: float) -> int:
        """The largest allowed width not above `width`, at least the smallest."""
        return max((w for w in self.widths if w <= width + 1e-9), default=self.widths[0])

    def nearest(self, width: float) -> int:
        return min(self.widths, key=lambda w: (abs(w - width), w))


@dataclass(frozen=True)
class BlockMove:
    """A block that may go.

    Attributes:
        name: of the block.
        damage: to the outputs when it goes.
        inside: names of the groups, and keys of the layers, that go with it.
        group: one of them that others read too: without the block it has no channel left.
    """

    name: str
    damage: float
    inside: frozenset[str]
    group: str | None = None


class Ranked(Protocol):
    """A layer that may be made of two (`decide.ranks.RankMove`), as the allocation sees it."""

    @property
    def layer(self) -> str: ...
    @property
    def damages(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Allocation:
    """The outcome: kept channels of every group, blocks that go, the way of each layer that is made of two, how much of
    the cost is gone, and the summed damage where the allocation is adaptive."""

    keep: Mapping[str, tuple[int, ...]]
    removed: float
    asked: float
    drop: tuple[str, ...] = ()
    ways: Mapping[str, int] = field(default_factory=dict)
    damage: float = 0.0

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
        raise UsageError(f"unknown allocation {how!r} - one of {', '.join(ALLOCATIONS)}")
    ladders = [Ladder(g, scores[g.name], limits or Limits()) for g in channels.groups]
    if how == "adaptive":
        if damages is None:
            raise UsageError("the adaptive allocation needs samples; give --calib, or --allocation uniform")
        widths, standing, damage = adaptive(ladders, damages, cost, ratio, blocks, ranks)
        drop = tuple(b.name for b, stays in zip(blocks, standing, strict=False) if not stays)
        ways = {
            r.layer: round(state * len(r.damages)) - 1
            for r, state in zip(ranks, standing[len(blocks) :], strict=True)
            if state < 1
        }
        found = _allocation(channels, ladders, widths, cost, ratio)
        removed = cost.removed(_alive(channels, ladders, widths), standing)
        return replace(found, removed=removed, drop=drop, ways=ways, damage=damage)
    if how == "global" and heights is not None:
        widths_at = _lowest_first(ladders, [heights[ladder.group.name] for ladder in ladders])
    else:
        widths_at = FAMILIES[how](ladders, scores, cost, channels)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if cost.removed(_alive(channels, ladders, widths_at(middle))) < ratio:
            low = middle
        else:
            high = middle
    widths = _close_gap(channels, ladders, widths_at(low), widths_at(high), cost, ratio)
    return _allocation(channels, ladders, widths, cost, ratio)


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


def adaptive(
    ladders: list[Ladder],
    damages: Mapping[str, np.ndarray],
    cost: CostModel,
    ratio: float,
    blocks: Sequence[BlockMove] = (),
    ranks: Sequence[Ranked] = (),
) -> tuple[list[int], np.ndarray, float]:
    """Widths, standing blocks and states of ranked layers of least total damage, and that: greedy, then local search.

    Greedy takes, over and over, the step that does least damage per cost saved, several widths at once where the
    curve is flat further on (the lower convex hull), or a whole block; what a step saves is exact at the current
    state of everything else. The search puts one group at another width (or a block in or out), lets the others make
    up for it greedily, and keeps what does less damage. Steps that turn out not to be needed are taken back.
    """
    search = _Search(ladders, damages, WidthCost(cost, [ladder.group for ladder in ladders]), ratio, blocks, ranks)
    at = search.settled(search.whole())
    best = search.damage(at)
    for _ in range(SWEEPS):
        before = best
        for k in range(len(at)):
            for i in search.others(k, at[k]):
                trial = at.copy()
                trial[k] = i
                trial = search.settled(trial, fixed=k)
                found = search.damage(trial)
                if found < best * (1 - 1e-9) and search.fits(trial):
                    at, best = trial, found
        if best >= before:
            break
    widths = search.widths(at)
    return [int(w) for w in widths[: len(ladders)]], widths[len(ladders) :], best


class _Search:
    """The moves of `adaptive`. A state is an index into every ladder's widths, then 1 or 0 for every block, then the
    way of every ranked layer; the last of these is the layer as it is."""

    def __init__(
        self,
        ladders: list[Ladder],
        damages: Mapping[str, np.ndarray],
        cost: WidthCost,
        ratio: float,
        blocks: Sequence[BlockMove] = (),
        ranks: Sequence[Ranked] = (),
    ):
        self.cost, self.ratio = cost, ratio
        self.steps = [np.array(ladder.widths) for ladder in ladders] + [np.array([0, 1])] * len(blocks)
        self.values = [damages[ladder.group.name][ladder.widths] for ladder in ladders]
        self.values += [np.array([b.damage, 0.0]) for b in blocks]
        self.hulls = [_hull(ladder, damages[ladder.group.name]) for ladder in ladders]
        self.hulls += [[(0, np.inf), (0, b.damage)] for b in blocks]
        self.steps += [switches(len(r.damages)) for r in ranks]
        self.values += [r.damages for r in ranks]
        self.groups, self.blocks = len(ladders), len(blocks)
        self.stand = slice(self.groups, self.groups + self.blocks)
        inside = {name: b for b, move in enumerate(blocks) for name in move.inside}
        names = [*(ladder.group.name for ladder in ladders), *[""] * len(blocks), *(r.layer for r in ranks)]
        self.inside = np.array([inside.get(name, -1) for name in names], int)
        place = {ladder.group.name: k for k, ladder in enumerate(ladders)}
        whole = [(place[b.group], self.groups + k) for k, b in enumerate(blocks) if b.group is not None]
        self.emptied, self.by = np.array(whole, int).reshape(-1, 2).T

    def whole(self) -> np.ndarray:
        """The state in which nothing is cut."""
        return np.array([len(steps) - 1 for steps in self.steps], int)

    def widths(self, at: np.ndarray) -> np.ndarray:
        """What is left of each; of a group that goes with a block, nothing."""
        found = self._apart(at)
        found[self.emptied[at[self.by] == 0]] = 0
        return found

    def _apart(self, at: np.ndarray) -> np.ndarray:
        """The same, every move by itself."""
        return np.array([steps[i] for steps, i in zip(self.steps, at, strict=True)])

    def _damages(self, at: np.ndarray) -> np.ndarray:
        """The damage that each move does; what is inside a block that has gone does none."""
        own = np.array([v[i] for v, i in zip(self.values, at, strict=True)])
        own[self._gone(at)] = 0.0
        return own

    def _gone(self, at: np.ndarray) -> np.ndarray:
        """Of every move, whether the block around it has gone."""
        return ~np.append(at[self.stand] > 0, True)[self.inside]

    def damage(self, at: np.ndarray) -> float:
        """Total damage; that of several cuts is taken to add up."""
        return float(self._damages(at).sum())

    def fits(self, at: np.ndarray) -> bool:
        """Whether the budget is met."""
        return self.cost.removed(self.widths(at)) >= self.ratio

    def others(self, k: int, now: int) -> list[int]:
        """Widths to try for one group: all of them, or the next ones where there are many groups."""
        count = len(self.steps[k])
        near = count if len(self.steps) * count <= MOVES else 1
        return [i for i in range(max(0, now - near), min(count, now + near + 1)) if i != now]

    def settled(self, at: np.ndarray, fixed: int | None = None) -> np.ndarray:
        """Down greedily until the budget is met, then back up where that was not needed."""
        at = at.copy()
        while not self.fits(at):
            dear, to = self._by_stairs(at) if self.cost.cost.curved else self._by_slope(at)
            if fixed is not None:
                dear[fixed] = np.inf
            k = int(np.argmin(dear))
            if not np.isfinite(dear[k]):
                return at
            at[k] = to[k]
        return self._raised(at, fixed)

    def _by_slope(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(damage per cost saved of the next step of each, where it leads): along the hull, at the current prices."""
        widths = self.widths(at)
        price = self.cost.per_channel(widths)
        price[self.by] += price[self.emptied] * widths[self.emptied]
        price = np.maximum(price, 1e-12 * max(price.max(), 1e-300))
        steps = [hull[i] for hull, i in zip(self.hulls, at, strict=True)]
        slope = np.array([s[1] for s in steps])
        slope[self.stand] -= self._spared(at)
        return np.maximum(slope, 1e-30) / price, np.array([s[0] for s in steps])

    def _by_stairs(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same where a width's cost goes by stairs: the best of all steps down, each at what it really saves."""
        widths = self.widths(at)
        dear, to = np.full(len(at), np.inf), at.copy()
        now = self._damages(at)
        emptied = widths.copy()
        emptied[self.emptied] = 0
        read = self.cost.saved(widths, emptied)[self.emptied] if len(self.by) else np.zeros(0)
        spared = np.zeros(len(at))
        spared[self.stand] = self._spared(at)
        for down in _strides(int(at.max())):
            lower = np.maximum(at - down, 0)
            saved = self.cost.saved(widths, self._apart(lower))
            saved[self.by] += np.where(lower[self.by] < at[self.by], read, 0.0)
            hurt = np.array([v[i] for v, i in zip(self.values, lower, strict=True)]) - now - spared
            telling = (lower < at) & (saved > 1e-6 * self.cost.cost.total)
            price = np.where(telling, np.maximum(hurt, 1e-30) / np.maximum(saved, 1e-300), np.inf)
            better = price < dear
            dear[better], to[better] = price[better], lower[better]
        return dear, to

    def _spared(self, at: np.ndarray) -> np.ndarray:
        """(blocks,) damage done inside every block, that its going makes undone."""
        if not self.blocks:
            return np.zeros(0)
        own = np.array([v[i] for v, i in zip(self.values, at, strict=True)])
        own[self.stand] = 0.0
        return np.bincount(np.where(self.inside < 0, self.blocks, self.inside), own, self.blocks + 1)[:-1]

    def _raised(self, at: np.ndarray, fixed: int | None) -> np.ndarray:
        """Take steps back while the budget allows, the one that undoes most damage first."""
        for k in range(self.stand.stop, len(at)):  # where channels have gone, the whole layer may be the cheaper one
            whole = at.copy()
            whole[k] = len(self.steps[k]) - 1
            if k != fixed and self.fits(whole):
                at = whole
        fit = {k for k in range(len(at)) if k != fixed}
        while True:
            gains, gone, spared = [], self._gone(at), self._spared(at)
            for k in list(fit):
                up = at.copy()
                up[k] += 1
                if up[k] < len(self.values[k]) and self.fits(up):
                    gain = self.values[k][at[k]] - self.values[k][up[k]]
                    if self.stand.start <= k < self.stand.stop:
                        gain -= spared[k - self.groups]
                    elif gone[k]:
                        gain = 0.0
                    if gain >= 0:
                        gains.append((gain, -k))
                else:
                    fit.discard(k)  # what does not fit now will not fit later
            if not gains:
                return at
            at[-max(gains)[1]] += 1


def _strides(most: int) -> list[int]:
    """How far down to look: every step near by, fewer further away."""
    return sorted({min(most, round(d)) for d in (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 64, 128) if d <= most} | {most})


def _hull(ladder: Ladder, damage: np.ndarray) -> list[tuple[int, float]]:
    """For every allowed width the best next one below it and the damage per channel of going there."""
    steps: list[tuple[int, float]] = [(0, np.inf)]
    for i in range(1, len(ladder.widths)):
        here = ladder.widths[i]
        slopes = [(damage[w] - damage[here]) / (here - w) for w in ladder.widths[:i]]
        j = int(np.argmin(slopes))
        steps.append((j, max(float(slopes[j]), 1e-30)))
    return steps


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
