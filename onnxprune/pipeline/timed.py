"""Original and outcome, timed side by side on what the settings name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import onnx

from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.planner import Progress
from onnxprune.pipeline.settings import Settings
from onnxprune.report.result import Result
from onnxprune.timing.bench_result import BenchResult
from onnxprune.timing.latency import bench as time_models

ROUNDS = 40
"""Rounds of the measurement of a finished model."""


def measure_latency(result: Result, subject: Subject, settings: Settings, progress: Progress | None = None) -> Result:
    """Time the original against the pruned model, interleaved, and add the outcome to the result."""
    report = (lambda k, n: progress("bench", k, n)) if progress else None
    timed = paired(subject, [subject.model, result.runs], settings, ROUNDS, report)
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
    """Models timed side by side.

    Args:
        subject: what they were made from: it has the inputs.
        models: the original, or it and a pruned one.
        settings: batch, providers, threads and seed.
        rounds: samples of each.
        progress: called with (rounds done, rounds).
    """
    timed = time_models(
        models,
        names=["original", "pruned"][: len(models)],
        feeds=subject.timed(settings.batch),
        providers=settings.providers,
        provider_options=settings.provider_options,
        threads=settings.threads or 1,
        seed=settings.seed,
        rounds=rounds,
        time_budget_s=30,
        trusted=True,
        progress=progress,
    )
    return timed if subject.barrier is None else replace(timed, part="; ".join(subject.barrier.in_words()))
