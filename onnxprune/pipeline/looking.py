"""What the samples say of one model under one set of settings, and trials of it: pure functions of a cut.

A trial depends on the model, the samples, the settings and what is cut, and on nothing else, not on what was tried
before or where. So it can be made here or elsewhere, and what came of it be kept. What is timed is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from onnxprune import __version__
from onnxprune.decide.blocks import AnyBlock
from onnxprune.decide.criteria import CRITERIA
from onnxprune.decide.ranks import RankMove, Ranks
from onnxprune.decide.runs import Run
from onnxprune.decide.study import Look, Study, look, study, trial_macs
from onnxprune.elsewhere.tasks import Evaluate, Task
from onnxprune.measure.cost import count_macs
from onnxprune.measure.gradients import Gradients
from onnxprune.measure.views import NO_VIEWS, Views
from onnxprune.parallel import bounded, one_blas_thread, with_progress
from onnxprune.pipeline.apply import apply_plan
from onnxprune.pipeline.asked import (
    Progress,
    allows,
    choices_of,
    elsewhere_of,
    engine_of,
    report_of,
    run_batch,
)
from onnxprune.pipeline.block_trials import block_damages
from onnxprune.pipeline.candidates import find_candidates
from onnxprune.pipeline.compare import COMPARED, Compared, Contest, outputs_of
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.origin import provenance_of
from onnxprune.pipeline.prices import timed_as, timed_run
from onnxprune.pipeline.rivals import BATCH as RIVAL_BATCH
from onnxprune.pipeline.settings import Settings
from onnxprune.plan import Origin, PrunePlan
from onnxprune.report.result import Result
from onnxprune.rewrite.apply import Mending
from onnxprune.rewrite.repair.refit import bytes_of_refit
from onnxprune.rewrite.repair.table import REPAIRS, WITH_SAMPLES
from onnxprune.samples.partition import Partition, first_batches
from onnxprune.timing.pair_model import AnyPair, PairModel
from onnxprune.timing.pair_times import PairTimes

BLOCK_SAMPLES = 64
"""Samples that the layers behind a dropped block are refitted on, to see its damage."""
GRADIENT_SAMPLES = 256
"""Samples of the backward passes of a gradient criterion."""
MOST_VIEWS, PLAN_VIEWS = 4, 16
"""Blends of each sample that judges, at most: single cuts, and plans."""
VIEW_MACS = 6e12
"""Multiply-accumulates that all trials together may take for there to be blends."""
TRIED_MACS, REFITTED, WRITTEN = 1.2e13, 4, 40
"""Multiply-accumulates for plans near the best ones, of which a sample that a plan is refitted on takes so many times
those of a run, and every element that a run writes counts for so many."""
FEWEST_TRIES = 32
"""Fewer are not worth the time."""
DEAR_MACS = 6e11
"""Multiply-accumulates of one plan, beyond which it is fitted on half the samples. Plans of an EfficientNet-Lite0 at
-50% do 0.91, 1.05, 1.23 (channels, blocks, the mix), 0.33 and 0.36 (smaller inputs) by 256 samples, 0.92, 1.09, 1.01,
0.35 and 0.41 by 128; at -30% 0.20, 0.24 and 0.14, or 0.23, 0.27 and 0.15. Less work for each (`Repair.glance`) saves a
sixth of the time more, but chose plans of a text recogniser that read 393 and 376 of 400 words, not 396 and 384."""
NO_PART = ("threads", "memory", "metadata")
"""Settings that no trial depends on."""


class Looking:
    """Looks at the samples, and makes trials.

    Args:
        subject: the model.
        settings: what is allowed, and where trials are made.
        leave: names of groups to leave alone.
        progress: called with (phase, done, total).

    Attributes:
        criterion, how: the criterion and the allocation that the settings come to.
        candidates: what may be done.

    Raises:
        UnsupportedError: nothing can be pruned; the message names the most common reasons.
    """

    def __init__(
        self, subject: Subject, settings: Settings, leave: Collection[str] = (), progress: Progress | None = None
    ) -> None:
        self.subject, self.settings, self.leave = subject, settings, tuple(leave)
        self.report = partial(report_of, progress)
        self.criterion, self.how = choices_of(settings, subject.calibration is not None)
        self.candidates = find_candidates(subject.net, settings, self.how, leave=leave)
        self._elsewhere = elsewhere_of(settings)

    # -- what is known ------------------------------------------------------------------------------------

    @cached_property
    def look(self) -> Look:
        """What the samples, or the weights alone, say about the channels."""
        settings = self.settings
        return look(
            self.candidates.net,
            self.subject.partition(settings.seed),
            criterion=self.criterion,
            adaptive=self.how == "adaptive",
            limits=self.candidates.limits,
            threads=settings.threads,
            seed=settings.seed,
            gradients=self._gradients(),
            learning=self.report("calibrate"),
            views=self.views,
        )

    def study(self) -> Study:
        """The same, and what each width of each group does to the outputs."""
        prices = None if self._elsewhere.idle else self._prices
        settings, limits = self.settings, self.candidates.limits
        return study(self.look, limits, prices=prices, threads=settings.threads, progress=self.report("decide"))

    def damages(self, blocks: Sequence[AnyBlock | Run], kind: str) -> dict[str, float]:
        """Block -> damage to the outputs when it goes ("block"), or becomes one layer ("merge")."""
        if self._elsewhere.idle or not blocks:
            return self._blocks(blocks)
        order = {key: k for k, key in enumerate(self.candidates.net.graph.nodes)}
        names = [b.name for b in sorted(blocks, key=lambda b: order[b.first])]
        named = {b.name: b for b in blocks}

        def here(items: Sequence[Any]) -> Iterable[float]:
            found = self._blocks([named[name] for _, name in items])
            return [found[name] for _, name in items]

        found = self._elsewhere.results(self._task, [(kind, name) for name in names], here)
        return dict(zip(names, found, strict=True))

    def rank_moves(self) -> tuple[RankMove, ...]:
        """The layers that may be made of two, with every way that is faster: as timed, here, where times count, else as
        reckoned, so that the same input gives the same plan."""
        if not self.candidates.ranked or self.look.trials is None:
            return ()
        names, timed = self._ranks.names, isinstance(self._pairs, PairTimes)
        items = [("rank", name) for name in names]
        moves: Iterator[Any] = map(self._rank, names)
        if not timed and not self._elsewhere.idle:
            moves = self._elsewhere.results(self._task, items, lambda some: (self._rank(name) for _, name in some))
        told = with_progress(moves, len(names), self.report("rank"))
        found = tuple(RankMove.of(move) for move in told if move is not None)
        self._pairs.save()
        return found

    @cached_property
    def contest(self) -> Contest | None:
        """Where plans are compared; None where there are no samples."""
        if self._compared is None:
            return None
        many = None if self._elsewhere.idle else self._compare
        return Contest(self._compared, self.settings.threads, many, holds=bytes_of_refit(self.subject.net))

    # -- trials -------------------------------------------------------------------------------------------

    @one_blas_thread
    @bounded
    def trial(self, item: Sequence[Any]) -> Any:
        """What comes of one trial, as a plain value.

        Args:
            item: what kind it is of, and which: ("group", name), ("block", name), ("merge", name), ("rank", layer)
                or ("plan", JSON); or ("result", plan), which gives all of it.
        """
        kind, name = item
        if kind == "result":
            return apply_plan(self.subject, name, self.settings)
        if kind == "group":
            return next(self.look.prices([name])).tolist()
        if kind == "rank":
            return self._rank(name)
        if kind == "plan":
            assert self._compared is not None
            return self._compared(PrunePlan.from_json(name)).tolist()
        block = self.candidates.runs[name] if kind == "merge" else self._droppable[name]
        return self._blocks([block])[name]

    def results(self, plans: Sequence[PrunePlan], progress: Progress | None) -> Iterator[Result]:
        """The plans, carried out; in order. They are not kept."""
        run = partial(apply_plan, self.subject, settings=self.settings, progress=progress)
        items = [("result", plan) for plan in plans]
        task = replace(self._task, of=None)
        found = self._elsewhere.results(task, items, lambda some: (run(plan=plan) for _, plan in some))
        return (replace(r, made=provenance_of(self.subject, self.settings, r.repair)) for r in found)

    def _prices(self, names: Sequence[str]) -> Iterator[np.ndarray]:
        """As `Look.prices`, where trials are made."""

        def here(items: Sequence[Any]) -> Iterable[list[float]]:
            return (hurt.tolist() for hurt in self.look.prices([name for _, name in items]))

        return map(np.array, self._elsewhere.results(self._task, [("group", name) for name in names], here))

    def _compare(self, plans: Sequence[PrunePlan]) -> Iterator[np.ndarray]:
        """The damages of plans, where trials are made."""
        items = [("plan", replace(plan, origin=Origin()).to_json()) for plan in plans]
        return map(np.array, self._elsewhere.results(self._task, items, lambda some: map(self.trial, some)))

    @cached_property
    def _task(self) -> Task:
        """What a worker makes trials with."""
        subject, settings = self.subject, self.settings.here()
        decided = {name: value for name, value in settings.decided().items() if name not in NO_PART}
        of = {
            "what": "a trial", "version": __version__, "model": subject.digest, "samples": subject.samples_digest,
            "settings": decided, "asked": dict(subject.asked), "axes": dict(subject.axes), "leave": self.leave,
        }  # fmt: skip
        return Task(_looking, (replace(subject, parts={}), settings, self.leave), of)

    def _blocks(self, blocks: Sequence[AnyBlock | Run]) -> dict[str, float]:
        """`damages`, in this process."""
        trials, settings, net = self.look.trials, self.settings, self.candidates.net
        assert trials is not None
        return block_damages(
            net,
            blocks,
            self._few,
            trials.judge,
            threads=settings.threads,
            seed=settings.seed,
            progress=self.report("blocks"),
        )

    def _rank(self, name: str) -> dict[str, Any] | None:
        """What may be made of a layer, as a plain value."""
        move = self._ranks.move(name, self._pairs)
        return None if move is None else move.plain()

    @cached_property
    def _ranks(self) -> Ranks:
        settings, trials = self.settings, self.look.trials
        assert trials is not None
        return Ranks(
            self.samples().learn,
            trials,
            partial(allows, settings),
            twice=self.candidates.staged,
            threads=settings.threads,
            seed=settings.seed,
        )

    @cached_property
    def _pairs(self) -> PairTimes | PairModel:
        """What tells how long a layer takes that is made of two."""
        graph, settings = self.subject.graph, self.settings
        if settings.of == "latency":
            own = timed_as(self.subject, settings, run_batch(settings))
            return PairTimes(own.graph, dict(own.shapes), engine_of(settings))
        _, shapes = timed_run(self.subject, run_batch(settings))
        return AnyPair(graph, shapes) if set(settings.kinds()) == {"rank"} else PairModel(graph, shapes)

    @cached_property
    def _droppable(self) -> dict[str, AnyBlock]:
        return {b.name: b for b in self.candidates.blocks}

    @cached_property
    def _few(self) -> list[Mapping[str, np.ndarray]]:
        """The samples that the layers behind a block are refitted on."""
        return first_batches(self.samples().learn, BLOCK_SAMPLES, self.candidates.net.batch)

    @cached_property
    def _compared(self) -> Compared | None:
        if self.subject.calibration is None:
            return None
        if self.tries(FEWEST_TRIES):
            return self.compared(COMPARED, many=True)
        dear = self.how == "adaptive" and self._plan_macs > DEAR_MACS
        return self.compared(COMPARED // 2 if dear else COMPARED)

    def compared(self, most: int, many: bool = False) -> Compared:
        """What carries plans out and judges them, where there are samples: on at most so many, and as many others;
        with less work for each plan where these are many, and more looks."""
        settings, net = self.settings, self.subject.net
        learn = first_batches(self.samples().learn, most, net.batch)
        judges = first_batches(self.samples().judge, net.judged(most), min(net.batch, RIVAL_BATCH))
        repair = REPAIRS[settings.repair or WITH_SAMPLES]
        own = {name: getattr(settings, name) for name in repair.options}
        mending = Mending(repair, learn, options=own, threads=settings.threads, seed=settings.seed)
        views = self.views.more(PLAN_VIEWS, judges) if many else self.views
        return Compared(net, mending, judges, settings.threads, views, many)

    @cached_property
    def views(self) -> Views:
        """What blends the samples that judge plans, where there is time for that and they are images of classes."""
        parts, net = self.subject.partition(self.settings.seed), self.candidates.net
        if parts is None or self.how != "adaptive" or parts.judge.shared:
            return NO_VIEWS
        macs = trial_macs(net, self.candidates.limits)
        return Views.of(
            net,
            first_batches(parts.judge, COMPARED, net.batch),
            lambda feeds: outputs_of(net.model, list(net.graph.outputs), [feeds], self.settings.threads)[0],
            lambda images: min(MOST_VIEWS, int(VIEW_MACS / max(1.0, macs * images)) - 1),
            self.settings.seed,
        )

    def tries(self, most: int) -> int:
        """How many more plans may be cut and judged, `most` of them where that is quick; none where judges cannot tell
        plans apart that are near one another."""
        if not self.views:
            return 0
        tries = int(TRIED_MACS / self._plan_macs)
        return min(most, tries) if tries >= FEWEST_TRIES else 0

    @cached_property
    def _plan_macs(self) -> float:
        """Multiply-accumulates that a plan takes to be repaired and judged, more or less."""
        net, fitted = self.candidates.net, min(COMPARED, len(self.samples().learn))
        written = sum(math.prod(net.shapes.get(o, ())) for node in net.graph.nodes.values() for o in node.output)
        run = count_macs(net.graph, net.shapes, net.channels.ran) + WRITTEN * written
        return max(1.0, run * REFITTED * fitted)

    def samples(self) -> Partition:
        """The samples, where it is known that there are some."""
        parts = self.subject.partition(self.settings.seed)
        assert parts is not None
        return parts

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
            first_batches(self.samples().judge, GRADIENT_SAMPLES, self.candidates.net.batch),
            labelled=labelled,
            seed=settings.seed,
            threads=settings.threads,
        )


def _looking(payload: tuple[Subject, Settings, Sequence[str]]) -> Evaluate:
    """In a worker: what makes trials."""
    subject, settings, leave = payload
    return Looking(subject, settings, leave).trial
