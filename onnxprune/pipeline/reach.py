"""The smallest change that reaches a target, measured on this machine.

A plan that a loop proposes is cut but not repaired, since weights do not change how long a model runs or how large its
file is. Only a metric needs the repaired network. What is measured, and what is said of it, the target knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePath

import onnx

from onnxprune.errors import BudgetError, UsageError
from onnxprune.measure.figures import DROPS
from onnxprune.measure.metric import Agreement, Labelled, Metric, agreement, open_metric
from onnxprune.pipeline.apply import apply_plan
from onnxprune.pipeline.asked import Progress, unrefined
from onnxprune.pipeline.candidates import why_not
from onnxprune.pipeline.finishing import AT_A_TIME, Finishing, finish_of
from onnxprune.pipeline.gates import Drop
from onnxprune.pipeline.goals import Aim, Gain, Kept, Target
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.origin import sign
from onnxprune.pipeline.planner import BATCH, Planner
from onnxprune.pipeline.profiling import said_of
from onnxprune.pipeline.refining import correction
from onnxprune.pipeline.search import close_loop, largest
from onnxprune.pipeline.settings import Settings
from onnxprune.pipeline.studied import studied
from onnxprune.pipeline.timed import paired
from onnxprune.pipeline.transfer import with_structure
from onnxprune.plan import PrunePlan
from onnxprune.protobuf.serialize import byte_size
from onnxprune.report.result import Result
from onnxprune.report.search import Search, Tried

MEASURE_ROUNDS = 20
"""Rounds of one measurement in a closed loop; the finished model gets 40."""
RETRIES = 3
"""How often a target that the finished model misses by noise is aimed at again."""


def reach(
    subject: Subject,
    target: Target,
    settings: Settings | None = None,
    *,
    metric: str | Metric | None = None,
    progress: Progress | None = None,
) -> Result:
    """The smallest change that reaches a target, measured on this machine.

        subject = onnxprune.open_model("model.onnx", calibration=batches)
        result = onnxprune.reach(subject, Target("speedup", 2.0))

    For a gain (a speed-up, milliseconds, megabytes): plan, cut, measure original and candidate, correct, until what
    was asked for holds. For a drop: the largest cut whose repaired network keeps the metric.

    Args:
        subject: from `open_model`.
        target: what to reach.
        settings: everything else that decides.
        metric: for "max_drop": as `--eval`, with a figure of the labels behind it where it is not the usual one
            ("labelled.npz:box_map50"); a function of a model that returns a number, the higher the better; or the name
            of a figure of the outputs, such as "box_f1" (`measure.figures`), in percent; None: the figure of the part
            that decides, against the original on the held-out samples.
        progress: called with (phase, done, total).

    Raises:
        BudgetError: the target cannot be reached.
        UsageError: the original is there already.
    """
    settings, kind = target.serve(settings or Settings()), target.entry
    if not (isinstance(kind, Gain) and kind.timed):
        unrefined(settings)
    if isinstance(kind, Kept):
        return _keep(subject, target, kind, settings, metric, progress)
    assert isinstance(kind, Gain)
    return _Loop(subject, target, kind, settings, progress).run()


@dataclass(frozen=True)
class _Found:
    """A plan that reaches a goal.

    Attributes:
        plan: what was proposed.
        ratio: at which.
        propose: what proposes the like of it at another ratio.
    """

    plan: PrunePlan
    ratio: float
    propose: Callable[[float], PrunePlan | None]


class _Loop:
    """The search for a gain, and what it may measure (`goals.Measures`)."""

    def __init__(
        self, subject: Subject, target: Target, kind: Gain, settings: Settings, progress: Progress | None
    ) -> None:
        self.subject, self.target, self.kind, self.settings, self.progress = subject, target, kind, settings, progress
        self.planner = Planner(subject, settings, progress)
        self.tried: list[tuple[float, PrunePlan]] = []
        self.steps, self.alone = 0, 1.0
        self.predicts = settings.device is not None and kind.timed
        self.corrected = correction(subject, settings)
        samples = subject.partition(settings.seed)
        fit = () if samples is None else list(samples.fit.take(BATCH).batches(min(AT_A_TIME, subject.net.batch)))
        self.finish = Finishing(finish_of(settings), settings, fit)

    def size(self, plan: PrunePlan | None = None) -> int:
        """Bytes of the file; of the original without a plan."""
        if plan is None:
            return byte_size(self.subject.whole_of(self.subject.model))
        found = self.finish(self.planner.unrepaired(plan), rough=True)
        sign(found, self.subject, _remembering(plan, self.target), self.settings)
        return byte_size(self.subject.whole_of(found))

    def latency_ms(self) -> float:
        """What a run of the original takes; on the device, where one was profiled."""
        times = self.planner.prices.times
        if self.predicts and times is not None:
            return times.total_ms
        return paired(self.subject, [self.subject.model], self.settings, MEASURE_ROUNDS).timings[0].p50_ms

    def speedup(self, plan: PrunePlan) -> float:
        """The original's time over that of the plan, the two timed side by side; or what is predicted of a device."""
        if self.predicts:
            return self.corrected(self.planner.gain(plan))
        self.steps += 1
        if self.progress:
            self.progress("measure", self.steps, self.steps)
        return self._speedup(self.planner.unrepaired(plan))

    def _speedup(self, model: onnx.ModelProto) -> float:
        """The original's time over that of a model in the format that the finished one will have."""
        models = [self.subject.model, self.finish(model, rough=True)]
        return paired(self.subject, models, self.settings, MEASURE_ROUNDS).comparisons[0].speedup

    def _alone(self, aim: Aim) -> float:
        """What the format of the finished model gains with nothing removed; 1 where that stays.

        Raises:
            UsageError: that is enough.
        """
        if self.finish.how is None or self.predicts:
            return 1.0
        whole = self.subject.model
        if self.kind.timed:
            found = self._speedup(whole)
        else:
            found = byte_size(whole) / byte_size(self.finish(whole, rough=True))
        if found >= aim.goal:
            words = f"{self.finish.how.name} alone gains {found:.2f} of {aim.goal:.2f} times"
            raise UsageError(f"{words}; convert the original, or ask for more than {self.target}")
        return max(1.0, found)

    def run(self) -> Result:
        """The finished model of the plan of least gain that does."""
        aim = self.kind.aim(self.target.value, self)
        if aim.goal <= 1:
            raise UsageError(f"the original has {aim.has} already; nothing to do for {self.target}")
        goal, found, finished = aim.goal, None, None
        self.alone = self._alone(aim)
        for _ in range(RETRIES):
            found = self._again(found, aim, goal) or self._chosen(aim, goal)
            if found is None:
                break
            finished = self._finish(found.plan, aim)
            if finished[1] >= aim.goal:
                return finished[0]
            goal *= 1.01 * aim.goal / finished[1]
        result, reached = finished or self._finish(self._furthest(aim.goal), aim)
        short = f"{self.target}: the finished model misses it ({reached:.3f} of {aim.goal:.3f} times)"
        if not self.settings.best_effort:
            raise BudgetError(f"{short}; ask for a little more, or add --best-effort")
        return replace(result, warnings=(*result.warnings, short))

    def _again(self, found: _Found | None, aim: Aim, goal: float) -> _Found | None:
        """The like of what was found for another goal."""
        return None if found is None else self._closed(found.propose, aim, goal, found.ratio)

    def _chosen(self, aim: Aim, goal: float) -> _Found | None:
        """The best of the plans of each kind that reach the goal, or a better one near them that does, too."""
        found: dict[str, _Found] = {}
        start = None
        for kind in self.planner.kinds:
            closed = self._closed(partial(self.planner.propose, kind=kind), aim, goal, start)
            if closed is not None:
                found[kind], start = closed, closed.ratio
        if not found:
            return None
        best = self.planner.better([f.plan for f in found.values()])
        near, propose = self.planner.near(best, {kind: f.plan for kind, f in found.items()})
        closed = None if near is best else self._closed(propose, aim, goal, near.origin.ratio)
        plan = best if closed is None else self.planner.better([best, closed.plan])
        return next(f for f in [*found.values(), closed] if f is not None and f.plan is plan)

    def _closed(
        self, propose: Callable[[float], PrunePlan | None], aim: Aim, goal: float, start: float | None
    ) -> _Found | None:
        """The proposal of least gain that reaches the goal."""

        def measured(plan: PrunePlan) -> float:
            self.tried.append((aim.gain(plan), plan))
            return self.tried[-1][0]

        closed = close_loop(propose, measured, goal, start=start, whole=self.alone)
        return None if closed is None else _Found(closed[0], closed[1].ratio, propose)

    def _finish(self, plan: PrunePlan, aim: Aim) -> tuple[Result, float]:
        """(the finished model, its gain)."""
        ratio, plan = plan.origin.ratio, with_structure(_remembering(plan, self.target), self.subject)
        if self.predicts:
            plan = replace(plan, origin=replace(plan.origin, predicted=round(self.planner.gain(plan), 4)))
        timed = self.kind.timed and not self.predicts
        result = apply_plan(self.subject, plan, self.settings, bench=timed, progress=self.progress)
        reached = aim.gain(plan) if self.predicts else self.kind.reached(result)
        notes: tuple[str, ...] = ()
        if self.predicts:
            notes = said_of(self.subject, self.settings, f"a speed-up of {reached:.2f}x", self.planner.prices.times)
            notes += self.corrected.words
        elif self.settings.of == "latency":
            notes = (f"the latency model promised {self.planner.gain(plan):.2f}x, {reached:.2f}x was measured",)
        search = self._search(aim.goal, ratio, reached)
        return replace(result, notes=(*result.notes, *notes), search=search, studied=studied(self.planner)), reached

    def _search(self, goal: float, ratio: float | None, reached: float) -> Search | None:
        """What was measured on the way, in the target's unit."""
        if ratio is None:
            return None

        def point(ratio: float, gain: float) -> Tried:
            return Tried(ratio, self.target.value * goal / gain if self.kind.unit else gain)

        tried = tuple(point(p.origin.ratio, gain) for gain, p in self.tried if p.origin.ratio is not None and gain > 0)
        what = f"predicted {self.kind.measured}" if self.predicts else self.kind.measured
        return Search(what, self.kind.unit, self.target.value, tried, point(ratio, reached))

    def _furthest(self, goal: float) -> PrunePlan:
        """The plan that came nearest to a target out of reach, for `best_effort`.

        Raises:
            BudgetError: nothing gained anything, or best effort was not asked for.
        """
        most, plan = max(self.tried, key=lambda t: t[0], default=(1.0, None))
        if plan is not None and most > 1 and self.settings.best_effort:
            return plan
        seen = f"{self.kind.nearest(self.target.value, goal, most)}; " if self.tried else ""
        raise BudgetError(
            f"{self.target} is out of reach: {seen}{why_not(self.subject.channels)}; ask for less, or add --best-effort"
        )


def metric_of(subject: Subject, settings: Settings, metric: str | Metric | None) -> Metric:
    """What a drop is measured in: a function, what `--eval` names, or agreement on the held-out samples.

    Raises:
        UsageError: there is nothing to measure on.
    """
    if callable(metric):
        return metric
    if metric is not None and metric not in DROPS:
        return open_metric(
            metric, subject.specs, threads=settings.threads, shapes=subject.net.shapes, said=subject.said
        )
    parts = subject.partition(settings.seed)
    if parts is None:
        raise UsageError("--max-drop needs something to measure: samples (--calib), or --eval")
    return agreement(
        subject.graph, lambda: parts.held.batches(BATCH), shapes=subject.net.shapes, said=subject.said, of=metric
    )


def change(subject: Subject, settings: Settings, metric: str | Metric | None, model: onnx.ModelProto) -> Drop:
    """The metric of the original, and of another model."""
    found = metric_of(subject, settings, metric)
    before, after = found(subject.model), found(model)
    return Drop(before, after, named(metric, found), found.found if isinstance(found, Labelled) else "")


def named(metric: str | Metric | None, measured: Metric) -> str:
    """What a metric is called, without the folders that it lies in."""
    if isinstance(measured, Agreement | Labelled):
        return measured.name
    if metric is None or callable(metric):
        metric = metric or measured
        return str(getattr(metric, "__name__", type(metric).__name__))
    return PurePath(metric).name


def _keep(
    subject: Subject,
    target: Target,
    kind: Kept,
    settings: Settings,
    metric: str | Metric | None,
    progress: Progress | None,
) -> Result:
    """The largest cut that keeps the metric.

    Args:
        subject, target, settings, progress: as for `reach`.
        kind: the target's.
        metric: what is kept.

    Raises:
        BudgetError: none does.
    """
    planner, measure = Planner(subject, settings, progress), metric_of(subject, settings, metric)
    before = measure(subject.model)
    name, tried = named(metric, measure), list[Tried]()

    def works(ratio: float) -> tuple[Result, float] | None:
        try:
            plan = with_structure(_remembering(planner.plan(ratio, learns=True), target, name), subject)
            result = apply_plan(subject, plan, settings, progress=progress)
        except BudgetError:
            return None
        after = measure(result.runs)
        tried.append(Tried(ratio, after))
        return (result, after) if kind.keeps(target.value, before, after) else None

    found = largest(works)
    if found is None:
        raise BudgetError(kind.missed(target.value, before))
    (result, after), ratio = found
    search = Search(name, "", before - target.value, tuple(tried), Tried(ratio, after))
    labels = (measure.found,) if isinstance(measure, Labelled) else ()
    notes = (*labels, f"{name} {before:.4g} before, {after:.4g} after")
    return replace(result, notes=notes, search=search, studied=studied(planner))


def _remembering(plan: PrunePlan, target: Target, metric: str | None = None) -> PrunePlan:
    """The plan, which remembers what it was to reach; the ratio is what that came to, and was not asked for."""
    own = plan.origin
    asked = replace(own, target={target.kind: target.value}, metric=metric, ratio=None, came_to=own.ratio)
    return replace(plan, origin=asked)
