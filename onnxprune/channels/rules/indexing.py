"""Rules of what picks and puts by indices: along the axes that the indices count nothing is picked, all others pass.

Indices that lie along the channels as well (one for each) go with them; they are no operand of arithmetic, so no mask
is asked for.
"""

from __future__ import annotations

import numpy as np

from onnxprune.channels.rules.elementwise import meet
from onnxprune.channels.rules.registry import Value, Walk, pin_all, rule
from onnxprune.channels.ties import Ids, Param


@rule("TopK")
def top_k(walk: Walk, x: Value, count: Value) -> list[Ids]:
    if not isinstance(x, np.ndarray):
        return []
    pin_all(walk, "used as a number", count)
    x = walk.ties.whole(x, walk.attr("axis", -1), "TopK chooses along this axis")
    return [x] * len(walk.node.output)


@rule("GatherElements")
def gather_elements(walk: Walk, x: Value, indices: Value) -> Ids:
    if not isinstance(x, np.ndarray):
        return walk.dead()
    axis = walk.attr("axis", 0) % x.ndim
    for k in range(x.ndim):
        if k != axis and walk.dims(0)[k] != walk.dims(1)[k]:
            x = walk.ties.whole(x, k, "GatherElements picks from a part of this axis")
    return _elements(walk, axis, (x, indices), index=1)


@rule("ScatterElements", "Scatter")
def scatter_elements(walk: Walk, x: Value, indices: Value, updates: Value) -> Ids:
    op, rank = walk.node.op_type, len(walk.out())
    axis = walk.attr("axis", 0) % rank
    if any(walk.dims(0)[k] != walk.dims(1)[k] for k in range(rank) if k != axis):
        pin_all(walk, f"{op} puts into a part of it", x, indices, updates)
        return walk.dead()
    return _elements(walk, axis, (x, indices, updates), index=1)


@rule("Trilu", "Compress", "ReverseSequence")
def along_axes(walk: Walk, x: Value, *rest: Value) -> Ids:
    """What leaves out, or turns about, positions along some axes, which stay whole."""
    if not isinstance(x, np.ndarray):
        return walk.dead()
    op = walk.node.op_type
    pin_all(walk, f"used by {op} as numbers", *rest)
    flat = op == "Compress" and walk.attr("axis") is None
    named = [walk.attr("batch_axis", 1), walk.attr("time_axis", 0)]
    axes = [-2, -1] if op == "Trilu" else named if op == "ReverseSequence" else [walk.attr("axis", 0)]
    for axis in range(x.ndim) if flat else axes:
        x = walk.ties.whole(x, axis, f"{op} goes along this axis")
    return walk.dead(0, f"{op} of all axes at once") if flat else x


def _elements(walk: Walk, axis: int, values: tuple[Value, ...], index: int) -> Ids:
    """Operands that meet element by element along all axes but the one along which the indices count; `index`: the
    position of the indices."""
    out, why = walk.out(), f"{walk.node.op_type} goes by indices along this axis"
    operands = [
        (walk.ties.whole(v, axis, why), tuple(1 if k == axis else d for k, d in enumerate(out)))
        for v in values
        if isinstance(v, np.ndarray)
    ]
    params = [v for v in values if isinstance(v, Param)]
    if isinstance(by := values[index], Param):
        walk.ties.quantizers.add(by.use)
    return _meet(walk, operands, params)


@rule("GatherND")
def gather_nd(walk: Walk, x: Value, indices: Value) -> Ids:
    """Indices are tuples: the axes that they count are picked from, those behind pass."""
    pin_all(walk, "used as an index", indices)
    if not isinstance(x, np.ndarray):
        return walk.dead()
    counted = walk.attr("batch_dims", 0) + walk.dims(1)[-1]
    for k in range(counted):
        x = walk.ties.whole(x, k, "GatherND picks along this axis")
    return _lifted(x, x.ndim - counted, len(walk.out()))


@rule("ScatterND")
def scatter_nd(walk: Walk, x: Value, indices: Value, updates: Value) -> Ids:
    """Updates are what lies behind the axes that the indices count."""
    pin_all(walk, "used as an index", indices)
    out, behind = walk.out(), len(walk.out()) - walk.dims(1)[-1]
    operands = []
    for v in (x, updates):
        if isinstance(v, np.ndarray):
            for k in range(v.ndim - behind):
                v = walk.ties.whole(v, k, "ScatterND puts along this axis")
            dims = tuple(d if k >= len(out) - behind else 1 for k, d in enumerate(out))
            operands.append((_lifted(v, behind, len(out)), dims))
    return _meet(walk, operands, [v for v in (x, updates) if isinstance(v, Param)])


def _lifted(ids: Ids, last: int, rank: int) -> Ids:
    """Ids with another rank, which only the `last` axes carry."""
    return ids.reshape((1,) * (rank - last) + ids.shape[ids.ndim - last :])


def _meet(walk: Walk, operands: list[tuple[Ids, tuple[int, ...]]], params: list[Param]) -> Ids:
    """Activations and constants that meet along the last axes of the output."""
    if not operands:
        return walk.dead()
    out = walk.out()
    main = meet(walk, operands, [], out)
    carried = [k - len(out) for k, d in enumerate(main.shape) if d > 1]
    for p in params if carried else ():
        last = min(len(out), len(p.shape))
        walk.ties.same(main, _lifted(p.joint(carried), last, len(out)))
    return main
