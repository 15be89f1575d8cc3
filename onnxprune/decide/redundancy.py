"""What can go without changing any output: channels that nobody reads, that are constant, or that have a twin.

A channel may go when every layer that reads it can do without: its columns there are zero, or its value there is
`factor · (another channel's value) + constant`, as `values.Numbering` proves from the weights alone. The columns then
go to the other channel and the constant into the bias (not where a border is padded: zeros are not that constant).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from onnxprune.channels import ChannelGroup, Channels, Slice
from onnxprune.decide.values import NOTHING, SAME, ZERO, Line, Numbering
from onnxprune.graph.behaviour import unpadded
from onnxprune.graph.layers import added_behind, adds_columns, takes_constants
from onnxprune.graph.model import Graph, Use
from onnxprune.plan import KeepChannels, MergeColumns


@dataclass(frozen=True)
class Lossless:
    """What can go, and how.

    Attributes:
        keep: group name -> kept channels, for the groups that lose some.
        merges: what the readers have to do for it.
        unread, constant, twins: how many channels go for which reason.
        spared: channels that could go but stay because a width that is no multiple of the step would run slower.
    """

    keep: dict[str, tuple[int, ...]]
    merges: tuple[MergeColumns, ...]
    unread: int = 0
    constant: int = 0
    twins: int = 0
    spared: int = 0

    def edits(self, channels: Channels) -> tuple[KeepChannels | MergeColumns, ...]:
        """As edits of a plan."""
        widths = {g.name: g.width for g in channels.groups}
        return (*(KeepChannels(n, widths[n], keep) for n, keep in self.keep.items()), *self.merges)


@dataclass
class _Reader:
    """One layer, as it sees its inputs.

    Attributes:
        units: (n,) the unit at each input, -1 for those that stay.
        needed: (n,) bool, whether its columns are anything but zero.
        line: what each input is.
        folds: whether a constant input can go into the bias.
        sums: whether columns can be handed on at all.
        members: atom -> inputs that have it, ascending.
    """

    slice: Slice
    units: np.ndarray
    needed: np.ndarray
    line: Line
    folds: bool
    sums: bool
    members: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        order = np.argsort(self.line.atom, kind="stable")
        atoms, first = np.unique(self.line.atom[order], return_index=True)
        self.members = dict(zip(atoms.tolist(), np.split(order, first[1:]), strict=True))

    def substitute(self, q: int, alive: np.ndarray) -> tuple[int, float, float] | None:
        """(target, factor, constant) for input q among the inputs that are alive; None when there is none."""
        line = self.line
        if not self.needed[q]:
            return (-1, 0.0, 0.0)
        if line.atom[q] == NOTHING:
            c = float(line.offset[q])
            return (-1, 0.0, c) if c == 0 or (self.folds and self.sums) else None
        if not self.sums:
            return None
        for r in self.members[int(line.atom[q])]:
            if r == q or not alive[self.units[r]]:
                continue
            k = float(line.scale[q] / line.scale[r])
            moved = k * float(line.offset[r])
            d = float(line.offset[q]) - moved
            d = 0.0 if abs(d) <= SAME * (abs(line.offset[q]) + abs(moved)) else d
            if d == 0 or self.folds:
                return (int(r), k, d)
        return None


def find_lossless(
    graph: Graph,
    channels: Channels,
    *,
    allows: Callable[[ChannelGroup], bool] = lambda group: True,
    step: Callable[[ChannelGroup], int] = lambda group: 1,
) -> Lossless:
    """Every channel that can go without changing an output.

    Args:
        graph: the graph, unedited.
        channels: its analysis.
        allows: whether a group may be cut.
        step: kept widths are multiples of this.
    """
    numbers = Numbering(graph, channels)
    search = _Search(graph, channels, numbers)
    groups = [g for g in channels.groups if allows(g)]
    all_of = {g.name: g.width for g in groups}
    found = search.run(groups, all_of)
    most = {}
    for g in groups:
        left, size = g.width - len(found[g.name]), max(1, step(g))
        most[g.name] = max(0, g.width - -(-left // size) * size)
    if any(most[g.name] < len(found[g.name]) for g in groups):
        less = search.run(groups, most)
    else:
        less = found
    spared = sum(len(found[n]) - len(less[n]) for n in found)
    return search.outcome(groups, less, spared)


class _Search:
    """Drops units one by one, as long as every reader of what was dropped finds a substitute."""

    def __init__(self, graph: Graph, channels: Channels, numbers: Numbering):
        self.channels, self.numbers = channels, numbers
        self.readers = _readers(graph, channels, numbers)
        self.alive = np.ones(channels.unit_count + 1, bool)
        self.places: list[dict[int, list[int]]] = []
        for reader in self.readers:
            mine: dict[int, list[int]] = {}
            for q in np.flatnonzero(reader.units >= 0):
                mine.setdefault(int(reader.units[q]), []).append(int(q))
            self.places.append(mine)
        self.seen_by: dict[int, list[int]] = {}
        for k, mine in enumerate(self.places):
            for u in mine:
                self.seen_by.setdefault(u, []).append(k)
        self.barred = set()
        for use, (axis, units) in channels.reads.items():  # products of two activations: only a zero may go
            line = numbers.lines.get(graph.nodes[use[0]].input[use[1]])
            zero = np.zeros(len(units), bool)
            if line is not None and line.axis == axis and len(line.atom) == len(units):
                zero = line.constant & (line.offset == 0)
            self.barred |= set(units[(units >= 0) & ~zero].tolist())

    def run(self, groups: list[ChannelGroup], most: dict[str, int]) -> dict[str, list[int]]:
        """Group name -> channels that go, at most so many; the first of several twins stays."""
        self.alive[:] = True
        gone: dict[str, list[int]] = {}
        for g in groups:
            gone[g.name] = []
            for c in range(g.width - 1, -1, -1):
                if len(gone[g.name]) < min(most[g.name], g.width - 1) and self._try(int(g.units[c])):
                    gone[g.name].append(c)
        return gone

    def _try(self, unit: int) -> bool:
        """Drop a unit if all its readers, and all that lean on it, can do without."""
        if unit in self.barred or unit not in self.seen_by:
            return False
        self.alive[unit] = False
        for k in self.seen_by[unit]:
            reader = self.readers[k]
            for q in self.places[k][unit]:
                dropped = [m for m in reader.members[int(reader.line.atom[q])] if not self.alive[reader.units[m]]]
                lean = dropped if reader.line.atom[q] != NOTHING else [q]
                if any(reader.substitute(m, self.alive) is None for m in (q, *lean)):
                    self.alive[unit] = True
                    return False
        return True

    def outcome(self, groups: list[ChannelGroup], gone: dict[str, list[int]], spared: int) -> Lossless:
        merges, reasons = [], {"unread": 0, "constant": 0, "twins": 0}
        why: dict[int, str] = {}
        for reader in self.readers:
            rows = []
            for q in np.flatnonzero(~self.alive[reader.units]):
                found = reader.substitute(int(q), self.alive)
                assert found is not None
                kind = "unread" if not reader.needed[q] else "constant" if found[0] < 0 else "twins"
                unit = int(reader.units[q])
                order = ("unread", "constant", "twins")
                why[unit] = max(why.get(unit, "unread"), kind, key=order.index)
                if reader.needed[q] and (found[0] >= 0 or found[2]):
                    rows.append((int(q), *found))
            if rows:
                key, i = reader.slice.use
                source, target, factor, constant = zip(*rows, strict=True)
                merges.append(MergeColumns(key, i, reader.slice.axis, source, target, factor, constant))
        keep = {}
        for g in groups:
            out = set(gone[g.name])
            for c in out:
                reasons[why.get(int(g.units[c]), "unread")] += 1
            if out:
                keep[g.name] = tuple(c for c in range(g.width) if c not in out)
        return Lossless(keep, tuple(merges), spared=spared, **reasons)


def _readers(graph: Graph, channels: Channels, numbers: Numbering) -> list[_Reader]:
    """Every layer that reads channels, once, with all its inputs."""
    behind = added_behind(graph, channels.shapes)
    found: dict[tuple[Use, int], _Reader] = {}
    for group in channels.groups:
        for s in group.readers:
            if (s.use, s.axis) in found:
                continue
            key, node = s.use[0], graph.nodes[s.use[0]]
            value, units = graph.value(s.use), channels.params[s.use][s.axis]
            line = None
            if s.reads is not None and s.reads in channels.lines:
                line = numbers.read(s.reads, channels.lines[s.reads][0])
            sums = adds_columns(node) and s.use not in channels.unlisted
            if value is None or value.dtype.kind != "f" or line is None or len(line.atom) != len(units):
                n = len(units)
                line, sums = Line(0, np.arange(2, n + 2), np.ones(n), np.zeros(n)), False
            needed = np.ones(len(units), bool)
            if value is not None and value.dtype.kind == "f":
                size = np.abs(value).max(axis=tuple(a for a in range(value.ndim) if a != s.axis), initial=0.0)
                needed = ~(size <= ZERO * size.max(initial=0.0))
            folds = takes_constants(graph, key, behind) and unpadded(node)
            found[s.use, s.axis] = _Reader(s, units, needed, line, folds, sums)
    return list(found.values())
