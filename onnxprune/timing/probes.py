"""Probes: small models that hold several copies of what is timed, and what is known of them.

What is known is kept on disk with the grids of `timing.node_times`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from onnxprune.graph.model import Graph
from onnxprune.runtime.ports import Feeds
from onnxprune.timing.engine import ON_CPU, Engine
from onnxprune.timing.grids import Grids
from onnxprune.timing.node_times import COPIES, profiled, profiler_ms

POINT_MS = 25.0
"""Time spent on one probe."""
RUNS = (4, 60)
"""Its runs, at least and at most."""
SHORTEST_MS = 1e-4
"""What takes less is not told from nothing."""


@dataclass
class Probes:
    """Times of a network's layers beside what may stand in their place, measured when asked for.

    Args:
        graph: the network.
        shapes: sizes of its tensors in one run.
        engine: what they run on.
        grids: where what is known is kept; None: the user's cache.
    """

    graph: Graph
    shapes: dict[str, tuple[int, ...]]
    engine: Engine = ON_CPU
    grids: Grids | None = None

    def __post_init__(self) -> None:
        self.kept = self.grids or Grids.of_user(self.engine)

    def save(self) -> None:
        """Write what is known to disk."""
        self.kept.save()

    def profiled_ms(self, model: onnx.ModelProto, feeds: Feeds) -> dict[str, float]:
        """What a copy takes of each part of a probe, by the part's name: what stands before the number of the copy."""
        events, _ = profiled(model, feeds, self.engine, POINT_MS, RUNS)
        extra, found = profiler_ms(self.engine), dict[str, list[float]]()
        for name, (ms, _) in events.items():
            found.setdefault(name.removesuffix("_nchwc").rpartition(".")[0], []).append(ms)
        parts = {node.name.rpartition(".")[0] for node in model.graph.node}
        return {p: max(float(np.median(found[p])) - extra, SHORTEST_MS) if p in found else SHORTEST_MS for p in parts}

    def clocked_ms(self, model: onnx.ModelProto, feeds: Feeds, stem: str) -> float:
        """What a copy takes of the nodes whose names begin so, without the others."""
        return self.engine.each_ms(only(model, stem), feeds, COPIES, POINT_MS, RUNS)


def only(both: onnx.ModelProto, stem: str) -> onnx.ModelProto:
    """The nodes of a probe whose names begin so, in a model of their own."""
    whole = both.graph
    nodes = [n for n in whole.node if n.name.startswith(stem)]
    outputs = [o for o in whole.output if o.name.startswith(stem)]
    read = {name for n in nodes for name in n.input}
    inputs = [port for port in whole.input if port.name in read]
    body = helper.make_graph(nodes, stem, inputs, outputs, [t for t in whole.initializer if t.name in read])
    return helper.make_model(body, opset_imports=both.opset_import, ir_version=both.ir_version)
