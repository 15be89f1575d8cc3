"""Channel analysis: what in a graph must live or die together, what may go, and why the rest may not."""

from onnxprune.channels.analysed import Analysed
from onnxprune.channels.analysis import find_channels
from onnxprune.channels.cut_sizes import CutSizes
from onnxprune.channels.groups import ChannelGroup, Channels, Pinned, Slice, ahead_of, common_reasons, removed_cuts
from onnxprune.channels.rules import written_by_optimiser
from onnxprune.channels.sizes import adapt_sizes

__all__ = [
    "Analysed",
    "ChannelGroup",
    "Channels",
    "CutSizes",
    "Pinned",
    "Slice",
    "adapt_sizes",
    "ahead_of",
    "common_reasons",
    "find_channels",
    "removed_cuts",
    "written_by_optimiser",
]
