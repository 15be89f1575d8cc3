"""Which samples serve what: parted once for a run, and handed on. Nothing else splits.

all ─┬─ held   a quarter: fidelity is reported on these, and nothing else ever looks at them
     │   └─ trial   where something trains, half of them: training is judged by these, and nothing is reported on them
     └─ fit    the finished model is repaired on these
         ├─ learn   what plans are made from: moments, curves, trials are fitted on these
         └─ judge   what plans are compared on: nothing was learnt from these
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.numerics import on_disk
from onnxprune.samples.calibration import Calibration

LEAST = 2
"""Samples by which training can be judged: one says nothing of chance."""


@dataclass(frozen=True)
class Partition:
    """The samples of one run, by what they serve.

    Attributes:
        fit: `learn` and `judge` together: repairs are fitted on these.
        learn: what decides is fitted on these.
        judge: what was learnt is judged on these.
        held: fidelity is reported on these.
        trial: what training reaches is held against what it started from on these; None: nothing trains, or there are
            too few.
    """

    fit: Calibration
    learn: Calibration
    judge: Calibration
    held: Calibration
    trial: Calibration | None = None

    @classmethod
    def of(cls, samples: Calibration, seed: int) -> Partition:
        """The samples parted at random, the same way for the same seed. Parts are disjoint; where there are too few
        samples for two sides, both are all of them and say so (`Calibration.shared`)."""
        fit, held = samples.split(seed=seed)
        learn, judge = fit.split(seed=seed)
        return cls(fit, learn, judge, held)

    def on_trial(self, seed: int) -> Partition:
        """The parts where something trains: half of what was held judges that.

        It may not be a part of `fit`: what a repair was fitted on makes it look several times as good as it is, and
        the same repair without it may be several times as bad.
        """
        trial, rest = self.held.split(0.5, seed)
        if self.held.shared or trial.shared or len(trial) < LEAST:
            return self
        return replace(self, held=rest, trial=trial)


def counted(
    samples: Calibration, size: int, progress: Callable[[int, int], None] | None
) -> Iterator[Mapping[str, np.ndarray]]:
    """The samples in batches of at most `size`; `progress` is told (samples done, samples) behind each."""
    done = 0
    for feeds in samples.batches(size):
        yield feeds
        done += len(next(iter(feeds.values())))
        if progress:
            progress(done, len(samples))


def first_batches(samples: Calibration, count: int, size: int = 32) -> list[Mapping[str, np.ndarray]]:
    """About the first `count` samples, in batches of at most `size`: whole ones, so the last may go beyond."""

    def first() -> Iterator[Mapping[str, np.ndarray]]:
        left = count
        for feeds in samples.batches(min(count, size)):
            yield feeds
            left -= len(next(iter(feeds.values())))
            if left <= 0:
                return

    return on_disk.kept(first())
