"""The pipeline, in one screen: the functions behind the command line and the Python API.

    model → find_channels → calibrate → score → allocate → PrunePlan → apply → repair → verify → Result

Nothing here prints, and nothing is written unless `Result.save` is called.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec

from onnxprune.channels import ChannelGroup
from onnxprune.errors import BudgetError, FidelityWarning, ModelError
from onnxprune.measure.metric import Metric
from onnxprune.measure.verdict import KEPT
from onnxprune.pipeline import apply, plans, training
from onnxprune.pipeline import reach as targets
from onnxprune.pipeline.asked import Progress
from onnxprune.pipeline.gates import Gates
from onnxprune.pipeline.goals import Goal, Lossless, Ratio, Target, goal_of
from onnxprune.pipeline.joint_search import search_with
from onnxprune.pipeline.opened import ModelLike, Subject, open_model
from onnxprune.pipeline.options import hinting
from onnxprune.pipeline.pictured import pictured
from onnxprune.pipeline.plans import make_plan
from onnxprune.pipeline.settings import OPTIONS, TRIALS, Settings
from onnxprune.pipeline.timed import measure_latency
from onnxprune.pipeline.transfer import transfer
from onnxprune.report.provenance import call_words, this_run
from onnxprune.report.result import Result
from onnxprune.report.searched import Searched
from onnxprune.samples.images import ImageSpec

P = ParamSpec("P")


def judging(function: Callable[P, Result]) -> Callable[P, Result]:
    """The function; where what it makes is not kept (`measure.verdict`), a `FidelityWarning` says so."""

    @wraps(function)
    def called(*args: P.args, **given: P.kwargs) -> Result:
        result = function(*args, **given)
        _warn(result)
        return result

    return called


LOG = logging.getLogger("onnxprune")
"""Told of every phase, at INFO."""


def _logged(progress: Progress | None) -> Progress | None:
    """What is called with progress, and logs every phase as it begins; the same where nobody listens."""
    if not LOG.isEnabledFor(logging.INFO):
        return progress
    began, now = time.monotonic(), ""

    def report(phase: str, done: int, total: int) -> None:
        nonlocal now
        if phase != now:
            now = phase
            LOG.info("%.1f s: %s", time.monotonic() - began, phase)
        if progress is not None:
            progress(phase, done, total)

    return report


def _warn(result: Result) -> None:
    found = result.fidelity
    if found is not None and found.verdict not in (None, KEPT):
        warnings.warn(f"{found.verdict}: {found.why} on {found.samples} samples", FidelityWarning, stacklevel=3)


apply_plan = judging(apply.apply_plan)
plan_and_apply = judging(plans.plan_and_apply)
reach = judging(targets.reach)
train_and_prune = judging(training.train_and_prune)


def _judging_each(function: Callable[P, Iterator[Result]]) -> Callable[P, Iterator[Result]]:
    """The same for what makes several."""

    @wraps(function)
    def called(*args: P.args, **given: P.kwargs) -> Iterator[Result]:
        for result in function(*args, **given):
            _warn(result)
            yield result

    return called


sweep = _judging_each(plans.sweep)


@judging
@hinting
def prune(
    model: ModelLike,
    ratio: float = 0.5,
    *,
    target: Target | None = None,
    lossless: bool = False,
    metric: str | Metric | None = None,
    calibration: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int | None = None,
    image: ImageSpec | None = None,
    bench: bool = False,
    report_samples: int = 0,
    trusted: bool = False,
    gates: Gates | None = None,
    progress: Progress | None = None,
    of: str | None = None,
    criterion: str | None = None,
    allocation: str | None = None,
    round_to: int | str = "auto",
    min_width: int = 1,
    include: str | None = None,
    exclude: str | None = None,
    methods: tuple[str, ...] | None = None,
    keep_block: str | None = None,
    best_effort: bool = False,
    prune_statistics: bool = False,
    input_value: Mapping[str, Sequence[float]] | None = None,
    batch_axis: Mapping[str, int] | None = None,
    repair: str | None = None,
    epochs: int = 40,
    minutes: float | None = None,
    augment: tuple[str, ...] | None = None,
    recipe: str | None = None,
    quantize: str | None = None,
    precision: str | None = None,
    batch: int = 1,
    providers: tuple[str, ...] = ("cpu",),
    provider_options: Mapping[str, Mapping[str, object]] | None = None,
    device: str | None = None,
    refine: tuple[str, ...] | None = None,
    metadata: bool = True,
    output_kind: Mapping[str, str] | None = None,
    weight: Mapping[str, float] | None = None,
    threads: int | None = None,
    memory: int | None = None,
    backend: str | None = None,
    address: str | None = None,
    store: str | None = None,
    seed: int = 0,
) -> Result:
    """A smaller model that computes nearly the same: the whole pipeline.

        result = onnxprune.prune("model.onnx", ratio=0.5, calibration=batches)
        result.save("model.pruned.onnx")

    Args:
        model: a path, or a model in memory (left untouched): a ModelProto, bytes, an `onnx_graphsurgeon.Graph` or an
            `onnx_ir.Model`.
        ratio: share of the multiply-accumulates to remove (or of what `of` names).
        target: what to reach instead of a ratio: `Target("speedup", 2.0)`, "latency_ms", "size_mb" or "max_drop".
        lossless: instead of a ratio, remove only what changes no output.
        metric: for "max_drop", see `reach`.
        calibration: unlabelled samples: arrays, dicts of arrays, an iterable or function giving them, a path,
            or an ORT `CalibrationDataReader`. A quarter is held out for the fidelity check.
        input_shapes: sizes for dynamic axes, by input name.
        samples: use at most so many samples.
        image: how to read a folder of images.
        bench: also measure latency, original against pruned.
        report_samples: so many samples that nothing was fitted on are shown on the page, and kept in the JSON.
        trusted: whether the model's first runs are made in this process; else in children that can be killed.
        gates: what the outcome must keep: `Gates(min_top1=0.95)`.
        progress: called with (phase, done, total).
        of, criterion, and all others: as in `Settings`.

    Returns:
        The pruned model with costs, fidelity, the plan and the cuts. Nothing is printed or written. A `FidelityWarning`
        tells where the outputs have changed or are destroyed (`result.verdict`).

    Raises:
        BudgetError: the goal is out of reach, or a gate is missed.
        PruneError: see `onnxprune.errors`.
    """
    given = locals()
    progress = _logged(progress)
    settings = Settings(**{name: given[name] for name in OPTIONS})
    goal = goal_of(ratio, target, lossless)
    settings = goal.serve(settings)
    subject = open_model(
        model, calibration=calibration, input_shapes=input_shapes, samples=samples, image=image,
        input_value=input_value, batch_axis=batch_axis, prune_statistics=prune_statistics, output_kind=output_kind,
        weight=weight, trusted=trusted,
    )  # fmt: skip
    if isinstance(goal, Target):
        result = targets.reach(subject, goal, settings, metric=metric, progress=progress)
    else:
        result = plans.plan_and_apply(subject, goal, settings, bench=bench, progress=progress)
    result = pictured(result, subject, settings, report_samples)
    if gates is not None:
        missed = gates.missed(result.fidelity, lambda: targets.change(subject, settings, metric, result.runs))
        if missed:
            raise BudgetError("; ".join(missed))
    return _called(result, given)


def _called(result: Result, given: Mapping[str, Any]) -> Result:
    """The result, which knows the call of `prune` that it comes from."""
    usual = {p.name: p.default for p in signature(prune).parameters.values() if p.default is not p.empty}
    call = call_words("onnxprune.prune", {k: v for k, v in given.items() if k != "progress"}, usual)
    named = {} if result.source is None else {"model": result.source.name}
    return replace(result, made=replace(result.made, run={**named, **this_run(call=call)}))


@hinting
def search(
    model: ModelLike,
    calibration: Any,
    *,
    storage: str | None = None,
    trials: int = TRIALS,
    workers: int = 1,
    metric: str | Metric | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int | None = None,
    image: ImageSpec | None = None,
    trusted: bool = False,
    progress: Progress | None = None,
    of: str | None = None,
    criterion: str | None = None,
    allocation: str | None = None,
    round_to: int | str = "auto",
    min_width: int = 1,
    include: str | None = None,
    exclude: str | None = None,
    methods: tuple[str, ...] | None = None,
    keep_block: str | None = None,
    best_effort: bool = False,
    prune_statistics: bool = False,
    input_value: Mapping[str, Sequence[float]] | None = None,
    batch_axis: Mapping[str, int] | None = None,
    repair: str | None = None,
    epochs: int = 40,
    minutes: float | None = None,
    augment: tuple[str, ...] | None = None,
    recipe: str | None = None,
    quantize: str | None = None,
    precision: str | None = None,
    batch: int = 1,
    providers: tuple[str, ...] = ("cpu",),
    provider_options: Mapping[str, Mapping[str, object]] | None = None,
    metadata: bool = True,
    output_kind: Mapping[str, str] | None = None,
    weight: Mapping[str, float] | None = None,
    threads: int | None = None,
    memory: int | None = None,
    backend: str | None = None,
    address: str | None = None,
    store: str | None = None,
    seed: int = 0,
) -> Searched:
    """Many choices of settings, tried: which of them nothing beats in the metric, the cost and the size.

        found = onnxprune.search("model.onnx", batches, trials=40, metric="labelled.npz")
        plan = found.plans[found.front()[0].number]  # for `apply_plan`

    Args:
        model, calibration, input_shapes, samples, image, trusted: as for `prune`.
        storage: where trials are kept: a journal file, or the address of a database, sqlite:///trials.db. The same call
            goes on where the last one stopped, and one on another machine joins. None: in memory.
        trials: so many in all, those that are in the storage already among them.
        workers: processes of this machine that make trials. With more than one the model must be smaller than 2 GB.
        metric: what is to stay high: file.py:function, a file of labelled samples, the name of a figure, or, with one
            worker, a function of a model; None: agreement with the original on samples held out.
        progress: called with (phase, done, total).
        of, criterion, and all others: as in `Settings`; those given are not searched over.

    Raises:
        UsageError: no optuna, or workers that cannot be.
        FileError: the storage cannot be used.
        PruneError: as `prune`.
    """
    given = locals()
    settings = Settings(**{name: given[name] for name in OPTIONS if name in given})
    subject = open_model(
        model, calibration=calibration, input_shapes=input_shapes, samples=samples, image=image,
        input_value=input_value, batch_axis=batch_axis, prune_statistics=prune_statistics, output_kind=output_kind,
        weight=weight, trusted=trusted,
    )  # fmt: skip
    return search_with(
        subject, storage, settings, trials=trials, workers=workers, metric=metric, progress=_logged(progress)
    )


__all__ = [
    "ChannelGroup",
    "Gates",
    "Goal",
    "Lossless",
    "ModelError",
    "Ratio",
    "Settings",
    "Subject",
    "Target",
    "apply_plan",
    "make_plan",
    "measure_latency",
    "open_model",
    "pictured",
    "plan_and_apply",
    "prune",
    "reach",
    "search",
    "sweep",
    "train_and_prune",
    "transfer",
]
