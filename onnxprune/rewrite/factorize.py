"""Carry out factorisations: one layer becomes two, the factors fitted to what the network at hand lets it read.

The pruned, repaired network is the starting point: its layers are already the least squares answer to the original's
outputs, so the best factors under the covariance of what they read are the best answer of that rank (reduced-rank
regression). With samples, what rank takes away is then refitted as after a cut: the second factor by least squares to
the original's outputs through the ReLU behind, the first in turn with it (`rewrite.repair.refit`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.errors import PlanError
from onnxprune.graph.layers import Affine, affine, has_bias, is_add, lacks_bias, layers, normalization, shift_along
from onnxprune.graph.model import Graph
from onnxprune.graph.pairs import highest, kinds_of, pair_nodes, pair_sizes
from onnxprune.graph.shapes import observe
from onnxprune.measure.designs import Design, design_of, second_moments
from onnxprune.numerics import low_rank as lowrank
from onnxprune.plan import Factorize
from onnxprune.rewrite.repair.refit import THOROUGH, Effort, refit
from onnxprune.rewrite.repair.task import RepairTask
from onnxprune.rewrite.repair.together import with_room
from onnxprune.runtime.ports import Feeds

DEAD = 1e-12
"""A BatchNormalization's slope under which a channel is none."""


def factorize(
    graph: Graph,
    edits: Iterable[Factorize],
    feeds: Feeds,
    batches: Sequence[Feeds] = (),
    *,
    threads: int | None = None,
    seed: int = 0,
) -> Graph:
    """The graph, edited: those layers are made of two. Edits of the same node follow one another.

    Args:
        graph: the network.
        edits: which, and to what rank; a rank that the layer does not have (any more) is lowered to what it has.
        feeds: one run's inputs, for the sizes.
        batches: samples that say what the layers read; without any, the weights alone decide.
        threads: ORT threads.
        seed: of the sampled positions.

    Raises:
        UsageError: the model has no such layer, or it cannot become such a pair.
    """
    graph.settle()
    left = [replace(e, node=_now(graph, e.node)) for e in edits]
    while left:
        now = {e.node: e for e in reversed(left)}
        _round(graph.settle(), now, feeds, batches, threads, seed)
        done = set(map(id, now.values()))
        left = [e for e in left if id(e) not in done]
    return graph.settle()


def _now(graph: Graph, key: str) -> str:
    """The layer that had the name `key`: a repair hands a MatMul's name on to the Add that it puts behind it."""
    front = graph.producer.get(graph.nodes[key].input[0], "") if key in graph.nodes and is_add(graph, key) else ""
    return front if front and lacks_bias(graph.nodes[front]) else key


def refit_factorized(task: RepairTask, *, effort: Effort = THOROUGH) -> Graph:
    """The pruned network with its layers of low rank, refitted once more."""
    return refit(task, sizes=_sizes(task), effort=effort)


def with_room_for_factors(task: RepairTask) -> Graph:
    """A network as large as the outcome of that, whose values mean nothing."""
    return with_room(task, _sizes(task))


def _sizes(task: RepairTask) -> Mapping[str, tuple[int, ...]]:
    return observe(task.pruned.settle(), task.net.feeds).shapes


def _round(
    graph: Graph,
    edits: Mapping[str, Factorize],
    feeds: Feeds,
    batches: Sequence[Feeds],
    threads: int | None,
    seed: int,
) -> None:
    """One edit a node."""
    factorable(graph, edits.values())
    designs = {key: _layer(graph, e) for key, e in edits.items()}
    shapes = observe(graph, feeds).shapes
    H: Mapping[str, np.ndarray] = {}
    if batches:
        H = second_moments(graph.model, list(designs.values()), shapes, lambda _: batches, threads=threads, seed=seed)
    consumers = graph.consumers()
    places = {layer.key: affine(graph, layer, consumers, shapes) for layer in layers(graph, shapes)}
    for key, d in designs.items():
        _replace(graph, d, edits[key], H.get(key), places.get(key))


def factorable(graph: Graph, edits: Iterable[Factorize]) -> None:
    """Refuse edits that the model cannot carry out.

    Raises:
        UsageError: there is no such layer, or it cannot become such a pair.
    """
    sizes: dict[str, tuple[int, ...]] = {}
    for edit in edits:
        d = _layer(graph, edit)
        weight = graph.value(d.weight)
        assert weight is not None
        now = sizes.get(edit.node, weight.shape)
        if edit.kind not in kinds_of(graph.nodes[edit.node], now):
            raise PlanError(f"the plan factorizes {edit.node!r} ({d.op} {list(now)}) by {edit.kind!r}; it cannot be")
        sizes[edit.node] = pair_sizes(graph.nodes[edit.node], now, edit.kind, edit.rank)[1]


def _layer(graph: Graph, edit: Factorize) -> Design:
    design = design_of(graph, edit.node) if edit.node in graph.nodes else None
    if design is None:
        raise PlanError(f"the plan factorizes {edit.node!r}, which is no layer of the model with a weight of its own")
    return design


def split_of(design: Design, kind: str, W: np.ndarray, S: np.ndarray, most: int | None = None) -> lowrank.Split:
    """The factors of a layer's matrix under the covariance of what it reads.

    Args:
        design: the layer.
        kind: "channel", "spatial" or "matrix", see `Factorize`.
        W: (parts, inputs, outputs), its matrix.
        S: (parts, inputs, inputs), the covariance.
        most: ranks that are wanted at all; None: every one.
    """
    if kind == "spatial":
        assert design.conv is not None
        kernel = design.conv["kernel"]
        return lowrank.spatial_split(W, S, (kernel[0], kernel[1]), most)
    return lowrank.channel_split(W, S, most)


def _replace(graph: Graph, d: Design, edit: Factorize, H: np.ndarray | None, place: Affine | None) -> None:
    """Put the pair in the layer's place. What the layer wrote on average it still writes (bias correction)."""
    node, weight = graph.nodes[d.key], graph.value(d.weight)
    assert weight is not None
    rank = min(edit.rank, highest(node, weight.shape, edit.kind))
    norm = None if place is None else normalization(graph, place)
    slope = np.ones((d.parts, 1, d.outputs)) if norm is None else norm[1].reshape(d.parts, 1, -1)
    safe = np.where(np.abs(slope) > DEAD, slope, 1.0)
    S = np.stack([np.eye(d.inputs)] * d.parts) if H is None else lowrank.covariances(H)
    W = d.matrix(weight)
    split = split_of(d, edit.kind, W * safe, S, rank)
    left, right = split.factors(rank)
    right = right / safe
    bias = graph.value((d.key, 2)) if has_bias(node) else None
    if H is not None and place is not None:
        mean = H[:, :-1, -1:].transpose(0, 2, 1) / H[:, -1:, -1:]
        missing = (mean @ (W - split.product(rank) / safe) * slope).ravel()
        if place.shift is None or place.shift[0] == (d.key, 2):
            bias = (missing if bias is None else bias + missing.reshape(bias.shape)).astype(weight.dtype)
        else:
            (use, axis), value = place.shift, graph.value(place.shift[0])
            assert value is not None
            graph.set_constant(use, shift_along(value, np.ones(missing.size), missing, axis))
    sizes = pair_sizes(node, weight.shape, edit.kind, rank)
    turned = edit.kind == "matrix" and d.turned
    first, second = left[0], right[0].T if turned else right[0]
    if edit.kind != "matrix":
        first, second = left.transpose(0, 2, 1), right.transpose(0, 2, 1)
    middle = graph.fresh(f"{d.key}_low_rank")
    names = [
        graph.add_constant(f"{d.key}_factor", np.ascontiguousarray(v.reshape(size)).astype(weight.dtype), node.input[1])
        for v, size in zip((first, second), sizes, strict=True)
    ]
    head, tail = pair_nodes(node, weight.shape, edit.kind, names[0], middle, names[1])
    if bias is not None:
        del tail.input[2:]
        tail.input.append(graph.add_constant(f"{d.key}_bias", bias))
    own = graph.own(d.key)
    own.CopyFrom(head)
    graph.insert_after(d.key, tail)
