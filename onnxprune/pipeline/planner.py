"""From settings to a plan: what is known of the model, found once and asked at any ratio.

    candidates (what may be done) → study (what it breaks) → prices (what it saves) → propose → compare

A `Planner` looks at the samples once (`decide.study`), tries the blocks and ranks that may go, prices all of it, and
turns ratios into plans. Where blocks go or ranks fall, plans compete: the mix, and channels alone. Damages of
single edits only add up roughly, so the one whose network is closest to the original once it is cut and repaired is
taken (`compare`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
import onnx

from onnxprune.decide.adaptive import BlockMove
from onnxprune.decide.allocation import TOLERANCE, Allocation
from onnxprune.decide.blocks import AnyBlock
from onnxprune.decide.criteria import CRITERIA
from onnxprune.decide.limits import Limits
from onnxprune.decide.ranks import RankMove
from onnxprune.decide.runs import Run
from onnxprune.decide.staged import three_stages
from onnxprune.errors import OutOfReachError, UnsupportedError
from onnxprune.parallel import bounded, one_blas_thread
from onnxprune.pipeline.asked import Progress, check_device, report_of
from onnxprune.pipeline.block_trials import edit_of
from onnxprune.pipeline.candidates import why_not
from onnxprune.pipeline.finishing import check_finish
from onnxprune.pipeline.looking import Looking
from onnxprune.pipeline.nearby import MOST as TRIED
from onnxprune.pipeline.nearby import NO_FACTORS, NOTHING_LOST, Factors, Tried, factors_of, nearby
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.origin import origin_of
from onnxprune.pipeline.prices import Prices, time_merges, time_network
from onnxprune.pipeline.resolutions import Sizes, Smaller, rest_of
from onnxprune.pipeline.rivals import hopeful, simple, unbeaten
from onnxprune.pipeline.settings import Settings
from onnxprune.plan import Edit, Factorize, KeepChannels, PrunePlan
from onnxprune.rewrite.apply import apply_edits
from onnxprune.timing.pair_times import Way

T = TypeVar("T")
BATCH = 32
COARSE, HAIR = 0.02, 0.002
"""An overshoot that tells of coarse widths, and what may be missing then: half of a power of two channels is often a
little less than half of the cost."""
CUTS = "channels", "blocks", "mix"
"""Kinds of plans that cut the network."""
SMALLER, SECOND = "smaller", "second"
"""Kinds of plans whose network sees a smaller input: of the most promising size, and of the next."""
CLEARLY = 0.75
"""A smaller input pays where it does so many times the damage of other plans, as they are compared, or less: cuts win
more by the thorough repair that follows. A ResNet-20 at -90% with 0.136 instead of 0.161 had 86.7 instead of 87.4% of
test images right, a VGG with 0.057 instead of 0.067 90.0 instead of 89.7%; EfficientNet-Lite0 at half its MACs does
0.32 instead of 0.60."""
MOST = 0.97
"""The largest share of the cost for which damages are predicted."""
STEPS_UP = 8
"""Ratios above the one asked for that are tried where the widths allowed fall short of it."""


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
        sizes: at which the network may see its input.

    Raises:
        UnsupportedError: nothing can be pruned; the message names the most common reasons.
    """

    @one_blas_thread
    @bounded
    def __init__(
        self, subject: Subject, settings: Settings, progress: Progress | None = None, *, leave: Collection[str] = ()
    ):
        self.subject, self.settings, self.progress = subject, settings, progress
        self.of = settings.of or "macs"
        check_device(settings)
        check_finish(subject, settings)
        subject.check_timing(settings)
        self.looking = Looking(subject, settings, leave, progress)
        self.criterion, self.how, self.candidates = self.looking.criterion, self.looking.how, self.looking.candidates
        self.study = self.looking.study()
        self.moves = self._try_blocks()
        times = time_network(subject, settings, self._report("time"))
        standing = [b.nodes for b in self.candidates.blocks], [b.name for b in self.candidates.blocks]
        merges, ones = self._becoming(lambda run: run.edit), time_merges(subject, settings)
        self.prices = Prices(self.candidates.net, self.of, *standing, times, merges, ones)
        self.offered = self.looking.rank_moves()
        self.ranks = () if self.candidates.staged else self.prices.best(self.offered)
        if settings.methods is None and not (self.candidates.groups or self.moves or self.ranks):
            raise UnsupportedError(f"nothing can be pruned: {why_not(self.candidates.net.channels)}")
        self.sizes = Sizes.of(self.looking, self.of, self._report("resolution"))
        self._known: Tried | None = None
        self._alone = self.prices.channels_alone()
        self._blocks = self.prices.model(())
        self._mixed = self.prices.model(self.ranks)
        if ones is not None:
            ones.save()
        asked = settings.methods is not None and "resolution" in settings.methods
        if asked and not (self.candidates.channels or self.moves or self.offered or self.sizes):
            raise UnsupportedError("nothing can be pruned: no block can go, and the network can see no smaller input")

    def _try_blocks(self) -> tuple[BlockMove, ...]:
        """The blocks, with what their going, or becoming one layer, does to the outputs."""
        blocks, inside, damages = self.candidates.blocks, self.candidates.inside, self.looking.damages
        if not blocks or self.study.trials is None:
            return ()
        gone = damages([b for b in blocks if b.name in self.candidates.dropped], "block")
        hurt = damages(list(self.candidates.runs.values()), "merge")
        merged = self._becoming(lambda run: (run.name, hurt[run.name]))
        return tuple(BlockMove(b.name, gone.get(b.name), inside(b), b.group, merged.get(b.name, ())) for b in blocks)

    def _becoming(self, told: Callable[[Run], T]) -> dict[str, list[T]]:
        """Block -> what is told of each of the layers that it may become, the smallest first."""
        found: dict[str, list[T]] = {}
        for run in self.candidates.runs.values():
            found.setdefault(run.block.name, []).append(told(run))
        return found

    def _report(self, phase: str) -> Callable[[int, int], None] | None:
        return report_of(self.progress, phase)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The ways to spend a budget that compete: channels alone, these and blocks, the mix of channels, blocks
        and ranks, and a smaller input with as much of the mix as it still takes. Where times count, all but the
        second."""
        if self.candidates.staged:
            return ("3c",)
        cuts, smaller = ("channels",) if self.candidates.channels else (), (SMALLER,) if self.sizes else ()
        if not (self.moves or self.ranks or not (cuts or smaller)):
            return (*cuts, *smaller)
        blocks = ("blocks",) if cuts and self.moves and self.ranks and self.of != "latency" else ()
        return (*cuts, *blocks, "mix", *smaller)

    @one_blas_thread
    @bounded
    def propose(self, ratio: float, kind: str, factors: Factors = NO_FACTORS) -> PrunePlan | None:
        """The plan of one kind for a ratio; None for one that takes channels alone, a plan of its own.

        Args:
            ratio: share of the cost to remove.
            kind: one of `kinds`.
            factors: by which damages are multiplied.

        Raises:
            BudgetError: the ratio cannot be reached (unless `best_effort`).
        """
        if kind in (SMALLER, SECOND):
            return self._smaller(ratio, kind)
        named, study = {m.layer: m for m in self.ranks}, self.study.dearer(factors)
        moves, ranks = [m.dearer(factors) for m in self.moves], [m.dearer(factors) for m in self.ranks]
        if kind == "channels":
            found = self._reaching(ratio, lambda asked: study.allocate(self._alone, asked, self.how))
        elif kind == "3c":
            found, named = three_stages(self.offered, ratio, self._stage)
        else:
            cost, ranks = (self._blocks, []) if kind == "blocks" else (self._mixed, ranks)
            found = self._reaching(ratio, lambda asked: study.allocate(cost, asked, self.how, moves, ranks))
        if not found.met and not self.settings.best_effort:
            raise self._out_of_reach(found.removed, ratio)
        if kind in ("blocks", "mix") and not (found.drop or found.merge or found.ways) and "channels" in self.kinds:
            return None
        return self._plan(found, ratio, {name: named[name].ways[k] for name, k in found.ways.items()})

    def _smaller(self, ratio: float, kind: str) -> PrunePlan | None:
        """A plan whose network sees a smaller input, and loses as much more as the ratio still asks for; None where
        no size promises less damage. Where nothing else may go, the largest input that does."""
        others = [k for k in self.kinds if k != SMALLER][::-1]
        if not others:
            found = self.sizes.reaching(ratio - TOLERANCE)
            if found is None or (found.saved < ratio - TOLERANCE and not self.settings.best_effort):
                raise self._out_of_reach(0.0 if found is None else found.saved, ratio)
            return None if kind == SECOND else self._seen(found, ratio)
        sizes = self.sizes.promising(ratio, self.path, COARSE)[(SMALLER, SECOND).index(kind) :]
        if not sizes:
            return None
        size, rest = sizes[0], rest_of(ratio, sizes[0])
        if rest <= HAIR:
            return self._seen(size, ratio)
        plan = next(p for p in (self.propose(rest, k) for k in others) if p is not None)
        return replace(plan, edits=(size.edit, *plan.edits), origin=replace(plan.origin, ratio=ratio))

    def _seen(self, size: Smaller, ratio: float) -> PrunePlan:
        """The plan whose network sees a smaller input, and is whole."""
        plan = self._plan(Allocation(keep={}, asked=ratio, removed=size.saved), ratio, {})
        return replace(plan, edits=(size.edit,))

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

    def plan(self, ratio: float, larger: PrunePlan | None = None, *, learns: bool = False) -> PrunePlan:
        """The plan for a ratio: the better one of those that reach it, unless a simple one is better (`rivals`).

        Args:
            ratio: share of the cost to remove.
            larger: the plan of a larger ratio, which serves this one too where it does less damage.
            learns: whether what was found for other ratios that were asked for so is where the search for near plans
                begins; otherwise a plan depends on its ratio alone.

        Raises:
            BudgetError: the ratio cannot be reached (unless `best_effort`).
        """
        found, missed = dict[str, PrunePlan | None](), []
        for kind in self.kinds:
            try:
                found[kind] = self.propose(ratio, kind)
            except OutOfReachError as error:
                missed.append(error)
        plans = [p for p in found.values() if p is not None]
        if not plans:
            raise max(missed, key=lambda error: error.removed)
        if self.settings.best_effort and len(plans) > 1:  # otherwise all of them reach it
            plans = [p for p in plans if self._reaches(ratio, p)] or [max(plans, key=self.gain)]
        best = self.better(plans)
        if SMALLER in self.kinds and best.resampled() and (second := self.propose(ratio, SECOND)) is not None:
            best = self.better([best, second])
        cuts = {kind: p for kind, p in found.items() if p is not None and p in plans}
        return self._unbeaten(self.near(best, cuts, learns=learns)[0], ratio, larger)

    def _reaches(self, ratio: float, plan: PrunePlan) -> bool:
        return 1 - 1 / self.gain(plan) >= ratio - TOLERANCE

    @one_blas_thread
    @bounded
    def near(
        self, plan: PrunePlan, plans: Mapping[str, PrunePlan], *, learns: bool = False
    ) -> tuple[PrunePlan, Callable[[float], PrunePlan | None]]:
        """The plan, or a better one near those that cut, where that can be told and there is something to win.

        Args:
            plan: the best one.
            plans: kind -> plan, as they were proposed for the ratios that they remember.
            learns: as for `plan`.

        Returns:
            It, and what proposes the like of it for another ratio.
        """
        kind, contest = next((k for k, p in plans.items() if p == plan), SECOND), self.looking.contest
        names = [*(self.study.damages or {}), *(m.name for m in self.moves), *(m.layer for m in self.ranks)]
        tries = self._tries(plan, kind, len(names))
        if contest is None or not tries:
            return plan, partial(self.propose, kind=kind)
        cuts = {k: p for k, p in plans.items() if k in CUTS}

        def propose(kind: str, factors: Factors) -> PrunePlan | None:
            ratio = cuts[kind].origin.ratio or 0.0
            try:
                found = self.propose(ratio, kind, factors)
            except OutOfReachError:
                return None
            return found if found is not None and self._reaches(ratio, found) else None

        seed, progress = self.settings.seed, self._report("nearby")
        known = self._known if learns else None
        best = nearby(contest, cuts, names, propose, tries, known=known, seed=seed, progress=progress)
        if learns and best.factors.any():
            self._known = best
        return best.plan, partial(self.propose, kind=best.kind, factors=factors_of(names, best.factors))

    def _tries(self, plan: PrunePlan, kind: str, factors: int) -> int:
        """How many plans near a plan are tried; none where nothing can be told, hardly an answer has changed, or they
        are fewer than there are factors: 58 plans by 107 factors won a ResNet-56 nothing, at eight minutes."""
        contest = self.looking.contest if kind in CUTS else None
        tries = 0 if contest is None else self.looking.tries(TRIED)
        if contest is None or tries < factors or not self._reaches(plan.origin.ratio or 0.0, plan):
            return 0
        return tries if contest.damages([plan])[0][:, 0].mean() >= NOTHING_LOST else 0

    @one_blas_thread
    @bounded
    def _unbeaten(self, plan: PrunePlan, ratio: float, larger: PrunePlan | None) -> PrunePlan:
        """The plan, or one that does less damage for as much."""
        weighed = self.how == "adaptive" and self.candidates.channels and not self.candidates.staged
        found = simple(self.study, self._alone, ratio) if weighed else []
        contest = self.looking.contest if found or larger is not None else None
        if contest is None:
            return plan
        found = hopeful(found, self.study, float(np.mean(contest.damages([plan])[0]))) if found else []
        return unbeaten(contest, plan, [self._plan(a, ratio, {}) for a in found], larger)

    def _out_of_reach(self, removed: float, ratio: float) -> OutOfReachError:
        why = why_not(self.candidates.net.channels)
        if not self.ranks and not {"channels", "blocks"} & set(self.settings.kinds()):
            why = "no layer gets cheaper by a lower rank (float16 and quantized ones are never made of two)"
        words = f"only {removed:.1%} of the {self.of} can go, not {ratio:.1%}: {why}; ask for less or add --best-effort"
        return OutOfReachError(words, removed)

    @one_blas_thread
    @bounded
    def better(self, plans: Sequence[PrunePlan]) -> PrunePlan:
        """The plan whose repaired network does least damage to the outputs, the first among equals; one whose network
        sees a smaller input must do clearly less than the others."""
        if len(plans) == 1 or self.looking.contest is None:
            return plans[0]
        return self.looking.contest.best(
            plans, self._report("compare"), lambda plan: 1 / CLEARLY if plan.resampled() else 1.0
        )

    @one_blas_thread
    @bounded
    def damage(self, plan: PrunePlan) -> float:
        """What the plan does to the outputs once it is repaired on some samples, as plans are compared."""
        assert self.looking.contest is not None
        return float(np.mean(self.looking.contest.damages([plan])[0]))

    def judged(self) -> list[tuple[PrunePlan, float]]:
        """The plans that were carried out and judged beside each other so far, with their damage to the outputs."""
        return [] if self.looking.contest is None else self.looking.contest.judged()

    @cached_property
    def path(self) -> list[tuple[float, float]]:
        """(share of the cost that is gone, predicted damage) along the cheapest cuts, as far as it is finite."""
        if "blocks" not in self.kinds and "mix" not in self.kinds:
            found = self.study.path(self._alone, MOST)
        else:
            found = self.study.path(self._mixed, MOST, self.moves, self.ranks)
        return [(removed, damage) for removed, damage in found if math.isfinite(damage)]

    def unrepaired(self, plan: PrunePlan) -> onnx.ModelProto:
        """The plan carried out, neither checked nor repaired: as large and as fast as the outcome."""
        return apply_edits(self.subject.net, plan.edits).model

    def gain(self, plan: PrunePlan) -> float:
        """Old cost over new, as the cost model sees it."""
        saved = {s.edit: s.saved for s in self.sizes.found}
        return self.prices.gain(plan, self.offered) / float(np.prod([1 - saved[e] for e in plan.resampled()]))

    def _plan(self, found: Allocation, ratio: float, ways: Mapping[str, Way]) -> PrunePlan:
        channels, runs = self.candidates.net.channels, [self.candidates.runs[name] for name in found.merge]
        widths = {g.name: g.width for g in channels.groups}
        out = [b for b in self.candidates.blocks if b.name in found.drop]
        gone = [*out, *(run.block for run in runs)]
        edits: tuple[Edit, ...] = (
            *(KeepChannels(n, widths[n], keep) for n, keep in found.keep.items() if keep),
            *(edit_of(block, channels) for block in out if not _inside(block, gone)),
            *(run.edit for run in runs if not _inside(run.block, gone)),
            *(Factorize(n, kind, rank) for n, way in ways.items() if not _within(n, gone) for kind, rank in way),
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


def _within(node: str, gone: Sequence[AnyBlock]) -> bool:
    """Whether a node goes with a block."""
    return any(node in block.nodes for block in gone)


def _inside(block: AnyBlock, gone: Sequence[AnyBlock]) -> bool:
    """Whether a block goes with a larger one."""
    return any(set(block.nodes) < set(other.nodes) for other in gone)
