"""The analysis: walk the graph, read off the groups, and try the result out.

Sizes that a graph computes at run time cannot be judged by a rule. So the analysis makes two trial cuts on
paper (half of every group, one channel of every group) and follows the sizes; what would come out wrong is
pinned, and the groups are read off again.
"""

from __future__ import annotations

import numpy as np

from onnxprune.channels.groups import Channels, read_off, walk_graph
from onnxprune.channels.spelled import Cut, mend
from onnxprune.channels.ties import Ties
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import Observed


def find_channels(graph: Graph, observed: Observed, *, prune_statistics: bool = False) -> Channels:
    """Channel groups, and a reason for everything that is pinned.

    Args:
        graph: the graph, unedited.
        observed: sizes of every tensor, from one run.
        prune_statistics: also cut axes over which a normalization takes its mean: the cut is then inexact, and
            `Channels.inexact` names the nodes.
    """
    ties, flow = walk_graph(graph, observed, prune_statistics)
    while True:
        channels = read_off(graph, observed, ties, flow)
        if not _pin_conflicts(graph, channels, ties, flow):
            return channels


def _pin_conflicts(graph: Graph, channels: Channels, ties: Ties, flow: dict[str, np.ndarray]) -> bool:
    """Try two cuts; pin what they break. Returns whether anything was pinned."""
    if not channels.derived:
        return False
    broken = False
    for share in (0.5, 0.0):
        keep = {
            g.name: range(max(1, min(g.width - 1, round(g.width * (1 - share))))) for g in channels.groups
        }
        cut = Cut(channels, channels.alive(keep))
        for conflict in mend(graph, cut)[1]:
            tensors = [t for t in conflict.tensors if cut.changed(t)] or list(cut.lines)
            for name in tensors:
                ties.where, ties.tensor = conflict.node, name
                ties.pin(flow[name], conflict.reason)
            broken = True
        if broken:
            break
    return broken
