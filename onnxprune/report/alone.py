"""What a cut alone does to the outputs, as data: several widths of a group of channels, or a block gone."""

from __future__ import annotations

from dataclasses import dataclass

LITTLE = 0.01
"""Damage that counts as little: 0.01 nats a sample between class scores, one percent of the variance otherwise."""


@dataclass(frozen=True)
class Point:
    """One cut, measured.

    Attributes:
        kept: channels of the group that stay.
        damage: to the outputs, see `measure.damage`; None where they were not finite.
        macs_removed: share of the whole network's MACs that this cut alone removes.
    """

    kept: int
    damage: float | None
    macs_removed: float


@dataclass(frozen=True)
class Row:
    """All measured cuts of one thing, widest first.

    Attributes:
        kind: "group" (of channels), or "block" (kept 1 or 0).
        name, width: what it is called, and how many channels it has uncut.
    """

    kind: str
    name: str
    width: int
    points: tuple[Point, ...]

    def near(self, share: float) -> Point | None:
        """The measured point nearest to a kept share."""
        return min(self.points, key=lambda p: (abs(p.kept - share * self.width), p.kept), default=None)

    def can_go(self, little: float = LITTLE) -> float:
        """The largest share that went, at this width and all wider ones, at no more than little damage."""
        gone = 0.0
        for p in self.points:
            if p.damage is None or p.damage > little:
                break
            gone = 1 - p.kept / self.width
        return gone
