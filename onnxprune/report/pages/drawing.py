"""Both networks of a result as one drawing: rows of bars as wide as there are channels, the original left, the pruned
network right.

Numbers come from the result's `network`, places from `layout`. What is drawn twice, by blocks and by layers, is shown
once, as the reader chooses. The same as a table: `layers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from onnxprune.measure.outline import VERSION, Outline, Side, Spot
from onnxprune.report.pages.layout import Item, Layout, Wire, blocks_of, collapsed, lay_out, short
from onnxprune.report.terminal import change, plain, si

DRAWN = 600
"""Most rows of a drawing."""
ACROSS = 1000
"""Width of each of the two columns, in units that are stretched to the page."""
TRACK, LANE, LANES = 22, 90, 360
"""Width of a track; the step from lane to lane, and the most that all steps take."""
ROW, LOW, THICK, THIN, GAP = 38, 24, 12, 6, 1
"""Pixels: height of a layer's row, of a join's; of a layer's bar, of all others; between those of a block."""
MANY = 24
"""Bars in a block that are drawn that high; of more, each is lower."""
TOLD = 10
"""Layers of a block that are told of where somebody points at it."""
LEAST = 4
"""Width of the narrowest bar."""


@dataclass(frozen=True)
class Bar:
    """A spot on one side: `kind` is kept, went, ghost or new; x and width in units, y and height in pixels."""

    kind: str
    x: int
    y: int
    width: int
    height: int


def drawings(network: Outline) -> dict[str, Any]:
    """What the page shows of the networks: views with rows, bars and lines; a sentence where there are none."""
    spots = network.spots
    if not spots or network.version > VERSION:
        told = f"The network has {network.left_out} layers and joins: too many to draw." if network.left_out else ""
        return {"views": [], "left_out": told}
    rows = collapsed(spots, blocks_of(spots))
    singles = [(k,) for members in rows for k in members]
    views: list[tuple[str, Sequence[tuple[int, ...]]]] = [("blocks", rows)] if len(rows) < len(singles) else []
    views.append(("every layer", singles))
    shown = [_view(name, spots, lay_out(spots, own)) for name, own in views if len(own) <= DRAWN]
    told = "" if shown else f"The network has {len(rows)} blocks and layers in a row: too many to draw."
    return {"views": shown, "left_out": told}


def _view(name: str, spots: Sequence[Spot], layout: Layout) -> dict[str, Any]:
    heights = [_height(spots, item) for item in layout.items]
    tops = list(accumulate(heights, initial=0))[:-1]
    pen = _Pen(spots, layout, tops, heights)
    return {
        "name": name,
        "height": sum(heights),
        "rows": [
            {"top": top, "height": height, **_row(spots, item)}
            for item, top, height in zip(layout.items, tops, heights, strict=True)
        ],
        "columns": [
            {
                "name": side, "bars": pen.bars[side],
                "ribbons": "".join(pen.ribbon(w, side) for w in getattr(layout, side) if w.straight),
                "wires": "".join(pen.wire(w, side) for w in getattr(layout, side) if not w.straight),
            }
            for side in ("before", "after")
        ],
    }  # fmt: skip


def _height(spots: Sequence[Spot], item: Item) -> int:
    if all(joins(spots[k]) for k in item.members):
        return LOW
    if len(item.members) == 1:
        return ROW
    return max(ROW, min(len(item.members), MANY) * (THIN + GAP) + 16)


class _Pen:
    """Bars of both columns, and what joins them."""

    def __init__(self, spots: Sequence[Spot], layout: Layout, tops: Sequence[int], heights: Sequence[int]):
        sides = [s for spot in spots for s in (spot.before, spot.after) if s is not None]
        self.widest = max((s.channels or 1 for s in sides), default=1) or 1
        lanes = max(layout.lanes, default=0)
        self.step = min(LANE, LANES // max(lanes, 1))
        self.left = TRACK * (layout.tracks + 1)
        self.room = ACROSS - self.left - self.step * lanes
        self.layout, self.tops, self.heights = layout, tops, heights
        self.ends: dict[str, list[tuple[Bar, Bar] | None]] = {"before": [], "after": []}
        self.bars: dict[str, list[Bar]] = {"before": [], "after": []}
        for k, item in enumerate(layout.items):
            for side, found in self.bars.items():
                members = [spots[m] for m in item.members]
                drawn = list(self._bars(k, members[-1:] if all(map(joins, members)) else members, side))
                found += drawn
                real = [bar for bar in drawn if bar.kind in ("kept", "new")]
                self.ends[side].append((real[0], real[-1]) if real else None)

    def _bars(self, k: int, members: Sequence[Spot], side: str) -> Iterator[Bar]:
        alone = len(members) == 1
        height = THIN if not alone or joins(members[0]) else THICK
        height = max(1, height * MANY // len(members)) if len(members) > MANY else height
        whole = len(members) * (height + GAP) - GAP
        y = self.tops[k] + (self.heights[k] - whole) // 2
        if side == "after" and not alone and became(members) == "gone":  # one outline
            members, height = [max(members, key=lambda s: _channels(s.before))], whole
        for spot in members:
            was, now = _channels(spot.before), _channels(spot.after)
            if side == "before":
                kinds = [("kept", was)] if spot.before else []
            elif spot.before is None:
                kinds = [("new", now)]
            elif spot.after is None:
                kinds = [("ghost", was)]
            else:
                kinds = [("went", was)] * (was > now) + [("kept", now)]
            for kind, channels in kinds:
                width = max(LEAST, round(self.room * channels / self.widest))
                yield Bar(kind, self._middle(k) - width // 2, y, width, height)
            y += height + GAP

    def _middle(self, k: int) -> int:
        return self.left + self.step * self.layout.lanes[k] + self.room // 2

    def ribbon(self, wire: Wire, side: str) -> str:
        """From a bar to the one below that reads it, as wide as both."""
        start, end = self.ends[side][wire.start], self.ends[side][wire.end]
        if start is None or end is None:
            return ""
        a, b = start[1], end[0]
        return f"M{a.x} {a.y + a.height}H{a.x + a.width}L{b.x + b.width} {b.y}H{b.x}z"

    def wire(self, wire: Wire, side: str) -> str:
        """A line from the lower end of one bar to the upper end of another."""
        start, end = self.ends[side][wire.start], self.ends[side][wire.end]
        if start is None or end is None:
            return ""
        a, b = start[1], end[0]
        x, y, to, until = self._middle(wire.start), a.y + a.height, self._middle(wire.end), b.y
        if wire.lane is None:
            by = TRACK * (wire.track + 1)
            out, into = a.y + a.height // 2, b.y + b.height // 2
            return f"M{a.x} {out}C{by} {out} {by} {out} {by} {y + 12}V{until - 12}C{by} {into} {by} {into} {b.x} {into}"
        if wire.lane == self.layout.lanes[wire.end]:
            turn = min(y + 26, until)
            return f"M{x} {y}C{x} {turn} {to} {y} {to} {turn}V{until}"
        turn = max(until - 26, y)
        return f"M{x} {y}V{turn}C{x} {until} {to} {turn} {to} {until}"


def joins(spot: Spot) -> bool:
    """Whether it multiplies nothing: it brings several others together, or is an input."""
    return not side_of(spot).macs


def _channels(side: Side | None) -> int:
    return 0 if side is None else max(side.channels or 0, 0)


def _row(spots: Sequence[Spot], item: Item) -> dict[str, Any]:
    """What is said of a row: its name, its numbers, and more on demand."""
    members = [spots[k] for k in item.members]
    before, after = ([side for side in sides if side is not None]
                     for sides in ([s.before for s in members], [s.after for s in members]))  # fmt: skip
    macs = sum(s.macs for s in before), sum(s.macs for s in after)
    params = sum(s.params for s in before), sum(s.params for s in after)
    kind, numbers, more = _of_one(members[0]) if len(members) == 1 else _of_block(members)
    more.append(f"MACs {si(macs[0])} → {si(macs[1])}" if any(macs) else "no MACs of its own")
    more += [f"parameters {si(params[0])} → {si(params[1])}"] if any(params) else []
    changed = macs[0] != macs[1] and macs[1] > 0
    return {
        "name": plain(item.name),
        "state": became(members),
        "join": all(map(joins, members)),
        "kind": plain(kind),
        "numbers": numbers,
        "macs": change(*macs).replace("-", "−").replace(".0%", "%") if changed else "",
        "more": plain("; ".join(more)),
    }


def _of_one(spot: Spot) -> tuple[str, str, list[str]]:
    """A layer's operator, its channels, and both in full."""
    was, now = _channels(spot.before), _channels(spot.after)
    kept = f"{was} → {now}" if was != now else f"{was}"
    numbers = {"gone": f"{was} → gone", "new": f"new, {now}"}.get(state_of(spot), kept)
    ops = [" + ".join((s.op, *s.then)) for s in (spot.before, spot.after) if s is not None]
    told = ops[0] if ops[0] == ops[-1] else f"{ops[0]}, now {ops[-1]}"
    return side_of(spot).op, numbers if was or now else "", [told, f"channels {numbers}"]


def _of_block(members: Sequence[Spot]) -> tuple[str, str, list[str]]:
    """How many there are in a block, what is cut, and what of each."""
    if all(map(joins, members)):
        return f"{len(members)} nodes behind the last layers", "", []
    cut = dict.fromkeys(f"{_channels(s.before)} → {_channels(s.after)}" for s in members if state_of(s) == "cut")
    numbers = {"gone": "gone", "merged": "one layer now"}.get(became(members), "")
    numbers = numbers or _span(list(cut)) or f"{_channels(members[-1].before)}"
    each = [f"{short(s.node, side_of(s).op)} {_of_one(s)[1]}" for s in members[:TOLD]]
    more = [f"and {len(members) - TOLD} more"] if len(members) > TOLD else []
    return f"{len(members)} layers and joins", numbers, [*each, *more]


def _span(cut: Sequence[str]) -> str:
    return "" if not cut else cut[0] if len(cut) == 1 else f"{cut[0]}, …"


def side_of(spot: Spot) -> Side:
    """The original's side of a spot, or the only one."""
    side = spot.before or spot.after
    assert side is not None
    return side


def state_of(spot: Spot) -> str:
    """What has become of a layer: same, cut, gone, new, or "merged" where it is another operator now."""
    if spot.before is None or spot.after is None:
        return "new" if spot.before is None else "gone"
    if spot.before.op != spot.after.op:
        return "merged"
    return "cut" if spot.after.channels != spot.before.channels else "same"


def became(members: Sequence[Spot]) -> str:
    """The same of a block: gone or new where all is; merged where some is another operator now; cut where less is."""
    states = [state_of(s) for s in members]
    if len(set(states)) == 1:
        return states[0]
    if all(s == "gone" or joins(m) for s, m in zip(states, members, strict=True)) and "merged" not in states:
        return "gone"
    return next((kind for kind in ("merged", "gone", "cut", "new") if kind in states), "same").replace("gone", "cut")
