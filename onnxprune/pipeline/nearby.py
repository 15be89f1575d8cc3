"""Plans near a plan: what single cuts do is known, what they do together is looked for.

An allocation minimises a sum of damages that single cuts do alone. At a tenth of the cost that sum is a poor guess: of
40 plans of a MobileNetV2-like net whose damages had been multiplied by chance (by 0.74 to 1.35, one standard
deviation), half were better than the plan of the damages themselves. So damages are multiplied by chance, each in its
own way, the plans that follow are cut, repaired and judged, and the weighted mean of the best ones' factors is the
middle of the next draw: an evolution strategy with recombination (Rechenberg, 1973; Hansen and Ostermeier, 2001), over
prices in place of widths. Every try is a plan that keeps to the budget. What is taken beats the first plan by more than
chance. Ours.

The mean of several matters: of one parent, kept until a child beat it by more than chance, nothing came after some 20
plans (a ResNet-20 at a tenth of its MACs, KL to 5,000 other images: 0.121; by the mean of three 0.088). So do turns:
kinds of plans that begin alike end far apart (a MobileNetV2-like net, judged: channels and blocks 0.285, channels
0.246), and drawn side by side one of them is soon lost. And judges must be able to tell plans apart (`measure.views`):
the best of 30 by a hundred images alone was worse than the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from onnxprune.measure.chance import beats
from onnxprune.parallel import with_progress
from onnxprune.pipeline.compare import Contest
from onnxprune.plan import PrunePlan

SPREAD = 0.3
"""Standard deviation of the logarithm of the factors."""
BROOD, PARENTS = 8, 3
"""Plans that are judged side by side, and those of them whose factors make the next middle."""
ALIKE = 1.1
"""Kinds have a turn whose first plan does so many times the damage of the best one, or less."""
MOST = 128
"""Plans that are tried."""
AFTER = 4
"""What share of them where the best factors for another ratio are known: of a ResNet-20 at -80%, after -90%, 34 plans
came to 0.076 as judged and 0.0268 on 5,000 other images, 59 without that to 0.096 and 0.0296."""
BARREN = 4
"""So many broods without a better plan, and the turn is over."""
NOTHING_LOST = 0.02
"""Nats a sample, on the samples as they are, below which hardly an answer changes."""

Factors = Mapping[str, float]
"""Group, block or layer -> by what its damages are multiplied."""
NO_FACTORS: Factors = MappingProxyType({})


class Tried(NamedTuple):
    """A plan that was judged.

    Attributes:
        kind: as plans are proposed.
        plan: what was proposed.
        factors: (names,) logarithms of the factors.
        hurt: (batches, looks) damage.
    """

    kind: str
    plan: PrunePlan
    factors: np.ndarray
    hurt: np.ndarray

    @property
    def damage(self) -> float:
        """The mean."""
        return float(np.mean(self.hurt))


def nearby(
    contest: Contest,
    starts: Mapping[str, PrunePlan],
    names: Sequence[str],
    propose: Callable[[str, Factors], PrunePlan | None],
    tries: int,
    *,
    known: Tried | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tried:
    """The best plan of those given, or a better one near them.

    Args:
        contest: judges plans.
        starts: kind of plan -> that of the damages as they are.
        names: what damages are known of.
        propose: given a kind and a factor for each name, the plan that follows.
        tries: how many plans.
        known: the best plan for another ratio: its factors are tried first, and fewer others (`AFTER`).
        seed: of the factors.
        progress: called with (plans tried, plans to try).
    """
    rng, steps = np.random.default_rng(seed), tries // BROOD // (1 if known is None else AFTER)
    broods = iter(with_progress(range(steps), steps, progress))

    def judged(plans: Iterable[tuple[str, PrunePlan, np.ndarray]]) -> list[Tried]:
        """The best one first."""
        plans = list(plans)
        hurt = contest.damages([plan for _, plan, _ in plans])
        return sorted((Tried(*p, h) for p, h in zip(plans, hurt, strict=True)), key=lambda t: t.damage)

    def brood(parents: Sequence[Tried]) -> Iterator[tuple[str, PrunePlan, np.ndarray]]:
        shares = np.log(len(parents) + 0.5) - np.log(np.arange(1, len(parents) + 1))
        middle = np.average([p.factors for p in parents], axis=0, weights=shares)
        for _ in range(BROOD):
            factors = middle + SPREAD * rng.standard_normal(len(names))
            plan = propose(parents[0].kind, factors_of(names, factors))
            if plan is not None:
                yield parents[0].kind, plan, factors

    def search(best: Tried) -> Iterator[Tried]:
        """Those of one kind that were tried."""
        parents, barren = [best], 0
        while barren < BARREN and next(broods, None) is not None:
            children = judged(brood(parents))
            yield from children
            barren = 0 if children and children[0].damage < best.damage else barren + 1
            parents = sorted([best, *children], key=lambda t: t.damage)[:PARENTS]
            best = parents[0]

    begin = [(kind, plan, np.zeros(len(names))) for kind, plan in starts.items()]
    if known is not None and known.kind in starts:
        plan = propose(known.kind, factors_of(names, known.factors))
        begin += [] if plan is None else [(known.kind, plan, known.factors)]
    found = judged(begin)
    first = next(t for t in found if not t.factors.any())
    alike: dict[str, Tried] = {}
    for start in found:
        if start.damage <= ALIKE * found[0].damage:
            alike.setdefault(start.kind, start)
    for start in alike.values():
        found += search(start)
    return next((t for t in sorted(found, key=lambda t: t.damage) if beats(t.hurt, first.hurt)), first)


def factors_of(names: Sequence[str], logarithms: np.ndarray) -> Factors:
    """The factor of each name."""
    return dict(zip(names, np.exp(logarithms).tolist(), strict=True))
