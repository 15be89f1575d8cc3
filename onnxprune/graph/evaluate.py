"""Single ONNX nodes on numpy values: enough to fold constants and to follow shape arithmetic.

Exporters hide parameters behind Identity, Transpose and Reshape, and compute shapes with Shape, Gather,
Concat and integer arithmetic. This table evaluates those nodes, nothing heavier: no convolution, nothing
random. What is one numpy function has it on its line in `graph.operators`; an operator with neither is simply not
constant.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.graph import operators
from onnxprune.protobuf.nodes import DEFAULT_DOMAINS

LIMIT = 1 << 27
"""Largest folded value in elements: a ConstantOfShape bomb stays unfolded."""
ROOM = 1 << 28
"""Bytes that values made of constants and sizes may take beside what the file stores."""

TABLE: dict[str, Callable[..., Any]] = {}


class _Unsupported(Exception):
    pass


# A malformed node is not ours to report: it is merely not constant.
_CANNOT = (_Unsupported, ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)


def op(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            TABLE[name] = function
        return function

    return add


def foldable(node: onnx.NodeProto) -> bool:
    """Whether the operator can be evaluated."""
    return operators.of(node).numpy is not None or (node.domain in DEFAULT_DOMAINS and node.op_type in TABLE)


def evaluate(
    node: onnx.NodeProto, operands: Sequence[np.ndarray | None], opset: int, room: int = ROOM
) -> list[np.ndarray] | None:
    """The node's outputs for constant operands, or None when this table cannot tell, or they would not find room.

    Args:
        node: the node.
        operands: its inputs; None for those left out.
        opset: of the default domain.
        room: bytes that an output may take that is larger than what it is made of.
    """
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if opset < 7 and "broadcast" in attrs:
        return None  # aligned by an attribute, not from the right
    if node.op_type == "Split":
        attrs["outputs"] = len(node.output)
    if _spread(node, attrs, [v for v in operands if v is not None]) > room:
        return None
    try:
        with np.errstate(all="ignore"):
            plain = operators.of(node).numpy
            result = plain(*operands) if plain else TABLE[node.op_type](attrs, *operands, opset=opset)
    except _CANNOT:
        return None
    return result if isinstance(result, list) else [np.asarray(result)]


def held(results: Sequence[np.ndarray]) -> int:
    """Bytes of the arrays that are no views of others."""
    return sum(r.nbytes for r in results if r.base is None)


def _spread(node: onnx.NodeProto, attrs: dict[str, Any], operands: Sequence[np.ndarray]) -> int:
    """Bytes of what joins, picks or broadcasts its operands, for which a few make many; 0 for other nodes, which check
    for themselves or make no more than there is."""
    width = max((v.itemsize for v in operands), default=0)
    if node.op_type == "Concat":
        return sum(v.size for v in operands) * width
    if node.op_type == "Gather" and len(operands) == 2 and operands[0].ndim:
        x, indices = operands
        length = x.shape[attrs.get("axis", 0) % x.ndim]
        return indices.size * (x.size // length if length else 0) * width
    if operators.of(node).family == "broadcast":
        with contextlib.suppress(ValueError):  # they do not fit together
            return math.prod(np.broadcast_shapes(*(v.shape for v in operands))) * width
    return 0


def axes_of(attrs: dict[str, Any], operand: np.ndarray | None, default: Any = None) -> Any:
    """Axes moved from attribute to input between opsets: take whichever is there."""
    if operand is not None:
        return [int(a) for a in np.atleast_1d(operand)]
    return [int(a) for a in attrs["axes"]] if "axes" in attrs else default


@op("Constant")
def _constant(attrs, *, opset):
    if "value" in attrs:
        return numpy_helper.to_array(attrs["value"])
    for name, dtype in (
        ("value_float", np.float32),
        ("value_int", np.int64),
        ("value_floats", np.float32),
        ("value_ints", np.int64),
    ):
        if name in attrs:
            return np.array(attrs[name], dtype)
    raise _Unsupported


@op("Identity")
def _identity(attrs, x, *, opset):
    return x


@op("Dropout")
def _dropout(attrs, x, ratio=None, training=None, *, opset):
    if (training is not None and np.any(training)) or (opset < 7 and not attrs.get("is_test")):
        raise _Unsupported
    return x


@op("Cast")
def _cast(attrs, x, *, opset):
    dtype = helper.tensor_dtype_to_np_dtype(attrs["to"])
    plain = dtype.kind in "biuf"
    widened = dtype.kind == "f" and x.dtype.kind == "V"
    if not ((plain and x.dtype.kind in "biuf") or widened or dtype.name == "bfloat16"):
        raise _Unsupported  # strings; small floats, which saturate
    if dtype.kind in "iu" and x.dtype.kind == "f":
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        if not np.all((x >= low) & (x <= high)):
            raise _Unsupported  # undefined
    return x.astype(dtype)


@op("Transpose")
def _transpose(attrs, x, *, opset):
    return np.transpose(x, attrs.get("perm"))


@op("Reshape")
def _reshape(attrs, x, shape=None, *, opset):
    shape = attrs["shape"] if shape is None else shape
    if attrs.get("allowzero"):
        return x.reshape([int(d) for d in shape])
    return x.reshape([x.shape[i] if d == 0 else int(d) for i, d in enumerate(shape)])


@op("Flatten")
def _flatten(attrs, x, *, opset):
    axis = attrs.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:])))


@op("Squeeze")
def _squeeze(attrs, x, axes=None, *, opset):
    axes = axes_of(attrs, axes)
    return np.squeeze(x, None if axes is None else tuple(axes))


@op("Unsqueeze")
def _unsqueeze(attrs, x, axes=None, *, opset):
    axes = axes_of(attrs, axes)
    rank = x.ndim + len(axes)
    shape = list(x.shape)
    for a in sorted(a % rank for a in axes):
        shape.insert(a, 1)
    return x.reshape(shape)


@op("Shape")
def _shape(attrs, x, *, opset):
    return np.array(x.shape[slice(attrs.get("start"), attrs.get("end"))], np.int64)


@op("Size")
def _size(attrs, x, *, opset):
    return np.array(x.size, np.int64)


@op("Concat")
def _concat(attrs, *xs, opset):
    return np.concatenate(xs, attrs.get("axis", 1))


@op("Gather")
def _gather(attrs, x, indices, *, opset):
    return np.take(x, indices, attrs.get("axis", 0))


@op("Slice")
def _slice(attrs, x, starts=None, ends=None, axes=None, steps=None, *, opset):
    return x[slices(attrs, x.shape, starts, ends, axes, steps)]


def slices(attrs, shape, starts=None, ends=None, axes=None, steps=None) -> tuple[slice, ...]:
    """The numpy slices that an ONNX Slice takes.

    Args:
        attrs: attributes of the node, by name; up to opset 9 they hold the rest.
        shape: sizes of what is sliced.
        starts, ends, axes, steps: one number each per sliced axis, as the operator takes them.
    """
    starts = attrs["starts"] if starts is None else starts
    ends = attrs["ends"] if ends is None else ends
    axes = attrs.get("axes", range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    cut = [slice(None)] * len(shape)
    for s, e, a, p in zip(starts, ends, axes, steps, strict=True):
        dim, s, e, p = shape[int(a)], int(s), int(e), int(p)
        if p < 0:  # unlike numpy: a start before the first element is the first element
            s = max(s, -dim)
        # ONNX: everything down to the first element
        cut[int(a)] = slice(s, None if p < 0 and e < -dim else e, p)
    return tuple(cut)


@op("Split")
def _split(attrs, x, sizes=None, *, opset):
    axis = attrs.get("axis", 0)
    sizes = attrs.get("split") if sizes is None else sizes
    if sizes is None:  # equal parts, the last may be smaller
        parts, length = attrs.get("num_outputs", attrs["outputs"]), x.shape[axis]
        part = -(-length // parts)
        sizes = [part] * (parts - 1) + [length - part * (parts - 1)]
    if sum(sizes) != x.shape[axis] or min(sizes) < 0:
        raise _Unsupported
    return list(np.split(x, np.cumsum(sizes)[:-1], axis))


@op("Range")
def _range(attrs, start, limit, delta, *, opset):
    first, last, step = start.item(), limit.item(), delta.item()
    if abs(last - first) > LIMIT * abs(step) or not step:
        raise _Unsupported
    count = max(0, int(np.ceil((last - first) / step)))
    return (first + np.arange(count) * step).astype(start.dtype)


@op("ConstantOfShape")
def _constant_of_shape(attrs, shape, *, opset):
    value = numpy_helper.to_array(attrs["value"]) if "value" in attrs else np.zeros(1, np.float32)
    if np.prod([float(d) for d in shape]) > LIMIT >> 3:
        raise _Unsupported
    return np.full([int(d) for d in shape], value.reshape(-1)[0], value.dtype)


@op("Expand")
def _expand(attrs, x, shape, *, opset):
    shape = np.broadcast_shapes(x.shape, tuple(int(d) for d in shape))
    if np.prod([float(d) for d in shape]) > LIMIT >> 3:
        raise _Unsupported
    return np.broadcast_to(x, shape)


@op("Tile")
def _tile(attrs, x, repeats, *, opset):
    if np.prod([float(d) for d in repeats]) * x.size > LIMIT >> 3:
        raise _Unsupported
    return np.tile(x, repeats)


@op("Div")
def _divide(attrs, a, b, *, opset):
    if a.dtype.kind in "iu":  # rounds towards zero, exactly
        if not np.all(b):
            raise _Unsupported
        floor = np.floor_divide(a, b)
        return (floor + ((floor < 0) & (floor * b != a))).astype(a.dtype)
    return np.divide(a, b)


@op("Mod")
def _mod(attrs, a, b, *, opset):
    if a.dtype.kind in "iu" and not np.all(b):
        raise _Unsupported
    return np.fmod(a, b) if attrs.get("fmod") else np.mod(a, b)


@op("Pow")
def _pow(attrs, a, b, *, opset):
    return np.power(a, b).astype(a.dtype)


@op("Min")
def _min(attrs, *xs, opset):
    return np.minimum.reduce(np.broadcast_arrays(*xs))


@op("Clip")
def _clip(attrs, x, low=None, high=None, *, opset):
    low, high = (attrs.get(k) if v is None else v for k, v in (("min", low), ("max", high)))
    x = x if low is None else np.maximum(x, np.asarray(low, x.dtype))
    return x if high is None else np.minimum(x, np.asarray(high, x.dtype))


@op("Max")
def _max(attrs, *xs, opset):
    return np.maximum.reduce(np.broadcast_arrays(*xs))


def _reduce(function):
    def run(attrs, x, axes=None, *, opset):
        axes = axes_of(attrs, axes)
        if not axes and attrs.get("noop_with_empty_axes"):
            return x
        axis = tuple(axes) if axes else None
        return np.asarray(function(x, axis=axis, keepdims=bool(attrs.get("keepdims", 1)))).astype(x.dtype)

    return run


TABLE["ReduceProd"] = _reduce(np.prod)
TABLE["ReduceSum"] = _reduce(np.sum)
TABLE["ReduceMax"] = _reduce(np.max)
TABLE["ReduceMin"] = _reduce(np.min)
