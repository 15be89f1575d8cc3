"""The three stages of "3C": what each may do, what the next ones keep, and which partition is taken."""

import numpy as np
import pytest

from onnxprune.decide.allocation import Allocation
from onnxprune.decide.ranks import RankMove
from onnxprune.decide.staged import BARRED, PARTS, three_stages

S4, S8 = (("spatial", 4),), (("spatial", 8),)
S4C2, S8C2, S8C3 = (*S4, ("channel", 2)), (*S8, ("channel", 2)), (*S8, ("channel", 3))
C2, C6, M3 = (("channel", 2),), (("channel", 6),), (("matrix", 3),)


def move(layer, *ways):
    """A layer with those ways; the damage of a way is its place from the end, that of the layer as it is 0."""
    costs, falling = np.ones((len(ways), 3)), np.arange(len(ways), 0.0, -1)
    return RankMove(layer, ways, costs, costs, costs, falling / 10, np.append(falling, 0.0))


MOVES = [move("a", S4, S8, S4C2, S8C2, S8C3, C2, C6), move("b", S4, S4C2, C2), move("c", M3), move("d", C2, C6)]


class Stages:
    """An allocation that takes, stage by stage, the ways it is told to, and keeps what it was offered."""

    def __init__(
        self, *wanted, met=lambda partition: True, damage=lambda partition: 0.0, removed=lambda partition: 0.5
    ):
        self.wanted, self.met, self.damage, self.removed, self.calls = wanted, met, damage, removed, []

    def __call__(self, moves, ratio, channels):
        partition, stage = divmod(len(self.calls), 3)
        self.calls.append((list(moves), ratio, channels))
        offered = {m.layer: m.ways for m in moves}
        ways = {layer: offered[layer].index(way) for layer, way in self.wanted[stage].items()}
        reached = self.removed(partition) if self.met(partition) else 0.0
        return Allocation({}, reached, 0.5, ways=ways, damage=self.damage(partition))

    def offered(self, stage):
        return {m.layer: m.ways for m in self.calls[stage][0]}

    def as_it_is(self, stage):
        """layer -> the damage that the layer as it is would do in that stage."""
        return {m.layer: m.damages[-1] for m in self.calls[stage][0]}


def test_the_first_stage_splits_in_space_alone_and_cuts_nothing():
    stages = Stages({}, {}, {})
    three_stages(MOVES, 0.5, stages)
    assert stages.offered(0) == {"a": (S4, S8), "b": (S4,)}
    assert [channels for _, _, channels in stages.calls[:3]] == [False, False, True]
    assert all(stages.as_it_is(0)[layer] == 0 for layer in "ab"), "a layer may stay whole"


SECOND = {  # what the first stage chose: what the second is offered
    "nothing": ({}, {"a": (C2, C6), "b": (C2,), "c": (M3,), "d": (C2, C6)}),
    "one layer": ({"a": S8}, {"a": (S8, S8C2, S8C3), "b": (C2,), "c": (M3,), "d": (C2, C6)}),
    "the other rank": ({"a": S4}, {"a": (S4, S4C2), "b": (C2,), "c": (M3,), "d": (C2, C6)}),
    "both": ({"a": S8, "b": S4}, {"a": (S8, S8C2, S8C3), "b": (S4, S4C2), "c": (M3,), "d": (C2, C6)}),
}


@pytest.mark.parametrize("case", SECOND)
def test_the_second_stage_splits_again_what_the_first_has_chosen(case):
    """And nothing else that is spatial; layers that stayed whole are split for the first time."""
    chosen, offered = SECOND[case]
    stages = Stages(chosen, {}, {})
    three_stages(MOVES, 0.5, stages)
    assert stages.offered(1) == offered
    # what was chosen cannot be undone, the others may stay whole
    assert stages.as_it_is(1) == {layer: BARRED if layer in chosen else 0.0 for layer in "abcd"}


LAST = {  # what the second stage chose: what is left for the last
    "nothing": ({}, {}),
    "split once": ({"a": S8, "c": M3}, {"a": (S8,), "c": (M3,)}),
    "split twice": ({"a": S8C3, "b": C2, "d": C6}, {"a": (S8C3,), "b": (C2,), "d": (C6,)}),
}


@pytest.mark.parametrize("case", LAST)
def test_the_last_stage_keeps_the_ways_and_cuts_channels(case):
    kept, left = LAST[case]
    stages = Stages({"a": S8}, kept, {layer: ways[0] for layer, ways in left.items()})
    found, named = three_stages(MOVES, 0.5, stages)
    assert stages.offered(2) == left and set(stages.as_it_is(2).values()) <= {BARRED}
    assert {layer: named[layer].ways[k] for layer, k in found.ways.items()} == kept


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.9])
def test_the_stages_share_what_is_to_go(ratio):
    """Of what each stage leaves, the logarithms are in proportion; the last goes all the way."""
    stages = Stages({}, {}, {})
    three_stages(MOVES, ratio, stages)
    assert len(stages.calls) == 3 * len(PARTS)
    for k, parts in enumerate(PARTS):
        left = 1 - np.array([asked for _, asked, _ in stages.calls[3 * k : 3 * k + 3]])
        took = -np.diff(np.log([1.0, *left]))
        assert took == pytest.approx(np.log(1 / (1 - ratio)) * np.array(parts) / sum(parts))
        assert stages.calls[3 * k + 2][1] == ratio


PARTITIONS = {  # name: (those that reach the ratio, damage, share removed, the one taken)
    "least damage": (range(8), [5, 4, 3, 1, 2, 6, 7, 8], [0.5] * 8, 3),
    "the first of equals": (range(8), [5, 2, 3, 2, 2, 6, 7, 8], [0.5] * 8, 1),
    "least damage of those that reach": ({0, 5}, [5, 1, 1, 1, 1, 4, 1, 1], [0.5] * 8, 5),
    "none reaches: the one that removes most": (range(8), range(8), [0.1, 0.2, 0.3, 0.2, 0.48, 0.1, 0.2, 0.1], 4),
    "more removed is no better": (range(8), [1] + [2] * 7, [0.5] + [0.6] * 7, 0),
}


@pytest.mark.parametrize("case", PARTITIONS)
def test_which_partition_is_taken(case):
    reach, damage, removed, taken = PARTITIONS[case]
    stages = Stages(
        {}, {}, {}, met=lambda k: k in reach, damage=lambda k: 10 * damage[k] + k / 100, removed=lambda k: removed[k]
    )
    if case == "the first of equals":
        stages.damage = lambda k: damage[k]
    found, _ = three_stages(MOVES, 0.5, stages)
    assert (found.damage, found.removed) == (stages.damage(taken), removed[taken])
