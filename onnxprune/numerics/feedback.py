"""Weights rounded to a grid of integers, each rounding error made up for by the weights that are still to be rounded.

GPTQ's order of work (Frantar, Ashkboos, Hoefler, Alistarh, ICLR 2023), which is optimal brain surgery (Hassibi & Stork,
NeurIPS 1992) with rounding in place of removal. Arrays only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DAMP = 1e-2
"""Added to the diagonal of the second moments, relative to its mean, as GPTQ does."""


def round_with_feedback(W: Array, S: Array, scale: Array, low: int, high: int) -> NDArray[np.int64]:
    """(parts, inputs, outputs) integers q between `low` and `high` such that `q · scale` does nearly what `W` does.

    Inputs go in the order of their second moments, the largest first. With `U` the upper Cholesky factor of `S⁻¹`,
    input i is rounded, and what that changes is taken from those behind it:

        e = (w_i − q_i · scale) / U_ii,   w_j ← w_j − U_ij e   for j > i

    Args:
        W: (parts, inputs, outputs) the weights.
        S: (parts, inputs, inputs) second moments, or covariance, of what they read.
        scale: (parts, outputs) positive, of the grid.
        low, high: of the integers.

    Raises:
        ValueError: the second moments are not finite.
    """
    if not np.isfinite(S).all():
        raise ValueError("second moments must be finite")
    diag = np.diagonal(S, axis1=1, axis2=2)
    order = np.argsort(-diag, axis=1, kind="stable")
    sorted_S = np.take_along_axis(np.take_along_axis(S, order[:, :, None], 1), order[:, None, :], 2)
    left = np.take_along_axis(np.asarray(W, np.float64), order[:, :, None], 1)
    U = _factors(sorted_S)
    found = np.empty(left.shape, np.int64)
    for i in range(left.shape[1]):
        now = left[:, i]
        found[:, i] = np.clip(np.rint(now / scale), low, high)
        error = (now - found[:, i] * scale) / U[:, i, i, None]
        left[:, i + 1 :] -= U[:, i, i + 1 :, None] * error[:, None]
    out = np.empty_like(found)
    np.put_along_axis(out, order[:, :, None], found, 1)
    return out


def _factors(S: Array) -> Array:
    """(parts, d, d) upper triangular U with UᵀU = (S + damping)⁻¹; inputs that are always zero stand alone."""
    mean = np.maximum(np.diagonal(S, axis1=1, axis2=2).mean(1), 1e-30)
    eye = np.eye(S.shape[1])
    for damp in (DAMP, 1e-1, 1.0):  # products formed in float32 may leave S indefinite
        try:
            inverse = np.linalg.inv(np.linalg.cholesky(S + damp * mean[:, None, None] * eye))
            return np.swapaxes(np.linalg.cholesky(np.swapaxes(inverse, 1, 2) @ inverse), 1, 2)
        except np.linalg.LinAlgError:
            continue
    return np.broadcast_to(eye, S.shape)
