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
    """Attention of three activations, heads within each, `b` for all three side by side: whole heads go."""
    why = "MultiHeadAttention of packed tensors or constants, with a cache or outputs of its own"
    bias, *others = (*rest, None)
    parts = [t for t in (q, k, v) if isinstance(t, np.ndarray) and t.ndim == 3]
    if len(parts) < 3 or any(t is not None for t in others) or len(walk.node.output) > 1:
        pin_all(walk, why, q, k, v, b, mask, *rest)
        return walk.dead(0, why)
    pin_all(walk, "used as a mask", mask)
    lines = [walk.channels(t, 2, i) for i, t in enumerate(parts)]
    tie_bias(walk, b, np.concatenate(lines))
    return _heads(walk, lines, bias, 5)


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
    """Turns pairs of a head's channels by an angle of their own. Heads on an axis of their own may go whole; in one
    axis with the channels, their number is an attribute."""
    pin_all(walk, "used as angles or positions", *rest)
    assert isinstance(x, np.ndarray)
    return walk.ties.whole(x, x.ndim - 1, "RotaryEmbedding turns the channels of a head in pairs")
