"""What an edit saves, in the unit that counts: multiply-accumulates, parameters, channels, or measured milliseconds.

`time_network` takes minutes and says so by being a call; the rest is arithmetic on what is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxprune.channels import Analysed
from onnxprune.decide.ranks import RankMove
from onnxprune.graph.layers import products
from onnxprune.graph.shapes import observe
from onnxprune.measure.cost import GONE, MERGED, STANDS, CostModel, PairCost, switches
from onnxprune.measure.terms import Term
from onnxprune.pipeline.asked import engine_of
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.settings import Settings
from onnxprune.plan import MergeBlock, PrunePlan
from onnxprune.timing.node_times import NodeTimes, node_times
from onnxprune.timing.pair_model import layer_work, work_of
from onnxprune.timing.pair_times import Way

Report = Callable[[int, int], None] | None


def timed_run(subject: Subject, batch: int) -> tuple[Mapping[str, np.ndarray], Mapping[str, tuple[int, ...]]]:
    """(the inputs of a timed run, sizes of all tensors in it)."""
    feeds = subject.timed(batch)
    same = all(v.shape == subject.feeds[k].shape for k, v in feeds.items())
    return feeds, subject.channels.shapes if same else observe(subject.graph, feeds).shapes


def time_network(subject: Subject, settings: Settings, progress: Report) -> NodeTimes | None:
    """What the nodes take on this machine, where that counts; minutes of measuring."""
    if settings.of != "latency":
        return None
    feeds, shapes = timed_run(subject, settings.batch)
    return node_times(subject.graph, feeds, shapes, engine=engine_of(settings), progress=progress)


@dataclass(frozen=True)
class Prices:
    """What edits save.

    Attributes:
        net: the network, with the groups that may be cut.
        of: what counts.
        blocks: the nodes inside of every block that may go.
        names: names of these blocks.
        times: what the nodes take, where that counts.
        merges: what makes one layer of those that may become one, by their names.
    """

    net: Analysed
    of: str
    blocks: Sequence[Sequence[str]] = ()
    names: Sequence[str] = ()
    times: NodeTimes | None = None
    merges: Mapping[str, MergeBlock] = field(default_factory=dict)

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

    def _as_one(self) -> dict[int, Term]:
        """What blocks cost as one layer. Of the time of its layers, that takes the share of the work that it has."""
        return {k: self._merged(self.merges[n], self.blocks[k]) for k, n in enumerate(self.names) if n in self.merges}

    def _merged(self, merge: MergeBlock, nodes: Sequence[str]) -> Term:
        channels = self.net.channels
        x, y = channels.shapes[merge.source], channels.shapes[merge.block]
        size = (y[1], x[1], *[merge.kernel] * (merge.rank - 2))
        base = float(np.prod(size)) if self.of == "params" else float(np.prod(size)) * float(np.prod(y)) / y[1]
        if self.of == "channels":
            base = 0.0
        if self.times is not None:
            graph, times = self.net.graph, self.times.nodes
            inside = [
                layer.key for layer in products(graph, channels.shapes) if layer.key in nodes and layer.key in times
            ]
            work = sum(layer_work(graph, channels.shapes, key) for key in inside)
            base = sum(times[key] for key in inside) * work_of(size, y) / max(work, 1.0)
        lines = [channels.lines[name][1] for name in (merge.source, merge.block) if name in channels.lines]
        return Term(base, [(line, None) for line in lines])

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
        merged = {e.block for e in plan.merged()}
        states = [GONE if name in gone else MERGED if name in merged else STANDS for name in self.names]
        standing = np.array(states + [switches(2)[0]] * len(chosen))
        cost = self.model(chosen)
        return cost.total / cost(self.net.channels.alive(plan.keep()), standing)
