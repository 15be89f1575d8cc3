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
TOLD = ("version", "model_digest", "samples_digest")
"""Settings that stand in other words beside them."""
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


Spot = tuple[float, float, str]


def curve(
    points: Sequence[Spot],
    x_title: str,
    y_title: str,
    *,
    y_unit: str = "",
    x_unit: str = "",
    joined: Sequence[tuple[float, float]] | None = None,
    beside: Sequence[Spot] = (),
    decades: bool = False,
) -> dict[str, Any]:
    """Points with words each, placed in percent of the plot.

    Args:
        points: with words each.
        x_title, y_title, y_unit, x_unit: of the axes.
        joined: those with a line through them, from left to right; None: all.
        beside: points that are not joined; the line is then dashed, and its points are not shown.
        decades: whether y counts powers of ten.
    """
    points, every = sorted(points), [*points, *beside]
    x_low, x_high = _span([p[0] for p in every])
    y_low, y_high = _span([p[1] for p in every])
    y_ticks: Sequence[float] = ticks(y_low, y_high, 5)
    share = y_unit == "%" or y_title.endswith(" in percent")
    if share and max(p[1] for p in every) <= 100:  # which end at the whole
        y_ticks = [t for t in y_ticks if t <= 100]
    if decades:
        first, last = math.ceil(y_low), math.floor(y_high)
        y_ticks = range(first, last + 1, 1 + (last - first) // 7)

    def x(value: float) -> float:
        return 100 * (value - x_low) / (x_high - x_low)

    def y(value: float) -> float:
        return 100 * (value - y_low) / (y_high - y_low)

    line = [(a, b) for a, b, _ in points] if joined is None else sorted(joined)
    return {
        "x_title": x_title,
        "y_title": y_title,
        "points": [(x(a), y(b), words) for a, b, words in beside or points],
        "hidden": [(x(a), y(b), words) for a, b, words in points] if beside else [],
        "dashed": bool(beside),
        "line": " ".join(f"{x(a):.2f},{100 - y(b):.2f}" for a, b in line),
        "x_ticks": [(f"{t:g}{x_unit}", x(t)) for t in ticks(x_low, x_high)],
        "y_ticks": [(_power(t) if decades else f"{t:g}{y_unit}", y(t)) for t in y_ticks],
    }


def _power(exponent: float) -> str:
    """A power of ten in few signs: 0.01, 1, 100, 10⁻⁵."""
    if -4 < exponent < 5:
        return f"{10.0**exponent:g}"
    return f"10{f'{exponent:.0f}'.translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


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
    """A row each: when, where, digests, every setting."""
    machine = dict(run.get("machine", {}))
    where = [machine.pop("cpu", ""), f"{machine.pop('cores', '?')} cores", machine.pop("platform", "")]
    known = {
        "date": run.get("date"),
        "onnxprune": run.get("version"), "machine": ", ".join(str(w) for w in where if w) if "machine" in run else "",
        "software": ", ".join(f"{name} {version}" for name, version in machine.items()),
    }  # fmt: skip
    own = ((name, value) for name, value in settings.items() if name not in TOLD)
    rows: list[tuple[str, object]] = [*known.items(), *facts, *own]
    return [(name, _words(value)) for name, value in rows if value not in (None, "")]


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={_words(v)}" for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_words, value))
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
