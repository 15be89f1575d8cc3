"""From settings to a plan: what is known of the model, found once and asked at any ratio.

A `Planner` looks at the samples once (`decide.study`), prices the model (`measure.cost`) and the blocks that may go
(`blocks`), and turns ratios into plans. Where blocks go or ranks fall, two plans compete: the mix, and channels
alone. Damages of single cuts only add up roughly, so the one whose network is closest to the original once it is cut
and repaired is taken (`stitched`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import onnx

from onnxprune.channels import Analysed, ChannelGroup, Channels, common_reasons
from onnxprune.decide.allocation import TOLERANCE, Allocation, BlockMove, Limits
from onnxprune.decide.blocks import AnyBlock, all_blocks, may_go
from onnxprune.decide.ranks import RankMove, find_ranks
from onnxprune.decide.staged import three_stages
from onnxprune.decide.study import GRADIENT, Samples, study
from onnxprune.errors import OutOfReachError, UnsupportedError, UsageError
from onnxprune.graph.layers import products
from onnxprune.graph.shapes import observe
from onnxprune.measure.cost import CostModel, PairCost, switches
from onnxprune.parallel import one_blas_thread
from onnxprune.pipeline.block_trials import block_damages, edit_of
from onnxprune.pipeline.compare import best
from onnxprune.pipeline.settings import Settings, Subject
from onnxprune.plan import Edit, Factorize, KeepChannels, PrunePlan
from onnxprune.rewrite.drop import without
from onnxprune.rewrite.factorize import factorize
from onnxprune.samples.calibration import Calibration
from onnxprune.timing.node_times import NodeTimes, node_times
from onnxprune.timing.pair_times import PairTimes, Way

BATCH = 32
LARGEST_BRANCH = 0.75
"""Share of the MACs up to which what a Concat appends is a branch; with more it is the trunk."""
PRICE_SAMPLES = 64
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
    """Plans for one model under one set of settings. `settings.ratio` plays no part.

    Args:
        subject: the model.
        settings: what counts and what is allowed.
        progress: called with (phase, done, total).
        leave: names of groups to leave alone.

    Raises:
        UnsupportedError: nothing can be pruned; the message names the most common reasons.
    """

    @one_blas_thread
    def __init__(
        self, subject: Subject, settings: Settings, progress: Progress | None = None, *, leave: Collection[str] = ()
    ):
        self.subject, self.settings, self.progress = subject, settings, progress
        subject.check_timing(settings)
        self.of = settings.of or "macs"
        groups = tuple(g for g in subject.channels.groups if g.name not in leave)
        self.channels = channels = replace(subject.channels, groups=groups)
        if not channels.groups and not {"blocks", "rank", "3c"} & set(settings.kinds()):
            raise UnsupportedError(f"nothing can be pruned: {why_not(channels)}")
        limits = settings.limits()
        self.criterion, self.how = settings.choices(subject.calibration is not None)
        self.blocks = self._blocks()
        self.ranked = bool({"rank", "3c"} & set(settings.kinds())) and self.how == "adaptive" and self.of != "channels"
        if not any(limits.allows(g) for g in channels.groups) and not self.blocks and not self.ranked:
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
        from onnxprune.train.recipe import Recipe

        subject, settings = self.subject, self.settings
        labelled = None if settings.recipe is None else Recipe(settings.recipe, subject.graph.inputs)
        return gradient_scores(
            Analysed(subject.graph, self.channels, subject.feeds),
            self._fitting().few(GRADIENT_SAMPLES),
            self.criterion,
            labelled=labelled,
            seed=settings.seed,
            threads=settings.threads,
        )

    def _refuse(self) -> None:
        if {"rank", "3c"} & set(self.settings.kinds()) and self.of == "channels":
            raise UsageError("--of channels counts nothing that a lower rank saves; use macs, params or latency")
        if not self.channels.groups:
            raise UnsupportedError(f"nothing can be pruned: {why_not(self.channels)}")
        if "channels" not in self.settings.kinds():
            if self.how != "adaptive":
                words = ",".join(self.settings.kinds())
                raise UsageError(f"--methods {words} needs samples and the adaptive allocation; give --calib")
            raise UnsupportedError(
                "no block can go: there is none, or --keep-block, --include and --exclude keep them all"
            )
        raise UsageError("--include and --exclude leave no group to cut; `onnxprune inspect` lists the groups")

    def _report(self, phase: str) -> Callable[[int, int], None] | None:
        progress = self.progress
        return None if progress is None else lambda k, n: progress(phase, k, n)

    def _blocks(self) -> tuple[AnyBlock, ...]:
        if "blocks" not in self.settings.kinds() or self.how != "adaptive":
            return ()
        asked = Limits(include=self.settings.include, exclude=self.settings.exclude)
        found = all_blocks(self.subject.graph, self.channels, self.settings.keep_block)
        macs = {layer.key: layer.macs for layer in products(self.subject.graph, self.channels.shapes)}
        most = LARGEST_BRANCH * sum(macs.values())
        return tuple(
            b
            for b in found
            if may_go(b, self.subject.graph, self.channels, asked)
            and (b.group is None or sum(macs.get(k, 0) for k in b.nodes) <= most)
        )

    @cached_property
    def times(self) -> NodeTimes | None:
        """What the nodes take, where that counts."""
        if self.of != "latency":
            return None
        feeds, shapes = self._timed
        return node_times(self.subject.graph, feeds, shapes, engine=self.settings.engine, progress=self._report("time"))

    @cached_property
    def _timed(self) -> tuple[Mapping[str, np.ndarray], Mapping[str, tuple[int, ...]]]:
        """(the inputs of a timed run, sizes of all tensors in it)."""
        feeds = self.subject.timed(self.settings.batch)
        same = all(v.shape == self.subject.feeds[k].shape for k, v in feeds.items())
        return feeds, self.channels.shapes if same else observe(self.subject.graph, feeds).shapes

    @cached_property
    def cost(self) -> CostModel:
        """What counts."""
        return self._cost(self.ranks)

    def _cost(self, ranks: Sequence[RankMove]) -> CostModel:
        inside = [block.nodes for block in self.blocks]
        pairs = [PairCost(m.layer, self._price(m)) for m in ranks]
        return CostModel(self.subject.graph, self.channels, self.of, blocks=inside, times=self.times, pairs=pairs)

    def _price(self, move: RankMove) -> np.ndarray:
        """(ways, 3) cost of a layer's ways, in the unit that counts."""
        if self.of == "latency":
            assert self.times is not None
            return move.times * self.times.nodes.get(move.layer, 0.0)
        return move.params if self.of == "params" else move.macs

    @cached_property
    @one_blas_thread
    def all_ranks(self) -> tuple[RankMove, ...]:
        """The layers that may be made of two, with every way that is measurably faster."""
        trials = self.study.trials
        if not self.ranked or trials is None:
            return ()
        three = "3c" in self.settings.kinds()
        return find_ranks(
            self.subject.graph,
            self.subject.channels.shapes,
            self._fitting().batches,
            trials,
            self.settings.allows,
            PairTimes(self.subject.graph, dict(self._timed[1]), self.settings.engine),
            twice=three,
            threads=self.settings.threads,
            seed=self.settings.seed,
            progress=self._report("rank"),
        )

    @cached_property
    def ranks(self) -> tuple[RankMove, ...]:
        """The same, with the ways that nothing beats in what counts."""
        if "3c" in self.settings.kinds():
            return ()
        return tuple(m.best_by(self._price(m).sum(1)) for m in self.all_ranks if self._price(m).any())

    @cached_property
    def alone(self) -> CostModel:
        """The same, for channels alone."""
        if not self.blocks and not self.ranks:
            return self.cost
        return CostModel(self.subject.graph, self.channels, self.of, times=self.times)

    @cached_property
    @one_blas_thread
    def moves(self) -> tuple[BlockMove, ...]:
        """The blocks, with what their going does to the outputs."""
        trials = self.study.trials
        if not self.blocks or trials is None:
            return ()
        found = block_damages(
            self.subject.graph,
            self.channels,
            self.blocks,
            self._fitting().some(PRICE_SAMPLES),
            trials.judge,
            threads=self.settings.threads,
            seed=self.settings.seed,
            progress=self._report("blocks"),
        )
        inside = [
            frozenset([*(g.name for g in self.channels.groups if self._within(g, b)), *b.nodes]) for b in self.blocks
        ]
        return tuple(
            BlockMove(b.name, found[b.name], names, b.group) for b, names in zip(self.blocks, inside, strict=True)
        )

    def _within(self, group: ChannelGroup, block: AnyBlock) -> bool:
        """Whether everything that carries the group's channels lies inside the block, or goes with it."""
        if group.name == block.group:
            return True
        producer, nodes = self.subject.graph.producer, set(block.nodes) - {block.end}
        return all((s.use[0] or producer.get(s.tensor, "")) in nodes for s in group.slices)

    def _fitting(self) -> Samples:
        found = _samples(self.subject, self.settings, None)
        assert found is not None
        return found

    @property
    def kinds(self) -> tuple[str, ...]:
        """The ways to spend a budget that compete: channels alone, and the mix of channels, blocks and ranks."""
        if "3c" in self.settings.kinds():
            return ("3c",)
        cuts = ("channels",) if "channels" in self.settings.kinds() and self.channels.groups else ()
        return (*cuts, "mix") if self.moves or self.ranks or not cuts else cuts

    @one_blas_thread
    def propose(self, ratio: float, kind: str) -> PrunePlan | None:
        """The plan of one kind for a ratio; None for a mix that drops no block (channels alone are the plan then).

        Raises:
            BudgetError: the ratio cannot be reached (unless `best_effort`).
        """
        named = {m.layer: m for m in self.ranks}
        if kind == "channels":
            found = self._reaching(ratio, lambda asked: self.study.allocate(self.alone, asked, self.how))
        elif kind == "3c":
            found, named = three_stages(self.all_ranks, ratio, self._stage)
        else:
            found = self._reaching(
                ratio, lambda asked: self.study.allocate(self.cost, asked, self.how, self.moves, self.ranks)
            )
        if not found.met and not self.settings.best_effort:
            raise self._out_of_reach(found.removed, ratio)
        if kind == "mix" and not found.drop and not found.ways and "channels" in self.kinds:
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
        return known.allocate(self._cost(ranks), ratio, self.how, self.moves, ranks)

    def plan(self, ratio: float) -> PrunePlan:
        """The plan for a ratio: the better one of those that reach it.

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
        return self.better(plans)

    def _out_of_reach(self, removed: float, ratio: float) -> OutOfReachError:
        why = why_not(self.channels)
        if not self.ranks and not {"channels", "blocks"} & set(self.settings.kinds()):
            why = "no layer gets cheaper by a lower rank (float16 and quantized ones are never made of two)"
        words = f"only {removed:.1%} of the {self.of} can go, not {ratio:.1%}: {why}; ask for less or add --best-effort"
        return OutOfReachError(words, removed)

    @one_blas_thread
    def better(self, plans: Sequence[PrunePlan]) -> PrunePlan:
        """The plan whose repaired network does least damage to the outputs; the first among equals."""
        if len(plans) == 1:
            return plans[0]
        return best(
            self.subject.graph,
            self.subject.channels,
            plans,
            self._fitting(),
            self.subject.feeds,
            repair=self.settings.repair or "refit",
            threads=self.settings.threads,
            progress=self._report("compare"),
        )

    def cut(self, plan: PrunePlan) -> onnx.ModelProto:
        """The plan carried out, neither checked nor repaired: as large and as fast as the outcome."""
        model = without(self.subject.graph, self.subject.channels, plan.edits)
        return factorize(model, plan.factorized(), self.subject.feeds) if plan.factorized() else model

    def gain(self, plan: PrunePlan) -> float:
        """Old cost over new, as the cost model sees it."""
        gone = set(plan.blocks())
        ways: dict[str, Way] = {}
        for e in plan.factorized():
            ways[e.node] = (*ways.get(e.node, ()), (e.kind, e.rank))
        chosen = [m.at([m.ways.index(ways[m.layer])]) for m in self.all_ranks if ways.get(m.layer) in m.ways]
        standing = np.array([float(b.name not in gone) for b in self.blocks] + [switches(2)[0]] * len(chosen))
        cost = self._cost(chosen)
        return cost.total / cost(self.subject.channels.alive(plan.keep()), standing)

    def _plan(self, found: Allocation, ratio: float, ways: Mapping[str, Way]) -> PrunePlan:
        widths = {g.name: g.width for g in self.channels.groups}
        blocks = {b.name: b for b in self.blocks}
        edits: tuple[Edit, ...] = (
            *(KeepChannels(n, widths[n], keep) for n, keep in found.keep.items() if keep),
            *(edit_of(blocks[name], self.channels) for name in found.drop),
            *(Factorize(name, kind, rank) for name, way in self._outside(ways, found.drop) for kind, rank in way),
        )
        decided: Mapping[str, object] = {
            "ratio": ratio,
            "of": self.of,
            "criterion": self.criterion,
            "allocation": self.how,
            "methods": list(self.settings.kinds()),
            "seed": self.settings.seed,
            "prune_statistics": bool(self.channels.inexact),
        }
        if self.settings.batch > 1 or not self.settings.engine.on_cpu:
            decided = {**decided, "batch": self.settings.batch, "providers": list(self.settings.providers)}
        return PrunePlan(self.subject.digest, edits, decided)

    def _outside(self, ways: Mapping[str, Way], drop: Collection[str]) -> list[tuple[str, Way]]:
        """The layers that are made of two, without those in blocks that go."""
        gone = {node for block in self.blocks if block.name in drop for node in block.nodes}
        return [(name, way) for name, way in ways.items() if name not in gone]


def _samples(subject: Subject, settings: Settings, progress: Progress | None) -> Samples | None:
    """The fitting part of the calibration samples, parted again: to learn from, and to judge by."""
    if subject.calibration is None:
        return None
    learnt, judges = subject.calibration.split(seed=settings.seed)[0].split(seed=settings.seed)
    return Samples(lambda size: counted(learnt, "calibrate", progress, size), judges.batches)


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
