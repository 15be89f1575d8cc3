"""How long the convolution that a run of layers may become takes, relative to these layers, in ONNX Runtime here.

Layers and convolution are nodes of one probe model, several copies of each, so that all are timed in the same run. On
a device that waits for kernels to start this is far from what their arithmetic says: two layers are two starts, and one
is one. What is known is kept on disk with the grids of `timing.node_times`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.errors import ProviderError, UsageError
from onnxprune.graph.layers import layers, signature_of
from onnxprune.graph.pairs import centred
from onnxprune.runtime.ports import Feeds
from onnxprune.timing.node_times import COPIES
from onnxprune.timing.probes import Probes


@dataclass(frozen=True)
class OneLayer:
    """A convolution in the place of a run of layers.

    Attributes:
        source: the tensor that it reads.
        end: the node that it becomes.
        kernel, stride: on each axis; half of the kernel is padding.
    """

    source: str
    end: str
    kernel: int
    stride: int


@dataclass(frozen=True)
class _Part:
    """One layer of a probe.

    Attributes:
        node: it, or the convolution.
        x, w: sizes of what it reads and of its weight.
        dtype: of both.
    """

    node: onnx.NodeProto
    x: tuple[int, ...]
    w: tuple[int, ...]
    dtype: np.dtype

    @property
    def signature(self) -> str:
        """What layers that take the same time have in common."""
        return signature_of(self.node, self.x, self.w, self.dtype)


@dataclass
class OneLayerTimes(Probes):
    """Times of convolutions that runs of layers may become; arguments as for `Probes`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._layers = {layer.key: layer for layer in layers(self.graph, self.shapes) if layer.weight is not None}

    def inside(self, nodes: Sequence[str]) -> list[str]:
        """Keys of the layers in a run."""
        return [key for key in nodes if key in self._layers]

    def relative(self, nodes: Sequence[str], layer: OneLayer) -> float | None:
        """The time of the convolution over that of the layers of the run; None where the device that is asked has not
        measured it, or does not take it alone.

        Args:
            nodes: keys of all nodes of the run.
            layer: the convolution.
        """
        parts = [self._part(key) for key in self.inside(nodes)]
        if not parts:
            return None
        one = self._one(layer, parts[0].dtype)
        signature = f"{one.signature} of {sorted(part.signature for part in parts)}"
        known = self.kept.get(signature, ["0"])
        if known is None:
            try:
                known = {"0": [[1.0], [self._measure(parts, one)]]}
            except (ProviderError, UsageError):
                return None
            self.kept.put(signature, known)
        return known["0"][1][0]

    def _part(self, key: str) -> _Part:
        node, weight = self.graph.nodes[key], self._layers[key].weight
        value = None if weight is None else self.graph.value(weight)
        assert value is not None
        return _Part(node, self.shapes[node.input[0]], value.shape, value.dtype)

    def _one(self, layer: OneLayer, dtype: np.dtype) -> _Part:
        x, y = self.shapes[layer.source], self.shapes[self.graph.nodes[layer.end].output[0]]
        axes, sizes = len(y) - 2, centred(layer.kernel, layer.stride, len(y) - 2)
        node = onnx.NodeProto(op_type="Conv")
        node.attribute.extend(helper.make_attribute(name, value) for name, value in sizes.items())
        return _Part(node, x, (y[1], x[1], *[layer.kernel] * axes), dtype)

    def _measure(self, parts: Sequence[_Part], one: _Part) -> float:
        stems = {"one": one, **{f"layer{k}": part for k, part in enumerate(parts)}}
        model, feeds = _probe(stems, self.graph.opset)
        if self.engine.on_cpu:
            found = self.profiled_ms(model, feeds)
        else:
            found = {s: self.clocked_ms(model, {f"x.{s}": feeds[f"x.{s}"]}, f"{s}.") for s in stems}
        return found["one"] / sum(ms for stem, ms in found.items() if stem != "one")


def _probe(parts: dict[str, _Part], opset: int) -> tuple[onnx.ModelProto, Feeds]:
    """`COPIES` of every part, each part with an input of its own."""
    rng = np.random.default_rng(0)
    nodes, outputs, values, feeds = [], [], [], {}
    for stem, part in parts.items():
        kind = helper.np_dtype_to_tensor_dtype(part.dtype)
        feeds[f"x.{stem}"] = rng.standard_normal(part.x).astype(part.dtype)
        for copy in range(COPIES):
            node = onnx.NodeProto()
            node.CopyFrom(part.node)
            del node.input[:], node.output[:]
            node.name = f"{stem}.{copy}"
            node.input.extend([f"x.{stem}", f"w.{stem}.{copy}"])
            node.output.append(node.name)
            nodes.append(node)
            values.append(numpy_helper.from_array(rng.standard_normal(part.w).astype(part.dtype), f"w.{stem}.{copy}"))
            outputs.append(helper.make_tensor_value_info(node.name, kind, None))
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in feeds.items()
    ]
    body = helper.make_graph(nodes, "probe", inputs, outputs, values)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), feeds
