"""A picture of sensitivities: damage against kept share, one panel a group, and a bar a block, on one scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.report import plots
from onnxprune.report.alone import LITTLE, Row
from onnxprune.report.sensitivity import Sensitivity

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
    blocks = [r for r in found.rows if r.kind == "block" and r.points]
    rows = [r for r in found.rows if r.kind != "block" and r.points]
    count, heavy = len(rows), sorted(rows, key=lambda r: -max(p.macs_removed for p in r.points))[:MOST]
    rows = [r for r in rows if r in heavy]
    down = -(-len(rows) // ACROSS)
    heights = [1.9 * down, *([2.6] if blocks else [])] if rows else [2.6]
    figure = plots.new(3 * ACROSS, 0.7 + sum(heights))
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    if blocks:
        _bars(parts[-1].subplots(), blocks, little)
    if not rows:
        return figure
    panels = parts[0].subplots(down, ACROSS, sharex=True, sharey=True, squeeze=False).ravel()
    for ax, row in zip(panels, rows, strict=False):
        _curve(ax, row, little)
    for ax in panels[len(rows) :]:
        ax.set_axis_off()
    left = "" if len(rows) == count else f" (the {len(rows)} of {count} that can save most MACs)"
    parts[0].supxlabel(f"share of the channels kept{left}", fontsize=9)
    parts[0].supylabel("damage to the outputs", fontsize=9)
    return figure


def _curve(ax: Axes, row: Row, little: float) -> None:
    shown = [p for p in row.points if p.damage is not None]
    kept = [p.kept / row.width for p in shown]
    ax.semilogy(kept, [max(p.damage or 0, LEAST) for p in shown], "o-", color=plots.BASE, markersize=3, linewidth=1)
    ax.axhline(little, color=plots.GREY, linewidth=0.7, linestyle="--")
    ax.set_xlim(1.02, -0.02)
    ax.set_title(f"{plots.shortened(row.name, 26)} ({row.width})", fontsize=8, parse_math=False)
    ax.tick_params(labelsize=7)


def _bars(ax: Axes, blocks: list[Row], little: float) -> None:
    """The damage when a block goes."""
    damages = [b.points[-1].damage for b in blocks]
    heights = [LEAST if d is None else max(d, LEAST) for d in damages]
    at = range(len(blocks))
    ax.bar(at, heights, 0.6, color=plots.BASE)
    for k, d in enumerate(damages):
        if d is None:
            ax.annotate("not finite", (k, LEAST), ha="center", va="bottom", fontsize=7)
    ax.set_yscale("log")
    ax.set_ylim(min(*heights, little / 10) / 2, max(*heights, little) * 2)
    ax.axhline(little, color=plots.GREY, linewidth=0.7, linestyle="--")
    ax.set_xticks(at, [plots.shortened(b.name, 18) for b in blocks], rotation=30, ha="right", fontsize=7)
    for label in ax.get_xticklabels():
        label.set_parse_math(False)
    ax.tick_params(axis="y", which="both", labelsize=7)
    ax.set_title("damage when a block goes, the layers behind it refit", fontsize=8)
