"""What a repair is given: two networks, samples, and how to go about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from onnxprune.channels import Analysed
    from onnxprune.graph.model import Graph
    from onnxprune.measure.trained import Trained
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
        judges: samples that nothing was fitted on, for a repair that trains; None: it has to set some apart.
        tell: told what came of training.
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
    judges: Calibration | None = None
    tell: Callable[[Trained], None] = lambda outcome: None

    def of(self, pruned: Graph) -> RepairTask:
        """The same task for another pruned network."""
        return replace(self, pruned=pruned)
