"""Rules of what normalizes, pools and reduces: whether a channel may leave an axis that statistics go over."""

from __future__ import annotations

import numpy as np

from onnxprune.channels.rules.elementwise import meet
from onnxprune.channels.rules.linear import tie_bias
from onnxprune.channels.rules.registry import Value, Walk, pin_all, rule
from onnxprune.channels.ties import Ids, Param
from onnxprune.graph import operators
from onnxprune.graph.facts import Operator
from onnxprune.graph.operators import MIXING, POOL, REDUCTION


@rule("BatchNormalization")
def batch_norm(walk: Walk, x: Value, *params: Value) -> list[Ids]:
    if not isinstance(x, np.ndarray):
        return []
    channels = walk.channels(x, 1)
    for p in params:
        tie_bias(walk, p, channels)
    return [walk.place(channels, 1, x.ndim)]


@rule("InstanceNormalization")
def instance_norm(walk: Walk, x: Value, *params: Value) -> Ids:
    return batch_norm(walk, x, *params)[0]


@rule("GroupNormalization")
def group_norm(walk: Walk, x: Value, scale: Value, bias: Value) -> Ids:
    if not isinstance(x, np.ndarray):
        return walk.dead()
    channels, groups = walk.channels(x, 1), walk.attr("num_groups")
    grid = channels.reshape(groups, -1)
    if walk.statistics():
        walk.ties.same(grid, grid[:1])  # index j of every group
    else:
        walk.ties.same(grid, grid[:, :1])  # whole groups: the statistics of the others do not change
    for p in (scale, bias):
        if isinstance(p, Param):
            own = p.axis(0)
            walk.ties.same(own, channels if len(own) == len(channels) else grid[:, 0])
    return walk.place(channels, 1, x.ndim)


@rule(MIXING)
def mixes(walk: Walk, x: Value, *params: Value) -> list[Ids]:
    """Operators that mix the elements of an axis: it stays whole."""
    op, line = walk.node.op_type, operators.of(walk.node)
    if not isinstance(x, np.ndarray):
        return []
    default = 1 if op in ("Softmax", "LogSoftmax", "Hardmax") and walk.graph.opset < 13 else -1
    axis = walk.attr("axis", default)
    axes = [axis % x.ndim]
    if op in ("LayerNormalization", "RMSNormalization") or default == 1:
        axes = list(range(axis % x.ndim, x.ndim))
    elif op == "MeanVarianceNormalization":
        axes = [a % x.ndim for a in walk.attr("axes", [0, 2, 3])]
    elif op in ("CumSum", "CumProd"):
        given = walk.value(1)
        axes = list(range(x.ndim)) if given is None else [int(given.reshape(-1)[0]) % x.ndim]
    if line.statistics and any(x.shape[a] > 1 for a in axes) and walk.statistics():
        return [meet(walk, [(x, walk.dims(0))], [p for p in params if isinstance(p, Param)], walk.out())]
    for a in axes:
        x = walk.ties.whole(x, a, f"{op} mixes the channels of this axis{_remedy(line)}")
    return [x]


def _remedy(line: Operator) -> str:
    return " - --prune-statistics cuts it, inexactly" if line.statistics else ""


@rule("LRN")
def lrn(walk: Walk, x: Ids) -> Ids:
    return walk.ties.whole(x, 1, "LRN mixes neighbouring channels")


@rule(POOL)
def pool(walk: Walk, x: Value) -> list[Ids]:
    if not isinstance(x, np.ndarray):
        return []
    for a in range(2, x.ndim):
        x = walk.ties.whole(x, a, "pooled over")
    if len(walk.node.output) > 1 and walk.node.output[1]:
        x = walk.ties.whole(x, 1, "MaxPool hands on where in the whole tensor each maximum was")
    return [x]


@rule("RoiAlign", "MaxRoiPool")
def roi_align(walk: Walk, x: Value, *rest: Value) -> Ids:
    pin_all(walk, "used as regions", *rest)
    return walk.place(walk.channels(x, 1), 1, 4) if isinstance(x, np.ndarray) else walk.dead()


@rule(REDUCTION, "ArgMax", "ArgMin")
def reduction(walk: Walk, x: Value, given: Value = None) -> Ids:
    if not isinstance(x, np.ndarray):
        return walk.dead()
    op, line = walk.node.op_type, operators.of(walk.node)
    if op in ("ArgMax", "ArgMin"):
        axes = [walk.attr("axis", 0)]
    elif isinstance(given, np.ndarray) and walk.value(1) is None:
        axes = list(range(x.ndim))
    else:
        axes = walk.axes(1, None)
        if axes is None or (not axes and not walk.attr("noop_with_empty_axes", 0)):
            axes = list(range(x.ndim))
    axes = [a % x.ndim for a in axes]
    if op == "ReduceMean" and len(axes) == 1 and x.shape[axes[0]] > 1 and _is_norm(walk):
        # Global response normalisation: the mean over channels of one norm a channel. A channel that goes
        # leaves a zero behind; the cut keeps the divisor.
        walk.ties.reads[(walk.key, 0)] = (axes[0], walk.channels(x, axes[0]))
        return walk.dead(0, "a mean over channels")
    crossed = [a for a in axes if x.shape[a] > 1]
    if line.statistics and crossed and x.size == x.shape[crossed[0]] and walk.statistics():
        return walk.dead(0, "a statistic over channels")
    for a in axes:
        x = walk.ties.whole(x, a, f"{op} mixes the channels of this axis{_remedy(line)}")
    if walk.attr("keepdims", 1):
        return x
    return x.reshape([d for k, d in enumerate(x.shape) if k not in axes])


def _is_norm(walk: Walk) -> bool:
    """Whether the operand is a norm over positions."""
    producer = walk.graph.producer.get(walk.node.input[0])
    return producer is not None and walk.graph.nodes[producer].op_type == "ReduceL2"
