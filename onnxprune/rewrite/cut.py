"""Physically remove channels: the one place where a network loses weights.

`cut_channels` takes the analysis and the set of units that stay, and returns a new network in which every constant that
carries a removed unit has lost those indices and every size that the graph spells out is right again. It
computes nothing: the values that stay are the original's, bit for bit.
"""

from __future__ import annotations

import numpy as np
import onnx

from onnxprune.channels import Analysed, CutSizes, adapt_sizes
from onnxprune.errors import UnsupportedError
from onnxprune.graph import operators
from onnxprune.graph.export import any_sizes, write_sizes
from onnxprune.graph.layers import hand_on
from onnxprune.graph.model import Graph
from onnxprune.protobuf.nodes import read_by, set_attr


def cut_channels(net: Analysed, alive: np.ndarray, edited: Graph | None = None) -> Graph:
    """The network without the units that are not alive.

    Args:
        net: the network.
        alive: (unit_count + 1,) bool, as `Channels.alive` makes it.
        edited: a fork of the network's graph with other values in some of its constants, which is cut; None: the
            network as it is.

    Raises:
        UnsupportedError: a size computed at run time would come out wrong (the analysis pins these, so this
            is a last line of defence).
    """
    source = net.graph if edited is None else edited
    edited = net.graph.fork() if edited is None else edited
    sizes = CutSizes(net.channels, alive)
    size_edits, conflicts = adapt_sizes(net.graph, sizes)
    conflicts = [c for c in conflicts if not any(_empties(sizes, o) for o in net.graph.nodes[c.node].output)]
    if conflicts:
        raise UnsupportedError(f"node {conflicts[0].node!r}: {conflicts[0].reason} - exclude its channels")
    for use, axes in net.channels.params.items():
        value = kept = source.value(use)
        if value is None or kept is None:
            continue
        for axis, units in axes.items():
            keep = alive[units]
            if not keep.all():
                kept = kept.compress(keep, axis)
        if kept is not value:
            edited.set_constant(use, kept)
    for edit in size_edits:
        if edit.attribute is None:
            edited.set_constant(edit.use, edit.value)
        elif edit.attribute == "*scale":
            key = edit.use[0]
            _scale(edited, key, edit.value, net.graph.float_of(net.graph.nodes[key].output[0]))
        elif edit.attribute == "+split":
            _add_split(edited, edit.use[0], edit.value)
        else:
            set_attr(edited.own(edit.use[0]), edit.attribute, edit.value)
    for key, node in net.graph.nodes.items():
        if operators.of(node).bodies and any(map(sizes.changed, (*read_by(node), *node.output))):
            any_sizes(edited.own(key))
    edited.settle()
    empty = {name for name in sizes.lines if _empties(sizes, name)}
    if empty:
        _leave_out(edited, empty)
    changed = {name: {axis: sizes.shapes[name][axis]} for name, (axis, _) in sizes.lines.items()}
    write_sizes(edited.model, changed)
    return edited


def _empties(sizes: CutSizes, name: str) -> bool:
    """Whether no channel of the tensor is left."""
    return name in sizes.lines and not sizes.shapes[name][sizes.lines[name][0]]


def _leave_out(graph: Graph, empty: set[str]) -> None:
    """Take out tensors that have no channels left, and all that only made them."""
    for key, node in list(graph.nodes.items()):
        if not operators.of(node).joins or not empty.intersection(node.input) or empty.intersection(node.output):
            continue
        own = graph.own(key)
        left = [i for i in own.input if i not in empty]
        del own.input[:]
        own.input.extend(left)
        if len(left) == 1:
            hand_on(graph, key, left[0])
    graph.settle()
    for key, node in graph.nodes.items():
        if empty.intersection(node.input) or empty.intersection(node.output):
            raise UnsupportedError(f"node {key!r} would have no channels left - keep one of its group")


def _add_split(edited: Graph, key: str, sizes: np.ndarray) -> None:
    """A Split into equal parts gets unequal ones: give it the operand that says so."""
    node = edited.own(key)
    for k in range(len(node.attribute) - 1, -1, -1):
        if node.attribute[k].name == "num_outputs":
            del node.attribute[k]
    name = edited.add_constant(f"{key}_sizes", sizes)
    del node.input[1:]
    node.input.append(name)


def _scale(edited: Graph, key: str, factor: float, dtype: np.dtype | None) -> None:
    """Multiply a node's output by a number of its type, under the output's own name."""
    node = edited.own(key)
    name, inner = node.output[0], edited.fresh(f"{key}_unscaled")
    scale = edited.add_constant(f"{key}_scale", np.asarray(factor, dtype or np.float32))
    node.output[0] = inner
    edited.insert_after(key, onnx.helper.make_node("Mul", [inner, scale], [name]))
