"""Samples as a page shows them: what was read as a small picture, and what both models say of it.

Pictures are PNG, no side longer than `SIDE`, written here: the format needs no more than zlib.
"""

from __future__ import annotations

import base64
import re
import struct
import zlib
from dataclasses import dataclass

import numpy as np

MOST, SIDE = 12, 128
"""Most samples; the longest side of a picture, in pixels: larger ones are thinned out."""
BOXES, LONGEST = 50, 400_000
"""Most boxes drawn of one sample; characters of the longest picture."""
PALETTE = np.array(
    [[0, 0, 0], [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0],
     [204, 121, 167], [255, 255, 255]], np.uint8,
)  # fmt: skip
"""Colours of classes that colour-blind people tell apart (Okabe and Ito)."""


@dataclass(frozen=True)
class Box:
    """Corners in shares of the picture's width and height, the class, and the score."""

    x0: float
    y0: float
    x1: float
    y1: float
    label: int
    score: float


@dataclass(frozen=True)
class Picture:
    """A PNG in base64, and its size in pixels.

    Raises:
        ValueError: it is none.
    """

    data: str
    width: int
    height: int

    def __post_init__(self) -> None:
        if len(self.data) > LONGEST or not re.fullmatch(r"iVBOR[A-Za-z0-9+/]*={0,2}", self.data):
            raise ValueError("a picture that is no small PNG in base64")


@dataclass(frozen=True)
class Shown:
    """What both models say of a sample, in one part of the outputs.

    Attributes:
        part, kind: which, and what it is for.
        words: both in words; empty where pictures or boxes say it.
        pictures: of the original, of the pruned model, and how far they are apart; or none.
        before, after: boxes of both.
    """

    part: str
    kind: str
    words: str = ""
    pictures: tuple[Picture, ...] = ()
    before: tuple[Box, ...] = ()
    after: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Sample:
    """A sample that nothing was fitted on.

    Attributes:
        number: its place among those that were held.
        picture: of its first input that is an image; None where there is none.
        outputs: what both models say of it.
    """

    number: int
    picture: Picture | None
    outputs: tuple[Shown, ...]


def picture(pixels: np.ndarray) -> Picture:
    """Pixels, (height, width) or (height, width, 3) of uint8, thinned out to a side of `SIDE`."""
    step = -(-max(pixels.shape[:2]) // SIDE)
    small = np.ascontiguousarray(pixels[::step, ::step])
    height, width = small.shape[:2]
    colour = 2 if small.ndim == 3 else 0
    rows = np.concatenate([np.zeros((height, 1), np.uint8), small.reshape(height, -1)], axis=1)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return Picture(base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode(), width, height)


def grey(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values as uint8, 0 at `low` and 255 at `high`; what is not finite is black."""
    span = high - low or 1.0
    return np.asarray(np.nan_to_num(255 * np.clip((plane - low) / span, 0, 1)).round(), np.uint8)
