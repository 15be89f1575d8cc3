"""The pages about measurements: latency side by side, and what each cut alone does to the outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from onnxprune.report.alone import LITTLE, Row
from onnxprune.report.bench import conditions, heading
from onnxprune.report.explained import MEANING
from onnxprune.report.forms import Benched, ExplainedModel, Explaining, Profiled, Run
from onnxprune.report.pages.shared import ROWS, curve, how_made, times
from onnxprune.report.searched import Searched, Trial, shown, words
from onnxprune.report.searched import notes as trial_notes
from onnxprune.report.sensitivity import SHARES, Sensitivity, notes
from onnxprune.report.terminal import plain
from onnxprune.timing.bench_result import BenchResult

NAMED = 3
"""Models that a page is headed by."""
DECADES = (-5.0, 1.0)
"""Powers of ten of damages that a small curve spans."""


def bench(found: Benched, run: Run) -> dict[str, Any]:
    """A table and all rounds of every case."""
    names = [t.name for r in found["results"][:1] for t in r.timings]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return {
        "models": plain(", ".join(names[:NAMED]) + more),
        "cases": [
            {"heading": heading(r), "rows": _times(r), "timing": times(r), "conditions": conditions(r)}
            for r in found["results"]
        ],
        "made": how_made(run, {}),
    }


def explanation(found: Explaining, run: Run) -> dict[str, Any]:
    """The slowest nodes of each model, what is wrong with them, and options of a session."""
    return {"models": [_explained(m) for m in found["models"]], "options": found["options"], "made": how_made(run, {})}


def _explained(model: ExplainedModel) -> dict[str, Any]:
    first = {n.cause: f"{n.name}: {n.help}" for n in reversed(model["nodes"])}
    causes = [{**c, "meaning": MEANING.get(c["cause"], ""), "help": first.get(c["cause"], "")} for c in model["causes"]]
    return {"model": model, "nodes": model["nodes"][:ROWS], "left": len(model["nodes"]) - ROWS, "causes": causes}


def profile(found: Profiled, run: Run) -> dict[str, Any]:
    """A device, and how far its times carry."""
    total, share = found["total_ms"], found["layers_share"]
    lead = f"{found['device']}: {total:.4g} ms a run" if found["device"] and total else "A script to run on the device."
    more = f"; the nodes' times add up to {share:.1%}" if share else ""
    return {**found, "lead": lead + more, "made": how_made(run, {})}


def search(found: Searched, run: Run) -> dict[str, Any]:
    """The metric against the cost and the size, and a row a trial."""
    front = found.front()
    others = [t for t in found.trials if t not in front]
    metric, *costs = found.objectives
    points = [(t.number, t.values) for t in found.trials if t.values is not None]
    best = {t.number for t in front}
    charts = []
    for k, cost in enumerate(costs, 1):
        marked = [(v[k], v[0], f"trial {n}: {metric.shown(v[0])} at {cost.shown(v[k])}") for n, v in points]
        joined = [(v[k], v[0]) for n, v in points if n in best]
        charts += [curve(marked, cost.name, metric.name, x_unit=cost.unit, joined=joined)] if marked else []
    return {
        "charts": charts,
        "front": [_tried(found, t) for t in front],
        "others": [_tried(found, t) for t in others[:ROWS]],
        "left": len(others) - ROWS,
        "objectives": [o.name for o in found.objectives],
        "notes": trial_notes(found),
        "made": how_made(
            run, {"trials": found.asked},
            [("sha256 of the model", found.model_digest), ("sha256 of the samples", found.samples_digest)],
        ),
    }  # fmt: skip


def _tried(found: Searched, trial: Trial) -> dict[str, Any]:
    values = trial.values or ()
    cells = shown(found.objectives, values) if values else [""] * len(found.objectives)
    return {"number": trial.number, "cells": cells, "words": words(trial), "why": trial.why}


def _times(result: BenchResult) -> list[dict[str, Any]]:
    compared = {c.candidate: c for c in result.comparisons}
    return [{"time": t, "compared": compared.get(t.name)} for t in result.timings]


def sensitivity(found: Sensitivity, run: Run) -> dict[str, Any]:
    """A row for every group and block, what can lose most first."""
    ranked = found.ranked()
    blocks = any(row.kind == "block" for row in found.rows)
    return {
        "rows": [_cells(row, blocks) for row in ranked[:ROWS]],
        "shares": [*(f"keep {share:.0%}" for share in SHARES), *(["all gone"] if blocks else [])],
        "left": len(ranked) - ROWS,
        "notes": notes(found, len(ranked), None, LITTLE),
        "complete": found.complete,
        "little": LINE,
        "made": how_made(
            run, found.settings,
            [("sha256 of the model", found.model_digest), ("sha256 of the samples", found.samples_digest)],
        ),
    }  # fmt: skip


def alone(rows: Sequence[Row], kept: Mapping[str, int]) -> dict[str, Any]:
    """What each cut alone would do, as a result shows it: most MACs first, with a ring where it was cut.

    Args:
        rows: what was measured.
        kept: channels of each group that stay.
    """

    def weight(row: Row) -> float:
        return max((p.macs_removed for p in row.points), default=0.0)

    ranked = sorted(rows, key=weight, reverse=True)
    return {"rows": [_ringed(row, kept.get(row.name)) for row in ranked[:ROWS]], "left": len(ranked) - ROWS,
            "little": LINE}  # fmt: skip


def _ringed(row: Row, kept: int | None) -> dict[str, Any]:
    cut = kept is not None and kept < row.width
    near = row.near((kept or 0) / row.width) if cut else None
    rings = [] if near is None or near.damage is None else [(_gone(row, kept or 0), 100 - _height(near.damage))]
    return _drawn(row) | {"kept": f"{kept} of {row.width}" if cut else "all", "rings": rings}


def _gone(row: Row, kept: int) -> float:
    """The share that goes, in percent."""
    return 100 * (1 - kept / row.width)


def _drawn(row: Row) -> dict[str, Any]:
    """The small curve of a row, and what is said of it."""
    gone = row.can_go()
    macs = next((p.macs_removed for p in row.points if 1 - p.kept / row.width == gone), 0.0)
    shown = [(_gone(row, p.kept), _height(p.damage)) for p in row.points if p.damage is not None]
    return {
        "name": plain(row.name),
        "kind": row.kind,
        "width": row.width,
        "gone": f"{gone:.0%}",
        "macs": f"-{macs:.1%}" if macs else "",
        "line": " ".join(f"{x:.1f},{100 - y:.1f}" for x, y in shown),
        "dots": [(x, 100 - y) for x, y in shown],
        "rings": [],
    }


def _cells(row: Row, blocks: bool) -> dict[str, Any]:
    cells = [_damage(row, share) if row.kind != "block" else "" for share in SHARES]
    cells += [_damage(row, 0) if row.kind == "block" else ""] if blocks else []
    return _drawn(row) | {"cells": cells}


def _damage(row: Row, share: float) -> str:
    point = row.near(share)
    return "" if point is None else "not finite" if point.damage is None else f"{point.damage:.2g}"


def _height(damage: float) -> float:
    """Of a damage on a logarithmic scale, in percent."""
    low, high = DECADES
    return 100 * (min(max(math.log10(max(damage, 1e-300)), low), high) - low) / (high - low)


LINE = 100 - _height(LITTLE)
"""Where damage that counts as little is drawn, in percent from above."""
