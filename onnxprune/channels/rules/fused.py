"""Rules of what ONNX Runtime's optimiser has made one of several, where its parts have no rule of their own."""

from __future__ import annotations

from onnxprune.channels.rules.elementwise import elementwise
from onnxprune.channels.rules.registry import Value, Walk, rule
from onnxprune.channels.rules.statistics import normalized
from onnxprune.channels.ties import Ids
from onnxprune.graph.operators import MICROSOFT


@rule("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_norm(
    walk: Walk, x: Value, skip: Value, gamma: Value, beta: Value = None, bias: Value = None
) -> list[Ids]:
    """A LayerNormalization of a sum, which is the last output."""
    return _normalized_sum(walk, (x, skip, bias), (gamma, beta), (0, 1, 4))


@rule("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_rms_norm(walk: Walk, x: Value, skip: Value, gamma: Value, bias: Value = None) -> list[Ids]:
    return _normalized_sum(walk, (x, skip, bias), (gamma,), (0, 1, 3))


def _normalized_sum(walk: Walk, values: tuple[Value, ...], params: tuple[Value, ...], at: tuple[int, ...]) -> list[Ids]:
    """`at`: the input positions of what is added up."""
    total = elementwise(walk, *values, at=at)
    out = normalized(walk, total, [total.ndim - 1], *params)
    empty = [walk.dead(k) for k in (1, 2) if k < len(walk.node.output)]
    return [out, *empty, total][: len(walk.node.output)]
