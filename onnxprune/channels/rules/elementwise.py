"""Rules of what treats every element alike, and what operands that meet element by element have in common."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from onnxprune.channels.rules.registry import Value, Walk, pin_all, rule
from onnxprune.channels.ties import LIMIT, Ids, Param
from onnxprune.graph.operators import BROADCAST, UNARY


@rule("CastLike")
def cast_like(walk: Walk, x: Value, like: Value = None) -> Value:
    return x


@rule(UNARY)
def unary(walk: Walk, x: Value, *bounds: Value) -> list[Ids]:
    pin_all(walk, f"{walk.node.op_type} bound computed at run time", *bounds)
    return [x] * len(walk.node.output) if isinstance(x, np.ndarray) else []


@rule(BROADCAST)
def elementwise(walk: Walk, *values: Value, at: Sequence[int] | None = None) -> Ids:
    """`at`: the input positions of the values, when not the first ones."""
    rank = len(walk.out())
    places = range(len(values)) if at is None else at
    operands = [
        (lift(v, rank), lift_dims(walk.dims(i), rank))
        for i, v in zip(places, values, strict=True)
        if isinstance(v, np.ndarray)
    ]
    params = [v for v in values if isinstance(v, Param)]
    return meet(walk, operands, params, walk.out()) if operands else walk.dead()


def lift(ids: Ids, rank: int) -> Ids:
    return ids.reshape((1,) * (rank - ids.ndim) + ids.shape)


def lift_dims(dims: tuple[int, ...], rank: int) -> tuple[int, ...]:
    return (1,) * (rank - len(dims)) + tuple(dims)


def meet(walk: Walk, operands: list[tuple[Ids, tuple[int, ...]]], params: list[Param], out: tuple[int, ...]) -> Ids:
    """Operands meet element by element, broadcasting: shared axes are the same channels.

    An operand of true size 1 on an axis says nothing about it. One that has the axis in full but carries no
    ids there keeps it whole for all.
    """
    ties, rank = walk.ties, len(out)
    why = f"{walk.node.op_type} joins it with an axis that cannot be cut"
    ids = [v for v, _ in operands]
    full = [[out[k] > 1 and dims[k] == out[k] for k in range(rank)] for _, dims in operands]
    for k in range(rank):
        stiff = [i for i in range(len(ids)) if full[i][k] and ids[i].shape[k] == 1]
        if stiff:
            for i in range(len(ids)):
                ids[i] = ties.whole(ids[i], k, why, ids[stiff[0]])
    carriers = sorted(
        (i for i in range(len(ids)) if ids[i].size > 1), key=lambda i: (-_carried(ids[i]), ties.filled(ids[i]))
    )
    if not carriers:
        made = _spread(walk, [dims for _, dims in operands], params, out)
        return max(ids, key=lambda v: v.size) if made is None else made
    main = ids[carriers[0]]
    for i in carriers[1:]:
        other = ids[i]
        if [d > 1 for d in other.shape] == [d > 1 for d in main.shape]:
            ties.same(main, other)
            continue
        lacking = tuple(k for k in range(rank) if main.shape[k] > 1 and other.shape[k] == 1)
        if np.array_equal(other, main[tuple(slice(1) if k in lacking else slice(None) for k in range(rank))]):
            ties.same(main, other)  # a statistic of its own groups of channels: whole groups go
            continue
        # the other carries only some of the axes, or different ones: what it carries stays whole
        walk.fixed(other, f"{walk.node.op_type} joins channels with channels on another axis (attention over channels)")
        for k in range(rank):
            if other.shape[k] > 1:
                main = ties.whole(main, k, why)
    for p in params:
        dims = lift_dims(p.shape, rank)
        shared = [k for k in range(rank) if main.shape[k] > 1 and dims[k] == out[k]]
        if len(shared) == sum(d > 1 for d in main.shape):
            own = p.joint([k - rank + len(p.shape) for k in shared])
            ties.same(main, lift(own, rank))
        else:
            for k in shared:
                main = ties.whole(main, k, why)
    return main


def _spread(walk: Walk, dims: Sequence[tuple[int, ...]], params: Sequence[Param], out: tuple[int, ...]) -> Ids | None:
    """The ids that a number gets from constants that it meets (a scale chosen at run time, times one a channel)."""
    rank = len(out)
    shapes = [lift_dims(p.shape, rank) for p in params]
    axes = [k for k in range(rank) if out[k] > 1 and any(s[k] == out[k] for s in shapes)]
    if any(prod(d) > 1 for d in dims) or not axes or prod(out) > LIMIT:
        return None
    full = [p for p, s in zip(params, shapes, strict=True) if all(s[k] == out[k] for k in axes)]
    if len(full) < sum(prod(s) > 1 for s in shapes):
        return None
    return walk.ties.same(*(lift(p.joint([k - rank for k in axes]), rank) for p in full))


def _carried(ids: Ids) -> int:
    return sum(d > 1 for d in ids.shape)
