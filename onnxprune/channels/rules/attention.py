"""Rules of attention by heads."""

from __future__ import annotations

import numpy as np

from onnxprune.channels.rules.registry import Value, Walk, pin_all, rule
from onnxprune.channels.ties import Ids
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


@rule("RotaryEmbedding")
@rule("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(walk: Walk, x: Value, *rest: Value) -> Ids:
    """Turns pairs of a head's channels by an angle of their own. Heads on an axis of their own may go whole; in one
    axis with the channels, their number is an attribute."""
    pin_all(walk, "used as angles or positions", *rest)
    assert isinstance(x, np.ndarray)
    return walk.ties.whole(x, x.ndim - 1, "RotaryEmbedding turns the channels of a head in pairs")
