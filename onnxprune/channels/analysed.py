"""A network and what is known of it: the one thing that stages hand on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune.channels.groups import Channels
from onnxprune.graph.model import Graph
from onnxprune.graph.said import NOTHING, Said

BATCH = 32
"""Samples that are run at a time, at most."""
ACTIVATION = 1 << 26
"""Bytes that one activation of them may take."""
OUTPUTS, FEWEST = 1 << 29, 8
"""Bytes of outputs that are kept to be compared, and the samples that there are at least."""


@dataclass(frozen=True)
class Analysed:
    """A network, run once and analysed. Nobody edits its graph.

    Attributes:
        graph: the network, unedited.
        channels: its analysis.
        feeds: the inputs of the run that was looked at: names, types, sizes.
        said: what its user says of its outputs.
    """

    graph: Graph
    channels: Channels
    feeds: Mapping[str, np.ndarray]
    said: Said = NOTHING

    @property
    def model(self) -> onnx.ModelProto:
        """The network as protobuf."""
        return self.graph.model

    @property
    def batch(self) -> int:
        """Samples that are run at a time: fewer where activations are large, the same on every machine."""
        own = max([1, *(len(v) for v in self.feeds.values() if v.ndim)])
        made = {o for n in self.graph.nodes.values() for o in n.output} & self.shapes.keys()
        largest = max((4 * math.prod(self.shapes[o]) for o in made), default=1) // own
        return max(1, min(BATCH, ACTIVATION // max(1, largest)))

    def judged(self, count: int) -> int:
        """So many samples whose outputs are kept to be compared, fewer where these are large."""
        own = max([1, *(len(v) for v in self.feeds.values() if v.ndim)])
        each = sum(4 * math.prod(self.shapes.get(o, ())) for o in self.graph.outputs) // own
        return max(1, min(count, max(FEWEST, OUTPUTS // max(1, each))))

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Tensor name -> sizes in that run."""
        return self.channels.shapes
