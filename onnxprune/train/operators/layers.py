"""Layers with weights, and normalizations."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from onnxprune.train.operators.padding import padded, pads_of
from onnxprune.train.operators.registry import op

CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@op("Conv")
def _conv(a, x, w, b=None):
    n = w.ndim - 2
    x, padding = padded(x, pads_of(a, x, w.shape[2:]))
    strides, dilations, group = a.get("strides", [1] * n), a.get("dilations", [1] * n), a.get("group", 1)
    device = x.device.type
    if device == "cpu" and w.shape[:2] == (group, 1) and n == 2 and torch.is_autocast_enabled(device):
        half = torch.get_autocast_dtype(device)
        return Depthwise.apply(x.to(half), w.to(half), b if b is None else b.to(half), strides, padding, dilations)
    return CONVS[n](x, w, b, strides, padding, dilations, group)


class Depthwise(torch.autograd.Function):
    """A depthwise convolution in half precision on a CPU. Two of its gradients have no fast form there and are worked
    out in float32: of the input behind a stride (a third to a fiftieth of the time), and of kernels larger than 3x3 (a
    third of it)."""

    @staticmethod
    def forward(ctx, x, w, b, strides, padding, dilations):
        ctx.save_for_backward(x, w)
        ctx.how = ([*strides], [*padding], [*dilations])
        return F.conv2d(x, w, b, strides, padding, dilations, len(w))

    @staticmethod
    def backward(ctx, slope):
        (x, w), (strides, padding, dilations) = ctx.saved_tensors, ctx.how

        def gradient(of: int, exact: bool) -> torch.Tensor | None:
            if not ctx.needs_input_grad[of]:
                return None
            values = [v.float() for v in (slope, x, w)] if exact else (slope, x, w)
            return torch.ops.aten.convolution_backward(
                *values, None, strides, padding, dilations, False, [0, 0], len(w), [of == 0, of == 1, False]
            )[of].to(slope.dtype)

        of_x, of_w = gradient(0, max(strides) > 1), gradient(1, max(w.shape[2:]) > 3)
        of_b = slope.sum((0, 2, 3), dtype=torch.float32) if ctx.needs_input_grad[2] else None
        return of_x, of_w, of_b, None, None, None


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


@op("RMSNormalization", "SimplifiedLayerNormalization")
def rms_norm(a, x, scale):
    over = tuple(range(a.get("axis", -1) % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(over, keepdim=True) + a.get("epsilon", 1e-5)) * scale


@op("MeanVarianceNormalization")
def _standardized(a, x):
    over = tuple(a.get("axes", [0, 2, 3]))
    return (x - x.mean(over, keepdim=True)) / (x.std(over, unbiased=False, keepdim=True) + 1e-9)


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
