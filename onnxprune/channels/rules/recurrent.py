"""Rules of recurrent layers: a hidden unit goes from every gate, of both directions, and from its own past."""

from __future__ import annotations

from onnxprune.channels.rules.registry import Value, Walk, pin_all, rule
from onnxprune.channels.ties import READS, WRITES, Ids, Param
from onnxprune.graph.operators import MICROSOFT


@rule("LSTM", "GRU", "RNN")
def recurrent(walk: Walk, *values: Value) -> list[Ids]:
    """Weights are (directions, gates · units, …) each."""
    return _stepwise(walk, *values)


@rule("DynamicQuantizeLSTM", domain=MICROSOFT)
def quantized_lstm(walk: Walk, *values: Value) -> list[Ids]:
    """Weights are (directions, …, gates · units) each, of integers; their scales and zero points come last."""
    quantized = {i: values[i] for i in range(8, min(12, len(values)))}
    zeros = [z for i in (9, 11) if (z := walk.value(i)) is not None]
    if len(zeros) < 2 or any((z != z.flat[0]).any() for z in zeros):
        pin_all(walk, "DynamicQuantizeLSTM with different zero points", *values)
        return [walk.dead(i) for i in range(len(walk.node.output))]
    found = _stepwise(walk, *values[:8], rows=2)
    for i, p in quantized.items():
        weight = values[1 if i < 10 else 2]
        if isinstance(p, Param) and isinstance(weight, Param) and len(p.shape) == 2:
            walk.ties.same(weight.axis(2, WRITES), p.axis(1))
            walk.ties.quantizers.add(p.use)
    return found


def _stepwise(
    walk: Walk,
    x: Value,
    w: Value,
    r: Value,
    b: Value = None,
    lengths: Value = None,
    *states: Value,
    rows: int = 1,
) -> list[Ids]:
    """h ← f(W x + R h + b) with gates one below the other in W, R and b; `states` are what h and the cell start with,
    and an LSTM's peepholes. Unit j of every gate is row j of its part of W, R and b, and column j of R.

    Axis 0 of the weights counts directions, `rows` is that of their rows, and b holds those of W and those of R.
    """
    op, rest = walk.node.op_type, (b, *states)
    if not (isinstance(x, Ids) and isinstance(w, Param) and isinstance(r, Param)) or walk.attr("layout", 0):
        why = f"{op} has weights that are computed at run time, reads a constant, or has its batch first"
        pin_all(walk, why, x, w, r, lengths, *rest)
        return [walk.dead(i, why) for i in range(len(walk.node.output))]
    ties, units = walk.ties, r.axis(3 - rows, READS)
    ties.same(walk.channels(x, 2), w.axis(3 - rows, READS, walk.node.input[0]))
    for weight in (w, r):
        ties.same(weight.axis(rows, WRITES).reshape(-1, len(units)), units)
    pin_all(walk, "used as lengths", lengths)
    for i, value in enumerate(rest):
        position = 3 if i == 0 else 4 + i
        if isinstance(value, Param):  # the states end in the units; of b and peepholes, each gate does
            ties.same(value.axis(-1).reshape(-1, len(units)), units)
        elif isinstance(value, Ids):
            ties.same(walk.channels(value, value.ndim - 1, position).reshape(-1, len(units)), units)
    return [walk.place(units, rank - 1, rank) for rank in (4, 3, 3)[: len(walk.node.output)]]
