"""Least-squares refit: every reader learns anew from what is left.

In forward order, each dense layer of the pruned network gets the weights and bias that, from what it reads *now*,
come closest to what the original layer wrote (asymmetric reconstruction, He et al., ICCV 2017, with exact ridge
least squares in place of their solver; `methods.md` §1-2, 8):

    W, b = argmin ‖ T − X_p W − b ‖² + λ‖W − W_cut‖²,     T = Z_o + (s_o − s_p)

Z_o is the original output behind BatchNormalization, s the other operand of a residual add, so a branch also
repairs its shortcut. Where a ReLU follows, entries that the original leaves negative need only stay negative
(`numerics.relu_target`). What is not dense (depthwise, grouped, transposed), or has too few samples to learn from,
gets its statistics back instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune import numerics
from onnxprune.channels import Channels, Cut
from onnxprune.graph.layers import Affine, add_bias
from onnxprune.graph.model import Graph, attr
from onnxprune.rewrite.lockstep import Feeds, Runner
from onnxprune.rewrite.statistics import correct_statistics, correctable, kept_channels

POSITIONS = 64
"""Output positions sampled per image."""
BYTES = 1 << 28
"""Largest matrix of sampled inputs; fewer positions are sampled for wide layers."""
ROWS_PER_INPUT = 4
"""With fewer sampled rows than this per input of the layer, least squares would learn the samples by heart."""
LAMBDA = 1e-4
"""Ridge, relative to the mean square of the inputs."""


@dataclass(frozen=True)
class Shortcut:
    """The add behind a layer: its other operand, and its output."""

    other: str
    total: str


def refit(
    original: Graph,
    pruned: onnx.ModelProto,
    channels: Channels,
    alive: np.ndarray,
    batches: Sequence[Feeds],
    *,
    threads: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> onnx.ModelProto:
    """The pruned model with every dense layer refitted, in one pass over both networks.

    Args:
        original: the network before the cut.
        pruned: the network after it.
        channels: the analysis of the original.
        alive: (unit_count + 1,) bool, what was kept.
        batches: calibration feeds.
        threads: ORT threads.
        seed: of the sampled positions.
        progress: called with (layers done, layers).
    """
    graph, cut = Graph(pruned), Cut(channels, alive)
    consumers = graph.consumers()
    before, after = Runner(original, batches, threads=threads), Runner(graph, batches, threads=threads)
    rng = np.random.default_rng(seed)
    for place in correctable(original, graph, cut, progress):
        if after.index[place.key] < after.position:
            continue  # a statistics correction further on has run it already
        shortcut = _shortcut(graph, consumers, place)
        if not (_dense(graph, place) and _refit_layer(graph, cut, place, shortcut, before, after, rng)):
            correct_statistics(graph, cut, place, before, after)
    return graph.export()


def _dense(graph: Graph, place: Affine) -> bool:
    """Whether the layer can be refitted: a plain 2-d Conv, Gemm or MatMul with a constant weight."""
    node = graph.nodes[place.key]
    weight = graph.value((place.key, 1))
    if weight is None or weight.dtype != np.float32:
        return False
    if node.op_type == "Conv":
        padded = attr(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
        return weight.ndim == 4 and attr(node, "group", 1) == 1 and padded
    if node.op_type == "Gemm":
        return not attr(node, "transA", 0) and attr(node, "alpha", 1.0) == attr(node, "beta", 1.0) == 1.0
    return node.op_type == "MatMul" and weight.ndim == 2


def _shortcut(graph: Graph, consumers: dict, place: Affine) -> Shortcut | None:
    uses = consumers.get(place.tensor, [])
    if len(uses) != 1:
        return None
    key, position = uses[0]
    node = graph.nodes[key]
    if node.op_type != "Add" or graph.constant(node.input[1 - position]) is not None:
        return None
    return Shortcut(node.input[1 - position], node.output[0])


def _refit_layer(
    graph: Graph,
    cut: Cut,
    place: Affine,
    shortcut: Shortcut | None,
    before: Runner,
    after: Runner,
    rng: np.random.Generator,
) -> bool:
    """Refit one layer in place; False, and nothing done, when there are too few samples for it."""
    node = graph.nodes[place.key]
    inputs, targets = after.until(node.input[0]), before.until(place.tensor)
    kept = kept_channels(cut, place)
    known = shortcut is not None and shortcut.other in after.live and shortcut.other in before.live
    if known:
        shape = after.live[shortcut.other][0].shape  # type: ignore[union-attr]
        known = shape == (*targets[0].shape[: place.axis], len(kept), *targets[0].shape[place.axis + 1 :])
    weight = graph.value((place.key, 1))
    assert weight is not None
    start = _as_matrix(node, weight)
    wide = max(1, BYTES // (4 * (len(start) + 1)) // max(1, sum(len(x) for x in inputs)))
    read, wanted, carried = [], [], []
    for b, (x, z) in enumerate(zip(inputs, targets, strict=True)):
        positions = _positions(node, z, place.axis, min(POSITIONS, wide), rng)
        read.append(_rows_read(node, x, weight, positions))
        z = np.take(z, kept, place.axis)
        s = np.zeros((), np.float32)
        if known:
            name = shortcut.other  # type: ignore[union-attr]
            s = _rows(after.live[name][b], place.axis, positions)
            z = z + np.take(before.live[name][b], kept, place.axis)
        wanted.append(_rows(z, place.axis, positions))
        carried.append(np.broadcast_to(s, wanted[-1].shape))
    x, z, s = np.concatenate(read), np.concatenate(wanted), np.concatenate(carried)
    if len(x) < ROWS_PER_INPUT * x.shape[1]:
        return False
    moments = numerics.moments(x, z - s)
    # fewer samples than inputs: lean on the weights that were there
    lam = LAMBDA * max(1.0, 10.0 * x.shape[1] / len(x))
    offset = (z - s).mean(axis=0) - x.mean(axis=0) @ _through(graph, node, place, start)
    anchor = np.vstack([_through(graph, node, place, start), offset])
    solver = numerics.Ridge(moments.H, lam)
    solution = solver.solve(moments.G, anchor)
    end = shortcut.total if shortcut is not None else place.tensor
    if (shortcut is None or known) and _relu_follows(graph, after, end):
        for _ in range(2):
            now = x @ solution[:-1].astype(np.float32) + solution[-1].astype(np.float32) + s
            target = (numerics.relu_target(z, now) - s).astype(np.float32)
            products = np.vstack([x.T @ target, target.sum(axis=0, dtype=np.float64)])
            solution = solver.solve(products, anchor)
    _write(graph, node, place, weight, solution)
    return True


def _relu_follows(graph: Graph, runner: Runner, tensor: str) -> bool:
    readers = [n for n in graph.nodes.values() if tensor in n.input]
    return bool(readers) and tensor not in graph.outputs and all(n.op_type == "Relu" for n in readers)


def _as_matrix(node: onnx.NodeProto, weight: np.ndarray) -> np.ndarray:
    """(inputs, outputs)."""
    if node.op_type == "Conv":
        return weight.reshape(len(weight), -1).T
    return weight.T if node.op_type == "Gemm" and attr(node, "transB", 0) else weight


def _from_matrix(node: onnx.NodeProto, matrix: np.ndarray, like: np.ndarray) -> np.ndarray:
    if node.op_type == "Conv":
        return np.ascontiguousarray(matrix.T).reshape(like.shape).astype(like.dtype)
    turned = node.op_type == "Gemm" and attr(node, "transB", 0)
    return np.ascontiguousarray(matrix.T if turned else matrix).astype(like.dtype)


def _normalization(graph: Graph, place: Affine) -> tuple[str, np.ndarray, np.ndarray] | None:
    """The BatchNormalization a layer writes through: its key, and (slope, deviation) per channel."""
    if place.shift is None or place.shift[0][1] != 2 or place.shift[0][0] == place.key:
        return None
    key = place.shift[0][0]
    scale, var = graph.value((key, 1)), graph.value((key, 4))
    assert scale is not None and var is not None
    deviation = np.sqrt(var.astype(np.float64) + attr(graph.nodes[key], "epsilon", 1e-5))
    return key, scale / deviation, deviation


def _through(graph: Graph, node: onnx.NodeProto, place: Affine, matrix: np.ndarray) -> np.ndarray:
    """The weight as seen behind the BatchNormalization, in float64."""
    norm = _normalization(graph, place)
    return matrix.astype(np.float64) * (1.0 if norm is None else norm[1])


def _write(graph: Graph, node: onnx.NodeProto, place: Affine, weight: np.ndarray, solution: np.ndarray) -> None:
    """Put the solution into the layer; a BatchNormalization behind it is left as a shift."""
    matrix, bias = solution[:-1], solution[-1]
    graph.set_constant((place.key, 1), _from_matrix(node, matrix, weight))
    norm = _normalization(graph, place)
    if norm is not None:
        key, _, deviation = norm
        mean = graph.value((key, 3))
        own = graph.value((place.key, 2)) if len(node.input) > 2 and node.input[2] else None
        assert mean is not None
        graph.set_constant((key, 1), deviation.astype(weight.dtype))
        shift = bias + mean - (0 if own is None else own)
        graph.set_constant((key, 2), shift.astype(weight.dtype))
    elif place.shift is None:
        add_bias(graph, place.key, bias.astype(weight.dtype))
    else:
        use, _ = place.shift
        value = graph.value(use)
        assert value is not None
        graph.set_constant(use, bias.reshape(value.shape).astype(value.dtype))


def _positions(
    node: onnx.NodeProto, z: np.ndarray, axis: int, count: int, rng: np.random.Generator
) -> np.ndarray | None:
    """Which output positions of every image to look at, (images, p), or None for all."""
    area = z.size // z.shape[0] // z.shape[axis] if axis != 0 else 1
    return numerics.sample_positions(len(z), area, count, rng) if area > count else None


def _rows(z: np.ndarray, axis: int, positions: np.ndarray | None) -> np.ndarray:
    """(rows, channels) at the sampled positions."""
    flat = np.moveaxis(z, axis, -1).reshape(len(z), -1, z.shape[axis])
    if positions is not None:
        flat = flat[np.arange(len(z))[:, None], positions]
    return np.ascontiguousarray(flat.reshape(-1, z.shape[axis]), dtype=np.float32)


def _rows_read(node: onnx.NodeProto, x: np.ndarray, weight: np.ndarray, positions: np.ndarray | None) -> np.ndarray:
    """(rows, inputs): what the layer reads at the sampled positions."""
    if node.op_type != "Conv":
        return _rows(x, x.ndim - 1, positions)
    pads = attr(node, "pads", [0, 0, 0, 0])
    return numerics.patches(
        x,
        (weight.shape[2], weight.shape[3]),
        strides=tuple(attr(node, "strides", [1, 1])),
        pads=(pads[0], pads[1], pads[2], pads[3]),
        dilations=tuple(attr(node, "dilations", [1, 1])),
        positions=positions,
    )
