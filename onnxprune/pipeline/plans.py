"""Plans for ratios, and plans that change no output."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial

from onnxprune.errors import BudgetError, UnstableError, UnsupportedError, UsageError
from onnxprune.parallel import one_blas_thread
from onnxprune.pipeline.apply import apply_plan
from onnxprune.pipeline.asked import limits_of, unmatched
from onnxprune.pipeline.candidates import why_not
from onnxprune.pipeline.countable import check_countable
from onnxprune.pipeline.goals import Goal, Lossless, Ratio, Target
from onnxprune.pipeline.lossless import in_words, plan_lossless
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.origin import origin_of
from onnxprune.pipeline.planner import BATCH, Planner, Progress
from onnxprune.pipeline.settings import Settings
from onnxprune.plan import PrunePlan
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
    goal = Ratio(goal) if isinstance(goal, int | float) else goal
    settings = goal.serve(settings or Settings())
    if isinstance(goal, Lossless):
        return _lossless_plan(subject, settings)
    if isinstance(goal, Target):
        raise UsageError(f"{goal}: a target is reached by measuring what was cut; a plan alone is made for a ratio")
    check_countable(subject, settings.of, best_effort=settings.best_effort)
    return Planner(subject, settings, progress, leave=leave).plan(goal.share)


@one_blas_thread
def _lossless_plan(subject: Subject, settings: Settings) -> PrunePlan:
    """What can go without changing an output.

    Raises:
        UnsupportedError: nothing can.
    """
    if not subject.channels.groups:
        raise UnsupportedError(f"nothing can be pruned: {why_not(subject.channels)}")
    unmatched(subject.net, include=settings.include)
    limits = limits_of(settings)
    samples = [] if subject.calibration is None else [subject.calibration.first(BATCH)]
    edits, decided = plan_lossless(subject.net, samples, limits)
    if not edits:
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
    run = partial(apply_plan, subject, settings=settings, bench=bench, progress=progress)
    plan = make_plan(subject, goal, settings, progress)
    try:
        return run(plan, stop_early=settings.best_effort)
    except UnstableError as error:
        if not settings.best_effort:
            raise
        unstable, groups = error, len(subject.channels.groups)
    count = f"{len(unstable.groups)} of {groups} groups"
    try:
        result = run(plan.leading(unstable.groups))
        done = f"{count} keep their first channels, whatever these are worth, so that rounding stays the same"
    except UnstableError:
        if len(unstable.groups) == groups:
            raise unstable from None
        result = run(make_plan(subject, goal, settings, progress, leave=unstable.groups))
        done = f"{count} were left alone"
    return replace(result, warnings=(*result.warnings, f"{done}: {unstable}"))


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
    check_countable(subject, settings.of, best_effort=settings.best_effort)
    plans, missed = _falling(Planner(subject, settings, progress), [goal.share for goal in goals])
    for goal in goals:
        if goal.share not in plans:
            raise missed[goal.share]
        plan, of = plans[goal.share]
        result = apply_plan(subject, plan, settings, bench=bench, progress=progress)
        serves = f"ratio {goal.share:g} takes the plan of {of:g}, which does less damage than its own"
        yield result if of == goal.share else replace(result, notes=(*result.notes, serves))


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
            plan = planner.plan(ratio, None if larger is None else larger[0])
        except BudgetError as error:
            missed[ratio] = error
            continue
        own = larger is None or plan.edits != larger[0].edits
        larger = plans[ratio] = plan, ratio if own or larger is None else larger[1]
    return plans, missed
