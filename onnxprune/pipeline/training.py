"""Pruning while training: the methods of the table as one pipeline, from an ONNX file to a Result.

    decide sizes → train so that the cut costs nothing → cut → check → compare with the original

torch is imported by the functions that train, and nowhere else.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxprune.graph.model import Graph
from onnxprune.pipeline.apply import apply_plan
from onnxprune.pipeline.asked import Progress
from onnxprune.pipeline.countable import OTHERWISE, check_countable
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.planner import BATCH
from onnxprune.pipeline.training_settings import TrainSettings
from onnxprune.pipeline.training_task import Prepared, TrainingRun, TrainingTask
from onnxprune.pipeline.trial import tried, with_samples
from onnxprune.report.result import Result
from onnxprune.rewrite.repair.table import WITH_SAMPLES
from onnxprune.runtime.sessions import open_session

PREPARED = 1e-2
"""Change of an output, relative to the largest, above which a cut was not prepared."""


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
    run = start(subject, settings, progress)
    return finish(run, prepare(run))


def start(subject: Subject, settings: TrainSettings, progress: Progress | None = None) -> TrainingRun:
    """The run, its samples parted once for all that follows; where the method needs some and there are none, those of
    the recipe."""
    settings.check_files(filter(None, (subject.path, settings.recipe)))
    best_effort = bool(settings.options.get("best_effort"))
    check_countable(subject, settings.of, best_effort=best_effort, otherwise=OTHERWISE)
    if subject.calibration is None and settings.how.needs_samples and settings.recipe is not None:
        subject = with_samples(subject, settings.recipe)
    return TrainingRun(subject, settings, subject.partition(settings.seed), progress)


def prepare(run: TrainingRun) -> Prepared:
    """The first half of `train_and_prune`: the trained model and its plan.

    Raises:
        UsageError: there is nothing to train on.
    """
    from onnxprune.train.loop import Training
    from onnxprune.train.objective import objective
    from onnxprune.train.processes import process_group
    from onnxprune.train.shares import set_up

    settings = run.settings
    with set_up(settings.seed, settings.threads), process_group() as device:
        loss = objective(
            run.net, [] if run.samples is None else list(run.samples.fit.batches(settings.batch)), settings.recipe,
            batch=settings.batch, augment=settings.augment, seed=settings.seed, device=device,
        )  # fmt: skip
        training = Training(
            settings.steps, lr=settings.rate, optimizer="sgd", clip=None, checkpoint=settings.checkpoint,
            metrics=settings.metrics, device=device, takes=loss.takes,
        )  # fmt: skip
        task = TrainingTask(run.subject, settings, run.samples, run.progress, loss, training)
        return settings.how.prepare(task, **settings.options)


def finish(run: TrainingRun, prepared: Prepared, *, on_trial: bool = True) -> Result:
    """The second half: cut, and compare with the trained model and with the original.

    Args:
        run: what was started.
        prepared: the first half's outcome.
        on_trial: whether the plan of `prune` with its refit is the result where it is as good on what nothing was
            trained on.
    """
    settings, trained = run.settings, f"{run.settings.method}, {run.settings.steps} steps: {prepared.words}"
    if prepared.tune is not None:
        how = settings.deciding(repair=WITH_SAMPLES)
        result = apply_plan(run.subject, prepared.plan, how, tune=prepared.tune, progress=run.progress)
        return replace(result, notes=(trained,))
    own = _subject_of(prepared, run.subject)
    result = apply_plan(
        own, prepared.plan, settings.deciding(), original=run.subject, on_trial=on_trial and settings.recipe is None,
        progress=run.progress,
    )  # fmt: skip
    feeds = dict(run.subject.feeds) if run.samples is None else run.samples.held.first(BATCH)
    before, after = (open_session(m, threads=1).run(feeds) for m in (prepared.trained, result.runs))
    change = max(float(np.abs(a - b).max()) for a, b in zip(before, after, strict=True))
    size = max(float(np.abs(a).max()) for a in before)
    changed = f"the cut changed an output of the trained model by at most {change:.1e} (largest output {size:.3g})"
    warnings = result.warnings
    if change > PREPARED * size:
        short = f"the cut changed an output by {change:.1e} of {size:.3g}: training had not prepared it"
        warnings = (*warnings, f"{short}; give more --steps")
    if on_trial:
        result = tried(run, prepared, result)
    return replace(result, notes=(trained, changed), warnings=warnings)


def _subject_of(prepared: Prepared, subject: Subject) -> Subject:
    """The trained model in the original's place."""
    graph, channels = Graph(prepared.model), subject.channels
    constants = {graph.nodes[key].input[i]: graph.value((key, i)) for key, i in channels.params if key}
    sizes = {name: value.shape for name, value in constants.items() if value is not None}
    channels = replace(channels, shapes={**channels.shapes, **sizes})  # constants that two nodes shared are two now
    return replace(
        subject, model=prepared.model, graph=graph, channels=channels, digest=prepared.plan.model_digest
    )  # fmt: skip
