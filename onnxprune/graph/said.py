"""What a user says of the outputs of a network: what each is for, and how much it counts.

Knows no kind by name, and imports neither numpy nor onnx.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stretch:
    """A part of an output, as its user sets it.

    Attributes:
        start, stop: where it stands along the axis; the stop is not in it, as numpy counts.
        kind: as of `Meaning`; empty: that of the whole output.
        name: what the part is called; empty: as numpy writes it.
    """

    start: int
    stop: int
    kind: str = ""
    name: str = ""


@dataclass(frozen=True)
class Meaning:
    """What an output is for.

    Attributes:
        kind: name of an entry of `measure.kinds.table`.
        axis: of the classes, or of the four numbers of a box, as numpy counts; None: as it looks.
        parts: stretches of that axis (None: of the last one) that are parts of their own; empty: as it looks.
    """

    kind: str
    axis: int | None = None
    parts: tuple[Stretch, ...] = ()

    def of(self, start: int, stop: int) -> Meaning | None:
        """What a part that was set is for; None where nobody says."""
        kinds = [s.kind or self.kind for s in self.parts if (s.start, s.stop) == (start, stop)]
        return Meaning(kinds[0], -1 if self.axis is None else self.axis) if kinds else None


@dataclass(frozen=True)
class Said:
    """What was said of the outputs.

    Attributes:
        kinds: output, or part of one as it is named (`y[:, 0:4]`) -> what it is for.
        weights: output or part -> how much its damage counts; 1 is usual.
    """

    kinds: Mapping[str, Meaning] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    def names(self) -> list[str]:
        """The outputs and parts that it speaks of, each once."""
        return list(dict.fromkeys([*self.kinds, *self.weights]))

    def set_names(self) -> list[str]:
        """The names that a user gave to parts."""
        return [part.name for meaning in self.kinds.values() for part in meaning.parts if part.name]


NOTHING = Said()


def output_of(name: str) -> str:
    """The output that a part is of: `y` of `y[:, 0:4]`."""
    return name.partition("[")[0]
