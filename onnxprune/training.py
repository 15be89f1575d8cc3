"""Pruning while training: the methods of the torch room as one pipeline, from an ONNX file to a Result.

    decide sizes → train so that the cut costs nothing → cut → check → compare with the original

torch is imported by the function that trains, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from onnxprune import api
from onnxprune.errors import BudgetError, UsageError
from onnxprune.graph.model import Graph, digest
from onnxprune.graph.runtime import open_session
from onnxprune.measure.cost import CostModel
from onnxprune.measure.verify import check_fidelity
from onnxprune.plan import KeepChannels, PrunePlan
from onnxprune.planning import BATCH, Progress, counted
from onnxprune.report.result import Result
from onnxprune.subject import Settings, Subject

if TYPE_CHECKING:
    from onnxprune.train.loop import Training
    from onnxprune.train.objective import Objective

METHODS = ("csgd", "gsm", "trp")
RATES = {"csgd": 0.03, "gsm": 5e-3, "trp": 0.01}
"""Highest learning rate of each method unless another is given: what its paper takes, or near it."""


@dataclass(frozen=True)
class TrainSettings:
    """How to prune while training.

    Attributes:
        method: "csgd" (channels of a cluster become the same), "gsm" (channels that matter least die) or "trp"
            (layers become of low rank, and are split).
        ratio: share of the multiply-accumulates to remove.
        steps: of the optimizer.
        batch: samples of a step; a recipe has batches of its own.
        lr: highest learning rate; None: the method's.
        augment: how unlabelled samples are varied: "flip", "shift=2", "mixup=0.5".
        recipe: file.py with labelled data and a loss; None: the original teaches on the calibration samples.
        include, exclude: regular expressions on the names of groups and their weights.
        checkpoint: file to go on from, written every 20 seconds.
        metrics: file that gets a line of JSON every hundred steps.
        seed: for everything random.
        threads: of torch and ONNX Runtime.
    """

    method: str
    ratio: float = 0.5
    steps: int = 2000
    batch: int = 64
    lr: float | None = None
    augment: tuple[str, ...] = ()
    recipe: str | None = None
    include: str | None = None
    exclude: str | None = None
    checkpoint: Path | None = None
    metrics: Path | None = None
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"unknown method {self.method!r}; one of {', '.join(METHODS)}")
        if find_spec("torch") is None:
            raise UsageError(f'--method {self.method} needs torch - pip install "onnxprune[train]"')
        if self.steps < 1 or self.batch < 1 or (self.lr is not None and self.lr <= 0):
            raise UsageError("steps, batch and learning rate are above 0")
        self.deciding()

    def deciding(self) -> Settings:
        """What decides the sizes."""
        methods = ("rank",) if self.method == "trp" else ("channels",)
        return Settings(
            ratio=self.ratio, methods=methods, include=self.include, exclude=self.exclude,
            seed=self.seed, threads=self.threads, repair="none",
        )  # fmt: skip


def train_and_prune(subject: Subject, settings: TrainSettings, progress: Progress | None = None) -> Result:
    """A smaller model whose cut was prepared by training.

        subject = onnxprune.open_model("model.onnx", calibration=batches)
        result = onnxprune.train_and_prune(subject, TrainSettings("csgd", ratio=0.5, recipe="recipe.py"))

    The result's plan and cuts belong to the trained weights; costs and fidelity are compared with the original. A note
    says how much the cut itself changed an output.

    Args:
        subject: from `open_model`; its samples decide the sizes, and teach where there is no recipe.
        settings: how.
        progress: called with (phase, done, total).

    Raises:
        PruneError: see `onnxprune.errors`.
    """
    from onnxprune.train.loop import Training, start, together
    from onnxprune.train.objective import objective

    start(settings.seed, settings.threads)
    fit = None if subject.calibration is None else subject.calibration.split(seed=settings.seed)[0]
    batches = [] if fit is None else list(fit.batches(settings.batch))
    training = Training(
        settings.steps, lr=settings.lr or RATES[settings.method], optimizer="sgd", clip=None,
        checkpoint=settings.checkpoint, metrics=settings.metrics,
    )  # fmt: skip
    with together():
        loss = objective(
            subject.graph, subject.channels, batches, settings.recipe,
            batch=settings.batch, augment=settings.augment, seed=settings.seed,
        )  # fmt: skip
        report = (lambda k, n: progress("train", k, n)) if progress else None
        prepared = PREPARE[settings.method](subject, settings, loss, training, report, progress)
    return _finished(subject, settings, prepared, progress)


@dataclass(frozen=True)
class Prepared:
    """A model that training has prepared for a cut.

    Attributes:
        trained: before anything was merged or cut.
        model: what is cut.
        plan: how; its digest is that of `model`.
        words: what the method found.
    """

    trained: onnx.ModelProto
    model: onnx.ModelProto
    plan: PrunePlan
    words: str


Report = Callable[[int, int], None] | None
Prepare = Callable[[Subject, TrainSettings, "Objective", "Training", Report, Progress | None], Prepared]


def _csgd(subject: Subject, settings: TrainSettings, loss: Objective, training: Training, report: Report,
          progress: Progress | None) -> Prepared:  # fmt: skip
    from onnxprune.train.csgd import csgd

    decided = api.make_plan(subject, settings.deciding(), progress)
    widths = {name: len(keep) for name, keep in decided.keep().items()}
    merged = csgd(subject.model, subject.channels, widths, loss, training, progress=report)
    words = f"the members of a cluster differ by at most {merged.spread:.1e} of their tensor's largest entry"
    return Prepared(merged.trained, merged.model, _kept(subject, settings, merged.model, merged.keep), words)


def _gsm(subject: Subject, settings: TrainSettings, loss: Objective, training: Training, report: Report,
         progress: Progress | None) -> Prepared:  # fmt: skip
    from onnxprune.train.gsm import gsm_channels

    channels, limits = subject.channels, settings.deciding().limits()
    groups = [g for g in channels.groups if limits.allows(g)]
    cost = CostModel(subject.graph, channels, "macs")
    each = cost.per_unit(np.ones(channels.unit_count + 1, bool))
    least = {g.name: tuple(range(min(limits.step(g), g.width))) for g in groups}
    if cost.removed(channels.alive(least)) < settings.ratio:
        raise BudgetError(f"ratio {settings.ratio:g} is out of reach; ask for less, or exclude fewer groups")
    sparse = gsm_channels(
        subject.model, channels, groups,
        lambda keep: cost.removed(channels.alive(keep)) >= settings.ratio,
        {g.name: float(each[g.units].mean()) for g in groups}, {g.name: limits.step(g) for g in groups},
        loss, training, progress=report,
    )  # fmt: skip
    words = f"what was passive has shrunk to {sparse.left:.1e} of its tensor's largest entry"
    return Prepared(sparse.model, sparse.model, _kept(subject, settings, sparse.model, sparse.keep), words)


def _trp(subject: Subject, settings: TrainSettings, loss: Objective, training: Training, report: Report,
         progress: Progress | None) -> Prepared:  # fmt: skip
    from onnxprune.train.trp import trp

    edits = api.make_plan(subject, settings.deciding(), progress).factorized()
    low = trp(subject.model, edits, loss, training, progress=report)
    words = f"the last truncation took at most {low.lost:.1e} of a layer's energy"
    plan = PrunePlan(digest(low.model), edits, _decided(settings))
    return Prepared(low.trained, low.model, plan, words)


PREPARE: Mapping[str, Prepare] = {"csgd": _csgd, "gsm": _gsm, "trp": _trp}


def _decided(settings: TrainSettings) -> dict[str, object]:
    return {"trained": settings.method, "ratio": settings.ratio, "steps": settings.steps, "seed": settings.seed}


def _kept(subject: Subject, settings: TrainSettings, model: onnx.ModelProto, keep: Mapping[str, tuple[int, ...]]
          ) -> PrunePlan:  # fmt: skip
    width = {g.name: g.width for g in subject.channels.groups}
    edits = [KeepChannels(name, width[name], kept) for name, kept in keep.items() if len(kept) < width[name]]
    return PrunePlan(digest(model), tuple(edits), _decided(settings))


def _finished(subject: Subject, settings: TrainSettings, prepared: Prepared, progress: Progress | None) -> Result:
    """Cut, and compare with the trained model and with the original."""
    own = replace(
        subject, model=prepared.model, graph=Graph(prepared.model), digest=prepared.plan.model_digest, warnings=[]
    )
    result = api.apply_plan(own, prepared.plan, settings.deciding())
    data, fidelity = subject.calibration, None
    feeds = dict(subject.feeds)
    if data is not None:
        held = data.split(seed=settings.seed)[1]
        feeds = held.first(BATCH)
        fidelity = check_fidelity(
            subject.model, result.model, counted(held, "verify", progress), held_out=not held.shared
        )
    before, after = (open_session(m, threads=1).run(feeds) for m in (prepared.trained, result.model))
    change = max(float(np.abs(a - b).max()) for a, b in zip(before, after, strict=True))
    size = max(float(np.abs(a).max()) for a in before)
    notes = (
        f"{settings.method}, {settings.steps} steps: {prepared.words}",
        f"the cut changed an output of the trained model by at most {change:.1e} (largest output {size:.3g})",
    )
    warnings = [w for w in result.warnings if not w.startswith("no calibration data")]
    return replace(
        result, source=subject.path, before=subject.cost(), fidelity=fidelity,
        notes=notes, warnings=(*subject.warnings, *warnings),
    )  # fmt: skip
