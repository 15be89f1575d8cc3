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
from onnxprune.pipeline.training_task import Prepared, TrainingRun
from onnxprune.report.result import Result
from onnxprune.rewrite.repair.table import WITH_SAMPLES

PLAIN = "the plan of `prune`, refitted"
"""What is kept where training did not help."""


def tried(run: TrainingRun, prepared: Prepared, result: Result) -> Result:
    """The result of training, or that of the same goal without it, where training is not better by more than chance;
    either says which."""
    settings, samples = run.settings, run.samples
    found = Trained(settings.method, "trained", "", None, None, None, 0, settings.steps, settings.steps, settings.rate)
    if samples is None or (settings.recipe is None and samples.judge.shared):
        return replace(result, training=(replace(found, why="there are no samples to judge it by"),))
    spared = settings.recipe is None
    subject = _sparing(run.subject, settings.seed) if spared else run.subject
    how = settings.deciding(repair=WITH_SAMPLES)
    try:
        plan = prepared.start or run.decide()
        plain = apply_plan(subject, plan, how, progress=run.progress)
    except PruneError as error:
        return replace(result, training=(replace(found, why=f"there is nothing to judge it by: {error}"),))
    figure, before, after, little = _judged(run, plain, result)
    found = replace(
        found, figure=figure, before=float(before.mean()), after=float(after.mean()),
        noise=noise(after, before, little), samples=len(before), start=PLAIN,
    )  # fmt: skip
    if beats(after, before, little):
        return replace(result, training=(found,))
    if spared:
        plain = apply_plan(run.subject, plan, how, progress=run.progress)
    return replace(plain, training=(replace(found, kept="start"),))


def _sparing(subject: Subject, seed: int) -> Subject:
    """The subject whose repairs are not fitted on the samples that judge."""
    parts = subject.partition(seed)
    assert parts is not None
    return replace(subject, parts={seed: replace(parts, fit=parts.learn)})


def _judged(run: TrainingRun, plain: Result, trained: Result) -> tuple[str, np.ndarray, np.ndarray, float]:
    """(what was compared, its figures without training, and with it, the relative fall that does not matter)."""
    from onnxprune.train.loop import process_group
    from onnxprune.train.objective import judge
    from onnxprune.train.shares import set_up

    settings, samples = run.settings, run.samples
    assert samples is not None
    with set_up(settings.seed, settings.threads), process_group() as device:
        held = list(samples.judge.batches(settings.batch))
        by, figures = judge(run.net, held, settings.recipe, device=device)
        return by.figure, figures(plain.model), figures(trained.model), by.little
