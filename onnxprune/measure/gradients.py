"""What a backward pass says of each channel, as `train.gradients` measures it and criteria read it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Gradients:
    """w·g, g = ∂L/∂w, of everything that lives and dies with a channel, batch by batch.

    Attributes:
        sums: (batches, width) Σ_i w_i g_i.
        squares: (batches, width) Σ_i (w_i g_i)².
    """

    sums: np.ndarray
    squares: np.ndarray
