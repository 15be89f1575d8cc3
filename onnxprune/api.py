"""The pipeline, in one screen: the functions behind the command line and the Python API.

    model → find_channels → calibrate → score → allocate → PrunePlan → apply → repair → verify → Result

Nothing here prints, and nothing is written unless `Result.save` is called.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.channels import (
    ChannelGroup,
    Channels,
    Cut,
    common_reasons,
    find_channels,
)
from onnxprune.decide.allocation import ALLOCATIONS, Limits
from onnxprune.decide.study import CHOICES, SAMPLED, Samples, study
from onnxprune.errors import BudgetError, ModelError, UnstableError, UnsupportedError, UsageError
from onnxprune.graph import files, runtime
from onnxprune.graph.model import Graph, digest
from onnxprune.graph.shapes import Observed, observe
from onnxprune.lossless import in_words, plan_lossless
from onnxprune.measure.calibration import Calibration, ImageSpec, open_calibration
from onnxprune.measure.cost import Cost, CostModel, count_macs, count_params
from onnxprune.measure.latency import bench as time_models
from onnxprune.measure.likeness import distances
from onnxprune.measure.verify import check_fidelity
from onnxprune.plan import KeepChannels, PrunePlan
from onnxprune.report.result import Result
from onnxprune.rewrite.imagined import repair_imagined, repair_merge
from onnxprune.rewrite.nearest import cut_merged
from onnxprune.rewrite.refit import refit
from onnxprune.rewrite.statistics import repair_statistics
from onnxprune.stitched import best
from onnxprune.surgery import operate

REPAIRS = ("none", "merge", "statistics", "refit")
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
        repair: "none", "merge", "statistics" or "refit"; None: refit when there are samples, else merge.
        round_to: widths are multiples of this, or "auto".
        min_width: least width of a group.
        include, exclude: regular expressions on the names of groups and their weights.
        methods: kinds of edits; so far channels only.
        lossless: remove only what changes no output; the ratio does not count then.
        best_effort: take what can be reached instead of failing when the ratio cannot.
        prune_statistics: also cut axes over which a normalization takes its mean; the cut is then inexact.
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
    lossless: bool = False
    best_effort: bool = False
    prune_statistics: bool = False
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
        if self.lossless and self.repair not in (None, "none"):
            raise UsageError(f"a lossless cut leaves nothing to repair; drop --repair {self.repair}")
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
        return Cost(count_params(self.model), macs, files.byte_size(self.model))


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
    channels = replace(subject.channels, groups=tuple(g for g in subject.channels.groups if g.name not in leave))
    if not channels.groups:
        raise UnsupportedError(f"nothing can be pruned: {why_not(channels)}")
    if settings.lossless:
        yield _lossless_plan(subject, settings)
        return
    limits = Limits(settings.round_to, settings.min_width, settings.include, settings.exclude)
    if not any(limits.allows(g) for g in channels.groups):
        raise UsageError("--include and --exclude leave no group to cut; `onnxprune inspect` lists the groups")
    criterion, how = settings.choices(subject.calibration is not None)
    samples = _samples(subject, settings, progress)
    known = study(
        subject.model,
        subject.graph,
        channels,
        samples,
        criterion=criterion,
        adaptive=how == "adaptive",
        limits=limits,
        threads=settings.threads,
        seed=settings.seed,
        progress=(lambda k, n: progress("decide", k, n)) if progress else None,
    )
    cost = CostModel(subject.graph, channels, settings.of)
    judge = partial(best, subject.graph, channels, samples=samples, repair=settings.repair or "refit")
    for ratio in ratios:
        found = judge(known.candidates(cost, ratio, how), threads=settings.threads)
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
            "prune_statistics": bool(channels.inexact),
        }
        yield PrunePlan(subject.digest, edits, decided)


def _lossless_plan(subject: Subject, settings: Settings) -> PrunePlan:
    """What can go without changing an output.

    Raises:
        UnsupportedError: nothing can.
    """
    limits = Limits(settings.round_to, settings.min_width, settings.include, settings.exclude)
    samples = [] if subject.calibration is None else [subject.calibration.first(BATCH)]
    edits, decided = plan_lossless(subject.graph, subject.channels, subject.feeds, samples, limits)
    if not edits:
        raise UnsupportedError("; ".join(["no channel can go without changing an output", *in_words(decided)]))
    return PrunePlan(subject.digest, edits, {**decided, "seed": settings.seed})


def _samples(subject: Subject, settings: Settings, progress: Progress | None) -> Samples | None:
    """The fitting part of the calibration samples, parted again: to learn from, and to judge by."""
    if subject.calibration is None:
        return None
    learnt, judges = subject.calibration.split(seed=settings.seed)[0].split(seed=settings.seed)
    return Samples(lambda size: _counted(learnt, "calibrate", progress, size), judges.batches)


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
    fidelity = None
    if held is not None:
        fidelity = check_fidelity(subject.model, pruned, _counted(held, "verify", progress), held_out=not held.shared)
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
        repeat = all(_dynamic_batch(subject, name) for name in subject.feeds)
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
