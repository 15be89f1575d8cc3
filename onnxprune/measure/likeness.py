"""How alike the channels of a group are: as random variables, before the activation function, on the samples.

Each channel is taken as N(β, γ²) behind the BatchNormalization (or bias) of the layer that makes it; β, γ and the
correlations are measured over the samples, so a folded BatchNormalization makes no difference. The distance of two
channels (`numerics.similarity`) is taken relative to the mean distance in the layer, and averaged over all layers
that make the group: distances of different groups can be compared. After Zhang, Zhao, Ni et al., 2019, whose
abstract gives the idea; the metric, the squared 2-Wasserstein-like distance of two such variables, is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune import numerics
from onnxprune.channels import Analysed, ChannelGroup, Slice
from onnxprune.graph.layers import affine, layers
from onnxprune.graph.model import Graph
from onnxprune.measure.designs import rows_of
from onnxprune.runtime import sessions
from onnxprune.runtime.ports import Feeds

POSITIONS = 64
"""Sampled positions an image."""
BYTES = 1 << 28
"""Activations that may leave ONNX Runtime at a time."""


@dataclass(frozen=True)
class Likeness:
    """What was measured of the channels, for distances between those of one group.

    Attributes:
        shown: group -> the activations that show its channels as they are made.
        seen: activation -> (c + 1, c + 1) second moments of its channels, the constant 1 last.
    """

    shown: Mapping[str, Sequence[Slice]]
    seen: Mapping[str, np.ndarray]

    def distance(self, group: ChannelGroup, *, correlated: bool = True) -> np.ndarray:
        """(width, width) squared distances of a group's channels, about 1 on average: the mean over the layers that
        make it. Where correlations do not count, only means and deviations do."""
        shown, total = self.shown[group.name], np.zeros((group.width, group.width))
        for s in shown:
            H = self.seen[s.tensor]
            mean, covariance = H[-1, :-1] / H[-1, -1], numerics.covariance(H)
            std = np.sqrt(np.maximum(np.diag(covariance), 0))
            corr = covariance / np.maximum(np.outer(std, std), 1e-30)
            d2 = numerics.similarity(mean, std, corr if correlated else None)
            # a channel that spans several indices is as far from another as they are on average, place by place
            places = np.argsort(s.channel, kind="stable")[np.count_nonzero(s.channel < 0) :]
            for own in places.reshape(group.width, -1).T:
                part = d2[np.ix_(own, own)]
                total += part / max(part.sum() / max(1, part.size - len(part)), 1e-300)
        return total / max(1, len(shown))


def likeness(
    net: Analysed, batches: Callable[[int], Iterable[Feeds]], *, threads: int | None = None, seed: int = 0
) -> Likeness:
    """What tells how alike channels are, in one pass over the samples.

    Args:
        net: the original network.
        batches: gives the samples in batches of at most that many.
        threads: ORT threads.
        seed: of the sampled positions.
    """
    graph, groups, consumers = net.graph, net.channels.groups, net.graph.consumers()
    places = {
        layer.key: place.tensor
        for layer in layers(graph, net.shapes)
        if (place := affine(graph, layer, consumers, net.shapes)) is not None
    }
    shown = {g.name: _shown(g, graph, places) for g in groups}
    axes = {s.tensor: s.axis for found in shown.values() for s in found}
    return Likeness(shown, _second_moments(net.model, axes, net.shapes, batches, threads, seed))


def _shown(group: ChannelGroup, graph: Graph, places: Mapping[str, str]) -> list[Slice]:
    """The activations that show the channels as they are made; any that carries them when there is no maker."""
    carriers = {a.tensor: a for a in group.activations}
    made = [places.get(s.use[0], graph.nodes[s.use[0]].output[0]) for s in group.weights]
    found = [carriers[t] for t in dict.fromkeys(made) if t in carriers]
    return found or list(group.activations[:1])


def _second_moments(
    model: onnx.ModelProto,
    axes: Mapping[str, int],
    shapes: Mapping[str, tuple[int, ...]],
    batches: Callable[[int], Iterable[Feeds]],
    threads: int | None,
    seed: int,
) -> dict[str, np.ndarray]:
    """(c + 1, c + 1) second moments of some activations' channels, the constant 1 last."""
    found = {t: np.zeros((shapes[t][axis] + 1,) * 2) for t, axis in axes.items()}
    each = sum(4 * int(np.prod(shapes[t])) // max(1, shapes[t][0]) for t in axes)
    session = sessions.open_with_outputs(model, list(axes), threads=threads, name="calibration pass")
    rng = np.random.default_rng(seed)
    for feeds in batches(int(np.clip(BYTES // max(1, each), 1, 32))):
        for (t, axis), z in zip(axes.items(), session.run(dict(feeds), list(axes)), strict=True):
            positions = numerics.sample_positions(len(z), z.size // (len(z) * z.shape[axis]), POSITIONS, rng)
            rows = rows_of(z, axis, positions) if axis % z.ndim else z.reshape(len(z), -1).T
            found[t] += numerics.SecondMoments.of(rows, rows[:, :0]).H
    return found
