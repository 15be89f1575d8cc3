"""What is kept for long and does not fit into a run's memory: arrays mapped from temporary files.

They are arrays like others, read and written in place; only their pages may leave memory (`release`), which those of a
file do without being lost.
"""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune.parallel import room

KEPT = 1 / 8
"""Share of the room that one thing may keep in memory: the activations of a network, a set of samples."""
SMALL = 1 << 16
"""Bytes of arrays that are not worth a file."""


def share_of_room() -> int:
    """Bytes that one thing may keep in memory from here."""
    return int(room() * KEPT)


def empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array in a temporary file without a name, of zeros."""
    file = tempfile.TemporaryFile(prefix="onnxprune-")
    return np.memmap(file, dtype, "w+", shape=tuple(shape))


def copied(value: np.ndarray) -> np.ndarray:
    """A copy of an array in a temporary file; it may be written to."""
    mapped = empty(value.shape, value.dtype)
    mapped[...] = value
    release((mapped,))
    return mapped


def release(values: Iterable[Any]) -> None:
    """Take the pages of those of them that lie in files out of memory; they come back when they are looked at."""
    for value in values:
        while isinstance(value, np.ndarray) and not isinstance(value, np.memmap):
            value = value.base
        mapped = getattr(value, "_mmap", None)
        if mapped is not None and value.mode != "c" and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


class Keeper:
    """Keeps arrays: in memory as far as there is room now, in files beyond it."""

    def __init__(self) -> None:
        self.held, self.most = 0, share_of_room()

    def fits(self, size: int) -> bool:
        """Whether there is room for so many bytes more; then they are counted."""
        if size >= SMALL and self.held + size > self.most:
            return False
        self.held += size
        return True

    def zeros(self, shape: Sequence[int]) -> np.ndarray:
        """A new array, float64."""
        return np.zeros(shape) if self.fits(8 * math.prod(shape)) else empty(shape, np.float64)

    def keep(self, value: np.ndarray) -> np.ndarray:
        """The array, or a copy of it in a file; integers and floats alone go there."""
        return value if value.dtype.kind not in "biuf" or self.fits(value.nbytes) else copied(value)


def kept(batches: Iterable[Mapping[str, np.ndarray]]) -> list[Mapping[str, np.ndarray]]:
    """The batches in a list, as many in memory as there is room for."""
    keeper = Keeper()
    return [{name: keeper.keep(value) for name, value in batch.items()} for batch in batches]
