"""What several pages need: bars, ticks, curves, dots of timed rounds, and the table of how something was made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from onnxprune.measure.cost import Cost
from onnxprune.report.forms import Narrowed, Run
from onnxprune.report.terminal import not_counted
from onnxprune.timing.bench_result import BenchResult

DOTS = 400
"""Most timed rounds drawn a model."""
NODES = 20
"""Most nodes named for one reason."""
ROWS = 500
"""Most rows of a table."""


def widths(groups: Sequence[Narrowed]) -> list[dict[str, Any]]:
    """Every group with its bar's length, in percent of the widest, and the share of it that stays."""
    widest = max((g["before"] for g in groups), default=1) or 1
    return [{**g, "whole": 100 * g["before"] / widest, "share": g["after"] / (g["before"] or 1)} for g in groups]


def gathered(heads: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Headings with the names below each, of which so many are shown."""
    return [{"head": h, "nodes": n[:NODES], "more": max(0, len(n) - NODES)} for h, n in heads.items()]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, one at least."""
    span = max(high - low, 1e-12)
    power = math.floor(math.log10(span / most))
    steps: list[float] = [digit * 10.0**k for k in range(power, power + 3) for digit in (1, 2, 5)]
    step = next(s for s in steps if span / s <= most)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, first + most + 2) if k * step <= high + 1e-9 * span]


def curve(
    points: Sequence[tuple[float, float, str]], x_title: str, y_title: str, *, y_unit: str = "", x_unit: str = ""
) -> dict[str, Any]:
    """Points with words each, joined from left to right, placed in percent of the plot."""
    points = sorted(points)
    x_low, x_high = _span([p[0] for p in points])
    y_low, y_high = _span([p[1] for p in points])

    def x(value: float) -> float:
        return 100 * (value - x_low) / (x_high - x_low)

    def y(value: float) -> float:
        return 100 * (value - y_low) / (y_high - y_low)

    return {
        "x_title": x_title,
        "y_title": y_title,
        "points": [(x(a), y(b), words) for a, b, words in points],
        "line": " ".join(f"{x(a):.2f},{100 - y(b):.2f}" for a, b, _ in points),
        "x_ticks": [(f"{t:g}{x_unit}", x(t)) for t in ticks(x_low, x_high)],
        "y_ticks": [(f"{t:g}{y_unit}", y(t)) for t in ticks(y_low, y_high, 5)],
    }


def _span(values: Sequence[float]) -> tuple[float, float]:
    """From a little below the least to a little above the largest."""
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def times(result: BenchResult) -> dict[str, Any]:
    """Every round of every model as a dot, and where the medians are; x in percent of the width."""
    rows: list[dict[str, Any]] = [
        {"name": t.name, "samples": t.samples[:DOTS] or (t.p50_ms,), "p50": t.p50_ms} for t in result.timings
    ]
    most = 1.05 * max((sorted(s)[int(0.98 * (len(s) - 1))] for s in (row["samples"] for row in rows)), default=1)
    most = most if most > 0 else 1.0
    for row in rows:
        row["dots"] = [round(100 * max(x, 0) / most, 2) for x in row["samples"] if x <= most]
        row["median"] = round(100 * min(max(row["p50"] / most, 0), 1), 2)
        row["beyond"] = len(row["samples"]) - len(row["dots"])
    return {"rows": rows, "ticks": [(f"{t:g}", round(100 * t / most, 2)) for t in ticks(0, most)]}


def uncounted(cost: Cost) -> str:
    """What could not be counted, in words; empty where all was."""
    return not_counted(asdict(cost)) if cost.uncounted else ""


def how_made(run: Run, settings: Mapping[str, Any], facts: Iterable[tuple[str, object]] = ()) -> list[tuple[str, str]]:
    """A row each: the command or the call, when, where, digests, every setting."""
    machine = dict(run.get("machine", {}))
    where = [machine.pop("cpu", ""), f"{machine.pop('cores', '?')} cores", machine.pop("platform", "")]
    known = {
        "command": run.get("command"), "call": run.get("call"), "date": run.get("date"),
        "onnxprune": run.get("version"), "machine": ", ".join(str(w) for w in where if w) if "machine" in run else "",
        "software": ", ".join(f"{name} {version}" for name, version in machine.items()),
    }  # fmt: skip
    rows: list[tuple[str, object]] = [*known.items(), *facts, *settings.items()]
    return [(name, _words(value)) for name, value in rows if value not in (None, "")]


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={_words(v)}" for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_words, value))
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
