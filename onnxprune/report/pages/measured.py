"""The pages about measurements: latency side by side, and what each cut alone does to the outputs."""

from __future__ import annotations

import math
from typing import Any

from onnxprune.report.bench import conditions, heading
from onnxprune.report.forms import Benched, Run
from onnxprune.report.pages.shared import ROWS, how_made, times
from onnxprune.report.sensitivity import LITTLE, SHARES, Row, Sensitivity, notes
from onnxprune.report.terminal import plain
from onnxprune.timing.bench_result import BenchResult

DECADES = (-5.0, 1.0)
"""Powers of ten of damages that a small curve spans."""


def bench(found: Benched, run: Run) -> dict[str, Any]:
    """A table and all rounds of every case."""
    return {
        "cases": [
            {"heading": heading(r), "rows": _times(r), "timing": times(r), "conditions": conditions(r)}
            for r in found["results"]
        ],
        "made": how_made(run, {}),
    }


def _times(result: BenchResult) -> list[dict[str, Any]]:
    compared = {c.candidate: c for c in result.comparisons}
    return [{"time": t, "compared": compared.get(t.name)} for t in result.timings]


def sensitivity(found: Sensitivity, run: Run) -> dict[str, Any]:
    """A row for every group and block, what can lose most first."""
    ranked = found.ranked()
    blocks = any(row.kind == "block" for row in found.rows)
    return {
        "rows": [_row(row, blocks) for row in ranked[:ROWS]],
        "shares": [*(f"keep {share:.0%}" for share in SHARES), *(["all gone"] if blocks else [])],
        "left": len(ranked) - ROWS,
        "notes": notes(found, len(ranked), None, LITTLE),
        "complete": found.complete,
        "little": 100 - _height(LITTLE),
        "made": how_made(
            run, found.settings,
            [("sha256 of the model", found.model_digest), ("sha256 of the samples", found.samples_digest)],
        ),
    }  # fmt: skip


def _row(row: Row, blocks: bool) -> dict[str, Any]:
    gone = row.can_go()
    macs = next((p.macs_removed for p in row.points if 1 - p.kept / row.width == gone), 0.0)
    shown = [(100 * (1 - p.kept / row.width), _height(p.damage)) for p in row.points if p.damage is not None]
    cells = [_damage(row, share) if row.kind != "block" else "" for share in SHARES]
    cells += [_damage(row, 0) if row.kind == "block" else ""] if blocks else []
    return {
        "name": plain(row.name),
        "kind": row.kind,
        "width": row.width,
        "cells": cells,
        "gone": f"{gone:.0%}",
        "macs": f"-{macs:.1%}",
        "line": " ".join(f"{x:.1f},{100 - y:.1f}" for x, y in shown),
        "dots": [(x, 100 - y) for x, y in shown],
    }


def _damage(row: Row, share: float) -> str:
    point = row.near(share)
    return "" if point is None else "not finite" if point.damage is None else f"{point.damage:.2g}"


def _height(damage: float) -> float:
    """Of a damage on a logarithmic scale, in percent."""
    low, high = DECADES
    return 100 * (min(max(math.log10(max(damage, 1e-300)), low), high) - low) / (high - low)
