"""The repairs: what each does to a cut network, what it needs, and when it may be asked for.

A repair is one decorated function from a `RepairTask` to the repaired network. Everything that depends on which repair
is meant (defaults, checks, help, what plans are compared with, what becomes of factorized layers) is said in its entry
and asked of it; nobody compares names. What the functions do is imported when they run: the command line lists this
table without numpy. A repair that trains stands in `pipeline.repairs`, where the torch room can be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from onnxprune.channels import Analysed
    from onnxprune.graph.model import Graph
    from onnxprune.samples.calibration import Calibration

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


@dataclass(frozen=True)
class RepairTask:
    """What a repair is given.

    Attributes:
        net: the original network.
        pruned: the network after the cut. The repair edits it, and returns it or another.
        alive: (unit_count + 1,) bool, what was kept.
        batches: samples to fit on; none: random inputs must do.
        samples: all that may be fitted on, for a repair that takes its own batches; None: there are none.
        any_batch: whether the first axis of the inputs is a batch of any size.
        options: the repair's own, by name.
        threads: ORT threads, and tasks side by side.
        seed: for everything random.
        progress: called with (layers done, layers).
    """

    net: Analysed
    pruned: Graph
    alive: np.ndarray
    batches: Sequence[Mapping[str, np.ndarray]] = ()
    samples: Calibration | None = None
    any_batch: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    seed: int = 0
    progress: Progress | None = None

    def of(self, pruned: Graph) -> RepairTask:
        """The same task for another pruned network."""
        return replace(self, pruned=pruned)


@dataclass(frozen=True)
class Repair:
    """One entry of the table.

    Attributes:
        name: as users write it.
        help: one line for users.
        run: the repair.
        needs: what it cannot do without: "samples", "torch", "weights" (layers in floating point).
        after: name of the repair that comes first; this one is then done last, to the network with all its edits.
        judged_by: name of the repair after which plans are compared; None: the one that comes first.
        refits_factors: whether layers that were made of two are refitted after the cut ones were.
        keeps_blocks: whether it looks at whole networks, so that blocks go only after it.
        merges_likest: whether it goes further from a network whose removed channels were merged into the likest kept
            ones, where the plan asks for that.
        options: names of the settings that are its own.
    """

    name: str
    help: str
    run: Callable[[RepairTask], Graph]
    needs: frozenset[str] = frozenset()
    after: str | None = None
    judged_by: str | None = None
    refits_factors: bool = False
    keeps_blocks: bool = False
    merges_likest: bool = False
    options: tuple[str, ...] = ()

    @property
    def first(self) -> Repair:
        """The repair of the cut network: this one, or the one that it goes on from."""
        return self if self.after is None else REPAIRS[self.after]

    @property
    def judge(self) -> Repair:
        """The repair after which plans are compared."""
        return self.first if self.judged_by is None else REPAIRS[self.judged_by]


REPAIRS: dict[str, Repair] = {}
WITH_SAMPLES, WITHOUT_SAMPLES, NONE = "refit", "merge", "none"
"""The repairs that are made unless another is asked for, and the one that does nothing."""


def repair(
    name: str, *, help: str, needs: Sequence[str] = (), **rest: Any
) -> Callable[[Callable[[RepairTask], Graph]], Callable[[RepairTask], Graph]]:
    """Enter a repair; arguments as the attributes of `Repair`."""

    def enter(function: Callable[[RepairTask], Graph]) -> Callable[[RepairTask], Graph]:
        REPAIRS[name] = Repair(name, help, function, frozenset(needs), **rest)
        return function

    return enter


@repair("none", help="the cut network as it is")
def leave_alone(task: RepairTask) -> Graph:
    return task.pruned


@repair(
    "merge",
    help="what went is spread over what stays, then statistics; goes without samples (default then)",
    needs=("weights",),
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
    refits_factors=True,
)
def refit(task: RepairTask) -> Graph:
    from onnxprune.rewrite.repair.refit import refit as refitted

    return refitted(task)
