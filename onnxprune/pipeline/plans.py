"""Plans for ratios, and plans that change no output."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any

from onnxprune.errors import BudgetError, UnstableError, UnsupportedError, UsageError
from onnxprune.parallel import one_blas_thread
from onnxprune.pipeline.apply import apply_plan
from onnxprune.pipeline.asked import Progress, check_device, limits_of, unmatched, unrefined
from onnxprune.pipeline.candidates import why_not
from onnxprune.pipeline.countable import check_countable
from onnxprune.pipeline.forecasts import forecast
from onnxprune.pipeline.goals import Goal, Lossless, Ratio, Target
from onnxprune.pipeline.lossless import in_words, plan_lossless
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.origin import origin_of
from onnxprune.pipeline.planner import BATCH, Planner
from onnxprune.pipeline.profiling import said_of
from onnxprune.pipeline.settings import Settings
from onnxprune.pipeline.studied import studied
from onnxprune.pipeline.timed import measure_latency
from onnxprune.pipeline.transfer import with_structure
from onnxprune.plan import PrunePlan
from onnxprune.report.alone import Row
from onnxprune.report.forecast import Forecast
from onnxprune.report.result import Result


def make_plan(
    subject: Subject,
    goal: Goal | float,
    settings: Settings | None = None,
    progress: Progress | None = None,
    *,
    leave: Collection[str] = (),
) -> PrunePlan:
    """Decide which channels go.

        subject = onnxprune.open_model("model.onnx", calibration=batches)
        plan = onnxprune.make_plan(subject, Ratio(0.5))

    Args:
        subject: the model.
        goal: `Ratio(0.5)`, or 0.5 for short, or `Lossless()`; a target is reached by `reach`.
        settings: everything else that decides.
        progress: called with (phase, done, total).
        leave: names of groups to leave alone.

    Raises:
        UnsupportedError: nothing can be pruned; the message names the most common reasons.
        BudgetError: the ratio cannot be reached, or nobody could tell (unless `best_effort`).
        UsageError: the goal is a target.
    """
    return planned(subject, goal, settings, progress, leave).plan


@dataclass(frozen=True)
class Planned:
    """A plan for a ratio, and what its planner knows beside it.

    Attributes:
        plan: what to do.
        studied: what was measured of each cut alone.
        forecast: what smaller and larger cuts are expected to do.
    """

    plan: PrunePlan
    studied: tuple[Row, ...] = ()
    forecast: Forecast | None = None


def planned(
    subject: Subject,
    goal: Goal | float,
    settings: Settings | None,
    progress: Progress | None,
    leave: Collection[str] = (),
) -> Planned:
    """See `make_plan`."""
    goal = Ratio(goal) if isinstance(goal, int | float) else goal
    settings = goal.serve(settings or Settings())
    check_device(settings)
    unrefined(settings)
    if isinstance(goal, Lossless):
        return Planned(_lossless_plan(subject, settings))
    if isinstance(goal, Target):
        raise UsageError(f"{goal}: a target is reached by measuring what was cut; a plan alone is made for a ratio")
    check_countable(subject, settings.of, best_effort=settings.best_effort)
    planner = Planner(subject, settings, progress, leave=leave)
    plan = with_structure(planner.plan(goal.share), subject)
    return Planned(plan, studied(planner), forecast(planner, plan))


@one_blas_thread
def _lossless_plan(subject: Subject, settings: Settings) -> PrunePlan:
    """What can go without changing an output.

    Raises:
        UnsupportedError: nothing can.
    """
    unmatched(subject.net, include=settings.include)
    limits = limits_of(settings)
    samples = [] if subject.calibration is None else [subject.calibration.first(BATCH)]
    edits, decided = plan_lossless(subject.net, samples, limits, settings.methods)
    if not edits:
        if not subject.channels.groups:
            raise UnsupportedError(f"nothing can be pruned: {why_not(subject.channels)}")
        raise UnsupportedError("; ".join(["no channel can go without changing an output", *in_words(decided)]))
    origin = origin_of(subject, settings.decided(), **decided)
    return PrunePlan(
        subject.digest,
        edits,
        origin,
        lossless=True,
        prune_statistics=bool(subject.channels.inexact),
        seed=settings.seed,
        batch=settings.batch,
        providers=settings.providers,
    )


def plan_and_apply(
    subject: Subject,
    goal: Goal | float,
    settings: Settings | None = None,
    *,
    bench: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Decide and carry out. With `best_effort`, what cannot be proven on random input is cut so that it can be, or
    left alone.

    Args:
        subject, goal, settings: as for `make_plan`.
        bench, progress: as for `prune`.

    Raises:
        UnstableError: rounding decides the outputs on random input, and nothing else could be cut.
    """
    settings = settings or Settings()
    found = planned(subject, goal, settings, progress)
    run = partial(carried_out, subject, settings=settings, bench=bench, progress=progress)
    try:
        result = run(found.plan, stop_early=settings.best_effort)
        return replace(result, studied=found.studied, forecast=found.forecast)
    except UnstableError as error:
        if not settings.best_effort:
            raise
        unstable, groups = error, len(subject.channels.groups)
    count = f"{len(unstable.groups)} of {groups} groups"
    try:
        result = run(found.plan.leading(unstable.groups))
        done = f"{count} keep their first channels, whatever these are worth, so that rounding stays the same"
    except UnstableError:
        if len(unstable.groups) == groups:
            raise unstable from None
        found = planned(subject, goal, settings, progress, leave=unstable.groups)
        result = replace(run(found.plan), forecast=found.forecast)
        done = f"{count} were left alone"
    return replace(result, studied=found.studied, warnings=(*result.warnings, f"{done}: {unstable}"))


def carried_out(subject: Subject, plan: PrunePlan, settings: Settings, **options: Any) -> Result:
    """As `apply_plan`; where the plan was made with the times of a device, the result says so."""
    return _said(apply_plan(subject, plan, settings, **options), subject, settings)


def _said(result: Result, subject: Subject, settings: Settings) -> Result:
    return replace(result, notes=(*result.notes, *said_of(subject, settings, "the share of the time that went")))


def sweep(
    subject: Subject,
    ratios: Sequence[float],
    settings: Settings | None = None,
    *,
    bench: bool = False,
    progress: Progress | None = None,
) -> Iterator[Result]:
    """One result a ratio, all decided from one look at the samples.

        subject = onnxprune.open_model("model.onnx", calibration=batches)
        for result in onnxprune.sweep(subject, [0.3, 0.5, 0.7]): ...

    Args:
        subject: from `open_model`.
        ratios: shares to remove, each between 0 and 1.
        settings: everything else that decides.
        bench, progress: as for `prune`.

    Raises:
        PruneError: as for `prune`; a ratio that cannot be reached ends the sweep where it stands.
    """
    settings = settings or Settings()
    if not ratios:
        raise UsageError("no ratios given; --ratios 0.3,0.5,0.7 makes three models")
    goals = [Ratio(ratio) for ratio in ratios]  # checks every one before the work starts
    unrefined(settings)
    check_countable(subject, settings.of, best_effort=settings.best_effort)
    planner = Planner(subject, settings, progress)
    plans, missed = _falling(planner, [goal.share for goal in goals])
    alone = studied(planner)
    reached = list(takewhile(lambda goal: goal.share in plans, goals))
    found = planner.looking.results([with_structure(plans[goal.share][0], subject) for goal in reached], progress)
    for goal, carried in zip(reached, found, strict=True):
        of, result = plans[goal.share][1], _said(carried, subject, settings)
        result = replace(measure_latency(result, subject, settings, progress) if bench else result, studied=alone)
        serves = f"ratio {goal.share:g} takes the plan of {of:g}, which does less damage than its own"
        yield result if of == goal.share else replace(result, notes=(*result.notes, serves))
    for goal in goals[len(reached) :]:
        raise missed[goal.share]


def _falling(
    planner: Planner, ratios: Sequence[float]
) -> tuple[dict[float, tuple[PrunePlan, float]], dict[float, BudgetError]]:
    """(ratio -> its plan and the ratio that this was made for, ratio -> why there is none). The largest comes first:
    where its plan does less damage than that of a smaller one, it serves that too."""
    plans: dict[float, tuple[PrunePlan, float]] = {}
    missed: dict[float, BudgetError] = {}
    larger: tuple[PrunePlan, float] | None = None
    for ratio in sorted(set(ratios), reverse=True):
        try:
            plan = planner.plan(ratio, None if larger is None else larger[0], learns=True)
        except BudgetError as error:
            missed[ratio] = error
            continue
        own = larger is None or plan.edits != larger[0].edits
        larger = plans[ratio] = plan, ratio if own or larger is None else larger[1]
    return plans, missed
