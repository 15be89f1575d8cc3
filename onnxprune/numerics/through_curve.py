"""Targets of least squares that see a function of single elements behind a layer.

Least squares on what a layer writes counts errors where the activation behind it is flat as much as where it is
steep. What the next layer sees is `‖f(p) − f(wanted)‖²`. At `now`, a quadratic stands for it with the slope
`f′·(f(now) − f(wanted))` and, per output, one curvature for all rows, so that its minimum is a plain target of least
squares that are factorised already (majorise-minimise: Lange, Hunter, Yang, JCGS 2000). The curvature starts at the
mean of `f′²` and is doubled where it was too low; steps are extrapolated (FISTA: Beck and Teboulle, SIAM Journal on
Imaging Sciences 2009). The use made of it is ours.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.parallel import pieces

PLACES = 1 << 14
"""Places of a table."""
STRAIGHT = 1e-3
"""A function whose slope varies by less than that share is a line."""
LEAST = 1e-3
"""Least curvature of an output, as a share of the largest anywhere."""


class Table:
    """A function of one number, and its slope, by the nearest of many places.

    Args:
        function: (n,) float64 numbers -> (n,).
        low, high: of the places; beyond them it is what it is there.
    """

    def __init__(self, function: Callable[[np.ndarray], np.ndarray], low: float, high: float) -> None:
        at = np.linspace(low, high, PLACES)
        self.low, self.step = low, (high - low) / (PLACES - 1)
        self.value = np.asarray(function(at), np.float32)
        self.slope = np.gradient(self.value.astype(np.float64), self.step).astype(np.float32)
        self.steepest = float(np.square(self.slope, dtype=np.float64).max())

    @property
    def useful(self) -> bool:
        """Whether it is finite, and no line."""
        finite = bool(np.isfinite(self.value).all()) and np.isfinite(self.steepest)
        return finite and float(np.ptp(self.slope)) > STRAIGHT * float(np.abs(self.slope).max())

    def of(self, v: np.ndarray) -> np.ndarray:
        """f(v), float32."""
        return self.value[self._index(v)]

    def error(self, now: np.ndarray, reached: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """((n,) Σ (f(now) − reached)², (n,) mean f′(now)²) over the rows of (rows, n)."""

        def piece(at: slice) -> tuple[np.ndarray, np.ndarray]:
            index = self._index(now[at])
            off, slope = self.value[index] - reached[at], self.slope[index]
            return np.square(off).sum(axis=0, dtype=np.float64), np.square(slope).sum(axis=0, dtype=np.float64)

        found = pieces(piece, len(now))
        steep = np.sum([b for _, b in found], axis=0) / len(now)
        return np.sum([a for a, _ in found], axis=0), np.maximum(steep, LEAST * self.steepest)

    def target(self, now: np.ndarray, reached: np.ndarray, steep: np.ndarray) -> np.ndarray:
        """(rows, n) float32: what to write so that f comes closer to `reached`, which are f(wanted).

        Args:
            now: (rows, n) what is written.
            reached: the same size.
            steep: (n,) the curvature of each output.
        """
        out, share = np.empty(now.shape, np.float32), (1 / steep).astype(np.float32)

        def piece(at: slice) -> None:
            index = self._index(now[at])
            out[at] = now[at] - self.slope[index] * (self.value[index] - reached[at]) * share

        pieces(piece, len(now))
        return out

    def _index(self, v: np.ndarray) -> np.ndarray:
        found = (v - np.float32(self.low)) * np.float32(1 / self.step) + np.float32(0.5)
        return np.clip(found, 0, PLACES - 1, out=found).astype(np.int32)
