"""The repair of a run: which one, what it is given, and the one that trains.

The table is `rewrite.repair.table`. Here stands what needs more of the tool than arrays and graphs: the choice by what
there is of the model and the samples, and the repair that reaches into the torch room.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from onnxprune.errors import UnsupportedError, UsageError
from onnxprune.rewrite.repair.table import NONE, REPAIRS, WITH_SAMPLES, WITHOUT_SAMPLES, Repair, repair
from onnxprune.rewrite.repair.task import RepairTask

if TYPE_CHECKING:
    from onnxprune.graph.model import Graph

REPAIR_SAMPLES = 512
"""Most samples that a repair in closed form is fitted on."""
TRAINED_AT_A_TIME = 64
"""Samples that are read at a time for training."""


@repair(
    "distill",
    help="refit, then training without labels; needs torch",
    needs=("samples", "weights", "torch"),
    after="refit",
    trains=True,
    options=("epochs", "minutes", "augment", "recipe"),
)
def distill(task: RepairTask) -> Graph:
    from onnxprune.train.distill import Distillation
    from onnxprune.train.distill import distill as distilled

    assert task.samples is not None
    how = Distillation(seed=task.seed, **task.options)
    judges = None if task.judges is None else list(task.judges.batches(TRAINED_AT_A_TIME))
    return distilled(
        task.net, task.pruned, task.alive, list(task.samples.batches(TRAINED_AT_A_TIME)), settings=how, judges=judges,
        threads=task.threads, progress=task.progress, tell=task.tell,
    )  # fmt: skip


def repair_for(
    asked: str | None, *, sampled: bool, lossless: bool, has_weights: Callable[[], bool]
) -> tuple[Repair, list[str]]:
    """The repair that is made, and what the user should know of the choice.

    Args:
        asked: name of the one asked for; None: the best that can be had.
        sampled: whether there are samples.
        lossless: whether the plan changes no output.
        has_weights: whether any layer has weights in floating point.

    Raises:
        UsageError, UnsupportedError: the one asked for cannot be done.
    """
    name = asked or (NONE if lossless else WITH_SAMPLES if sampled else WITHOUT_SAMPLES)
    chosen = REPAIRS[name]
    if lossless and name != NONE:
        raise UsageError(f"the plan is lossless and leaves nothing to repair; drop --repair {name}")
    if "samples" in chosen.needs and not sampled:
        raise UsageError(f"--repair {name} needs samples; give --calib")
    if "weights" not in chosen.needs or has_weights():
        return chosen, []
    why = "no layer has weights in floating point, so "  # quantized ones stay as they are
    if "torch" in chosen.needs:
        raise UnsupportedError(f"--repair {name}: {why}there is nothing to train")
    return REPAIRS[NONE], [f"{why}nothing was repaired"]
