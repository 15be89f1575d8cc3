"""Plans for ratios, and plans that change no output."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial

from onnxprune.errors import UnstableError, UnsupportedError, UsageError
from onnxprune.parallel import one_blas_thread
from onnxprune.pipeline.apply import apply_plan
from onnxprune.pipeline.asked import limits_of
from onnxprune.pipeline.candidates import why_not
from onnxprune.pipeline.lossless import in_words, plan_lossless
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.origin import origin_of
from onnxprune.pipeline.planner import BATCH, Planner, Progress
from onnxprune.pipeline.settings import Settings
from onnxprune.plan import PrunePlan
from onnxprune.report.result import Result


def make_plan(
    subject: Subject, settings: Settings, progress: Progress | None = None, *, leave: Collection[str] = ()
) -> PrunePlan:
    """Decide which channels go.

    Args:
        subject: the model.
        settings: how much, and by which criterion.
        progress: called with (phase, done, total).
        leave: names of groups to leave alone.

    Raises:
        UnsupportedError: nothing can be pruned; the message names the most common reasons.
        BudgetError: the ratio cannot be reached (unless `best_effort`).
    """
    return next(make_plans(subject, settings, [settings.ratio], progress, leave=leave))


def make_plans(
    subject: Subject,
    settings: Settings,
    ratios: Sequence[float],
    progress: Progress | None = None,
    *,
    leave: Collection[str] = (),
) -> Iterator[PrunePlan]:
    """One plan a ratio, all from one look at the samples. `settings.ratio` plays no part."""
    if settings.lossless:
        yield _lossless_plan(subject, settings)
        return
    planner = Planner(subject, settings, progress, leave=leave)
    for ratio in ratios:
        yield planner.plan(ratio)


@one_blas_thread
def _lossless_plan(subject: Subject, settings: Settings) -> PrunePlan:
    """What can go without changing an output.

    Raises:
        UnsupportedError: nothing can.
    """
    if not subject.channels.groups:
        raise UnsupportedError(f"nothing can be pruned: {why_not(subject.channels)}")
    limits = limits_of(settings)
    samples = [] if subject.calibration is None else [subject.calibration.first(BATCH)]
    edits, decided = plan_lossless(subject.net, samples, limits)
    if not edits:
        raise UnsupportedError("; ".join(["no channel can go without changing an output", *in_words(decided)]))
    origin = origin_of(subject, settings.decided(), **decided)
    return PrunePlan(subject.digest, edits, origin, lossless=True, seed=settings.seed)


def plan_and_apply(
    subject: Subject, settings: Settings, *, bench: bool = False, progress: Progress | None = None
) -> Result:
    """Decide and carry out. With `best_effort`, what cannot be proven on random input is cut so that it can be, or
    left alone.

    Raises:
        UnstableError: rounding decides the outputs on random input, and nothing else could be cut.
    """
    run = partial(apply_plan, subject, settings=settings, bench=bench, progress=progress)
    plan = make_plan(subject, settings, progress)
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
        result = run(make_plan(subject, settings, progress, leave=unstable.groups))
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
        settings: everything else that decides; its `ratio` plays no part.
        bench, progress: as for `prune`.

    Raises:
        PruneError: as for `prune`; a ratio that cannot be reached ends the sweep where it stands.
    """
    settings = settings or Settings()
    if not ratios:
        raise UsageError("no ratios given; --ratios 0.3,0.5,0.7 makes three models")
    chosen = [replace(settings, ratio=ratio) for ratio in ratios]  # checks every ratio before the work starts
    for plan, own in zip(make_plans(subject, settings, ratios, progress), chosen, strict=True):
        yield apply_plan(subject, plan, own, bench=bench, progress=progress)
