"""Pooling, and reductions over axes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.train.operators.padding import padded, pads_of
from onnxprune.train.operators.registry import Refused, op

MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOLS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@op("MaxPool")
def _max_pool(a, x):
    if a["outputs"] > 1:
        return _with_places(a, x)
    kernel = a["kernel_shape"]
    n = len(kernel)
    x, padding = padded(x, pads_of(a, x, kernel), -torch.inf)
    args = (kernel, a.get("strides", [1] * n), padding, a.get("dilations", [1] * n), bool(a.get("ceil_mode", 0)))
    return MAX_POOLS[n](x, *args)


def _with_places(a, x):
    """Maxima, and where in the whole tensor each was."""
    kernel, n = a["kernel_shape"], len(a["kernel_shape"])
    strides, pads = a.get("strides", [1] * n), pads_of(a, x, kernel)
    if a.get("storage_order") or pads[:n] != pads[n:]:
        raise Refused("places in another order, or pads of two kinds")
    y, at = MAX_POOLS[n](x, kernel, strides, pads[:n], a.get("dilations", [1] * n), bool(a.get("ceil_mode", 0)), True)
    return y, at + _starts(x)


def _starts(x: Tensor) -> Tensor:
    """(samples, channels, 1, …): how many elements come before each map."""
    count = x.shape[0] * x.shape[1]
    starts = torch.arange(count, device=x.device) * x[0, 0].numel()
    return starts.reshape(x.shape[0], x.shape[1], *[1] * (x.ndim - 2))


@op("MaxUnpool", host=(2,))
def _max_unpool(a, x, places, shape=None):
    kernel, n = a["kernel_shape"], len(a["kernel_shape"])
    strides, pads = a.get("strides", [1] * n), a.get("pads", [0] * 2 * n)
    sizes = [(d - 1) * s + k - pads[i] - pads[n + i]
             for i, (d, s, k) in enumerate(zip(x.shape[2:], strides, kernel, strict=True))]  # fmt: skip
    whole = (*x.shape[:2], *sizes)
    if shape is not None and tuple(shape.tolist()) != whole:
        raise Refused("a size of its own")
    y = x.new_zeros(whole)
    return y.flatten().index_put((places.flatten(),), x.flatten()).reshape(whole)


@op("LpPool")
def _lp_pool(a, x):
    kernel = a["kernel_shape"]
    if any(a.get("pads", [])) or a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or a.get("ceil_mode"):
        raise Refused("pads")
    power, count = a.get("p", 2), math.prod(kernel)
    mean = AVERAGE_POOLS[len(kernel)](x.abs().pow(power), kernel, a.get("strides", [1] * len(kernel)))
    return (count * mean).pow(1 / power)


@op("GlobalLpPool")
def _global_lp(a, x):
    return torch.linalg.vector_norm(x, a.get("p", 2), tuple(range(2, x.ndim)), keepdim=True)


@op("AveragePool")
def _average_pool(a, x):
    kernel = a["kernel_shape"]
    n, pads = len(kernel), pads_of(a, x, kernel)
    if any(d != 1 for d in a.get("dilations", [])):
        raise Refused("dilations")
    strides, ceil = a.get("strides", [1] * n), bool(a.get("ceil_mode", 0))
    counted, (y, padding) = bool(a.get("count_include_pad", 0)), padded(x, pads)
    pool = AVERAGE_POOLS[n]
    if counted or y is x:
        return pool(y, kernel, strides, padding, ceil, counted)
    ones, _ = padded(torch.ones_like(x[:1, :1]), pads)
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


@op("ArgMax", "ArgMin")
def _argmax(a, x):
    x = x if a["op_type"] == "ArgMax" else -x
    return x.argmax(a.get("axis", 0), bool(a.get("keepdims", 1)))


@op("LpNormalization")
def _lp(a, x):
    return x / torch.linalg.vector_norm(x, a.get("p", 2), a.get("axis", -1), keepdim=True).clamp_min(1e-30)


@op("CumSum", "CumProd", host=(1,))
def _cumulated(a, x, axis):
    if a.get("exclusive") or a.get("reverse"):
        raise Refused("exclusive or reverse")
    return x.cumsum(int(axis)) if a["op_type"] == "CumSum" else x.cumprod(int(axis))


@op("TopK", host=(1,))
def _topk(a, x, k):
    return tuple(x.topk(int(k.item()), a.get("axis", -1), bool(a.get("largest", 1)), bool(a.get("sorted", 1))))
