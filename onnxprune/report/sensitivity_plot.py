"""A picture of sensitivities: damage against kept share, one panel a row, all on the same scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.report import plots
from onnxprune.report.sensitivity import LITTLE, Row, Sensitivity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 4
MOST = 60
"""Panels that fit a picture."""
LEAST = 1e-6
"""Smaller damages are drawn here: the scale is logarithmic."""


def draw(found: Sensitivity, little: float = LITTLE) -> Figure:
    """The figure, in graph order: where in the network cuts hurt is what one looks for."""
    rows = [r for r in found.rows if r.points]
    count, heavy = len(rows), sorted(rows, key=lambda r: -max(p.macs_removed for p in r.points))[:MOST]
    rows = [r for r in rows if r in heavy]
    down = max(1, -(-len(rows) // ACROSS))
    figure = plots.new(3 * ACROSS, 0.7 + 1.9 * down)
    panels = figure.subplots(down, ACROSS, sharex=True, sharey=True, squeeze=False).ravel()
    for ax, row in zip(panels, rows, strict=False):
        _curve(ax, row, little)
    for ax in panels[len(rows) :]:
        ax.set_axis_off()
    left = "" if len(rows) == count else f" (the {len(rows)} of {count} that can save most MACs)"
    figure.supxlabel(f"share of the channels kept{left}", fontsize=9)
    figure.supylabel("damage to the outputs", fontsize=9)
    return figure


def _curve(ax: Axes, row: Row, little: float) -> None:
    shown = [p for p in row.points if p.damage is not None]
    kept = [p.kept / row.width for p in shown]
    ax.semilogy(kept, [max(p.damage or 0, LEAST) for p in shown], "o-", color=plots.BASE, markersize=3, linewidth=1)
    ax.axhline(little, color=plots.GREY, linewidth=0.7, linestyle="--")
    ax.set_xlim(1.02, -0.02)
    ax.set_title(f"{plots.shortened(row.name, 26)} ({row.width})", fontsize=8, parse_math=False)
    ax.tick_params(labelsize=7)
