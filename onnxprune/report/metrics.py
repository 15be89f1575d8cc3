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


METRICS = (
    KeptMetric("top1", "top-1 agreement", "%", 100.0),
    KeptMetric("equal", "same integers", "%", 100.0),
    KeptMetric("cosine", "cosine"),
)
"""The most telling first."""


def shared_metric(found: Sequence[Fidelity | None]) -> KeptMetric | None:
    """The first that all results have."""
    return next((m for m in METRICS if found and all(m.value(f) is not None for f in found)), None)
