"""A picture of the published tables: top-1 against the MACs removed, this tool and others on the same files.

    python benchmarks/tradeoff.py onnxprune/docs/tradeoff.svg

Measures nothing: the figures are those of `onnxprune/docs/figures.md`, which `accuracy.py` and `peers.py` make.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import common

from onnxprune.report import plots

FIGURES = common.ROOT / "onnxprune" / "docs" / "figures.md"
SECTION = "## Others on the same files"
LOOKS = (
    ("#0072b2", "o-"),
    ("#e69f00", "s--"),
    ("#999999", "v:"),
    ("#cc79a7", "^:"),
    ("#d55e00", "D:"),
    ("#56b4e9", "x:"),
)
"""Colours that colour-blind people tell apart (Okabe and Ito), with a mark and a line each."""

Rows = dict[str, list[float]]


def tables(text: str) -> dict[str, tuple[list[float], Rows]]:
    """Net -> (shares of the MACs in percent, method -> top-1 in percent), of the section about others."""
    found: dict[str, tuple[list[float], Rows]] = {}
    for block in text.partition(SECTION)[2].partition("\n## ")[0].split("\n\n"):
        lines = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in block.strip().splitlines()]
        if len(lines) > 2 and block.strip().startswith("|"):
            shares = [float(re.findall(r"\d+", cell)[0]) for cell in lines[0][1:]]
            found[lines[0][0]] = shares, {name: [float(v) for v in values] for name, *values in lines[2:]}
    return found


def originals(text: str) -> dict[str, float]:
    """First word of a net's name -> its top-1 in percent."""
    rows = re.findall(r"^\| ([\w-]+)[^|(]*\(([\d.]+)\)", text, re.M)
    return {name: float(value) for name, value in rows}


def draw(text: str) -> Any:
    """The figure: a panel a net."""
    nets, known = tables(text), originals(text)
    figure, marks = plots.new(3.5 * len(nets), 3.6), {}
    for ax, (net, (shares, rows)) in zip(figure.subplots(1, len(nets), sharey=True), nets.items(), strict=True):
        for (name, values), (colour, look) in zip(rows.items(), LOOKS, strict=False):
            (line,) = ax.plot(
                shares, values, look, color=colour, markersize=5, linewidth=1.6, zorder=3 if name == "onnxprune" else 2
            )
            marks.setdefault(name.partition(",")[0] if "(ours)" in name else name, line)
        marks["original"] = ax.axhline(known[net.split()[0]], color="#444444", linewidth=0.8, linestyle="--")
        ax.set_title(net, fontsize=10)
        ax.set_xlabel("MACs removed, %", fontsize=9)
        ax.set_xticks(shares)
        ax.set_ylim(0, 100)
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.25)
    figure.axes[0].set_ylabel("top-1, %, without training", fontsize=9)
    figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a .svg or .png (needs matplotlib)")
    output = parser.parse_args().output
    output.write_bytes(plots.encoded(draw(FIGURES.read_text(encoding="utf-8")), output))
    common.say(f"wrote {output}")


if __name__ == "__main__":
    main()
