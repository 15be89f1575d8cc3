"""What pruning in one place does to the outputs: each group is pruned alone, on paper, and the network is run.

A curve (`decide.curves`) knows the error where the group is read. How much of it reaches the outputs, only the
network knows. So every group is brought to a few widths, one at a time: the readers' weights get zeros for what is
gone and a refit for the rest, and the damage to the outputs is measured on some samples. Between those widths the
curve gives the shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import onnx

from onnxprune.channels import Analysed, ChannelGroup
from onnxprune.decide.curves import Curve, Curves
from onnxprune.graph.layers import affine, fold, layers, normalization
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import only_tensors
from onnxprune.measure.damage import Damage
from onnxprune.measure.stepwise import Stops
from onnxprune.runtime import sessions
from onnxprune.runtime.ports import Feeds

Candidate = Graph | onnx.ModelProto
SHARES = (0.75, 0.5, 0.25, 0.06)
"""Widths that are tried, as shares of the full width. Below the least one the damage would only be guessed."""


class Trials:
    """Runs candidates of one network on a fixed set of samples.

    Args:
        curves: the curves and the moments behind them.
        batches: the samples.
        threads: ORT threads.
    """

    def __init__(self, curves: Curves, batches: Sequence[Feeds], *, threads: int | None = None):
        self.curves, self.batches, self.threads = curves, batches, threads
        graph, shapes = self.net.graph, self.net.shapes
        consumers = graph.consumers()
        found = {layer.key: affine(graph, layer, consumers, shapes) for layer in layers(graph, shapes)}
        running = [k for k, n in graph.nodes.items() if any(graph.constant(o) is None for o in n.output if o)]
        self.order = {key: k for k, key in enumerate(running)}
        self.places = {key: place for key, place in found.items() if place is not None}
        self.compared = Damage(self.net, lambda names: self._run(graph.model, names))

    @cached_property
    def _stops(self) -> Stops:
        """The network up to where the groups are first read."""
        firsts = {self.first(g) for g in self.net.channels.groups}
        return Stops(self.net.graph, self.batches, firsts, self.compared.names, threads=self.threads)

    @property
    def net(self) -> Analysed:
        """The original network."""
        return self.curves.net

    def _run(self, model: onnx.ModelProto, names: Sequence[str]) -> list[list[np.ndarray]]:
        session = sessions.open_session(sessions.returning(model, names), threads=self.threads, name="trial")
        return [session.run(dict(b)) for b in self.batches]

    def damage(self, candidate: Candidate, first: str | None = None) -> float:
        """Mean damage of a candidate's outputs.

        Args:
            candidate: the network; as a graph, only its constants may be edited.
            first: the first node in which it may differ; what comes before is not run again. None: not known.
        """
        return self.judge(first)(candidate)

    def judge(self, first: str | None = None) -> Callable[[Candidate], float]:
        """What tells the damage of candidates that differ from the original from the node `first` on. It may be asked
        in several threads at a time."""
        start = None
        if first is not None and only_tensors(self.net.graph):  # what lies between pieces must be tensors
            start = self._stops.at(first)

        def mean(candidate: Candidate) -> float:
            if start is None:
                model = candidate.export() if isinstance(candidate, Graph) else candidate
                got = self._run(model, self.compared.names)
            else:
                other = start.fork(candidate if isinstance(candidate, Graph) else Graph(candidate))
                got = other.outputs(self.compared.names)
            return self.compared.of(got)

        return mean

    def first(self, group: ChannelGroup) -> str:
        """The first node in which the original and one with channels of that group masked differ."""
        curves = self.curves
        keys = {r.design.key for r in curves.readings[group.name]} | {o.use[0] for o in curves.others[group.name]}
        return min(keys & self.order.keys(), key=self.order.__getitem__, default=next(iter(self.order)))

    def masked_alone(self, group: ChannelGroup, gone: np.ndarray) -> Graph:
        """The original with channels `gone` of one group masked where they are read, their readers refit."""
        graph = self.net.graph.fork()
        for r in self.curves.readings[group.name]:
            s = self.curves.solvers[r.design.key]
            W = s.without(r.rows[gone].ravel())
            value = graph.value(r.design.weight)
            assert value is not None
            graph.set_constant(r.design.weight, r.design.stored(W[:, :-1], value))
            place = self.places.get(r.design.key)
            if place is not None and W[:, -1].any():
                norm = normalization(graph, place)
                slope = 1.0 if norm is None else norm[1]
                fold(graph, place, np.ones(W[:, -1].size), W[:, -1].ravel() * slope)
        for other in self.curves.others[group.name]:
            value = graph.value(other.use)
            if value is not None and value.dtype.kind == "f":
                mask = ~np.isin(other.channel, gone)
                shape = [1] * value.ndim
                shape[other.axis] = -1
                graph.set_constant(other.use, value * mask.reshape(shape).astype(value.dtype))
        return graph


def damages(
    group: ChannelGroup,
    curve: Curve,
    trials: Trials,
    widths: Sequence[int],
    judge: Callable[[Candidate], float] | None = None,
) -> np.ndarray:
    """(width + 1,) damage to the outputs at every width of a group, measured at some, the curve in between.

    At a measured width the ratio of damage to error is known; between two it is interpolated over log error.

    Args:
        group: the group.
        curve: its curve.
        trials: runs candidates.
        widths: those to measure at.
        judge: of candidates from the group's first reader on, if there is one already.
    """
    judge = judge or trials.judge(trials.first(group))
    measured = {
        w: judge(trials.masked_alone(group, curve.order[: len(curve.order) - w])) for w in widths if curve.errors[w] > 0
    }
    out = between(curve.errors, measured)
    return np.maximum.accumulate(out[::-1])[::-1]


def between(errors: np.ndarray, measured: Mapping[int, float]) -> np.ndarray:
    """The damage at every error, from that measured at some: index -> damage."""
    if not measured:
        return errors.copy()
    at = np.log([errors[k] for k in measured])
    ratio = np.log([max(d, 1e-9) / errors[k] for k, d in measured.items()])
    place = np.argsort(at)
    return errors * np.exp(np.interp(np.log(np.maximum(errors, 1e-300)), at[place], ratio[place]))


def tried_widths(group: ChannelGroup, allowed: Sequence[int], shares: Sequence[float] = SHARES) -> list[int]:
    """A few of a group's allowed widths, spread over its range."""
    below = [w for w in allowed if w < group.width]
    nearest = [min(below, key=lambda w: (abs(w - s * group.width), w)) for s in shares] if below else []
    return sorted(dict.fromkeys(nearest), reverse=True)
