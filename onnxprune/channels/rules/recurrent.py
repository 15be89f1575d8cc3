"""Rules of recurrent layers: a hidden unit goes from every gate, of both directions, and from its own past."""

from __future__ import annotations

from onnxprune.channels.rules.registry import Value, Walk, pin_all, rule
from onnxprune.channels.ties import READS, WRITES, Ids, Param


@rule("LSTM", "GRU", "RNN")
def recurrent(
    walk: Walk, x: Value, w: Value, r: Value, b: Value = None, lengths: Value = None, *states: Value
) -> list[Ids]:
    """h ← f(W x + R h + b) with gates one below the other in W, R and b; `states` are what h and the cell start with,
    and an LSTM's peepholes. Unit j of every gate is row j of its part of W, R and b, and column j of R.

    Weights are (directions, gates · units, …) each, and b holds those of W and those of R.
    """
    op, rest = walk.node.op_type, (b, *states)
    if not (isinstance(x, Ids) and isinstance(w, Param) and isinstance(r, Param)) or walk.attr("layout", 0):
        why = f"{op} has weights that are computed at run time, reads a constant, or has its batch first"
        pin_all(walk, why, x, w, r, lengths, *rest)
        return [walk.dead(i, why) for i in range(len(walk.node.output))]
    ties, units = walk.ties, r.axis(2, READS)
    ties.same(walk.channels(x, 2), w.axis(2, READS, walk.node.input[0]))
    for weight in (w, r):
        ties.same(weight.axis(1, WRITES).reshape(-1, len(units)), units)
    pin_all(walk, "used as lengths", lengths)
    for i, value in enumerate(rest):
        position = 3 if i == 0 else 4 + i
        if isinstance(value, Param):  # the states end in the units; of b and peepholes, each gate does
            ties.same(value.axis(-1).reshape(-1, len(units)), units)
        elif isinstance(value, Ids):
            ties.same(walk.channels(value, value.ndim - 1, position).reshape(-1, len(units)), units)
    return [walk.place(units, rank - 1, rank) for rank in (4, 3, 3)[: len(walk.node.output)]]
