"""Rules of attention by heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.channels.rules.linear import tie_bias
from onnxprune.channels.rules.registry import Value, Walk, pin_all, rule
from onnxprune.channels.ties import READS, WRITES, Ids, Param
from onnxprune.graph.operators import MICROSOFT


@rule("Attention")
def attention(walk: Walk, q: Value, k: Value, v: Value, *rest: Value) -> Ids:
    """softmax(q kᵀ · scale) v, by heads (opset 23): q and k lose the same index of every head, v and the output
    lose theirs. The default scale counts the head's width: the cut writes the old one out."""
    why = "Attention with a cache, with outputs of its own, or of constants"
    plain = all(isinstance(t, np.ndarray) for t in (q, k, v)) and not any(walk.node.input[4:])
    if not plain or len(walk.node.output) > 1:
        pin_all(walk, why, q, k, v, *rest)
        return walk.dead(0, why)
    pin_all(walk, "used as a mask", *rest)
    assert isinstance(q, np.ndarray) and isinstance(k, np.ndarray) and isinstance(v, np.ndarray)
    flat, ties = q.ndim == 3, walk.ties
    heads = [walk.attr(f"{t}_num_heads", 1) if flat else 1 for t in ("q", "kv", "kv")]
    lines = [walk.channels(t, t.ndim - 1, i) for i, t in enumerate((q, k, v))]
    first = []
    for line, count in zip(lines, heads, strict=True):
        grid = line.reshape(count, -1)
        ties.same(grid, grid[:1])
        first.append(grid[0])
    ties.same(first[0], first[1])
    ties.reads[(walk.key, 0)] = (q.ndim - 1, lines[0])
    return walk.place(np.tile(first[2], heads[0]), len(walk.out()) - 1, len(walk.out()))


@rule("Attention", domain=MICROSOFT)
def packed_attention(walk: Walk, x: Value, w: Value, b: Value = None, mask: Value = None, *rest: Value) -> Ids:
    """Attention with the weights of q, k and v side by side, heads within each: whole heads go, of all three."""
    why = "Attention with a cache, with outputs of its own, or without constant weights"
    past, bias, *others = (*rest, None, None)
    plain = isinstance(x, np.ndarray) and isinstance(w, Param) and len(w.shape) == 2
    if not plain or any(v is not None for v in (past, *others)) or len(walk.node.output) > 1:
        pin_all(walk, why, x, w, b, mask, *rest)
        return walk.dead(0, why)
    assert isinstance(x, np.ndarray) and isinstance(w, Param)
    pin_all(walk, "used as a mask", mask)
    walk.ties.same(walk.channels(x, 2), w.axis(0, READS, walk.node.input[0]))
    columns = w.axis(1, WRITES)
    tie_bias(walk, b, columns)
    sizes = walk.attr("qkv_hidden_sizes") or [len(columns) // 3] * 3
    return _heads(walk, np.split(columns, np.cumsum(sizes)[:-1]), bias, 5)


@rule("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(
    walk: Walk, q: Value, k: Value = None, v: Value = None, b: Value = None, mask: Value = None, *rest: Value
) -> Ids:
    """Attention of three activations, heads within each or on an axis of their own, `b` for all three side by side:
    whole heads go."""
    why = "MultiHeadAttention of packed tensors or constants, with a cache or outputs of its own"
    bias, *others = (*rest, None)
    parts = [t for t in (q, k, v) if isinstance(t, np.ndarray) and t.ndim == 3 + (b is None and t.ndim == 4)]
    if len(parts) < 3 or any(t is not None for t in others) or len(walk.node.output) > 1:
        pin_all(walk, why, q, k, v, b, mask, *rest)
        return walk.dead(0, why)
    pin_all(walk, "used as a mask", mask)
    lines = [walk.channels(t, 2 if t.ndim == 3 else 1, i) for i, t in enumerate(parts)]
    tie_bias(walk, b, np.concatenate(lines))
    return _heads(walk, lines, bias, 5)


@rule("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(walk: Walk, q: Value, k: Value = None, v: Value = None, *rest: Value) -> list[Ids]:
    """Attention with several heads of queries for one of keys and values, apart or side by side: a head of keys goes
    with its queries, and from what is remembered of it."""
    remembered, count = rest[:2], walk.attr("kv_num_heads")
    if any(t is not None for t in rest[5:]) or not isinstance(q, np.ndarray) or isinstance(k, Param):
        why = "GroupQueryAttention with biased scores, or of constants"
        pin_all(walk, why, q, k, v, *rest)
        return [walk.dead(i, why) for i in range(len(walk.node.output))]
    pin_all(walk, "used as lengths, angles or positions", *rest[2:])
    if k is None:
        width = walk.attr("num_heads") // count
        grid = walk.channels(q, 2).reshape(width * count + 2 * count, -1)
        lines = np.split(grid, [width * count, (width + 1) * count])
    else:
        lines = [walk.channels(t, 2, i) for i, t in enumerate((q, k, v)) if isinstance(t, np.ndarray)]
    heads = lines[1].reshape(count, -1)[:, 0]
    for line in lines:
        walk.ties.same(line.reshape(count, -1), heads[:, None])
    for i, t in enumerate(remembered, 3):
        if t is not None and walk.dims(i)[1] == count:
            walk.ties.same(heads, t.axis(1) if isinstance(t, Param) else walk.channels(t, 1, i))
    present = [walk.place(heads, 1, 4) for _ in walk.node.output[1:]]
    return [walk.place(np.repeat(heads, walk.out()[-1] // count), 2, 3), *present]


def _heads(walk: Walk, lines: Sequence[Ids], bias: Value, i: int) -> Ids:
    """Tie q, k and v, (heads · channels,) each, by heads; the ids of the output. `bias` is added to the scores, and is
    input i."""
    count, rank = walk.attr("num_heads"), len(walk.out())
    heads = lines[0].reshape(count, -1)[:, 0]
    for line in lines:
        walk.ties.same(line.reshape(count, -1), heads[:, None])
    if bias is not None and walk.dims(i)[1] == count:
        own = bias.axis(1) if isinstance(bias, Param) else walk.channels(bias, 1, i)
        walk.ties.same(own, heads)
    else:
        pin_all(walk, "used as a mask", bias)
    return walk.place(np.repeat(heads, walk.out()[-1] // count), rank - 1, rank)


@rule("RotaryEmbedding")
@rule("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(walk: Walk, x: Value, *rest: Value) -> Ids:
    """Turns pairs of a head's channels by an angle of their own: heads go whole, from an axis of their own or, in ONNX
    Runtime's own operator, from one that they share with the channels."""
    pin_all(walk, "used as angles or positions", *rest)
    assert isinstance(x, np.ndarray)
    heads = walk.attr("num_heads", 0)
    if x.ndim == 3 and walk.node.domain == MICROSOFT:  # without a number, the caches tell: one angle a pair
        line = walk.channels(x, 2)
        grid = line.reshape(heads or len(line) // (2 * walk.dims(2)[-1]), -1)
        walk.ties.same(grid, grid[:, :1])
        return walk.place(line, 2, 3)
    return walk.ties.whole(x, x.ndim - 1, "RotaryEmbedding turns the channels of a head in pairs")
