"""Original and outcome, timed side by side on what the settings name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import onnx

from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.measure.outline import Outline
from onnxprune.measure.outline import timed as by_time
from onnxprune.pipeline.asked import Progress, engine_of
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.prices import timed_run
from onnxprune.pipeline.settings import Settings
from onnxprune.report.result import Result
from onnxprune.timing.bench_result import BenchResult
from onnxprune.timing.latency import bench as time_models
from onnxprune.timing.node_times import by_node

ROUNDS = 40
"""Rounds of the measurement of a finished model."""
LAYERS_MS, LAYER_RUNS = 200.0, (3, 100)
"""Time spent on the layers of each model, and the fewest and most runs."""


def measure_latency(result: Result, subject: Subject, settings: Settings, progress: Progress | None = None) -> Result:
    """Time the original against the pruned model, interleaved, and add the outcome to the result."""
    report = (lambda k, n: progress("bench", k, n)) if progress else None
    timed = paired(subject, [subject.model, result.runs], settings, ROUNDS, report)
    warnings = result.warnings
    found = timed.comparisons[0]
    if found.verdict != "faster":
        seen = f"{found.speedup:.2f}x [{found.low:.2f}, {found.high:.2f}]"
        warnings = (*warnings, f"the pruned model is not measurably faster: {seen}")
    before, after = timed.timings[0].p50_ms, timed.timings[1].p50_ms
    return replace(
        result,
        latency=timed,
        network=_by_layer(result, subject, settings),
        warnings=warnings,
        before=replace(result.before, latency_ms=before),
        after=replace(result.after, latency_ms=after),
    )


def _by_layer(result: Result, subject: Subject, settings: Settings) -> Outline:
    """Both networks, with what their layers take here."""
    if not result.network.spots:
        return result.network
    engine = engine_of(replace(settings, device=None))

    def taken(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Graph, dict[str, float]]:
        return graph, by_node(graph, feeds, shapes, engine, budget_ms=LAYERS_MS, least_most=LAYER_RUNS)

    feeds, shapes = timed_run(subject, settings.batch)
    pruned = Graph(result.runs)
    sizes = {} if engine.on_cpu else observe(pruned, feeds).shapes  # only layers that are run alone need them
    return by_time(result.network, taken(subject.graph, shapes), taken(pruned, sizes), engine.providers[0])


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
