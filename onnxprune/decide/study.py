"""What the samples say about a model's channels, found once and asked at any ratio.

A study ranks the channels of every group and, for the adaptive allocation, knows what each width of each group
does to the outputs. It holds no ratio and no budget: `allocate` turns it into widths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune import parallel
from onnxprune.channels import Analysed, ChannelGroup, Channels
from onnxprune.decide.adaptive import BlockMove, Ranked
from onnxprune.decide.allocation import Allocation, allocate
from onnxprune.decide.criteria import named
from onnxprune.decide.curves import Curve
from onnxprune.decide.evidence import Evidence, gather
from onnxprune.decide.limits import Ladder, Limits
from onnxprune.decide.selection import Choice, places
from onnxprune.decide.trials import Candidate, Trials, damages, tried_widths
from onnxprune.measure.cost import CostModel, count_macs
from onnxprune.measure.gradients import Gradients
from onnxprune.measure.stepwise import MEMORY
from onnxprune.samples.calibration import Calibration
from onnxprune.samples.partition import Partition, first_batches

TRIAL_MACS = 1.2e12
"""Multiply-accumulates that all trial runs together may take; fewer samples are run on large models."""
TRIAL_SAMPLES = (8, 128)
"""Least and most samples of a trial."""


@dataclass(frozen=True)
class Study:
    """What is known about the groups.

    Attributes:
        channels: the analysis.
        scores: (width,) importance of every group's channels, in units of the group.
        damages: (width + 1,) damage to the outputs at every width, for the adaptive allocation; else None.
        limits: allowed widths.
        choices: what the criterion says of every group.
        trials: what tells the damage of a candidate, where `damages` were measured.
    """

    channels: Channels
    scores: Mapping[str, np.ndarray]
    damages: Mapping[str, np.ndarray] | None
    limits: Limits
    choices: Mapping[str, Choice] = field(default_factory=dict)
    trials: Trials | None = None

    def allocate(
        self,
        cost: CostModel,
        ratio: float,
        how: str,
        blocks: Sequence[BlockMove] = (),
        ranks: Sequence[Ranked] = (),
    ) -> Allocation:
        """Which channels stay, which blocks go and which ranks fall, when the share `ratio` of the cost goes.

        Args:
            cost: what counts.
            ratio: share to remove.
            how: one of `allocation.ALLOCATIONS`.
            blocks: what may go whole.
            ranks: the layers that may be made of two.
        """
        heights = {name: c.heights for name, c in self.choices.items() if c.heights is not None}
        comparable = bool(heights) and len(heights) == len(self.choices)
        found = allocate(
            self.channels,
            self.scores,
            cost,
            ratio,
            how=how,
            limits=self.limits,
            damages=self.damages,
            heights=heights if comparable else None,
            blocks=blocks,
            ranks=ranks,
        )
        return replace(found, keep={name: self._kept(name, keep) for name, keep in found.keep.items()})

    def _kept(self, name: str, nested: tuple[int, ...]) -> tuple[int, ...]:
        """The channels that stay, made for this width where the criterion has an answer of its own."""
        own = self.choices[name].kept if name in self.choices else None
        return nested if own is None else tuple(int(c) for c in own(len(nested)))


@parallel.within_threads
def study(
    net: Analysed,
    samples: Partition | None,
    *,
    criterion: str,
    adaptive: bool,
    limits: Limits,
    gradients: Mapping[str, Gradients] | None = None,
    threads: int | None = None,
    seed: int = 0,
    learning: Callable[[int, int], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Study:
    """Rank the channels of every group, and price its widths where that is asked for.

    Args:
        net: the original network.
        samples: unlabelled samples; None: scores come from weights alone.
        criterion: a name in `criteria.CRITERIA`.
        adaptive: also measure what each width does to the outputs.
        limits: allowed widths.
        gradients: what a backward pass says of every group, for a criterion that needs it.
        threads: ORT threads.
        seed: for everything random.
        learning: called with (samples learnt from, samples) in every pass over them.
        progress: called with (groups tried, groups).

    Raises:
        UsageError: there is no such criterion, or it gives something else than scores.
    """
    entry, learn = named(criterion), None if samples is None else samples.learn
    needs = entry.needs | {"curves"} if adaptive else entry.needs
    evidence = gather(net, learn, needs, gradients=gradients, threads=threads, seed=seed, progress=learning)
    choices = entry.choices(net.channels.groups, evidence)
    if not adaptive and all(c.order is not None for c in choices.values()):
        return Study(net.channels, {name: c.importance for name, c in choices.items()}, None, limits, choices)
    curves = _curves(evidence, net.channels.groups, choices)
    scores = {name: places(c.order) for name, c in curves.items()}
    if not adaptive:
        return Study(net.channels, scores, None, limits, choices)
    assert samples is not None and evidence.curves is not None
    widths = {g.name: tried_widths(g, Ladder(g, scores[g.name], limits).widths) for g in net.channels.groups}
    count = trial_samples(count_macs(net.graph, net.shapes, net.channels.ran) * max(1, sum(map(len, widths.values()))))
    judges = first_batches(samples.judge, net.judged(count), net.batch)
    trials = Trials(evidence.curves, judges, threads=threads)
    hurt = _prices(net.channels.groups, curves, trials, widths, progress)
    return Study(net.channels, scores, hurt, limits, choices, trials)


def trial_samples(macs: float) -> int:
    """How many samples trials may take, all of which together cost so many multiply-accumulates a sample."""
    return int(np.clip(TRIAL_MACS / max(1.0, macs), *TRIAL_SAMPLES))


def _curves(evidence: Evidence, groups: Sequence[ChannelGroup], choices: Mapping[str, Choice]) -> dict[str, Curve]:
    """The curve of every group, by name, along the order of its choice."""
    assert evidence.curves is not None
    holds = max((evidence.curves.holds(g.name) for g in groups), default=0)
    found = parallel.each(lambda g: evidence.curve(g, choices[g.name].order), groups, holds=holds)
    return dict(zip((g.name for g in groups), found, strict=True))


def _prices(
    groups: Sequence[ChannelGroup],
    curves: Mapping[str, Curve],
    trials: Trials,
    widths: Mapping[str, Sequence[int]],
    progress: Callable[[int, int], None] | None,
) -> dict[str, np.ndarray]:
    """The damages of every group, by name; what comes before a group's first reader is run once for all of them."""
    ordered = sorted(groups, key=lambda g: trials.order[trials.first(g)])
    judges = ((g, trials.judge(trials.first(g))) for g in ordered)

    def price(given: tuple[ChannelGroup, Callable[[Candidate], float]]) -> np.ndarray:
        group, judge = given
        return damages(group, curves[group.name], trials, widths[group.name], judge)

    tried = parallel.with_progress(parallel.each(price, judges, holds=MEMORY), len(ordered), progress)
    return dict(zip((g.name for g in ordered), tried, strict=True))


def trials_of(
    net: Analysed, learn: Calibration, judge: Calibration, count: int, *, threads: int | None = None, seed: int = 0
) -> tuple[dict[str, Curve], Trials]:
    """(the curve of every group by elimination, trials): to try any width of any group.

    Args:
        net: the original network.
        learn: samples that the curves are learnt from.
        judge: samples that trials are judged on, the first `count` of them.
        count: how many.
        threads: ORT threads.
        seed: for everything random.
    """
    evidence = gather(net, learn, {"curves"}, threads=threads, seed=seed)
    assert evidence.curves is not None
    found = {g.name: evidence.curve(g) for g in net.channels.groups}
    return found, Trials(evidence.curves, first_batches(judge, net.judged(count), net.batch), threads=threads)
