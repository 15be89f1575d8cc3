"""`bench --explain`, as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxprune.report.terminal import plain, si, table

ROWS = 12
"""Nodes that are shown without -v."""
MEANING = {
    "fell back": "the provider leaves it to another",
    "layout copy": "ONNX Runtime put it in",
    "not fused": "it runs on its own",
    "width off the grid": "the kernel works in blocks of channels",
    "launch-bound": "starting it takes as long as running it",
    "dominates": "most of the time is here",
    "memory-bound": "bytes, not arithmetic",
    "slow kernel": "far from what its arithmetic promises",
}
"""Causes in a few words; what they mean in numbers, `timing.explain` says."""


def render(found: Any, verbose: bool = False) -> str:
    """The whole of an `Explanation`.

    Args:
        found: `pipeline.explaining.Explanation`.
        verbose: whether all nodes are shown.
    """
    parts = [_model(model, None if verbose else ROWS) for model in found.models]
    return "\n".join([*parts, _options(found.tuned)])


def _model(model: Any, most: int | None) -> str:
    on, beside = model.machine, any(n.before_ms is not None for n in model.nodes)
    rows = []
    for n in model.nodes:
        before = [] if not beside else ["" if n.before_ms is None else f"{n.before_ms:.4g}"]
        rows.append(
            (plain(n.name), n.op, *before, f"{n.ms:.4g}", f"{n.share:.1%}", si(n.macs), f"{n.promised_ms:.4g}", n.cause)
        )
    head = ("node", "op", *(["before ms"] if beside else []), "ms", "share", "MACs", "promised ms", "cause")
    lines = [
        f"{plain(model.name)}: {model.total_ms:.4g} ms a run; here {on.macs_per_ms / 1e6:.3g} G MACs and "
        f"{on.bytes_per_ms / 1e6:.3g} GB a second, {on.launch_ms * 1e3:.2g} µs to start a node",
        "",
        table(head, rows, "<<" + ">" * (len(head) - 3) + "<", most=most),
    ]
    for cause, ms, count in model.causes():
        said = next(n for n in model.nodes if n.cause == cause)
        nodes = f"{count} node{'s' * (count > 1)}"
        lines.append(f"{cause} ({MEANING[cause]}): {nodes}, {ms:.4g} ms; {plain(said.name)}: {plain(said.help)}")
    return "\n".join(lines) + "\n"


def _options(tuned: Sequence[Any]) -> str:
    rows = [(t.name, f"{t.gain:.3f}x [{t.low:.3f}, {t.high:.3f}]", t.verdict) for t in tuned]
    return (
        "without any pruning, against what ONNX Runtime does by itself\n\n"
        + table(("session options", "speed-up", "verdict"), rows, "<><")
        + "\n"
    )
