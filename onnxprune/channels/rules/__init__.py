"""One rule per operator family: which axes of its operands are the same channels.

A rule says only what is *the same*, what must stay *whole* and why; it computes nothing. To add an operator, look for
the family that it belongs to: usually it is one more line in `graph.operators`, or one more name in a decorator. An
operator without a rule keeps all its axes, with that as the reason.

Two things decide whether a channel may leave an axis. The operator must treat channels apart (a ReLU does, a
Softmax over channels does not), or it must contract them with weights that can leave too (a conv).
"""

from onnxprune.channels.rules import (
    attention,
    contraction,
    control,
    elementwise,
    fused,
    indexing,
    layout,
    linear,
    quantized,
    recurrent,
    statistics,
)
from onnxprune.channels.rules.registry import Value, Walk, apply, keep_whole, rule_of, walk_nodes, written_by_optimiser

__all__ = [
    "Value",
    "Walk",
    "apply",
    "attention",
    "contraction",
    "control",
    "elementwise",
    "fused",
    "indexing",
    "keep_whole",
    "layout",
    "linear",
    "quantized",
    "recurrent",
    "rule_of",
    "statistics",
    "walk_nodes",
    "written_by_optimiser",
]
