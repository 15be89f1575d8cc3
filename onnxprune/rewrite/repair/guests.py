"""How many samples take part where: few at the start, where a network's tensors are large, all of them later.

A first layer has few weights, and every sample gives it thousands of positions; a last one has many weights, and a
sample gives it few positions. So a repair begins with as many samples as find room there, and others join it on the
way: what is repaired already is run on them in one go, and nothing of it is kept but what comes next. What a repair
holds is then the same however many samples there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.measure.stepwise import Runner
from onnxprune.runtime.ports import Feeds

HELD = 1 << 30
"""Bytes of both networks' tensors that are held at a time, as far as `LEAST` allows."""
LEAST = 2
"""Batches that take part from the start."""
MORE = 1.25
"""Others join when so many times as many find room."""


class Guests:
    """The samples that have not joined yet.

    Args:
        before, after: the runners of the two networks, on the first of the batches.
        batches: all of them.
        stops: place -> the tensors up to which the two networks are run there, in turn.
        sizes: bytes of a batch's tensors, in either network.
    """

    def __init__(self, runners: Sequence[Runner], batches: Sequence[Feeds], room: Sequence[int]) -> None:
        self.runners, self.batches, self.room = runners, batches, room

    def come(self, k: int) -> None:
        """Let as many join as find room at the k-th place and at all that follow."""
        here, room = self.runners[0].count, self.room[k]
        if room >= len(self.batches) > here or room >= MORE * here:
            joining = [self.batches[b] for b in range(here, min(room, len(self.batches)))]
            if joining:
                for runner in self.runners:
                    runner.join(joining)


def room_at(
    runners: Sequence[tuple[Runner, Mapping[str, tuple[int, ...]]]],
    stops: Sequence[Sequence[str]],
    count: int,
    samples: int,
) -> list[int]:
    """Stop by stop, how many batches find room there and further on.

    Args:
        runners: each with the sizes of its tensors in a run of one sample.
        stops: for each runner, the tensors that it is run up to, in order; as many for each.
        count: batches that there are.
        samples: in a batch.
    """
    needed = np.zeros(len(stops[0]))
    for (runner, sizes), tensors in zip(runners, stops, strict=True):
        made, last = runner.made_at, runner.last_use
        change = np.zeros(len(runner.keys) + 2)
        for name, at in made.items():
            size = 4.0 * samples * np.prod(sizes.get(name, (0,))[1:])
            change[at + 1] += size
            change[max(at + 1, min(last.get(name, -1), len(runner.keys)) + 1)] -= size
        live = np.cumsum(change)
        at = np.array([made[t] + 1 if t in made else 0 for t in tensors])
        asked = np.array([4.0 * samples * np.prod(sizes.get(t, (0,))[1:]) for t in tensors])
        needed += live[at] + asked
    worst = np.maximum.accumulate(needed[::-1])[::-1]
    return [int(np.clip(HELD // max(1.0, w), min(LEAST, count), count)) for w in worst]
