"""What a person reads: one screen about a result."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxprune.report.result import Result


def plain(text: str) -> str:
    """A name from a model, safe to print: control characters shown, not obeyed."""
    return "".join(c if unicodedata.category(c)[0] != "C" else f"\\x{ord(c):02x}" for c in text)


def si(value: float) -> str:
    """A count with a unit letter: 31.2 M."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.2f} {letter}"
    return f"{value:.0f}"


def change(before: float, after: float) -> str:
    """How much went, in percent."""
    return f"{(after / before - 1) * 100:+.1f}%" if before else ""


def summary(result: Result) -> str:
    """The summary of a pruning run, about twenty lines."""
    b, a = result.before, result.after
    rows = [
        ("", "original", "pruned", "change"),
        ("MACs", si(b.macs), si(a.macs), change(b.macs, a.macs)),
        ("parameters", si(b.params), si(a.params), change(b.params, a.params)),
        ("file size", f"{si(b.bytes)}B", f"{si(a.bytes)}B", change(b.bytes, a.bytes)),
    ]
    if b.latency_ms and a.latency_ms:
        rows.append(
            (
                "latency p50",
                f"{b.latency_ms:.3f} ms",
                f"{a.latency_ms:.3f} ms",
                change(b.latency_ms, a.latency_ms),
            )
        )
    lines = [f"{r[0]:<12}{r[1]:>12}{r[2]:>12}{r[3]:>10}" for r in rows]
    lines.append("")
    if result.latency is not None:
        c = result.latency.comparisons[0]
        lines.append(
            f"speed-up     {c.speedup:.2f}x [{c.low:.2f}, {c.high:.2f}], {c.verdict} "
            f"({result.latency.rounds} interleaved rounds, {result.latency.threads} thread, CPU)"
        )
    lines.append(f"surgery      exact: worst error {result.surgery.worst:.1e} against the masked original")
    if result.fidelity is not None:
        f = result.fidelity
        top1 = "" if f.top1 is None else f"top-1 agreement {f.top1:.1%}, "
        held = "held-out samples" if f.held_out else "samples that were also fitted on"
        lines.append(
            f"fidelity     {top1}cosine {f.cosine:.4f}, SQNR {f.sqnr_db:.1f} dB on {f.samples} {held}"
        )
    cut = [(n, x, y) for n, x, y in result.groups if y < x]
    lines.append(f"groups       {len(cut)} of {len(result.groups)} cut; repair: {result.repair}")
    reasons: dict[str, int] = {}
    for p in result.pinned:
        reasons[p.reason] = reasons.get(p.reason, 0) + p.count
    top = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:3]
    if top:
        lines.append("kept whole   " + "; ".join(f"{plain(r)} ({n})" for r, n in top))
    lines += [f"warning      {plain(w)}" for w in result.warnings]
    return "\n".join(lines) + "\n"
