"""Repair without samples, or with few: what the kept channels can tell of the removed ones.

Every layer that reads cut channels gets their columns spread over the kept ones by ridge regression,

    x_j ≈ Σ_i K_ji x_i + d_j      W_i += Σ_j K_ji W_j      b += Σ_j d_j W_j      (j removed, i kept)

with one K for all positions of a kernel. Ours; neuron merging (Kim et al., NeurIPS 2020) is the form with one kept
channel a removed one. Then every layer's output gets its mean and spread back (`rewrite.repair.statistics`).

Both need activations. Without samples these come from random inputs: they run through the network, and every
BatchNormalization gets the mean and variance of what it sees there, so that its output has the mean β and the spread
γ that the file promises, and the correlations that the filters make. When all is mended the file's own mean and
variance are put back. Where it was folded away, random inputs have nothing to hold on to, and less comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import scipy.linalg as sl

from onnxprune.channels import Slice
from onnxprune.errors import ModelError
from onnxprune.graph import operators
from onnxprune.graph.layers import (
    add_bias,
    added_behind,
    adds_columns,
    has_bias,
    is_add,
    keeps_statistics,
    lacks_bias,
    takes_constants,
)
from onnxprune.graph.model import Graph, Use
from onnxprune.measure.cost import count_macs
from onnxprune.measure.stepwise import Runner
from onnxprune.numerics import on_disk
from onnxprune.rewrite.merge import fold_bias
from onnxprune.rewrite.repair import room
from onnxprune.rewrite.repair.room import Room
from onnxprune.rewrite.repair.statistics import MeanAndDeviation, correct_statistics, in_turn, mean_and_deviation
from onnxprune.rewrite.repair.task import Progress, RepairTask
from onnxprune.runtime.ports import Feeds

LEAST = 2
RANDOM_INPUTS = 64
"""Random inputs, fewer where they are large."""
ELEMENTS = 1 << 22
"""Most numbers in all random inputs together."""
MACS = 1e10
"""Most multiply-accumulates of one pass over all of them."""
NODES = 20_000
"""Most nodes that one pass runs."""
BATCH = 16
WIDEST = 4096
"""Wider than this, the regression's matrix does not pay; removed inputs are replaced by their means."""
ROWS = 16
"""Positions looked at per channel, at least 8192."""
SUBSTITUTE_RIDGE = 1e-2
"""Ridge, relative to the mean variance."""


def repair_without_samples(task: RepairTask) -> Graph:
    """The cut network, repaired without samples."""
    net, feeds = task.net, task.net.feeds
    macs = count_macs(net.graph, net.shapes, net.channels.ran) / max(1, _own(feeds))
    most = int(np.clip(min(MACS / max(macs, 1.0), NODES / max(1, len(net.graph.nodes))), LEAST, RANDOM_INPUTS))
    batches = random_batches(feeds, repeat=task.any_batch, most=most, seed=task.seed)
    task.pruned.settle()
    try:
        merge = _Merge(task.of(task.pruned.fork()))
        merge.look(batches, random_inputs=True)
        merge.correct(batches, task.progress)
    except ModelError:
        if not task.any_batch:
            raise
        # the file promises a batch of any size, but its nodes spell the one it was exported with
        return repair_without_samples(replace(task, any_batch=False))
    merge.restore_statistics()
    return merge.graph


def repair_merge(task: RepairTask) -> Graph:
    """The cut network with the removed channels' columns spread over the kept ones, and its statistics mended."""
    merge = _Merge(task)
    merge.look(task.batches)
    merge.correct(task.batches, task.progress)
    return merge.graph


def with_room(task: RepairTask) -> Graph:
    """The cut network with a bias wherever this repair writes one, and constants of its own for whatever it changes.
    Their values mean nothing."""
    merge = _Merge(task)
    for k, s in enumerate(s for sites in merge._readers().values() for s in sites):
        key, use = s.use[0], merge._now(s.use)
        anew = room.another(merge.graph, use, k)
        merge.graph.set_constant(use, anew)
        folds = takes_constants(merge.original, key, merge.behind) and key not in merge.behind
        if folds and not has_bias(merge.graph.nodes[key]):
            width = merge.cut.shapes[key][operators.of(merge.original.nodes[key]).channels or 0]
            add_bias(merge.graph, key, np.full(width, k, anew.dtype))
    return room.with_room(task.of(merge.graph))


class _Merge:
    """The model under repair: one pass over the original, then one over the model itself."""

    def __init__(self, task: RepairTask):
        self.net, self.alive, self.threads = task.net, task.alive, task.threads
        self.original, self.channels = original, channels = task.net.graph, task.net.channels
        self.room = Room.of(task)
        self.cut, self.graph = self.room.cut, self.room.graph
        # A MatMul that `with_biases` gave an Add goes by what the Add reads; the Add goes by the MatMul's old name.
        self.moved = {
            key: node.input[0]
            for key, node in self.graph.nodes.items()
            if is_add(self.graph, key) and key in original.nodes and lacks_bias(original.nodes[key])
        }
        self.behind = {**added_behind(original, channels.shapes), **{key: ((key, 1), 0) for key in self.moved}}
        self.before: dict[str, MeanAndDeviation] = {}  # of the original's outputs
        self.norms: list[str] = []

    def look(self, batches: Sequence[Feeds], *, random_inputs: bool = False) -> None:
        """Run the original once: note the statistics of its outputs, and let every reader make up for its removed
        inputs by the kept ones. On random inputs, every BatchNormalization gets the statistics of what it sees."""
        seen = self.original.fork()
        self.norms = _norms(seen) if random_inputs else []
        places = {p.tensor: p.axis for p in self.room.places}
        readers = self._readers()
        norms: dict[str, list[str]] = {}
        for key in self.norms:
            norms.setdefault(seen.nodes[key].input[0], []).append(key)
        asked = list(dict.fromkeys([*places, *readers, *norms]))
        runner = Runner(seen, batches, threads=self.threads, ahead=asked, edits=self.norms)
        made = [t for t in asked if t in runner.made_at or t in runner.live]
        for tensor in sorted(made, key=lambda t: runner.made_at.get(t, -1)):
            values = runner.until(tensor)
            for key in norms.get(tensor, ()):
                self._set_statistics(seen, key, mean_and_deviation(values, 1))
            if tensor in places:
                self.before[tensor] = mean_and_deviation(values, places[tensor])
            if tensor in readers:
                self._spread(readers[tensor], values)

    def _set_statistics(self, seen: Graph, key: str, found: MeanAndDeviation) -> None:
        """Give a BatchNormalization, here and in the cut model, the mean and variance of what it gets."""
        for i, value in ((3, found[0]), (4, found[1] ** 2)):
            like = seen.value((key, i))
            assert like is not None
            seen.set_constant((key, i), value.astype(like.dtype))
            self._set(key, i, value.astype(like.dtype))

    def restore_statistics(self) -> None:
        """Give every BatchNormalization of the cut model the original's mean and variance again."""
        for key in self.norms:
            for i in (3, 4):
                value = self.original.value((key, i))
                assert value is not None
                self._set(key, i, value)

    def _set(self, key: str, i: int, value: np.ndarray) -> None:
        if key not in self.graph.nodes:  # it has gone with what it made
            return
        for axis, units in self.channels.params.get((key, i), {}).items():
            value = value.compress(self.alive[units], axis)
        self.graph.set_constant((key, i), value)

    def correct(self, batches: Sequence[Feeds], progress: Progress | None) -> None:
        """Give every layer's output the mean and spread it had, in forward order."""
        after = Runner(self.graph, batches, threads=self.threads)
        for k, place in enumerate(in_turn(self.room.places, after)):
            if progress:
                progress(k, len(self.room.places))
            if place.tensor in self.before:
                correct_statistics(self.graph, self.cut, place, self.before[place.tensor], after)

    def _readers(self) -> dict[str, list[Slice]]:
        """Tensor -> the weights that read it, lose inputs, and can be given others for them."""
        channels, found = self.channels, dict[str, list[Slice]]()
        for s in {(s.use, s.axis): s for g in channels.groups for s in g.readers}.values():
            node, value = self.original.nodes[s.use[0]], self.original.value(s.use)
            if (
                s.use[0] in self.graph.nodes
                and adds_columns(node)
                and s.use not in channels.unlisted
                and s.reads is not None
                and s.reads in channels.lines
                and value is not None
                and value.dtype.kind == "f"
                and not self.alive[channels.params[s.use][s.axis]].all()
            ):
                found.setdefault(s.reads, []).append(s)
        return found

    def _spread(self, sites: Sequence[Slice], values: Sequence[np.ndarray]) -> None:
        """Let weights that read a tensor make up for its removed channels by the kept ones."""
        s = sites[0]
        assert s.reads is not None
        found = _substitutes(values, self.channels.lines[s.reads][0], self.alive[self.channels.params[s.use][s.axis]])
        if found is None:
            return
        K, d = found
        for s in sites:
            value = self.original.value(s.use)
            assert value is not None
            kept = self.alive[self.channels.params[s.use][s.axis]]
            columns = np.moveaxis(value, s.axis, 0)
            if K is not None:
                own = value
                for axis, units in self.channels.params[s.use].items():
                    if axis != s.axis:
                        own = own.compress(self.alive[units], axis)
                own = np.moveaxis(own, s.axis, 0)
                precise = np.result_type(value.dtype, np.float32)
                new = own[kept] + np.tensordot(K.T.astype(precise), own[~kept].astype(precise), 1)
                self.graph.set_constant(self._now(s.use), np.moveaxis(new, 0, s.axis).astype(value.dtype))
            if takes_constants(self.original, s.use[0], self.behind):
                outputs = np.tensordot(d, columns[~kept].astype(np.float64), 1)
                fold_bias(self.net, self.graph, self.alive, s.use, s.axis, outputs, self.behind)

    def _now(self, use: Use) -> Use:
        """Where a weight of the original is in the model under repair."""
        return self.moved.get(use[0], use[0]), use[1]


def _own(feeds: Feeds) -> int:
    """Samples in one run's inputs."""
    return max(1, max((len(v) for v in feeds.values() if v.ndim), default=1))


def random_batches(feeds: Feeds, *, repeat: bool, most: int = RANDOM_INPUTS, seed: int = 0) -> list[Feeds]:
    """Standard normal inputs like `feeds`, `most` of them or fewer; what is no float stays as it is."""
    rng = np.random.default_rng(seed)
    own = _own(feeds)
    each = max(1, sum(v.size for v in feeds.values()) // own)
    count = int(np.clip(ELEMENTS // each, LEAST, most))
    size = min(BATCH, count) if repeat else own
    batches: list[Feeds] = []
    for _ in range(max(1, -(-count // size))):
        shapes = {k: (size, *v.shape[1:]) if repeat and v.ndim else v.shape for k, v in feeds.items()}
        batches.append(
            {
                k: rng.standard_normal(shapes[k]).astype(v.dtype)
                if v.dtype.kind == "f"
                else (np.repeat(v[:1], size, axis=0) if repeat and v.ndim else v)
                for k, v in feeds.items()
            }
        )
    return batches


def _norms(graph: Graph) -> list[str]:
    """The BatchNormalizations whose statistics are constants."""
    return [
        key
        for key, node in graph.nodes.items()
        if keeps_statistics(node)
        and graph.constant(node.input[0]) is None
        and all(graph.value((key, i)) is not None for i in (3, 4))
    ]


def _substitutes(
    values: Sequence[np.ndarray], axis: int, kept: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray] | None:
    """(K: (removed, kept), d: (removed,)) by ridge regression over positions, K None for zeros; None without any
    values."""
    width = len(kept)
    if not kept.any() or not values or values[0].shape[axis] != width:
        return None
    most = max(8192, ROWS * width)
    rows = sum(v.size for v in values) // width
    stride = max(1, rows // most)
    x = np.concatenate([np.moveaxis(v, axis, -1).reshape(-1, width)[::stride] for v in values])
    on_disk.release(values)
    mean = x.mean(axis=0, dtype=np.float64)
    if width > WIDEST:
        return None, mean[~kept]
    if not np.isfinite(mean).all():
        return None  # a deep network of small numbers overflows on random input: nothing to learn from
    x = np.subtract(x, mean, dtype=np.float32)
    inside, gone = np.ascontiguousarray(x[:, kept]), np.ascontiguousarray(x[:, ~kept])
    ridge = SUBSTITUTE_RIDGE * max(
        float(np.einsum("nc,nc->", inside, inside, dtype=np.float64)) / inside.shape[1], 1e-12
    )
    if not np.isfinite(ridge):
        return None
    if len(x) < inside.shape[1]:  # fewer equations than unknowns: the same solution by the smaller matrix
        K = (inside.T @ _solved(inside @ inside.T, ridge, gone)).T
    else:
        K = _solved(inside.T @ inside, ridge, inside.T @ gone).T
    return K, mean[~kept] - K @ mean[kept]


def _solved(square: np.ndarray, ridge: float, right: np.ndarray) -> np.ndarray:
    """(square + ridge·1)⁻¹ right, in float64."""
    square = square.astype(np.float64)
    square[np.diag_indices_from(square)] += ridge
    return np.asarray(sl.solve(square, right.astype(np.float64), assume_a="pos", check_finite=False))
