"""What a run aims at: a share of the cost, a target that is measured, or no change of any output.

A target is one class, entered in the table: its option and what the option says of itself, its unit, which cost serves
it, what a plan gains towards it and what a finished model has gained. The command line, Python, messages and JSON are
made from that. What measures is imported when it does: the command line lists this table without numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxprune.errors import UsageError, unknown

if TYPE_CHECKING:
    from onnxprune.pipeline.reach import Chase
    from onnxprune.plan import PrunePlan
    from onnxprune.report.result import Result


class TargetKind:
    """One kind of target. The loop lowers the cost until a plan, carried out but not repaired, has gained enough:
    weights do not change how long a model runs or how large its file is.

    Attributes:
        name: as Python and JSON have it; with hyphens, the option.
        metavar, help: of the option.
        of: the cost that serves it best; None: any.
        unit: of its values; None: they are factors.
        timed: whether the finished model is timed.
        judged: whether a metric tells when it is reached.
    """

    name: ClassVar[str]
    metavar: ClassVar[str]
    help: ClassVar[str]
    of: ClassVar[str | None] = None
    unit: ClassVar[str | None] = None
    timed: ClassVar[bool] = False
    judged: ClassVar[bool] = False

    @property
    def option(self) -> str:
        """What the command line calls it."""
        return f"--{self.name.replace('_', '-')}"

    def check(self, value: float) -> None:
        """Refuse what nothing can reach.

        Raises:
            UsageError: the value makes no sense.
        """
        if not math.isfinite(value) or value <= 0:
            raise UsageError(f"{self.option} {value:g} is not a positive number")

    def aim(self, chase: Chase) -> tuple[float, str]:
        """(the gain to reach, old over new; what the original has already, in words)."""
        raise NotImplementedError

    def gain(self, chase: Chase, plan: PrunePlan) -> float:
        """What a plan gains, measured."""
        raise NotImplementedError

    def reached(self, result: Result) -> float:
        """What a finished model has gained."""
        raise NotImplementedError

    def least(self, value: float, aim: float, most: float) -> str:
        """How far was measured, in words, where `aim` is out of reach and `most` the largest gain."""
        if self.unit is None:
            return f"{most:.2f} of {aim:.2f} times is the most that was measured; "
        return f"{value * aim / most:.3g} {self.unit} is the least that was measured; "

    def reach(self, chase: Chase) -> Result:
        """The smallest change that reaches it.

        Raises:
            BudgetError: it cannot be reached.
            UsageError: the original is there already.
        """
        from onnxprune.pipeline.reach import gain_enough

        return gain_enough(chase)


TARGETS: dict[str, TargetKind] = {}


def target(kind: type[TargetKind]) -> type[TargetKind]:
    """Enter a kind of target."""
    TARGETS[kind.name] = kind()
    return kind


@dataclass(frozen=True)
class Target:
    """What the pruned model must reach.

    Attributes:
        kind: a name in `TARGETS`: "speedup", "latency_ms", "size_mb" or "max_drop".
        value: in the unit that the kind names; a factor for "speedup".
    """

    kind: str
    value: float

    def __post_init__(self) -> None:
        if self.kind not in TARGETS:
            raise unknown("target", self.kind, TARGETS)
        self.how.check(self.value)

    @property
    def how(self) -> TargetKind:
        """The entry of the table."""
        return TARGETS[self.kind]

    def __str__(self) -> str:
        return f"{self.how.option} {self.value:g}"


@dataclass(frozen=True)
class Goal:
    """What a run aims at.

    Attributes:
        ratio: share of the cost to remove, between 0 and 1; where there is a target, it plays no part.
        target: what to reach instead.
        lossless: remove only what changes no output; the ratio plays no part then.
    """

    ratio: float = 0.5
    target: Target | None = None
    lossless: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise UsageError(f"ratio {self.ratio} is not between 0 and 1; 0.5 removes half")
        if self.lossless and self.target is not None:
            raise UsageError(f"--lossless takes no target; drop {self.target.how.option}")

    def check_repair(self, repair: str | None) -> None:
        """Refuse a repair where nothing is to be repaired.

        Raises:
            UsageError: one was asked for.
        """
        if self.lossless and repair not in (None, "none"):
            raise UsageError(f"a lossless cut leaves nothing to repair; drop --repair {repair}")

    @classmethod
    def of(cls, given: Goal | Target | float) -> Goal:
        """A goal, from a ratio or a target as well.

        Raises:
            UsageError: it is none of them.
        """
        if isinstance(given, Goal):
            return given
        if isinstance(given, Target):
            return cls(target=given)
        if isinstance(given, int | float):
            return cls(given)
        raise UsageError(f"{type(given).__name__} is no goal; give a ratio such as 0.5, a Target or a Goal")


@target
class SpeedUp(TargetKind):
    name, metavar, help = "speedup", "X", "instead: X times as fast, measured here"
    of, timed = "latency", True

    def check(self, value: float) -> None:
        super().check(value)
        if value <= 1:
            raise UsageError(f"--speedup {value:g} asks for no speed-up; 2 halves the time")

    def aim(self, chase: Chase) -> tuple[float, str]:
        return chase.target.value, "speed-up 1"

    def gain(self, chase: Chase, plan: PrunePlan) -> float:
        return chase.speedup(plan)

    def reached(self, result: Result) -> float:
        assert result.latency is not None
        return result.latency.comparisons[0].speedup


@target
class LatencyMs(TargetKind):
    name, metavar, help = "latency_ms", "T", "instead: a run takes T ms, measured here"
    of, unit, timed = "latency", "ms", True

    def aim(self, chase: Chase) -> tuple[float, str]:
        own = chase.own_ms()
        return own / chase.target.value, f"{own:.3g} ms"

    def gain(self, chase: Chase, plan: PrunePlan) -> float:
        return chase.speedup(plan)

    def reached(self, result: Result) -> float:
        assert result.before.latency_ms is not None and result.after.latency_ms is not None
        return result.before.latency_ms / result.after.latency_ms


@target
class SizeMb(TargetKind):
    name, metavar, help = "size_mb", "S", "instead: the file has S megabytes (10^6 bytes)"
    of, unit = "params", "MB"

    def aim(self, chase: Chase) -> tuple[float, str]:
        whole = chase.bytes()
        return whole / (chase.target.value * 1e6), f"{whole / 1e6:.3g} MB"

    def gain(self, chase: Chase, plan: PrunePlan) -> float:
        return chase.bytes() / chase.bytes(plan)

    def reached(self, result: Result) -> float:
        return result.before.bytes / result.after.bytes


@target
class MaxDrop(TargetKind):
    """The largest cut whose repaired network keeps a metric."""

    name, metavar, help = "max_drop", "D", "instead: cut until the metric of --eval drops by D"
    judged = True

    def reach(self, chase: Chase) -> Result:
        from onnxprune.pipeline.reach import drop_least

        return drop_least(chase)
