"""What a user says of the outputs of a network: what each is for, and how much it counts.

Knows no kind by name, and imports neither numpy nor onnx.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Meaning:
    """What an output is for.

    Attributes:
        kind: name of an entry of `measure.kinds.table`.
        axis: of the classes, or of the four numbers of a box, as numpy counts; None: as it looks.
    """

    kind: str
    axis: int | None = None


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


NOTHING = Said()


def output_of(name: str) -> str:
    """The output that a part is of: `y` of `y[:, 0:4]`."""
    return name.partition("[")[0]
