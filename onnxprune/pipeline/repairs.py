"""The repairs by name, each with what it needs of a run: samples, settings, progress."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx

from onnxprune.channels import Analysed
from onnxprune.graph.model import Graph
from onnxprune.measure.likeness import distances
from onnxprune.pipeline.planner import BATCH, Progress
from onnxprune.pipeline.settings import Settings, Subject
from onnxprune.plan import PrunePlan
from onnxprune.rewrite.factorize import factorize, refit_factorized
from onnxprune.rewrite.repair.nearest import cut_merged
from onnxprune.rewrite.repair.refit import refit
from onnxprune.rewrite.repair.statistics import repair_statistics
from onnxprune.rewrite.repair.without_samples import repair_merge, repair_without_samples
from onnxprune.runtime.ports import open_batch
from onnxprune.samples.calibration import Calibration

REPAIR_SAMPLES = 512


def merged(subject: Subject, alive: np.ndarray, fit: Calibration, settings: Settings) -> onnx.ModelProto:
    """The cut model with every removed channel merged into the likest kept one: where the repair starts from."""
    model, graph, channels = subject.model, subject.graph, subject.channels
    far = distances(model, graph, channels, fit.batches, threads=settings.threads, seed=settings.seed)
    return cut_merged(graph, channels, alive, far)


def repaired(
    subject: Subject,
    pruned: onnx.ModelProto,
    alive: np.ndarray,
    fit: Calibration | None,
    repair: str,
    settings: Settings,
    progress: Progress | None,
) -> onnx.ModelProto:
    """The pruned model after the repair of that name, fitted on `fit`; what is distilled later is refitted."""
    report = (lambda k, n: progress("repair", k, n)) if progress else None
    graph, channels, threads = subject.graph, subject.channels, settings.threads
    if fit is None:
        repeat = all(map(open_batch, subject.specs))
        return repair_without_samples(
            graph,
            pruned,
            channels,
            alive,
            subject.feeds,
            repeat=repeat,
            threads=threads,
            seed=settings.seed,
            progress=report,
        )
    batches = list(fit.take(REPAIR_SAMPLES).batches(BATCH))
    if repair == "merge":
        return repair_merge(graph, pruned, channels, alive, batches, threads=threads, progress=report)
    adapt_sizes = partial(refit, seed=settings.seed) if repair in ("refit", "distill") else repair_statistics
    return adapt_sizes(graph, pruned, channels, alive, batches, threads=threads, progress=report)


def distilled(
    subject: Subject,
    mended: onnx.ModelProto,
    alive: np.ndarray,
    fit: Calibration,
    settings: Settings,
    progress: Progress | None,
) -> onnx.ModelProto:
    """The refitted model, layers of low rank and all, after training on `fit`, by torch."""
    from onnxprune.train.distill import Distillation, distill

    how = Distillation(epochs=settings.epochs, augment=settings.augment, recipe=settings.recipe, seed=settings.seed)
    batches = list(fit.batches(how.batch))
    report = (lambda k, n: progress("distill", k, n)) if progress else None
    net = Analysed(subject.graph, subject.channels, subject.feeds)
    return distill(net, Graph(mended), alive, batches, settings=how, threads=settings.threads, progress=report).export()


def factorized(
    subject: Subject,
    pruned: onnx.ModelProto,
    alive: np.ndarray,
    plan: PrunePlan,
    fit: Calibration | None,
    repair: str,
    settings: Settings,
    progress: Progress | None,
) -> onnx.ModelProto:
    """The pruned, repaired model with its layers of low rank made of two, and those refitted."""
    batches = [] if fit is None else list(fit.take(REPAIR_SAMPLES).batches(BATCH))
    if progress:
        progress("factorize", 0, 1)
    edits, feeds, threads, seed = plan.factorized(), subject.feeds, settings.threads, settings.seed
    if repair not in ("refit", "distill"):
        return factorize(pruned, edits, feeds, batches, threads=threads, seed=seed)
    return refit_factorized(
        subject.graph, pruned, subject.channels, alive, edits, feeds, batches, threads=threads, seed=seed
    )
