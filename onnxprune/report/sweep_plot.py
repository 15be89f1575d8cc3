"""A picture of a trade-off: what several ratios leave of the outputs, and how fast each makes the model.

On the left how close the outputs are, against the share of the MACs that went; on the right, where the models were
timed, the speed-up with its interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxprune.report import plots
from onnxprune.report.metrics import shared_metric
from onnxprune.report.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(results: Sequence[Result]) -> Figure:
    """The figure."""
    metric = shared_metric([r.fidelity for r in results])
    timed = [r for r in results if r.latency is not None]
    panels = [draw for draw, wanted in ((_kept, metric), (_speed, timed)) if wanted]
    figure = plots.new(4.6 * max(1, len(panels)), 3.4)
    for panel, ax in zip(panels or [_sizes], figure.subplots(1, max(1, len(panels)), squeeze=False)[0], strict=True):
        panel(ax, sorted(results, key=lambda r: r.macs_removed))
        ax.set_xlabel("MACs removed, %", fontsize=9)
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.25)
    return figure


def _kept(ax: Axes, results: Sequence[Result]) -> None:
    metric = shared_metric([r.fidelity for r in results])
    assert metric is not None
    values = [metric.value(r.fidelity) for r in results]
    _line(ax, results, [v for v in values if v is not None], metric.unit)
    samples = next(r.fidelity.samples for r in results if r.fidelity is not None)
    ax.set_title(f"{metric.title} on {samples} held-out samples", fontsize=9)


def _speed(ax: Axes, results: Sequence[Result]) -> None:
    timed = [(r, r.latency.comparisons[0]) for r in results if r.latency is not None]
    _line(ax, [r for r, _ in timed], [c.speedup for _, c in timed], "x")
    for result, c in timed:
        ax.plot([100 * result.macs_removed] * 2, [c.low, c.high], color=plots.BASE, linewidth=3, alpha=0.35)
    ax.axhline(1, color=plots.GREY, linewidth=0.8, linestyle="--")
    ax.set_title("speed-up, 95 % interval; dashed: as fast as the original", fontsize=9)


def _sizes(ax: Axes, results: Sequence[Result]) -> None:
    _line(ax, results, [100 * r.after.bytes / r.before.bytes for r in results], "%")
    ax.set_title("file size, % of the original", fontsize=9)


def _line(ax: Axes, results: Sequence[Result], values: Sequence[float], unit: str) -> None:
    at = [100 * r.macs_removed for r in results]
    ax.plot(at, values, "o-", color=plots.BASE, markersize=5)
    for x, y in zip(at, values, strict=True):
        ax.annotate(f"{y:.3g}{unit}", (x, y), xytext=(0, 9), textcoords="offset points", ha="center", fontsize=7)
    ax.margins(0.12, 0.25)
