"""Photographs that packages ship, as an ImageNet net reads them, and split by file.

Calibration looks at random crops of some photographs, the report at others; no file is on both sides. Most are in the
Debian package gcompris-qt-data (animals, monuments, tools, fish; free licences), inside Qt resource files; few in
Python packages. Twenty carry an ImageNet class at the end of their name (foolbox); their rights are unclear, so they
are read from the installed package and never copied. Nothing here knows a model.
"""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Sequence
from pathlib import Path

import common
import numpy as np
from PIL import Image

SIDE = 224
FITTED = {
    "skimage": ("data", "astronaut.png camera.png coffee.png motorcycle_left.png rocket.jpg brick.png grass.png "
                "gravel.png hubble_deep_field.jpg retina.jpg coins.png"),
    "sklearn": ("datasets/images", "china.jpg"),
    "matplotlib": ("mpl-data/sample_data", "grace_hopper.jpg"),
}  # fmt: skip
SUBJECTS = ("categorization", "erase", "explore_farm_animals", "explore_monuments", "explore_world_animals",
            "explore_world_music")  # fmt: skip
"""Those of its resource files that hold photographs."""
SIGNS = (b"\xff\xd8\xff", b"RIFF", b"\x89PNG")
"""How a JPEG, a WebP and a PNG begin; a resource file has the size of what follows in the four bytes before it."""
HELD = {"skimage": ("data", "chelsea.png"), "sklearn": ("datasets/images", "flower.jpg")}


def package(name: str) -> Path | None:
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def files(table: dict[str, tuple[str, str]]) -> list[Path]:
    """Those of the table that are there."""
    found = []
    for name, (folder, names) in table.items():
        home = package(name)
        found += [p for p in (home / folder / n for n in names.split()) if p.is_file()] if home else []
    return found


def gcompris(folder: Path) -> list[bytes]:
    """gcompris's photographs, out of the folder of its resource files, always in one mixed order; none without it."""
    found: dict[bytes, None] = {}
    for name in SUBJECTS:
        path = folder / f"{name}.rcc"
        data = path.read_bytes() if path.is_file() else b""
        for sign in SIGNS:
            for at in (m.start() for m in re.finditer(re.escape(sign), data)):
                size = int.from_bytes(data[at - 4 : at], "big")
                if 3000 < size <= len(data) - at and _photograph(data[at : at + size]):
                    found.setdefault(data[at : at + size])
    every = list(found)
    return [every[k] for k in np.random.default_rng(0).permutation(len(every))]


def _photograph(data: bytes) -> bool:
    """Whether these bytes are an image large enough, and no plain background."""
    try:
        image = Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, SyntaxError):
        return False
    return min(image.size) >= 160 and float(np.asarray(image, np.float32).std()) > 15


def opened(source: Path | bytes) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source).convert("RGB")


def folder(path: Path | None) -> list[Path]:
    """The pictures in a folder, in name order; none without a folder."""
    kinds = {".jpg", ".jpeg", ".png", ".webp"}
    return sorted(p for p in path.iterdir() if p.suffix.lower() in kinds) if path else []


def labelled() -> list[tuple[Path, int]]:
    """foolbox's twenty photographs and their ImageNet classes."""
    home = package("foolbox")
    if home is None:
        common.say("foolbox is not installed (pip install --no-deps foolbox): no labelled photographs")
        return []
    paths = sorted((home / "data").glob("imagenet_*.jpg"))
    return [(p, int(re.search(r"_(\d+)\.jpg$", p.name)[1])) for p in paths]  # type: ignore[index]


def pixels(image: Image.Image) -> np.ndarray:
    """(3, 224, 224) float32, `(pixel − 127) / 128`: EfficientNet-Lite's own scaling."""
    small = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return ((np.asarray(small, np.float32) - 127) / 128).transpose(2, 0, 1)


def centre(path: Path, crop: float = 0.875) -> np.ndarray:
    """The usual view: the middle square of 7/8 of the short side."""
    image = Image.open(path).convert("RGB")
    side = round(min(image.size) * crop)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return pixels(image.crop((left, top, left + side, top + side)))


def views(sources: Sequence[Path | bytes], count: int, rng: np.random.Generator, least: float = 0.35) -> np.ndarray:
    """(count, 3, 224, 224): random squares of `least` to 1 of the short side, half of them mirrored, files in turn."""
    images = [opened(s) for s in sources[:count]]
    found = []
    for k in range(count):
        image = images[k % len(images)]
        side = round(min(image.size) * rng.uniform(least, 1))
        left, top = rng.integers(0, image.width - side + 1), rng.integers(0, image.height - side + 1)
        view = image.crop((left, top, left + side, top + side))
        found.append(pixels(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else view))
    return np.stack(found)
