"""The analysis: walk the graph, read off the groups, and try the result out.

Sizes that a graph computes at run time cannot be judged by a rule. So the analysis makes a few trial cuts
on paper and follows the sizes; what would come out wrong is pinned, and the groups are read off again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations, islice
from math import comb

import numpy as np

from onnxprune.channels.cut_sizes import CutSizes
from onnxprune.channels.groups import Channels, read_off, walk_graph
from onnxprune.channels.sizes import adapt_sizes
from onnxprune.channels.ties import Ties
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import Observed


def find_channels(
    graph: Graph,
    observed: Observed,
    *,
    prune_statistics: bool = False,
    reasons: Mapping[str, str] | None = None,
) -> Channels:
    """Channel groups, and a reason for everything that is pinned.

    Args:
        graph: the graph, unedited.
        observed: sizes of every tensor, from one run.
        prune_statistics: also cut axes over which a normalization takes its mean: the cut is then inexact, and
            `Channels.inexact` names the nodes.
        reasons: why inputs and outputs stay whole that are none of the file's, by name.
    """
    ties, flow = walk_graph(graph, observed, prune_statistics, reasons or {})
    while True:
        channels = read_off(graph, observed, ties, flow)
        if not _pin_conflicts(graph, channels, ties, flow):
            return channels


def _trials(channels: Channels) -> Iterator[np.ndarray]:
    """Cuts to try: half of every group; all but one of every group; and half of some groups, so chosen that of any
    two groups each is once cut without the other, and no group's size can pass for that of another."""
    count = len(channels.groups)
    every = np.ones(count, bool)
    for share, chosen in ((0.5, every), (1.0, every), *((0.5, some) for some in _apart(count))):
        keep = {
            g.name: range(max(1, min(g.width - 1, round(g.width * share))))
            for g, there in zip(channels.groups, chosen, strict=True)
            if there
        }
        yield channels.alive(keep)


def _apart(count: int) -> Iterator[np.ndarray]:
    """Few sets of things, (count,) bool each: for any two things, one set has the first and not the second.

    Every thing is in another half of the sets, so that none is in all that another is in (Sperner)."""
    size = 0
    while comb(size, size // 2) < count:
        size += 1
    halves = list(islice(combinations(range(size), size // 2), count))
    for k in range(size):
        yield np.array([k in half for half in halves], bool)


def _pin_conflicts(graph: Graph, channels: Channels, ties: Ties, flow: dict[str, np.ndarray]) -> bool:
    """Try some cuts; pin what they break. Returns whether anything was pinned."""
    if not channels.derived:
        return False
    for alive in _trials(channels):
        cut = CutSizes(channels, alive)
        conflicts = adapt_sizes(graph, cut)[1]
        for conflict in conflicts:
            for name in [t for t in conflict.tensors if cut.changed(t)] or list(cut.lines):
                ties.where, ties.tensor = conflict.node, name
                ties.pin(flow[name], conflict.reason)
        if conflicts:
            return True
    return False
