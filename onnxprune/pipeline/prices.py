"""What an edit saves, in the unit that counts: multiply-accumulates, parameters, channels, or measured milliseconds.

`time_network` takes minutes and says so by being a call; the rest is arithmetic on what is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.channels import Analysed
from onnxprune.decide.ranks import RankMove
from onnxprune.graph.shapes import observe
from onnxprune.measure.cost import CostModel, PairCost, switches
from onnxprune.pipeline.asked import engine_of
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.settings import Settings
from onnxprune.plan import PrunePlan
from onnxprune.timing.node_times import NodeTimes, node_times
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
    """

    net: Analysed
    of: str
    blocks: Sequence[Sequence[str]] = ()
    names: Sequence[str] = ()
    times: NodeTimes | None = None

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
        return CostModel(graph, channels, self.of, blocks=self.blocks, times=self.times, pairs=pairs)

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
        standing = np.array([float(name not in gone) for name in self.names] + [switches(2)[0]] * len(chosen))
        cost = self.model(chosen)
        return cost.total / cost(self.net.channels.alive(plan.keep()), standing)
