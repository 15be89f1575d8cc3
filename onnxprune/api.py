"""The pipeline, in one screen: the functions behind the command line and the Python API.

    model → find_channels → calibrate → score → allocate → PrunePlan → apply → repair → verify → Result

Nothing here prints, and nothing is written unless `Result.save` is called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.channels import ChannelGroup, Channels, Cut, common_reasons, find_channels, removed_cuts
from onnxprune.decide.allocation import ALLOCATIONS, Limits
from onnxprune.decide.study import CHOICES, SAMPLED, Samples, study
from onnxprune.errors import BudgetError, ModelError, UnsupportedError, UsageError
from onnxprune.graph import files, runtime
from onnxprune.graph.model import Graph, digest
from onnxprune.graph.shapes import observe
from onnxprune.measure.calibration import Calibration, ImageSpec, open_calibration
from onnxprune.measure.cost import Cost, CostModel, count_macs, count_params
from onnxprune.measure.latency import bench as time_models
from onnxprune.measure.likeness import distances
from onnxprune.measure.verify import check_fidelity, check_surgery
from onnxprune.plan import KeepChannels, PrunePlan
from onnxprune.report.result import Result
from onnxprune.rewrite.cut import cut as cut_channels
from onnxprune.rewrite.merge import cut_merged
from onnxprune.rewrite.refit import refit
from onnxprune.rewrite.statistics import repair_statistics

REPAIRS = ("none", "statistics", "refit")
METHODS = ("channels",)
BATCH = 32
REPAIR_SAMPLES = 512
MERGED = "similarity"
"""The criterion whose removed channels are merged before a repair of statistics; a refit gains nothing from it."""

ModelLike = str | PathLike[str] | onnx.ModelProto
Progress = Callable[[str, int, int], None]
"""Called with (phase, done, total)."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome besides the model and the samples.

    Attributes:
        ratio: share of the cost to remove, between 0 and 1.
        of: what counts: "macs", "params" or "channels".
        criterion: how channels are ranked; None: "elimination" when there are samples, else "activation".
        allocation: "adaptive", "global" or "uniform"; None: adaptive when there are samples, else uniform.
        repair: "none", "statistics" or "refit"; None: refit when there are samples.
        round_to: widths are multiples of this, or "auto".
        min_width: least width of a group.
        include, exclude: regular expressions on the names of groups and their weights.
        methods: kinds of edits; so far channels only.
        best_effort: take what can be reached instead of failing when the ratio cannot.
        seed: for everything random.
        threads: ORT threads; None: ORT's choice.
    """

    ratio: float = 0.5
    of: str = "macs"
    criterion: str | None = None
    allocation: str | None = None
    repair: str | None = None
    round_to: int | str = "auto"
    min_width: int = 1
    include: str | None = None
    exclude: str | None = None
    methods: tuple[str, ...] = METHODS
    best_effort: bool = False
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise UsageError(f"ratio {self.ratio} is not between 0 and 1; 0.5 removes half")
        _one_of("criterion", self.criterion, CHOICES)
        _one_of("repair", self.repair, REPAIRS)
        _one_of("allocation", self.allocation, ALLOCATIONS)
        _one_of("of", self.of, ("macs", "params", "channels"))
        for method in self.methods:
            _one_of("method", method, METHODS)
        if self.min_width < 1 or (self.round_to != "auto" and int(self.round_to) < 1):
            raise UsageError("widths and their rounding are at least 1")
        if self.seed < 0 or (self.threads is not None and self.threads < 1):
            raise UsageError("the seed is at least 0, the number of threads at least 1")
        for pattern in filter(None, (self.include, self.exclude)):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UsageError(f"{pattern!r} is not a regular expression: {error}") from error

    def choices(self, samples: bool) -> tuple[str, str]:
        """Criterion and allocation, with or without samples.

        Raises:
            UsageError: one was asked for that needs samples, and there are none; or an extra is missing.
        """
        criterion = self.criterion or ("elimination" if samples else "activation")
        allocation = self.allocation or ("adaptive" if samples else "uniform")
        if not samples:
            for option, value, needs in (
                ("criterion", criterion, SAMPLED),
                ("allocation", allocation, ("adaptive",)),
            ):
                if value in needs:
                    raise UsageError(f"--{option} {value} needs samples; give --calib")
        if criterion == "lasso" and find_spec("sklearn") is None:
            raise UsageError('--criterion lasso needs scikit-learn - pip install "onnxprune[lasso]"')
        return criterion, allocation


def _one_of(what: str, value: str | None, known: Sequence[str] | Mapping[str, Any]) -> None:
    if value is not None and value not in known:
        raise UsageError(f"unknown {what} {value!r}; one of {', '.join(known)}")


@dataclass(frozen=True)
class Subject:
    """A model opened for pruning: checked, run once, analysed."""

    model: onnx.ModelProto
    graph: Graph
    feeds: Mapping[str, np.ndarray]
    channels: Channels
    digest: str
    path: Path | None = None
    calibration: Calibration | None = None
    warnings: list[str] = field(default_factory=list)

    def cost(self) -> Cost:
        """The original's cost."""
        macs = count_macs(self.graph, self.channels.shapes)
        return Cost(count_params(self.model), macs, self.model.ByteSize())


def open_model(
    model: ModelLike,
    *,
    calibration: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int | None = None,
    image: ImageSpec | None = None,
) -> Subject:
    """Read, check, run once and analyse a model.

    Args:
        model: a path or a ModelProto (left untouched).
        calibration: unlabelled samples in any form that `open_calibration` takes, or None.
        input_shapes: sizes for dynamic axes, by input name; else the samples' sizes, else a guess.
        samples: use at most so many samples.
        image: how to turn a folder of images into samples.

    Raises:
        ModelError, CalibrationError, FileError: what was given cannot be used.
    """
    path = None if isinstance(model, onnx.ModelProto) else Path(model)
    proto = files.check_model(model) if isinstance(model, onnx.ModelProto) else files.read_model(Path(model))
    specs = runtime.input_specs(proto)
    data = None
    if calibration is not None:
        data = open_calibration(calibration, specs, limit=samples, image=image)
    if data is not None and not input_shapes:
        feeds = data.first(1)
    else:
        feeds = runtime.default_feed(specs, shapes=input_shapes)
    graph = Graph(proto)
    channels = find_channels(graph, observe(graph, feeds))
    return Subject(proto, graph, feeds, channels, digest(proto), path, data)


def make_plan(subject: Subject, settings: Settings, progress: Progress | None = None) -> PrunePlan:
    """Decide which channels go.

    Raises:
        UnsupportedError: nothing can be pruned; the message names the most common reasons.
        BudgetError: the ratio cannot be reached (unless `best_effort`).
    """
    return next(make_plans(subject, settings, [settings.ratio], progress))


def make_plans(
    subject: Subject, settings: Settings, ratios: Sequence[float], progress: Progress | None = None
) -> Iterator[PrunePlan]:
    """One plan a ratio, all from one look at the samples. `settings.ratio` plays no part."""
    channels = subject.channels
    if not channels.groups:
        raise UnsupportedError(f"nothing can be pruned: {why_not(channels)}")
    limits = Limits(settings.round_to, settings.min_width, settings.include, settings.exclude)
    if not any(limits.allows(g) for g in channels.groups):
        raise UsageError("--include and --exclude leave no group to cut; `onnxprune inspect` lists the groups")
    criterion, how = settings.choices(subject.calibration is not None)
    known = study(
        subject.model,
        subject.graph,
        channels,
        _samples(subject, settings, progress),
        criterion=criterion,
        adaptive=how == "adaptive",
        limits=limits,
        threads=settings.threads,
        seed=settings.seed,
        progress=(lambda k, n: progress("decide", k, n)) if progress else None,
    )
    cost = CostModel(subject.graph, channels, settings.of)
    for ratio in ratios:
        found = known.allocate(cost, ratio, how)
        if not found.met and not settings.best_effort:
            raise BudgetError(
                f"only {found.removed:.1%} of the {settings.of} can go, not {ratio:.1%}: "
                f"{why_not(channels)}; ask for less or add --best-effort"
            )
        widths = {g.name: g.width for g in channels.groups}
        edits = tuple(KeepChannels(n, widths[n], keep) for n, keep in found.keep.items())
        decided = {
            "ratio": ratio,
            "of": settings.of,
            "criterion": criterion,
            "allocation": how,
            "seed": settings.seed,
        }
        yield PrunePlan(subject.digest, edits, decided)


def _samples(subject: Subject, settings: Settings, progress: Progress | None) -> Samples | None:
    """The fitting part of the calibration samples."""
    if subject.calibration is None:
        return None
    fit, _ = subject.calibration.split(seed=settings.seed)
    return Samples(
        lambda size: _counted(fit, "calibrate", progress, size), lambda n: list(fit.take(n).batches(min(n, BATCH)))
    )


def _counted(data: Calibration, phase: str, progress: Progress | None, size: int = BATCH):
    done = 0
    for feeds in data.batches(size):
        yield feeds
        done += len(next(iter(feeds.values())))
        if progress:
            progress(phase, done, len(data))


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
    alive = channels.alive(plan.keep())
    pruned = cut_channels(subject.graph, channels, alive)
    cuts = removed_cuts(subject.graph, channels, alive)
    fit, held = data.split(seed=settings.seed) if data is not None else (None, None)
    probe = [subject.feeds] if held is None else [held.first(8)]
    surgery = check_surgery(subject.model, pruned, cuts, probe)
    if not surgery.exact:
        raise BudgetError(f"the cut model differs from the masked original by {surgery.worst:.1e}; please report it")
    warnings = list(subject.warnings)
    repair = settings.repair or ("refit" if fit is not None else "none")
    if repair != "none" and fit is None:
        raise UsageError(f"--repair {repair} needs samples; give --calib")
    if fit is None:
        warnings.append(
            "no calibration data: scores are from weights alone, nothing was repaired, and accuracy "
            "will suffer; give --calib with a few hundred unlabelled samples"
        )
    elif repair != "none":
        if repair == "statistics" and plan.settings.get("criterion") == MERGED:
            pruned = _merged(subject, alive, fit, settings)
        pruned = _repaired(subject, pruned, alive, fit, repair, settings, progress)
    fidelity = None
    if held is not None:
        fidelity = check_fidelity(subject.model, pruned, _counted(held, "verify", progress), held_out=not held.shared)
    sizes = Cut(channels, alive).shapes
    after = Cost(count_params(pruned), count_macs(Graph(pruned), sizes), pruned.ByteSize())
    result = Result(
        model=pruned,
        source=subject.path,
        before=subject.cost(),
        after=after,
        surgery=surgery,
        fidelity=fidelity,
        latency=None,
        plan=plan,
        cuts=tuple(cuts),
        pinned=channels.pinned,
        groups=tuple((g.name, g.width, len(plan.keep().get(g.name, range(g.width)))) for g in channels.groups),
        repair=repair,
        warnings=tuple(warnings),
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


def _check_plan(subject: Subject, plan: PrunePlan) -> None:
    """Refuse a plan that was made for another model."""
    if plan.model_digest != subject.digest:
        raise UsageError("the plan was made for another model; write one for this model with `onnxprune plan`")
    known = {g.name: g.width for g in subject.channels.groups}
    for e in plan.edits:
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
    fit: Calibration,
    repair: str,
    settings: Settings,
    progress: Progress | None,
) -> onnx.ModelProto:
    """The pruned model after the repair of that name, fitted on `fit`."""
    batches = list(fit.take(REPAIR_SAMPLES).batches(BATCH))
    report = (lambda k, n: progress("repair", k, n)) if progress else None
    mend = partial(refit, seed=settings.seed) if repair == "refit" else repair_statistics
    return mend(subject.graph, pruned, subject.channels, alive, batches, threads=settings.threads, progress=report)


def measure_latency(result: Result, subject: Subject, settings: Settings, progress: Progress | None = None) -> Result:
    """Time the original against the pruned model, interleaved, and add the outcome to the result."""
    feeds = {k: v[:1] if _dynamic_batch(subject, k) else v for k, v in subject.feeds.items()}
    report = (lambda k, n: progress("bench", k, n)) if progress else None
    timed = time_models(
        [subject.model, result.model],
        names=["original", "pruned"],
        feeds=feeds,
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


def _dynamic_batch(subject: Subject, name: str) -> bool:
    spec = next(s for s in runtime.input_specs(subject.model) if s.name == name)
    return bool(spec.shape) and not isinstance(spec.shape[0], int)


def why_not(channels: Channels, most: int = 3) -> str:
    """The most common reasons for what is pinned, in words."""
    top = common_reasons(channels.pinned, most)
    return "; ".join(f"{reason} ({n} channels)" for reason, n in top) or "it has no weights that we know"


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
    subject = open_model(model, calibration=calibration, input_shapes=input_shapes, samples=samples, image=image)
    plan = make_plan(subject, chosen, progress)
    return apply_plan(subject, plan, chosen, bench=bench, progress=progress)


__all__ = [
    "ChannelGroup",
    "ModelError",
    "Settings",
    "Subject",
    "apply_plan",
    "make_plan",
    "open_model",
    "prune",
    "sweep",
]
