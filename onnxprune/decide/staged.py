""" "3C" (He, Zhang, Sun, ICCV 2017): spatial factorisation, then channel factorisation, then channel pruning, in turn.

Each stage spends its part of the ratio where it does least damage; what it has decided the next ones keep. The second
stage splits the last layer of a spatial pair again, and layers that stayed whole for the first time. How much each
stage takes is tried: of some partitions the one with the least summed damage. The paper gives the order; the choice of
ranks and of the partition by damage is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.decide.allocation import Allocation
from onnxprune.decide.ranks import RankMove

PARTS = ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (4, 1, 1), (4, 2, 1), (2, 1, 0.5), (4, 1, 3))
"""How the stages share what is to go, as logarithms of what each leaves."""
BARRED = 1e9
"""The damage of a state that is not on offer."""

Allocate = Callable[[Sequence[RankMove], float, bool], Allocation]
"""Allocates with these moves to that ratio, with or without channels."""


def three_stages(moves: Sequence[RankMove], ratio: float, allocate: Allocate) -> tuple[Allocation, dict[str, RankMove]]:
    """The last allocation, and the moves that its ways count in."""
    found = [_stages(moves, ratio, np.cumsum(parts) / sum(parts), allocate) for parts in PARTS]
    reached = [f for f in found if f[0].met] or [max(found, key=lambda f: f[0].removed)]
    return min(reached, key=lambda f: f[0].damage)


def _stages(
    moves: Sequence[RankMove], ratio: float, until: np.ndarray, allocate: Allocate
) -> tuple[Allocation, dict[str, RankMove]]:
    """One pass; `until` says which power of what is left in the end is left behind each stage."""
    left = 1 - ratio
    spatial = _some(moves, lambda m, k: len(m.ways[k]) == 1 and m.ways[k][0][0] == "spatial")
    first = allocate(spatial, 1 - left ** until[0], False)
    chosen = {m.layer: m.ways[first.ways[m.layer]] for m in spatial if m.layer in first.ways}

    def follows(m: RankMove, k: int) -> bool:
        way = m.ways[k]
        return way[:1] == chosen[m.layer] if m.layer in chosen else way[0][0] in ("channel", "matrix")

    second_moves = [_only(m) if m.layer in chosen else m for m in _some(moves, follows)]
    second = allocate(second_moves, 1 - left ** until[1], False)
    kept = {m.layer: m.ways[second.ways[m.layer]] for m in second_moves if m.layer in second.ways}
    last_moves = [_only(m) for m in _some(moves, lambda m, k: m.ways[k] == kept.get(m.layer))]
    return allocate(last_moves, ratio, True), {m.layer: m for m in last_moves}


def _some(moves: Sequence[RankMove], wanted: Callable[[RankMove, int], bool]) -> list[RankMove]:
    """The moves with only the ways that are wanted; those without any left out."""
    found = []
    for m in moves:
        at = [k for k in range(len(m.ways)) if wanted(m, k)]
        if at:
            found.append(m.at(at))
    return found


def _only(move: RankMove) -> RankMove:
    """The move without the layer as it is."""
    return replace(move, damages=np.append(move.damages[:-1], BARRED))
