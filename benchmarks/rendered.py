"""Words drawn with DejaVu fonts, as PP-OCR reads them, and what it makes of them.

Words come from the documentation inside Python's standard library; those for calibration and those for the report
have no word in common. Fonts, sizes, colours, margins and noise are drawn by seed. Nothing here knows a pruner.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from photographs import package
from PIL import Image, ImageDraw, ImageFont

HEIGHT = 48
STEP = 32
"""Widths are rounded up to this, so that words of about one length make a batch."""


def vocabulary(rng: np.random.Generator) -> list[str]:
    """Words of 3 to 12 letters and as many numbers as a text has, in random order, each once."""
    from pydoc_data.topics import topics

    found = sorted(set(re.findall(r"\b[A-Za-z]{3,12}\b", " ".join(topics.values()))))
    numbers = [f"{n:,}" if n % 2 else str(n) for n in sorted(set(rng.integers(100, 10**6, len(found) // 10).tolist()))]
    both = found + numbers
    return [both[i] for i in rng.permutation(len(both))]


def fonts() -> list[Path]:
    """DejaVu's text faces, as matplotlib ships them."""
    home = package("matplotlib")
    folder = home / "mpl-data/fonts/ttf" if home else Path("/usr/share/fonts/truetype/dejavu")
    return sorted(p for p in folder.glob("DejaVu*.ttf") if "Display" not in p.name)


def draw(word: str, faces: Sequence[Path], rng: np.random.Generator) -> np.ndarray:
    """(height, width, 3) bytes, RGB: one word on a plain ground, with noise."""
    face = ImageFont.truetype(str(faces[rng.integers(len(faces))]), int(rng.integers(22, 49)))
    dark, light = rng.integers(0, 90, 3), rng.integers(165, 256, 3)
    ink, ground = (dark, light) if rng.random() < 0.7 else (light, dark)
    left, top, right, bottom = face.getbbox(word)
    margin = rng.integers(3, 10, 4)
    size = (int(right - left + margin[0] + margin[1]), int(bottom - top + margin[2] + margin[3]))
    image = Image.new("RGB", size, tuple(int(c) for c in ground))
    place = (int(margin[0] - left), int(margin[2] - top))
    ImageDraw.Draw(image).text(place, word, fill=tuple(int(c) for c in ink), font=face)
    noisy = np.asarray(image, np.float32) + rng.normal(0, rng.uniform(0, 18), (size[1], size[0], 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def as_input(image: np.ndarray, width: int | None = None, height: int = HEIGHT) -> np.ndarray:
    """(3, height, width) float32, BGR, `(pixel / 255 − 0.5) / 0.5`; right of the word: zeros.

    Without a width, the word's own at that height, rounded up to `STEP`.
    """
    wanted = max(1, round(image.shape[1] * height / image.shape[0]))
    width = width or -(-wanted // STEP) * STEP
    small = Image.fromarray(image).resize((min(wanted, width), height), Image.Resampling.BILINEAR)
    scaled = (np.asarray(small, np.float32)[:, :, ::-1] / 255 - 0.5) / 0.5
    out = np.zeros((3, height, width), np.float32)
    out[:, :, : scaled.shape[1]] = scaled.transpose(2, 0, 1)
    return out


def alphabet(model: onnx.ModelProto) -> list[str]:
    """What the recogniser's classes mean: blank, the characters in its metadata, space."""
    text = next(p.value for p in model.metadata_props if p.key == "character")
    return ["", *text.splitlines(), " "]


def decode(scores: np.ndarray, characters: Sequence[str]) -> list[str]:
    """Greedy CTC on (n, steps, classes): repeats merged, blanks dropped, and spaces at either end (the margin)."""
    best = scores.argmax(2)
    fresh = np.pad(best[:, 1:] != best[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return ["".join(characters[c] for c in row[new]).strip() for row, new in zip(best, fresh, strict=True)]


def distance(a: str, b: str) -> int:
    """Levenshtein."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        before, row = row, [i]
        for j, right in enumerate(b, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (left != right)))
    return row[-1]
