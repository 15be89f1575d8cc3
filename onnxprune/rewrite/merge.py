"""Merges: before an input of a layer goes, what it contributed is handed to another input, or to the bias.

Exact where the two inputs are proportional (`decide.redundancy`), an approximation where they are only alike
(`rewrite.repair.nearest`). Indices are those of the original weight; the model that is edited has been cut already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.channels import Analysed
from onnxprune.errors import PlanError
from onnxprune.graph.layers import add_bias, added_behind, has_bias, lacks_bias, shift_along
from onnxprune.graph.model import Graph, Use
from onnxprune.plan import MergeColumns


def merge(net: Analysed, graph: Graph, alive: np.ndarray, merges: Sequence[MergeColumns]) -> Graph:
    """The cut network, edited: the merges are in its weights.

    Args:
        net: the network before the cut; its weights are what is merged.
        graph: the network after it.
        alive: (unit_count + 1,) bool, what was kept.
        merges: what to hand on.

    Raises:
        UsageError: a merge names a weight or an index that the model does not have.
    """
    if not merges:
        return graph
    graph.settle()
    original, channels = net.graph, net.channels
    behind = added_behind(original, net.shapes)
    for m in merges:
        use = (m.node, m.input)
        value = original.value(use) if m.node in original.nodes else None
        axes = channels.params.get(use, {})
        if value is None or m.axis not in axes or max((*m.source, *m.target)) >= value.shape[m.axis]:
            raise PlanError(f"plan: the merge at {m.node!r} does not fit the model - write a new plan")
        w, outputs = merged(value, m)
        for axis, units in axes.items():
            w = w.compress(alive[units], axis)
        graph.set_constant(use, w, exact=True)
        if outputs is not None:
            fold_bias(net, graph, alive, use, m.axis, outputs, behind)
    return graph.settle()


def merged(value: np.ndarray, m: MergeColumns) -> tuple[np.ndarray, np.ndarray | None]:
    """(the weight with its columns added up, what to add to the outputs or None): both in original indices."""
    columns = np.moveaxis(value.astype(np.float64), m.axis, 0)
    total = columns.copy()
    source, target = np.array(m.source, int), np.array(m.target, int)
    factor, constant = np.array(m.factor), np.array(m.constant)
    moved = target >= 0
    spread = (-1, *[1] * (value.ndim - 1))
    np.add.at(total, target[moved], columns[source[moved]] * factor[moved].reshape(spread))
    outputs = None
    if constant.any():
        outputs = (columns[source] * constant.reshape(spread)).sum(axis=0)
    return np.moveaxis(total, 0, m.axis).astype(value.dtype), outputs


def fold_bias(
    net: Analysed,
    graph: Graph,
    alive: np.ndarray,
    use: Use,
    inputs: int,
    outputs: np.ndarray,
    behind: Mapping[str, tuple[Use, int]],
) -> None:
    """Add what a layer's inputs contributed to its bias.

    Args:
        net: the network before the cut.
        graph: the cut network, which is edited.
        alive: (unit_count + 1,) bool, what was kept.
        use: of the layer's weight.
        inputs: the weight's axis that counts inputs.
        outputs: the weight's axes but `inputs`; all but its rows are summed over.
        behind: layer without a bias -> the constant that an Add right behind it adds, with its axis.
    """
    rest = [a for a in range(outputs.ndim + 1) if a != inputs]  # the weight's axes that `outputs` has
    key, node = use[0], net.graph.nodes[use[0]]
    rows = next(a for a in (0, 1) if a != inputs)
    delta = outputs.sum(axis=tuple(i for i, a in enumerate(rest) if a != rows))
    units = net.channels.params[use].get(rows)
    if units is not None:
        delta = delta.compress(alive[units])
    if key in behind:
        bias, axis = behind[key]
    elif has_bias(node):
        bias, axis = (key, 2), -1
    elif lacks_bias(node):
        raise PlanError(f"plan: the merge at {key!r} needs a constant added behind it - write a new plan")
    else:
        weight = graph.value(use)
        assert weight is not None
        add_bias(graph, key, delta.astype(weight.dtype))
        return
    value = graph.value(bias)
    if value is None:
        raise PlanError(f"plan: the merge at {key!r} needs a constant bias - write a new plan")
    if value.size == 1 != len(delta):
        value = np.repeat(value.reshape(-1), len(delta))
        axis = -1
    graph.set_constant(bias, shift_along(value, np.ones(len(delta)), delta, axis % value.ndim), exact=True)
