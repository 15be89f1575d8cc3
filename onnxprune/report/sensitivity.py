"""What each cut alone does to the outputs: the table of damages, as data, as JSON and for people.

Knows nothing of how a damage is measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxprune.plan import read_json
from onnxprune.report.alone import LITTLE, Point, Row
from onnxprune.report.terminal import plain

KIND = "onnxprune sensitivity"
SHARES = (0.75, 0.5, 0.25)
"""Kept shares that the table shows."""


@dataclass(frozen=True)
class Sensitivity:
    """The outcome of a sensitivity run.

    Attributes:
        rows: in graph order.
        settings: what the measurements depend on besides model and samples.
        complete: whether every point that was asked for is there.
        measured: how many points were measured in this run; the others were known from an earlier one.
    """

    model_digest: str
    samples_digest: str
    settings: Mapping[str, Any]
    rows: tuple[Row, ...]
    complete: bool = True
    measured: int = field(default=0, compare=False)

    def ranked(self, little: float = LITTLE) -> list[Row]:
        """Rows by how much can go at little damage, most first; ties by the damage at half the width."""

        def key(row: Row) -> tuple[float, float]:
            half = row.near(0.5)
            return -row.can_go(little), float("inf") if half is None or half.damage is None else half.damage

        return sorted(self.rows, key=key)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "schema": 1,
            "kind": KIND,
            "model_digest": self.model_digest,
            "samples_digest": self.samples_digest,
            "settings": dict(self.settings),
            "complete": self.complete,
            "rows": [{**vars(r), "points": [vars(p) for p in r.points]} for r in self.rows],
        }

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.to_dict(), allow_nan=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """The inverse of `to_json`.

        Raises:
            ValueError: it is not what `to_json` writes.
        """
        try:
            data = read_json(text)
            if data["kind"] != KIND or data["schema"] != 1:
                raise ValueError("another kind of file")
            rows = tuple(_row(r) for r in data["rows"])
            return cls(data["model_digest"], data["samples_digest"], data["settings"], rows, bool(data["complete"]))
        except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise ValueError(f"not a table of sensitivities: {error}") from error


def _row(data: Mapping[str, Any]) -> Row:
    points = [
        Point(int(p["kept"]), None if p["damage"] is None else float(p["damage"]), float(p["macs_removed"]))
        for p in data["points"]
    ]
    row = Row(str(data["kind"]), str(data["name"]), int(data["width"]), tuple(points))
    if row.width < 1 or not all(0 <= p.kept < row.width for p in points):
        raise ValueError(f"{row.name!r} is {row.width} wide and cut to {[p.kept for p in points]}")
    return row


def render(found: Sensitivity, *, most: int | None = None, little: float = LITTLE) -> RenderableType:
    """A line a row, what can lose most first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("cut alone", overflow="fold")
    blocks = any(r.kind == "block" for r in found.rows)
    titles = [*(f"keep {s:.0%}" for s in SHARES), *(["all gone"] if blocks else [])]
    for title in ("kind", "width", *titles, "can go", "MACs then"):
        table.add_column(title, justify="right", no_wrap=True)
    ranked = found.ranked(little)
    for row in ranked[:most]:
        gone = row.can_go(little)
        macs = next((p.macs_removed for p in row.points if 1 - p.kept / row.width == gone), 0.0)
        block = row.kind == "block"
        cells = [_damage(None if block else row.near(s)) for s in SHARES]
        cells += [_damage(row.near(0) if block else None)] if blocks else []
        table.add_row(Text(plain(row.name)), row.kind, str(row.width), *map(Text, cells), f"{gone:.0%}", f"-{macs:.1%}")
    return Group(table, Text("\n".join(notes(found, len(ranked), most, little)), "dim"))


def notes(found: Sensitivity, rows: int, most: int | None, little: float) -> list[str]:
    """What the table shows, a line each; `rows`: how many there are, `most`: how many of them are shown."""
    points = sum(len(r.points) for r in found.rows)
    said = [
        "damage to the outputs at the measured width nearest to each share, or without the block; 0: unchanged",
        f"can go: the share that goes at a damage of at most {little:g}; one cut at a time, its readers refit",
        f"{points} cuts, {found.measured} of them measured now, on {found.settings.get('samples', '?')} samples",
    ]
    if most is not None and rows > most:
        said.insert(0, f"… and {rows - most} more (use -v)")
    return said


def _damage(point: Point | None) -> str:
    if point is None:
        return ""
    return "not finite" if point.damage is None else f"{point.damage:.2g}"


def merged(rows: Sequence[Row], more: Sequence[Row]) -> tuple[Row, ...]:
    """Rows with the points of both; where both have one, that of `more`."""
    found: dict[tuple[str, str], Row] = {}
    for row in (*rows, *more):
        old = found.get((row.kind, row.name))
        points = {p.kept: p for p in (*(old.points if old else ()), *row.points)}
        widest_first = tuple(points[k] for k in sorted(points, reverse=True))
        found[row.kind, row.name] = Row(row.kind, row.name, row.width, widest_first)
    return tuple(found.values())
