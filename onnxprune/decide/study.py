"""What the samples say about a model's channels, found once and asked at any ratio.

A study ranks the channels of every group and, for the adaptive allocation, knows what each width of each group
does to the outputs. It holds no ratio and no budget: `allocate` turns it into widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune import parallel
from onnxprune.channels import Analysed, ChannelGroup, Channels
from onnxprune.decide.adaptive import BlockMove, Ranked, path
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
from onnxprune.measure.views import NO_VIEWS, Views
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
        return replace(found, keep={name: self.kept(name, keep) for name, keep in found.keep.items()})

    def path(
        self, cost: CostModel, most: float, blocks: Sequence[BlockMove] = (), ranks: Sequence[Ranked] = ()
    ) -> list[tuple[float, float]]:
        """(share of the cost that is gone, summed damage) along the adaptive allocation's greedy pass, up to the share
        `most`; nothing where damages were not measured. Arguments as for `allocate`."""
        if self.damages is None:
            return []
        ladders = [Ladder(g, self.scores[g.name], self.limits) for g in self.channels.groups]
        return path(ladders, self.damages, cost, most, blocks, ranks)

    def dearer(self, factors: Mapping[str, float]) -> Study:
        """The same with the damages of some groups multiplied."""
        hurt = self.damages or {}
        return replace(self, damages={n: d * factors.get(n, 1.0) for n, d in hurt.items()}) if factors else self

    def kept(self, name: str, nested: tuple[int, ...]) -> tuple[int, ...]:
        """The channels that stay, made for this width where the criterion has an answer of its own."""
        own = self.choices[name].kept if name in self.choices else None
        return nested if own is None else tuple(int(c) for c in own(len(nested)))


@dataclass(frozen=True)
class Look:
    """What one pass over the samples says, before any cut was tried.

    Attributes:
        net: the original network.
        choices: what the criterion says of every group.
        scores: importance of every group's channels, by its place in the order in which they go.
        curves: of every group; none where nothing is to be tried.
        widths: those at which every group is tried.
        trials: runs candidates; None where nothing is to be tried.
    """

    net: Analysed
    choices: Mapping[str, Choice]
    scores: Mapping[str, np.ndarray]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    widths: Mapping[str, Sequence[int]] = field(default_factory=dict)
    trials: Trials | None = None

    def prices(self, names: Sequence[str]) -> Iterator[np.ndarray]:
        """The damages of groups at every width, in order, several at a time; what comes before a group's first reader
        is run once for all of them, if they come in the order in which they are read (`tried`)."""
        assert self.trials is not None
        trials, groups = self.trials, {g.name: g for g in self.net.channels.groups}
        judges = ((groups[name], trials.judge(trials.first(groups[name]))) for name in names)

        def price(given: tuple[ChannelGroup, Callable[[Candidate], float]]) -> np.ndarray:
            group, judge = given
            return damages(group, self.curves[group.name], trials, self.widths[group.name], judge)

        return parallel.each(price, judges, holds=MEMORY)

    @property
    def tried(self) -> list[str]:
        """The groups, in the order in which they are first read."""
        if self.trials is None:
            return []
        trials = self.trials
        return [g.name for g in sorted(self.net.channels.groups, key=lambda g: trials.order[trials.first(g)])]


@parallel.within_threads
def look(
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
    views: Views = NO_VIEWS,
) -> Look:
    """Rank the channels of every group, and make ready to try widths where that is asked for.

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
        views: what blends the samples that judge trials.

    Raises:
        UsageError: there is no such criterion, or it gives something else than scores.
    """
    entry, learn = named(criterion), None if samples is None else samples.learn
    needs = entry.needs | {"curves"} if adaptive else entry.needs
    evidence = gather(net, learn, needs, gradients=gradients, threads=threads, seed=seed, progress=learning)
    choices = entry.choices(net.channels.groups, evidence)
    if not adaptive and all(c.order is not None for c in choices.values()):
        return Look(net, choices, {name: c.importance for name, c in choices.items()})
    curves = _curves(evidence, net.channels.groups, choices)
    scores = {name: places(c.order) for name, c in curves.items()}
    if not adaptive:
        return Look(net, choices, scores)
    assert samples is not None and evidence.curves is not None
    widths = {g.name: tried_widths(g, Ladder(g, scores[g.name], limits).widths) for g in net.channels.groups}
    judges = first_batches(samples.judge, net.judged(trial_samples(trial_macs(net, limits))), net.batch)
    seen = [feeds for several in views.batches(judges) for feeds in several]
    return Look(net, choices, scores, curves, widths, Trials(evidence.curves, seen, threads=threads))


@parallel.within_threads
def study(
    seen: Look,
    limits: Limits,
    *,
    prices: Callable[[Sequence[str]], Iterator[np.ndarray]] | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Study:
    """Price the widths of every group, where that was made ready.

    Args:
        seen: what the samples say.
        limits: allowed widths.
        prices: the damages of groups by name, in order; None: `seen.prices`.
        threads: no more workers than that.
        progress: called with (groups tried, groups).
    """
    channels, names = seen.net.channels, seen.tried
    if seen.trials is None:
        return Study(channels, seen.scores, None, limits, seen.choices)
    tried = parallel.with_progress((prices or seen.prices)(names), len(names), progress)
    hurt = dict(zip(names, tried, strict=True))
    return Study(channels, seen.scores, hurt, limits, seen.choices, seen.trials)


def trial_macs(net: Analysed, limits: Limits) -> float:
    """Multiply-accumulates that all trials of a network take, a sample."""
    groups = net.channels.groups
    tries = sum(len(tried_widths(g, Ladder(g, np.zeros(g.width), limits).widths)) for g in groups)
    return count_macs(net.graph, net.shapes, net.channels.ran) * max(1, tries)


def trial_samples(macs: float) -> int:
    """How many samples trials may take, all of which together cost so many multiply-accumulates a sample."""
    return int(np.clip(TRIAL_MACS / max(1.0, macs), *TRIAL_SAMPLES))


def _curves(evidence: Evidence, groups: Sequence[ChannelGroup], choices: Mapping[str, Choice]) -> dict[str, Curve]:
    """The curve of every group, by name, along the order of its choice."""
    assert evidence.curves is not None
    holds = max((evidence.curves.holds(g.name) for g in groups), default=0)
    found = parallel.each(lambda g: evidence.curve(g, choices[g.name].order), groups, holds=holds)
    return dict(zip((g.name for g in groups), found, strict=True))


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
