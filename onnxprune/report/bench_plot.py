"""A picture of latencies: how each model's times spread, and which speed-ups rise above the noise.

A row of panels a case (batch and shape): on the left the distribution of the samples with its median, on the
right the paired speed-up with its interval, over the band of ratios that mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.report import plots
from onnxprune.report.bench import heading
from onnxprune.timing.bench_result import BenchResult
from onnxprune.timing.statistics import noise_floor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"faster": "#2b8a3e", "slower": "#c92a2a", "no measurable change": plots.GREY}


def draw(results: Sequence[BenchResult]) -> Figure:
    """The figure for one or more cases."""
    rows = [len(r.timings) for r in results]
    figure = plots.new(10, 0.9 + sum(1.2 + 0.42 * (n + 1) for n in rows))
    panels = figure.subplots(len(results), 2, squeeze=False, height_ratios=[n + 2 for n in rows])
    for (left, right), result in zip(panels, results, strict=True):
        _times(left, result)
        _speedups(right, result)
    first = results[0]
    provider = next(iter(first.providers.values()))[0]
    threads = f"{first.threads} thread{'s' * (first.threads > 1)}"
    figure.suptitle(f"{provider}, {threads}, {first.rounds} interleaved rounds", fontsize=10)
    return figure


def _times(ax: Axes, result: BenchResult) -> None:
    """Every model's samples: 1 to 99 % as a line, the middle half as a box, the median as a stroke and a number."""
    for at, timing in enumerate(result.timings):
        low, q1, median, q3, high = np.quantile(timing.samples, [0.01, 0.25, 0.5, 0.75, 0.99])
        ax.plot([low, high], [at, at], color=plots.BASE, linewidth=1)
        ax.barh(at, q3 - q1, 0.5, left=q1, color=plots.BASE, alpha=0.45)
        ax.plot([median, median], [at - 0.3, at + 0.3], color="black", linewidth=1.5)
        ax.annotate(f"{median:.4g}", (median, at - 0.34), ha="center", va="bottom", fontsize=7)
    plots.label_rows(ax, [t.name for t in result.timings])
    ax.set_title(heading(result), fontsize=9, loc="left", parse_math=False)
    ax.set_xlabel("ms a run: median, middle half, 1 to 99 %", fontsize=8)
    ax.tick_params(labelsize=8)


def _speedups(ax: Axes, result: BenchResult) -> None:
    """Speed-ups with their 95 % intervals; last the first model against itself, whose reach is the grey band."""
    low, high = noise_floor(result.noise)
    ax.axvspan(low, high, color="#dddddd", zorder=0)
    ax.axvline(1, color=plots.GREY, linewidth=0.8, zorder=1)
    names = []
    for at, c in enumerate(result.comparisons):
        _interval(ax, at, c.speedup, c.low, c.high, COLOURS[c.verdict], c.verdict)
        names.append(c.candidate)
    noise = result.noise
    _interval(ax, len(names), noise.median, noise.low, noise.high, plots.GREY, "noise")
    plots.label_rows(ax, [*names, f"{result.timings[0].name} again"])
    ax.margins(x=0.2)
    ax.set_xlabel("speed-up over the first model, 95 % interval; grey: noise", fontsize=8)
    ax.tick_params(labelsize=8)


def _interval(ax: Axes, at: int, middle: float, low: float, high: float, colour: str, words: str) -> None:
    ax.errorbar(middle, at, xerr=[[middle - low], [high - middle]], fmt="o", color=colour, markersize=4, capsize=3)
    ax.annotate(f"{middle:.3f}x, {words}", (middle, at - 0.18), ha="center", va="bottom", fontsize=7)
