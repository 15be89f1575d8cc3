"""What a plan would do, layer by layer: the structure is carried out, unrepaired, and counted.

For `plan` and --dry-run. Knows nothing of how the plan came about, and prints nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from onnxprune.graph.layers import products
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.measure.cost import count_params
from onnxprune.pipeline.opened import Subject
from onnxprune.plan import PrunePlan
from onnxprune.rewrite.apply import apply_edits


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
        macs, params: (before, after).
    """

    layers: tuple[LayerChange, ...]
    macs: tuple[float, float]
    params: tuple[int, int]

    def to_json(self) -> list[dict[str, object]]:
        """The layers as plain values."""
        return [asdict(layer) for layer in self.layers]


def preview(subject: Subject, plan: PrunePlan) -> Preview:
    """Carry the plan's structure out and count."""
    graph = subject.graph
    after = apply_edits(subject.net, plan.edits)
    shapes = observe(after, subject.feeds).shapes
    now = {layer.key: layer.macs for layer in products(after, shapes)}
    ways: dict[str, list[str]] = {}
    for e in plan.factorized():
        ways.setdefault(e.node, []).append(f"{e.kind} rank {e.rank}")
    rows = []
    for layer in products(graph, subject.channels.shapes):
        macs = sum(now.get(key, 0.0) for key in _parts(graph, after, layer.key))
        words = _words(subject.channels.shapes, shapes, graph, after, layer.key, ways.get(layer.key, []))
        rows.append(LayerChange(layer.key, layer.op, layer.macs, macs, words))
    before = sum(row.macs_before for row in rows)
    return Preview(tuple(rows), (before, sum(now.values())), (count_params(subject.model), count_params(after.model)))


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
