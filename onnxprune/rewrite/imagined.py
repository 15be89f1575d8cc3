"""Repair without samples, or with few: what the kept channels can tell of the removed ones.

Every layer that reads cut channels gets their columns spread over the kept ones by ridge regression,

    x_j ≈ Σ_i K_ji x_i + d_j      W_i += Σ_j K_ji W_j      b += Σ_j d_j W_j      (j removed, i kept)

with one K for all positions of a kernel. Ours; neuron merging (Kim et al., NeurIPS 2020) is the form with one kept
channel a removed one. Then every layer's output gets its mean and spread back (`rewrite.statistics`).

Both need activations. Without samples they are *imagined*: random inputs run through the network, and every
BatchNormalization gets the mean and variance of what it sees there, so that its output has the mean β and the spread
γ that the file promises, and the correlations that the filters make. When all is mended the file's own mean and
variance are put back. Where it was folded away, random inputs have nothing to hold on to, and less comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx

from onnxprune.channels import Channels
from onnxprune.graph.layers import SUMS, added_behind
from onnxprune.graph.model import Graph, attr
from onnxprune.measure.cost import count_macs
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.lockstep import Feeds, Runner
from onnxprune.rewrite.merge import fold_bias
from onnxprune.rewrite.statistics import repair_statistics

LEAST = 4
SAMPLES = 64
"""Random inputs, fewer where they are large."""
ELEMENTS = 1 << 22
"""Most numbers in all random inputs together."""
MACS = 1.5e10
"""Most multiply-accumulates of one pass over all of them."""
NODES = 20_000
"""Most nodes that one pass runs."""
BATCH = 16
WIDEST = 4096
"""Wider than this, the regression's matrix does not pay; removed inputs are replaced by their means."""
ROWS = 16
"""Positions looked at per channel, at least 8192."""
LAMBDA = 1e-2
"""Ridge, relative to the mean variance."""

Progress = Callable[[int, int], None]


def repair_imagined(
    original: Graph,
    channels: Channels,
    alive: np.ndarray,
    feeds: Feeds,
    *,
    repeat: bool,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> onnx.ModelProto:
    """The cut model, repaired without samples.

    Args:
        original: the network before the cut.
        channels: its analysis.
        alive: (unit_count + 1,) bool, what is kept.
        feeds: one run's inputs: names, types, sizes.
        repeat: whether the first axis of the inputs is a batch of any size.
        threads: ORT threads.
        seed: of the random inputs.
        progress: called with (layers done, layers).
    """
    macs = count_macs(original, channels.shapes) / max(1, _own(feeds))
    most = int(np.clip(min(MACS / max(macs, 1.0), NODES / max(1, len(original.nodes))), LEAST, SAMPLES))
    batches = random_batches(feeds, repeat=repeat, most=most, seed=seed)
    dreamt = Graph(with_seen_statistics(original, batches, threads=threads))
    model = repair_merge(dreamt, channels, alive, batches, threads=threads, progress=progress)
    return _with_own_statistics(original, model, channels, alive)


def repair_merge(
    original: Graph,
    channels: Channels,
    alive: np.ndarray,
    batches: Sequence[Feeds],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> onnx.ModelProto:
    """The cut model with the removed channels' columns spread over the kept ones, and its statistics mended.

    Args:
        original: the network before the cut.
        channels: its analysis.
        alive: (unit_count + 1,) bool, what is kept.
        batches: samples.
        threads: ORT threads.
        progress: called with (layers done, layers).
    """
    merged = spread_columns(original, cut(original, channels, alive), channels, alive, batches, threads=threads)
    return repair_statistics(original, merged, channels, alive, batches, threads=threads, progress=progress)


def _own(feeds: Feeds) -> int:
    """Samples in one run's inputs."""
    return max(1, max((len(v) for v in feeds.values() if v.ndim), default=1))


def random_batches(feeds: Feeds, *, repeat: bool, most: int = SAMPLES, seed: int = 0) -> list[Feeds]:
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


def with_seen_statistics(graph: Graph, batches: Sequence[Feeds], *, threads: int | None = None) -> onnx.ModelProto:
    """A clone in which every BatchNormalization has the mean and variance of what it gets from these inputs."""
    seen = Graph(graph.model)
    runner = Runner(seen, batches, threads=threads)
    for key in _norms(seen):
        count, total, square = 0, np.float64(0), np.float64(0)
        for x in runner.until(seen.nodes[key].input[0]):
            flat = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
            count += len(flat)
            total = total + flat.sum(axis=0, dtype=np.float64)
            square = square + np.einsum("nc,nc->c", flat, flat, dtype=np.float64)
        mean = total / count
        for i, value in ((3, mean), (4, np.maximum(square / count - mean**2, 0))):
            like = seen.value((key, i))
            assert like is not None
            seen.set_constant((key, i), np.asarray(value, like.dtype))
    return seen.export()


def _with_own_statistics(
    original: Graph, model: onnx.ModelProto, channels: Channels, alive: np.ndarray
) -> onnx.ModelProto:
    """The model with the original's BatchNormalization means and variances."""
    graph = Graph(model)
    for key in _norms(original):
        for i in (3, 4):
            value = original.value((key, i))
            assert value is not None
            for axis, units in channels.params.get((key, i), {}).items():
                value = value.compress(alive[units], axis)
            graph.set_constant((key, i), value)
    return graph.export()


def _norms(graph: Graph) -> list[str]:
    """The BatchNormalizations whose statistics are constants."""
    return [
        key
        for key, node in graph.nodes.items()
        if node.op_type == "BatchNormalization"
        and not attr(node, "training_mode", 0)
        and graph.constant(node.input[0]) is None
        and all(graph.value((key, i)) is not None for i in (3, 4))
    ]


def spread_columns(
    original: Graph,
    pruned: onnx.ModelProto,
    channels: Channels,
    alive: np.ndarray,
    batches: Sequence[Feeds],
    *,
    threads: int | None = None,
) -> onnx.ModelProto:
    """The cut model in which every reader makes up for its removed inputs by the kept ones."""
    readers = {(s.use, s.axis): s for g in channels.groups for s in g.readers}
    wanted = [s.reads for s in readers.values() if s.reads and not alive[channels.params[s.use][s.axis]].all()]
    graph, runner = Graph(pruned), Runner(original, batches, threads=threads, ahead=wanted)
    behind = added_behind(original, channels.shapes)
    found: dict[str, tuple[np.ndarray | None, np.ndarray] | None] = {}
    order = {name: i for name, i in runner.made_at.items()}
    for s in sorted(readers.values(), key=lambda s: order.get(s.reads or "", -1)):
        node, kept = original.nodes[s.use[0]], alive[channels.params[s.use][s.axis]]
        value = original.value(s.use)
        if kept.all() or node.op_type not in SUMS or attr(node, "group", 1) != 1 or s.use in channels.unlisted:
            continue
        if (
            value is None
            or value.dtype.kind != "f"
            or s.reads is None
            or s.reads not in order
            or s.reads not in channels.lines
        ):
            continue
        if s.reads not in found:
            axis = channels.lines[s.reads][0]
            found[s.reads] = _substitutes(runner.until(s.reads), axis, kept)
        if (both := found[s.reads]) is None:
            continue
        K, d = both
        own = value
        for axis, units in channels.params[s.use].items():
            if axis != s.axis:
                own = own.compress(alive[units], axis)
        if K is not None:
            columns = np.moveaxis(own, s.axis, 0)
            new = columns[kept] + np.tensordot(K.T, columns[~kept].astype(np.float64), 1)
            graph.set_constant(s.use, np.moveaxis(new, 0, s.axis).astype(value.dtype))
        if node.op_type in ("Conv", "Gemm") or (node.op_type == "MatMul" and s.use[0] in behind):
            if node.op_type == "Gemm" and not attr(node, "alpha", 1.0) == attr(node, "beta", 1.0) == 1.0:
                continue
            outputs = np.tensordot(d, np.moveaxis(value, s.axis, 0)[~kept].astype(np.float64), 1)
            fold_bias(original, graph, channels, alive, s.use, s.axis, outputs, behind)
    return graph.export()


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
    x = np.concatenate([np.moveaxis(v, axis, -1).reshape(-1, width)[::stride] for v in values]).astype(np.float64)
    mean = x.mean(axis=0)
    if width > WIDEST:
        return None, mean[~kept]
    if not np.isfinite(mean).all():
        return None  # a deep network of small numbers overflows on random input: nothing to learn from
    x -= mean
    inner, cross = x[:, kept].T @ x[:, kept], x[:, kept].T @ x[:, ~kept]
    inner[np.diag_indices_from(inner)] += LAMBDA * max(float(np.diag(inner).mean()), 1e-12)
    K = np.linalg.solve(inner, cross).T
    return K, mean[~kept] - K @ mean[kept]
