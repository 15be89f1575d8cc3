"""Images that judge several times: each blended with another, where a network gives an image classes.

What a cut does is told by how the answers change, and a hundred images have few answers that are close to changing: a
plan that looks best on them is often only best on them. A rectangle of one image put into another makes an image that
nothing was fitted on either, and whose answer is less sure. Of 17 plans of a MobileNetV2-like net at a tenth of its
MACs, ranked by their damage to 5,000 images after the thorough repair: 96 images rank them with 0.60 (Spearman), 32
blends of each with 0.73, the 5,000 themselves with 0.79; flips and shifts with 0.40. Ours; the rectangles are CutMix
(Yun et al., ICCV 2019), which trains with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.channels import Analysed
from onnxprune.measure.part import SCORES
from onnxprune.measure.parts import parts_of
from onnxprune.runtime.ports import Feeds

LEAST = 8
"""Pixels of the shorter side of an image."""
COLOURS = 4
"""An axis of an image that is no longer than this counts its colours."""
BYTES = 1 << 28
"""Of blends, more of which than take part in single cuts."""
FEWEST = 32
"""Images, of which fewer are no pool to blend from."""


@dataclass(frozen=True)
class Views:
    """What blends images.

    Attributes:
        name: of the input.
        axes: of rows and columns.
        count: blends of every image; 0: none.
        pool: (images, ...) what they are blended with.
        seed: of the rectangles.
    """

    name: str = ""
    axes: tuple[int, int] = (2, 3)
    count: int = 0
    pool: np.ndarray = field(default_factory=lambda: np.zeros(0), compare=False)
    seed: int = 0

    @classmethod
    def of(
        cls,
        net: Analysed,
        batches: Sequence[Feeds],
        run: Callable[[Feeds], Sequence[np.ndarray]],
        afford: Callable[[int], int],
        seed: int = 0,
    ) -> Views:
        """Those of a network.

        Args:
            net: the original network.
            batches: its samples.
            run: gives its outputs.
            afford: images -> how many blends of each can be paid for.
            seed: of the rectangles.
        """
        if not batches or len(batches[0]) != 1:
            return NO_VIEWS
        ((name, first),) = batches[0].items()
        images = [feeds[name] for feeds in batches]
        if not _image(first) or any(x.shape[1:] != first.shape[1:] for x in images):
            return NO_VIEWS
        pool = np.concatenate(images)
        count = afford(len(pool)) if len(pool) >= FEWEST else 0
        if count < 1 or not _classes(net, run(batches[0])):
            return NO_VIEWS
        rows = rows_of_image(first.shape)
        return cls(name, (rows, rows + 1), count, pool, seed)

    def __bool__(self) -> bool:
        return self.count > 0

    def more(self, most: int, batches: Sequence[Feeds]) -> Views:
        """The same with up to so many blends of each of these samples, as far as they may be held."""
        size = sum(feeds[self.name].nbytes for feeds in batches) if self else 0
        return replace(self, count=max(self.count, min(most, BYTES // size))) if size else self

    def batches(self, batches: Sequence[Feeds]) -> list[list[Feeds]]:
        """Each batch: as it is, and blended."""
        return [[feeds, *(self._blended(feeds, k, v) for v in range(self.count))] for k, feeds in enumerate(batches)]

    def _blended(self, feeds: Feeds, batch: int, view: int) -> Feeds:
        """A rectangle of each image, of a share of it drawn evenly from none to all, comes from another."""
        rng = np.random.default_rng((self.seed, batch, view))
        x = np.array(feeds[self.name])
        share = np.sqrt(rng.random(len(x)))
        others = self.pool[rng.integers(0, len(self.pool), len(x))]
        corner = rng.random((2, len(x)))
        for image, other, side, at in zip(x, others, share, corner.T, strict=True):
            where = [slice(None)] * image.ndim
            for axis, start in zip(self.axes, at, strict=True):
                size = image.shape[axis - 1]
                length = int(size * side)
                first = int(start * (size - length + 1))
                where[axis - 1] = slice(first, first + length)
            image[tuple(where)] = other[tuple(where)]
        return {**feeds, self.name: x}


NO_VIEWS = Views()


def rows_of_image(shape: Sequence[int]) -> int:
    """The axis of an image's rows, in front of that of its columns; 0 where samples of that shape are none."""
    return 0 if len(shape) != 4 else 2 if shape[1] <= COLOURS else 1 if shape[3] <= COLOURS else 0


def _image(value: np.ndarray) -> bool:
    rows = rows_of_image(value.shape)
    return value.dtype.kind == "f" and rows > 0 and min(value.shape[rows : rows + 2]) >= LEAST


def _classes(net: Analysed, outputs: Sequence[np.ndarray]) -> bool:
    """Whether all that it says is what an image is."""
    named = dict(zip(net.graph.outputs, map(np.asarray, outputs), strict=True))
    parts = parts_of(net.graph, net.shapes, named, said=net.said)
    return all(p.kind == SCORES and not p.form and named[p.output].ndim == 2 for p in parts)
