"""A recipe for the Fashion-MNIST nets: labelled batches and a loss. The last 5,000 training images are left for tuning.

onnxprune train resnet20_fmnist.onnx --method csgd --recipe benchmarks/fmnist_recipe.py --calib samples.npz
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parent))

from common import DATA, Fashion

BATCH = 64
REACH = 2
"""Pixels by which an image is moved at most; half of the images are mirrored."""
JUDGED = 1000
"""Images that nothing is trained on: what training reaches is judged by them."""
_passes = itertools.count()


def labelled(rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """Some of the first 55,000 training images, as the nets read them, and their labels."""
    tools = Fashion().tools
    images = tools.read_idx(DATA / "train-images-idx3-ubyte.gz")[: tools.TRAINING][rows]
    labels = tools.read_idx(DATA / "train-labels-idx1-ubyte.gz")[: tools.TRAINING][rows]
    return tools.as_input(images), labels.astype(np.int64)


def held_out() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The images to judge by, as they are."""
    images, labels = labelled(slice(-JUDGED, None))
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH], labels[start : start + BATCH]


def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One pass over the training images, in another order every time."""
    yield from varied(*labelled(slice(None, -JUDGED)), REACH, np.random.default_rng(next(_passes)))


def varied(
    images: np.ndarray, labels: np.ndarray, reach: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of all images, in any order, moved and mirrored."""
    padded = np.pad(images, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="edge")
    order = rng.permutation(len(images))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        rows = order[start : start + BATCH]
        dy, dx = rng.integers(0, 2 * reach + 1, 2)
        moved = padded[rows, :, dy : dy + images.shape[2], dx : dx + images.shape[3]]
        mirrored = np.where(rng.random((BATCH, 1, 1, 1)) < 0.5, moved[..., ::-1], moved)
        yield np.ascontiguousarray(mirrored), labels[rows]


def loss(outputs: dict[str, torch.Tensor], labels: np.ndarray) -> torch.Tensor:
    """Cross-entropy."""
    return torch.nn.functional.cross_entropy(next(iter(outputs.values())), torch.from_numpy(labels))
