"""Channel analysis: what in a graph must live or die together, what may go, and why the rest may not."""

from onnxprune.channels.analysis import find_channels
from onnxprune.channels.groups import ChannelGroup, Channels, Pinned, Slice, ahead_of, common_reasons, removed_cuts
from onnxprune.channels.spelled import Cut, mend

__all__ = [
    "ChannelGroup",
    "Channels",
    "Cut",
    "Pinned",
    "Slice",
    "ahead_of",
    "common_reasons",
    "find_channels",
    "mend",
    "removed_cuts",
]
