"""Which widths a group of channels may have: what is allowed, and the ladder of widths that this leaves."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from onnxprune.channels import ChannelGroup
from onnxprune.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """What widths are allowed.

    Attributes:
        round_to: kept widths are multiples of this; "auto" picks per group.
        min_width: least width of a group.
        include, exclude: regular expressions on group names; only groups that match `include` and not
            `exclude` are cut.
        on_gpu: what "auto" picks for: a GPU or a CPU.
        by_sixteen: names of groups for which it picks multiples of 16.
        multiple: what it picks is a multiple of this too, where a group has two of them and more.
    """

    round_to: int | str = "auto"
    min_width: int = 1
    include: str | None = None
    exclude: str | None = None
    on_gpu: bool = False
    by_sixteen: Collection[str] = ()
    multiple: int = 1

    def allows(self, group: ChannelGroup) -> bool:
        return self.allows_any(names_of(group))

    def allows_any(self, names: Collection[str]) -> bool:
        """Whether what goes by these names may be cut."""
        try:
            wanted = self.include is None or any(re.search(self.include, n) for n in names)
            barred = self.exclude is not None and any(re.search(self.exclude, n) for n in names)
        except re.error as error:
            raise UsageError(f"not a regular expression: {error} - see --include and --exclude") from error
        return wanted and not barred

    def step(self, group: ChannelGroup) -> int:
        """Widths of the group are multiples of this (or its full width).

        "auto": ORT's CPU kernels pay for blocks of 16 channels and leave the blocked layout where a count is
        not a multiple of 4 (depthwise convs then run 6-10x slower); narrow groups cannot afford 16. On a GPU (H200,
        CUDA, batch 32, half the MACs) multiples of 32 made a ResNet-50 1.35x as fast instead of 1.26x, and a RegNet
        was no longer slower than before; groups too narrow for 32 go as on a CPU. In int8, depthwise convolutions want
        multiples of 16 (three at 28x28, AVX-512 with VNNI: 97 us with 28 channels, 35 with 32, 106 with 36, 43 with 48,
        105 with 56, 51 with 64); all others go as in floats.
        """
        size = int(np.bincount(_positions(group)).max()) if len(_positions(group)) else 1
        if self.round_to != "auto":
            step = int(self.round_to)
        elif group.width * size < 8:
            step = 1
        elif group.width * size >= 32 and group.name in self.by_sixteen:
            step = 16
        elif self.on_gpu:
            step = 32 if group.width * size >= 64 else 4
        else:
            step = 16 if group.width * size >= 256 else 8 if group.width * size >= 128 else 4
        if self.round_to == "auto" and group.width * size >= 2 * self.multiple:
            step = math.lcm(step, self.multiple)
        # a unit that spans several channels (a group of a grouped conv) counts for all of them
        return max(1, step // int(np.gcd(step, size)))


def names_of(group: ChannelGroup) -> set[str]:
    """What a group goes by: its name, and the weights that carry its channels."""
    return {group.name} | {s.tensor for s in group.slices if s.role in ("writes", "within")}


def _positions(group: ChannelGroup) -> np.ndarray:
    maker = next(iter(group.weights), group.slices[0])
    return maker.channel[maker.channel >= 0]


class Ladder:
    """A group's allowed widths and the order in which its channels go.

    Attributes:
        order: channels, most important first (ties: lower index first).
        widths: allowed widths, ascending; the last is the full width.
    """

    def __init__(self, group: ChannelGroup, scores: np.ndarray, limits: Limits):
        self.group = group
        self.order = np.argsort(-scores, kind="stable")
        step = limits.step(group)
        least = min(group.width, max(1, limits.min_width))
        widths = [w for w in range(step, group.width, step) if w >= least]
        if not limits.allows(group):
            widths = []
        elif not widths and group.width > least and step > 1 and limits.round_to == "auto":
            widths = [w for w in (group.width // 2,) if w >= least]
        self.widths = [*widths, group.width]

    def nearest(self, width: float) -> int:
        return min(self.widths, key=lambda w: (abs(w - width), w))
