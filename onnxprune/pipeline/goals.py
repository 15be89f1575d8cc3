"""What a run aims at: a ratio, a target that is measured, or nothing but what changes no output.

A target is one small class: its option, its unit, what it costs in, how it is measured, and what is said when it is
out of reach. The command line, Python, messages and JSON know of it by the table. How a target is searched for is
known elsewhere (`reach`); what it may measure there is `Measures`. Imports neither numpy nor onnx: `--help` lists the
targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

from onnxprune.errors import UsageError, unknown
from onnxprune.pipeline.finishing import finish_of
from onnxprune.pipeline.settings import Settings
from onnxprune.rewrite.repair.table import NONE

if TYPE_CHECKING:
    from onnxprune.plan import PrunePlan
    from onnxprune.report.result import Result


# ---- goals -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """Remove this share of the cost.

    Attributes:
        share: between 0 and 1.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        if isinstance(self.share, str) or not 0 < self.share < 1:
            raise UsageError(f"ratio {self.share} is not between 0 and 1; 0.5 removes half")

    def serve(self, settings: Settings) -> Settings:
        """The settings, as they serve the goal."""
        return settings


@dataclass(frozen=True)
class Lossless:
    """Remove only what changes no output, as much as that is."""

    def serve(self, settings: Settings) -> Settings:
        """The settings, as they serve the goal.

        Raises:
            UsageError: they ask for a repair.
        """
        if settings.repair not in (None, NONE):
            raise UsageError(f"a lossless cut leaves nothing to repair; drop --repair {settings.repair}")
        if (how := finish_of(settings)) is not None:
            raise UsageError(f"a lossless cut changes no output; drop --{how.setting} {how.name}")
        return settings


@dataclass(frozen=True)
class Target:
    """What the pruned model must reach, by measuring.

    Attributes:
        kind: name of an entry of `TARGETS`: "speedup", "latency_ms", "size_mb" or "max_drop".
        value: in the unit that the kind names; a factor for "speedup".
    """

    kind: str
    value: float

    def __post_init__(self) -> None:
        if self.kind not in TARGETS:
            raise unknown("target", self.kind, TARGETS)
        self.entry.check(self.value)

    def __str__(self) -> str:
        return f"{self.entry.option} {self.value:g}"

    @property
    def entry(self) -> TargetKind:
        """What is known of the kind."""
        return TARGETS[self.kind]

    def serve(self, settings: Settings) -> Settings:
        """The settings, as they serve the goal: where nothing is said of what counts, what serves it best does."""
        return replace(settings, of=self.entry.of) if settings.of is None else settings


Goal = Ratio | Lossless | Target


def goal_of(ratio: float, target: Target | None = None, lossless: bool = False) -> Goal:
    """The goal that was given: a target or lossless stand in place of the ratio.

    Raises:
        UsageError: both of them were, or the ratio is none.
    """
    share = Ratio(ratio)
    if target is not None and lossless:
        raise UsageError(f"--lossless takes no target; drop {target.entry.option}")
    return target or (Lossless() if lossless else share)


# ---- kinds of targets ------------------------------------------------------------------------------------


class Measures(Protocol):
    """What a target may measure. A plan is cut but not repaired: weights change neither time nor size."""

    def size(self, plan: PrunePlan | None = None) -> int:
        """Bytes of the file; of the original without a plan."""

    def latency_ms(self) -> float:
        """What a run of the original takes."""

    def speedup(self, plan: PrunePlan) -> float:
        """The original's time over that of the plan, the two timed side by side."""


@dataclass(frozen=True)
class Aim:
    """What a gain must reach.

    Attributes:
        goal: the gain, old over new; 1 and less is there already.
        has: what the original has, in words.
        gain: measures that of a plan.
    """

    goal: float
    has: str
    gain: Callable[[PrunePlan], float]


class TargetKind:
    """A kind of target: one subclass, one entry of the table.

    Attributes:
        name: in Python and JSON.
        metavar: what stands for the value in help.
        help: a line for the command line.
        of: the cost that serves it best; None: any.
        unit: of the value; empty for a factor.
        measured: what is measured for it; empty where a metric says.
        by_metric: whether `--eval` says what is measured.
    """

    name: ClassVar[str]
    metavar: ClassVar[str]
    help: ClassVar[str]
    of: ClassVar[str | None] = None
    unit: ClassVar[str] = ""
    measured: ClassVar[str] = ""
    by_metric: ClassVar[bool] = False

    @property
    def option(self) -> str:
        """As the command line takes it."""
        return f"--{self.name.replace('_', '-')}"

    def check(self, value: float) -> None:
        """Refuse a value that is no aim.

        Raises:
            UsageError: it is none.
        """
        if not math.isfinite(value) or value <= 0:
            raise UsageError(f"{self.option} {value:g} is not a positive number")


class Gain(TargetKind):
    """A gain that cutting brings, old over new: proposed, measured and corrected until it is there.

    Attributes:
        timed: whether the finished model has to be timed to know it.
    """

    timed: ClassVar[bool] = True

    def aim(self, value: float, run: Measures) -> Aim:
        """What it takes to reach the value."""
        raise NotImplementedError

    def reached(self, result: Result) -> float:
        """The gain of a finished model, as `Aim.gain` counts it."""
        raise NotImplementedError

    def nearest(self, value: float, goal: float, most: float) -> str:
        """What was measured of the plan that came nearest, in words."""
        if self.unit:
            return f"{value * goal / most:.3g} {self.unit} is the least that was measured"
        return f"{most:.2f} of {goal:.2f} times is the most that was measured"


class Kept(TargetKind):
    """Something that a repaired network keeps: the largest cut that does is looked for."""

    def keeps(self, value: float, before: float, after: float) -> bool:
        """Whether the metric is good enough still."""
        raise NotImplementedError

    def missed(self, value: float, before: float) -> str:
        """That no cut keeps it, in words."""
        raise NotImplementedError


TARGETS: dict[str, TargetKind] = {}
"""The table, in the order in which help shows it."""


def target(kind: type[TargetKind]) -> type[TargetKind]:
    """Enter a kind of target."""
    TARGETS[kind.name] = kind()
    return kind


@target
class Speedup(Gain):
    name, metavar, help = "speedup", "X", "X times as fast, measured here"
    of, measured = "latency", "speed-up"

    def check(self, value: float) -> None:
        super().check(value)
        if value <= 1:
            raise UsageError(f"{self.option} {value:g} asks for no speed-up; 2 halves the time")

    def aim(self, value: float, run: Measures) -> Aim:
        return Aim(value, "speed-up 1", run.speedup)

    def reached(self, result: Result) -> float:
        assert result.latency is not None
        return result.latency.comparisons[0].speedup


@target
class LatencyMs(Gain):
    name, metavar, help = "latency_ms", "T", "a run takes T ms, measured here"
    of, unit, measured = "latency", "ms", "latency"

    def aim(self, value: float, run: Measures) -> Aim:
        own = run.latency_ms()
        return Aim(own / value, f"{own:.3g} ms", run.speedup)

    def reached(self, result: Result) -> float:
        assert result.before.latency_ms is not None and result.after.latency_ms is not None
        return result.before.latency_ms / result.after.latency_ms


@target
class SizeMb(Gain):
    name, metavar, help = "size_mb", "S", "the file has S megabytes (10^6 bytes)"
    of, unit, measured, timed = "params", "MB", "file size", False

    def aim(self, value: float, run: Measures) -> Aim:
        whole = run.size()
        return Aim(whole / (value * 1e6), f"{whole / 1e6:.3g} MB", lambda plan: whole / run.size(plan))

    def reached(self, result: Result) -> float:
        return result.before.bytes / result.after.bytes


@target
class MaxDrop(Kept):
    name, metavar, help = "max_drop", "D", "until the metric of --eval, or NAME=D, drops"
    by_metric = True

    def keeps(self, value: float, before: float, after: float) -> bool:
        return before - after <= value

    def missed(self, value: float, before: float) -> str:
        return f"no cut keeps the metric within {value:g} of {before:.4g}; allow more, or give more --calib samples"
