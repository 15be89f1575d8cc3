"""Second moments of what layers read and write: rows of convs, sums over rows, covariances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from onnxprune.parallel import gram, pieces, product

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SecondMoments:
    """Second moments of a design, `H` (d, d) and `G` (d, n), over `count` rows; they add up.

    The intercept is the last row of both, so `H[-1, -1] == count` and `H[-1, :-1]` is the sum of the inputs. Of several
    designs of one size, as the parts of a layer with groups are: `H` (parts, d, d) and `G` (parts, d, n).
    """

    H: Array
    G: Array
    count: int
    target_sumsq: float = 0.0

    @classmethod
    def of(cls, x: np.ndarray, target: np.ndarray) -> SecondMoments:
        """Those of one chunk: inputs `x` (rows, d − 1) without the constant, targets `target` (rows, n), or both with
        parts in front.

        Products of a chunk are formed in the chunk's own precision (float32 is 2x faster, and exact enough for
        chunks up to some 65,000 rows); the sum over chunks is float64. Sum chunks with `+`.
        """
        *parts, rows, inputs = x.shape
        if target.shape[:-1] != x.shape[:-1]:
            raise ValueError(f"{x.shape[:-1]} rows of inputs but {target.shape[:-1]} rows of targets")
        d = inputs + 1
        H, G = np.empty((*parts, d, d)), np.empty((*parts, d, target.shape[-1]))
        H[..., :-1, :-1] = gram(x)
        H[..., :-1, -1] = H[..., -1, :-1] = x.sum(-2, dtype=np.float64)
        H[..., -1, -1] = rows
        G[..., :-1, :] = product(x.swapaxes(-1, -2), target)
        G[..., -1, :] = target.sum(-2, dtype=np.float64)
        return cls(H, G, rows, float(np.square(target, dtype=np.float64).sum()))

    def __add__(self, other: SecondMoments) -> SecondMoments:
        return SecondMoments(
            self.H + other.H,
            self.G + other.G,
            self.count + other.count,
            self.target_sumsq + other.target_sumsq,
        )

    def error(self, W: Array) -> float:
        """‖T − X̃W‖² = ‖T‖² − 2⟨G, W⟩ + ⟨W, HW⟩, summed over rows and outputs; never below zero."""
        return max(0.0, self.target_sumsq - 2.0 * float(np.vdot(self.G, W)) + float(np.vdot(W, self.H @ W)))


def covariance(H: Array) -> Array:
    """(d, d) covariance of the inputs, out of second moments (d + 1, d + 1) with the intercept last."""
    n = H[-1, -1]
    mean = H[-1, :-1] / n
    return H[:-1, :-1] / n - np.outer(mean, mean)


def patches(
    x: np.ndarray,
    kernel: Sequence[int],
    *,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    positions: np.ndarray | None = None,
) -> np.ndarray:
    """What a conv reads: (images · p, c · taps), channel-major, without the constant, in x's precision.

    Args:
        x: (images, c, *spatial), any number of spatial axes.
        kernel: size on every spatial axis; taps is their product.
        strides, dilations: one a spatial axis; 1 when left out.
        pads: begins, then ends (top, left, bottom, right in two dimensions), the order of ONNX.
        positions: (images, p) flat indices into the conv's outputs, another draw for each image; None for all
            of them. Only the sampled windows are copied.
    """
    n = len(kernel)
    strides, dilations, pads = strides or [1] * n, dilations or [1] * n, pads or [0] * (2 * n)
    if any(pads):
        x = np.pad(x, ((0, 0), (0, 0), *zip(pads[:n], pads[n:], strict=True)))
    span = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    view = sliding_window_view(x, span, axis=tuple(range(2, 2 + n)))  # (images, c, *places, *span)
    steps = tuple(slice(None, None, s) for s in (*strides, *dilations))
    view = view[(slice(None), slice(None), *steps)]
    images, c, places, taps = view.shape[0], view.shape[1], view.shape[2 : 2 + n], int(np.prod(kernel))
    if positions is None:
        turned = view.transpose(0, *range(2, 2 + n), 1, *range(2 + n, 2 + 2 * n))
        out, area = np.empty(turned.shape, x.dtype), int(np.prod(places))
        pieces(lambda at: np.copyto(out[at], turned[at]), images, area)
        return out.reshape(images * area, c * taps)
    at: tuple[Any, ...] = (np.arange(images)[:, None], slice(None), *np.unravel_index(positions, places))
    picked = view[at]  # (images, p, c, *kernel)
    return picked.reshape(-1, c * taps)


def sample_positions(images: int, area: int, count: int, rng: np.random.Generator) -> np.ndarray | None:
    """(images, count) distinct flat positions for each image, or None when all `area` of them are wanted."""
    if count >= area:
        return None
    return rng.random((images, area)).argpartition(count, axis=1)[:, :count]
