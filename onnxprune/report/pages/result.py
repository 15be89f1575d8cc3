"""The pages about a result, and about several results of one model: for whoever has to sign the pruned model off."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

import numpy as np

from onnxprune.measure.outline import Outline
from onnxprune.report.alone import LITTLE
from onnxprune.report.bench import conditions
from onnxprune.report.forecast import Forecast
from onnxprune.report.forms import Run, Swept, Told
from onnxprune.report.metrics import AskedMetric, asked_metric, shared_metric
from onnxprune.report.pages.drawing import drawings
from onnxprune.report.pages.layers import layer_rows
from onnxprune.report.pages.measured import alone
from onnxprune.report.pages.shared import Spot, curve, gathered, how_made, times, uncounted, widths
from onnxprune.report.pictures import MOST
from onnxprune.report.search import Search
from onnxprune.report.terminal import OF, asked_words, by_reason, change, cost_rows, sentences, si

LEAST = 1e-6
"""Damages below are none."""


def result(told: Told, run: Run) -> dict[str, Any]:
    """What the page about one result shows."""
    latency, network = told["latency"], told.get("network", Outline())
    return {
        "r": told,
        "said": sentences(told),
        "costs": cost_rows(asdict(told["before"]), asdict(told["after"])),
        "not_counted": uncounted(told["before"]),
        "widths": widths(told["groups"]),
        "drawing": drawings(network),
        "layers": layer_rows(network),
        "search": _search(told.get("search")),
        "forecast": _forecast(told.get("forecast")),
        "samples": told.get("samples", ())[:MOST],
        "alone": alone(told.get("studied", ()), _kept_widths(told)),
        "whole": _whole(told),
        "refused": _refused(told),
        "timing": None if latency is None else times(latency),
        "conditions": () if latency is None else conditions(latency),
        "removed": sum(len(cut["removed"]) for cut in told["cuts"]),
        "made": how_made(run, told["settings"], _digests(told)),
    }


def _kept_widths(told: Told) -> dict[str, int]:
    """How many channels of each group stay; blocks that went stay with none."""
    return {g["name"]: g["after"] for g in told["groups"]} | dict.fromkeys(told["blocks"], 0)


def sweep(told: Swept, run: Run) -> dict[str, Any]:
    """What the page about several results shows: the curve, a row each, and what is said of each."""
    results = told["results"]
    files = run.get("files", ())
    names = ["not written" if f is None else PurePath(f).name for f in files]
    names = names if len(names) == len(results) else [""] * len(results)
    asked = asked_metric([r["fidelity"] for r in results])
    rows = [_row(r, name, asked) for r, name in zip(results, names, strict=True)]
    first = results[0] if results else None
    settings = {} if first is None else {k: v for k, v in first["settings"].items() if k not in ("ratio", "came_to")}
    charts = [chart for chart in (_kept(results), _speed(results)) if chart]
    warnings = list(dict.fromkeys(w for r in results for w in r["warnings"]))
    digests = [] if first is None else [row for row in _digests(first) if "outcome" not in row[0]]
    return {
        "rows": rows,
        "asked": "" if asked is None else asked.title,
        "charts": charts,
        "warnings": warnings,
        "filled": [k for k in range(11) if any(row["cells"][k] for row in rows)],
        "made": how_made(run, settings, digests),
    }


def _row(told: Told, name: str, asked: AskedMetric | None) -> dict[str, Any]:
    f, timed = told["fidelity"], told["latency"]
    a, b = told["before"], told["after"]
    cells = (
        asked_words(told["settings"]),
        f"{told['macs_removed']:.1%}",
        "" if f is None else f.verdict or "",
        "" if asked is None or f is None else asked.shown(f),
        "" if f is None or f.top1 is None else f"{f.top1:.1%}",
        "" if f is None or f.equal is None else f"{f.equal:.1%}",
        "" if f is None or f.cosine is None else f"{f.cosine:.4f}",
        "" if f is None or f.sqnr_db is None else f"{f.sqnr_db:.1f} dB",
        "" if timed is None else f"{timed.comparisons[0].speedup:.2f}x",
        change(a.params, b.params),
        f"{si(b.bytes)}B",
    )
    return {
        "name": f"{cells[0]}{name and f': {name}'}",
        "cells": cells,
        "said": sentences(told),
        "costs": cost_rows(asdict(a), asdict(b)),
        "not_counted": uncounted(a),
    }


def _kept(results: Sequence[Told]) -> dict[str, Any] | None:
    """How close the outputs are, against what went."""
    metric = shared_metric([r["fidelity"] for r in results])
    if metric is None:
        return None
    points = [(100 * r["macs_removed"], metric.value(r["fidelity"]) or 0.0) for r in results]
    marked = [(x, y, f"{y:.4g}{metric.unit} at {x:.1f}% fewer MACs") for x, y in points]
    return curve(marked, "MACs removed", metric.title, y_unit=metric.unit, x_unit="%")


def _speed(results: Sequence[Told]) -> dict[str, Any] | None:
    """How fast, against what went."""
    timed = [(100 * r["macs_removed"], r["latency"].comparisons[0].speedup) for r in results if r["latency"]]
    marked = [(x, y, f"{y:.2f}x at {x:.1f}% fewer MACs") for x, y in timed]
    return curve(marked, "MACs removed", "speed-up", y_unit="x", x_unit="%") if marked else None


def _search(found: Search | None) -> dict[str, Any] | None:
    """What was measured on the way to the target, and what was taken."""
    if found is None:
        return None
    unit = f" {found.unit}" if found.unit else ""
    taken, tried = found.taken, [t for t in found.tried if t != found.taken]
    told = [(100 * t.ratio, t.value, f"{t.value:.4g}{unit} with {t.ratio:.1%} removed") for t in (*tried, taken)]
    chart = curve(told, "share that was to go", found.what, y_unit=unit, x_unit="%")
    chosen = f"{told[-1][2]}: taken"
    chart["points"] = [(x, y, chosen if words == told[-1][2] else words) for x, y, words in chart["points"]]
    limit = "" if found.limit is None else f"{found.limit:.4g}{unit}"
    return {"chart": chart, "chosen": chosen, "count": len(found.tried), "what": found.what, "limit": limit}


def _forecast(found: Forecast | None) -> dict[str, Any] | None:
    """What smaller and larger cuts are expected to do, and the plans for this ratio that were measured."""
    if found is None:
        return None
    path = [(100 * r, d) for r, d in found.path if d >= LEAST]
    if len(path) < 2:
        return None
    of = OF.get(found.of, found.of)

    def spot(removed: float, damage: float, how: str) -> Spot:
        return removed, math.log10(max(damage, LEAST)), f"{how} {damage:.2g} where {removed:.1f}% of {of} go"

    measured = [spot(100 * j.removed, j.damage, "measured:") for j in found.judged if j.damage is not None]
    predicted = [spot(r, d, "predicted:") for r, d in path]
    at, damage = 100 * found.taken.removed, found.taken.damage
    promised = _between(path, at)
    taken = spot(at, promised, "taken, predicted:") if damage is None else spot(at, damage, "measured:")
    beside = measured if taken in measured else [*measured, taken]
    chart = curve(
        predicted, f"share of {of} that goes", "damage to the outputs", x_unit="%", beside=beside, decades=True
    )
    words = f"{promised:.2g} predicted" if damage is None else f"{damage:.2g} measured, {promised:.2g} predicted"
    return {"chart": chart, "chosen": taken[2], "of": of, "words": words, "measured": measured, "little": f"{LITTLE:g}"}


def _between(path: Sequence[tuple[float, float]], at: float) -> float:
    """The damage on the line through the points, which is one of logarithms."""
    removed, damage = zip(*path, strict=True)
    return float(10 ** np.interp(at, removed, np.log10(damage)))


def _digests(told: Told) -> list[tuple[str, object]]:
    named = {
        "model": "sha256 of the original",
        "samples": "sha256 of the samples",
        "output": "sha256 of the outcome",
    }
    given: Mapping[str, object] = told.get("digests", {"model": told["model_digest"]})
    passes = [
        (f"pruned before, {k + 1}", f"{p.get('asked', '')}; onnxprune {p.get('version', '')}; {p.get('settings', '')}")
        for k, p in enumerate(told.get("earlier", ()))
    ]
    return [*((named.get(k, k), v) for k, v in given.items()), *passes]


def _whole(told: Told) -> list[dict[str, Any]]:
    """What stayed whole, by reason: how many channels, and at which nodes; the most frequent first."""
    found: dict[str, tuple[int, dict[str, None]]] = {}
    for p in told["pinned"]:
        count, nodes = found.setdefault(p.reason, (0, {}))
        nodes[f"{p.node or p.tensor}, axis {p.axis}"] = None
        found[p.reason] = count + p.count, nodes
    ranked = sorted(found.items(), key=lambda item: -item[1][0])
    return gathered({f"{reason}: {count} channels": list(nodes) for reason, (count, nodes) in ranked})


def _refused(told: Told) -> list[dict[str, Any]]:
    """What could not be done, by reason: how many layers, and which."""
    found = by_reason((r.what, r.reason, r.node) for r in told.get("refused", ()))
    ranked = sorted(found.items(), key=lambda item: -len(item[1]))
    return gathered({f"not {w}: {why}; {len(n)} layer{'s' * (len(n) != 1)}": n for (w, why), n in ranked})
