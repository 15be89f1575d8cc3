"""Rules of what moves indices about: numpy is the index map."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.channels.rules.elementwise import lift
from onnxprune.channels.rules.registry import Value, Walk, pin_all, rule
from onnxprune.channels.ties import LIMIT, WRITES, Ids, Param
from onnxprune.graph import evaluate
from onnxprune.graph.behaviour import padding


@rule("Transpose")
def transpose(walk: Walk, x: Ids | Param) -> Ids | Param:
    return x.turned(walk.attr("perm")) if isinstance(x, Param) else np.transpose(x, walk.attr("perm"))


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(walk: Walk, x: Value, *rest: Value) -> Ids:
    if not isinstance(x, np.ndarray):
        return walk.dead()
    before, after = walk.dims(0), walk.out()
    if x.size == 1:
        return x.reshape((1,) * len(after))
    if 0 in before:
        walk.fixed(x, "an empty tensor is reshaped")
        return walk.dead()
    full, target = list(x.shape), [1] * len(after)
    for ins, outs in blocks(before, after):
        if any(x.shape[k] > 1 for k in ins):
            for k in ins:
                full[k] = before[k]
            for k in outs:
                target[k] = after[k]
    if math.prod(full) > LIMIT:
        return _spread_too_wide(walk, x, full, target)
    ids = np.broadcast_to(x, full).reshape(target)
    for k in range(ids.ndim):  # an axis along which the ids repeat carries none
        if ids.shape[k] > 1 and ids.size > ids.shape[k] and (ids == ids.take([0], k)).all():
            ids = ids.take([0], k)
    walk.ties.joints.append(ids)
    return ids


def _spread_too_wide(walk: Walk, x: Ids, full: list[int], target: list[int]) -> Ids:
    walk.fixed(x, f"{walk.node.op_type} mixes channels with {math.prod(full) // x.size} positions")
    return walk.dead()


def blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The least runs of axes that a reshape turns into each other: [(axes before, axes after), …]."""
    found: list[tuple[list[int], list[int]]] = []
    i, j = 0, 0
    while i < len(before) or j < len(after):
        ins: list[int] = []
        outs: list[int] = []
        p = q = 1
        while not (ins or outs) or p != q:
            if (p <= q and i < len(before)) or j >= len(after):
                p *= before[i]
                ins.append(i)
                i += 1
            else:
                q *= after[j]
                outs.append(j)
                j += 1
        found.append((ins, outs))
    # axes of size 1 fall into blocks of their own or at the head of the next: both are right
    return found


@rule("Concat")
def concat(walk: Walk, *values: Value, at: Sequence[int] | None = None) -> Ids:
    """`at`: the input positions of the values, when not the first ones."""
    ties, rank = walk.ties, len(walk.out())
    axis = walk.attr("axis", 1) % rank
    why = "Concat joins it with an axis that cannot be cut"
    carrying = {k for v in values if isinstance(v, np.ndarray) for k in range(rank) if v.shape[k] > 1}
    ids, sizes = [], []
    for i, v in zip(range(len(values)) if at is None else at, values, strict=True):
        if v is None or walk.dims(i)[axis] == 0:
            continue
        sizes.append(walk.dims(i)[axis])
        if isinstance(v, Param):
            several = any(v.shape[k] > 1 for k in carrying)
            ids.append(v.joint(sorted(carrying)) if several else ties.dead_end(rank, "constant of a single channel"))
        else:
            ids.append(v)
    if not ids:
        return walk.dead()
    for k in range(rank):
        if k != axis and walk.out()[k] > 1:
            stiff = [v for v in ids if v.shape[k] == 1]
            if stiff:
                ids = [ties.whole(v, k, why, stiff[0]) for v in ids]
    if all(v.shape[axis] == 1 for v in ids):  # joined along positions: the channels of all are the same
        return ids[0] if all(v.size == 1 for v in ids) else ties.same(*ids)
    wide = [
        np.broadcast_to(v, [s if k == axis else d for k, d in enumerate(v.shape)])
        for v, s in zip(ids, sizes, strict=True)
    ]
    joined = np.concatenate(wide, axis)
    ties.joints.append(joined)
    return joined


@rule("Split")
def split(walk: Walk, x: Value, *rest: Value) -> list[Ids]:
    if not isinstance(x, np.ndarray):
        return []
    axis = walk.attr("axis", 0) % x.ndim
    if x.shape[axis] == 1:
        return [x] * len(walk.node.output)
    sizes = [walk.out(i)[axis] for i in range(len(walk.node.output))]
    return np.split(x, np.cumsum(sizes)[:-1], axis)


@rule("Slice")
def slice_(walk: Walk, x: Value, *rest: Value) -> Ids:
    if not isinstance(x, np.ndarray):
        return walk.dead()
    given = [walk.value(i) for i in range(1, len(walk.node.input))]
    missing = any(v is None and walk.node.input[i + 1] for i, v in enumerate(given))
    if missing:
        return _resized(walk, x, "Slice has bounds that are computed from data")
    attrs = {k: walk.attr(k) for k in ("starts", "ends", "axes") if walk.attr(k) is not None}
    cut = evaluate.slices(attrs, walk.dims(0), *given)
    for k, piece in enumerate(cut):
        if x.shape[k] == 1 or piece == slice(None):
            continue
        if (piece.step or 1) != 1:
            x = walk.ties.whole(x, k, "Slice takes every n-th or reverses")
        elif walk.out()[k] == 1 and x.size > x.shape[k]:  # q, k or v of a packed tensor
            x = walk.ties.whole(x, k, "Slice takes one of them")
        else:
            x = x[(slice(None),) * k + (piece,)]
            if x.shape[k] == 1:
                walk.fixed(x, "Slice takes a single channel out, which must stay")
    return x


def _resized(walk: Walk, x: Ids, why: str, out: int = 0) -> Ids:
    """Keep whole every axis whose size changes; without the same rank, every axis."""
    before, after = walk.dims(0), walk.out(out)
    if len(before) != len(after):
        walk.fixed(x, why)
        return walk.dead(out, why)
    for k in range(x.ndim):
        if before[k] != after[k]:
            x = walk.ties.whole(x, k, why)
    return x


@rule("Gather")
def gather(walk: Walk, x: Value, indices: Value) -> Ids:
    axis, index = walk.attr("axis", 0), walk.value(1)
    if isinstance(x, Param):  # an embedding: its columns are channels
        if isinstance(indices, Param) or len(x.shape) != 2 or axis % 2 != 0:
            pin_all(walk, "Gather of a constant", x)
            return walk.dead()
        rank = len(walk.out())
        walk.ties.pin(x.axis(0, WRITES), "rows of an embedding are looked up by the model's input", 0)
        return walk.place(x.axis(1, WRITES), rank - 1, rank)
    if not isinstance(x, np.ndarray):
        return walk.dead()
    axis %= x.ndim
    pin_all(walk, "used as an index", indices)
    shape = np.shape(index) if index is not None else walk.dims(1)
    if x.shape[axis] > 1 and index is not None and len(shape) == 1 and x.size == x.shape[axis]:
        return x.take(np.asarray(index), axis)  # picks or reorders channels: the index is mended at the cut
    x = walk.ties.whole(x, axis, "Gather picks along this axis")
    return x.reshape(x.shape[:axis] + (1,) * len(shape) + x.shape[axis + 1 :])


@rule("ConstantOfShape")
def _filled(walk: Walk, *shape: Value) -> Ids:
    """One number everywhere (a first hidden state): it has as many channels as whatever it meets."""
    out = walk.out()
    return _as_many(walk, [d if len(out) <= 3 or k == 1 else 1 for k, d in enumerate(out)], walk.dead)


def _as_many(walk: Walk, carried: list[int], otherwise: Callable[[int, str], Ids]) -> Ids:
    """New ids along these axes, each with as many channels as whatever it meets; `otherwise` where they would be too
    many, or there is none."""
    if not 1 < math.prod(carried) <= FILLED or len(carried) < 2:
        return otherwise(0, "a constant")
    return walk.ties.filler(carried)


FILLED = 1 << 16
"""Largest id array of a constant that is one number everywhere."""


@rule("Expand")
def expand(walk: Walk, x: Value, shape: Value) -> Ids:
    if isinstance(x, Param):  # a class token, one for every image
        wide = [k for k, d in enumerate(x.shape) if d > 1]
        if not wide:
            return _filled(walk)
        if math.prod(x.shape) > LIMIT:
            return walk.dead(0, "Expand of a constant")
        x = x.joint(wide)
    return _repeated(walk, lift(x, len(walk.out()))) if isinstance(x, np.ndarray) else walk.dead()


def _repeated(walk: Walk, x: Ids) -> Ids:
    """What carries no channels, repeated along some axes (a norm, indices): as many times as whatever it meets has."""
    name, out = walk.node.output[0], walk.out()
    before = (1,) * (len(out) - len(walk.dims(0))) + walk.dims(0)
    if x.size > 1 or name in walk.observed.derived:
        return x
    walk.fixed(x, "repeated along other axes")
    repeated = [b if a == 1 else 1 for a, b in zip(before, out, strict=True)]
    if math.prod(repeated) > FILLED:
        repeated = [d if k == 1 else 1 for k, d in enumerate(repeated)]
    return _as_many(walk, repeated, lambda i, why: x)


@rule("Tile")
def tile(walk: Walk, x: Value, repeats: Value) -> Ids:
    if not isinstance(x, np.ndarray):
        return walk.dead()
    times = [b // a if a else 1 for a, b in zip(walk.dims(0), walk.out(), strict=True)]
    return _repeated(walk, np.tile(x, [n if x.shape[k] > 1 else 1 for k, n in enumerate(times)]))


@rule("Pad")
def pad(walk: Walk, x: Value, *rest: Value) -> Ids:
    """Where it adds channels they have ids of their own, so a channel may go on either side of the border; where it
    takes some off it is a Slice."""
    if not isinstance(x, np.ndarray):
        return walk.dead()
    pin_all(walk, "used as padding", *rest)
    mode, listed = walk.attr("mode", "constant"), padding(walk.node, x.ndim, walk.value)
    if listed is None:
        return _resized(walk, x, "Pad adds what is computed from data")
    sides = {k: ends for k, ends in listed.items() if any(ends)}
    for k, (before, after) in sides.items():
        if mode != "constant":
            x = walk.ties.whole(x, k, f"Pad repeats what lies along this axis (mode {mode})")
            continue
        if x.size == 1 and walk.dims(0)[k] > 1 and len(sides) == 1 and walk.ties.pinned(x):
            x = np.broadcast_to(x, [d if i == k else 1 for i, d in enumerate(walk.dims(0))])  # those all stay
        if x.shape[k] == 1 and walk.dims(0)[k] > 1:
            continue
        if x.size // x.shape[k] * walk.out()[k] > LIMIT:
            x = walk.ties.whole(x, k, "Pad adds too many channels along this axis")
            continue
        x = x[(slice(None),) * k + (slice(max(0, -before), x.shape[k] + min(0, after)),)]
        if x.shape[k] == 1 and min(before, after) < 0:
            walk.fixed(x, "Pad leaves a single channel, which must stay")
        frame = [walk.ties.fresh(n * x.size // x.shape[k]) for n in (max(0, before), max(0, after))]
        shape = [-1 if i == k else d for i, d in enumerate(x.shape)]
        x = np.concatenate([frame[0].reshape(shape), x, frame[1].reshape(shape)], k)
    return x


@rule("Resize", "Upsample", "CenterCropPad")
def resize(walk: Walk, x: Value, *rest: Value) -> Ids:
    return _resized(walk, x, "resized along this axis") if isinstance(x, np.ndarray) else walk.dead()


@rule("DepthToSpace")
def depth_to_space(walk: Walk, x: Ids) -> Ids:
    r, ids = walk.attr("blocksize"), walk.channels(x, 1)
    if walk.attr("mode", "DCR") == "DCR":
        grid = ids.reshape(r * r, -1)
        walk.ties.same(grid, grid[:1])
        return walk.place(grid[0], 1, 4)
    grid = ids.reshape(-1, r * r)
    walk.ties.same(grid, grid[:, :1])
    return walk.place(grid[:, 0], 1, 4)


@rule("SpaceToDepth")
def space_to_depth(walk: Walk, x: Ids) -> Ids:
    square, ids = walk.attr("blocksize") ** 2, walk.channels(x, 1)
    return walk.place(np.tile(ids, square) if walk.attr("mode", "DCR") == "DCR" else np.repeat(ids, square), 1, 4)


@rule("Col2Im")
def col2im(walk: Walk, x: Ids, *rest: Value) -> Ids:
    """Channels with all the places of a block each, set out as an image."""
    pin_all(walk, "used as sizes", *rest)
    ids = walk.channels(x, 1)
    grid = ids.reshape(walk.out()[1], -1)
    walk.ties.same(grid, grid[:, :1])
    return walk.place(grid[:, 0], 1, len(walk.out()))


@rule("Shape", "Size")
def shape(walk: Walk, x: Value) -> Ids:
    return walk.dead(0, "a size")
