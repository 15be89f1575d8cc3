"""The pipeline, in one screen: the functions behind the command line and the Python API.

    model → find_channels → calibrate → score → allocate → PrunePlan → apply → repair → verify → Result

Nothing here prints, and nothing is written unless `Result.save` is called.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx

from onnxprune import files
from onnxprune.channels import ChannelGroup, CutSizes
from onnxprune.decide.blocks import all_blocks
from onnxprune.errors import BudgetError, ModelError, PruneError, UnstableError, UnsupportedError, UsageError
from onnxprune.graph.layers import layers
from onnxprune.graph.model import Graph
from onnxprune.graph.seeds import without_seeds
from onnxprune.graph.shapes import observe
from onnxprune.measure.cost import Cost, count_macs, count_params, shares_weights
from onnxprune.measure.metric import Metric, agreement, open_metric
from onnxprune.measure.surgery import check_fidelity
from onnxprune.parallel import one_blas_thread
from onnxprune.pipeline.block_trials import edit_of
from onnxprune.pipeline.lossless import in_words, plan_lossless
from onnxprune.pipeline.opened import ModelLike, open_model
from onnxprune.pipeline.planner import BATCH, Planner, Progress, counted, why_not
from onnxprune.pipeline.proof import check_repaired, cut_and_prove
from onnxprune.pipeline.repairs import distilled, factorized, merged, repaired
from onnxprune.pipeline.settings import Settings, Subject
from onnxprune.pipeline.targets import OPTIONS, UNITS, Target, close_loop, largest
from onnxprune.plan import DropBlock, KeepChannels, PrunePlan
from onnxprune.report.result import Result
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.drop import bypass, drop_blocks
from onnxprune.rewrite.factorize import factorable
from onnxprune.samples.calibration import ImageSpec
from onnxprune.timing.latency import BenchResult
from onnxprune.timing.latency import bench as time_models

MEASURE_ROUNDS = 20
"""Rounds of one measurement in a closed loop; the finished model gets 40."""
RETRIES = 3
"""How often a target that the finished model misses by noise is aimed at again."""
MERGED = "similarity"
"""The criterion whose removed channels are merged before a repair of statistics; a refit gains nothing from it."""


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
    limits = settings.limits()
    samples = [] if subject.calibration is None else [subject.calibration.first(BATCH)]
    edits, decided = plan_lossless(subject.graph, subject.channels, subject.feeds, samples, limits)
    if not edits:
        raise UnsupportedError("; ".join(["no channel can go without changing an output", *in_words(decided)]))
    return PrunePlan(subject.digest, edits, {**decided, "seed": settings.seed})


@one_blas_thread
def apply_plan(
    subject: Subject,
    plan: PrunePlan,
    settings: Settings | None = None,
    *,
    original: Subject | None = None,
    tune: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None,
    bench: bool = False,
    stop_early: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Cut, check the surgery, repair, and compare with the original.

    Args:
        subject: what the plan was made for.
        plan: what to do.
        settings: how to repair, and the seed.
        original: what the subject was trained from, if it was: costs and fidelity are compared with that.
        tune: what else is done with the repaired model: other weights of the same sizes.
        hasty: give up as soon as random input seems to decide the outputs: for callers who have another plan.
        bench, progress: as for `prune`.

    Raises:
        UsageError: the plan was made for another model.
        BudgetError: the cut model differs from the masked original (our bug: nothing is returned).
    """
    settings, first = settings or Settings(), original or subject
    _check_plan(subject, plan)
    if bench:
        subject.check_timing(settings)
    channels, data = subject.channels, subject.calibration
    keep = plan.keep()
    alive = channels.alive(keep)
    fit, held = data.split(seed=settings.seed) if data is not None else (None, None)
    look_at = None if held is None else held.first(8)
    operated = cut_and_prove(subject.graph, channels, plan, subject.feeds, look_at, stop_early=stop_early)
    pruned, warnings = operated.model, [*subject.warnings, *operated.warnings]
    repair, words = _repair_for(subject, plan, settings, fit is not None)
    warnings += words
    if fit is None and not plan.lossless and original is None:
        done = "nothing was repaired" if repair == "none" else "the repair went by random inputs"
        warnings.append(
            f"no calibration data: scores are from weights alone, {done}, and accuracy will suffer; "
            "give --calib with a few hundred unlabelled samples"
        )
    if repair != "none":
        if repair == "statistics" and fit is not None and plan.settings.get("criterion") == MERGED:
            pruned = drop_blocks(merged(subject, alive, fit, settings), plan.drops())
        if repair == "merge" and plan.drops():  # it looks at whole networks
            pruned = cut(subject.graph, channels, alive)
        try:
            pruned = repaired(subject, pruned, alive, fit, repair, settings, progress)
        except ModelError as error:  # the model itself runs
            raise PruneError(f"{error}; the repair failed: please report it, and use --repair none") from error
        if repair == "merge":
            pruned = drop_blocks(pruned, plan.drops())
    if plan.factorized():
        pruned = factorized(subject, pruned, alive, plan, fit, repair, settings, progress)
    if repair == "distill" and fit is not None:  # the finished network learns, pairs of layers and all
        pruned = distilled(subject, pruned, alive, fit, settings, progress)
    if tune:
        pruned = tune(pruned)
    if plan.drops():
        pruned = bypass(pruned, plan.drops())
    fidelity = None
    if held is None and repair != "none":
        check_repaired(subject.graph, channels, pruned, subject.feeds)
    if held is not None:
        fidelity = check_fidelity(first.model, pruned, counted(held, "verify", progress), held_out=not held.shared)
    after = Cost(count_params(pruned), _macs(pruned, CutSizes(channels, alive), subject.feeds), files.byte_size(pruned))
    without_seeds(pruned)
    before = first.cost()
    if after.params > before.params and shares_weights(subject.graph, channels):
        warnings.append(
            "there are more parameters than before: weights that several layers share are cut and repaired for each of "
            "them (--of params counts that)"
        )
    result = Result(
        model=pruned,
        source=first.path,
        before=before,
        after=after,
        surgery=operated.surgery,
        fidelity=fidelity,
        latency=None,
        plan=plan,
        cuts=operated.cuts,
        pinned=channels.pinned,
        groups=tuple((g.name, g.width, len(keep.get(g.name, range(g.width)))) for g in channels.groups),
        repair=repair,
        inexact=() if operated.surgery.exact else channels.inexact,
        warnings=tuple(warnings),
        feeds=subject.feeds,
    )
    return measure_latency(result, subject, settings, progress) if bench else result


def _repair_for(subject: Subject, plan: PrunePlan, settings: Settings, sampled: bool) -> tuple[str, list[str]]:
    """The repair by its name, and what the user should know of the choice.

    Raises:
        UsageError, UnsupportedError: the one asked for cannot be done.
    """
    repair = settings.repair or ("none" if plan.lossless else "refit" if sampled else "merge")
    if plan.lossless and repair != "none":
        raise UsageError(f"the plan is lossless and leaves nothing to repair; drop --repair {repair}")
    if repair not in ("none", "merge") and not sampled:
        raise UsageError(f"--repair {repair} needs samples; give --calib")
    found = layers(subject.graph, subject.channels.shapes)
    if repair == "none" or any(layer.weight is not None for layer in found):
        return repair, []
    why = "no layer has weights in floating point, so "  # quantized ones stay as they are
    if repair == "distill":
        raise UnsupportedError(f"--repair distill: {why}there is nothing to train")
    return "none", [f"{why}nothing was repaired"]


def _macs(pruned: onnx.ModelProto, cut: CutSizes, feeds: Mapping[str, np.ndarray]) -> float:
    """Multiply-accumulates of the outcome. It is run once where it has tensors that the cut alone does not know:
    layers that were made of two, what gives a MatMul a bias, and weights behind DequantizeLinear."""
    graph = Graph(pruned)
    nodes = graph.nodes.values()
    known = all(o in cut.shapes for n in nodes for o in n.output if o and graph.constant(o) is None)
    known = known and not any(n.op_type == "DequantizeLinear" for n in nodes)
    return count_macs(graph, cut.shapes if known else observe(graph, feeds).shapes)


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
        plan = replace(plan, settings={**plan.settings, "target": {target.kind: target.value}})
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
        whole = files.byte_size(subject.model)
        words = f"{whole / 1e6:.3g} MB"
        return lambda plan: whole / files.byte_size(planner.cut(plan)), whole / (target.value * 1e6), words
    settings, steps = planner.settings, 0

    def gain(plan: PrunePlan) -> float:
        nonlocal steps
        steps += 1
        if progress:
            progress("measure", steps, steps)
        return _paired(subject, [subject.model, planner.cut(plan)], settings, MEASURE_ROUNDS).comparisons[0].speedup

    if target.kind == "speedup":
        return gain, target.value, "speed-up 1"
    own = _paired(subject, [subject.model], settings, MEASURE_ROUNDS).timings[0].p50_ms
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
    if subject.calibration is None:
        raise UsageError("--max-drop needs something to measure: samples (--calib), or --eval")
    _, held = subject.calibration.split(seed=settings.seed)
    return agreement(subject.model, lambda: held.batches(BATCH), threads=settings.threads)


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
    decided = {**result.plan.settings, "target": {"max_drop": target.value}}
    words = f"metric {before:.4g} before, {after:.4g} after"
    return replace(result, plan=replace(result.plan, settings=decided), notes=(words,))


def _check_plan(subject: Subject, plan: PrunePlan) -> None:
    """Refuse a plan that was made for another model."""
    if plan.model_digest != subject.digest:
        raise UsageError("the plan was made for another model; write one for this model with `onnxprune plan`")
    known = {g.name: g.width for g in subject.channels.groups}
    found = all_blocks(subject.graph, subject.channels) if plan.blocks() else ()
    blocks = {edit_of(b, subject.channels) for b in found}
    for e in plan.edits:
        if isinstance(e, DropBlock) and e not in blocks:
            raise UsageError(f"the plan drops block {e.block!r}, which is no residual block of the model")
        if isinstance(e, KeepChannels) and not e.keep and e not in blocks:
            raise UsageError(f"the plan keeps no channel of group {e.group!r}, which others than Concats read")
    factorable(subject.graph, plan.factorized())
    for e in plan.cuts():
        if known.get(e.group) != e.width:
            raise UsageError(f"the plan names group {e.group!r} with {e.width} channels, which the model lacks")


def measure_latency(result: Result, subject: Subject, settings: Settings, progress: Progress | None = None) -> Result:
    """Time the original against the pruned model, interleaved, and add the outcome to the result."""
    report = (lambda k, n: progress("bench", k, n)) if progress else None
    timed = _paired(subject, [subject.model, result.model], settings, 40, report)
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


def _paired(
    subject: Subject,
    models: Sequence[onnx.ModelProto],
    settings: Settings,
    rounds: int,
    progress: Callable[[int, int], None] | None = None,
) -> BenchResult:
    """Models timed side by side."""
    return time_models(
        models,
        names=["original", "pruned"][: len(models)],
        feeds=subject.timed(settings.batch),
        providers=settings.providers,
        provider_options=settings.provider_options,
        threads=settings.threads or 1,
        seed=settings.seed,
        rounds=rounds,
        time_budget_s=30,
        progress=progress,
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
    target: Target | None = None,
    metric: str | Metric | None = None,
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
        target: what to reach instead of a ratio: `Target("speedup", 2.0)`, "latency_ms", "size_mb" or "max_drop".
        metric: for "max_drop", see `reach`.
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
    if target is not None:
        return reach(subject, chosen, target, metric=metric, progress=progress)
    return plan_and_apply(subject, chosen, bench=bench, progress=progress)


__all__ = [
    "ChannelGroup",
    "ModelError",
    "Settings",
    "Subject",
    "Target",
    "apply_plan",
    "make_plan",
    "open_model",
    "plan_and_apply",
    "prune",
    "reach",
    "sweep",
]
