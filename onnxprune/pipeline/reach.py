"""The smallest change that reaches a target, measured on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from onnxprune.errors import BudgetError, UsageError
from onnxprune.measure.metric import Metric, agreement, open_metric
from onnxprune.pipeline.apply import apply_plan
from onnxprune.pipeline.candidates import why_not
from onnxprune.pipeline.goals import Target
from onnxprune.pipeline.loops import close_loop, largest
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.planner import BATCH, Planner, Progress
from onnxprune.pipeline.settings import Settings
from onnxprune.pipeline.timed import paired
from onnxprune.plan import PrunePlan
from onnxprune.protobuf.serialize import byte_size
from onnxprune.report.result import Result

MEASURE_ROUNDS = 20
"""Rounds of one measurement in a closed loop; the finished model gets 40."""
RETRIES = 3
"""How often a target that the finished model misses by noise is aimed at again."""


def reach(
    subject: Subject,
    settings: Settings,
    target: Target,
    *,
    metric: str | Metric | None = None,
    progress: Progress | None = None,
) -> Result:
    """The smallest change that reaches a target, measured on this machine.

        subject = onnxprune.open_model("model.onnx", calibration=batches)
        result = onnxprune.reach(subject, Settings(), Target("speedup", 2.0))

    For a speed-up or milliseconds: plan, cut, time original and candidate side by side, correct, until the paired
    ratio holds; the same with the file's size for megabytes. For a drop: the largest cut whose repaired network keeps
    the metric.

    Args:
        subject: from `open_model`.
        settings: everything else that decides.
        target: what to reach.
        metric: for "max_drop": as `--eval`, or a function of a model that returns a number, the higher the better;
            None: agreement with the original on the held-out samples, in percent.
        progress: called with (phase, done, total).

    Raises:
        BudgetError: the target cannot be reached.
        UsageError: the original is there already.
    """
    if target.how.of is not None and settings.of is None:
        settings = replace(settings, of=target.how.of)
    return target.how.reach(Chase(subject, settings, target, metric, progress))


@dataclass
class Chase:
    """One target, on its way to being reached.

    Attributes:
        subject: the model.
        settings: everything else that decides.
        target: what to reach.
        metric: as for `reach`.
        progress: called with (phase, done, total).
        measured: how often something was timed.
    """

    subject: Subject
    settings: Settings
    target: Target
    metric: str | Metric | None
    progress: Progress | None
    measured: int = 0

    def __post_init__(self) -> None:
        self._metric = self._opened() if self.target.how.judged else None
        self.planner = Planner(self.subject, self.settings, self.progress)

    def speedup(self, plan: PrunePlan) -> float:
        """How many times as fast the network is with a plan carried out, beside the original."""
        self.measured += 1
        if self.progress:
            self.progress("measure", self.measured, self.measured)
        models = [self.subject.model, self.planner.unrepaired(plan)]
        return paired(self.subject, models, self.settings, MEASURE_ROUNDS).comparisons[0].speedup

    def own_ms(self) -> float:
        """What a run of the original takes."""
        return paired(self.subject, [self.subject.model], self.settings, MEASURE_ROUNDS).timings[0].p50_ms

    def bytes(self, plan: PrunePlan | None = None) -> int:
        """Size of the file with a plan carried out; None: of the original."""
        return byte_size(self.subject.model if plan is None else self.planner.unrepaired(plan))

    def carried_out(self, plan: PrunePlan) -> Result:
        """A plan carried out, repaired, timed where the target is a time; it remembers the target."""
        plan = replace(plan, origin=replace(plan.origin, target={self.target.kind: self.target.value}))
        return apply_plan(self.subject, plan, self.settings, bench=self.target.how.timed, progress=self.progress)

    def quality(self, result: Result | None = None) -> float:
        """The metric of a result; None: of the original."""
        assert self._metric is not None
        return self._metric(self.subject.model if result is None else result.model)

    def _opened(self) -> Metric:
        if callable(self.metric):
            return self.metric
        if self.metric is not None:
            return open_metric(self.metric, self.subject.specs, threads=self.settings.threads)
        parts = self.subject.partition(self.settings.seed)
        if parts is None:
            raise UsageError("--max-drop needs something to measure: samples (--calib), or --eval")
        return agreement(self.subject.model, lambda: parts.held.batches(BATCH), threads=self.settings.threads)


def gain_enough(chase: Chase) -> Result:
    """The plan of least gain that reaches the target, carried out; aimed at again where the finished model misses it.

    Raises:
        BudgetError: the target cannot be reached.
        UsageError: the original is there already.
    """
    target, how, settings, planner = chase.target, chase.target.how, chase.settings, chase.planner
    aim, words = how.aim(chase)
    if aim <= 1:
        raise UsageError(f"the original has {words} already; nothing to do for {target}")
    tried: list[tuple[float, PrunePlan]] = []

    def measured(plan: PrunePlan) -> float:
        tried.append((how.gain(chase, plan), plan))
        return tried[-1][0]

    extra, finished = 1.0, None
    for _ in range(RETRIES):
        plans: list[PrunePlan] = []
        start = None
        for kind in planner.kinds:
            found = close_loop(partial(planner.propose, kind=kind), measured, aim * extra, start=start)
            if found is not None:
                plans.append(found[0])
                start = found[1].ratio
        if not plans:
            break
        finished = _finished(chase, planner.better(plans))
        if finished[1] >= aim:
            return finished[0]
        extra *= 1.01 * aim / finished[1]
    result, reached = finished or _finished(chase, _furthest(chase, aim, tried))
    short = f"{target}: the finished model misses it ({reached:.3f} of {aim:.3f} times)"
    if not settings.best_effort:
        raise BudgetError(f"{short}; ask for a little more, or add --best-effort")
    return replace(result, warnings=(*result.warnings, short))


def _finished(chase: Chase, plan: PrunePlan) -> tuple[Result, float]:
    """(a plan carried out, what it has gained)."""
    result = chase.carried_out(plan)
    reached = chase.target.how.reached(result)
    if chase.settings.of == "latency":
        note = f"the latency model promised {chase.planner.gain(plan):.2f}x, {reached:.2f}x was measured"
        result = replace(result, notes=(*result.notes, note))
    return result, reached


def _furthest(chase: Chase, aim: float, tried: Sequence[tuple[float, PrunePlan]]) -> PrunePlan:
    """The plan that came nearest to a target out of reach, for `best_effort`.

    Raises:
        BudgetError: nothing gained anything, or best effort was not asked for.
    """
    most, plan = max(tried, key=lambda t: t[0], default=(1.0, None))
    if plan is not None and most > 1 and chase.settings.best_effort:
        return plan
    seen = chase.target.how.least(chase.target.value, aim, most) if tried else ""
    raise BudgetError(
        f"{chase.target} is out of reach: {seen}{why_not(chase.subject.channels)}; ask for less, or add --best-effort"
    )


def drop_least(chase: Chase) -> Result:
    """The largest cut that keeps the metric.

    Raises:
        BudgetError: none does.
    """
    before = chase.quality()

    def works(ratio: float) -> tuple[Result, float] | None:
        try:
            result = chase.carried_out(chase.planner.plan(ratio))
        except BudgetError:
            return None
        after = chase.quality(result)
        return (result, after) if before - after <= chase.target.value else None

    found = largest(works)
    if found is None:
        raise BudgetError(
            f"no cut keeps the metric within {chase.target.value:g} of {before:.4g}; allow more, or give more --calib "
            "samples"
        )
    (result, after), _ = found
    return replace(result, notes=(f"metric {before:.4g} before, {after:.4g} after",))
