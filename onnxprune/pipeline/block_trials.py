"""What it does to the outputs when a block goes, measured with the layers behind it repaired.

A damage before repair says little: the next branch can learn to add most of what the block added. So every block is
dropped alone, the few layers behind it are refitted on some samples, and the outputs are compared on others.
`decide` and `rewrite` meet here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from onnxprune import parallel
from onnxprune.channels import Analysed, Channels
from onnxprune.decide.blocks import AnyBlock, Block, all_blocks
from onnxprune.decide.runs import Run
from onnxprune.decide.trials import Candidate
from onnxprune.graph.layers import layers
from onnxprune.graph.shapes import only_tensors
from onnxprune.measure.stepwise import Runner, Stops
from onnxprune.plan import DropBlock, KeepChannels
from onnxprune.rewrite.apply import alive_after, edit_exactly
from onnxprune.rewrite.repair.refit import QUICK, bytes_of_refit, refit
from onnxprune.rewrite.repair.task import RepairTask
from onnxprune.runtime.ports import Feeds

Judge = Callable[[Candidate], float]
"""Tells the damage that a candidate does to the outputs."""
REPAIRED = 3
"""Layers behind a block that are refitted before its damage is measured."""


def edit_of(block: AnyBlock, channels: Channels) -> DropBlock | KeepChannels:
    """The edit that takes a block out."""
    return drop_of(block, channels) if isinstance(block, Block) else KeepChannels(block.group, block.width, ())


def drop_of(block: Block, channels: Channels) -> DropBlock:
    """The edit that takes a residual block out."""
    rank = len(block.shape)
    axis = channels.lines[block.add][0] if block.add in channels.lines else 1 if rank != 3 else 2
    return DropBlock(block.add, block.branch, axis, rank, block.shape[axis])


@parallel.within_threads
def block_damages(
    net: Analysed,
    blocks: Sequence[AnyBlock | Run],
    batches: Sequence[Feeds],
    judge: Callable[[str], Judge],
    *,
    threads: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Block -> damage to the outputs when it alone goes; run -> when it becomes one layer.

    Args:
        net: the original network.
        blocks: those to try.
        batches: samples to refit on.
        judge: given the first node in which a candidate differs from the original, what tells its damage.
        threads: ORT threads.
        seed: of the refit.
        progress: called with (blocks tried, blocks).
    """
    graph, channels = net.graph, net.channels
    order = {key: k for k, key in enumerate(graph.nodes)}
    places = [order[layer.key] for layer in layers(graph, channels.shapes)]
    keys = list(graph.nodes)
    ordered = sorted(blocks, key=lambda b: order[b.first])
    stops = Stops(graph, batches, [b.first for b in (*all_blocks(net), *blocks)], threads=threads)
    apart = only_tensors(graph)

    def tries() -> Iterator[tuple[AnyBlock | Run, Runner | None, Judge]]:
        for block in ordered:  # up to each block the networks are the same: that is run once
            yield block, stops.at(block.first) if apart else None, judge(block.first)

    def damage(given: tuple[AnyBlock | Run, Runner | None, Judge]) -> float:
        block, start, damage_of = given
        edit = block.edit if isinstance(block, Run) else edit_of(block, channels)
        behind = [keys[p] for p in places if p > order[block.end]][:REPAIRED]
        behind = [block.end, *behind] if isinstance(block, Run) else behind
        task = RepairTask(
            net, edit_exactly(net, [edit]), alive_after(net, [edit]), batches, threads=threads, seed=seed
        )  # fmt: skip
        return damage_of(refit(task, effort=QUICK, only=behind, start=start))

    found = parallel.with_progress(parallel.each(damage, tries(), holds=bytes_of_refit(net)), len(blocks), progress)
    return dict(zip((b.name for b in ordered), found, strict=True))
