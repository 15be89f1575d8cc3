"""Operators that move, pick, repeat or resize what is there, and compute nothing else."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from onnxprune.graph.evaluate import slices
from onnxprune.train.operators.registry import Refused, op
from onnxprune.train.operators.resize import resize


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


@op("ScatterElements", "Scatter")
def _scatter_elements(a, x, index, updates):
    axis, how = a.get("axis", 0), a.get("reduction", "none")
    index = torch.where(index < 0, index + x.shape[axis], index)
    if how not in ("none", "add"):
        raise Refused(f"the reduction {how}")
    return x.scatter(axis, index, updates) if how == "none" else x.scatter_add(axis, index, updates)


@op("ReverseSequence", host=(1,))
def _reverse_sequence(a, x, lengths):
    along, batch = a.get("time_axis", 0), a.get("batch_axis", 1)
    parts = []
    for part, length in zip(x.unbind(batch), lengths.tolist(), strict=True):
        axis = along - (along > batch)
        first, rest = part.split([length, part.shape[axis] - length], axis)
        parts.append(torch.cat([first.flip(axis), rest], axis))
    return torch.stack(parts, batch)


@op("CenterCropPad", host=(1,))
def _center_crop_pad(a, x, sizes):
    for axis, size in zip(a.get("axes", range(x.ndim)), sizes.tolist(), strict=True):
        over, axis = x.shape[axis] - size, axis % x.ndim
        before = over // 2 if over > 0 else -(-over // 2)
        x = F.pad(x, [0, 0] * (x.ndim - 1 - axis) + [-before, before - over])
    return x


@op("Col2Im", host=(1, 2))
def _col2im(a, x, size, block):
    if len(size) != 2 or a.get("pads", [0] * 4)[:2] != a.get("pads", [0] * 4)[2:]:
        raise Refused("other than two axes, or pads of two kinds")
    given = (a.get(k, [d] * 2)[:2] for k, d in (("dilations", 1), ("pads", 0), ("strides", 1)))
    return F.fold(x, size.tolist(), block.tolist(), *given)


@op("Compress", host=(1,))
def _compress(a, x, condition):
    x, axis = (x.flatten(), 0) if "axis" not in a else (x, a["axis"])
    return x.index_select(axis, torch.from_numpy(np.flatnonzero(condition)).to(x.device))


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
