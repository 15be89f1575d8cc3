"""A result as one HTML page that needs nothing else: for whoever has to sign the pruned model off.

Made of the JSON form alone, so that a page can be drawn long after the run, on another machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from onnxprune.report.terminal import by_reason, change, not_counted, plain, si

Values = Mapping[str, Any]
KIND = "onnxprune result"
SCHEMAS = (1,)
DOTS = 400
"""Most timed rounds drawn a model."""
NODES = 20
"""Most nodes named for one reason."""


def render(result: Values, *, name: str) -> str:
    """The page.

    Args:
        result: what `Result.to_dict` gives, or `--json` prints.
        name: what the model is called.

    Raises:
        ValueError: `result` is something else, or of a version that is not known.
    """
    from jinja2 import Environment, StrictUndefined

    if result.get("kind") != KIND or result.get("schema") not in SCHEMAS:
        raise ValueError(f"kind {result.get('kind')!r}, schema {result.get('schema')!r}; give what --json printed")
    environment = Environment(autoescape=True, undefined=StrictUndefined, lstrip_blocks=True)
    environment.filters |= {"plain": plain, "si": si}
    template = environment.from_string(files("onnxprune.report").joinpath("page.html").read_text("utf-8"))
    return template.render(
        r=result,
        name=plain(name),
        found={"verdict": None, "why": "", "parts": [], **(result["fidelity"] or {})},
        costs=_costs(result["before"], result["after"]),
        not_counted=not_counted(result["before"]) if result["before"].get("uncounted") else "",
        widths=_widths(result["groups"]),
        whole=_whole(result["pinned"]),
        refused=_refused(result.get("refused", [])),
        timing=None if result["latency"] is None else _timing(result["latency"]),
        removed=sum(len(cut["removed"]) for cut in result["cuts"]),
    )


def _costs(before: Values, after: Values) -> list[tuple[str, str, str, str]]:
    rows = [
        (title, f"{si(before[key])}{unit}", f"{si(after[key])}{unit}", change(before[key], after[key]))
        for title, key, unit in (("MACs", "macs", ""), ("parameters", "params", ""), ("file size", "bytes", "B"))
    ]
    if before.get("latency_ms") and after.get("latency_ms"):
        a, b = before["latency_ms"], after["latency_ms"]
        rows.append(("latency, median", f"{a:.3f} ms", f"{b:.3f} ms", change(a, b)))
    return rows


def _widths(groups: list[Values]) -> list[dict[str, Any]]:
    """Every group with its bar's length, in percent of the widest, and the share of it that stays."""
    widest = max((g["before"] for g in groups), default=1)
    return [{**g, "whole": 100 * g["before"] / widest, "share": g["after"] / g["before"]} for g in groups]


def _whole(pinned: list[Values]) -> list[dict[str, Any]]:
    """What stayed whole, by reason: how many channels, and at which nodes; the most frequent first."""
    found: dict[str, dict[str, Any]] = {}
    for p in pinned:
        entry = found.setdefault(p["reason"], {"reason": p["reason"], "channels": 0, "nodes": {}})
        entry["channels"] += p["count"]
        entry["nodes"][f"{p['node'] or p['tensor']}, axis {p['axis']}"] = None
    rows = sorted(found.values(), key=lambda entry: -entry["channels"])
    return [{**row, "more": max(0, len(row["nodes"]) - NODES), "nodes": list(row["nodes"])[:NODES]} for row in rows]


def _refused(refused: list[Values]) -> list[dict[str, Any]]:
    """What could not be done, by reason: how many layers, and which."""
    found = by_reason((r["what"], r["reason"], r["node"]) for r in refused)
    return [
        {"what": w, "reason": why, "count": len(nodes), "nodes": nodes[:NODES], "more": max(0, len(nodes) - NODES)}
        for (w, why), nodes in sorted(found.items(), key=lambda item: -len(item[1]))
    ]


def _timing(latency: Values) -> dict[str, Any]:
    """Every round of both models as a dot, and where the medians are; x in percent of the width."""
    rows = [{"name": t["name"], "samples": t["samples"][:DOTS], "p50": t["p50_ms"]} for t in latency["timings"]]
    most = 1.05 * max(sorted(s)[int(0.98 * (len(s) - 1))] for s in (row["samples"] for row in rows))
    for row in rows:
        row["dots"] = [round(100 * x / most, 2) for x in row["samples"] if x <= most]
        row["median"] = round(100 * row["p50"] / most, 2)
        row["beyond"] = len(row["samples"]) - len(row["dots"])
    step = next(s for k in range(-6, 9) for s in (10**k, 2 * 10**k, 5 * 10**k) if most / s <= 8)
    ticks = [(f"{k * step:g}", round(100 * k * step / most, 2)) for k in range(int(most / step) + 1)]
    return {"rows": rows, "ticks": ticks, "comparison": latency["comparisons"][0], **latency}
