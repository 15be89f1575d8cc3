"""Something that could not be done to a layer, and why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Refused:
    """Something that could not be done to a layer.

    Attributes:
        what: "refitted", "split" (made of two) or "timed" (at several widths).
        node: the layer, by its first output.
        reason: why not, and what would help, in words.
    """

    what: str
    node: str
    reason: str
