"""Other views of the samples: part of an image, enlarged, half of the time mirrored.

What the original says of a view is known as well as what it says of the image, so a view is one more sample for
whatever is fitted to the original without labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import overload

import numpy as np

from onnxprune.runtime.ports import Feeds

LEAST_SIDE = 0.6
"""The smallest part, in shares of a side."""
LEAST_PIXELS = 64
"""Images from so many pixels a side on are looked at in parts: smaller ones lose what they show."""


def viewable(feeds: Feeds) -> bool:
    """Whether all inputs are images: float32 (N, 1 or 3, height, width), large enough to be looked at in parts."""
    return all(
        v.dtype == np.float32 and v.ndim == 4 and v.shape[1] in (1, 3) and min(v.shape[2:]) >= LEAST_PIXELS
        for v in feeds.values()
    )


class Views(Sequence[Mapping[str, np.ndarray]]):
    """Batches, each followed by views of it, made when they are asked for: the same for the same seed.

    Args:
        batches: of images.
        copies: views of each.
        seed: of what they show.
    """

    def __init__(self, batches: Sequence[Feeds], copies: int, seed: int) -> None:
        self.batches, self.copies, self.seed = batches, copies, seed

    def __len__(self) -> int:
        return len(self.batches) * (1 + self.copies)

    @overload
    def __getitem__(self, k: int) -> Feeds: ...
    @overload
    def __getitem__(self, k: slice) -> list[Feeds]: ...
    def __getitem__(self, k: int | slice) -> Feeds | list[Feeds]:
        if isinstance(k, slice):
            return [self[i] for i in range(*k.indices(len(self)))]
        b, copy = divmod(range(len(self))[k], 1 + self.copies)
        if not copy:
            return self.batches[b]
        rng = np.random.default_rng((self.seed, b, copy))
        return {name: np.stack([_view(image, rng) for image in np.asarray(v)]) for name, v in self.batches[b].items()}


def _view(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(channels, height, width) of an image of that size."""
    share = rng.uniform(LEAST_SIDE, 1.0)
    for axis in (1, 2):
        size = image.shape[axis]
        image = _enlarged(image, axis, rng.uniform(0, size * (1 - share)), size * share)
    return image[:, :, ::-1] if rng.random() < 0.5 else image


def _enlarged(image: np.ndarray, axis: int, start: float, length: float) -> np.ndarray:
    """A stretch of an axis, brought to its whole length, linearly interpolated."""
    size = image.shape[axis]
    at = np.clip(start + (np.arange(size) + 0.5) * length / size - 0.5, 0, size - 1)
    low = at.astype(int)
    weight = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    first, second = image.take(low, axis), image.take(np.minimum(low + 1, size - 1), axis)
    return first + weight * (second - first)
