"""Targets of least squares that see the ReLU behind a layer, and targets handed back to the layer in front.

Zhang, Zou, He, Sun, TPAMI 2016 (least squares through a ReLU); De Pierro, IEEE TMI 1995, and Lange, Hunter, Yang, JCGS
2000 (majorise-minimise; the use made of it in `relu_target` and `propagate_target` is ours).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.parallel import pieces


def relu_target(wanted: np.ndarray, now: np.ndarray, top: float = np.inf) -> np.ndarray:
    """Targets that make least squares see the ReLU (or the clipping at `top`) behind it.

    `wanted` where it is inside, else `now` as far as it is outside on the same side: a unit that must stay off
    may be off by any amount. `‖p − target‖²` majorises `‖relu(p) − relu(wanted)‖²` and touches it at `p = now`
    (but for units that are off and should be on, which are drawn on), so a refit on these targets, repeated
    with fresh `now`, lowers the error after the ReLU. Both (rows, n) or any shape.
    """
    target = np.where(wanted > 0, wanted, np.minimum(now, 0))
    return target if top == np.inf else np.where(wanted < top, target, np.maximum(now, top))


def propagate_target(
    residual: np.ndarray,
    kernel: np.ndarray,
    *,
    hidden_hw: Sequence[int],
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
) -> np.ndarray:
    """Kᵀ(residual): the transposed conv that hands what the reader still lacks back to what it reads.

    With `K` the linear map of the reader and `L ≥ ‖K‖²`, a step of `Kᵀ(r)/L` on the hidden activations minimises a
    majoriser of `‖r − K·step‖²`, so the producer can be refit in closed form to the hidden activations so moved. The
    reader is linear: no network is differentiated.

    Args:
        residual: (images, n, h_out, w_out), target − output of the reader.
        kernel: (n, c, kh, kw).
        hidden_hw: (h, w) of the reader's input.
        strides, dilations: of the reader, by axis.
        pads: of the reader: top, left, bottom, right.

    Returns:
        (images, c, h, w).
    """
    top, left, bottom, right = pads
    images, n, ho, wo = residual.shape
    _, c, kh, kw = kernel.shape
    h, w = hidden_hw
    out = np.zeros((images, c, h + top + bottom, w + left + right), residual.dtype)
    kernel = kernel.astype(residual.dtype)

    def some(at: slice) -> None:
        flat = residual[at].transpose(0, 2, 3, 1).reshape(-1, n)
        for i in range(kh):
            for j in range(kw):
                part = (flat @ kernel[:, :, i, j]).reshape(-1, ho, wo, c).transpose(0, 3, 1, 2)
                y, x = i * dilations[0], j * dilations[1]
                out[
                    at,
                    :,
                    y : y + strides[0] * (ho - 1) + 1 : strides[0],
                    x : x + strides[1] * (wo - 1) + 1 : strides[1],
                ] += part

    pieces(some, images, ho * wo)
    return out[:, :, top : top + h, left : left + w]
