"""The repairs: what each does to a cut network, what it needs, and when it may be asked for.

A repair is one decorated function from a `RepairTask` to the repaired network. Everything that depends on which repair
is meant (defaults, checks, help, what plans are compared with, what becomes of factorized layers) is said in its entry
and asked of it; nobody compares names. What the functions do is imported when they run: the command line lists this
table without numpy. A repair that trains stands in `pipeline.repairs`, where the torch room can be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from onnxprune.rewrite.repair.task import RepairTask

if TYPE_CHECKING:
    from onnxprune.graph.model import Graph

Both = tuple[Callable[[RepairTask], "Graph"], Callable[[RepairTask], "Graph"] | None]
"""`Repair.run` and `Repair.again`."""


@dataclass(frozen=True)
class Repair:
    """One entry of the table.

    Attributes:
        name: as users write it.
        help: one line for users.
        run: the repair.
        sized: what makes a network as large as the outcome, whose values mean nothing.
        needs: what it cannot do without: "samples", "torch", "weights" (layers in floating point).
        after: name of the repair that comes first; this one is then done last, to the network with all its edits.
        judged_by: name of the repair after which plans are compared; None: the one that comes first.
        again: what it does once layers were made of two, after the cut ones were repaired; None: nothing.
        sized_again: what makes a network as large as the outcome of that.
        sketched: `run` and `again` with less work; None: the same.
        glanced: the same with as little work as tells near plans apart; None: the same.
        keeps_blocks: whether it looks at whole networks, so that blocks go only after it.
        merges_likest: whether it goes further from a network whose removed channels were merged into the likest kept
            ones, where the plan asks for that.
        trains: whether it trains, which is judged by samples that nothing was fitted on and may end where it began.
        options: names of the settings that are its own.
    """

    name: str
    help: str
    run: Callable[[RepairTask], Graph]
    sized: Callable[[RepairTask], Graph]
    needs: frozenset[str] = frozenset()
    after: str | None = None
    judged_by: str | None = None
    again: Callable[[RepairTask], Graph] | None = None
    sized_again: Callable[[RepairTask], Graph] | None = None
    sketched: Both | None = None
    glanced: Both | None = None
    keeps_blocks: bool = False
    merges_likest: bool = False
    trains: bool = False
    options: tuple[str, ...] = ()

    @property
    def first(self) -> Repair:
        """The repair of the cut network: this one, or the one that it goes on from."""
        return self if self.after is None else REPAIRS[self.after]

    @property
    def size(self) -> Repair:
        """What stands in for it where only sizes count."""
        return replace(self.first, run=self.first.sized, again=self.first.sized_again)

    @property
    def judge(self) -> Repair:
        """The repair after which plans are compared."""
        found = self.first if self.judged_by is None else REPAIRS[self.judged_by]
        return found._with(found.sketched)

    @property
    def glance(self) -> Repair:
        """The repair after which plans are compared where these are many."""
        return self.judge._with(self.judge.glanced)

    def _with(self, both: Both | None) -> Repair:
        return self if both is None else replace(self, run=both[0], again=both[1], sketched=both)

    @property
    def lead(self) -> Repair:
        """What comes first where layers are then made of two and all is repaired once more: with less work, which
        leaves the outcome as good (a ResNet-20 at half the MACs agrees in 98.93 instead of 98.95%, at -80% in 95.33
        instead of 95.26%)."""
        return self if self.sketched is None else replace(self, run=self.sketched[0])


REPAIRS: dict[str, Repair] = {}
WITH_SAMPLES, WITHOUT_SAMPLES, NONE = "refit", "merge", "none"
"""The repairs that are made unless another is asked for, and the one that does nothing."""


def leave_alone(task: RepairTask) -> Graph:
    """The network as it is."""
    return task.pruned


def _as_corrected(task: RepairTask) -> Graph:
    from onnxprune.rewrite.repair.room import with_room

    return with_room(task)


def _as_refitted(task: RepairTask) -> Graph:
    from onnxprune.rewrite.repair.together import with_room

    return with_room(task)


def _factors_refitted(task: RepairTask) -> Graph:
    from onnxprune.rewrite.factorize import refit_factorized

    return refit_factorized(task)


def _refitted_by(effort: str, task: RepairTask) -> Graph:
    from onnxprune.rewrite.repair import refit as room

    return room.refit(task, effort=getattr(room, effort))


def _factors_refitted_by(effort: str, task: RepairTask) -> Graph:
    from onnxprune.rewrite.factorize import refit_factorized
    from onnxprune.rewrite.repair import refit as room

    return refit_factorized(task, effort=getattr(room, effort))


def _lighter(effort: str) -> Both:
    """The refit with less work, by the name of how much that is."""
    return partial(_refitted_by, effort), partial(_factors_refitted_by, effort)


def _as_factors_refitted(task: RepairTask) -> Graph:
    from onnxprune.rewrite.factorize import with_room_for_factors

    return with_room_for_factors(task)


def _as_merged(task: RepairTask) -> Graph:
    from onnxprune.rewrite.repair.without_samples import with_room

    return with_room(task)


def repair(
    name: str,
    *,
    help: str,
    needs: Sequence[str] = (),
    sized: Callable[[RepairTask], Graph] = _as_corrected,
    **rest: Any,
) -> Callable[[Callable[[RepairTask], Graph]], Callable[[RepairTask], Graph]]:
    """Enter a repair; arguments as the attributes of `Repair`."""

    def enter(function: Callable[[RepairTask], Graph]) -> Callable[[RepairTask], Graph]:
        REPAIRS[name] = Repair(name, help, function, sized, frozenset(needs), **rest)
        return function

    return enter


repair("none", help="the cut network as it is", sized=leave_alone)(leave_alone)


@repair(
    "merge",
    help="what went is spread over what stays, then statistics; goes without samples (default then)",
    needs=("weights",),
    sized=_as_merged,
    judged_by="none",
    keeps_blocks=True,
)
def merge(task: RepairTask) -> Graph:
    from onnxprune.rewrite.repair.without_samples import repair_merge, repair_without_samples

    return repair_merge(task) if task.batches else repair_without_samples(task)


@repair(
    "statistics",
    help="every layer's output gets its mean and spread back",
    needs=("samples", "weights"),
    merges_likest=True,
)
def statistics(task: RepairTask) -> Graph:
    from onnxprune.rewrite.repair.statistics import repair_statistics

    return repair_statistics(task)


@repair(
    "refit",
    help="every layer learns anew from what is left, by least squares (default with --calib)",
    needs=("samples", "weights"),
    sized=_as_refitted,
    again=_factors_refitted,
    sized_again=_as_factors_refitted,
    sketched=_lighter("SKETCH"),
    glanced=_lighter("GLANCE"),
)
def refit(task: RepairTask) -> Graph:
    from onnxprune.rewrite.repair.refit import refit as refitted

    return refitted(task)
