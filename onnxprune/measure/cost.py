"""What a model costs: multiply-accumulates, parameters, bytes; and what it would cost with fewer channels.

A layer's MACs are a product of widths: cutting a channel saves what its readers and writers cost *at the
current widths of the others*. `CostModel` keeps every layer as a base cost times fractions of living channels,
so any candidate set of channels is priced exactly in one sparse product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from scipy.sparse import csr_array, diags_array

from onnxprune.channels import ChannelGroup, Channels
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
    size = math.prod(tensor.dims)
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


class WidthCost:
    """The cost as a function of how many channels each group keeps, whichever they are.

    Channels of a group are alike, so a layer's living fraction is linear in the widths. Exact where every channel
    of a group appears equally often in a layer, as nearly always; else to within the difference.
    """

    def __init__(self, cost: CostModel, groups: Sequence[ChannelGroup]):
        self.cost = cost
        member = np.full(cost.fractions.shape[1], len(groups))
        for k, group in enumerate(groups):
            member[group.units] = k
        unit = np.arange(len(member))
        owner = csr_array((np.ones(len(member)), (unit, member)), shape=(len(member), len(groups) + 1))
        shares = (cost.fractions @ owner).tocsr()
        widths = np.array([max(1, g.width) for g in groups] + [1])
        self.shares = (shares @ diags_array(1.0 / widths)).tocsr()[:, : len(groups)]
        self.fixed = cost.fixed + shares[:, [len(groups)]].toarray().ravel()
        self.back = self.shares.T.tocsr()
        self.first = np.searchsorted(cost.owner, np.arange(len(cost.base)))
        self.empty = np.bincount(cost.owner, minlength=len(cost.base)) == 0

    def _terms(self, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        living = self.fixed + self.shares @ widths.astype(float)
        if not len(living):
            return self.cost.base, living
        product = np.multiply.reduceat(living, np.minimum(self.first, len(living) - 1))
        return self.cost.base * np.where(self.empty, 1.0, product), living

    def removed(self, widths: np.ndarray) -> float:
        """The share of the cost that is gone at those widths, (groups,)."""
        return 1 - float(self._terms(widths)[0].sum()) / self.cost.total if self.cost.total else 0.0

    def per_channel(self, widths: np.ndarray) -> np.ndarray:
        """What one channel less of each group would save from here, (groups,): exact, to first order."""
        terms, living = self._terms(widths)
        if not len(living):
            return np.zeros(len(widths))
        return np.asarray(self.back @ (terms[self.cost.owner] / np.maximum(living, 1e-12)))


class Running:
    """The cost of one set of living channels, kept up to date while a few change: the very numbers of
    `CostModel`, at the price of the terms that the change touches.

    Attributes:
        alive: (unit_count + 1,) bool; change it with `set` only.
    """

    def __init__(self, cost: CostModel, alive: np.ndarray):
        self.cost, self.alive = cost, alive.copy()
        self.terms = cost.per_term(alive)
        self.first = np.searchsorted(cost.owner, np.arange(len(cost.base) + 1))
        self.by_unit = cost.fractions.tocsc()

    def removed(self) -> float:
        """The share of the cost that is gone."""
        return 1 - float(self.terms.sum()) / self.cost.total if self.cost.total else 0.0

    def set(self, units: np.ndarray, alive: np.ndarray) -> None:
        """Let the units live or go, (k,) bool."""
        changed = units[self.alive[units] != alive]
        self.alive[units] = alive
        if not len(changed) or not len(self.cost.owner):
            return
        touched = self.by_unit.indices[_ranges(self.by_unit.indptr, changed)]
        terms = np.unique(self.cost.owner[touched])
        rows = _ranges(self.first, terms)
        entries = _ranges(self.cost.fractions.indptr, rows)
        lengths = np.diff(self.cost.fractions.indptr)[rows]
        weights = self.cost.fractions.data[entries] * self.alive[self.cost.fractions.indices[entries]]
        # summed and multiplied one by one, in the order of the sparse product: equal to the last bit
        living = np.bincount(np.repeat(np.arange(len(rows)), lengths), weights=weights, minlength=len(rows))
        product = np.ones(len(terms))
        owner = np.repeat(np.arange(len(terms)), np.diff(self.first)[terms])
        np.multiply.at(product, owner, self.cost.fixed[rows] + living)
        self.terms[terms] = self.cost.base[terms] * product


def _ranges(starts: np.ndarray, which: np.ndarray) -> np.ndarray:
    """The numbers starts[k] … starts[k + 1] - 1 for every k in `which`, one after the other."""
    low, lengths = starts[which], starts[which + 1] - starts[which]
    ends = np.cumsum(lengths)
    return np.repeat(low - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


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
