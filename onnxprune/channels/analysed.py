"""A network and what is known of it: the one thing that stages hand on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune.channels.groups import Channels
from onnxprune.graph.model import Graph
from onnxprune.graph.said import NOTHING, Said


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
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Tensor name -> sizes in that run."""
        return self.channels.shapes
