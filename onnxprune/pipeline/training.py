"""Pruning while training: the methods of the torch room as one pipeline, from an ONNX file to a Result.

    decide sizes → train so that the cut costs nothing → cut → check → compare with the original

torch is imported by the function that trains, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxprune.channels import ChannelGroup
from onnxprune.decide.blocks import Block, find_blocks
from onnxprune.errors import BudgetError, UsageError
from onnxprune.graph.model import Graph, Use, digest
from onnxprune.measure.cost import CostModel
from onnxprune.pipeline.apply import apply_plan
from onnxprune.pipeline.block_trials import drop_of
from onnxprune.pipeline.planner import BATCH, Planner, Progress
from onnxprune.pipeline.plans import make_plan
from onnxprune.pipeline.repairs import REPAIR_SAMPLES
from onnxprune.pipeline.settings import Settings, Subject
from onnxprune.plan import KeepChannels, PrunePlan
from onnxprune.report.result import Result
from onnxprune.runtime.sessions import open_session
from onnxprune.samples.calibration import open_calibration

if TYPE_CHECKING:
    from onnxprune.train.loop import Training
    from onnxprune.train.objective import Objective

METHODS = ("csgd", "gsm", "trp", "gates", "tune")
RATES = {"csgd": 0.03, "gsm": 5e-3, "trp": 0.01, "gates": 0.03, "tune": 0.03}
"""Highest learning rate of each method unless another is given: what its paper takes, or near it."""
CUT_FIRST = ("gates", "tune")
"""Methods that train the network after the cut."""
LOOKING = 0.25
"""Share of the steps in which gates are learned; in the rest the cut network is trained."""

PREPARED = 1e-2
"""Change of an output, relative to the largest, above which a cut was not prepared."""


@dataclass(frozen=True)
class TrainSettings:
    """How to prune while training.

    Attributes:
        method: "csgd" (channels of a cluster become the same), "gsm" (channels that matter least die), "trp"
            (layers become of low rank, and are split), "gates" (channels and whole residual blocks, in proportions
            that are learned) or "tune" (the plan of `make_plan`). The last two cut and refit before they train.
        ratio: share of the cost to remove.
        of: what counts: "macs", "params" or "channels".
        steps: of the optimizer.
        batch: samples of a step; a recipe has batches of its own.
        lr: highest learning rate; None: the method's.
        augment: how unlabelled samples are varied: "flip", "shift=2", "mixup=0.5", "cutmix=0.5".
        recipe: file.py with labelled data and a loss, which is added to what the original teaches; None: it teaches
            on the calibration samples.
        include, exclude: regular expressions on the names of groups and their weights.
        checkpoint: file to go on from, written every 20 seconds.
        metrics: file that gets a line of JSON every hundred steps.
        options: of the method's own: "strength" (csgd), "every", "nuclear", "project" (trp), other `Settings` (tune).
        seed: for everything random.
        threads: of torch and ONNX Runtime.
    """

    method: str
    ratio: float = 0.5
    of: str = "macs"
    steps: int = 2000
    batch: int = 64
    lr: float | None = None
    augment: tuple[str, ...] = ()
    recipe: str | None = None
    include: str | None = None
    exclude: str | None = None
    checkpoint: Path | None = None
    metrics: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"unknown method {self.method!r}; one of {', '.join(METHODS)}")
        if find_spec("torch") is None:
            raise UsageError(f'--method {self.method} needs torch - pip install "onnxprune[train]"')
        if self.steps < 1 or self.batch < 1 or (self.lr is not None and self.lr <= 0):
            raise UsageError("steps, batch and learning rate are above 0")
        if self.of not in ("macs", "params", "channels"):
            raise UsageError(f"training works towards macs, params or channels, not {self.of!r}")
        self.deciding()

    def deciding(self) -> Settings:
        """What decides the sizes."""
        methods = ("rank",) if self.method == "trp" else ("channels",)
        return Settings(
            ratio=self.ratio, of=self.of, methods=methods, include=self.include, exclude=self.exclude,
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
    if subject.calibration is None and settings.method in CUT_FIRST and settings.recipe is not None:
        subject = _with_samples(subject, settings.recipe)
    return finish(subject, settings, prepare(subject, settings, progress), progress)


def _with_samples(subject: Subject, recipe: str) -> Subject:
    """The subject with the recipe's first samples for calibration."""
    from onnxprune.train.recipe import Recipe

    batches, taken = Recipe(recipe, subject.graph.inputs), 0
    found: list[dict[str, np.ndarray]] = []
    while taken < REPAIR_SAMPLES and len(found) < REPAIR_SAMPLES:
        samples = {k: np.asarray(v) for k, v in batches.batch(len(found))[0].items()}
        found.append(samples)
        taken += len(next(iter(samples.values())))
    return replace(subject, calibration=open_calibration(found, subject.specs))


def prepare(subject: Subject, settings: TrainSettings, progress: Progress | None = None) -> Prepared:
    """The first half of `train_and_prune`: the trained model and its plan."""
    from onnxprune.train.loop import Training, start, together
    from onnxprune.train.objective import objective

    start(settings.seed, settings.threads)
    fit = None if subject.calibration is None else subject.calibration.split(seed=settings.seed)[0]
    batches = [] if fit is None else list(fit.batches(settings.batch))
    training = Training(
        settings.steps, lr=settings.lr or RATES[settings.method], optimizer="sgd", clip=None,
        checkpoint=settings.checkpoint, metrics=settings.metrics,
    )  # fmt: skip
    with together() as device:
        loss = objective(
            subject.graph, subject.channels, batches, settings.recipe,
            batch=settings.batch, augment=settings.augment, seed=settings.seed, device=device,
        )  # fmt: skip
        training = replace(training, device=device)
        report = (lambda k, n: progress("train", k, n)) if progress else None
        return PREPARE[settings.method](subject, settings, loss, training, report, progress)


@dataclass(frozen=True)
class Prepared:
    """A model that training has prepared for a cut.

    Attributes:
        trained: before anything was merged or cut.
        model: what is cut.
        plan: how; its digest is that of `model`.
        words: what the method found.
        tune: what is left to do when the model is cut and refitted: the cut model to a better one.
    """

    trained: onnx.ModelProto
    model: onnx.ModelProto
    plan: PrunePlan
    words: str
    tune: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None


Report = Callable[[int, int], None] | None
Prepare = Callable[[Subject, TrainSettings, "Objective", "Training", Report, Progress | None], Prepared]


def _csgd(subject: Subject, settings: TrainSettings, loss: Objective, training: Training, report: Report,
          progress: Progress | None) -> Prepared:  # fmt: skip
    from onnxprune.train.csgd import csgd

    decided = make_plan(subject, settings.deciding(), progress)
    widths = {name: len(keep) for name, keep in decided.keep().items()}
    merged = csgd(subject.model, subject.channels, widths, loss, training, progress=report, **settings.options)
    words = f"the members of a cluster differ by at most {merged.spread:.1e} of their tensor's largest entry"
    return Prepared(merged.trained, merged.model, _kept(subject, settings, merged.model, merged.keep), words)


def _gsm(subject: Subject, settings: TrainSettings, loss: Objective, training: Training, report: Report,
         progress: Progress | None) -> Prepared:  # fmt: skip
    from onnxprune.train.gsm import gsm_channels

    channels = subject.channels
    groups, steps, cost, each = _divisible(subject, settings)
    sparse = gsm_channels(
        subject.model, channels, groups,
        lambda keep: cost.removed(channels.alive(keep)) >= settings.ratio,
        each, steps, loss, training, progress=report, **settings.options,
    )  # fmt: skip
    words = f"what was passive has shrunk to {sparse.left:.1e} of its tensor's largest entry"
    return Prepared(sparse.model, sparse.model, _kept(subject, settings, sparse.model, sparse.keep), words)


def _divisible(
    subject: Subject, settings: TrainSettings, blocks: Sequence[Block] = ()
) -> tuple[list[ChannelGroup], dict[str, int], CostModel, dict[str, float]]:
    """(groups that may lose channels, what their widths are multiples of, the cost, what one channel of each costs).

    Raises:
        BudgetError: even with the least of every group too much is left.
    """
    channels, limits = subject.channels, settings.deciding().limits()
    groups = [g for g in channels.groups if limits.allows(g)]
    steps = {g.name: min(limits.step(g), g.width) for g in groups}
    cost = CostModel(subject.graph, channels, settings.of, blocks=[b.nodes for b in blocks])
    least = channels.alive({name: tuple(range(step)) for name, step in steps.items()})
    if cost.removed(least, np.zeros(len(blocks))) < settings.ratio:
        raise BudgetError(f"ratio {settings.ratio:g} is out of reach; ask for less, or exclude fewer groups")
    unit = cost.per_unit(np.ones(channels.unit_count + 1, bool))
    return groups, steps, cost, {g.name: float(unit[g.units].mean()) / cost.total for g in groups}


def _gates(subject: Subject, settings: TrainSettings, loss: Objective, training: Training, report: Report,
           progress: Progress | None) -> Prepared:  # fmt: skip
    from onnxprune.train.gates import Branch, gates

    graph, channels = subject.graph, subject.channels
    blocks = [b for b in find_blocks(graph, channels.shapes) if _last_of(graph, b)]
    groups, steps, cost, each = _divisible(subject, settings, blocks)
    whole, names = np.ones(channels.unit_count + 1, bool), [b.add for b in blocks]

    def removed(keep: Mapping[str, tuple[int, ...]], dropped: frozenset[str]) -> float:
        return cost.removed(channels.alive(keep), np.array([name not in dropped for name in names], float))

    branches = [
        Branch(b.add, _last_of(graph, b), cost.removed(whole, np.array([other is not b for other in blocks], float)))
        for b in blocks
    ]
    looking = max(1, int(LOOKING * settings.steps))
    first = replace(training, steps=looking)
    found = gates(subject.model, groups, branches, each, steps, removed, settings.ratio, loss, first,
                  progress=report and (lambda k, n: report(k, settings.steps)), **settings.options)  # fmt: skip
    words = f"{len(found.dropped)} of {len(blocks)} blocks shut"
    plan = _kept(subject, settings, subject.model, _chosen(subject, settings, found.keep, progress))
    drops = tuple(drop_of(b, channels) for b in blocks if b.add in found.dropped)
    plan = replace(plan, edits=(*plan.edits, *drops))
    return _tuned(subject, settings, plan, training, report, looking, words)


def _chosen(subject: Subject, settings: TrainSettings, keep: Mapping[str, tuple[int, ...]], progress: Progress | None
            ) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """As many channels of every group, those that the refit needs most."""
    scores = Planner(subject, replace(settings.deciding(), allocation="uniform"), progress).study.scores
    return {n: tuple(sorted(map(int, np.argsort(-scores[n], kind="stable")[: len(kept)]))) for n, kept in keep.items()}


def _tune(subject: Subject, settings: TrainSettings, loss: Objective, training: Training, report: Report,
          progress: Progress | None) -> Prepared:  # fmt: skip
    plan = make_plan(subject, replace(settings.deciding(), **settings.options), progress)
    plan = replace(plan, settings={**plan.settings, **_decided(settings)})
    return _tuned(subject, settings, plan, training, report, 0, "cut and refitted before")


def _tuned(subject: Subject, settings: TrainSettings, plan: PrunePlan, training: Training, report: Report,
           done: int, words: str) -> Prepared:  # fmt: skip
    """What is cut and refitted first, and trained in the steps that are not done yet."""
    if subject.calibration is None:
        raise UsageError(f"{settings.method} needs samples to repair the cut network with; give --calib")
    fit = subject.calibration.split(seed=settings.seed)[0]

    def tune(cut: onnx.ModelProto) -> onnx.ModelProto:
        from onnxprune.train.distill import Distillation, distill

        beside = training.checkpoint and training.checkpoint.with_name(f"{training.checkpoint.name}.cut")
        how = Distillation(
            training=replace(training, steps=settings.steps - done, checkpoint=beside),
            epochs=None, batch=settings.batch, augment=settings.augment, recipe=settings.recipe, seed=settings.seed,
        )  # fmt: skip
        return distill(
            subject.graph, cut, subject.channels, subject.channels.alive(plan.keep()),
            list(fit.batches(settings.batch)), settings=how, threads=settings.threads,
            progress=report and (lambda k, n: report(done + k, settings.steps)),
        )  # fmt: skip

    return Prepared(subject.model, subject.model, plan, words, tune)


def _last_of(graph: Graph, block: Block) -> tuple[Use, ...]:
    """The constants that scale all that a branch adds; none where its last node has no such."""
    key = graph.producer.get(graph.nodes[block.add].input[block.branch], "")
    node = graph.nodes.get(key)
    if node is None or key not in block.nodes or node.op_type not in ("Conv", "Gemm", "BatchNormalization"):
        return ()
    uses = tuple((key, i) for i in (1, 2) if i < len(node.input) and node.input[i])
    return uses if all(graph.value(use) is not None for use in uses) else ()


def _trp(subject: Subject, settings: TrainSettings, loss: Objective, training: Training, report: Report,
         progress: Progress | None) -> Prepared:  # fmt: skip
    from onnxprune.train.trp import trp

    edits = make_plan(subject, settings.deciding(), progress).factorized()
    low = trp(subject.model, edits, loss, training, progress=report, **settings.options)
    words = f"the last truncation took at most {low.lost:.1e} of a layer's energy"
    plan = PrunePlan(digest(low.model), edits, _decided(settings))
    return Prepared(low.trained, low.model, plan, words)


PREPARE: Mapping[str, Prepare] = {"csgd": _csgd, "gsm": _gsm, "trp": _trp, "gates": _gates, "tune": _tune}


def _decided(settings: TrainSettings) -> dict[str, object]:
    return {
        "trained": settings.method,
        "ratio": settings.ratio,
        "of": settings.of,
        "steps": settings.steps,
        "seed": settings.seed,
    }


def _kept(subject: Subject, settings: TrainSettings, model: onnx.ModelProto, keep: Mapping[str, tuple[int, ...]]
          ) -> PrunePlan:  # fmt: skip
    width = {g.name: g.width for g in subject.channels.groups}
    edits = [KeepChannels(name, width[name], kept) for name, kept in keep.items() if len(kept) < width[name]]
    return PrunePlan(digest(model), tuple(edits), _decided(settings))


def finish(subject: Subject, settings: TrainSettings, prepared: Prepared, progress: Progress | None = None) -> Result:
    """The second half: cut, and compare with the trained model and with the original."""
    if prepared.tune is not None:
        how = replace(settings.deciding(), repair="refit")
        result = apply_plan(subject, prepared.plan, how, tune=prepared.tune, progress=progress)
        return replace(result, notes=(f"{settings.method}, {settings.steps} steps: {prepared.words}",))
    graph, channels = Graph(prepared.model), subject.channels
    constants = {graph.nodes[key].input[i]: graph.value((key, i)) for key, i in channels.params if key}
    sizes = {name: value.shape for name, value in constants.items() if value is not None}
    channels = replace(channels, shapes={**channels.shapes, **sizes})  # constants that two nodes shared are two now
    own = replace(subject, model=prepared.model, graph=graph, channels=channels, digest=prepared.plan.model_digest)
    result = apply_plan(own, prepared.plan, settings.deciding(), original=subject, progress=progress)
    data = subject.calibration
    feeds = dict(subject.feeds) if data is None else data.split(seed=settings.seed)[1].first(BATCH)
    before, after = (open_session(m, threads=1).run(feeds) for m in (prepared.trained, result.model))
    change = max(float(np.abs(a - b).max()) for a, b in zip(before, after, strict=True))
    size = max(float(np.abs(a).max()) for a in before)
    notes = (
        f"{settings.method}, {settings.steps} steps: {prepared.words}",
        f"the cut changed an output of the trained model by at most {change:.1e} (largest output {size:.3g})",
    )
    warnings = result.warnings
    if change > PREPARED * size:
        short = f"the cut changed an output by {change:.1e} of {size:.3g}: training had not prepared it"
        warnings = (*warnings, f"{short}; give more --steps")
    return replace(result, notes=notes, warnings=warnings)
