"""Where the layers of two networks stand in one drawing: a row each, lanes for branches, tracks for what skips rows.

Knows names and who reads whom, nothing of sizes and colours. Linear in layers and edges; what is looked for around a
layer is bounded.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from onnxprune.measure.outline import INPUT, Spot

BLOCK = 16
"""Most layers and joins that are drawn as one block."""
TAIL = 4
"""Joins behind the last layers that are still drawn one by one."""
TRACKS = 8
"""Tracks beside the bars; what skips rows while all are taken shares one."""
Edges = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Item:
    """A row: a layer, or a block of them.

    Attributes:
        members: places of its spots, ascending.
        name: what it is called.
        before, after: rows that it reads, above it, in the two networks.
    """

    members: tuple[int, ...]
    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class Wire:
    """What leads from a row to one that reads it.

    Attributes:
        start, end: the rows.
        straight: whether the one follows the other, in the same lane, with nothing that is still there in between.
        lane: where it runs down; None: on a track.
        track: which, from outside to the bars.
    """

    start: int
    end: int
    straight: bool = False
    lane: int | None = None
    track: int = 0


@dataclass
class Layout:
    """Rows, the lane of each, and wires of the two networks."""

    items: tuple[Item, ...]
    lanes: tuple[int, ...]
    before: tuple[Wire, ...] = ()
    after: tuple[Wire, ...] = ()
    tracks: int = 0


def short(node: str, op: str) -> str:
    """A layer's name without what exporters put around it."""
    parts = [p for p in node.split("/") if p]
    last = parts[-1].split("_output_")[0] if parts else node
    if len(parts) > 1 and last.rstrip("_0123456789") == op:
        parts.pop()
    elif parts:
        parts[-1] = last
    kept = [p for p, q in zip(parts, [*parts[1:], ""], strict=False) if not q.startswith(f"{p}.")]
    return "/".join(kept) or node


def blocks_of(spots: Sequence[Spot]) -> list[tuple[int, ...]]:
    """Places of what may be drawn as one row, none in another: nothing inside is read from outside but the last.

    That is what lies behind one layer and is brought together again by a join (the largest that is no larger than
    `BLOCK` counts), and layers in a row whose names begin alike.
    """
    reads = _reads(spots)
    readers: list[list[int]] = [[] for _ in spots]
    for k, own in enumerate(reads):
        for r in own:
            readers[r].append(k)
    found = [_region(k, reads, readers) for k in range(len(spots)) if len(reads[k]) > 1]
    taken: set[int] = set()
    chosen = []
    for region in sorted(filter(None, found), key=lambda r: (-r[-1], -len(r))):
        if taken.isdisjoint(region):
            taken.update(region)
            chosen.append(region)
    tail = _tail(spots, readers)
    if len(tail) > TAIL and taken.isdisjoint(tail):
        taken.update(tail)
        chosen.append(tail)
    return sorted([*chosen, *_runs(spots, reads, readers, taken)])


def _runs(
    spots: Sequence[Spot], reads: Edges, readers: Sequence[Sequence[int]], taken: Collection[int]
) -> Iterator[tuple[int, ...]]:
    """Layers of which each reads the one before alone, and whose names begin alike; none that is taken."""
    above: dict[int, list[int]] = {}
    for k, own in enumerate(reads):
        if k in taken or spots[k].before is None:
            continue
        above[k] = run = [k]
        if len(own) == 1 and own[0] in above and len(readers[own[0]]) == 1:
            before = above[own[0]]
            parents = {_own_name(spots, j).rpartition("/")[0] for j in (k, own[0])}
            if len(before) < BLOCK and len(parents) == 1 and parents != {""}:
                before.append(k)
                above[k] = before
                run.clear()
    yield from (tuple(run) for k, run in above.items() if len(run) > 1 and run[0] == k)


def _tail(spots: Sequence[Spot], readers: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """What works on the outputs of the last layers: joins with no layer behind them."""
    tail: set[int] = set()
    for k in range(len(spots) - 1, -1, -1):
        side = spots[k].before
        if side is not None and not side.macs and side.op != INPUT and tail.issuperset(readers[k]):
            tail.add(k)
    return tuple(sorted(tail))


def _reads(spots: Sequence[Spot]) -> list[tuple[int, ...]]:
    """What each reads in the original, of what stands before it; nothing for what is new."""
    sides = (s.before for s in spots)
    return [tuple(r for r in side.reads if 0 <= r < k) if side else () for k, side in enumerate(sides)]


def _region(join: int, reads: Edges, readers: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """What lies between a join and the last layer that all of it is made of; empty where that is no block."""
    inside, front = {join}, [-r for r in reads[join]]
    heapq.heapify(front)
    seen = set(front)
    while len(front) > 1 and len(inside) < BLOCK:
        k = -heapq.heappop(front)
        inside.add(k)
        if not reads[k]:
            return ()
        for r in reads[k]:
            if -r not in seen:
                seen.add(-r)
                heapq.heappush(front, -r)
    closed = len(front) == 1 and all(r in inside for k in inside - {join} for r in readers[k])
    return tuple(sorted(inside)) if closed and len(inside) > 2 else ()


def collapsed(spots: Sequence[Spot], blocks: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Rows of which each block is one, with what became of it; each stands where its last layer does."""
    home = {k: region for region in blocks for k in region}
    for k in range(len(spots) - 1, 0, -1):  # what is new goes with what follows it
        if spots[k - 1].before is None and k in home and k - 1 not in home:
            region = home[k]
            home |= dict.fromkeys((*region, k - 1), tuple(sorted((*region, k - 1))))
    return [home.get(k, (k,)) for k in range(len(spots)) if home.get(k, (k,))[-1] == k]


def lay_out(spots: Sequence[Spot], rows: Sequence[tuple[int, ...]]) -> Layout:
    """The drawing of these rows."""
    row_of = {k: i for i, members in enumerate(rows) for k in members}
    items = []
    for i, members in enumerate(rows):
        sides = []
        for side in ("before", "after"):
            there = (getattr(spots[k], side) for k in members)
            read = {row_of[r] for s in there if s is not None for r in s.reads if r in row_of}
            sides.append(tuple(sorted(r for r in read if r < i)))
        items.append(Item(members, _named(spots, members), *sides))
    often = Counter(item.name for item in items)
    items = [replace(i, name=_own_name(spots, i.members[-1])) if often[i.name] > 1 else i for i in items]
    lanes = _lanes(items)
    wires = []
    for side in ("before", "after"):
        alive = [i for i, item in enumerate(items) if any(getattr(spots[k], side) for k in item.members)]
        wires.append(list(_wires([getattr(i, side) for i in items], lanes, alive)))
    tracks = _on_tracks(wires)
    return Layout(tuple(items), tuple(lanes), tuple(wires[0]), tuple(wires[1]), tracks)


def _named(spots: Sequence[Spot], members: tuple[int, ...]) -> str:
    """Of a block, what the names of its layers begin with; else its join's."""
    names = [_own_name(spots, k) for k in members]
    if len(names) == 1:
        return names[0]
    common: list[str] = []
    for parts in zip(*(n.split("/") for n in names), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return "/".join(common) or names[-1]


def _own_name(spots: Sequence[Spot], place: int) -> str:
    side = spots[place].before or spots[place].after
    return short(spots[place].node, side.op if side else "")


def _lanes(items: Sequence[Item]) -> list[int]:
    """A lane each: that of what it reads if nothing else has gone on there, else the first that is free."""
    last = list(range(len(items)))
    for i, item in enumerate(items):
        for r in (*item.before, *item.after):
            last[r] = i
    lanes: list[int] = []
    top: list[int] = []  # lane -> the row that stands there last
    waits: list[int] = []  # lane -> the row until which it is taken
    for i, item in enumerate(items):
        reads = item.before or item.after
        own = [lanes[r] for r in reads if top[lanes[r]] == r]
        free = (k for k, until in enumerate(waits) if until <= i)
        lane = min(own) if own else next(free, len(top))
        if lane == len(top):
            top.append(i)
            waits.append(last[i])
        top[lane], waits[lane] = i, last[i]
        lanes.append(lane)
    return lanes


def _wires(reads: Edges, lanes: Sequence[int], there: Sequence[int]) -> Iterator[Wire]:
    """Every wire of one network; `there`: its rows."""
    in_lane: dict[int, list[int]] = {lane: [] for lane in lanes}
    for i in there:
        in_lane[lanes[i]].append(i)
    for i, own in enumerate(reads):
        for r in own:
            clear = next((n for n in (lanes[i], lanes[r]) if _clear(in_lane[n], r, i)), None)
            yield Wire(r, i, lanes[r] == lanes[i] and _clear(there, r, i), clear)


def _clear(rows: Sequence[int], start: int, end: int) -> bool:
    """Whether none of these rows stands between two others."""
    return bisect_right(rows, start) == bisect_left(rows, end)


def _on_tracks(wires: Sequence[list[Wire]]) -> int:
    """Give what skips rows a track, the same in both networks; how many there are."""
    spans = {(w.start, w.end) for side in wires for w in side if w.lane is None}
    taken: list[list[tuple[int, int]]] = []
    track: dict[tuple[int, int], int] = {}
    for start, end in sorted(spans, key=lambda s: (s[0], -s[1])):
        k = next((k for k, own in enumerate(taken) if own[-1][1] <= start), len(taken))
        if k == len(taken) < TRACKS:
            taken.append([])
        k = min(k, TRACKS - 1)
        taken[k].append((start, end))
        track[start, end] = k
    for side in wires:
        side[:] = [replace(w, track=track.get((w.start, w.end), 0)) for w in side]
    return len(taken)
