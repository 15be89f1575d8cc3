"""What a model costs: multiply-accumulates, parameters, bytes, milliseconds; and what it would cost with less in it.

A layer's MACs are a product of widths: cutting a channel saves what its readers and writers cost *at the
current widths of the others*. `CostModel` keeps every layer as a base cost times fractions of living channels,
so any candidate set of channels is priced exactly in one sparse product. A latency is the same product with the
fractions read off measured stairs (`timing.node_times`). What lies inside a block that may be dropped is
multiplied by 0 or 1 as well.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from scipy.sparse import csr_array, diags_array

from onnxprune.channels import ChannelGroup, Channels
from onnxprune.graph.layers import products, weight_axes
from onnxprune.graph.model import Graph
from onnxprune.graph.seeds import as_written
from onnxprune.graph.work import NOTHING, Ran, uncounted, work
from onnxprune.measure.states import OFF, switches, within_blocks
from onnxprune.measure.terms import Term, latency_terms, mac_terms
from onnxprune.protobuf.nodes import attr, stored_tensors
from onnxprune.protobuf.serialize import byte_size
from onnxprune.timing.node_times import NodeTimes, Stairs


@dataclass(frozen=True)
class Kind:
    """Nodes of one operator whose multiply-accumulates are not known.

    Attributes:
        op: the operator, with its domain where that is not ONNX's own.
        nodes: how many there are.
        why: in words.
    """

    op: str
    nodes: int
    why: str


@dataclass(frozen=True)
class Cost:
    """A model's cost.

    Attributes:
        params: number of floating-point parameters (weights, biases, BN vectors).
        macs: multiply-accumulates of one run at the sizes that were looked at, of the nodes that can be counted.
        bytes: size of the model file.
        latency_ms: measured, None when it was not.
        uncounted: the operators whose multiply-accumulates are not known.
        uncounted_time: the share of a run's time that these take, measured; None where it was not, or could not be.
    """

    params: int
    macs: float
    bytes: int
    latency_ms: float | None = None
    uncounted: tuple[Kind, ...] = ()
    uncounted_time: float | None = None


def cost_of(graph: Graph, shapes: Mapping[str, tuple[int, ...]], ran: Ran = NOTHING) -> Cost:
    """What a model costs, as everybody says it: before and after, planned and as written.

    Args:
        graph: the network, without edits.
        shapes: tensor name -> sizes in the run that was looked at.
        ran: what else that run told.
    """
    found: dict[tuple[str, str], int] = {}
    for node in uncounted(graph, shapes, ran):
        found[node.op, node.why] = found.get((node.op, node.why), 0) + 1
    kinds = tuple(Kind(op, nodes, why) for (op, why), nodes in found.items())
    macs = count_macs(graph, shapes, ran)
    return Cost(count_params(graph.model), macs, byte_size(as_written(graph.model)), uncounted=kinds)


def count_params(model: onnx.ModelProto) -> int:
    """Floating-point and quantized parameters in initializers and Constant nodes of two or more elements."""
    return sum(parameters(t) for _, t in stored_tensors(model.graph))


def parameters(tensor: onnx.TensorProto) -> int:
    """How many parameters a stored tensor holds."""
    weightless = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.STRING)
    size = math.prod(tensor.dims)
    return 0 if tensor.data_type in weightless or size < 2 else size


def count_macs(graph: Graph, shapes: Mapping[str, tuple[int, ...]], ran: Ran = NOTHING) -> float:
    """Multiply-accumulates at the given sizes; `ran`: what a run at these sizes told (`Observed.ran`)."""
    return sum((w.macs for w in work(graph, shapes, ran)), start=0.0)


@dataclass(frozen=True)
class PairCost:
    """What a layer costs as two or three, for each of the ways that are weighed, at full widths, in the model's unit.

    Attributes:
        node: key of the layer.
        ways: (ways, 3): what goes with the channels that are read, what goes with none, what goes with those written.
    """

    node: str
    ways: np.ndarray


class CostModel:
    """Prices of any set of living channels and standing blocks.

    Args:
        graph: the original graph.
        channels: its analysis.
        of: "macs" (what layers multiply), "params" (elements of cut constants), "channels" (units) or "latency"
            (milliseconds, needs `times`).
        blocks: for every block that may be dropped, the keys of the nodes inside; one may lie within another.
        merged: block's index -> what it costs as one layer, for each of the layers that it may become.
        times: measured times of the nodes.
        pairs: layers that may be made of two; the last state of each is the layer as it is.

    Attributes:
        blocks: how many there are; behind the units, `fractions` has a column for each.
        columns: blocks and, behind them, pairs.
        curved: whether any factor goes by stairs.
    """

    def __init__(
        self,
        graph: Graph,
        channels: Channels,
        of: str = "macs",
        *,
        blocks: Sequence[Collection[str]] = (),
        merged: Mapping[int, Sequence[Term]] | None = None,
        times: NodeTimes | None = None,
        pairs: Sequence[PairCost] = (),
    ):
        self.of, self.blocks, self.units = of, len(blocks), channels.unit_count
        self.columns = len(blocks) + len(pairs)
        if of == "latency":
            assert times is not None
            terms = latency_terms(graph, channels, times)
        else:
            terms = {"macs": mac_terms, "params": _param_terms, "channels": _channel_terms}[of](graph, channels)
        for k, pair in enumerate(pairs):
            terms = _paired(
                terms, pair, self.units + self.blocks + k, graph, channels, times if of == "latency" else None
            )
        terms = within_blocks(terms, blocks, merged or {}, self.units)
        self.base = np.array([t.base for t in terms])
        rows: list[np.ndarray] = []
        columns: list[np.ndarray] = []
        values: list[np.ndarray] = []
        fixed: list[float] = []
        owner: list[int] = []
        stairs: list[Stairs | None] = []
        for k, term in enumerate(terms):
            for line, steps in term.factors:
                there = line[line >= 0]
                rows.append(np.full(len(there), len(owner)))
                columns.append(there)
                values.append(np.full(len(there), 1 / len(line)))
                fixed.append(1 - len(there) / len(line))
                owner.append(k)
                stairs.append(steps)
        self.owner, self.fixed = np.array(owner, int), np.array(fixed)
        self.stairs = _Stairways(stairs)
        self.curved = any(steps is not None for steps in stairs)
        shape = (len(owner), self.units + self.columns)
        if owner:
            entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
            self.fractions = csr_array(entries, shape=shape)
        else:
            self.fractions = csr_array(shape)
        self.total = self(np.ones(self.units + 1, bool))
        if of == "params":
            self.total = min(self.total, float(count_params(graph.model)))

    def __call__(self, alive: np.ndarray, standing: np.ndarray | None = None) -> float:
        """The cost with the units where `alive`, (unit_count + 1,); `standing` holds 1 or 0 for each block, then the
        state of every pair (`switches`)."""
        return float(self.per_term(alive, standing).sum())

    def living(self, alive: np.ndarray, standing: np.ndarray | None = None) -> np.ndarray:
        """The living share of every factor."""
        there = alive[:-1].astype(float)
        if self.columns:
            there = np.concatenate([there, np.ones(self.columns) if standing is None else standing.astype(float)])
        return self.fixed + self.fractions @ there

    def per_term(self, alive: np.ndarray, standing: np.ndarray | None = None) -> np.ndarray:
        """The cost of every term."""
        product = np.ones(len(self.base))
        if len(self.owner):
            np.multiply.at(product, self.owner, self.stairs.time(self.living(alive, standing)))
        return self.base * product

    def removed(self, alive: np.ndarray, standing: np.ndarray | None = None) -> float:
        """The share of the cost that is gone."""
        return 1 - self(alive, standing) / self.total if self.total else 0.0

    def per_unit(self, alive: np.ndarray) -> np.ndarray:
        """What removing each single unit would save from here, (unit_count,): exact marginals, first order (stairs
        count as ramps)."""
        slope = self.per_term(alive)[self.owner] / np.maximum(self.living(alive), 1e-12)
        return np.asarray(self.fractions.T @ slope).ravel()[: self.units]


class _Stairways:
    """The stairs of many factors, read all at once: one table, a factor's part of it moved by 2 for each before it."""

    def __init__(self, stairs: Sequence[Stairs | None]):
        self.which = np.array([k for k, steps in enumerate(stairs) if steps is not None], int)
        found = [steps for steps in stairs if steps is not None]
        self.shift = np.zeros(len(stairs))
        self.shift[self.which] = 2.0 * np.arange(len(found))
        self.stepped = np.zeros(len(stairs), bool)
        self.stepped[self.which] = True
        shares, times = [np.zeros(0)], [np.zeros(0)]
        for k, steps in enumerate(found):
            shares.append(np.concatenate([[0.0], steps.share]) + 2.0 * k)
            times.append(np.concatenate([steps.time[:1], steps.time]))
        self.share, self.value = np.concatenate(shares), np.concatenate(times)

    def time(self, living: np.ndarray, factors: np.ndarray | None = None) -> np.ndarray:
        """Relative time at those living shares, of all factors or of the ones named; 0 where nothing is left."""
        if not len(self.which):
            return living
        which = self.which if factors is None else np.flatnonzero(self.stepped[factors])
        rows = which if factors is None else factors[which]
        out = living.copy()
        at = living[which]
        out[which] = np.where(at > 0, np.interp(np.minimum(at, 1.0) + self.shift[rows], self.share, self.value), 0.0)
        return out


class WidthCost:
    """The cost as a function of how many channels each group keeps, whichever they are, and of which blocks stand.

    Channels of a group are alike, so a layer's living fraction is linear in the widths. Exact where every channel
    of a group appears equally often in a layer, as nearly always; else to within the difference. Behind the widths
    of the groups come the blocks, 1 or 0 each, and the states of the pairs.
    """

    def __init__(self, cost: CostModel, groups: Sequence[ChannelGroup]):
        self.cost = cost
        count = len(groups) + cost.columns
        member = np.full(cost.fractions.shape[1], count)
        for k, group in enumerate(groups):
            member[group.units] = k
        member[cost.units :] = len(groups) + np.arange(cost.columns)
        unit = np.arange(len(member))
        owner = csr_array((np.ones(len(member)), (unit, member)), shape=(len(member), count + 1))
        shares = (cost.fractions @ owner).tocsr()
        widths = np.array([max(1, g.width) for g in groups] + [1] * (cost.columns + 1))
        self.shares = (shares @ diags_array(1.0 / widths)).tocsr()[:, :count]
        self.fixed = cost.fixed + shares[:, [count]].toarray().ravel()
        self.back = self.shares.T.tocsr()
        self.first = np.searchsorted(cost.owner, np.arange(len(cost.base)))
        self.empty = np.bincount(cost.owner, minlength=len(cost.base)) == 0
        self._entries = self.shares.tocoo()
        pairs = cost.owner[self._entries.row] * count + self._entries.col
        self._order = np.argsort(pairs, kind="stable")
        self._starts = np.flatnonzero(np.r_[True, np.diff(pairs[self._order]) > 0]) if len(pairs) else np.zeros(0, int)
        self._pair = pairs[self._order][self._starts] if len(pairs) else np.zeros(0, int)
        self.count = count

    def _terms(self, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        e = self._entries  # summed in the order of the sparse product
        living = self.fixed + np.bincount(e.row, e.data * widths[e.col], len(self.fixed))
        if not len(living):
            return self.cost.base, living
        times = self.cost.stairs.time(living)
        product = np.multiply.reduceat(np.append(times, 1.0), self.first)  # the last terms may have no factor
        return self.cost.base * np.where(self.empty, 1.0, product), living

    def removed(self, widths: np.ndarray) -> float:
        """The share of the cost that is gone at those widths, (groups + columns,)."""
        return 1 - float(self._terms(widths)[0].sum()) / self.cost.total if self.cost.total else 0.0

    def per_channel(self, widths: np.ndarray) -> np.ndarray:
        """What one channel less of each group would save from here, (groups + columns,): exact, to first order."""
        terms, living = self._terms(widths)
        if not len(living):
            return np.zeros(len(widths))
        return np.asarray(self.back @ (terms[self.cost.owner] / np.maximum(living, 1e-12)))

    def saved(self, widths: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """What taking each group alone to its target would save from here, (groups + columns,), stairs and all."""
        terms, living = self._terms(widths)
        e = self._entries
        if not len(e.data):
            return np.zeros(self.count)
        now = self.cost.stairs.time(living)
        moved = np.maximum(living[e.row] + e.data * (targets - widths)[e.col], 0.0)
        then = self.cost.stairs.time(moved, e.row)
        ratio = then / np.maximum(now[e.row], 1e-12)
        left = np.multiply.reduceat(ratio[self._order], self._starts)
        term, group = np.divmod(self._pair, self.count)
        return np.bincount(group, weights=terms[term] * (1 - left), minlength=self.count)


class Running:
    """The cost of one set of living channels, kept up to date while a few change: the very numbers of
    `CostModel`, at the price of the terms that the change touches.

    Attributes:
        alive: (unit_count + 1,) bool; change it with `set` only.
    """

    def __init__(self, cost: CostModel, alive: np.ndarray):
        self.cost, self.alive = cost, alive.copy()
        self.terms = cost.per_term(alive)
        self.there = np.concatenate([alive[:-1], np.ones(cost.columns)])
        self.first = np.searchsorted(cost.owner, np.arange(len(cost.base) + 1))
        self.by_unit = cost.fractions.tocsc()

    def removed(self) -> float:
        """The share of the cost that is gone."""
        return 1 - float(self.terms.sum()) / self.cost.total if self.cost.total else 0.0

    def set(self, units: np.ndarray, alive: np.ndarray) -> None:
        """Let the units live or go, (k,) bool."""
        changed = units[self.alive[units] != alive]
        self.alive[units] = self.there[units] = alive
        if not len(changed) or not len(self.cost.owner):
            return
        touched = self.by_unit.indices[_ranges(self.by_unit.indptr, changed)]
        terms = np.unique(self.cost.owner[touched])
        rows = _ranges(self.first, terms)
        entries = _ranges(self.cost.fractions.indptr, rows)
        lengths = np.diff(self.cost.fractions.indptr)[rows]
        weights = self.cost.fractions.data[entries] * self.there[self.cost.fractions.indices[entries]]
        # summed and multiplied one by one, in the order of the sparse product: equal to the last bit
        living = np.bincount(np.repeat(np.arange(len(rows)), lengths), weights=weights, minlength=len(rows))
        product = np.ones(len(terms))
        owner = np.repeat(np.arange(len(terms)), np.diff(self.first)[terms])
        np.multiply.at(product, owner, self.cost.stairs.time(self.cost.fixed[rows] + living, rows))
        self.terms[terms] = self.cost.base[terms] * product


def _ranges(starts: np.ndarray, which: np.ndarray) -> np.ndarray:
    """The numbers starts[k] … starts[k + 1] - 1 for every k in `which`, one after the other."""
    low, lengths = starts[which], starts[which + 1] - starts[which]
    ends = np.cumsum(lengths)
    return np.repeat(low - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


def _paired(
    terms: list[Term], pair: PairCost, column: int, graph: Graph, channels: Channels, times: NodeTimes | None
) -> list[Term]:
    """The terms with a column that switches a layer between itself and the ways to make it of two."""
    states = tuple(float(v) for v in switches(len(pair.ways) + 1))
    line = np.array([column])

    def switched(values: Sequence[float]) -> tuple[np.ndarray, Stairs | None]:
        return line, Stairs(states, tuple(max(OFF, float(v)) for v in values))

    alone = switched([0.0] * len(pair.ways) + [1.0])
    if not any(t.node == pair.node and t.weight for t in terms):  # parameters of a weight that no channel is cut of
        value = graph.value((pair.node, 1))
        size = 0.0 if value is None else float(value.size)
        terms = [*terms[:-1], replace(terms[-1], base=terms[-1].base - size), Term(size, (), pair.node, True)]
    out = [replace(t, factors=[*t.factors, alone]) if t.node == pair.node and t.weight else t for t in terms]
    axes = channels.params.get((pair.node, 1), {})
    steps = {} if times is None else times.stairs.get(pair.node, {})
    writes, _ = weight_axes(graph.nodes[pair.node])
    reads = next((a for a in axes if a != writes), None)
    tied = attr(graph.nodes[pair.node], "group", 1) > 1 and reads is None  # depthwise: one line for both
    for k, axis in enumerate((writes if tied else reads, None, writes)):
        most = float(pair.ways[:, k].max(initial=0.0))
        if most > 0:
            own = [(axes[axis], steps.get(axis))] if axis is not None and axis in axes else []
            out.append(Term(most, [*own, switched([*(pair.ways[:, k] / most), 0.0])], pair.node))
    return out


def _param_terms(graph: Graph, channels: Channels) -> list[Term]:
    """One term a weight. Of a weight that several layers read, each layer that is cut in another way holds its own
    once it is cut; `CostModel.total` counts it once."""
    found: dict[str, dict[tuple[tuple[int, bytes], ...], Term]] = {}
    stored = 0
    for use, axes in channels.params.items():
        source = _source(graph, graph.nodes[use[0]].input[use[1]])
        value = graph.constant(source)
        if value is None:
            continue
        alike = tuple((axis, line.tobytes()) for axis, line in sorted(axes.items()) if (line >= 0).any())
        term = Term(float(value.size), [(line, None) for line in axes.values()], use[0], use[1] == 1)
        stored += 0 if source in found else value.size
        found.setdefault(source, {}).setdefault(alike, term)
    whole = count_params(graph.model) - stored
    return [*(term for terms in found.values() for term in terms.values()), Term(float(max(whole, 0)))]


def shares_weights(graph: Graph, channels: Channels) -> bool:
    """Whether several layers read one weight."""
    uses = [layer.weight for layer in products(graph, channels.shapes) if layer.weight is not None]
    sources = [_source(graph, graph.nodes[key].input[i]) for key, i in uses]
    return len(set(sources)) < len(sources)


def _source(graph: Graph, name: str) -> str:
    """The stored constant behind a folded path."""
    while name in graph.producer and graph.nodes[graph.producer[name]].input:
        name = graph.nodes[graph.producer[name]].input[0]
    return name


def _channel_terms(graph: Graph, channels: Channels) -> list[Term]:
    return [Term(float(channels.unit_count), [(np.arange(channels.unit_count), None)])] if channels.unit_count else []
