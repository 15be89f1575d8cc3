"""Quantized values: rounded on the way forward, and let through on the way back where they are in range."""

from __future__ import annotations

import numpy as np
import torch

from onnxprune.train.operators.registry import Refused, op


def _along(a, x, value):
    """A scale or zero point, shaped to what it belongs to."""
    if block := a.get("block_size"):
        axis = a.get("axis", 1) % x.ndim
        return value.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if value.ndim == 0 or value.numel() == 1 or x.ndim == 0:
        return value.reshape(())
    shape = [1] * x.ndim
    shape[a.get("axis", 1)] = -1
    return value.reshape(shape)


@op("QuantizeLinear", host=(2,))
def _quantize(a, x, scale, zero=None):
    kind = np.dtype(np.uint8) if zero is None else zero.dtype
    if kind.kind not in "iu" or a.get("output_dtype"):
        raise Refused(f"the type {kind}")
    limits = np.iinfo(kind)
    middle = 0 if zero is None else _along(a, x, torch.from_numpy(zero.astype(np.float32)).to(x.device))
    inside = torch.clamp(x / _along(a, x, scale) + middle, float(limits.min), float(limits.max))
    return inside + (torch.round(x / _along(a, x, scale)) + middle).clamp(limits.min, limits.max).sub(inside).detach()


@op("DequantizeLinear")
def _dequantize(a, x, scale, zero=None):
    middle = 0 if zero is None else _along(a, x, zero.float())
    return (x.float() - middle) * _along(a, x, scale)
