"""Constants that a file stores in a narrower type than they are read in: a new value goes back into that type.

Weights in half precision behind a Cast are read as float32; written as float32, a smaller network would be the larger
file. So a new value takes the way back, through what hands it on, turns it or casts it, and what lies on the way stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx

from onnxprune.protobuf.nodes import DEFAULT_DOMAINS, attr

if TYPE_CHECKING:
    from onnxprune.graph.model import Graph

WORTH = 64
"""Bytes that a Cast of its own takes, about."""
NUMBERED = 6
"""The opset from which on a Cast gives its type as a number."""


def narrower(
    graph: Graph, name: str, value: np.ndarray, free: Callable[[str], bool], *, exact: bool = False
) -> dict[str, np.ndarray]:
    """`name` with its value, and what the constants that it is made from must be for that, as far back as to one that
    the file stores in a narrower type, the last; `name` alone where there is none.

    Args:
        graph: the network.
        name: the constant that is read.
        value: its new value.
        free: whether a constant on the way serves nothing else.
        exact: whether the value must survive; else it may be rounded to the narrower type.
    """
    steps, narrowest = {name: value}, 1
    now, back = name, value
    while (node := graph.nodes.get(graph.producer.get(now, ""))) is not None:
        before = graph.constant(node.input[0]) if node.input and node.input[0] else None
        if before is None or not free(node.input[0]) or node.domain not in DEFAULT_DOMAINS:
            break
        source = _before(node, back, before.dtype, exact)
        if source is None:
            break
        now, back = node.input[0], source
        steps[now] = back
        if back.nbytes < value.nbytes and back.nbytes <= list(steps.values())[narrowest - 1].nbytes:
            narrowest = len(steps)
    return dict(list(steps.items())[:narrowest])


def stored_type(graph: Graph, name: str, value: np.ndarray, *, exact: bool = False) -> np.ndarray | None:
    """The value in the narrowest type that `name` has on its way from the file; None where that saves nothing."""
    found = list(narrower(graph, name, value, lambda _: True, exact=exact).values())[-1]
    saves = value.nbytes - found.nbytes >= WORTH and graph.opset >= NUMBERED
    return value.astype(found.dtype) if saves else None


def _before(node: onnx.NodeProto, value: np.ndarray, dtype: np.dtype, exact: bool) -> np.ndarray | None:
    """What a node must read to write the value; None where there is no such thing, or it is not known."""
    undo = UNDOING.get(node.op_type)
    return None if undo is None else undo(node, value, dtype, exact)


def _handed_on(node: onnx.NodeProto, value: np.ndarray, dtype: np.dtype, exact: bool) -> np.ndarray:
    return value


def _turned(node: onnx.NodeProto, value: np.ndarray, dtype: np.dtype, exact: bool) -> np.ndarray:
    perm = attr(node, "perm")
    return value.transpose() if perm is None else value.transpose(np.argsort(perm))


def _cast(node: onnx.NodeProto, value: np.ndarray, dtype: np.dtype, exact: bool) -> np.ndarray | None:
    if dtype.kind not in "fV":
        exact = True  # a whole number is not rounded to
    with np.errstate(all="ignore"):
        found = value.astype(dtype)
        again = found.astype(value.dtype)
    kept = np.array_equal(again, value) if exact else bool(np.isfinite(again).all())
    return found if kept else None


UNDOING: Mapping[str, Callable[[onnx.NodeProto, np.ndarray, np.dtype, bool], np.ndarray | None]] = {
    "Cast": _cast,
    "CastLike": _cast,
    "Identity": _handed_on,
    "Transpose": _turned,
}
"""Operator -> what it must have read."""
