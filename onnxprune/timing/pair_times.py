"""How long a layer takes when it is made of two or three, relative to the layer itself, in ONNX Runtime here.

Layer and chain read the same tensor in one probe model, several copies of each, so that both are timed in the same
run: what the machine does meanwhile it does to both. What is known is kept on disk with the grids of
`timing.node_times`. Knows nothing of channels and budgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.graph.layers import signature_of
from onnxprune.graph.model import Graph
from onnxprune.graph.pairs import pair_nodes, pair_sizes
from onnxprune.timing.engine import ON_CPU, Engine
from onnxprune.timing.grids import Grids
from onnxprune.timing.node_times import COPIES, profiled, profiler_ms

POINT_MS = 25.0
"""Time spent on one probe, at least 4 and at most 60 runs."""

Way = tuple[tuple[str, int], ...]
"""How a layer is made of several: (kind, rank) once or twice, the second for the last of the first two."""


@dataclass
class PairTimes:
    """Times of chains, measured when asked for.

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
    share: ClassVar[float] = 0.0
    """Of the share of MACs that a way saves, how much of the time must go: here any."""

    def __post_init__(self) -> None:
        if self.grids is None:
            self.grids = Grids.of_user(self.engine)

    def relative(self, key: str, way: Way) -> tuple[float, ...]:
        """The time of every node of the chain over that of the layer `key`, as it is."""
        assert self.grids is not None
        node, weight = self.graph.nodes[key], self.graph.value((key, 1))
        assert weight is not None
        x = self.shapes[node.input[0]]
        signature = f"{signature_of(node, x, weight.shape, weight.dtype)} as {way}"
        known = self.grids.get(signature, [str(k) for k in range(len(way) + 1)])
        if known is None:
            times = self._measure(node, tuple(x), weight, way)
            known = {str(k): [[1.0], [t]] for k, t in enumerate(times)}
            self.grids.put(signature, known)
        return tuple(known[str(k)][1][0] for k in range(len(known)))

    def save(self) -> None:
        """Write what is known to disk."""
        assert self.grids is not None
        self.grids.save()

    def _measure(self, node: onnx.NodeProto, x: tuple[int, ...], weight: np.ndarray, way: Way) -> list[float]:
        model = _probe(node, x, weight, way, self.graph.opset)
        read = np.random.default_rng(0).standard_normal(x).astype(weight.dtype)
        if not self.engine.on_cpu:
            return self._by_clock(model, {"x": read}, len(way) + 1)
        events, _ = profiled(model, {"x": read}, self.engine, POINT_MS, (4, 60))
        extra = profiler_ms(self.engine)

        def spent(stem: str) -> float:
            own = [ms for name, (ms, _) in events.items() if name.removesuffix("_nchwc").rpartition(".")[0] == stem]
            return max(float(np.median(own)) - extra, 1e-4) if own else 1e-4

        whole = spent("layer")
        return [spent(f"part{k}") / whole for k in range(len(way) + 1)]

    def _by_clock(self, both: onnx.ModelProto, feeds: dict[str, np.ndarray], count: int) -> list[float]:
        """The chain's time over the layer's, each timed without the other and shared out evenly over its nodes."""

        def spent(stem: str) -> float:
            return self.engine.each_ms(_only(both, stem), feeds, COPIES, POINT_MS, (4, 60))

        return [spent("part") / spent("layer") / count] * count


def _only(both: onnx.ModelProto, stem: str) -> onnx.ModelProto:
    """The nodes of a probe whose names begin so, in a model of their own."""
    whole = both.graph
    nodes = [n for n in whole.node if n.name.startswith(stem)]
    outputs = [o for o in whole.output if o.name.startswith(stem)]
    read = {name for n in nodes for name in n.input}
    body = helper.make_graph(nodes, stem, whole.input, outputs, [t for t in whole.initializer if t.name in read])
    return helper.make_model(body, opset_imports=both.opset_import, ir_version=both.ir_version)


def _probe(node: onnx.NodeProto, x: tuple[int, ...], weight: np.ndarray, way: Way, opset: int) -> onnx.ModelProto:
    """The layer and the chain, `COPIES` of each, all reading the same input."""
    nodes: list[onnx.NodeProto] = []
    values: dict[str, np.ndarray] = {}
    outputs: list[str] = []
    rng = np.random.default_rng(0)
    for copy in range(COPIES):
        layer = onnx.NodeProto()
        layer.CopyFrom(node)
        del layer.input[:]
        layer.input.extend(["x", f"w.{copy}"])
        layer.output[0] = layer.name = f"layer.{copy}"
        values[f"w.{copy}"] = rng.standard_normal(weight.shape).astype(weight.dtype)
        chain = _chain(layer, weight.shape, way, copy, values, rng)
        nodes += [layer, *chain]
        outputs += [layer.output[0], chain[-1].output[0]]
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    body = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", kind, x)],
        [helper.make_tensor_value_info(o, kind, None) for o in outputs],
        [numpy_helper.from_array(v, name) for name, v in values.items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _chain(
    layer: onnx.NodeProto,
    weight: tuple[int, ...],
    way: Sequence[tuple[str, int]],
    copy: int,
    values: dict[str, np.ndarray],
    rng: np.random.Generator,
) -> list[onnx.NodeProto]:
    made: list[onnx.NodeProto] = []
    last, size, dtype = layer, weight, values[f"w.{copy}"].dtype
    for k, (kind, rank) in enumerate(way):
        names = [f"w{k}{part}.{copy}" for part in "ab"]
        sizes = pair_sizes(last, size, kind, rank)
        for name, s in zip(names, sizes, strict=True):
            values[name] = rng.standard_normal(s).astype(dtype)
        head, last = pair_nodes(last, size, kind, names[0], f"part{k}.{copy}", names[1])
        head.name, size = f"part{k}.{copy}", sizes[1]
        made.append(head)
    last.output[0] = last.name = f"part{len(way)}.{copy}"
    if len(way) == 2:
        values.pop(f"w0b.{copy}")
    return [*made, last]
