"""What a plan would do, layer by layer: the structure is carried out, unrepaired, and counted.

For `plan` and --dry-run. Knows nothing of how the plan came about, and prints nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.graph.work import work
from onnxprune.measure.cost import Cost, cost_of
from onnxprune.pipeline.apply import chosen_repair
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.origin import sign
from onnxprune.pipeline.settings import Settings
from onnxprune.plan import PrunePlan
from onnxprune.rewrite.apply import Mending, apply_edits


@dataclass(frozen=True)
class LayerChange:
    """One multiplying layer, before and after.

    Attributes:
        layer: its node.
        op: its operator.
        macs_before, macs_after: multiply-accumulates of one run; of all parts of a layer that is made of several.
        what: in words.
    """

    layer: str
    op: str
    macs_before: float
    macs_after: float
    what: str


@dataclass(frozen=True)
class Preview:
    """The outcome of a plan, counted.

    Attributes:
        layers: every multiplying layer of the original, in execution order.
        before, after: what it costs, with the biases that its repair will add; how many bytes the file takes depends
            on the values in it.
    """

    layers: tuple[LayerChange, ...]
    before: Cost
    after: Cost

    def to_json(self) -> list[dict[str, object]]:
        """The layers as plain values."""
        return [asdict(layer) for layer in self.layers]


def preview(subject: Subject, plan: PrunePlan, settings: Settings | None = None) -> Preview:
    """Carry the plan's structure out and count.

    Args:
        subject: what the plan was made for.
        plan: what to do.
        settings: how it is to be repaired.
    """
    graph, (repair, _) = subject.graph, chosen_repair(subject, plan, settings or Settings())
    sampled = (
        () if subject.calibration is None else (subject.feeds,)
    )  # their values do not count, only that there are some
    after = apply_edits(subject.net, plan.edits, Mending(repair.size, sampled))
    sign(after.model, subject, plan, settings or Settings(), repair.name)
    seen = observe(after, subject.feeds)
    shapes, cost = seen.shapes, cost_of(after, seen.shapes, seen.ran)
    now = {done.key: done.macs for done in work(after, shapes, seen.ran)}
    ways: dict[str, list[str]] = {}
    fused = _fused(graph, after, plan)
    for e in plan.factorized():
        ways.setdefault(e.node, []).append(f"{e.kind} rank {e.rank}")
    rows = []
    for done in work(graph, subject.channels.shapes, subject.channels.ran):
        macs = sum(now.get(key, 0.0) for key in _parts(graph, after, done.key))
        words = _words(subject.channels.shapes, shapes, graph, after, done.key, ways.get(done.key, []))
        words = f"one with {fused[done.key]}" if done.key in fused else words
        rows.append(LayerChange(done.key, done.operator.name, done.macs, macs, words))
    return Preview(tuple(rows), subject.cost(), cost)


def _fused(graph: Graph, after: Graph, plan: PrunePlan) -> dict[str, str]:
    """Layer that is there no more -> the one that it is a part of now."""
    found: dict[str, str] = {}
    for e in reversed(plan.fused()):  # a later edit may take up what an earlier one made
        end, waiting = found.get(e.node, e.node), [e.node]
        while waiting:
            key = waiting.pop()
            if key in graph.nodes:
                if key not in after.nodes:
                    found[key] = end
                waiting += [graph.producer.get(i, "") for i in graph.nodes[key].input if i != e.source]
    return found


def _parts(graph: Graph, after: Graph, key: str) -> list[str]:
    """The nodes that a layer has become, last first."""
    found = []
    while key in after.nodes:
        found.append(key)
        key = after.producer.get(after.nodes[key].input[0], "")
        if not key or key in graph.nodes:
            break
    return found


def _words(
    before: Mapping[str, tuple[int, ...]],
    now: Mapping[str, tuple[int, ...]],
    graph: Graph,
    after: Graph,
    key: str,
    ways: list[str],
) -> str:
    """What happens to one layer."""
    parts = _parts(graph, after, key)
    if not parts:
        return "dropped"
    sides = ("in", graph.nodes[key].input[0], after.nodes[parts[-1]].input[0]), ("out", key, key)
    widths = []
    for title, was, name in sides:
        old, new = before.get(was, ()), now.get(name, ())
        changed = np.flatnonzero([a != b for a, b in zip(old, new, strict=False)])
        if len(changed):
            widths.append(f"{title} {old[changed[0]]}→{new[changed[0]]}")
    return ", ".join([*ways, *widths]) or "as it is"
