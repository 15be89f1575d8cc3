"""Which samples serve what: parted once for a run, and handed on. Nothing else splits.

all ─┬─ held   a quarter: fidelity is reported on these, and nothing else ever looks at them
     └─ fit    the finished model is repaired on these
         ├─ learn   what plans are made from: moments, curves, trials are fitted on these
         └─ judge   what plans are compared on: nothing was learnt from these
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.samples.calibration import Calibration


@dataclass(frozen=True)
class Partition:
    """The samples of one run, by what they serve.

    Attributes:
        fit: `learn` and `judge` together: repairs are fitted on these.
        learn: what decides is fitted on these.
        judge: what was learnt is judged on these.
        held: fidelity is reported on these.
    """

    fit: Calibration
    learn: Calibration
    judge: Calibration
    held: Calibration

    @classmethod
    def of(cls, samples: Calibration, seed: int) -> Partition:
        """The samples parted at random, the same way for the same seed. Parts are disjoint; where there are too few
        samples for two sides, both are all of them and say so (`Calibration.shared`)."""
        fit, held = samples.split(seed=seed)
        learn, judge = fit.split(seed=seed)
        return cls(fit, learn, judge, held)


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
    found: list[Mapping[str, np.ndarray]] = []
    for feeds in samples.batches(min(count, size)):
        found.append(feeds)
        count -= len(next(iter(feeds.values())))
        if count <= 0:
            break
    return found
