"""Merge what goes into what stays: a reader's columns of a removed channel are added to its nearest kept channel.

Exact when the two are twins; in general only a start for a repair, which sees to the rest. The plan says which
channels stay, and nothing more, so merging belongs to the repair.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.channels import Analysed, Slice
from onnxprune.graph.model import Graph
from onnxprune.rewrite.cut import cut_channels


def cut_merged(net: Analysed, alive: np.ndarray, distances: Mapping[str, np.ndarray]) -> Graph:
    """As `cut_channels`, with the removed channels merged into the nearest ones.

    Args:
        net: the network.
        alive: (unit_count + 1,) bool, what stays.
        distances: (width, width) of every group's channels.
    """
    edited = net.graph.fork()
    for g in net.channels.groups:
        kept = np.flatnonzero(alive[g.units])
        if len(kept) == g.width:
            continue
        into = kept[distances[g.name][:, kept].argmin(axis=1)]
        into[kept] = kept
        for s in g.readers:
            value = edited.value(s.use)
            if value is not None and value.dtype.kind == "f":
                edited.set_constant(s.use, _moved(value, s, into))
    return cut_channels(net, alive, edited)


def _moved(value: np.ndarray, s: Slice, into: np.ndarray) -> np.ndarray:
    """The weight with every column added to the column of the channel that its own is merged into."""
    index = np.flatnonzero(s.channel >= 0)
    places = index[np.argsort(s.channel[index], kind="stable")].reshape(len(into), -1)  # (width, times)
    out = np.moveaxis(value.copy(), s.axis, 0)
    gone = np.flatnonzero(into != np.arange(len(into)))
    source = np.moveaxis(value, s.axis, 0)
    np.add.at(out, places[into[gone]].ravel(), source[places[gone].ravel()])
    return np.ascontiguousarray(np.moveaxis(out, 0, s.axis))
