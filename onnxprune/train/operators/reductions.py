"""Pooling, and reductions over axes."""

from __future__ import annotations

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
    kernel = a["kernel_shape"]
    n = len(kernel)
    x, padding = padded(x, pads_of(a, x, kernel), -torch.inf)
    args = (kernel, a.get("strides", [1] * n), padding, a.get("dilations", [1] * n), bool(a.get("ceil_mode", 0)))
    return MAX_POOLS[n](x, *args)


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
