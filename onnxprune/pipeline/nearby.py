"""Plans near a plan: what single cuts do is known, what they do together is looked for.

An allocation minimises a sum of damages that single cuts do alone. At a tenth of the cost that sum is a poor guess: of
40 plans of a MobileNetV2-like net whose damages had been multiplied by chance (by 0.74 to 1.35, one standard
deviation), half were better than the plan of the damages themselves. So damages are multiplied by chance, each in its
own way, the plans that follow are cut, repaired and judged, the best one's factors are the middle of the next draw, and
so on: evolution with one parent that is kept (Rechenberg, 1973), over prices in place of widths. Every try is a plan
that keeps to the budget. Only where the judges can tell (`measure.views`): the best of 30 plans of a ResNet-20 by a
hundred images alone was worse than the first. Ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import numpy as np

from onnxprune.measure.chance import beats
from onnxprune.parallel import with_progress
from onnxprune.pipeline.compare import Contest
from onnxprune.plan import PrunePlan

SPREAD = 0.3
"""Standard deviation of the logarithm of the factors."""
BROOD = 4
"""Plans that are judged side by side, of one parent."""
MOST = 32
"""Plans that are tried."""
BARREN = 2
"""So many broods without a plan that is better by more than chance, and it is left at that."""
NOTHING_LOST = 0.02
"""Nats a sample, on the samples as they are, below which hardly an answer changes."""

Factors = Mapping[str, float]
"""Group, block or layer -> by what its damages are multiplied."""
NO_FACTORS: Factors = MappingProxyType({})


def nearby(
    contest: Contest,
    plan: PrunePlan,
    names: Iterable[str],
    propose: Callable[[Factors], PrunePlan | None],
    tries: int,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> PrunePlan:
    """The plan, or the best of those near it.

    Args:
        contest: judges plans.
        plan: that of the damages as they are.
        names: what damages are known of.
        propose: given a factor for each, the plan that follows.
        tries: how many plans.
        seed: of the factors.
        progress: called with (plans tried, plans to try).
    """
    rng, order = np.random.default_rng(seed), list(names)
    middle, (before,), barren = np.zeros(len(order)), contest.damages([plan]), 0
    for _ in with_progress(range(tries // BROOD), tries // BROOD, progress):
        drawn = [middle + SPREAD * rng.standard_normal(len(order)) for _ in range(BROOD)]
        found = [propose(dict(zip(order, np.exp(d).tolist(), strict=True))) for d in drawn]
        known = [(p, d) for p, d in zip(found, drawn, strict=True) if p is not None]
        hurt = contest.damages([p for p, _ in known])
        best = min(range(len(hurt)), key=lambda k: float(np.mean(hurt[k])), default=None)
        barren += 1
        if best is not None and beats(hurt[best], before):
            (plan, middle), before, barren = known[best], hurt[best], 0
        if barren == BARREN:
            break
    return plan
