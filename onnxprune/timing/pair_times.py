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
from onnxprune.graph.pairs import pair_nodes, pair_sizes
from onnxprune.timing.node_times import COPIES
from onnxprune.timing.probes import Probes

Way = tuple[tuple[str, int], ...]
"""How a layer is made of several: (kind, rank) once or twice, the second for the last of the first two."""


@dataclass
class PairTimes(Probes):
    """Times of chains; arguments as for `Probes`."""

    share: ClassVar[float] = 0.0
    """Of the share of MACs that a way saves, how much of the time must go: here any."""

    def relative(self, key: str, way: Way) -> tuple[float, ...]:
        """The time of every node of the chain over that of the layer `key`, as it is."""
        node, weight = self.graph.nodes[key], self.graph.value((key, 1))
        assert weight is not None
        x = self.shapes[node.input[0]]
        signature = f"{signature_of(node, x, weight.shape, weight.dtype)} as {way}"
        known = self.kept.get(signature, [str(k) for k in range(len(way) + 1)])
        if known is None:
            times = self._measure(node, tuple(x), weight, way)
            known = {str(k): [[1.0], [t]] for k, t in enumerate(times)}
            self.kept.put(signature, known)
        return tuple(known[str(k)][1][0] for k in range(len(known)))

    def _measure(self, node: onnx.NodeProto, x: tuple[int, ...], weight: np.ndarray, way: Way) -> list[float]:
        model, count = _probe(node, x, weight, way, self.graph.opset), len(way) + 1
        feeds = {"x": np.random.default_rng(0).standard_normal(x).astype(weight.dtype)}
        if self.engine.on_cpu:
            ms = self.profiled_ms(model, feeds)
            return [ms[f"part{k}"] / ms["layer"] for k in range(count)]
        # the chain without the layer, shared out evenly over its nodes
        return [self.clocked_ms(model, feeds, "part") / self.clocked_ms(model, feeds, "layer") / count] * count


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
