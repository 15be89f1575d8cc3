"""The adaptive allocation: widths, whole blocks and ranks under one budget, by what they do to the outputs.

It weighs moves by their damage and by the cost that they save, and knows nothing of how either was found. That the
damages of several moves add up is an assumption.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from onnxprune.decide.limits import Ladder
from onnxprune.measure.cost import CostModel, WidthCost
from onnxprune.measure.states import GONE, STANDS, as_one, switches

SWEEPS = 3
"""Rounds of local search over all groups."""
MOVES = 400
"""Up to so many widths in all, every width of a group is tried; beyond, the next ones."""


@dataclass(frozen=True)
class BlockMove:
    """A block that may go, or become one layer.

    Attributes:
        name: of the block.
        damage: to the outputs when it goes; None: it may not.
        inside: names of the groups, and keys of the layers, that go with it.
        group: one of them that others read too: without the block it has no channel left.
        merged: (name, damage to the outputs) of each of the layers that it may become, the cheapest first.
    """

    name: str
    damage: float | None
    inside: frozenset[str]
    group: str | None = None
    merged: Sequence[tuple[str, float]] = ()

    @property
    def states(self) -> list[tuple[float, float]]:
        """(what its column in the cost holds, damage) of all that may become of it, the last of which is nothing; not
        of what does more damage than something cheaper."""
        ones = zip(map(float, as_one(len(self.merged))), (damage for _, damage in self.merged), strict=True)
        found = ((GONE, self.damage), *ones, (STANDS, 0.0))
        known = [(at, damage) for at, damage in found if damage is not None]
        least = np.minimum.accumulate([np.inf, *(damage for _, damage in known)])
        return [state for state, before in zip(known, least, strict=False) if state[1] < before or state[0] == STANDS]

    def dearer(self, factors: Mapping[str, float]) -> BlockMove:
        """The same with its damages multiplied by the factor of its name."""
        by = factors.get(self.name, 1.0)
        gone = None if self.damage is None else self.damage * by
        return replace(self, damage=gone, merged=[(name, damage * by) for name, damage in self.merged])

    def became(self, state: float) -> str | None:
        """The name of the layer that it is in a state of its column; None: it is none."""
        ways = as_one(len(self.merged))
        return next((name for (name, _), at in zip(self.merged, ways, strict=True) if at == state), None)


class Ranked(Protocol):
    """A layer that may be made of two (`decide.ranks.RankMove`), as the allocation sees it."""

    @property
    def layer(self) -> str: ...
    @property
    def damages(self) -> np.ndarray: ...


def adaptive(
    ladders: list[Ladder],
    damages: Mapping[str, np.ndarray],
    cost: CostModel,
    ratio: float,
    blocks: Sequence[BlockMove] = (),
    ranks: Sequence[Ranked] = (),
) -> tuple[list[int], np.ndarray, float]:
    """Widths, standing blocks and states of ranked layers of least total damage, and that: greedy, then local search.

    Args:
        ladders: the allowed widths of every group.
        damages: (width + 1,) damage to the outputs at every width of every group.
        cost: what counts.
        ratio: share of it to remove.
        blocks: what may go whole; as many, and in the order, as `cost` knows.
        ranks: the layers that may be made of two, likewise.

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


def path(
    ladders: list[Ladder],
    damages: Mapping[str, np.ndarray],
    cost: CostModel,
    most: float,
    blocks: Sequence[BlockMove] = (),
    ranks: Sequence[Ranked] = (),
) -> list[tuple[float, float]]:
    """(share of the cost that is gone, total damage) after every step of the greedy pass, from nothing cut to `most`,
    or to where nothing more can go. Arguments as for `adaptive`, whose search then finds what does a little less."""
    search = _Search(ladders, damages, WidthCost(cost, [ladder.group for ladder in ladders]), most, blocks, ranks)
    at: np.ndarray | None = search.whole()
    found = []
    while at is not None:
        removed = search.cost.removed(search.widths(at))
        found.append((removed, search.damage(at)))
        at = search.lower(at) if removed < most else None
    return found


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
        steps = [np.array(ladder.widths) for ladder in ladders] + [np.array([at for at, _ in b.states]) for b in blocks]
        values = [damages[ladder.group.name][ladder.widths] for ladder in ladders]
        values += [np.array([damage for _, damage in b.states]) for b in blocks]
        self.hulls = [_hull(ladder, damages[ladder.group.name]) for ladder in ladders]
        self.hulls += [[(0, np.inf), (0, b.states[0][1])] for b in blocks]  # of two states: more are no slope
        steps += [switches(len(r.damages)) for r in ranks]
        values += [r.damages for r in ranks]
        self.moves, self.counts = np.arange(len(steps)), np.array([len(s) for s in steps], int)
        self.steps, self.values = _table(steps), _table(values)
        self.groups, self.blocks = len(ladders), len(blocks)
        self.full = np.array([len(b.states) - 1 for b in blocks], int)
        self.stand = slice(self.groups, self.groups + self.blocks)
        self.inner, self.outer = _nested(blocks, [ladder.group.name for ladder in ladders], [r.layer for r in ranks])
        place = {ladder.group.name: k for k, ladder in enumerate(ladders)}
        whole = [(place[b.group], self.groups + k) for k, b in enumerate(blocks) if b.group is not None]
        self.emptied, self.by = np.array(whole, int).reshape(-1, 2).T

    def whole(self) -> np.ndarray:
        """The state in which nothing is cut."""
        return self.counts - 1

    def widths(self, at: np.ndarray) -> np.ndarray:
        """What is left of each; of a group that goes with a block, nothing."""
        found = self._apart(at)
        found[self.emptied[at[self.by] == 0]] = 0
        return found

    def _apart(self, at: np.ndarray) -> np.ndarray:
        """The same, every move by itself."""
        return self.steps[self.moves, at]

    def _damages(self, at: np.ndarray) -> np.ndarray:
        """The damage that each move does; what is inside a block that has gone does none."""
        own = self.values[self.moves, at]
        own[self._gone(at) > 0] = 0.0
        return own

    def _gone(self, at: np.ndarray) -> np.ndarray:
        """Of every move, how many of the blocks around it have gone."""
        return np.bincount(self.inner, (at[self.stand] < self.full)[self.outer], len(at))

    def damage(self, at: np.ndarray) -> float:
        """Total damage; that of several cuts is taken to add up."""
        return float(self._damages(at).sum())

    def fits(self, at: np.ndarray) -> bool:
        """Whether the budget is met."""
        return self.cost.removed(self.widths(at)) >= self.ratio

    def others(self, k: int, now: int) -> list[int]:
        """Widths to try for one group: all of them, or the next ones where there are many groups."""
        count = int(self.counts[k])
        near = count if len(self.counts) * count <= MOVES else 1
        return [i for i in range(max(0, now - near), min(count, now + near + 1)) if i != now]

    def settled(self, at: np.ndarray, fixed: int | None = None) -> np.ndarray:
        """Down greedily until the budget is met, then back up where that was not needed."""
        at = at.copy()
        while not self.fits(at):
            down = self.lower(at, fixed)
            if down is None:
                return at
            at = down
        return self._raised(at, fixed)

    def lower(self, at: np.ndarray, fixed: int | None = None) -> np.ndarray | None:
        """The state after the step down that does least damage per cost saved; None where there is none."""
        dear, to = self._by_stairs(at) if self.cost.cost.curved else self._by_slope(at)
        if fixed is not None:
            dear[fixed] = np.inf
        k = int(np.argmin(dear))
        if not np.isfinite(dear[k]):
            return None
        at = at.copy()
        at[k] = to[k]
        return at

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
        spared[self.stand] = np.where(at[self.stand] == self.full, self._spared(at), 0.0)
        for down in _strides(int(at.max())):
            lower = np.maximum(at - down, 0)
            saved = self.cost.saved(widths, self._apart(lower))
            saved[self.by] += np.where(lower[self.by] < at[self.by], read, 0.0)
            hurt = self.values[self.moves, lower] - now - spared
            telling = (lower < at) & (saved > 1e-6 * self.cost.cost.total)
            price = np.where(telling, np.maximum(hurt, 1e-30) / np.maximum(saved, 1e-300), np.inf)
            better = price < dear
            dear[better], to[better] = price[better], lower[better]
        return dear, to

    def _spared(self, at: np.ndarray) -> np.ndarray:
        """(blocks,) damage done inside every block, that its going makes undone."""
        if not self.blocks:
            return np.zeros(0)
        own = self.values[self.moves, at]
        by_this = (at[self.stand] < self.full)[self.outer]
        counts = self._gone(at)[self.inner] == by_this  # no other block takes it away
        return np.bincount(self.outer, own[self.inner] * counts, self.blocks)

    def _raised(self, at: np.ndarray, fixed: int | None) -> np.ndarray:
        """Take steps back while the budget allows, the one that undoes most damage first."""
        for k in range(self.stand.stop, len(at)):  # where channels have gone, the whole layer may be the cheaper one
            whole = at.copy()
            whole[k] = self.counts[k] - 1
            if k != fixed and self.fits(whole):
                at = whole
        fit = {k for k in range(len(at)) if k != fixed}
        while True:
            for k in self._undoing(at, fit):
                up = at.copy()
                up[k] += 1
                if self.fits(up):
                    at = up
                    break
                fit.discard(k)  # what does not fit now will not fit later
            else:
                return at

    def _undoing(self, at: np.ndarray, which: Iterable[int]) -> list[int]:
        """Those that have a step back which does no damage, the one that undoes most first."""
        gains, gone, spared = [], self._gone(at), self._spared(at)
        for k in which:
            if at[k] + 1 == self.counts[k]:
                continue
            gain = self.values[k, at[k]] - self.values[k, at[k] + 1]
            if self.stand.start <= k < self.stand.stop:
                gain -= spared[k - self.groups] if at[k] + 1 == self.full[k - self.groups] else 0.0
            if gone[k]:
                gain = 0.0
            if gain >= 0:
                gains.append((-gain, k))
        return [k for _, k in sorted(gains)]


def _nested(blocks: Sequence[BlockMove], groups: Sequence[str], layers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Which moves lie within which blocks: (number of the move, number of the block) of all such pairs."""
    alone = [*enumerate(groups), *enumerate(layers, len(groups) + len(blocks))]
    found = []
    for b, move in enumerate(blocks):
        found += [(k, b) for k, name in alone if name in move.inside]
        found += [(k, b) for k, other in enumerate(blocks, len(groups)) if other.inside and other.inside < move.inside]
    inner, outer = np.array(found, int).reshape(-1, 2).T
    return inner, outer


def _table(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of several lengths as one array, filled up with zeros."""
    kind = np.result_type(*rows) if len(rows) else float
    table = np.zeros((len(rows), max(map(len, rows), default=0)), kind)
    for k, row in enumerate(rows):
        table[k, : len(row)] = row
    return table


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
