"""Rules of what normalizes, pools and reduces: whether a channel may leave an axis that statistics go over."""

from __future__ import annotations

import math

import numpy as np

from onnxprune.channels.rules.elementwise import meet
from onnxprune.channels.rules.linear import tie_bias
from onnxprune.channels.rules.registry import Value, Walk, pin_all, rule
from onnxprune.channels.ties import Ids, Param
from onnxprune.graph import operators
from onnxprune.graph.behaviour import never_negative, never_positive
from onnxprune.graph.facts import Operator
from onnxprune.graph.operators import MICROSOFT, MIXING, POOL, REDUCTION

INEXACTLY = " - --prune-statistics cuts it, inexactly"


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
    """Each index of axis 1 is normalized over all axes behind it; channels that were reshaped into those are groups."""
    if isinstance(x, np.ndarray) and any(d > 1 for d in x.shape[2:]):
        why = f"InstanceNormalization normalizes over the channels that a Reshape has put here{INEXACTLY}"
        if walk.statistics():
            return walk.ties.whole(x, 1, why)  # index j of every group
        if x.shape[1] == 1:
            return walk.fixed(x, why)
    return batch_norm(walk, x, *params)[0]


@rule("GroupNormalization")
def group_norm(walk: Walk, x: Value, scale: Value, bias: Value) -> Ids:
    if not isinstance(x, np.ndarray):
        return walk.dead()
    channels, groups = walk.channels(x, 1), walk.attr("num_groups")
    grid = channels.reshape(groups, -1)
    within = grid.shape[1] > 1 and walk.statistics()
    if within:
        walk.ties.same(grid, grid[:1])  # index j of every group
    elif groups == 1:
        walk.ties.pin(channels, f"GroupNormalization has one group, over all channels of this axis{INEXACTLY}", 1)
    else:
        walk.ties.same(grid, grid[:, :1])  # whole groups: the statistics of the others do not change
    for p in (scale, bias):
        if isinstance(p, Param) and p.shape == channels.shape:
            walk.ties.same(p.axis(0), channels)
        elif isinstance(p, Param) and not within:  # opset 18 has one for each group
            walk.ties.same(p.axis(0), grid[:, 0])
    return walk.place(channels, 1, x.ndim)


@rule(MIXING)
def mixes(walk: Walk, x: Value, *params: Value) -> list[Ids]:
    """Operators that mix the elements of an axis: it stays whole."""
    op = walk.node.op_type
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
    return [normalized(walk, x, axes, *params)]


def normalized(walk: Walk, x: Ids, axes: list[int], *params: Value) -> Ids:
    """What comes out where the elements along some axes are mixed: these stay, unless zeros among them change nothing,
    or statistics over them may change; `params` are scales and shifts."""
    line = operators.of(walk.node)
    if _over_zeros(walk, x, axes):
        return x
    if line.statistics and any(x.shape[a] > 1 for a in axes) and walk.statistics():
        return meet(walk, [(x, walk.dims(0))], [p for p in params if isinstance(p, Param)], walk.out())
    for a in axes:
        x = walk.ties.whole(x, a, f"{line.name} mixes the channels of this axis{_remedy(line)}")
    return x


def _remedy(line: Operator) -> str:
    return INEXACTLY if line.statistics else ""


@rule("LRN")
def lrn(walk: Walk, x: Ids) -> Ids:
    return walk.ties.whole(x, 1, "LRN mixes neighbouring channels")


@rule(POOL)
def pool(walk: Walk, x: Value) -> list[Ids]:
    if not isinstance(x, np.ndarray):
        return []
    for a in range(2, x.ndim):
        x = walk.ties.whole(x, a, "pooled over")
    places = walk.node.output[1] if len(walk.node.output) > 1 else ""
    if not places:
        return [x]
    if not walk.read_by(places, "MaxUnpool"):
        x = walk.ties.whole(x, 1, "MaxPool hands on where in the whole tensor each maximum was")
    return [x, x]


@rule("MaxUnpool")
def max_unpool(walk: Walk, x: Value, places: Value, size: Value = None) -> Ids:
    """Puts maxima back to where MaxPool found them, which counts the channels that there are."""
    if not isinstance(x, np.ndarray) or not isinstance(places, np.ndarray):
        pin_all(walk, "MaxUnpool goes by places that are not from a MaxPool", x, places)
        return walk.dead()
    walk.ties.same(walk.channels(x, 1), walk.channels(places, 1, 1))
    return walk.place(walk.channels(x, 1), 1, len(walk.out()))


@rule("RoiAlign", "MaxRoiPool", "GridSample")
@rule("GridSample", domain=MICROSOFT)
def sampled(walk: Walk, x: Value, *rest: Value) -> Ids:
    """Each channel, at other places."""
    pin_all(walk, "used as regions or places", *rest)
    return walk.place(walk.channels(x, 1), 1, len(walk.out())) if isinstance(x, np.ndarray) else walk.dead()


@rule(REDUCTION, "ArgMax", "ArgMin")
def reduction(walk: Walk, x: Value, given: Value = None) -> Ids:
    if not isinstance(x, np.ndarray):
        return walk.dead()
    op, line = walk.node.op_type, operators.of(walk.node)
    axes = _reduced(walk, x, given)
    crossed = [a for a in axes if x.shape[a] > 1]
    if op == "ReduceMean" and axes == crossed[:1] and _is_norm(walk) and _over_zeros(walk, x, axes):
        return walk.dead(0, "a mean over channels")
    if line.statistics and crossed and walk.statistics():
        for a in range(x.ndim):
            if a not in axes:  # groups: index j of every one
                x = walk.ties.whole(x, a, f"{op} over the channels of each group")
        return walk.dead(0, "a statistic over channels")
    if _over_zeros(walk, x, axes):
        return walk.dead(0, f"{op} over channels")
    for a in axes:
        x = walk.ties.whole(x, a, f"{op} mixes the channels of this axis{_remedy(line)}")
    if walk.attr("keepdims", 1) == 1:
        return x
    return x.reshape([d for k, d in enumerate(x.shape) if k not in axes])


def _reduced(walk: Walk, x: Ids, given: Value) -> list[int]:
    """The axes that a reduction goes over."""
    if walk.node.op_type in ("ArgMax", "ArgMin"):
        return [walk.attr("axis", 0) % x.ndim]
    axes = None if isinstance(given, np.ndarray) and walk.value(1) is None else walk.axes(1, None)
    if axes is None or (not axes and not walk.attr("noop_with_empty_axes", 0)):
        return list(range(x.ndim))
    return [a % x.ndim for a in axes]


def _over_zeros(walk: Walk, x: Ids, axes: list[int]) -> bool:
    """Whether channels may go from axes that are reduced: where zeros in their place change nothing, or nothing but the
    number that a mean divides by, which the cut mends. Says so.

    Where channels lie along other axes as well, those go that leave more to choose from.
    """
    crossed = [a for a in axes if x.shape[a] > 1]
    if not crossed or not _skips_zeros(walk):
        return False
    axis = max(crossed, key=lambda a: x.shape[a])
    if math.prod(d for k, d in enumerate(x.shape) if k not in axes) >= x.shape[axis]:
        return False
    walk.ties.reads[(walk.key, 0)] = (axis, walk.channels(x, axis))
    return True


def _skips_zeros(walk: Walk) -> bool:
    """Whether zeros among what is reduced change nothing (but the divisor of a mean)."""
    skips, name = operators.of(walk.node).skips_zeros, walk.node.input[0]
    if skips == "positive":
        return never_negative(walk.graph, name)
    if skips == "negative":
        return never_positive(walk.graph, name)
    if skips == "counted":
        return not _normalizes(walk, name)
    return skips == "always"


def _normalizes(walk: Walk, name: str) -> bool:
    """Whether a mean is that of a normalization, of what is then centred or of squares: cutting it is asked for."""
    graph = walk.graph
    made = graph.nodes.get(graph.producer.get(name, ""))
    if made is not None and (made.op_type == "Pow" or list(made.input) == 2 * [made.input[0]]):
        return True
    consumers = graph.once("consumers", graph, graph.consumers)
    stack, seen = [walk.node.output[0]], set[str]()
    while stack:
        seen.add(top := stack.pop())
        for node in (graph.nodes[key] for key, _ in consumers.get(top, ())):
            line = operators.of(node)
            if line.arithmetic == "-" and all(graph.constant(i) is None for i in node.input):
                return True
            if (line.layout or line.casts) and node.output[0] not in seen:
                stack.append(node.output[0])
    return False


def _is_norm(walk: Walk) -> bool:
    """Whether the operand is a norm over positions."""
    producer = walk.graph.producer.get(walk.node.input[0])
    return producer is not None and walk.graph.nodes[producer].op_type == "ReduceL2"
