"""Images, signals and heat maps: how they are told, and what is asked of each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import uniform_filter

from onnxprune.measure.kinds.look import Look
from onnxprune.measure.kinds.scores import SIDE, peaked
from onnxprune.measure.part import HEAT_MAP, IMAGE, SIGNAL, Part, Values

COLOURS, PIXELS, SMOOTH = (1, 3, 4), 16, 0.7
"""Channels of an image, its least side, and the least correlation of neighbouring pixels."""
LENGTH = 256
"""Steps from which one or two channels are a signal."""
WINDOW = 7
"""Side of the windows of SSIM (Wang et al., 2004), all pixels of one weight."""
STABLE = (0.01, 0.03)
NEAR = 0.02
"""Share of the longer side by which a peak may move."""


def heat_maps(look: Look) -> dict[int, Part]:
    """Maps that are nearly 0 but for peaks."""
    return {
        k: replace(part, kind=HEAT_MAP)
        for k, part, value in look.open()
        if value.ndim == 4 and min(value.shape[-2:]) >= SIDE and part.regions == ((),) and peaked(value[:8])
    }


def images(look: Look) -> dict[int, Part]:
    """(samples, 1, 3 or 4, height, width) whose neighbouring pixels are alike."""
    return {
        k: replace(part, kind=IMAGE)
        for k, part, value in look.open()
        if value.ndim == 4 and value.shape[1] in COLOURS and min(value.shape[2:]) >= PIXELS and _smooth(value[:8])
    }


def _smooth(value: np.ndarray) -> bool:
    left, right = value[..., :-1].astype(np.float64).ravel(), value[..., 1:].astype(np.float64).ravel()
    return bool(left.std() > 0 and right.std() > 0 and np.corrcoef(left, right)[0, 1] >= SMOOTH)


def signals(look: Look) -> dict[int, Part]:
    """(samples, one or two channels, many steps)."""
    return {
        k: replace(part, kind=SIGNAL)
        for k, part, value in look.open()
        if value.ndim == 3 and value.shape[1] <= 2 and value.shape[2] >= LENGTH
    }


@dataclass
class Pictures:
    """What is summed up of images or signals.

    Attributes:
        part: which.
    """

    part: Part
    _noise: float = 0.0
    _values: int = 0
    _low: float = np.inf
    _high: float = -np.inf
    _alike: float = 0.0
    _planes: int = 0

    def add(self, was: Values, now: Values, samples: int) -> None:
        """A batch more: the outputs of both."""
        a, b = (self.part.of(v[self.part.output]).astype(np.float64) for v in (was, now))
        self._noise += float(np.square(a - b).sum())
        self._values += a.size
        self._low, self._high = min(self._low, float(a.min())), max(self._high, float(a.max()))
        if self.part.kind == IMAGE and a.ndim > 2 and min(a.shape[-2:]) >= WINDOW:
            reach = self._range()
            for u, v in zip(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]), strict=True):
                self._alike += ssim(u, v, reach)
                self._planes += 1

    def _range(self) -> float:
        """Of the values: 1 or 255 where they are so scaled."""
        for top in (1.0, 255.0):
            if self._low >= -0.05 * top and 0.5 * top <= self._high <= 1.05 * top:
                return top
        return max(self._high - self._low, 1e-12)

    def figures(self) -> dict[str, float]:
        """What the sums come to; PSNR of 300 dB at most."""
        if not self._values:
            return {}
        power = self._noise / self._values
        psnr = 300.0 if power <= 0 else min(300.0, 10 * float(np.log10(self._range() ** 2 / power)))
        return {"psnr": psnr} | ({"ssim": self._alike / self._planes} if self._planes else {})


def ssim(a: np.ndarray, b: np.ndarray, reach: float) -> float:
    """Structural similarity of two planes whose values span `reach`, over the windows that lie within."""
    edge = WINDOW // 2
    c1, c2 = ((k * reach) ** 2 for k in STABLE)

    def mean(v: np.ndarray) -> np.ndarray:
        return np.asarray(uniform_filter(v, WINDOW))[edge:-edge, edge:-edge]

    u, v = mean(a), mean(b)
    uu, vv, uv = mean(a * a) - u * u, mean(b * b) - v * v, mean(a * b) - u * v
    found = (2 * u * v + c1) * (2 * uv + c2) / ((u * u + v * v + c1) * (uu + vv + c2))
    return float(found.mean())


@dataclass
class Peaks:
    """How many maps have their largest value where it was.

    Attributes:
        part: (samples, maps, height, width).
    """

    part: Part
    _near: int = 0
    _maps: int = 0

    def add(self, was: Values, now: Values, samples: int) -> None:
        """A batch more: the outputs of both."""
        a, b = (self.part.of(v[self.part.output]) for v in (was, now))
        if a.ndim < 2:
            return
        sizes = a.shape[-2:]
        at = [
            np.stack(np.unravel_index(v.reshape(-1, v.shape[-2] * v.shape[-1]).argmax(axis=1), sizes)) for v in (a, b)
        ]
        away = np.abs(at[0] - at[1]).max(axis=0)
        self._near += int((away <= NEAR * max(sizes)).sum())
        self._maps += away.size

    def figures(self) -> dict[str, float]:
        """What the sums come to."""
        return {"peaks": self._near / self._maps} if self._maps else {}
