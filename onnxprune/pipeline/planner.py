"""From settings to a plan: what is known of the model, found once and asked at any ratio.

    candidates (what may be done) → study (what it breaks) → prices (what it saves) → propose → compare

A `Planner` looks at the samples once (`decide.study`), tries the blocks and ranks that may go, prices all of it, and
turns ratios into plans. Where blocks go or ranks fall, plans compete: the mix, and channels alone. Damages of
single edits only add up roughly, so the one whose network is closest to the original once it is cut and repaired is
taken (`compare`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import onnx

from onnxprune.decide.adaptive import BlockMove
from onnxprune.decide.allocation import TOLERANCE, Allocation
from onnxprune.decide.criteria import CRITERIA
from onnxprune.decide.limits import Limits
from onnxprune.decide.ranks import RankMove, find_ranks
from onnxprune.decide.staged import three_stages
from onnxprune.decide.study import Study, study
from onnxprune.errors import OutOfReachError, UnsupportedError
from onnxprune.measure.gradients import Gradients
from onnxprune.parallel import bounded, one_blas_thread
from onnxprune.pipeline.asked import allows, choices_of, engine_of
from onnxprune.pipeline.block_trials import block_damages, edit_of
from onnxprune.pipeline.candidates import find_candidates, why_not
from onnxprune.pipeline.compare import COMPARED, Compared, Contest
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.origin import origin_of
from onnxprune.pipeline.prices import Prices, time_network, timed_run
from onnxprune.pipeline.rivals import BATCH as RIVAL_BATCH
from onnxprune.pipeline.rivals import simple, unbeaten
from onnxprune.pipeline.settings import Settings
from onnxprune.plan import Edit, Factorize, KeepChannels, PrunePlan
from onnxprune.rewrite.apply import Mending, apply_edits
from onnxprune.rewrite.repair.table import REPAIRS, WITH_SAMPLES
from onnxprune.samples import partition
from onnxprune.samples.calibration import Calibration
from onnxprune.samples.partition import Partition, first_batches
from onnxprune.timing.pair_model import AnyPair, PairModel
from onnxprune.timing.pair_times import PairTimes, Way

BATCH = 32
BLOCK_SAMPLES = 64
"""Samples that the layers behind a dropped block are refitted on, to see its damage."""
GRADIENT_SAMPLES = 256
"""Samples of the backward passes of a gradient criterion."""
COARSE, HAIR = 0.02, 0.002
"""An overshoot that tells of coarse widths, and what may be missing then: half of a power of two channels is often a
little less than half of the cost."""
STEPS_UP = 8
"""Ratios above the one asked for that are tried where the widths allowed fall short of it."""

Progress = Callable[[str, int, int], None]
"""Called with (phase, done, total)."""


class Planner:
    """Plans for one model under one set of settings.

    Making one takes as long as all the looking and trying does; where times count, minutes of measuring. Proposing
    plans is quick afterwards.

    Args:
        subject: the model.
        settings: what counts and what is allowed.
        progress: called with (phase, done, total).
        leave: names of groups to leave alone.

    Attributes:
        study: what the samples say about the channels.
        prices: what edits save.
        offered: the layers that may be made of two, with every way that is faster.
        ranks: the same, with the ways that nothing beats in what counts.
        moves: the blocks, with what their going does to the outputs.

    Raises:
        UnsupportedError: nothing can be pruned; the message names the most common reasons.
    """

    @one_blas_thread
    @bounded
    def __init__(
        self, subject: Subject, settings: Settings, progress: Progress | None = None, *, leave: Collection[str] = ()
    ):
        self.subject, self.settings, self.progress = subject, settings, progress
        subject.check_timing(settings)
        self.of = settings.of or "macs"
        self.criterion, self.how = choices_of(settings, subject.calibration is not None)
        self.candidates = find_candidates(subject.net, settings, self.how, leave=leave)
        self.study = self._look()
        self.moves = self._try_blocks()
        times = time_network(subject, settings, self._report("time"))
        standing = [b.nodes for b in self.candidates.blocks], [b.name for b in self.candidates.blocks]
        merges = {name: run.edit for name, run in self.candidates.runs.items()}
        self.prices = Prices(self.candidates.net, self.of, *standing, times, merges)
        self.offered = self._try_ranks()
        self.ranks = () if self.candidates.staged else self.prices.best(self.offered)
        if settings.methods is None and not (self.candidates.groups or self.moves or self.ranks):
            raise UnsupportedError(f"nothing can be pruned: {why_not(self.candidates.net.channels)}")
        self._alone = self.prices.channels_alone()
        self._blocks = self.prices.model(())
        self._mixed = self.prices.model(self.ranks)

    def _look(self) -> Study:
        """What the samples, or the weights alone, say about the channels."""
        settings = self.settings
        return study(
            self.candidates.net,
            self.subject.partition(settings.seed),
            criterion=self.criterion,
            adaptive=self.how == "adaptive",
            limits=self.candidates.limits,
            threads=settings.threads,
            seed=settings.seed,
            gradients=self._gradients(),
            learning=self._report("calibrate"),
            progress=self._report("decide"),
        )

    def _gradients(self) -> dict[str, Gradients] | None:
        """What a backward pass says of the channels, where the criterion needs it."""
        if "gradients" not in CRITERIA[self.criterion].needs:
            return None
        from onnxprune.train.gradients import channel_gradients
        from onnxprune.train.recipe import Recipe

        subject, settings = self.subject, self.settings
        labelled = None if settings.recipe is None else Recipe(settings.recipe, subject.specs)
        return channel_gradients(
            self.candidates.net,
            first_batches(self._samples().judge, GRADIENT_SAMPLES, self.candidates.net.batch),
            labelled=labelled,
            seed=settings.seed,
            threads=settings.threads,
        )

    def _try_blocks(self) -> tuple[BlockMove, ...]:
        """The blocks, with what their going, or becoming one layer, does to the outputs."""
        trials, blocks, settings = self.study.trials, self.candidates.blocks, self.settings
        if not blocks or trials is None:
            return ()
        runs, net = self.candidates.runs, self.candidates.net
        damages = partial(
            block_damages,
            net,
            batches=first_batches(self._samples().learn, BLOCK_SAMPLES, net.batch),
            judge=trials.judge,
            threads=settings.threads,
            seed=settings.seed,
            progress=self._report("blocks"),
        )
        gone = damages([b for b in blocks if b.name in self.candidates.dropped])
        merged = damages([r.block for r in runs.values()], merges={n: r.edit for n, r in runs.items()}) if runs else {}
        inside = self.candidates.inside
        return tuple(BlockMove(b.name, gone.get(b.name), inside(b), b.group, merged.get(b.name)) for b in blocks)

    def _try_ranks(self) -> tuple[RankMove, ...]:
        """The layers that may be made of two, with every way that is faster: as timed where times count, else as
        reckoned, so that the same input gives the same plan."""
        trials, settings, subject = self.study.trials, self.settings, self.subject
        if not self.candidates.ranked or trials is None:
            return ()
        _, shapes = timed_run(subject, settings.batch)
        return find_ranks(
            self._samples().learn,
            trials,
            partial(allows, settings),
            self._pairs(shapes),
            twice=self.candidates.staged,
            threads=settings.threads,
            seed=settings.seed,
            progress=self._report("rank"),
        )

    def _pairs(self, shapes: Mapping[str, tuple[int, ...]]) -> PairTimes | PairModel:
        """What tells how long a layer takes that is made of two."""
        graph, settings = self.subject.graph, self.settings
        if self.of == "latency":
            return PairTimes(graph, dict(shapes), engine_of(settings))
        return AnyPair(graph, shapes) if set(settings.kinds()) == {"rank"} else PairModel(graph, shapes)

    def _report(self, phase: str) -> Callable[[int, int], None] | None:
        progress = self.progress
        return None if progress is None else lambda k, n: progress(phase, k, n)

    def _samples(self) -> Partition:
        """The samples, where it is known that there are some."""
        parts = self.subject.partition(self.settings.seed)
        assert parts is not None
        return parts

    @property
    def kinds(self) -> tuple[str, ...]:
        """The ways to spend a budget that compete: channels alone, these and blocks, and the mix of channels, blocks
        and ranks. Where times count, the first and the last."""
        if self.candidates.staged:
            return ("3c",)
        cuts = ("channels",) if self.candidates.channels else ()
        if not (self.moves or self.ranks or not cuts):
            return cuts
        return (
            (*cuts, "blocks", "mix") if cuts and self.moves and self.ranks and self.of != "latency" else (*cuts, "mix")
        )

    @one_blas_thread
    @bounded
    def propose(self, ratio: float, kind: str) -> PrunePlan | None:
        """The plan of one kind for a ratio; None for one that takes channels alone, a plan of its own.

        Raises:
            BudgetError: the ratio cannot be reached (unless `best_effort`).
        """
        named = {m.layer: m for m in self.ranks}
        if kind == "channels":
            found = self._reaching(ratio, lambda asked: self.study.allocate(self._alone, asked, self.how))
        elif kind == "3c":
            found, named = three_stages(self.offered, ratio, self._stage)
        else:
            cost, ranks = (self._blocks, ()) if kind == "blocks" else (self._mixed, self.ranks)
            found = self._reaching(ratio, lambda asked: self.study.allocate(cost, asked, self.how, self.moves, ranks))
        if not found.met and not self.settings.best_effort:
            raise self._out_of_reach(found.removed, ratio)
        if kind in ("blocks", "mix") and not (found.drop or found.merge or found.ways) and "channels" in self.kinds:
            return None
        return self._plan(found, ratio, {name: named[name].ways[k] for name, k in found.ways.items()})

    def _reaching(self, ratio: float, allocated: Callable[[float], Allocation]) -> Allocation:
        """What comes closest to a ratio; where widths are so coarse that this falls short, the next that does not, and
        where they overshoot, what lies a hair below."""
        found = more = allocated(ratio)
        if found.removed > ratio + COARSE and ratio > HAIR:
            less = replace(allocated(ratio - HAIR), asked=ratio)
            return less if ratio - HAIR <= less.removed < found.removed else found
        step = max(TOLERANCE, ratio - found.removed)
        for k in range(1, STEPS_UP + 1):
            if more.met or self.settings.best_effort or ratio + k * step >= 1:
                break
            more = replace(allocated(ratio + k * step), asked=ratio)
        return more if more.met else found

    def _stage(self, ranks: Sequence[RankMove], ratio: float, channels: bool) -> Allocation:
        """One stage of a recipe."""
        known = self.study if channels else replace(self.study, limits=Limits(include=r"(?!)"))
        return known.allocate(self.prices.model(ranks), ratio, self.how, self.moves, ranks)

    def plan(self, ratio: float, larger: PrunePlan | None = None) -> PrunePlan:
        """The plan for a ratio: the better one of those that reach it, unless a simple one is better (`rivals`).

        Args:
            ratio: share of the cost to remove.
            larger: the plan of a larger ratio, which serves this one too where it does less damage.

        Raises:
            BudgetError: the ratio cannot be reached (unless `best_effort`).
        """
        found, missed = [], []
        for kind in self.kinds:
            try:
                found.append(self.propose(ratio, kind))
            except OutOfReachError as error:
                missed.append(error)
        plans = [p for p in found if p is not None]
        if not plans:
            raise max(missed, key=lambda error: error.removed)
        if self.settings.best_effort and len(plans) > 1:  # otherwise all of them reach it
            plans = [p for p in plans if 1 - 1 / self.gain(p) >= ratio - TOLERANCE] or [max(plans, key=self.gain)]
        return self._unbeaten(self.better(plans), ratio, larger)

    @one_blas_thread
    @bounded
    def _unbeaten(self, plan: PrunePlan, ratio: float, larger: PrunePlan | None) -> PrunePlan:
        """The plan, or one that does less damage for as much."""
        weighed = self.how == "adaptive" and self.candidates.channels and not self.candidates.staged
        rivals = [self._plan(a, ratio, {}) for a in simple(self.study, self._alone, ratio)] if weighed else []
        beside = rivals or larger is not None
        return plan if not beside or self._contest is None else unbeaten(self._contest, plan, rivals, larger)

    @cached_property
    def _contest(self) -> Contest | None:
        """Where a plan and its rivals are compared; None where there are no samples."""
        settings, samples, net = self.settings, self.subject.partition(self.settings.seed), self.subject.net
        if samples is None:
            return None
        learn = first_batches(samples.learn, COMPARED, net.batch)
        judges = first_batches(samples.judge, net.judged(COMPARED), min(net.batch, RIVAL_BATCH))
        repair = REPAIRS[settings.repair or WITH_SAMPLES]
        own = {name: getattr(settings, name) for name in repair.options}
        mending = Mending(repair, learn, options=own, threads=settings.threads, seed=settings.seed)
        return Contest(Compared(net, mending, judges, settings.threads), settings.threads)

    def _out_of_reach(self, removed: float, ratio: float) -> OutOfReachError:
        why = why_not(self.candidates.net.channels)
        if not self.ranks and not {"channels", "blocks"} & set(self.settings.kinds()):
            why = "no layer gets cheaper by a lower rank (float16 and quantized ones are never made of two)"
        words = f"only {removed:.1%} of the {self.of} can go, not {ratio:.1%}: {why}; ask for less or add --best-effort"
        return OutOfReachError(words, removed)

    @one_blas_thread
    @bounded
    def better(self, plans: Sequence[PrunePlan]) -> PrunePlan:
        """The plan whose repaired network does least damage to the outputs; the first among equals."""
        if len(plans) == 1 or self._contest is None:
            return plans[0]
        return self._contest.best(plans, self._report("compare"))

    def unrepaired(self, plan: PrunePlan) -> onnx.ModelProto:
        """The plan carried out, neither checked nor repaired: as large and as fast as the outcome."""
        return apply_edits(self.subject.net, plan.edits).model

    def gain(self, plan: PrunePlan) -> float:
        """Old cost over new, as the cost model sees it."""
        return self.prices.gain(plan, self.offered)

    def _plan(self, found: Allocation, ratio: float, ways: Mapping[str, Way]) -> PrunePlan:
        channels, blocks = self.candidates.net.channels, {b.name: b for b in self.candidates.blocks}
        widths, out = {g.name: g.width for g in channels.groups}, (*found.drop, *found.merge)
        edits: tuple[Edit, ...] = (
            *(KeepChannels(n, widths[n], keep) for n, keep in found.keep.items() if keep),
            *(edit_of(blocks[name], channels) for name in found.drop),
            *(self.candidates.runs[name].edit for name in found.merge),
            *(Factorize(name, kind, rank) for name, way in self._outside(ways, out) for kind, rank in way),
        )
        settings = self.settings
        came_to = {"of": self.of, "criterion": self.criterion, "allocation": self.how, "methods": settings.kinds()}
        return PrunePlan(
            self.subject.digest,
            edits,
            origin_of(self.subject, settings.decided(came_to), ratio=ratio),
            by_likeness=CRITERIA[self.criterion].merges,
            prune_statistics=bool(channels.inexact),
            seed=settings.seed,
            batch=settings.batch,
            providers=settings.providers,
        )

    def _outside(self, ways: Mapping[str, Way], drop: Collection[str]) -> list[tuple[str, Way]]:
        """The layers that are made of two, without those in blocks that go."""
        gone = {node for block in self.candidates.blocks if block.name in drop for node in block.nodes}
        return [(name, way) for name, way in ways.items() if name not in gone]


def counted(
    data: Calibration, phase: str, progress: Progress | None, size: int = BATCH
) -> Iterator[Mapping[str, np.ndarray]]:
    """The samples in batches, with word of how many are done."""
    report = None if progress is None else lambda k, n: progress(phase, k, n)
    return partition.counted(data, size, report)
