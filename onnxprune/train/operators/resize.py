"""ONNX `Resize` as index arithmetic: along each axis, a weighted sum of gathered positions.

Resizing is separable, so every mode is one rule: a position of the output becomes a place on the input's axis (the
coordinate transformation), and a few neighbours of that place are added with weights (1 for nearest, 2 for linear, 4
for cubic). The positions are worked out in numpy; torch only gathers, so gradients come for free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Transform = Callable[[np.ndarray, float, int, int], np.ndarray]

COORDINATES: dict[str, Transform] = {
    "half_pixel": lambda i, s, old, new: (i + 0.5) / s - 0.5,
    "pytorch_half_pixel": lambda i, s, old, new: (i + 0.5) / s - 0.5 if new > 1 else 0.0 * i,
    "asymmetric": lambda i, s, old, new: i / s,
    "align_corners": lambda i, s, old, new: i * (old - 1) / max(new - 1, 1),
}
"""(positions, scale, old length, new length) -> places on the old axis."""

NEAREST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _cubic(t: np.ndarray, a: float) -> list[np.ndarray]:
    """Weights of the neighbours at -1, 0, 1, 2 for a fraction t (Keys 1981)."""
    far = lambda d: ((a * d - 5 * a) * d + 8 * a) * d - 4 * a  # noqa: E731
    near = lambda d: ((a + 2) * d - (a + 3)) * d * d + 1  # noqa: E731
    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


def resize(x: Tensor, attrs: Mapping[str, Any], scales: np.ndarray | None, sizes: np.ndarray | None) -> Tensor:
    """The resized tensor. `scales` or `sizes` hold one entry an axis (or an axis of the attribute `axes`)."""
    axes = [k % x.ndim for k in attrs.get("axes", range(x.ndim))]
    by_size = sizes is not None and sizes.size > 0
    for k, axis in enumerate(axes):
        old = x.shape[axis]
        if by_size:
            assert sizes is not None
            new = int(sizes[k])
            scale = new / old
        else:
            assert scales is not None
            scale = float(scales[k])
            new = int(np.floor(old * scale))
        if new != old or scale != 1:
            x = _along(x, axis, new, scale, attrs)
    return x


def _along(x: Tensor, axis: int, new: int, scale: float, attrs: Mapping[str, Any]) -> Tensor:
    old = x.shape[axis]
    transform = COORDINATES[attrs.get("coordinate_transformation_mode", "half_pixel")]
    place = np.asarray(transform(np.arange(new, dtype=np.float64), scale, old, new))
    mode = attrs.get("mode", "nearest")

    def taken(positions: np.ndarray) -> Tensor:
        index = torch.from_numpy(np.clip(positions, 0, old - 1).astype(np.int64)).to(x.device)
        return x.index_select(axis, index)

    if mode == "nearest":
        return taken(NEAREST[attrs.get("nearest_mode", "round_prefer_floor")](place))
    if mode == "linear":
        place = np.clip(place, 0, old - 1)
    base = np.floor(place)
    t = place - base
    taps = [1 - t, t] if mode == "linear" else _cubic(t, attrs.get("cubic_coeff_a", -0.75))
    first = 0 if mode == "linear" else -1
    shape = [1] * x.ndim
    shape[axis] = new
    total: Tensor | None = None
    for k, weight in enumerate(taps):
        part = taken(base + first + k) * torch.from_numpy(weight.astype(np.float32)).to(x).reshape(shape)
        total = part if total is None else total + part
    assert total is not None
    return total
