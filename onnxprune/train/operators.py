"""ONNX operators in torch: one table, one function an operator, differentiable where the operator is.

A function takes the node's attributes and its operands and returns a tensor, or a tuple where the node has several
outputs. Operands that say *how* (shapes, axes, pads, bounds) come as numpy arrays: `@op(..., host=(1, 2))` names their
positions. Everything else comes as a tensor. Arithmetic on sizes never gets here: `graph.evaluate` does it on numpy.
An operator that is not in the table cannot be trained through; `network` says so with the node's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.graph.evaluate import slices
from onnxprune.train.resize import resize


@dataclass(frozen=True)
class Operator:
    """What runs a node, and which of its operands stay on the host."""

    run: Callable[..., Any]
    host: frozenset[int]


OPERATORS: dict[str, Operator] = {}


class Refused(Exception):
    """A form of an operator that the table lacks; the message says which."""


def op(*names: str, host: Sequence[int] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        OPERATORS.update((name, Operator(function, frozenset(host))) for name in names)
        return function

    return enter


# ---- element by element ----------------------------------------------------------------------------------


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _one(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda attrs, *xs: function(*xs)


SIMPLE: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Add": torch.add, "And": torch.logical_and, "Asin": torch.asin,
    "Atan": torch.atan, "Ceil": torch.ceil, "Cos": torch.cos, "Div": _divide, "Equal": torch.eq, "Erf": torch.erf,
    "Exp": torch.exp, "Floor": torch.floor, "Greater": torch.gt, "GreaterOrEqual": torch.ge,
    "HardSwish": F.hardswish, "Identity": lambda x: x, "IsNaN": torch.isnan, "Less": torch.lt,
    "LessOrEqual": torch.le, "Log": torch.log, "Mish": F.mish, "Mul": torch.mul, "Neg": torch.neg,
    "Not": torch.logical_not, "Or": torch.logical_or, "Reciprocal": torch.reciprocal, "Relu": torch.relu,
    "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin, "Softplus": F.softplus,
    "Softsign": F.softsign, "Sqrt": torch.sqrt, "Sub": torch.sub, "Tan": torch.tan, "Tanh": torch.tanh,
    "Where": torch.where, "Xor": torch.logical_xor, "Dropout": lambda x, *_: x,
}  # fmt: skip
for _name, _function in SIMPLE.items():
    OPERATORS[_name] = Operator(_one(_function), frozenset())


@op("Pow")
def _pow(a, x, y):
    return torch.pow(x, y).to(x.dtype)


@op("Mod")
def _mod(a, x, y):
    return torch.fmod(x, y) if a.get("fmod") else torch.remainder(x, y)


@op("Sum")
def _sum(a, *xs):
    return sum(xs[1:], xs[0])


@op("Mean")
def _mean(a, *xs):
    return sum(xs[1:], xs[0]) / len(xs)


@op("Max")
def _max(a, *xs):
    out = xs[0]
    for x in xs[1:]:
        out = torch.maximum(out, x)
    return out


@op("Min")
def _min(a, *xs):
    out = xs[0]
    for x in xs[1:]:
        out = torch.minimum(out, x)
    return out


@op("Clip", host=(1, 2))
def _clip(a, x, low=None, high=None):
    low = a.get("min") if low is None else low.item()
    high = a.get("max") if high is None else high.item()
    return x if low is None and high is None else torch.clamp(x, low, high)


@op("LeakyRelu")
def _leaky(a, x):
    return F.leaky_relu(x, a.get("alpha", 0.01))


@op("PRelu")
def _prelu(a, x, slope):
    return torch.where(x < 0, x * slope, x)


@op("Elu")
def _elu(a, x):
    return F.elu(x, a.get("alpha", 1.0))


@op("Selu")
def _selu(a, x):
    alpha, gamma = a.get("alpha", 1.6732632), a.get("gamma", 1.050701)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


@op("HardSigmoid")
def _hard_sigmoid(a, x):
    return torch.clamp(x * a.get("alpha", 0.2) + a.get("beta", 0.5), 0, 1)


@op("Gelu")
def _gelu(a, x):
    return F.gelu(x, approximate=a.get("approximate", "none"))


@op("Softmax", "LogSoftmax")
def _softmax(a, x):
    function = F.softmax if a["op_type"] == "Softmax" else F.log_softmax
    if a["opset"] >= 13:
        return function(x, a.get("axis", -1))
    axis = a.get("axis", 1) % x.ndim  # before opset 13 all axes from `axis` on are one
    return function(x.reshape(*x.shape[:axis], -1), axis).reshape(x.shape)


@op("Cast")
def _cast(a, x):
    return x.to(DTYPES[a["to"]])


DTYPES = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64,
          9: torch.bool, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}  # fmt: skip


# ---- layers ----------------------------------------------------------------------------------------------

CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOLS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _pads(a: dict, x: Tensor, kernel: Sequence[int]) -> list[int]:
    """(before of every axis, then after of every axis), auto_pad worked out."""
    n = len(kernel)
    how = a.get("auto_pad", "NOTSET")
    if how in ("NOTSET", "VALID"):
        return list(a.get("pads", [0] * 2 * n)) if how == "NOTSET" else [0] * 2 * n
    stride, dilation = a.get("strides", [1] * n), a.get("dilations", [1] * n)
    total = [
        max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        for size, s, k, d in zip(x.shape[2:], stride, kernel, dilation, strict=True)
    ]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return small + large if how == "SAME_UPPER" else large + small


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> tuple[Tensor, list[int]]:
    """(x, symmetric padding): what torch cannot pad itself is padded here."""
    n = len(pads) // 2
    if list(pads[:n]) == list(pads[n:]):
        return x, list(pads[:n])
    sides = [side for k in reversed(range(n)) for side in (pads[k], pads[n + k])]
    return F.pad(x, sides, value=value), [0] * n


@op("Conv")
def _conv(a, x, w, b=None):
    n = w.ndim - 2
    x, padding = _padded(x, _pads(a, x, w.shape[2:]))
    strides, dilations = a.get("strides", [1] * n), a.get("dilations", [1] * n)
    return CONVS[n](x, w, b, strides, padding, dilations, a.get("group", 1))


@op("ConvTranspose")
def _conv_transpose(a, x, w, b=None):
    n = w.ndim - 2
    stride, dilation = a.get("strides", [1] * n), a.get("dilations", [1] * n)
    extra, kernel = a.get("output_padding", [0] * n), w.shape[2:]
    whole = [
        (size - 1) * s + (k - 1) * d + 1 for size, s, k, d in zip(x.shape[2:], stride, kernel, dilation, strict=True)
    ]
    pads = a.get("pads", [0] * 2 * n)
    if "output_shape" in a or a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        shape = a.get("output_shape") or [size * s for size, s in zip(x.shape[2:], stride, strict=True)]
        total = [full + e - out for full, e, out in zip(whole, extra, shape[-n:], strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = large + small if a.get("auto_pad") == "SAME_LOWER" else small + large
    # Transposed in full, then cropped: asymmetric pads and any output padding come out of one rule.
    y = TRANSPOSED[n](x, w, b, stride, 0, 0, a.get("group", 1), dilation)
    grow = [side for k in reversed(range(n)) for side in (-pads[k], extra[k] - pads[n + k])]
    if any(extra) and b is not None:
        y = y - b.reshape(-1, *[1] * n)
        return F.pad(y, grow) + b.reshape(-1, *[1] * n)
    return F.pad(y, grow) if any(grow) else y


@op("BatchNormalization")
def _batch_norm(a, x, scale, bias, mean, var):
    return F.batch_norm(x, mean, var, scale, bias, a["training"], 1 - a.get("momentum", 0.9), a.get("epsilon", 1e-5))


@op("InstanceNormalization")
def _instance_norm(a, x, scale, bias):
    return F.instance_norm(x, weight=scale, bias=bias, eps=a.get("epsilon", 1e-5))


@op("GroupNormalization")
def _group_norm(a, x, scale, bias):
    groups = a["num_groups"]
    if a["opset"] < 21:  # one scale a group, not a channel
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    return F.group_norm(x, groups, scale, bias, a.get("epsilon", 1e-5))


@op("LayerNormalization")
def _layer_norm(a, x, scale, bias=None):
    axis = a.get("axis", -1) % x.ndim
    over = tuple(range(axis, x.ndim))
    mean = x.mean(over, keepdim=True)
    y = (x - mean) * torch.rsqrt(x.var(over, unbiased=False, keepdim=True) + a.get("epsilon", 1e-5)) * scale
    return y if bias is None else y + bias


@op("LRN")
def _lrn(a, x):
    return F.local_response_norm(x, a["size"], a.get("alpha", 1e-4), a.get("beta", 0.75), a.get("bias", 1.0))


@op("Gemm")
def _gemm(a, x, w, c=None):
    x = x.transpose(0, 1) if a.get("transA") else x
    w = w if a.get("transB") else w.transpose(0, 1)
    alpha, beta = a.get("alpha", 1.0), a.get("beta", 1.0)
    if alpha == beta == 1.0 and c is not None and c.ndim == 1:
        return F.linear(x, w, c)
    y = alpha * F.linear(x, w) if alpha != 1.0 else F.linear(x, w)
    return y if c is None else y + beta * c


@op("MatMul")
def _matmul(a, x, y):
    return torch.matmul(x, y)


@op("Einsum")
def _einsum(a, *xs):
    return torch.einsum(a["equation"], *xs)


# ---- pooling and reductions ------------------------------------------------------------------------------


@op("MaxPool")
def _max_pool(a, x):
    kernel = a["kernel_shape"]
    n = len(kernel)
    x, padding = _padded(x, _pads(a, x, kernel), -torch.inf)
    args = (kernel, a.get("strides", [1] * n), padding, a.get("dilations", [1] * n), bool(a.get("ceil_mode", 0)))
    return MAX_POOLS[n](x, *args)


@op("AveragePool")
def _average_pool(a, x):
    kernel = a["kernel_shape"]
    n, pads = len(kernel), _pads(a, x, kernel)
    if any(d != 1 for d in a.get("dilations", [])):
        raise Refused("dilations")
    strides, ceil = a.get("strides", [1] * n), bool(a.get("ceil_mode", 0))
    counted, (y, padding) = bool(a.get("count_include_pad", 0)), _padded(x, pads)
    pool = AVERAGE_POOLS[n]
    if counted or y is x:
        return pool(y, kernel, strides, padding, ceil, counted)
    ones, _ = _padded(torch.ones_like(x[:1, :1]), pads)
    return pool(y, kernel, strides, 0, ceil) / pool(ones, kernel, strides, 0, ceil)


@op("GlobalAveragePool")
def _global_average(a, x):
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@op("GlobalMaxPool")
def _global_max(a, x):
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


def _prod(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((k % x.ndim for k in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


REDUCTIONS: dict[str, Callable[[Tensor, tuple[int, ...], bool], Tensor]] = {
    "ReduceMean": lambda x, d, k: x.mean(d, k),
    "ReduceSum": lambda x, d, k: x.sum(d, k),
    "ReduceMax": lambda x, d, k: x.amax(d, k),
    "ReduceMin": lambda x, d, k: x.amin(d, k),
    "ReduceProd": _prod,
    "ReduceL1": lambda x, d, k: x.abs().sum(d, k),
    "ReduceL2": lambda x, d, k: torch.linalg.vector_norm(x, 2, d, k),
    "ReduceSumSquare": lambda x, d, k: x.square().sum(d, k),
    "ReduceLogSum": lambda x, d, k: x.sum(d, k).log(),
    "ReduceLogSumExp": lambda x, d, k: x.logsumexp(d, k),
}


@op(*REDUCTIONS, host=(1,))
def _reduce(a, x, axes=None):
    axes = a.get("axes") if axes is None else axes.tolist()
    if not axes and a.get("noop_with_empty_axes"):
        return x
    return REDUCTIONS[a["op_type"]](x, tuple(axes or range(x.ndim)), bool(a.get("keepdims", 1)))


@op("ArgMax")
def _argmax(a, x):
    return x.argmax(a.get("axis", 0), bool(a.get("keepdims", 1)))


@op("LpNormalization")
def _lp(a, x):
    return x / torch.linalg.vector_norm(x, a.get("p", 2), a.get("axis", -1), keepdim=True).clamp_min(1e-30)


@op("CumSum", host=(1,))
def _cumsum(a, x, axis):
    if a.get("exclusive") or a.get("reverse"):
        raise Refused("exclusive or reverse")
    return x.cumsum(int(axis))


@op("TopK", host=(1,))
def _topk(a, x, k):
    return tuple(x.topk(int(k.item()), a.get("axis", -1), bool(a.get("largest", 1)), bool(a.get("sorted", 1))))


# ---- shapes and places -----------------------------------------------------------------------------------


@op("Reshape", host=(1,))
def _reshape(a, x, shape=None):
    shape = a["shape"] if shape is None else shape.tolist()
    if not a.get("allowzero"):
        shape = [x.shape[i] if d == 0 else d for i, d in enumerate(shape)]
    return x.reshape(shape)


@op("Flatten")
def _flatten(a, x):
    axis = a.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(int(np.prod(x.shape[:axis])), -1) if x.numel() else x.flatten(axis)


@op("Transpose")
def _transpose(a, x):
    return x.permute(a.get("perm", list(range(x.ndim))[::-1]))


@op("Squeeze", host=(1,))
def _squeeze(a, x, axes=None):
    axes = a.get("axes") if axes is None else axes.tolist()
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@op("Unsqueeze", host=(1,))
def _unsqueeze(a, x, axes=None):
    axes = a["axes"] if axes is None else axes.reshape(-1).tolist()
    for axis in sorted(k % (x.ndim + len(axes)) for k in axes):
        x = x.unsqueeze(axis)
    return x


@op("Concat")
def _concat(a, *xs):
    return torch.cat(xs, a.get("axis", 1))


@op("Split", host=(1,))
def _split(a, x, sizes=None):
    axis = a.get("axis", 0)
    sizes = a.get("split") if sizes is None else sizes.tolist()
    if sizes is None:
        parts = a.get("num_outputs", a["outputs"])
        sizes = -(-x.shape[axis] // parts)
    return tuple(x.split(sizes, axis))


@op("Slice", host=(1, 2, 3, 4))
def _slice(a, x, starts=None, ends=None, axes=None, steps=None):
    cut = slices(a, x.shape, starts, ends, axes, steps)
    for axis, part in enumerate(cut):
        if part.step is not None and part.step < 0:
            x = x.index_select(axis, torch.from_numpy(np.arange(x.shape[axis])[part].copy()).to(x.device))
        elif part != slice(None):
            x = x[(slice(None),) * axis + (part,)]
    return x


@op("Expand", host=(1,))
def _expand(a, x, shape):
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(shape.tolist())))


@op("Tile", host=(1,))
def _tile(a, x, repeats):
    return x.repeat(*repeats.tolist())


@op("Pad", host=(1, 2, 3))
def _pad(a, x, pads=None, value=None, axes=None):
    pads = a["pads"] if pads is None else pads.tolist()
    mode, fill = a.get("mode", "constant"), a.get("value", 0.0) if value is None else value.item()
    n = len(pads) // 2
    at = range(x.ndim) if axes is None else [k % x.ndim for k in axes.tolist()]
    sides = {axis: (pads[k], pads[n + k]) for k, axis in enumerate(at)}
    last = max((x.ndim - axis for axis, p in sides.items() if any(p)), default=0)
    flat = [side for axis in range(x.ndim - 1, x.ndim - 1 - last, -1) for side in sides.get(axis, (0, 0))]
    if not flat:
        return x
    return F.pad(x, flat, value=fill) if mode == "constant" else F.pad(x, flat, {"edge": "replicate"}.get(mode, mode))


@op("Gather")
def _gather(a, x, index):
    axis = a.get("axis", 0) % x.ndim
    index = torch.where(index < 0, index + x.shape[axis], index)
    picked = x.index_select(axis, index.reshape(-1))
    return picked.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


@op("GatherElements")
def _gather_elements(a, x, index):
    axis = a.get("axis", 0)
    return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index))


@op("GatherND")
def _gather_nd(a, x, index):
    if a.get("batch_dims"):
        raise Refused("batch_dims")
    return x[tuple(index.unbind(-1))]


@op("ScatterND")
def _scatter_nd(a, x, index, updates):
    if a.get("reduction", "none") != "none":
        raise Refused("a reduction")
    return x.clone().index_put(tuple(index.unbind(-1)), updates.to(x.dtype))


@op("ScatterElements")
def _scatter_elements(a, x, index, updates):
    return x.scatter(a.get("axis", 0), index, updates)


@op("NonZero")
def _nonzero(a, x):
    return x.nonzero().T


@op("Trilu", host=(1,))
def _trilu(a, x, k=None):
    k = 0 if k is None else int(k)
    return x.triu(k) if a.get("upper", 1) else x.tril(k)


@op("DepthToSpace")
def _depth_to_space(a, x):
    n, c, h, w = x.shape
    r = a["blocksize"]
    if a.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, r)
    return x.reshape(n, r, r, c // r**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // r**2, h * r, w * r)


@op("SpaceToDepth")
def _space_to_depth(a, x):
    n, c, h, w = x.shape
    r = a["blocksize"]
    return x.reshape(n, c, h // r, r, w // r, r).permute(0, 3, 5, 1, 2, 4).reshape(n, c * r * r, h // r, w // r)


@op("Resize", "Upsample", host=(1, 2, 3))
def _resize(a, x, *operands):
    if a["op_type"] == "Upsample" or a["opset"] < 11:  # scales come second, and no coordinates are spelled out
        a = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor", **a}
        scales, sizes = (operands[0] if operands else np.asarray(a["scales"])), None
    else:
        scales, sizes = (*operands[1:], None, None)[:2]
    for name in ("antialias", "exclude_outside"):
        if a.get(name):
            raise Refused(name)
    return resize(x, a, scales, sizes)
