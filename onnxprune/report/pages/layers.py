"""Both networks of a result as a table, a row for each layer: channels, costs and, where it was timed, milliseconds.

Rows stand in the order of the network; for the other orders that a reader may choose, each row knows its places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from onnxprune.measure.outline import INPUT, VERSION, Outline, Side, Spot
from onnxprune.report.pages.drawing import joins, side_of, state_of
from onnxprune.report.pages.layout import short
from onnxprune.report.pages.shared import ROWS
from onnxprune.report.terminal import change, plain, si

NARROW = "\u00a0"
"""A space at which no line ends."""
SPENDS = 0.005
"""Share of the time from which what multiplies nothing has a row of its own."""

Pair = tuple[float, float]


def layer_rows(network: Outline) -> dict[str, Any]:
    """What multiplies, and what takes time; `timed`: whether milliseconds are known."""
    spots = network.spots if network.version <= VERSION else ()
    timed = any(side.ms is not None for s in spots for side in (s.before, s.after) if side is not None)
    total = _both(spots, _ms)
    told = [s for s in spots if not joins(s) or _spends(s, total)]
    left, told = len(told) - ROWS, told[:ROWS]
    macs, ms = ([(read(s.before), read(s.after)) for s in told] for read in (_macs, _ms))
    counted, whole = (ms, total) if timed else (macs, _both(spots, _macs))
    most = max((a for pair in counted for a in pair), default=1) or 1
    orders = {
        "gone": _places([b - a for a, b in macs]),
        "left": _places([-b for _, b in macs]),
        "share": _places([b / a if a else 2.0 for a, b in macs]),
        "won": _places([b - a for a, b in ms]),
        "slow": _places([-b for _, b in ms]),
    }
    rows = [
        _row(spot, macs[k], ms[k] if timed else None)
        | {
            "shares": _arrow(
                *(
                    "–" if side is None else f"{100 * v / (t or 1):.1f}%"
                    for side, v, t in zip((spot.before, spot.after), counted[k], whole, strict=True)
                )
            ),
            "whole": 100 * max(counted[k]) / most,
            "share": counted[k][1] / max(*counted[k], 1e-9),
            "places": {name: own[k] for name, own in orders.items()},
        }
        for k, spot in enumerate(told)
    ]
    return {"rows": rows, "left": left, "timed": timed, "elsewhere": network.timed_on not in ("", "cpu")}


def _row(spot: Spot, macs: Pair, ms: Pair | None) -> dict[str, Any]:
    side, state = side_of(spot), state_of(spot)

    def both(read: Callable[[Side], str]) -> str:
        return _arrow(*("–" if s is None else read(s) for s in (spot.before, spot.after)))

    return {
        "name": plain(short(spot.node, side.op)), "title": plain(spot.node), "op": plain(side.op),
        "state": state, "same": macs[0] == macs[1] and state == "same",
        "channels": both(lambda s: "–" if s.channels is None else str(s.channels)),
        "macs": both(lambda s: si(s.macs).replace(" ", NARROW)) if any(macs) else "",
        "changed": change(*macs) if macs[0] != macs[1] and all(macs) else "",
        "bytes": both(lambda s: _bytes(s.bytes)),
        "ms": "" if ms is None else both(lambda s: f"{_ms(s):.3f}" if _ms(s) < 10 else f"{_ms(s):.4g}"),
    }  # fmt: skip


def _bytes(count: int) -> str:
    text = si(count)
    return f"{text}{'' if ' ' in text else ' '}B".replace(" ", NARROW)


def _arrow(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def _macs(side: Side | None) -> float:
    return 0.0 if side is None else side.macs


def _ms(side: Side | None) -> float:
    return 0.0 if side is None else side.ms or 0.0


def _both(spots: Sequence[Spot], read: Callable[[Side | None], float]) -> Pair:
    """The sum of both networks."""
    return sum(read(s.before) for s in spots), sum(read(s.after) for s in spots)


def _spends(spot: Spot, total: Pair) -> bool:
    took = _ms(spot.before), _ms(spot.after)
    return side_of(spot).op != INPUT and any(v > SPENDS * t > 0 for v, t in zip(took, total, strict=True))


def _places(values: Sequence[float]) -> list[int]:
    """The place of each in ascending order; equal ones stay as they are."""
    places = [0] * len(values)
    for place, k in enumerate(sorted(range(len(values)), key=lambda k: values[k])):
        places[k] = place
    return places
