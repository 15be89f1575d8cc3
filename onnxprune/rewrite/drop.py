"""Take whole blocks out of a model: the Add behind a branch hands its other operand on.

In between, the Add becomes an Identity of the same name, so that every tensor of the pruned network that a repair
looks for is still there; `bypass` takes these out at the end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx

from onnxprune.channels import Channels
from onnxprune.graph.model import Graph
from onnxprune.plan import DropBlock, Edit, KeepChannels
from onnxprune.rewrite.cut import cut


def without(graph: Graph, channels: Channels, edits: Collection[Edit]) -> onnx.ModelProto:
    """A clone of the graph's model without the channels and blocks that the edits take out; others are left to do."""
    alive = channels.alive({e.group: e.keep for e in edits if isinstance(e, KeepChannels)})
    return drop_blocks(cut(graph, channels, alive), [e for e in edits if isinstance(e, DropBlock)])


def drop_blocks(model: onnx.ModelProto, drops: Iterable[DropBlock]) -> onnx.ModelProto:
    """A clone of the model in which those branches, and what only they needed, are gone.

    An Add that is not there has gone with a group that kept no channel: whether the original has one was asked before.
    """
    graph = Graph(model)
    for drop in drops:
        if drop.block not in graph.nodes:
            continue
        own = graph.own(drop.block)
        left = own.input[1 - drop.branch]
        own.op_type = "Identity"
        del own.input[:], own.attribute[:]
        own.input.append(left)
    return graph.export()


def bypass(model: onnx.ModelProto, drops: Iterable[DropBlock]) -> onnx.ModelProto:
    """The model without the Identities that `drop_blocks` left; those that make an output stay."""
    graph = Graph(model)
    inner = graph.captured()
    consumers = graph.consumers()
    instead: dict[str, str] = {}
    for drop in drops:
        node = graph.nodes.get(drop.block)
        if node is not None and node.op_type == "Identity" and not {node.output[0]} & (set(graph.outputs) | set(inner)):
            instead[node.output[0]] = node.input[0]
    for gone in instead:
        source = instead[gone]
        while source in instead:
            source = instead[source]
        for key, i in consumers.get(gone, ()):
            graph.own(key).input[i] = source
    for gone in instead:
        graph.drop(graph.producer[gone])
    return graph.export()
