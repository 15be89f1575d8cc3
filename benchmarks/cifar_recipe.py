"""The recipe of `fmnist_recipe.py` for the CIFAR nets. The last 5,000 training images are left for tuning.

CIFAR_IMAGES=DIR onnxprune train cifar_resnet20.onnx --method csgd --recipe benchmarks/cifar_recipe.py --calib x.npz

DIR is the folder of packed images (without it ../shared/data).
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent))

from common import PACKED, Cifar
from fmnist_recipe import BATCH, JUDGED, loss, varied

__all__ = ["batches", "held_out", "loss"]
REACH = 4
"""Pixels by which an image is moved at most; half of the images are mirrored."""
_passes = itertools.count()


@functools.cache
def labelled() -> tuple[np.ndarray, np.ndarray]:
    """The first 45,000 training images, as the nets read them, and their labels."""
    return Cifar(Path(os.environ.get("CIFAR_IMAGES", PACKED)), first=1).training(slice(Cifar.TRAINING))


def held_out() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The images to judge by, as they are."""
    images, labels = (part[-JUDGED:] for part in labelled())
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH], labels[start : start + BATCH]


def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One pass over the training images, in another order every time."""
    images, labels = (part[:-JUDGED] for part in labelled())
    yield from varied(images, labels, REACH, np.random.default_rng(next(_passes)))
