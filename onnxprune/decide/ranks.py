"""Which layers may be made of two, to which ranks, and what that does to the outputs.

For every linear layer the factors under the covariance of what it reads are found once (`numerics.low_rank`); their
error at every rank is the layer's curve. One or two ranks are tried in the whole network, on paper, as `decide.trials`
tries widths, and the curve is scaled to what they did to the outputs. A way that costs no less than the layer, or
that takes longer, as it is measured or reckoned, is not offered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from onnxprune.channels import Analysed
from onnxprune.decide.curves import solver
from onnxprune.decide.trials import Trials, between
from onnxprune.graph.layers import fold, layers, normalization
from onnxprune.graph.model import Graph
from onnxprune.graph.pairs import highest, kinds_of, pair_sizes
from onnxprune.measure.designs import Design, design_of, second_moments
from onnxprune.numerics import low_rank
from onnxprune.samples.calibration import Calibration
from onnxprune.timing.pair_model import PairModel
from onnxprune.timing.pair_times import PairTimes, Way

SINGLE = ("channel", "spatial", "matrix")
RANKS = 8
"""Most ranks of one kind that are weighed."""
AGAIN = 4
"""Most ranks of a second split."""
SHARES = (0.35, 0.1)
"""Ranks to try: those that lose nearest to so much of what the worst on offer loses."""
LEAST = 1e-2
"""A layer with less than this share of the multiply-accumulates is left alone."""


@dataclass(frozen=True)
class RankMove:
    """A layer that may be made of two or three.

    Attributes:
        layer: its node.
        ways: what is on offer.
        macs, params, times: (ways, 3) cost of what goes with the channels that are read, with none, and with those
            that are written; `times` relative to the layer's.
        errors: (ways,) share of the output's variance that each way loses.
        damages: (ways + 1,) to the outputs; the last, of the layer as it is, is 0.
    """

    layer: str
    ways: tuple[Way, ...]
    macs: np.ndarray
    params: np.ndarray
    times: np.ndarray
    errors: np.ndarray
    damages: np.ndarray

    def plain(self) -> dict[str, Any]:
        """The same as plain values."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> RankMove:
        """The inverse of `plain`, through JSON or not."""
        ways = tuple(tuple((str(kind), int(rank)) for kind, rank in way) for way in plain["ways"])
        return cls(
            plain["layer"], ways, *(np.array(plain[k], float) for k in ("macs", "params", "times", "errors", "damages"))
        )

    def dearer(self, factors: Mapping[str, float]) -> RankMove:
        """The same with its damages multiplied by the factor of its layer."""
        return replace(self, damages=self.damages * factors.get(self.layer, 1.0))

    def at(self, ways: Sequence[int]) -> RankMove:
        """Some of the ways, in that order."""
        index = list(ways)
        return replace(
            self,
            ways=tuple(self.ways[k] for k in index),
            macs=self.macs[index],
            params=self.params[index],
            times=self.times[index],
            errors=self.errors[index],
            damages=np.append(self.damages[index], self.damages[-1]),
        )

    def best_by(self, cost: np.ndarray) -> RankMove:
        """The ways that nothing beats at (ways,) costs, cheapest first."""
        found: list[int] = []
        for k in np.lexsort((self.errors, cost)):
            if not found or self.errors[k] < self.errors[found[-1]] * (1 - 1e-3):
                found.append(int(k))
        return self.at(found)


@dataclass(frozen=True)
class _Layer:
    """One layer, its matrix seen through the BatchNormalization behind it, and its factors by kind."""

    design: Design
    W: np.ndarray
    S: np.ndarray
    mean: np.ndarray
    slope: np.ndarray
    splits: Mapping[str, low_rank.Split]


class Ranks:
    """The layers of a network that may be made of two, and what each way does: the moments that the trials' curves hold
    serve, and one pass over the samples for the others.

    Args:
        learn: samples that moments are learnt from.
        trials: runs candidates.
        allows: whether a layer with a weight of that name may be made of two.
        kinds: of pairs.
        twice: also split the second of a spatial pair again.
        threads: ORT threads.
        seed: of the sampled positions.

    Attributes:
        names: the layers that are worth a look, in the order in which they run.
    """

    def __init__(
        self,
        learn: Calibration,
        trials: Trials,
        allows: Callable[[str], bool],
        *,
        kinds: Collection[str] = SINGLE,
        twice: bool = False,
        threads: int | None = None,
        seed: int = 0,
    ) -> None:
        self.learn, self.trials, self.kinds, self.twice = learn, trials, kinds, twice
        self.threads, self.seed = threads, seed
        graph = trials.net.graph
        found = layers(graph, trials.net.shapes)
        designs = {layer.key: design_of(graph, layer.key) for layer in found}
        self.designs = {k: d for k, d in designs.items() if d is not None and allows(graph.nodes[k].input[1])}
        total = sum(layer.macs for layer in found)
        self.macs = {layer.key: layer.macs for layer in found}
        self.names = [k for k in self.designs if self.macs[k] >= LEAST * total]

    @cached_property
    def moments(self) -> dict[str, np.ndarray]:
        """Second moments of what the layers read that are worth a look."""
        net, known = self.trials.net, {key: s.H for key, s in self.trials.curves.solvers.items()}
        missing = [self.designs[key] for key in self.names if key not in known]
        seen = second_moments(
            net.graph.model, missing, net.shapes, self.learn.batches, threads=self.threads, seed=self.seed
        )
        return known | {key: solver(net.graph, self.designs[key], H).H for key, H in seen.items()}

    def move(self, name: str, times: PairTimes | PairModel) -> RankMove | None:
        """The ways of a layer that are cheaper and faster; None where there is none.

        Args:
            name: of the layer.
            times: tells how long a way takes, and what share of the MACs saved must be saved in time.
        """
        if name not in self.moments:
            return None
        own = _layer(self.designs[name], self.moments[name], self.trials, self.kinds)
        return _move(own, self.macs[name], self.trials, times, self.twice)


def _layer(d: Design, H: np.ndarray, trials: Trials, kinds: Collection[str]) -> _Layer:
    graph = trials.net.graph
    weight, place = graph.value(d.weight), trials.places.get(d.key)
    assert weight is not None
    norm = None if place is None else normalization(graph, place)
    slope = np.ones((d.parts, 1, d.outputs)) if norm is None else norm[1].reshape(d.parts, 1, -1)
    slope = np.where(np.abs(slope) > 1e-12, slope, 1e-12)
    W, S = d.matrix(weight) * slope, low_rank.covariances(H)
    splits = {}
    for kind in kinds_of(graph.nodes[d.key], weight.shape):
        if kind in kinds or (kind == "matrix" and "channel" in kinds):
            most = _break_even(graph.nodes[d.key], weight.shape, kind, weight.size)
            if most > 0:
                splits[kind] = (
                    low_rank.spatial_split(W, S, weight.shape[2:], most)
                    if kind == "spatial"
                    else low_rank.channel_split(W, S, most)
                )
    mean = (H[:, :-1, -1:] / H[:, -1:, -1:]).transpose(0, 2, 1)
    return _Layer(d, W, S, mean, slope, splits)


def _break_even(node: onnx.NodeProto, weight: tuple[int, ...], kind: str, size: int) -> int:
    """The largest rank at which the pair has fewer weights than the layer."""
    each = sum(int(np.prod(s)) for s in pair_sizes(node, weight, kind, 1))
    return min(highest(node, weight, kind), (size - 1) // each)


def ways_asked(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Way]]:
    """(layer, way) of whatever `rank_moves` may ask the time of, without splitting again."""
    found = layers(graph, shapes)
    total = sum(layer.macs for layer in found)
    for layer in found:
        weight = None if layer.weight is None else graph.value(layer.weight)
        if weight is None or layer.macs < LEAST * total:
            continue
        node = graph.nodes[layer.key]
        for kind in kinds_of(node, weight.shape):
            for rank in ranks_up_to(_break_even(node, weight.shape, kind, weight.size)):
                yield layer.key, ((kind, rank),)


def ranks_up_to(most: int, count: int = RANKS) -> list[int]:
    """A few ranks: multiples of 4, 8 or 16, that ORT's kernels like; small ones singly."""
    if most < 8:
        return list(range(1, most + 1))
    step = 4
    while most // step > count:
        step *= 2
    return list(range(step, most + 1, step))


def _move(own: _Layer, macs: float, trials: Trials, times: PairTimes | PairModel, twice: bool) -> RankMove | None:
    rows: list[tuple[Way, float, np.ndarray, np.ndarray, np.ndarray]] = []
    key = own.design.key
    for way, error in _ways(own, twice):
        cost, size = _counted(trials.net, own.design, way)
        if cost.sum() >= macs:
            continue
        took = times.relative(key, way)
        if 1 - sum(took) > times.share * (1 - cost.sum() / macs):
            rows.append((way, error, cost, size, _thirds(took)))
    if not rows:
        return None
    ways, errors = tuple(r[0] for r in rows), np.array([r[1] for r in rows])
    damages = np.append(_damages(own, ways, errors, trials), 0.0)
    macs_of, params_of, times_of = (np.stack([r[k] for r in rows]) for k in (2, 3, 4))
    return RankMove(key, ways, macs_of, params_of, times_of, errors, damages)


def _ways(own: _Layer, twice: bool) -> list[tuple[Way, float]]:
    found: list[tuple[Way, float]] = []
    for kind, split in own.splits.items():
        for rank in ranks_up_to(split.most):
            error = float(split.errors[rank])
            found.append((((kind, rank),), error))
            if twice and kind == "spatial" and split.gram is not None:
                second = _again(split, rank)
                for inner in ranks_up_to(second.most - 1, AGAIN):
                    lost = error + (1 - error) * float(second.errors[inner])
                    found.append(((("spatial", rank), ("channel", inner)), lost))
    return found


def _again(split: low_rank.Split, rank: int) -> low_rank.Split:
    """The factors of a spatial pair's second layer. Least squares leaves what the first loses at right angles to it,
    so the two losses add."""
    assert split.gram is not None and split.cross is not None
    at = rank * split.taps
    grams = split.gram[:, :at, :at]
    second = np.stack([np.linalg.solve(g, k[:at]) for g, k in zip(grams, split.cross, strict=True)])
    return low_rank.channel_split(second, grams)


def _counted(net: Analysed, d: Design, way: Way) -> tuple[np.ndarray, np.ndarray]:
    """(3,) multiply-accumulates and (3,) weights of a way: the first layer, the middle one, the last."""
    node, value = net.graph.nodes[d.key], net.graph.value(d.weight)
    assert value is not None
    x, y, weight = net.shapes[node.input[0]], net.shapes[node.output[0]], value.shape
    sizes = []
    for kind, rank in way:
        first, weight = pair_sizes(node, weight, kind, rank)
        sizes.append((kind, first))
    sizes.append(("last", weight))
    places = float(np.prod(y)) / y[d.axis]
    macs = []
    for kind, size in sizes:
        at = places * x[3] / y[3] if kind == "spatial" else places
        macs.append(at * float(np.prod(size)))
    return _thirds(macs), _thirds([float(np.prod(s)) for _, s in sizes])


def _thirds(values: Sequence[float]) -> np.ndarray:
    return np.array([values[0], sum(values[1:-1]), values[-1]], float)


def _damages(own: _Layer, ways: Sequence[Way], errors: np.ndarray, trials: Trials) -> np.ndarray:
    """(ways,) damage to the outputs, measured at one or two single splits, the curve in between."""
    single = [k for k, way in enumerate(ways) if len(way) == 1] or list(range(len(ways)))
    top = errors[single].max()
    tried = dict.fromkeys(min(single, key=lambda k: (abs(np.log(max(errors[k], 1e-12) / max(s * top, 1e-12))), k))
                          for s in SHARES)  # fmt: skip
    measured = {k: trials.damage(_on_paper(own, ways[k], trials), own.design.key) for k in tried if errors[k] > 1e-9}
    return between(errors, measured)


def _on_paper(own: _Layer, way: Way, trials: Trials) -> Graph:
    """The original with a layer's weight replaced by what its factors stand for, its mean output as it was."""
    graph, d = trials.net.graph.fork(), own.design
    kind, rank = way[0]
    whole = own.splits[kind].product(rank)
    value, place = graph.value(d.weight), trials.places.get(d.key)
    assert value is not None
    graph.set_constant(d.weight, d.stored(whole / own.slope, value))
    if place is not None:
        missing = (own.mean @ (own.W - whole)).ravel()
        fold(graph, place, np.ones(missing.size), missing)
    return graph
