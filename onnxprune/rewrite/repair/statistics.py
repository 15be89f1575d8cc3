"""Statistics repair: give every layer's output the mean and spread it had.

Cutting channels shifts what later layers see. For each layer in forward order, per output channel,

    a = σ_o / σ_p      b = μ_o − a·μ_p

are folded into its weight and bias (or into the BatchNormalization behind it), so that the pruned network's
activation has the original's mean and standard deviation over the calibration samples. Works with BN folded or
not, needs no labels (ours; after the re-estimation of BatchNormalization that pruners without labels do).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from onnxprune.channels import CutSizes
from onnxprune.graph import operators
from onnxprune.graph.layers import Affine, add_bias, affine, fold, is_add, layers, normalization, with_biases
from onnxprune.graph.model import Graph, Use
from onnxprune.measure.stepwise import Runner
from onnxprune.rewrite.repair.task import RepairTask

MOST = 10.0
"""A channel is scaled by at most this: what hardly varies any more cannot be brought back by scaling."""

MeanAndDeviation = tuple[np.ndarray, np.ndarray]
"""Mean and standard deviation per channel, in float64."""


def repair_statistics(task: RepairTask) -> Graph:
    """The pruned network, edited: with corrected statistics."""
    original, cut = task.net.graph, CutSizes(task.net.channels, task.alive)
    graph = with_biases(task.pruned, cut.changed)
    wanted = [place.tensor for place in correctable(original, graph, cut)]
    before = Runner(original, task.batches, threads=task.threads, ahead=wanted)
    after = Runner(graph, task.batches, threads=task.threads)
    for place in correctable(original, graph, cut, task.progress):
        correct_statistics(graph, cut, place, mean_and_deviation(before.until(place.tensor), place.axis), after)
    return graph


def with_room(task: RepairTask, *, weights: bool = False) -> Graph:
    """The pruned network, edited: with a bias wherever a correction writes one, and constants of its own for whatever a
    correction changes. Their values mean nothing.

    Args:
        task: of a repair.
        weights: whether that writes the weights of all layers anew; else those that see what they saw stay.
    """
    cut = CutSizes(task.net.channels, task.alive)
    graph, moved = with_biases(task.pruned, cut.changed), _moved(task)
    for k, place in enumerate(correctable(task.net.graph, graph, cut)):
        product, norm = operators.of(graph.nodes[place.key]).product, normalization(graph, place)
        uses = [use for use, _ in (*place.scales, *([] if place.shift is None else [place.shift]))]
        if weights and product is not None and place.key != uses[0][0]:
            uses.append((place.key, product.weight))
        for use in uses if weights or place.tensor in moved else ():
            anew = another(graph, use, k)
            if weights and norm is not None and use == (norm[0], 1):
                anew = norm[2].astype(anew.dtype)  # its slope goes into the weight
            graph.set_constant(use, anew)
        if place.shift is None:
            width, kind = cut.shapes[place.tensor][place.axis], another(graph, uses[0], k).dtype
            add_bias(graph, place.key, np.full(width, k, kind))
    return graph


def another(graph: Graph, use: Use, number: int) -> np.ndarray:
    """An array like a constant, and unlike those of other numbers."""
    value = graph.value(use)
    assert value is not None
    return np.full(value.shape, number, value.dtype)


def _moved(task: RepairTask) -> set[str]:
    """The original's tensors that have other values once the removed channels are gone."""
    channels, alive = task.net.channels, task.alive
    lost = {s.use[0] for g in channels.groups for s in g.readers if not alive[channels.params[s.use][s.axis]].all()}
    lost |= {key for (key, _), (_, units) in channels.reads.items() if not alive[units].all()}
    found: set[str] = set()
    for key, node in task.net.graph.nodes.items():
        if key in lost or not found.isdisjoint(node.input):
            found.update(o for o in node.output if o)
    return found


def correctable(
    original: Graph, graph: Graph, cut: CutSizes, progress: Callable[[int, int], None] | None = None
) -> Iterator[Affine]:
    """The places of the pruned graph where a layer's output can be corrected, in forward order."""
    places = [p for p in _places(graph, cut) if p.tensor in original.producer]
    for k, place in enumerate(places):
        if progress:
            progress(k, len(places))
        yield place


def added(original: Graph, graph: Graph, cut: CutSizes) -> list[Affine]:
    """The places of layers that the original lacks: the first ones of factorised layers."""
    return [p for p in _places(graph, cut) if p.tensor not in original.producer]


def _places(graph: Graph, cut: CutSizes) -> list[Affine]:
    consumers, shapes = graph.consumers(), dict(cut.shapes)
    for key, node in graph.nodes.items():  # what `with_biases` has put in between has no size yet
        if is_add(graph, key) and node.output[0] in shapes and node.input[0] in graph.producer:
            shapes.setdefault(node.input[0], shapes[node.output[0]])
    found = [affine(graph, layer, consumers, shapes) for layer in layers(graph, shapes)]
    # a layer along positions has its channels on another axis, and fewer of them than in the original
    return [p for p in found if p is not None and cut.lines.get(p.tensor, (p.axis,))[0] == p.axis]


def correct_statistics(graph: Graph, cut: CutSizes, place: Affine, before: MeanAndDeviation, after: Runner) -> None:
    """Give one layer's output the mean and standard deviation it had.

    Args:
        graph: the pruned network, edited.
        cut: which channels it still has.
        place: where the layer is scaled and shifted.
        before: mean and deviation of the original, of all its channels.
        after: runs the pruned network so far, and is told of the change.
    """
    kept = kept_channels(cut, place)
    mean_p, std_p = mean_and_deviation(after.until(place.tensor), place.axis)
    mean_o, std_o = before[0][kept], before[1][kept]
    a = np.where(std_p > 1e-6 * std_o.max(initial=1e-12), std_o / np.maximum(std_p, 1e-30), 1.0)
    a = np.clip(a, 0.0, MOST)
    b = mean_o - a * mean_p
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return  # activations overflow on these samples
    fold(graph, place, a, b)
    _apply(after, place, a, b)


def kept_channels(cut: CutSizes, place: Affine) -> np.ndarray:
    """Indices of the original's channels that the pruned tensor still has."""
    if place.tensor in cut.lines:
        axis, line = cut.lines[place.tensor]
        if axis == place.axis:
            return np.flatnonzero(cut.alive[line])
    return np.arange(cut.shapes[place.tensor][place.axis])


def mean_and_deviation(values: Sequence[np.ndarray], axis: int) -> MeanAndDeviation:
    """Mean and standard deviation per channel over all batches, in float64."""
    count, total, square = 0, np.float64(0), np.float64(0)
    for v in values:
        other = tuple(k for k in range(v.ndim) if k != axis)
        total = total + v.sum(axis=other, dtype=np.float64)
        square = square + np.einsum(v, list(range(v.ndim)), v, list(range(v.ndim)), [axis], dtype=np.float64)
        count += v.size // v.shape[axis]
    mean = np.asarray(total) / count
    return mean, np.sqrt(np.maximum(np.asarray(square) / count - mean**2, 0))


def _apply(runner: Runner, place: Affine, a: np.ndarray, b: np.ndarray) -> None:
    """Correct the values that were already computed for later segments."""
    shape = [1] * runner.live[place.tensor][0].ndim
    shape[place.axis] = -1
    for v in runner.live[place.tensor]:
        v *= a.reshape(shape).astype(v.dtype)
        v += b.reshape(shape).astype(v.dtype)
