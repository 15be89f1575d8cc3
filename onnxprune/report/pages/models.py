"""The pages about a model before it is cut, or held against its plan or another: inspection, plan, dry run,
verification, difference; and the names that options take."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from onnxprune.plan import PrunePlan, Resample, edit_of
from onnxprune.report import difference
from onnxprune.report.difference import Difference
from onnxprune.report.forms import Inspected, Listed, Planned, Previewed, Run, Uncounted, Verified
from onnxprune.report.pages.shared import ROWS, gathered, how_made, uncounted, widths
from onnxprune.report.terminal import (
    Said,
    asked_words,
    change,
    cost_rows,
    earlier_words,
    fidelity_said,
    not_counted,
    plain,
    si,
    surgery_words,
)


def inspection(found: Inspected, run: Run) -> dict[str, Any]:
    """What can be cut, and why the rest cannot."""
    groups = [g for g in found["groups"] if g["width"] > 1]
    total, layers = found["macs"] or 1, found.get("layers", ())
    rows = [{**g, "share": max(0.0, min(g["macs"] / total, 1.0))} for g in groups]
    single = [g["name"] for g in found["groups"] if g["width"] == 1]
    whole = {f"{p['reason']} ({p['channels']} channels)": [f"{w['tensor']} axis {w['axis']}, at {w['node']}"
             for w in p["where"]] for p in found["pinned"]}  # fmt: skip
    if single:
        whole[f"all their channels go together, or they have one ({len(single)} groups)"] = single
    operators, held = found.get("operators", {}), found.get("activations")
    said = [
        ("operators", ", ".join(f"{plain(op)} {count}" for op, count in operators.items())),
        ("activations", f"{si(held.bytes)}B at once at most, at {plain(held.node) or 'the start'}" if held else ""),
        ("before", earlier_words(found.get("earlier", ()))),
        ("not counted", _uncounted(found)),
    ]
    if found["inexact"]:
        said.append(("not exact", f"{len(found['inexact'])} nodes take statistics over channels"))
    facts = [("sha256 of the model", found["model_digest"])]
    return {
        "r": found,
        "said": [Said(about, text) for about, text in said if text],
        "groups": rows[:ROWS],
        "left": len(rows) - ROWS,
        "whole": gathered(whole),
        "layers": [{"l": layer, "share": max(0.0, min(layer.macs / total, 1.0))} for layer in layers[:ROWS]],
        "layers_left": len(layers) - ROWS,
        "made": how_made(run, {}, facts),
    }


def _uncounted(found: Uncounted) -> str:
    kinds, share = found.get("uncounted", ()), found.get("uncounted_time")
    return not_counted({"uncounted": list(map(asdict, kinds)), "uncounted_time": share}) if kinds else ""


def plan(found: Planned, run: Run) -> dict[str, Any]:
    """What a plan does."""
    made = PrunePlan.from_json(json.dumps(dict(found)))
    groups = [{"name": e.group, "before": e.width, "after": len(e.keep)} for e in made.narrowed()]
    merged = sum(len(e.source) for e in made.merges())
    said = [
        ("asked", asked_words(made.settings)),
        ("seen", plain("; ".join(e.in_words() for e in made.resampled()))),
        ("groups", f"{len(groups)} cut" if groups else ""),
        ("blocks", ", ".join(map(plain, made.blocks()))),
        ("one layer", ", ".join(f"{plain(e.block)} ({e.kernel}×{e.kernel})" for e in made.merged())),
        ("fused", ", ".join(plain(e.node) for e in made.fused())),
        ("low rank", ", ".join(f"{plain(e.node)} ({e.kind}, rank {e.rank})" for e in made.factorized())),
        ("merged", f"{merged} inputs of layers are taken over by others" if merged else ""),
    ]
    return {
        "said": [Said(about, text) for about, text in said if text],
        "widths": widths(groups[:ROWS]),  # type: ignore[arg-type]
        "left": len(groups) - ROWS,
        "made": how_made(run, made.settings, [("sha256 of the model", made.model_digest)]),
    }


def dry_run(found: Previewed, run: Run) -> dict[str, Any]:
    """What a plan would do, layer by layer."""
    settings = found["plan"].get("settings", {})
    cut = [g for g in found["groups"] if g["after"] < g["before"]]
    totals = (("MACs", found["macs"]), ("parameters", found["params"]))
    rows = [(title, si(t["before"]), si(t["after"]), change(t["before"], t["after"])) for title, t in totals]
    layers = [
        {**layer, "before": si(layer["macs_before"]), "after": si(layer["macs_after"]),
         "changed": change(layer["macs_before"], layer["macs_after"])}
        for layer in found["layers"] if layer["macs_before"] != layer["macs_after"]
    ]  # fmt: skip
    seen = "; ".join(e.in_words() for e in map(edit_of, found["plan"]["edits"]) if isinstance(e, Resample))
    groups = f"{len(cut)} of {len(found['groups'])} would be cut"
    said = [("asked", asked_words(settings)), ("seen", plain(seen)), ("groups", groups)]
    return {
        "said": [Said(about, text) for about, text in said if text],
        "costs": rows,
        "not_counted": _uncounted(found),
        "widths": widths(cut[:ROWS]),
        "left": len(cut) - ROWS,
        "layers": layers[:ROWS],
        "layers_left": len(layers) - ROWS,
        "made": how_made(run, settings, [("sha256 of the model", found["plan"].get("model_digest"))]),
    }


def verification(found: Verified, run: Run) -> dict[str, Any]:
    """Whether a pruned file keeps to its plan."""
    f = found["fidelity"]
    before, after = found.get("before"), found.get("after")
    said = [
        Said("surgery", surgery_words(found["surgery"], len(found["inexact"]))),
        Said("sizes", "as planned" if found["sizes_match"] else "NOT as planned"),
        *([Said("fidelity", "not checked")] if f is None else fidelity_said(f, "samples")),
    ]
    return {
        "r": found,
        "said": said,
        "costs": cost_rows(asdict(before), asdict(after)) if before and after else (),
        "not_counted": uncounted(before) if before else "",
        "made": how_made(run, {}),
    }


def diff(found: Difference, run: Run) -> dict[str, Any]:
    """What two models differ in."""
    rows = [difference.layer_row(pair) for pair in found.changed()]
    return {
        "r": found,
        "changed": len(rows),
        "costs": difference.totals(found),
        "said": [Said(about, text) for about, text in difference.said(found)],
        "heading": difference.heading(found),
        "head": difference.HEAD,
        "rows": rows[:ROWS],
        "left": len(rows) - ROWS,
        "made": how_made(run, {}, [("sha256 of A", found.a.digest), ("sha256 of B", found.b.digest)]),
    }


def names(found: Listed, run: Run) -> dict[str, Any]:
    """The names that an option takes."""
    return {"entries": found["entries"].items(), "topic": found["topic"], "made": how_made(run, {})}
