"""Convolutions as linear maps: one after another, and side by side, made one in exact arithmetic. Arrays only.

A map is `y[o, p] = Σ_{i,k} W[o, i, k] · x[i, stride·p − before + step·k] + b[o]`, x zero beyond its borders, i over the
inputs of o's group. Two in a row are one where no border stands between them: where the second reads beyond its borders
it finds zeros, and the one map that the first would have made of zeros, its bias; so the first must be a point without
a bias there. Weights are worked out when they are asked for: what a map costs is known before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from math import gcd, prod

import numpy as np

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class ConvMap:
    """A convolution.

    Attributes:
        outputs, inputs: channels.
        groups: of channels; outputs of one read inputs of the same.
        taps: of the kernel, on each axis.
        strides, steps: between outputs, and between taps.
        before, behind: zeros at either end of each axis.
        bias: (outputs,) float64.
        make: works out the weight, (outputs, inputs / groups, *taps) float64.
    """

    outputs: int
    inputs: int
    groups: int
    taps: Sizes
    strides: Sizes
    steps: Sizes
    before: Sizes
    behind: Sizes
    bias: np.ndarray = field(repr=False)
    make: Callable[[], np.ndarray] = field(repr=False)

    @cached_property
    def weight(self) -> np.ndarray:
        """(outputs, inputs / groups, *taps) float64."""
        return self.make()

    @property
    def size(self) -> int:
        """Numbers in the weight: multiply-accumulates of one position."""
        return self.outputs * (self.inputs // self.groups) * prod(self.taps)

    @property
    def point(self) -> bool:
        """Whether every output is made of one position, and there is one for each."""
        ones = (1,) * len(self.taps)
        return self.taps == self.strides == ones and not any((*self.before, *self.behind))


def identity(channels: int, axes: int, before: Sizes = (), behind: Sizes = ()) -> ConvMap:
    """What hands every channel on, with zeros at the ends of each axis where some are given."""
    ones, none = (1,) * axes, (0,) * axes
    return ConvMap(
        channels, channels, channels, ones, ones, ones, before or none, behind or none, np.zeros(channels),
        lambda: np.ones((channels, 1, *ones)),
    )  # fmt: skip


def scaled(m: ConvMap, factor: np.ndarray, shift: np.ndarray) -> ConvMap:
    """`factor · m + shift`, (outputs,) each."""
    along = (-1, *[1] * (1 + len(m.taps)))
    return replace(m, bias=factor * m.bias + shift, make=lambda: m.weight * factor.reshape(along))


def after(first: ConvMap, second: ConvMap) -> ConvMap | None:
    """The two in a row as one; None where that is none, at the borders or by its steps."""
    if first.outputs != second.inputs:
        return None
    taps, steps, spread = [], [], []
    for axis in range(len(first.taps)):
        padded = second.before[axis] or second.behind[axis]
        if padded and (first.taps[axis] > 1 or first.bias.any()):
            return None
        step = second.steps[axis] * first.strides[axis]
        own = step if first.taps[axis] == 1 else first.steps[axis]
        if second.taps[axis] > 1 and step % own:
            return None
        spread.append(step // own)
        taps.append(first.taps[axis] + (second.taps[axis] - 1) * spread[-1])
        steps.append(own if second.taps[axis] > 1 else first.steps[axis])
    groups = gcd(first.groups, second.groups)

    def make() -> np.ndarray:
        return _product(first, second, groups, tuple(taps), tuple(spread))

    W = second.weight.reshape(second.groups, second.outputs // second.groups, second.inputs // second.groups, -1)
    through = np.einsum("gomk,gm->go", W, first.bias.reshape(second.groups, -1)).ravel()
    before, behind = (
        tuple(f + s * p for f, s, p in zip(own, first.strides, more, strict=True))
        for own, more in ((first.before, second.before), (first.behind, second.behind))
    )
    strides = tuple(a * b for a, b in zip(first.strides, second.strides, strict=True))
    return ConvMap(
        second.outputs, first.inputs, groups, tuple(taps), strides, tuple(steps), before, behind,
        second.bias + through, make,
    )  # fmt: skip


def _product(first: ConvMap, second: ConvMap, groups: int, taps: Sizes, spread: Sizes) -> np.ndarray:
    """The weight of two in a row: tap k of the second puts the first's kernel down at `spread · k`."""
    A, B = regrouped(first, groups), regrouped(second, groups)
    A = A.reshape(groups, first.outputs // groups, -1)
    B = B.reshape(groups, second.outputs // groups, second.inputs // groups, -1)
    made = np.zeros((groups, second.outputs // groups, first.inputs // groups, *taps))
    for n, k in enumerate(product(*map(range, second.taps))):
        at = (slice(s * j, s * j + size) for s, j, size in zip(spread, k, first.taps, strict=True))
        put = made[(slice(None), slice(None), slice(None), *at)]
        put += (B[..., n] @ A).reshape(put.shape)
    return made.reshape(second.outputs, -1, *taps)


def beside(one: ConvMap, other: ConvMap) -> ConvMap | None:
    """The sum of two that read the same, as one; None where their outputs do not lie on one another."""
    known = (one.outputs, one.inputs, one.strides)
    if known != (other.outputs, other.inputs, other.strides):
        return None
    taps, steps = [], []
    before, behind = (tuple(map(max, getattr(one, s), getattr(other, s))) for s in ("before", "behind"))
    for axis in range(len(one.taps)):
        wide = [m for m in (one, other) if m.taps[axis] > 1]
        step = wide[0].steps[axis] if wide else 1
        ends = {m.before[axis] + m.behind[axis] - m.steps[axis] * (m.taps[axis] - 1) for m in (one, other)}
        off = [before[axis] - m.before[axis] for m in (one, other)]
        if len(ends) > 1 or any(m.steps[axis] != step for m in wide) or any(o % step for o in off):
            return None
        taps.append(max(o // step + m.taps[axis] for o, m in zip(off, (one, other), strict=True)))
        steps.append(step)
    groups = gcd(one.groups, other.groups)

    def make() -> np.ndarray:
        made = np.zeros((one.outputs, one.inputs // groups, *taps))
        for m in (one, other):
            lead = [(b - own) // s for b, own, s in zip(before, m.before, steps, strict=True)]
            at = (slice(a, a + n) for a, n in zip(lead, m.taps, strict=True))
            made[(slice(None), slice(None), *at)] += regrouped(m, groups)
        return made

    return ConvMap(
        one.outputs, one.inputs, groups, tuple(taps), one.strides, tuple(steps), before, behind, one.bias + other.bias,
        make,
    )  # fmt: skip


def regrouped(m: ConvMap, groups: int) -> np.ndarray:
    """(outputs, inputs / groups, *taps): the weight as of fewer groups, zeros between those that it has."""
    parts, o, i = m.groups // groups, m.outputs // m.groups, m.inputs // m.groups
    if parts == 1:
        return m.weight
    made, each = np.zeros((groups, parts, o, parts, i, *m.taps)), np.arange(parts)
    made[:, each, :, each] = np.moveaxis(m.weight.reshape(groups, parts, o, i, *m.taps), 1, 0)
    return made.reshape(m.outputs, -1, *m.taps)
