"""How many samples take part where: few at the start, where a network's tensors are large, all of them later.

A first layer has few weights, and every sample gives it thousands of positions; a last one has many weights, and a
sample gives it few positions. So a repair begins with as many samples as find room there, and others join it on the
way: what is repaired already is run on them in one go, and nothing of it is kept but what comes next. What a repair
holds is then the same however many samples there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.measure.stepwise import Runner
from onnxprune.runtime.ports import Feeds

HELD = 1 << 30
"""Bytes of both networks' tensors that are held at a time, as far as `LEAST` allows."""
LEAST = 2
"""Batches that take part from the start."""
MORE = 1.25
"""Others join when so many times as many find room."""


@dataclass(frozen=True)
class Guests:
    """The samples, and when they join.

    Attributes:
        runners: of the two networks, on the first of the batches.
        batches: all of them.
        room: place -> how many of them may take part there.
    """

    runners: Sequence[Runner]
    batches: Sequence[Feeds]
    room: Sequence[int]

    @classmethod
    def of(
        cls,
        runners: Sequence[Runner],
        batches: Sequence[Feeds],
        sizes: Sequence[Mapping[str, tuple[int, ...]]],
        stops: Sequence[Sequence[str]],
    ) -> Guests:
        """Those of a walk through two networks.

        Args:
            runners: on the first batch.
            batches: all samples.
            sizes: of each network's tensors, in a run of any batch.
            stops: place -> the tensors up to which either is run there.
        """
        samples = next((len(v) for v in batches[0].values() if np.ndim(v)), 1)
        held = np.zeros(len(stops))
        for runner, known in zip(runners, sizes, strict=True):
            held += _held(runner, {name: samples * _each(size) for name, size in known.items()}, stops)
        worst = np.maximum.accumulate(held[::-1])[::-1]
        room = np.clip(HELD // np.maximum(worst, 1.0), min(LEAST, len(batches)), len(batches))
        return cls(runners, batches, room.astype(int).tolist())

    @property
    def share(self) -> float:
        """Of the samples, those that take part."""
        return self.runners[0].count / len(self.batches)

    def come(self, k: int) -> None:
        """Let as many join as find room at the k-th place and at all that follow."""
        here, room = self.runners[0].count, self.room[k]
        if room >= MORE * here or room == len(self.batches) > here:
            joining = [self.batches[b] for b in range(here, room)]
            for runner in self.runners:
                runner.join(joining)


def _each(size: tuple[int, ...]) -> float:
    """Bytes of a sample's tensor."""
    return 4.0 * float(np.prod(size[1:]))


def _held(runner: Runner, sizes: Mapping[str, float], stops: Sequence[Sequence[str]]) -> np.ndarray:
    """(stops,) bytes that a runner holds at most when it has come up to the tensors of a stop that it makes."""
    change = np.zeros(len(runner.keys) + 2)
    for name, made in runner.made_at.items():
        last = max(made + 1, min(runner.last_use.get(name, -1), len(runner.keys)))
        change[made + 1] += sizes.get(name, 0.0)
        change[last + 1] -= sizes.get(name, 0.0)
    live = np.cumsum(change)
    found = np.zeros(len(stops))
    for k, tensors in enumerate(stops):
        found[k] = max((live[runner.made_at[t] + 1] for t in tensors if t in runner.made_at), default=0.0)
    return found
