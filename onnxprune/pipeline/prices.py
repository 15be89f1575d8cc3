"""What an edit saves, in the unit that counts: multiply-accumulates, parameters, channels, or measured milliseconds.

`time_network` takes minutes and says so by being a call; the rest is arithmetic on what is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnxprune.channels import Analysed
from onnxprune.decide.ranks import RankMove
from onnxprune.graph.layers import products
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.measure.cost import CostModel, PairCost
from onnxprune.measure.states import GONE, STANDS, as_one, switches
from onnxprune.measure.terms import Term
from onnxprune.pipeline.asked import engine_of, run_batch
from onnxprune.pipeline.finishing import Task, finish_of
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.settings import Settings
from onnxprune.plan import MergeBlock, PrunePlan
from onnxprune.timing.node_times import NodeTimes, node_times
from onnxprune.timing.one_layer import OneLayer, OneLayerTimes
from onnxprune.timing.pair_model import layer_work, work_of
from onnxprune.timing.pair_times import Way

Report = Callable[[int, int], None] | None


def timed_run(subject: Subject, batch: int) -> tuple[Mapping[str, np.ndarray], Mapping[str, tuple[int, ...]]]:
    """(the inputs of a timed run, sizes of all tensors in it)."""
    feeds = subject.timed(batch)
    same = all(v.shape == subject.feeds[k].shape for k, v in feeds.items())
    return feeds, subject.channels.shapes if same else observe(subject.graph, feeds).shapes


@dataclass(frozen=True)
class Timed:
    """A network as it is timed: in the floats of the finished one; tensors of the same names.

    Attributes:
        graph: the network.
        feeds: the inputs of a run.
        shapes: sizes of all its tensors in it.
    """

    graph: Graph
    feeds: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]


def timed_as(subject: Subject, settings: Settings, batch: int) -> Timed:
    """The network as it is timed under these settings."""
    graph, (feeds, shapes) = subject.graph, timed_run(subject, batch)
    how = finish_of(settings)
    if how is None or how.setting != "precision":  # what is in integers has other layers
        return Timed(graph, feeds, shapes)
    graph = subject.graph.once(how.name, subject, lambda: Graph(alike(how.run(Task(subject.model)), subject.model)))
    return Timed(graph, feeds, observe(graph, feeds).shapes)


def alike(converted: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """A converted model, edited: what a node made has its name again, where a Cast behind it has taken that."""
    made = {o for node in model.graph.node for o in node.output}
    for cast in [n for n in converted.graph.node if n.op_type == "Cast" and n.output[0] in made]:
        name, inner = cast.output[0], cast.input[0]
        new = {inner: name, name: inner}
        for node in converted.graph.node:
            node.input[:] = [new.get(i, i) for i in node.input]
            node.output[:] = [new.get(o, o) for o in node.output]
        for port in converted.graph.output:
            port.name = new.get(port.name, port.name)
        del converted.graph.value_info[:]
    return converted


def time_network(subject: Subject, settings: Settings, progress: Report) -> NodeTimes | None:
    """What the nodes take, where that counts: here, by minutes of measuring, or on a device that was profiled."""
    if settings.of != "latency":
        return None
    own = timed_as(subject, settings, run_batch(settings))
    return node_times(own.graph, own.feeds, own.shapes, engine=engine_of(settings), progress=progress)


def one_layer(merge: MergeBlock) -> OneLayer:
    """What a block becomes, as what times it knows it."""
    return OneLayer(merge.source, merge.block, merge.kernel, merge.stride)


def time_merges(subject: Subject, settings: Settings) -> OneLayerTimes | None:
    """What tells how long blocks take as one layer, where times count."""
    if settings.of != "latency":
        return None
    own = timed_as(subject, settings, run_batch(settings))
    return OneLayerTimes(own.graph, dict(own.shapes), engine_of(settings))


@dataclass(frozen=True)
class Prices:
    """What edits save.

    Attributes:
        net: the network, with the groups that may be cut.
        of: what counts.
        blocks: the nodes inside of every block that may go.
        names: names of these blocks.
        times: what the nodes take, where that counts.
        merges: by the names of those that may become one layer, what makes that of them, the smallest first.
        ones: what tells how long that takes.
    """

    net: Analysed
    of: str
    blocks: Sequence[Sequence[str]] = ()
    names: Sequence[str] = ()
    times: NodeTimes | None = None
    merges: Mapping[str, Sequence[MergeBlock]] = field(default_factory=dict)
    ones: OneLayerTimes | None = None

    def way(self, move: RankMove) -> np.ndarray:
        """(ways, 3) cost of a layer's ways, in the unit that counts."""
        if self.of == "latency":
            assert self.times is not None
            return move.times * self.times.nodes.get(move.layer, 0.0)
        return move.params if self.of == "params" else move.macs

    def best(self, offered: Sequence[RankMove]) -> tuple[RankMove, ...]:
        """The layers with the ways that nothing beats."""
        return tuple(m.best_by(self.way(m).sum(1)) for m in offered if self.way(m).any())

    def model(self, ranks: Sequence[RankMove]) -> CostModel:
        """The cost with these layers to be made of two."""
        pairs = [PairCost(m.layer, self.way(m)) for m in ranks]
        graph, channels = self.net.graph, self.net.channels
        return CostModel(
            graph, channels, self.of, blocks=self.blocks, merged=self._as_one(), times=self.times, pairs=pairs
        )

    def _as_one(self) -> dict[int, list[Term]]:
        """What blocks cost as one layer."""
        merges = ((k, self.merges.get(name, ())) for k, name in enumerate(self.names))
        return {k: [self._merged(edit, self.blocks[k]) for edit in edits] for k, edits in merges if edits}

    def _merged(self, merge: MergeBlock, nodes: Sequence[str]) -> Term:
        channels = self.net.channels
        x, y = channels.shapes[merge.source], channels.shapes[merge.block]
        size = (y[1], x[1], *[merge.kernel] * (merge.rank - 2))
        base = float(np.prod(size)) if self.of == "params" else float(np.prod(size)) * float(np.prod(y)) / y[1]
        if self.of == "channels":
            base = 0.0
        if self.times is not None:
            times = self.times.nodes
            inside = [m.key for m in products(self.net.graph, channels.shapes) if m.key in nodes and m.key in times]
            share = None if self.ones is None else self.ones.relative(inside, one_layer(merge))
            share = self._reckoned(inside, work_of(size, y)) if share is None else share
            base = sum(times[key] for key in inside) * share
        lines = [channels.lines[name][1] for name in (merge.source, merge.block) if name in channels.lines]
        return Term(base, [(line, None) for line in lines])

    def _reckoned(self, inside: Sequence[str], work: float) -> float:
        """The share of the time of layers that so much work takes, where that was not measured."""
        graph, shapes = self.net.graph, self.net.channels.shapes
        return work / max(sum(layer_work(graph, shapes, key) for key in inside), 1.0)

    def channels_alone(self) -> CostModel:
        """The cost where only channels go."""
        return CostModel(self.net.graph, self.net.channels, self.of, times=self.times)

    def gain(self, plan: PrunePlan, offered: Sequence[RankMove]) -> float:
        """Old cost over new."""
        gone = set(plan.blocks())
        ways: dict[str, Way] = {}
        for e in plan.factorized():
            ways[e.node] = (*ways.get(e.node, ()), (e.kind, e.rank))
        chosen = [m.at([m.ways.index(ways[m.layer])]) for m in offered if ways.get(m.layer) in m.ways]
        states = [GONE if name in gone else self._state(name, plan) for name in self.names]
        standing = np.array(states + [switches(2)[0]] * len(chosen))
        cost = self.model(chosen)
        return cost.total / cost(self.net.channels.alive(plan.keep()), standing)

    def _state(self, name: str, plan: PrunePlan) -> float:
        """What the column of a block that does not go holds."""
        made, edits = set(plan.merged()), self.merges.get(name, ())
        return next((float(at) for at, e in zip(as_one(len(edits)), edits, strict=True) if e in made), STANDS)
