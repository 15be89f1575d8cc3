"""Padding as ONNX states it: `auto_pad` worked out, and what torch's own functions cannot pad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def pads_of(a: dict[str, Any], x: Tensor, kernel: Sequence[int]) -> list[int]:
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


def padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> tuple[Tensor, list[int]]:
    """(x, symmetric padding): what torch cannot pad itself is padded here."""
    n = len(pads) // 2
    if list(pads[:n]) == list(pads[n:]):
        return x, list(pads[:n])
    sides = [side for k in reversed(range(n)) for side in (pads[k], pads[n + k])]
    return F.pad(x, sides, value=value), [0] * n
