"""Carry a plan's edits out: the one place where they become a network.

    inputs seen at other sizes → channels cut → columns merged → blocks out, or one layer → runs fused → repaired →
    layers made of two → finished → tidied

A quantized network is repaired in floats, and quantized again. Where inputs are seen at other sizes, the network that
sees them so is what is cut and repaired; its last layers are then brought back to what the original says.

What comes first is exact: its outcome equals the masked original, and can be proven (`edit_exactly`). What follows
approximates, and is fitted on samples where there are any. Everything that wants to know what a plan makes of a
network, how large, how fast or how good it is, asks here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.channels import Analysed, CutSizes
from onnxprune.errors import ModelError, PruneError, RunError
from onnxprune.graph.model import Graph
from onnxprune.plan import DropBlock, Edit, Factorize, FuseLayers, KeepChannels, MergeBlock, MergeColumns
from onnxprune.rewrite.activation_scales import chosen_anew
from onnxprune.rewrite.cut import cut_channels
from onnxprune.rewrite.drop import bypass, drop_blocks
from onnxprune.rewrite.factorize import factorize
from onnxprune.rewrite.fuse import fuse
from onnxprune.rewrite.merge import merge
from onnxprune.rewrite.merge_blocks import merge_blocks
from onnxprune.rewrite.quantized import floating, in_floats, requantized
from onnxprune.rewrite.repair.statistics import repair_statistics
from onnxprune.rewrite.repair.table import NONE, REPAIRS, Repair
from onnxprune.rewrite.repair.task import Progress, RepairTask
from onnxprune.rewrite.resample import seen_at
from onnxprune.runtime.reasons import memory_told

if TYPE_CHECKING:
    from onnxprune.measure.trained import Trained
    from onnxprune.samples.calibration import Calibration


ENDS = 2
"""The last layers of a network that sees its inputs at other sizes get back the statistics that they had: how strongly
it speaks has changed with them. EfficientNet-Lite0 at 160 instead of 224 pixels, 150 photographs, KL: 0.83 as it is,
0.34 with one or two, 0.35 with eight, 0.46 with all."""


@dataclass(frozen=True)
class Mending:
    """How a network is mended once its channels and blocks have gone.

    Attributes:
        repair: what is done.
        batches: samples to fit on; none: random inputs must do.
        samples: all that may be fitted on, for a repair that takes its own batches; None: there are none.
        any_batch: whether the first axis of the inputs is a batch of any size.
        options: the repair's own, by name.
        threads: ORT threads, and tasks side by side.
        seed: for everything random.
        finish: what is done last, to the network with all its edits but those that only tidy up.
        report: phase -> whom to tell of its progress.
        judges: samples that nothing is fitted on, for a repair that trains; None: it has to set some apart.
        tell: told what came of training.
    """

    repair: Repair = field(default_factory=lambda: REPAIRS[NONE])
    batches: Sequence[Mapping[str, np.ndarray]] = ()
    samples: Calibration | None = None
    any_batch: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    seed: int = 0
    finish: Callable[[Graph], Graph] | None = None
    report: Callable[[str], Progress | None] = lambda phase: None
    judges: Calibration | None = None
    tell: Callable[[Trained], None] = lambda outcome: None

    def task(self, net: Analysed, pruned: Graph, alive: np.ndarray, phase: str) -> RepairTask:
        """What the repair is given in one of its phases."""
        return RepairTask(
            net, pruned, alive, self.batches, self.samples, self.any_batch, self.options, self.threads, self.seed,
            self.report(phase), self.judges, self.tell,
        )  # fmt: skip


def alive_after(net: Analysed, edits: Collection[Edit]) -> np.ndarray:
    """(unit_count + 1,) bool: the units that the edits leave."""
    return net.channels.alive({e.group: e.keep for e in edits if isinstance(e, KeepChannels)})


def edit_exactly(net: Analysed, edits: Collection[Edit]) -> Graph:
    """The network without the channels and blocks that the edits take out, what they merge or fuse made one; nothing is
    repaired, and an Identity stands where a block was."""
    alive, net = alive_after(net, edits), seen_at(net, edits)
    graph = merge(net, cut_channels(net, alive), alive, [e for e in edits if isinstance(e, MergeColumns)])
    graph = without_blocks(net, graph, edits)
    fusions = [e for e in edits if isinstance(e, FuseLayers)]
    return fuse(graph, fusions, net.feeds) if fusions else graph


def without_blocks(net: Analysed, graph: Graph, edits: Collection[Edit]) -> Graph:
    """The cut network, edited: without the blocks that go, those that become one layer as that begins."""
    graph = drop_blocks(graph, [e for e in edits if isinstance(e, DropBlock)])
    merges = [e for e in edits if isinstance(e, MergeBlock)]
    return merge_blocks(graph, merges, CutSizes(net.channels, alive_after(net, edits))) if merges else graph


def apply_edits(
    net: Analysed, edits: Collection[Edit], mending: Mending | None = None, *, start: Graph | None = None
) -> Graph:
    """The network with all the edits in it.

    Args:
        net: the original network.
        edits: of one plan.
        mending: how it is repaired; None: not at all, as large and as fast as the outcome.
        start: what `edit_exactly` made of them, or another network of the same structure, which is edited further;
            None: it is made here. Of a quantized network it may be in floats.

    Raises:
        UsageError: a merge, a factorization or another size of an input does not fit the network.
        ModelError: values decide whether the network runs, and those of the repair are none with which it does.
        PruneError: the repair failed (our bug: the network itself runs).
    """
    how = mending or Mending()
    floats = floating(net) if how.repair.name != NONE or how.finish is not None else None
    if floats is not None:
        exact = edit_exactly(net, edits)
        repaired = apply_edits(floats, edits, how, start=in_floats(start or exact))
        if how.batches:
            chosen_anew(exact, net.graph, floats.graph, repaired, how.batches, how.threads)
        graph = requantized(repaired, exact)
        return bypass(graph, [e for e in edits if isinstance(e, DropBlock)])
    first, alive = how.repair.first, alive_after(net, edits)
    drops = [e for e in edits if isinstance(e, DropBlock)]
    blocks = [e for e in edits if isinstance(e, (DropBlock, MergeBlock))]
    factors = [e for e in edits if isinstance(e, Factorize)]
    if first.keeps_blocks and blocks:
        start = edit_exactly(net, [e for e in edits if e not in blocks])
    lead = first.lead if factors and first.again is not None else first
    seen = seen_at(net, edits)
    graph = _repaired(lead, how.task(seen, start or edit_exactly(net, edits), alive, "repair"))
    if first.keeps_blocks and blocks:
        graph = without_blocks(net, graph, edits)
    if factors:
        if (report := how.report("factorize")) is not None:
            report(0, 1)
        graph = factorize(graph, factors, net.feeds, how.batches, threads=how.threads, seed=how.seed)
        if first.again is not None:
            graph = first.again(how.task(seen, graph, alive, ""))
    if seen is not net and first.name != NONE and how.batches:
        graph = repair_statistics(how.task(net, graph.settle(), alive, ""), last=ENDS)
    if how.repair is not first:
        graph = _repaired(how.repair, how.task(net, graph, alive, how.repair.name))
    if how.finish is not None:
        graph = how.finish(graph)
    return bypass(graph, drops) if drops else graph.settle()


def _repaired(repair: Repair, task: RepairTask) -> Graph:
    try:
        with memory_told():
            return repair.run(task)
    except RunError as error:  # the cut network runs, but not on any values
        raise ModelError(f"{error}; the repair met values on which it does not run: use --repair none") from error
    except ModelError as error:  # the model itself runs
        raise PruneError(f"{error}; the repair failed: please report it, and use --repair none") from error
