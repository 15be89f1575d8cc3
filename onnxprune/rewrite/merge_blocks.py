"""Make one convolution of a run of layers: the Add at its end becomes it, and reads what the run read.

At first it stands for what is left when the branches are masked: it hands on the other operand, or makes zeros. So the
cut can be proven as one without these blocks. What it is to be is then fitted as every layer is that has something to
make up for: to what the original's Add wrote, from what it reads now (`rewrite.repair.refit`), and drawn towards that.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from onnx import helper

from onnxprune.channels import CutSizes
from onnxprune.graph.model import Graph
from onnxprune.graph.pairs import centred
from onnxprune.plan import MergeBlock


def merge_blocks(graph: Graph, merges: Iterable[MergeBlock], cut: CutSizes) -> Graph:
    """The graph, edited: those runs are a convolution each.

    Args:
        graph: the network, its channels cut already.
        merges: which; one whose Add is not there any more has gone with a group that kept no channel.
        cut: the sizes that its tensors have.
    """
    graph.settle()
    for merge in merges:
        if merge.block in graph.nodes:
            _convolve(graph, merge, cut.shapes[merge.source][1], cut.shapes[merge.block][1])
    return graph.settle()


def _convolve(graph: Graph, merge: MergeBlock, inputs: int, outputs: int) -> None:
    node, axes = graph.own(merge.block), merge.rank - 2
    W = np.zeros((outputs, inputs, *[merge.kernel] * axes), np.float32)
    if len(merge.branch) == 1:  # the other operand is what it reads
        W.reshape(outputs, inputs, -1)[np.arange(outputs), np.arange(outputs), merge.kernel**axes // 2] = 1
    node.op_type = "Conv"
    del node.input[:], node.attribute[:]
    bias = np.zeros(outputs, np.float32)
    weight, shift = graph.add_constant(f"{merge.block}_merged", W), graph.add_constant(f"{merge.block}_bias", bias)
    node.input.extend([merge.source, weight, shift])
    node.attribute.extend(
        helper.make_attribute(name, value) for name, value in centred(merge.kernel, merge.stride, axes).items()
    )
