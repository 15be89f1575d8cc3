"""What says how close outputs are, by name: for whoever draws several results side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.measure.fidelity import Fidelity


@dataclass(frozen=True)
class KeptMetric:
    """One of the numbers of `Fidelity`.

    Attributes:
        name: its attribute.
        title: what it is called.
        unit: behind a value.
        one: the value of 1 in that unit.
    """

    name: str
    title: str
    unit: str = ""
    one: float = 1.0

    def value(self, fidelity: Fidelity | None) -> float | None:
        """In the unit; None where it was not measured."""
        found = None if fidelity is None else getattr(fidelity, self.name)
        return None if found is None else self.one * float(found)


@dataclass(frozen=True)
class AskedMetric(KeptMetric):
    """The figure that a person would ask for of the part that decides (`Fidelity.asked`)."""

    def value(self, fidelity: Fidelity | None) -> float | None:
        found = None if fidelity is None else fidelity.asked
        return None if found is None or found.figure.title != self.title else self.one * found.value

    def shown(self, fidelity: Fidelity) -> str:
        """As a cell of a table; empty where it was not measured."""
        return "" if fidelity.asked is None else fidelity.asked.figure.shown(fidelity.asked.value)


METRICS = (
    KeptMetric("top1", "top-1 agreement", "%", 100.0),
    KeptMetric("equal", "same integers", "%", 100.0),
    KeptMetric("cosine", "cosine"),
)
"""The most telling first."""


def shared_metric(found: Sequence[Fidelity | None]) -> KeptMetric | None:
    """What a person would ask for, or the first that all results have."""
    if (asked := asked_metric(found)) is not None:
        return asked
    return next((m for m in METRICS if found and all(m.value(f) is not None for f in found)), None)


def asked_metric(found: Sequence[Fidelity | None]) -> AskedMetric | None:
    """The figure that a person would ask for; None where it is none of those above, or not the same for all results."""
    first = found[0].asked if found and found[0] is not None else None
    if first is None:
        return None
    share = first.figure.share
    metric = AskedMetric("asked", first.figure.title, "%" if share else first.figure.unit, 100.0 if share else 1.0)
    return metric if all(metric.value(f) is not None for f in found) else None
