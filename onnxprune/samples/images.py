"""Images as samples: how one becomes an input, and its reading."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import UsageError, unknown
from onnxprune.samples.layout import Entry, Lazy
from onnxprune.samples.messages import saying, shown
from onnxprune.samples.reading import Reading


@dataclass(frozen=True)
class ImageSpec:
    """How an image becomes an input: resized to `size`, then `(pixel / scale - mean) / std` by channel.

    `fit`: "stretch" to the size, "crop" the centre after the short side was scaled to size / `crop`, or
    "pad" the long-side-scaled image with black on the right and below. `mean` and `std` are in the order of
    `order`, one number each or one a channel. Without a `scale` it is 255 for inputs that are floats; those that are
    integers take pixels as they are.
    """

    size: tuple[int, int]  # height, width
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float | None = None
    layout: str = "nchw"
    order: str = "rgb"
    resize: str = "bilinear"
    fit: str = "stretch"
    crop: float = 1.0

    def __post_init__(self) -> None:
        for field, allowed in IMAGE_WORDS.items():
            if getattr(self, field) not in allowed:
                raise unknown(f"{field} of --image", getattr(self, field), allowed)
        if len(self.size) != 2 or min(self.size) < 1:
            raise UsageError(f"image: size={self.size}; give height x width, such as 224x224")
        for field in ("mean", "std"):
            values = getattr(self, field)
            if len(values) not in (1, self.channels) or not np.isfinite(values).all():
                raise UsageError(f"image: {field}={values}; give 1 or {self.channels} finite numbers")
        if not (math.isfinite(self.divisor()) and self.divisor() != 0 and 0 not in self.std and 0 < self.crop <= 1):
            raise UsageError("image: scale and std must not be 0, and crop lies above 0 and up to 1")

    def divisor(self, dtype: np.dtype | None = None) -> float:
        """What pixels from 0 to 255 are divided by for inputs of a type; None: floats."""
        if self.scale is not None:
            return self.scale
        return 255.0 if dtype is None or dtype.kind not in "ui" else 1.0

    @property
    def channels(self) -> int:
        return 1 if self.order == "gray" else 3

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image, with its batch axis of 1."""
        return (1, self.channels, *self.size) if self.layout == "nchw" else (1, *self.size, self.channels)

    @classmethod
    def parse(cls, text: str) -> ImageSpec:
        """`size=224x224,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,layout=nchw,order=rgb,scale=255`."""
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if name not in known:
                raise unknown("name in --image", name, sorted(known))
            if not equals:
                raise UsageError(f"image: {part!r} is not {name}=VALUE")
            try:
                if name == "size":
                    values[name] = tuple(int(side) for side in value.lower().split("x"))
                elif name in ("mean", "std"):
                    values[name] = tuple(float(number) for number in value.split(":"))
                else:
                    values[name] = value.lower() if name in IMAGE_WORDS else float(value)
            except ValueError:
                raise UsageError(f"image: cannot read {part!r}; sizes are 224x224, lists 0.5:0.5") from None
        if "size" not in values:
            raise UsageError("image: size is missing; give height x width, such as size=224x224")
        return cls(**values)


IMAGE_WORDS = {
    "layout": ("nchw", "nhwc"),
    "order": ("rgb", "bgr", "gray"),
    "resize": ("bicubic", "bilinear", "nearest", "lanczos", "box"),
    "fit": ("stretch", "crop", "pad"),
}


def images(reading: Reading, paths: list[Path]) -> Iterator[Entry]:
    """An entry an image; where there are more than the limit, evenly spaced ones: the first would be of one class.

    Raises:
        UsageError: nobody has said how an image becomes an input.
    """
    spec = reading.image
    if spec is None:
        raise UsageError(
            f"{reading.title}: a folder of images; say how the model reads them:"
            " image=ImageSpec(...), or --image size=224x224,mean=...,std=..."
        )
    key = reading.single(reading.title)
    dtype = reading.layout.dtypes[key]
    if reading.limit is not None and reading.limit < len(paths):
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, reading.limit).round().astype(int)]
    for path in paths:
        image = Lazy(spec.shape, dtype, partial(_read_image, path, spec, dtype))
        yield reading.layout.entry(shown(path), {key: image})


def _read_image(path: Path, spec: ImageSpec, dtype: np.dtype) -> np.ndarray:
    from PIL import Image

    height, width = spec.size
    filters = Image.Resampling
    resample = filters[spec.resize.upper()]
    with saying(shown(path)):  # Pillow raises all sorts, its bomb check included
        with Image.open(path) as opened:
            image = opened.convert("L" if spec.order == "gray" else "RGB")
        if spec.fit == "stretch":
            image = image.resize((width, height), resample)
        else:
            ratios = height / image.height, width / image.width
            ratio = max(ratios) / spec.crop if spec.fit == "crop" else min(ratios)
            sides = max(round(image.width * ratio), 1), max(round(image.height * ratio), 1)
            image = image.resize(sides, resample)
            left, top = ((sides[0] - width) // 2, (sides[1] - height) // 2) if spec.fit == "crop" else (0, 0)
            image = image.crop((left, top, left + width, top + height))  # beyond the edge is black
        pixels: np.ndarray = np.asarray(image, np.float32).reshape(height, width, spec.channels)
    if spec.order == "bgr":
        pixels = pixels[..., ::-1]
    pixels = (pixels / spec.divisor(dtype) - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)
    if dtype.kind in "ui":
        pixels = np.clip(np.rint(pixels), np.iinfo(dtype).min, np.iinfo(dtype).max)
    if spec.layout == "nchw":
        pixels = pixels.transpose(2, 0, 1)
    return pixels[None].astype(dtype)
