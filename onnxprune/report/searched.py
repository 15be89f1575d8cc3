"""What a search over settings tried: its trials, which of them nothing beats, as data, as JSON and for people.

Knows nothing of how a trial is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxprune.plan import PrunePlan

KIND = "onnxprune search"


@dataclass(frozen=True)
class Objective:
    """What is looked for: `most` of it, or the least."""

    name: str
    unit: str
    most: bool

    def shown(self, value: float) -> str:
        """A value, with its unit."""
        return f"{value:.4g}{self.unit}"


@dataclass(frozen=True)
class Trial:
    """One choice of settings.

    Attributes:
        number: in the storage.
        settings: what was chosen.
        values: of the objectives; None: it was not finished.
        default: whether it is what the tool does unasked.
        look: damage to the outputs before the whole repair; None: not looked at.
        why: why it was not finished.
    """

    number: int
    settings: Mapping[str, Any]
    values: tuple[float, ...] | None
    default: bool
    look: float | None
    why: str


@dataclass(frozen=True)
class Searched:
    """The outcome of a search.

    Attributes:
        objectives: what every trial has values of.
        original: those of the original.
        asked: how many trials were asked for.
        running: how many are under way elsewhere.
        trials: those that are finished, by their numbers.
        plans: number -> what was decided, of those that were carried out; not in the JSON.
    """

    model_digest: str
    samples_digest: str
    objectives: tuple[Objective, ...]
    original: tuple[float, ...]
    asked: int
    running: int
    trials: tuple[Trial, ...]
    plans: Mapping[int, PrunePlan] = field(default_factory=dict, repr=False, compare=False)

    def dominates(self, one: Trial, other: Trial) -> bool:
        """Whether one is nowhere worse, and somewhere better."""
        if one.values is None or other.values is None:
            return False
        signs = [1 if o.most else -1 for o in self.objectives]
        gains = [s * (a - b) for s, a, b in zip(signs, one.values, other.values, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    def front(self) -> list[Trial]:
        """The trials that no other dominates, by the second objective."""
        whole = [t for t in self.trials if t.values is not None]
        best = [t for t in whole if not any(self.dominates(other, t) for other in whole)]
        return sorted(best, key=lambda t: (t.values or ())[1:])

    def verdict(self) -> str:
        """How the default fares, in words."""
        own = [t for t in self.trials if t.default and t.values is not None]
        others = [t for t in self.trials if not t.default and t.values is not None]
        if not own or not others:
            return "the default and other choices were not both tried"
        free = [t for t in others if not any(self.dominates(d, t) for d in own)]
        above = [t for t in others if any(self.dominates(t, d) for d in own)]
        if not free:
            return "no choice was found that the default does not dominate"
        beaten = sum(any(self.dominates(t, d) for t in others) for d in own)
        said = f"{len(free)} of {len(others)} other choices are dominated by no default"
        return f"{said}; {len(above)} dominate one ({beaten} of {len(own)} defaults are dominated)"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the plans, as plain values."""
        told = asdict(replace(self, plans={}))
        del told["plans"]
        return {"schema": 1, "kind": KIND, **told, "front": [t.number for t in self.front()]}


def render(found: Searched) -> RenderableType:
    """The front, a line each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("trial", *(o.name for o in found.objectives)):
        table.add_column(title, justify="right", no_wrap=title == "trial")
    table.add_column("settings", overflow="fold")
    table.add_row("", *shown(found.objectives, found.original), "the original")
    for t in found.front():
        table.add_row(str(t.number), *shown(found.objectives, t.values or ()), Text(words(t)))
    return Group(table, Text("\n".join(notes(found)), "dim"))


def shown(objectives: Sequence[Objective], values: Sequence[float]) -> list[str]:
    """Values with their units."""
    return [o.shown(v) for o, v in zip(objectives, values, strict=True)]


def words(trial: Trial) -> str:
    """What was chosen."""
    chosen = " ".join(f"--{k.replace('_', '-')} {_text(v)}" for k, v in trial.settings.items())
    return f"{chosen} (default)" if trial.default else chosen


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def notes(found: Searched) -> list[str]:
    """What there is to know of it, a line each."""
    whole = sum(t.values is not None for t in found.trials)
    early = len(found.trials) - whole
    said = [f"{len(found.trials)} of {found.asked} trials: {whole} finished, {early} ended early"]
    said += [f"{found.running} more are under way in other processes"] if found.running else []
    return [*said, found.verdict(), "chosen on these samples: what they flatter, others may not"]
