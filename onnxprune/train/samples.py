"""Samples for training: any batch of any epoch by number, and the augmentations.

A batch is a function of the seed and the step alone, so a run that was killed goes on with the very batches that it
would have had, and ranks of a data-parallel run need not talk to share an epoch out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.errors import UsageError, unknown
from onnxprune.runtime.ports import Feeds

LEAST, MOST = 8, 64
"""Samples of a batch at least and at most, where nobody says how many."""
SHARE = 16
"""Samples that one thread takes of a batch."""


class Samples:
    """All samples in memory. Alike ones are shuffled one by one; of several sizes, batch by batch as they came.

    Args:
        batches: feeds, each of several samples.
        size: samples of a batch; None: about an eighth of all, so that there are several steps to an epoch.
        unit: samples that belong together: a batch, and a share of one, is a multiple of it.
    """

    def __init__(self, batches: Iterable[Feeds], size: int | None = None, unit: int = 1):
        given = [{k: np.asarray(v) for k, v in b.items()} for b in batches]
        self.unit = unit
        self.count = sum(len(next(iter(b.values()))) for b in given)
        wanted = min(MOST, max(LEAST, 1 << max(0, (self.count // 8).bit_length() - 1))) if size is None else size
        self.size = max(unit, min(wanted, self.count) // unit * unit)
        alike = all(len({b[k].shape[1:] for b in given}) == 1 for k in given[0])
        self.whole = {k: np.concatenate([b[k] for b in given]) for k in given[0]} if alike else None
        self.parts = given

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch; samples that do not fill one wait for the next epoch's order."""
        return len(self.parts) if self.whole is None else max(1, self.count // self.size)

    def batch(self, step: int, seed: int, rank: int = 0, ranks: int = 1) -> dict[str, np.ndarray]:
        """The feeds of a step, or a rank's share of them."""
        epoch, at = divmod(step, self.per_epoch)
        rng = np.random.default_rng([seed, epoch])
        if self.whole is None:
            order = rng.permutation(len(self.parts))
            return {k: v[rank::ranks] for k, v in self.parts[order[at]].items()}
        rows = rng.permutation(self.count)[at * self.size : (at + 1) * self.size]
        rows = rows.reshape(-1, self.unit)[rank::ranks].reshape(-1)
        return {k: v[rows] for k, v in self.whole.items()}

    def all(self) -> list[dict[str, np.ndarray]]:
        """Every sample once, in order."""
        if self.whole is None:
            return self.parts
        return self.shares(self.whole)

    def shares(self, feeds: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The samples in parts of about `SHARE`, none of them left out."""
        size = max(self.unit, SHARE // self.unit * self.unit)
        count = len(next(iter(feeds.values())))
        return [{k: v[i : i + size] for k, v in feeds.items()} for i in range(0, count, size)]

    def parted(self, share: float) -> tuple[Samples, Samples | None]:
        """(most of the samples, the share at the end), or all of them and None where there are too few to part."""
        if self.whole is None:
            last = max(1, round(share * len(self.parts)))
            halves = (self.parts[:-last], self.parts[-last:]) if len(self.parts) > 1 else (self.parts, [])
        else:
            units = self.count // self.unit
            at = (units - max(1, round(share * units))) * self.unit
            first, rest = ({k: v[rows] for k, v in self.whole.items()} for rows in (slice(at), slice(at, None)))
            halves = ([first], [rest]) if at else (self.parts, [])
        most, few = halves
        return Samples(most, self.size, self.unit), Samples(few, self.size, self.unit) if few else None


# ---- augmentations -----------------------------------------------------------------------------------------


def _flip(x: Tensor, amount: float, rng: torch.Generator) -> Tensor:
    """Half of the images mirrored left to right."""
    chosen = torch.rand(len(x), 1, 1, 1, generator=rng).to(x.device) < 0.5
    return torch.where(chosen, x.flip(3), x)


def _shift(x: Tensor, amount: float, rng: torch.Generator) -> Tensor:
    """Every image moved by up to `amount` pixels; its edge is repeated where nothing is left."""
    n, _, h, w = x.shape
    reach = int(amount)
    dy, dx = torch.randint(0, 2 * reach + 1, (2, n, 1, 1, 1), generator=rng).to(x.device)
    x = F.pad(x, (reach,) * 4, mode="replicate")
    rows = torch.arange(h, device=x.device)[:, None] + dy
    columns = torch.arange(w, device=x.device)[None, :] + dx
    flat = (rows * (w + 2 * reach) + columns).reshape(n, 1, -1).expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, flat).reshape(n, -1, h, w)


def _crop(x: Tensor, amount: float, rng: torch.Generator) -> Tensor:
    """A window of every image, of a share of its area drawn evenly from [1 − amount, 1], at the size of the image."""
    share, *at = torch.rand(3, len(x), generator=rng)
    side = (1 - amount * share).clamp_min(1e-3).sqrt()
    windows = torch.zeros(len(x), 2, 3)
    for k in (0, 1):
        windows[:, k, k], windows[:, k, 2] = side, (1 - side) * (2 * at[k] - 1)
    grid = F.affine_grid(windows, list(x.shape), align_corners=False).to(x.device)
    return F.grid_sample(x.contiguous(), grid, padding_mode="border", align_corners=False)


def _mixup(x: Tensor, amount: float, rng: torch.Generator) -> Tensor:
    """Every image blended with another by a share drawn evenly from [0, amount]; the teacher labels the blend."""
    share = amount * torch.rand(len(x), 1, 1, 1, generator=rng).to(x.device)
    other = torch.randperm(len(x), generator=rng).to(x.device)
    return x + share * (x[other] - x)


def _cutmix(x: Tensor, amount: float, rng: torch.Generator) -> Tensor:
    """A rectangle of every image, of a share of its area drawn evenly from [0, amount], comes from another image."""
    n, _, h, w = x.shape
    share, tall, *at = torch.rand(4, n, generator=rng)
    height = (amount * share).clamp_min(1e-9) ** (0.25 + 0.5 * tall)  # as a share of the image's; so is the width
    box = torch.ones(n, 1, 1, 1, dtype=torch.bool)
    for axis, size, length, start in ((2, h, height, at[0]), (3, w, amount * share / height, at[1])):
        first = (start * (1 - length))[:, None]
        middles = (torch.arange(size) + 0.5) / size
        inside = (middles > first) & (middles < first + length[:, None])
        box = box & inside.reshape(n, 1, *(size if k == axis else 1 for k in (2, 3)))
    other = torch.randperm(n, generator=rng)
    return torch.where(box.to(x.device), x[other.to(x.device)], x)


AUGMENTATIONS: dict[str, tuple[Callable[[Tensor, float, torch.Generator], Tensor], float]] = {
    "flip": (_flip, 1.0),
    "shift": (_shift, 2.0),
    "crop": (_crop, 0.5),
    "mixup": (_mixup, 0.5),
    "cutmix": (_cutmix, 0.5),
}
"""name -> (function of images (n, c, h, w), its amount unless given)."""

MIXING = frozenset({"mixup", "cutmix"})
"""Those that make one image of several."""


NONE = "none"
"""Asked for where samples are not to vary."""
ALIKE = 0.8
"""Share of the samples that the original must take for the same class when they are varied, for that to be harmless."""
LARGE = 64
"""Pixels of a side from which windows of an image are still the image; smaller ones are shifted by an eighth."""


def is_image(value: np.ndarray) -> bool:
    """Whether samples are images: (n, up to 4 channels, h, w) in floating point."""
    return value.ndim == 4 and value.dtype.kind == "f" and value.shape[1] <= 4 and min(value.shape[2:]) >= LEAST


def harmless(classes: Callable[[Tensor], Tensor], x: Tensor, seed: int) -> tuple[str, ...]:
    """The augmentations that suit images which nobody has said anything of: those that leave the original's answers as
    they are, and, where there is one, blends of images. Ours.

    Args:
        classes: images -> what the original takes each of them for.
        x: some images, (n, c, h, w).
        seed: of the variants.
    """
    side, rng = min(x.shape[2:]), torch.Generator().manual_seed(seed)
    amount = max(1, side // 8)
    variants = {
        "flip": x.flip(3),
        **({"crop=0.5": _crop(x, 0.5, rng)} if side >= LARGE else {f"shift={amount}": _shift(x, amount, rng)}),
    }
    before = classes(x)
    found = [spec for spec, varied in variants.items() if float((classes(varied) == before).float().mean()) >= ALIKE]
    return (*found, "cutmix") if found else ()


def one_by_one(specs: Sequence[str]) -> list[str]:
    """The augmentations that leave every image on its own."""
    return [spec for spec in specs if spec.partition("=")[0] not in MIXING]


Augment = Callable[[dict[str, Tensor], int], dict[str, Tensor]]


def augmenter(specs: Sequence[str], seed: int) -> Augment:
    """What changes the feeds of a step: `["flip", "shift=4"]` in that order, on every image input alike.

    Raises:
        UsageError: no such augmentation.
    """
    chosen = []
    for spec in specs:
        name, _, text = spec.partition("=")
        if name not in AUGMENTATIONS:
            raise unknown("augmentation", name, AUGMENTATIONS)
        function, amount = AUGMENTATIONS[name]
        try:
            chosen.append((function, float(text) if text else amount))
        except ValueError:
            raise UsageError(f"augmentation {spec!r} is not {name}=NUMBER") from None

    def augment(feeds: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        if not chosen:
            return feeds
        changed = dict(feeds)
        for name, x in feeds.items():
            if x.ndim == 4 and x.is_floating_point():
                rng = torch.Generator().manual_seed(seed * 1_000_003 + step)  # the same for every input
                for function, amount in chosen:
                    x = function(x, amount, rng)
                changed[name] = x.contiguous(memory_format=torch.channels_last)
        return changed

    return augment
