"""What the samples say about a model's channels, found once and asked at any ratio.

A study ranks the channels of every group and, for the adaptive allocation, knows what each width of each group
does to the outputs. It holds no ratio and no budget: `allocate` turns it into widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from onnxprune import parallel
from onnxprune.channels import ChannelGroup, Channels
from onnxprune.decide.allocation import Allocation, BlockMove, Ladder, Limits, Ranked, allocate
from onnxprune.decide.criteria import CRITERIA, score
from onnxprune.decide.curves import Curve, Curves, reader_designs
from onnxprune.decide.selection import Choice, by_lasso, by_likeness
from onnxprune.decide.trials import Candidate, Trials, damages, tried_widths
from onnxprune.graph.layers import INTEGER
from onnxprune.graph.model import Graph
from onnxprune.measure.cost import CostModel, count_macs
from onnxprune.measure.designs import second_moments
from onnxprune.measure.likeness import distances
from onnxprune.measure.moments import Moments, moments
from onnxprune.measure.stepwise import MEMORY

Feeds = Mapping[str, np.ndarray]
CURVED = ("elimination", "lasso")
"""Criteria that come from second moments of what the readers read."""
LIKENESS = {"similarity": True, "similarity-independent": False}
"""Criteria that come from distances of channels, and whether correlations count."""
GRADIENT = ("taylor", "fisher", "obd")
"""Criteria that come from a backward pass; whoever asks for a study brings their scores along."""
SAMPLED = (*CURVED, *LIKENESS, *GRADIENT)
"""Criteria that need samples."""
TRIAL_MACS = 1.2e12
"""Multiply-accumulates that all trial runs together may take; fewer samples are run on large models."""
TRIAL_SAMPLES = (8, 128)
"""Least and most samples of a trial."""


@dataclass(frozen=True)
class Samples:
    """The fitting samples, as a study takes them.

    Attributes:
        batches: gives those to learn from in batches of at most that many, for one pass over the data.
        judges: gives others the same way, for judging what was learnt.
    """

    batches: Callable[[int], Iterable[Feeds]]
    judges: Callable[[int], Iterable[Feeds]]

    def some(self, count: int) -> list[Feeds]:
        """About the first so many to learn from, in batches."""
        return _first(self.batches, count)

    def few(self, count: int) -> list[Feeds]:
        """About the first so many judges, in batches."""
        return _first(self.judges, count)


def _first(batches: Callable[[int], Iterable[Feeds]], count: int, size: int = 32) -> list[Feeds]:
    found: list[Feeds] = []
    for feeds in batches(min(count, size)):
        found.append(feeds)
        count -= len(next(iter(feeds.values())))
        if count <= 0:
            break
    return found


@dataclass(frozen=True)
class Study:
    """What is known about the groups.

    Attributes:
        channels: the analysis.
        scores: (width,) importance of every group's channels, in units of the group.
        damages: (width + 1,) damage to the outputs at every width, for the adaptive allocation; else None.
        limits: allowed widths.
        choices: what a criterion that chooses channels together says of every group; empty for the others.
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
        """Which channels stay, which blocks go and which ranks fall, when the share `ratio` of the cost goes."""
        heights = {name: c.heights for name, c in self.choices.items() if c.heights is not None}
        found = allocate(
            self.channels,
            self.scores,
            cost,
            ratio,
            how=how,
            limits=self.limits,
            damages=self.damages,
            heights=heights or None,
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
    model: onnx.ModelProto,
    graph: Graph,
    channels: Channels,
    samples: Samples | None,
    *,
    criterion: str,
    adaptive: bool,
    limits: Limits,
    threads: int | None = None,
    seed: int = 0,
    given: Mapping[str, np.ndarray] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Study:
    """Rank the channels of every group, and price its widths where that is asked for.

    Args:
        model, graph: the original network.
        channels: its analysis.
        samples: unlabelled samples; None: scores come from weights alone.
        criterion: one of `CHOICES`.
        adaptive: also measure what each width does to the outputs.
        limits: allowed widths.
        threads: ORT threads.
        seed: for everything random.
        given: scores of every group, for a criterion in `GRADIENT`.
        progress: called with (groups tried, groups).
    """
    curves = None
    if criterion in CURVED or adaptive:
        assert samples is not None
        curves = _curves(model, graph, channels, samples, threads, seed)
    needed = criterion == "activation" or (curves is not None and any(curves.others.values()))
    seen = _energies_read(model, graph, channels, samples, threads) if needed else {}
    others = {} if curves is None else _others(curves, score("activation", channels.groups, graph, seen, seed))
    choices: dict[str, Choice] = {}
    if criterion in LIKENESS:
        assert samples is not None
        correlated = LIKENESS[criterion]
        far = distances(model, graph, channels, samples.batches, correlated=correlated, threads=threads, seed=seed)
        choices = {name: by_likeness(d) for name, d in far.items()}
    elif criterion == "lasso":
        assert curves is not None
        choices = {g.name: by_lasso(curves, g, others[g.name]) for g in channels.groups}
    ranked: Mapping[str, np.ndarray]
    if given is not None:
        ranked = given
    elif criterion in CRITERIA:
        ranked = score(criterion, channels.groups, graph, seen, seed)
    else:
        ranked = {name: np.argsort(c.order).astype(float) for name, c in choices.items()}
    if curves is None or (choices and not adaptive):
        return Study(channels, ranked, None, limits, choices)

    def curve(group: ChannelGroup) -> Curve:
        order = np.argsort(ranked[group.name], kind="stable") if ranked else None
        return curves.of(group, others[group.name], order)

    names = [g.name for g in channels.groups]
    held = max(map(curves.holds, names), default=0)
    found = dict(zip(names, parallel.each(curve, channels.groups, holds=held), strict=True))
    scores = {name: np.argsort(c.order).astype(float) for name, c in found.items()}
    if not adaptive:
        return Study(channels, scores, None, limits)
    assert samples is not None
    widths = {g.name: tried_widths(g, Ladder(g, scores[g.name], limits).widths) for g in channels.groups}
    each = count_macs(graph, channels.shapes) * max(1, sum(map(len, widths.values())))
    trials = Trials(curves, samples.few(int(np.clip(TRIAL_MACS / max(1.0, each), *TRIAL_SAMPLES))), threads=threads)
    hurt = _prices(channels.groups, found, trials, widths, progress)
    return Study(channels, scores, hurt, limits, choices, trials)


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


def _others(curves: Curves, energies: Mapping[str, np.ndarray]) -> dict[str, np.ndarray | None]:
    """(width,) share of what readers without second moments read, for the groups that have any."""
    asked = {g.name: bool(curves.others[g.name]) or not curves.readings[g.name] for g in curves.channels.groups}
    return {name: energies[name] if wanted else None for name, wanted in asked.items()}


def _curves(
    model: onnx.ModelProto, graph: Graph, channels: Channels, samples: Samples, threads: int | None, seed: int
) -> Curves:
    designs = reader_designs(graph, channels)
    found = second_moments(model, list(designs.values()), channels.shapes, samples.batches, threads=threads, seed=seed)
    return Curves(graph, channels, designs, found)


def _energies_read(
    model: onnx.ModelProto, graph: Graph, channels: Channels, samples: Samples | None, threads: int | None
) -> dict[str, Moments]:
    """One streamed pass: moments of everything that a reader reads."""
    if samples is None:
        return {}
    read = {s.reads for g in channels.groups for s in g.readers if s.reads}
    taps = {
        a.tensor: (a.axis, len(channels.shapes[a.tensor]))
        for g in channels.groups
        for a in g.activations
        if a.tensor in read
    }
    zeros: dict[str, float] = {}  # of what has no squares of its own
    for tensor, use in ((s.reads, s.use) for g in channels.groups for s in g.readers if s.reads):
        node, weight = graph.nodes[use[0]], graph.value(use)
        if node.op_type in INTEGER:
            zero = graph.constant(node.input[2]) if len(node.input) > 2 else None
            zeros[tensor] = 0.0 if zero is None else float(np.ravel(zero)[0])
        elif weight is not None and weight.dtype == np.float16:
            zeros[tensor] = 0.0
    return moments(model, taps, samples.batches(32), zeros=zeros, threads=threads)


CHOICES = (*SAMPLED, *CRITERIA)


def trials_of(
    model: onnx.ModelProto,
    graph: Graph,
    channels: Channels,
    samples: Samples,
    count: int,
    *,
    threads: int | None = None,
    seed: int = 0,
) -> tuple[dict[str, Curve], Trials]:
    """(the curve of every group by elimination, trials on the first `count` samples): to try any width of any group."""
    curves = _curves(model, graph, channels, samples, threads, seed)
    seen = _energies_read(model, graph, channels, samples, threads) if any(curves.others.values()) else {}
    others = _others(curves, score("activation", channels.groups, graph, seen, seed))
    found = {g.name: curves.of(g, others[g.name]) for g in channels.groups}
    return found, Trials(curves, samples.few(count), threads=threads)
