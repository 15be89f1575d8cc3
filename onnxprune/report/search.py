"""What a search for a target measured on its way: how much each candidate removes, and what that came to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tried:
    """A candidate: the share of the cost that was to go, and what was measured of it; in the unit of the search."""

    ratio: float
    value: float


@dataclass(frozen=True)
class Search:
    """All candidates of a search.

    Attributes:
        what: was measured, in words.
        unit: of the values; empty for a plain number.
        limit: what a value must reach, or may not fall below; None where that is not one number.
        tried: the candidates, in the order in which they were measured.
        taken: the one that the result is made of, measured when it was finished.
    """

    what: str
    unit: str
    limit: float | None
    tried: tuple[Tried, ...]
    taken: Tried
