"""The smallest change that reaches a target, measured on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from onnxprune.errors import BudgetError, UsageError
from onnxprune.measure.metric import Metric, agreement, open_metric
from onnxprune.pipeline.apply import apply_plan
from onnxprune.pipeline.candidates import why_not
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.planner import BATCH, Planner, Progress
from onnxprune.pipeline.settings import Settings
from onnxprune.pipeline.targets import OPTIONS, UNITS, Target, close_loop, largest
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
    the metric. `settings.ratio` plays no part.

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
    if target.of is not None and settings.of is None:
        settings = replace(settings, of=target.of)
    if settings.lossless:
        raise UsageError(f"--lossless takes no target; drop {OPTIONS[target.kind]}")
    if target.kind == "max_drop":
        return _least_drop(subject, settings, target, _metric(subject, settings, metric), progress)
    planner = Planner(subject, settings, progress)
    gain, goal, words = _gains(subject, planner, target, progress)
    if goal <= 1:
        raise UsageError(f"the original has {words} already; nothing to do for {OPTIONS[target.kind]} {target.value:g}")
    tried: list[tuple[float, PrunePlan]] = []

    def measured(plan: PrunePlan) -> float:
        tried.append((gain(plan), plan))
        return tried[-1][0]

    def finish(plan: PrunePlan) -> tuple[Result, float]:
        plan = replace(plan, origin=replace(plan.origin, target={target.kind: target.value}))
        result = apply_plan(subject, plan, settings, bench=target.kind != "size_mb", progress=progress)
        reached = _reached(result, target)
        if settings.of == "latency":
            note = f"the latency model promised {planner.gain(plan):.2f}x, {reached:.2f}x was measured"
            result = replace(result, notes=(*result.notes, note))
        return result, reached

    extra, finished = 1.0, None
    for _ in range(RETRIES):
        plans: list[PrunePlan] = []
        start = None
        for kind in planner.kinds:
            found = close_loop(partial(planner.propose, kind=kind), measured, goal * extra, start=start)
            if found is not None:
                plans.append(found[0])
                start = found[1].ratio
        if not plans:
            break
        finished = finish(planner.better(plans))
        if finished[1] >= goal:
            return finished[0]
        extra *= 1.01 * goal / finished[1]
    result, reached = finished or finish(_furthest(subject, settings, target, goal, tried))
    short = f"{OPTIONS[target.kind]} {target.value:g}: the finished model misses it ({reached:.3f} of {goal:.3f} times)"
    if not settings.best_effort:
        raise BudgetError(f"{short}; ask for a little more, or add --best-effort")
    return replace(result, warnings=(*result.warnings, short))


def _furthest(
    subject: Subject, settings: Settings, target: Target, goal: float, tried: Sequence[tuple[float, PrunePlan]]
) -> PrunePlan:
    """The plan that came nearest to a target out of reach, for `best_effort`.

    Raises:
        BudgetError: nothing gained anything, or best effort was not asked for.
    """
    most, plan = max(tried, key=lambda t: t[0], default=(1.0, None))
    if plan is not None and most > 1 and settings.best_effort:
        return plan
    seen = ""
    if tried and target.kind in UNITS:
        seen = f"{target.value * goal / most:.3g} {UNITS[target.kind]} is the least that was measured; "
    elif tried:
        seen = f"{most:.2f} of {goal:.2f} times is the most that was measured; "
    raise BudgetError(
        f"{OPTIONS[target.kind]} {target.value:g} is out of reach: {seen}{why_not(subject.channels)}; "
        "ask for less, or add --best-effort"
    )


def _gains(
    subject: Subject, planner: Planner, target: Target, progress: Progress | None
) -> tuple[Callable[[PrunePlan], float], float, str]:
    """(plan -> measured gain, the gain to reach, what the original has in words)."""
    if target.kind == "size_mb":
        whole = byte_size(subject.model)
        words = f"{whole / 1e6:.3g} MB"
        return lambda plan: whole / byte_size(planner.unrepaired(plan)), whole / (target.value * 1e6), words
    settings, steps = planner.settings, 0

    def gain(plan: PrunePlan) -> float:
        nonlocal steps
        steps += 1
        if progress:
            progress("measure", steps, steps)
        return (
            paired(subject, [subject.model, planner.unrepaired(plan)], settings, MEASURE_ROUNDS).comparisons[0].speedup
        )

    if target.kind == "speedup":
        return gain, target.value, "speed-up 1"
    own = paired(subject, [subject.model], settings, MEASURE_ROUNDS).timings[0].p50_ms
    return gain, own / target.value, f"{own:.3g} ms"


def _reached(result: Result, target: Target) -> float:
    """The gain of a finished model, as `_gains` counts it."""
    if target.kind == "size_mb":
        return result.before.bytes / result.after.bytes
    assert result.latency is not None
    if target.kind == "speedup":
        return result.latency.comparisons[0].speedup
    assert result.before.latency_ms is not None and result.after.latency_ms is not None
    return result.before.latency_ms / result.after.latency_ms


def _metric(subject: Subject, settings: Settings, metric: str | Metric | None) -> Metric:
    if callable(metric):
        return metric
    if metric is not None:
        return open_metric(metric, subject.specs, threads=settings.threads)
    parts = subject.partition(settings.seed)
    if parts is None:
        raise UsageError("--max-drop needs something to measure: samples (--calib), or --eval")
    return agreement(subject.model, lambda: parts.held.batches(BATCH), threads=settings.threads)


def _least_drop(
    subject: Subject, settings: Settings, target: Target, metric: Metric, progress: Progress | None
) -> Result:
    """The largest cut that keeps the metric."""
    planner, before = Planner(subject, settings, progress), metric(subject.model)

    def works(ratio: float) -> tuple[Result, float] | None:
        try:
            result = apply_plan(subject, planner.plan(ratio), settings, progress=progress)
        except BudgetError:
            return None
        after = metric(result.model)
        return (result, after) if before - after <= target.value else None

    found = largest(works)
    if found is None:
        raise BudgetError(
            f"no cut keeps the metric within {target.value:g} of {before:.4g}; allow more, or give more --calib samples"
        )
    (result, after), _ = found
    origin = replace(result.plan.origin, target={"max_drop": target.value})
    words = f"metric {before:.4g} before, {after:.4g} after"
    return replace(result, plan=replace(result.plan, origin=origin), notes=(words,))
