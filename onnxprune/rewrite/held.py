"""What a file holds as integers: a constant with its scale, and the same for another value."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.graph.model import Use

SHRINK, FURTHER = (tuple(np.linspace(1.0, least, 9)) for least in (0.8, 0.6))
"""Shares of the full range that a scale is tried for, and with so few steps as four bits have; that of least square
error is taken."""


def limits(kind: np.dtype) -> tuple[int, int] | None:
    """The least and the largest integer of a type, those of 4 bits included; None: it is not of integers."""
    found = re.fullmatch(r"(u?)int(\d+)", (kind.names or (kind.name,))[0])
    if found is None:
        return None
    steps = 2 ** int(found[2])
    return (0, steps - 1) if found[1] else (-steps // 2, steps // 2 - 1)


@dataclass(frozen=True)
class Held:
    """A constant that a file holds as integers.

    Attributes:
        key: the DequantizeLinear.
        ints: the use of the integers, or of the floats that the graph quantizes.
        scales: the uses of its scale.
        zeros: the uses of its zero point.
        integers: their values, after quantization.
        scale: () or (channels,).
        zero: like the scale, integers; None: zero.
        axis: of the channels, or of the blocks.
        block: how many values along it share a scale, which then has the rank of the integers; 0: as `scale` says.
    """

    key: str
    ints: Use
    scales: tuple[Use, ...]
    zeros: tuple[Use, ...]
    integers: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None
    axis: int
    block: int = 0

    def value(self) -> np.ndarray:
        """What it stands for, in the type of the scale."""
        zero = 0 if self.zero is None else self._along(self.zero.astype(np.int64))
        return ((self.integers.astype(np.int64) - zero) * self._along(self.scale)).astype(self.scale.dtype)

    def _along(self, value: np.ndarray) -> np.ndarray:
        if value.ndim == 0 or self.integers.ndim == 0:
            return value.reshape(())
        if self.block:
            return np.repeat(value, self.block, self.axis).take(range(self.integers.shape[self.axis]), self.axis)
        shape = [1] * self.integers.ndim
        shape[self.axis] = -1
        return value.reshape(shape)

    def again(self, value: np.ndarray) -> Held:
        """The same for another value: with a scale of least square error, symmetric where it was."""
        kind = self.integers.dtype
        low, high = limits(kind) or (0, 0)
        middle, bounds = 0 if low < 0 else (high + 1) // 2, (low, high)
        zero = np.zeros((), np.int64) if self.zero is None else self.zero.astype(np.int64)
        rows = self._rows(value.astype(np.float64))
        most = int(np.abs(self.integers.astype(np.int64) - int(zero.reshape(-1)[0])).max(initial=1))
        if (zero == (0 if low < 0 else middle)).all():
            reach = high - middle if most > (high - middle) // 2 + 1 else max(1, (high - middle) // 2 + 1)
            if reach < high - middle:  # fewer bits, so that no sum of products overflows: they stay so few
                bounds = middle - reach, middle + reach
            scale = np.abs(rows).max(axis=1) / reach
            scale = _best(rows, scale, np.full(len(rows), middle), *bounds)
            found, zeros = scale, np.full(len(rows), int(zero.reshape(-1)[0]))
        else:
            bottom, top = np.minimum(rows.min(axis=1), 0), np.maximum(rows.max(axis=1), 0)
            found = np.where(top > bottom, (top - bottom) / (high - low), 1.0)
            zeros = np.clip(np.rint(low - bottom / found), low, high).astype(np.int64)
        kept = self._scales(zeros) if zero.ndim else zeros[0]
        return self._with(value, self._scales(found), kept, bounds)

    def with_scale(self, value: np.ndarray, scale: np.ndarray) -> Held:
        """The same for another value, with a scale that is given."""
        return self._with(value, scale, np.zeros(()))

    def _with(
        self, value: np.ndarray, scale: np.ndarray, zero: np.ndarray | int, bounds: tuple[int, int] | None = None
    ) -> Held:
        kind = self.integers.dtype
        scale = np.where(scale > 0, scale, 1.0).astype(self.scale.dtype)
        zeros = np.asarray(zero, np.int64).reshape(np.shape(zero))
        wide = replace(self, scale=scale, integers=np.zeros(value.shape, kind))
        found = np.rint(value.astype(np.float64) / wide._along(scale.astype(np.float64))) + wide._along(zeros)
        ints = np.clip(found, *(bounds or limits(kind) or (0, 0))).astype(kind)
        kept = None if self.zero is None else np.broadcast_to(zeros, self.zero.shape).astype(self.zero.dtype)
        return replace(self, integers=ints, scale=scale, zero=kept)

    def _rows(self, value: np.ndarray) -> np.ndarray:
        """(scales, values each)."""
        if self.scale.ndim == 0 or self.scale.size == 1 or value.ndim == 0:
            return value.reshape(1, -1)
        if not self.block:
            return np.moveaxis(value, self.axis, 0).reshape(value.shape[self.axis], -1)
        lines = np.moveaxis(value, self.axis, -1)
        short = -lines.shape[-1] % self.block  # the last block may be shorter
        padded = np.concatenate([lines, np.repeat(lines[..., -1:], short, -1)], axis=-1)
        return padded.reshape(-1, self.block)

    def _scales(self, rows: np.ndarray) -> np.ndarray:
        """One number a row of `_rows`, as scales lie in the file."""
        if not self.block:
            return rows.reshape(self.scale.shape)
        ends = [d for k, d in enumerate(self.scale.shape) if k != self.axis]
        return np.moveaxis(rows.reshape(*ends, -1), -1, self.axis)


def _best(rows: np.ndarray, scale: np.ndarray, zero: np.ndarray, low: int, high: int) -> np.ndarray:
    """The scale of each row, somewhat smaller where that makes less square error."""
    best, least = scale, np.full(len(rows), np.inf)
    for share in SHRINK if high - low > 16 else FURTHER:
        tried = np.where(scale > 0, scale * share, 1.0)[:, None]
        ints = np.clip(np.rint(rows / tried) + zero[:, None], low, high) - zero[:, None]
        error = np.square(ints * tried - rows).sum(axis=1)
        best, least = np.where(error < least, scale * share, best), np.minimum(error, least)
    return best


def same_bytes(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
