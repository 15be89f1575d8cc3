"""From settings to a plan: what is known of the model, found once and asked at any ratio.

A `Planner` looks at the samples once (`decide.study`), prices the model (`measure.cost`) and the blocks that may go
(`blocks`), and turns ratios into plans. Where whole blocks go, two plans compete: the mix, and channels alone. Damages
of single cuts only add up roughly, so both networks are cut, repaired on one half of the fitting samples and compared
on the other; the better one is the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import onnx

from onnxprune.blocks import block_damages, drop_of
from onnxprune.channels import ChannelGroup, Channels, common_reasons
from onnxprune.decide.allocation import Allocation, BlockMove
from onnxprune.decide.blocks import Block, find_blocks
from onnxprune.decide.study import GRADIENT, Samples, study
from onnxprune.errors import BudgetError, UnsupportedError, UsageError
from onnxprune.measure.calibration import Calibration
from onnxprune.measure.cost import CostModel
from onnxprune.measure.node_times import NodeTimes, node_times
from onnxprune.plan import Edit, KeepChannels, PrunePlan
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.drop import drop_blocks
from onnxprune.rewrite.refit import refit
from onnxprune.subject import Settings, Subject

BATCH = 32
PRICE_SAMPLES = 64
"""Samples that the layers behind a dropped block are refitted on, to see its damage."""
JUDGE_SAMPLES = 256
"""Most samples that competing plans are repaired on, and as many that they are compared on."""
GRADIENT_SAMPLES = 256
"""Samples of the backward passes of a gradient criterion."""

Progress = Callable[[str, int, int], None]
"""Called with (phase, done, total)."""


class Planner:
    """Plans for one model under one set of settings. `settings.ratio` plays no part.

    Args:
        subject: the model.
        settings: what counts and what is allowed.
        progress: called with (phase, done, total).
        leave: names of groups to leave alone.

    Raises:
        UnsupportedError: nothing can be pruned; the message names the most common reasons.
    """

    def __init__(
        self, subject: Subject, settings: Settings, progress: Progress | None = None, *, leave: Collection[str] = ()
    ):
        self.subject, self.settings, self.progress = subject, settings, progress
        self.of = settings.of or "macs"
        groups = tuple(g for g in subject.channels.groups if g.name not in leave)
        self.channels = channels = replace(subject.channels, groups=groups)
        if not channels.groups and "blocks" not in settings.methods:
            raise UnsupportedError(f"nothing can be pruned: {why_not(channels)}")
        limits = settings.limits()
        self.criterion, self.how = settings.choices(subject.calibration is not None)
        self.blocks = self._blocks()
        if not any(limits.allows(g) for g in channels.groups) and not self.blocks:
            self._refuse()
        self.study = study(
            subject.model,
            subject.graph,
            channels,
            _samples(subject, settings, progress),
            criterion=self.criterion,
            adaptive=self.how == "adaptive",
            limits=limits,
            threads=settings.threads,
            seed=settings.seed,
            given=self._gradients(),
            progress=self._report("decide"),
        )

    def _gradients(self) -> dict[str, np.ndarray] | None:
        """Scores by a backward pass, where the criterion is one of those."""
        if self.criterion not in GRADIENT:
            return None
        from onnxprune.train.gradients import gradient_scores
        from onnxprune.train.recipe import open_recipe

        subject, settings = self.subject, self.settings
        labelled = None if settings.recipe is None else open_recipe(settings.recipe, subject.graph.inputs)
        return gradient_scores(
            subject.model,
            self.channels,
            self._fitting().few(GRADIENT_SAMPLES),
            self.criterion,
            labelled=labelled,
            seed=settings.seed,
            threads=settings.threads,
        )

    def _refuse(self) -> None:
        if not self.channels.groups:
            raise UnsupportedError(f"nothing can be pruned: {why_not(self.channels)}")
        if "channels" not in self.settings.methods:
            if self.how != "adaptive":
                raise UsageError("--methods blocks needs samples and the adaptive allocation; give --calib")
            raise UnsupportedError("no block can go: there is no residual block, or --keep-block names them all")
        raise UsageError("--include and --exclude leave no group to cut; `onnxprune inspect` lists the groups")

    def _report(self, phase: str) -> Callable[[int, int], None] | None:
        progress = self.progress
        return None if progress is None else lambda k, n: progress(phase, k, n)

    def _blocks(self) -> tuple[Block, ...]:
        if "blocks" not in self.settings.methods or self.how != "adaptive":
            return ()
        return find_blocks(self.subject.graph, self.channels.shapes, self.settings.keep_block)

    @cached_property
    def times(self) -> NodeTimes | None:
        """What the nodes take, where that counts."""
        if self.of != "latency":
            return None
        return node_times(
            self.subject.graph,
            self.subject.one(),
            self.channels.shapes,
            threads=self.settings.threads or 1,
            progress=self._report("time"),
        )

    @cached_property
    def cost(self) -> CostModel:
        """What counts."""
        inside = [block.nodes for block in self.blocks]
        return CostModel(self.subject.graph, self.channels, self.of, blocks=inside, times=self.times)

    @cached_property
    def alone(self) -> CostModel:
        """The same, for channels alone."""
        if not self.blocks:
            return self.cost
        return CostModel(self.subject.graph, self.channels, self.of, times=self.times)

    @cached_property
    def moves(self) -> tuple[BlockMove, ...]:
        """The blocks, with what their going does to the outputs."""
        trials = self.study.trials
        if not self.blocks or trials is None:
            return ()
        found = block_damages(
            self.subject.graph,
            self.channels,
            self.blocks,
            self._fitting().few(PRICE_SAMPLES),
            trials.damage,
            threads=self.settings.threads,
            seed=self.settings.seed,
            progress=self._report("blocks"),
        )
        inside = [frozenset(g.name for g in self.channels.groups if self._within(g, b)) for b in self.blocks]
        return tuple(BlockMove(b.add, found[b.add], names) for b, names in zip(self.blocks, inside, strict=True))

    def _within(self, group: ChannelGroup, block: Block) -> bool:
        """Whether everything that carries the group's channels lies inside the block."""
        producer, nodes = self.subject.graph.producer, set(block.nodes[:-1])
        return all((s.use[0] or producer.get(s.tensor, "")) in nodes for s in group.slices)

    def _fitting(self) -> Samples:
        found = _samples(self.subject, self.settings, None)
        assert found is not None
        return found

    @property
    def kinds(self) -> tuple[str, ...]:
        """The ways to spend a budget that compete: channels alone, and the mix of channels and blocks."""
        cuts = ("channels",) if "channels" in self.settings.methods and self.channels.groups else ()
        return (*cuts, "mix") if self.moves else cuts

    def propose(self, ratio: float, kind: str) -> PrunePlan | None:
        """The plan of one kind for a ratio; None for a mix that drops no block (channels alone are the plan then).

        Raises:
            BudgetError: the ratio cannot be reached (unless `best_effort`).
        """
        if kind == "channels":
            found = self.study.allocate(self.alone, ratio, self.how)
        else:
            found = self.study.allocate(self.cost, ratio, self.how, self.moves)
        if not found.met and not self.settings.best_effort:
            raise self._out_of_reach(found.removed, ratio)
        return None if kind == "mix" and not found.drop and "channels" in self.kinds else self._plan(found, ratio)

    def plan(self, ratio: float) -> PrunePlan:
        """The plan for a ratio: the better one of those that reach it.

        Raises:
            BudgetError: the ratio cannot be reached (unless `best_effort`).
        """
        found, missed = [], []
        for kind in self.kinds:
            try:
                found.append(self.propose(ratio, kind))
            except BudgetError as error:
                missed.append(error)
        plans = [p for p in found if p is not None]
        if not plans:
            raise missed[0]
        return self.better(plans)

    def _out_of_reach(self, removed: float, ratio: float) -> BudgetError:
        return BudgetError(
            f"only {removed:.1%} of the {self.of} can go, not {ratio:.1%}: "
            f"{why_not(self.channels)}; ask for less or add --best-effort"
        )

    def better(self, plans: Sequence[PrunePlan]) -> PrunePlan:
        """The plan whose repaired network does least damage to the outputs; the first among equals."""
        if len(plans) == 1:
            return plans[0]
        batches = self._fitting().few(2 * JUDGE_SAMPLES)
        half = max(1, len(batches) // 2)
        fit, judge = batches[:half], batches[half:] or batches
        trials = self.study.trials
        assert trials is not None
        other = trials.on(judge)
        graph, channels, settings = self.subject.graph, self.subject.channels, self.settings
        worst = []
        for k, plan in enumerate(plans):
            if self.progress:
                self.progress("compare", k, len(plans))
            alive = channels.alive(plan.keep())
            model = self.cut(plan)
            model = refit(graph, model, channels, alive, fit, threads=settings.threads, seed=settings.seed)
            worst.append(other.damage(model))
        return plans[int(np.argmin(worst))]

    def cut(self, plan: PrunePlan) -> onnx.ModelProto:
        """The plan carried out, neither checked nor repaired: as large and as fast as the outcome."""
        alive = self.subject.channels.alive(plan.keep())
        return drop_blocks(cut(self.subject.graph, self.subject.channels, alive), plan.drops())

    def _plan(self, found: Allocation, ratio: float) -> PrunePlan:
        widths = {g.name: g.width for g in self.channels.groups}
        blocks = {b.add: b for b in self.blocks}
        edits: tuple[Edit, ...] = (
            *(KeepChannels(n, widths[n], keep) for n, keep in found.keep.items()),
            *(drop_of(blocks[name], self.channels) for name in found.drop),
        )
        decided: Mapping[str, object] = {
            "ratio": ratio,
            "of": self.of,
            "criterion": self.criterion,
            "allocation": self.how,
            "methods": list(self.settings.methods),
            "seed": self.settings.seed,
            "prune_statistics": bool(self.channels.inexact),
        }
        return PrunePlan(self.subject.digest, edits, decided)


def _samples(subject: Subject, settings: Settings, progress: Progress | None) -> Samples | None:
    """The fitting part of the calibration samples."""
    if subject.calibration is None:
        return None
    fit, _ = subject.calibration.split(seed=settings.seed)
    return Samples(
        lambda size: counted(fit, "calibrate", progress, size), lambda n: list(fit.take(n).batches(min(n, BATCH)))
    )


def counted(
    data: Calibration, phase: str, progress: Progress | None, size: int = BATCH
) -> Iterator[Mapping[str, np.ndarray]]:
    """The samples in batches, with word of how many are done."""
    done = 0
    for feeds in data.batches(size):
        yield feeds
        done += len(next(iter(feeds.values())))
        if progress:
            progress(phase, done, len(data))


def why_not(channels: Channels, most: int = 3) -> str:
    """The most common reasons for what is pinned, in words."""
    top = common_reasons(channels.pinned, most)
    return "; ".join(f"{reason} ({n} channels)" for reason, n in top) or "it has no weights that we know"
