"""What a model costs: multiply-accumulates, parameters, bytes; and what it would cost with fewer channels.

A layer's MACs are a product of widths: cutting a channel saves what its readers and writers cost *at the
current widths of the others*. `CostModel` keeps every layer as a base cost times fractions of living channels,
so any candidate set of channels is priced exactly in one sparse product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from scipy.sparse import csr_array

from onnxprune.channels import Channels
from onnxprune.graph.layers import layers
from onnxprune.graph.model import Graph


@dataclass(frozen=True)
class Cost:
    """A model's cost.

    Attributes:
        params: number of floating-point parameters (weights, biases, BN vectors).
        macs: multiply-accumulates of one run at the sizes that were looked at.
        bytes: size of the model file.
        latency_ms: measured, None when it was not.
    """

    params: int
    macs: float
    bytes: int
    latency_ms: float | None = None


def count_params(model: onnx.ModelProto) -> int:
    """Floating-point and quantized parameters in initializers and Constant nodes of two or more elements."""
    total = sum(_size(t) for t in model.graph.initializer)
    for node in model.graph.node:
        if node.op_type == "Constant":
            total += sum(_size(a.t) for a in node.attribute if a.name == "value")
    return int(total)


def _size(tensor: onnx.TensorProto) -> int:
    weightless = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.STRING)
    size = int(np.prod([int(d) for d in tensor.dims]))
    return 0 if tensor.data_type in weightless or size < 2 else size


def count_macs(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Multiply-accumulates at the given sizes."""
    return sum(layer.macs for layer in layers(graph, shapes))


class CostModel:
    """Prices of any set of living channels.

    Args:
        graph: the original graph.
        channels: its analysis.
        of: "macs" (what layers multiply), "params" (elements of cut constants) or "channels" (units).
    """

    def __init__(self, graph: Graph, channels: Channels, of: str = "macs"):
        self.of = of
        terms = {"macs": _mac_terms, "params": _param_terms, "channels": _channel_terms}[of](graph, channels)
        self.base = np.array([t[0] for t in terms])
        rows: list[np.ndarray] = []
        columns: list[np.ndarray] = []
        values: list[np.ndarray] = []
        fixed: list[float] = []
        owner: list[int] = []
        for k, (_, factors) in enumerate(terms):
            for line in factors:
                there = line[line >= 0]
                rows.append(np.full(len(there), len(owner)))
                columns.append(there)
                values.append(np.full(len(there), 1 / len(line)))
                fixed.append(1 - len(there) / len(line))
                owner.append(k)
        self.owner, self.fixed = np.array(owner, int), np.array(fixed)
        shape = (len(owner), channels.unit_count)
        if owner:
            entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
            self.fractions = csr_array(entries, shape=shape)
        else:
            self.fractions = csr_array(shape)
        self.total = self(np.ones(channels.unit_count + 1, bool))

    def __call__(self, alive: np.ndarray) -> float:
        """The cost with the units where `alive`, (unit_count + 1,), is true."""
        return float(self.per_term(alive).sum())

    def per_term(self, alive: np.ndarray) -> np.ndarray:
        """The cost of every term."""
        product = np.ones(len(self.base))
        if len(self.owner):
            np.multiply.at(product, self.owner, self.fixed + self.fractions @ alive[:-1].astype(float))
        return self.base * product

    def removed(self, alive: np.ndarray) -> float:
        """The share of the cost that is gone."""
        return 1 - self(alive) / self.total if self.total else 0.0

    def per_unit(self, alive: np.ndarray) -> np.ndarray:
        """What removing each single unit would save from here, (unit_count,): exact marginals, first order."""
        fraction = np.maximum(self.fixed + self.fractions @ alive[:-1].astype(float), 1e-12)
        slope = self.per_term(alive)[self.owner] / fraction
        return np.asarray(self.fractions.T @ slope).ravel()


def _mac_terms(graph: Graph, channels: Channels) -> list[tuple[float, list[np.ndarray]]]:
    terms = []
    for layer in layers(graph, channels.shapes):
        if layer.weight is not None:
            factors = list(channels.params.get(layer.weight, {}).values())
        else:
            made = channels.lines.get(layer.key)
            contracted = channels.reads.get((layer.key, 0))
            factors = [found[1] for found in (made, contracted) if found is not None]
        terms.append((layer.macs, factors))
    return terms


def _param_terms(graph: Graph, channels: Channels) -> list[tuple[float, list[np.ndarray]]]:
    terms: list[tuple[float, list[np.ndarray]]] = []
    seen: set[str] = set()
    cut_size = 0
    for use, axes in channels.params.items():
        name = graph.nodes[use[0]].input[use[1]]
        value = graph.constant(name)
        if value is None or name in seen:
            continue
        seen.add(name)
        cut_size += value.size
        terms.append((float(value.size), list(axes.values())))
    rest = count_params(graph.model) - cut_size
    return [*terms, (float(max(rest, 0)), [])]


def _channel_terms(graph: Graph, channels: Channels) -> list[tuple[float, list[np.ndarray]]]:
    return [(float(channels.unit_count), [np.arange(channels.unit_count)])] if channels.unit_count else []
