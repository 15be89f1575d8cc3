"""A plan carried out: cut, proven, repaired, and compared with the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from onnxprune.channels import CutSizes
from onnxprune.decide.blocks import all_blocks
from onnxprune.errors import ModelError, PruneError, UnsupportedError, UsageError
from onnxprune.graph.layers import layers
from onnxprune.graph.model import Graph
from onnxprune.graph.seeds import without_seeds
from onnxprune.graph.shapes import observe
from onnxprune.measure.cost import Cost, count_macs, count_params, shares_weights
from onnxprune.measure.surgery import check_fidelity
from onnxprune.parallel import one_blas_thread
from onnxprune.pipeline.block_trials import edit_of
from onnxprune.pipeline.planner import Progress, counted
from onnxprune.pipeline.proof import check_repaired, cut_and_prove
from onnxprune.pipeline.repairs import distilled, factorized, merged, repaired
from onnxprune.pipeline.settings import Settings, Subject
from onnxprune.plan import DropBlock, KeepChannels, PrunePlan
from onnxprune.protobuf.serialize import byte_size
from onnxprune.report.result import Result
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.drop import bypass, drop_blocks
from onnxprune.rewrite.factorize import factorable
from onnxprune.timing.latency import BenchResult
from onnxprune.timing.latency import bench as time_models

MERGED = "similarity"
"""The criterion whose removed channels are merged before a repair of statistics; a refit gains nothing from it."""


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
    check_plan(subject, plan)
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
    after = Cost(count_params(pruned), _macs(pruned, CutSizes(channels, alive), subject.feeds), byte_size(pruned))
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


def check_plan(subject: Subject, plan: PrunePlan) -> None:
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
    timed = paired(subject, [subject.model, result.model], settings, 40, report)
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


def paired(
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
