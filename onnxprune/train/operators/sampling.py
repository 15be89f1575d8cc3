"""Operators that read in between pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from onnxprune.train.operators.registry import op

MODES = {"linear": "bilinear", "cubic": "bicubic"}
"""ONNX's name from opset 20 on -> torch's."""


@op("GridSample")
def _grid_sample(a, x, grid):
    mode = a.get("mode", "bilinear")
    how = MODES.get(mode, mode)
    return F.grid_sample(x, grid, how, a.get("padding_mode", "zeros"), bool(a.get("align_corners", 0)))


@op("DeformConv")
def _deform_conv(a, x, w, offset, b=None, mask=None):
    count, channels, height, width = x.shape
    kernel, parts, groups = w.shape[2:], a.get("offset_group", 1), a.get("group", 1)
    rows, columns = offset.shape[2:]
    taps = kernel[0] * kernel[1]
    offset = offset.reshape(count * parts, taps, 2, rows, columns)
    strides, dilations, pads = a.get("strides", [1, 1]), a.get("dilations", [1, 1]), a.get("pads", [0] * 4)
    at = []
    for k, (size, places) in enumerate(((height, rows), (width, columns))):
        along = [-1, 1] if k == 0 else [1, -1]
        tap = (torch.arange(kernel[k], device=x.device) * dilations[k]).reshape(along).expand(*kernel)
        start = torch.arange(places, device=x.device) * strides[k] - pads[k]
        where = offset[:, :, k] + tap.reshape(taps, 1, 1) + start.reshape(along)
        at.append((2 * where + 1) / size - 1)
    grid = torch.stack([at[1], at[0]], -1).reshape(count * parts, taps * rows, columns, 2)
    apart = x.reshape(count * parts, channels // parts, height, width)
    read = F.grid_sample(apart, grid, "bilinear", "zeros", False)
    read = read.reshape(count, parts, channels // parts, taps, rows, columns)
    if mask is not None:
        read = read * mask.reshape(count, parts, 1, taps, rows, columns)
    read = read.reshape(count, groups, channels // groups * taps, rows * columns)
    y = torch.einsum("ngkp,gok->ngop", read, w.reshape(groups, len(w) // groups, -1))
    y = y.reshape(count, len(w), rows, columns)
    return y if b is None else y + b.reshape(-1, 1, 1)
