"""The pipeline, in one screen: the functions behind the command line and the Python API.

    model → find_channels → calibrate → score → allocate → PrunePlan → apply → repair → verify → Result

Nothing here prints, and nothing is written unless `Result.save` is called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.blocks import drop_of
from onnxprune.channels import ChannelGroup, Cut, find_channels
from onnxprune.decide.blocks import find_blocks
from onnxprune.errors import ModelError, UnstableError, UnsupportedError, UsageError
from onnxprune.graph import files, runtime
from onnxprune.graph.model import Graph, digest
from onnxprune.graph.shapes import Observed, observe
from onnxprune.lossless import in_words, plan_lossless
from onnxprune.measure.calibration import Calibration, ImageSpec, open_calibration
from onnxprune.measure.cost import Cost, count_macs, count_params
from onnxprune.measure.latency import bench as time_models
from onnxprune.measure.likeness import distances
from onnxprune.measure.verify import check_fidelity
from onnxprune.plan import PrunePlan
from onnxprune.planning import BATCH, Planner, Progress, counted, why_not
from onnxprune.report.result import Result
from onnxprune.rewrite.drop import bypass
from onnxprune.rewrite.imagined import repair_imagined, repair_merge
from onnxprune.rewrite.nearest import cut_merged
from onnxprune.rewrite.refit import refit
from onnxprune.rewrite.statistics import repair_statistics
from onnxprune.subject import Settings, Subject
from onnxprune.surgery import operate

REPAIR_SAMPLES = 512
MERGED = "similarity"
"""The criterion whose removed channels are merged before a repair of statistics; a refit gains nothing from it."""

ModelLike = str | PathLike[str] | onnx.ModelProto


def open_model(
    model: ModelLike,
    *,
    calibration: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int | None = None,
    image: ImageSpec | None = None,
    prune_statistics: bool = False,
) -> Subject:
    """Read, check, run once and analyse a model.

    Args:
        model: a path or a ModelProto (left untouched).
        calibration: unlabelled samples in any form that `open_calibration` takes, or None.
        input_shapes: sizes for dynamic axes, by input name; else the samples' sizes, else a guess.
        samples: use at most so many samples.
        image: how to turn a folder of images into samples.
        prune_statistics: also find channels over which a normalization takes its mean.

    Raises:
        ModelError, CalibrationError, FileError: what was given cannot be used.
    """
    path = None if isinstance(model, onnx.ModelProto) else Path(model)
    proto = files.check_model(model) if isinstance(model, onnx.ModelProto) else files.read_model(Path(model))
    specs = runtime.input_specs(proto)
    data = None
    if calibration is not None:
        data = open_calibration(calibration, specs, limit=samples, image=image)
    feeds: Mapping[str, np.ndarray]
    if data is not None and not input_shapes:
        feeds = data.first(1)
    else:
        feeds = runtime.default_feed(specs, shapes=input_shapes)
    graph = Graph(proto)
    feeds, observed = _first_run(graph, specs, feeds, guess=data is None and not input_shapes)
    channels = find_channels(graph, observed, prune_statistics=prune_statistics)
    return Subject(proto, graph, feeds, channels, digest(proto), path, data)


GUESSES = (96, 32, 640, 299, 512)
"""Sizes to try for dynamic image axes after the usual 224."""
LINES = ((48, 320), (32, 100), (32, 320))
"""Heights and widths of text lines: recognisers squeeze the height away, so only theirs fits."""


def _first_run(
    graph: Graph, specs: Sequence[runtime.InputSpec], feeds: Mapping[str, np.ndarray], *, guess: bool
) -> tuple[Mapping[str, np.ndarray], Observed]:
    """Run the model once. When nobody said how large a dynamic input is, other usual sizes are tried as well."""
    try:
        return feeds, observe(graph, feeds)
    except ModelError as error:
        free = [s.name for s in specs if any(not isinstance(n, int) for n in s.shape[1:])]
        if not guess or not free:
            raise
        tried = []
        if [len(s.shape) for s in specs] == [4]:
            shape = next(iter(feeds.values())).shape
            for size in LINES:
                with contextlib.suppress(UsageError):  # a fixed axis says otherwise
                    tried.append(runtime.default_feed(specs, shapes={specs[0].name: (*shape[:2], *size)}))
        for other in (*tried, *(runtime.default_feed(specs, size=size) for size in GUESSES)):
            with contextlib.suppress(ModelError):
                return other, observe(graph, other)
        raise ModelError(f"{error}; say what sizes it takes: --input-shape {free[0]}=1,3,H,W") from error


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


def _lossless_plan(subject: Subject, settings: Settings) -> PrunePlan:
    """What can go without changing an output.

    Raises:
        UnsupportedError: nothing can.
    """
    if not subject.channels.groups:
        raise UnsupportedError(f"nothing can be pruned: {why_not(subject.channels)}")
    limits = settings.limits()
    samples = [] if subject.calibration is None else [subject.calibration.first(BATCH)]
    edits, decided = plan_lossless(subject.graph, subject.channels, subject.feeds, samples, limits)
    if not edits:
        raise UnsupportedError("; ".join(["no channel can go without changing an output", *in_words(decided)]))
    return PrunePlan(subject.digest, edits, {**decided, "seed": settings.seed})


def apply_plan(
    subject: Subject,
    plan: PrunePlan,
    settings: Settings | None = None,
    *,
    bench: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Cut, check the surgery, repair, and compare with the original.

    Raises:
        UsageError: the plan was made for another model.
        BudgetError: the cut model differs from the masked original (our bug: nothing is returned).
    """
    settings = settings or Settings()
    _check_plan(subject, plan)
    channels, data = subject.channels, subject.calibration
    keep = plan.keep()
    alive = channels.alive(keep)
    fit, held = data.split(seed=settings.seed) if data is not None else (None, None)
    operated = operate(subject.graph, channels, plan, subject.feeds, None if held is None else held.first(8))
    pruned, warnings = operated.model, [*subject.warnings, *operated.warnings]
    repair = settings.repair or ("none" if plan.lossless else "merge" if fit is None else "refit")
    if plan.lossless and repair != "none":
        raise UsageError(f"the plan is lossless and leaves nothing to repair; drop --repair {repair}")
    if repair not in ("none", "merge") and fit is None:
        raise UsageError(f"--repair {repair} needs samples; give --calib")
    if fit is None and not plan.lossless:
        done = "nothing was repaired" if repair == "none" else "the repair went by random inputs"
        warnings.append(
            f"no calibration data: scores are from weights alone, {done}, and accuracy will suffer; "
            "give --calib with a few hundred unlabelled samples"
        )
    if repair != "none":
        if repair == "statistics" and fit is not None and plan.settings.get("criterion") == MERGED:
            pruned = _merged(subject, alive, fit, settings)
        pruned = _repaired(subject, pruned, alive, fit, repair, settings, progress)
    if plan.drops():
        pruned = bypass(pruned, plan.drops())
    fidelity = None
    if held is not None:
        fidelity = check_fidelity(subject.model, pruned, counted(held, "verify", progress), held_out=not held.shared)
    sizes = Cut(channels, alive).shapes
    after = Cost(count_params(pruned), count_macs(Graph(pruned), sizes), files.byte_size(pruned))
    result = Result(
        model=pruned,
        source=subject.path,
        before=subject.cost(),
        after=after,
        surgery=operated.surgery,
        fidelity=fidelity,
        latency=None,
        plan=plan,
        cuts=operated.cuts,
        pinned=channels.pinned,
        groups=tuple((g.name, g.width, len(keep.get(g.name, range(g.width)))) for g in channels.groups),
        repair=repair,
        inexact=channels.inexact,
        warnings=tuple(warnings),
        feeds=subject.feeds,
    )
    return measure_latency(result, subject, settings, progress) if bench else result


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


def plan_and_apply(
    subject: Subject, settings: Settings, *, bench: bool = False, progress: Progress | None = None
) -> Result:
    """Decide and carry out. With `best_effort`, what cannot be proven on random input is left alone.

    Raises:
        UnstableError: rounding decides the outputs on random input, and nothing else could be cut.
    """
    plan = make_plan(subject, settings, progress)
    try:
        return apply_plan(subject, plan, settings, bench=bench, progress=progress)
    except UnstableError as error:
        groups = len(subject.channels.groups)
        if not settings.best_effort or len(error.groups) == groups:
            raise
        plan = make_plan(subject, settings, progress, leave=error.groups)
        result = apply_plan(subject, plan, settings, bench=bench, progress=progress)
        left = f"{len(error.groups)} of {groups} groups were left alone: {error}"
        return replace(result, warnings=(*result.warnings, left))


def _check_plan(subject: Subject, plan: PrunePlan) -> None:
    """Refuse a plan that was made for another model."""
    if plan.model_digest != subject.digest:
        raise UsageError("the plan was made for another model; write one for this model with `onnxprune plan`")
    known = {g.name: g.width for g in subject.channels.groups}
    blocks = {drop_of(b, subject.channels) for b in find_blocks(subject.graph, subject.channels.shapes)}
    for drop in plan.drops():
        if drop not in blocks:
            raise UsageError(f"the plan drops block {drop.block!r}, which is no residual block of the model")
    for e in plan.cuts():
        if known.get(e.group) != e.width:
            raise UsageError(f"the plan names group {e.group!r} with {e.width} channels, which the model lacks")


def _merged(subject: Subject, alive: np.ndarray, fit: Calibration, settings: Settings) -> onnx.ModelProto:
    """The cut model with every removed channel merged into the likest kept one: where the repair starts from."""
    model, graph, channels = subject.model, subject.graph, subject.channels
    far = distances(model, graph, channels, fit.batches, threads=settings.threads, seed=settings.seed)
    return cut_merged(graph, channels, alive, far)


def _repaired(
    subject: Subject,
    pruned: onnx.ModelProto,
    alive: np.ndarray,
    fit: Calibration | None,
    repair: str,
    settings: Settings,
    progress: Progress | None,
) -> onnx.ModelProto:
    """The pruned model after the repair of that name, fitted on `fit`."""
    report = (lambda k, n: progress("repair", k, n)) if progress else None
    graph, channels, threads = subject.graph, subject.channels, settings.threads
    if fit is None:
        repeat = all(subject.dynamic_batch(name) for name in subject.feeds)
        return repair_imagined(
            graph, channels, alive, subject.feeds, repeat=repeat, threads=threads, seed=settings.seed, progress=report
        )
    batches = list(fit.take(REPAIR_SAMPLES).batches(BATCH))
    if repair == "merge":
        return repair_merge(graph, channels, alive, batches, threads=threads, progress=report)
    mend = partial(refit, seed=settings.seed) if repair == "refit" else repair_statistics
    return mend(subject.graph, pruned, subject.channels, alive, batches, threads=settings.threads, progress=report)


def measure_latency(result: Result, subject: Subject, settings: Settings, progress: Progress | None = None) -> Result:
    """Time the original against the pruned model, interleaved, and add the outcome to the result."""
    report = (lambda k, n: progress("bench", k, n)) if progress else None
    timed = time_models(
        [subject.model, result.model],
        names=["original", "pruned"],
        feeds=subject.one(),
        threads=settings.threads or 1,
        seed=settings.seed,
        time_budget_s=30,
        progress=report,
    )
    warnings = result.warnings
    if timed.comparisons[0].verdict != "faster":
        warnings = (*warnings, f"the pruned model is not measurably faster: {timed.comparisons[0].verdict}")
    before, after = timed.timings[0].p50_ms, timed.timings[1].p50_ms
    return replace(
        result,
        latency=timed,
        warnings=warnings,
        before=replace(result.before, latency_ms=before),
        after=replace(result.after, latency_ms=after),
    )


def prune(
    model: ModelLike,
    ratio: float = 0.5,
    *,
    calibration: Any = None,
    bench: bool = False,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int | None = None,
    image: ImageSpec | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Result:
    """A smaller model that computes nearly the same: the whole pipeline.

        result = onnxprune.prune("model.onnx", ratio=0.5, calibration=batches)
        result.save("model.pruned.onnx")

    Args:
        model: a path or a ModelProto (left untouched).
        ratio: share of the multiply-accumulates to remove (or of what `of` names).
        calibration: unlabelled samples: arrays, dicts of arrays, an iterable or function giving them, a path,
            or an ORT `CalibrationDataReader`. A quarter is held out for the fidelity check.
        bench: also measure latency, original against pruned.
        input_shapes: sizes for dynamic axes, by input name.
        samples: use at most so many samples.
        image: how to read a folder of images.
        progress: called with (phase, done, total).
        **settings: the other fields of `Settings`.

    Returns:
        The pruned model with costs, fidelity, the plan and the cuts. Nothing is printed or written.

    Raises:
        PruneError: see `onnxprune.errors`.
    """
    try:
        chosen = Settings(ratio=ratio, **settings)
    except TypeError as error:
        raise UsageError(f"prune(): {str(error).removeprefix('Settings.__init__() ')}") from error
    subject = open_model(
        model,
        calibration=calibration,
        input_shapes=input_shapes,
        samples=samples,
        image=image,
        prune_statistics=chosen.prune_statistics,
    )
    return plan_and_apply(subject, chosen, bench=bench, progress=progress)


__all__ = [
    "ChannelGroup",
    "ModelError",
    "Settings",
    "Subject",
    "apply_plan",
    "make_plan",
    "open_model",
    "plan_and_apply",
    "prune",
    "sweep",
]
