"""Statistics repair: give every layer's output the mean and spread it had.

Cutting channels shifts what later layers see. For each layer in forward order, per output channel,

    a = σ_o / σ_p      b = μ_o − a·μ_p

are folded into its weight and bias (or into the BatchNormalization behind it), so that the pruned network's
activation has the original's mean and standard deviation over the calibration samples. Works with BN folded or
not, needs no labels (ours; after the re-estimation of BatchNormalization that pruners without labels do).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from onnxprune.channels import CutSizes
from onnxprune.graph.layers import Affine, fold
from onnxprune.graph.model import Graph
from onnxprune.measure.stepwise import Runner
from onnxprune.numerics import on_disk
from onnxprune.rewrite.repair.room import Room
from onnxprune.rewrite.repair.task import RepairTask

MOST = 10.0
"""A channel is scaled by at most this: what hardly varies any more cannot be brought back by scaling."""

MeanAndDeviation = tuple[np.ndarray, np.ndarray]
"""Mean and standard deviation per channel, in float64."""


def repair_statistics(task: RepairTask, *, last: int | None = None) -> Graph:
    """The pruned network, edited: with corrected statistics; `last`: of so many of its last layers only."""
    room = Room.of(task)
    after = Runner(room.graph, task.batches, threads=task.threads)
    places = in_turn(room.places, after)
    places = places if last is None else places[-last:]
    tensors = [p.tensor for p in places]
    before = Runner(task.net.graph, task.batches, threads=task.threads, ahead=tensors)
    before.hold_for(tensors)
    for k, place in enumerate(places):
        if task.progress:
            task.progress(k, len(places))
        wanted = mean_and_deviation(before.until(place.tensor), place.axis)
        correct_statistics(room.graph, room.cut, place, wanted, after)
    return room.graph


def in_turn(places: Iterable[Affine], after: Runner) -> list[Affine]:
    """The places in the order in which the pruned network makes what is corrected: the statistics of a layer may stand
    behind those of a later one, in another branch."""
    return sorted(places, key=lambda p: after.made_at.get(p.tensor, -1))


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
        on_disk.release((v,))
    mean = np.asarray(total) / count
    return mean, np.sqrt(np.maximum(np.asarray(square) / count - mean**2, 0))


def _apply(runner: Runner, place: Affine, a: np.ndarray, b: np.ndarray) -> None:
    """Correct the values that were already computed for later segments."""
    shape = [1] * runner.live[place.tensor][0].ndim
    shape[place.axis] = -1
    for v in runner.live[place.tensor]:
        v *= a.reshape(shape).astype(v.dtype)
        v += b.reshape(shape).astype(v.dtype)
        on_disk.release((v,))
