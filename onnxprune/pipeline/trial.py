"""The trial of what training has prepared for a cut: is it worth more than the plan of `prune`, refitted?

What trains the original towards a cut has no start that could be kept: the original is too large. So what it reaches is
held against what is there without it, for the same goal, on samples that neither was made from.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxprune.errors import PruneError
from onnxprune.measure.chance import beats, noise
from onnxprune.measure.trained import Trained
from onnxprune.pipeline.apply import apply_plan
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.repairs import REPAIR_SAMPLES
from onnxprune.pipeline.training_task import Prepared, TrainingRun
from onnxprune.report.result import Result
from onnxprune.rewrite.repair.table import WITH_SAMPLES
from onnxprune.samples.calibration import Calibration, open_calibration

PLAIN = "the plan of `prune`, refitted"
"""What is kept where training did not help."""


def tried(run: TrainingRun, prepared: Prepared, result: Result) -> Result:
    """The result of training, or that of the same goal without it, where training is not better by more than chance;
    either says which.

    Args:
        run: what was started.
        prepared: what training made.
        result: what came of that, with nothing reported on the samples that judge.
    """
    settings, subject = run.settings, run.subject
    found = Trained(settings.method, "trained", "", None, None, None, 0, settings.steps, settings.steps, settings.rate)
    if subject.calibration is None and settings.recipe is not None:
        subject = with_samples(subject, settings.recipe)
    parts = subject.partition(settings.seed)
    trial = None if parts is None else parts.on_trial(settings.seed).trial
    if parts is None or (settings.recipe is None and trial is None):
        return replace(result, training=(replace(found, why="there are too few samples to judge it by"),))
    how = settings.deciding(repair=WITH_SAMPLES)
    try:
        plan = prepared.start or run.decide()
        sampled = settings.recipe is None
        plain = apply_plan(subject, plan, how, on_trial=sampled, progress=run.progress)
    except PruneError as error:
        return replace(result, training=(replace(found, why=f"there is nothing to judge it by: {error}"),))
    figure, before, after, little = _judged(run, trial, plain, result)
    found = replace(
        found, figure=figure, before=float(before.mean()), after=float(after.mean()),
        noise=noise(after, before, little), samples=len(before), start=PLAIN,
    )  # fmt: skip
    if beats(after, before, little):
        return replace(result, training=(found,))
    return replace(plain, training=(replace(found, kept="start"),))


def with_samples(subject: Subject, recipe: str) -> Subject:
    """The subject with the recipe's first samples for calibration."""
    from onnxprune.train.recipe import Recipe

    batches, taken = Recipe(recipe, subject.specs, hold=True), 0
    found: list[dict[str, np.ndarray]] = []
    while taken < REPAIR_SAMPLES and len(found) < REPAIR_SAMPLES:
        samples = {k: np.asarray(v) for k, v in batches.batch(len(found))[0].items()}
        found.append(samples)
        taken += len(next(iter(samples.values())))
    return replace(subject, calibration=open_calibration(found, subject.specs))


def _judged(
    run: TrainingRun, trial: Calibration | None, plain: Result, trained: Result
) -> tuple[str, np.ndarray, np.ndarray, float]:
    """(what was compared, its figures without training, and with it, the relative fall that does not matter)."""
    from onnxprune.train.objective import judge
    from onnxprune.train.processes import process_group
    from onnxprune.train.shares import set_up

    settings = run.settings
    with set_up(settings.seed, settings.threads), process_group() as device:
        held = [] if trial is None else list(trial.batches(settings.batch))
        by, figures = judge(run.net, held, settings.recipe, augment=settings.augment, device=device)
        return by.figure, figures(plain.runs), figures(trained.runs), by.little
