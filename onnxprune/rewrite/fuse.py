"""Put one layer in the place of a run of linear nodes, in exact arithmetic; and find where that pays.

The plan names where a run starts and ends, no number: the layer is worked out from the weights that the network at hand
has, cut as they are. It is a Conv, or, where the run was of matrices, a Gemm or a MatMul and its Add, under the name
that the run's output had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from onnxprune.errors import PlanError
from onnxprune.graph.linear_runs import EMPTY, Run, positions, runs_to
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.numerics.convolutions import regrouped
from onnxprune.plan import FuseLayers
from onnxprune.runtime.ports import Feeds


def find_fusions(
    graph: Graph, feeds: Feeds, allows: Callable[[set[str]], bool] = lambda names: True
) -> Iterator[tuple[FuseLayers, Run]]:
    """Runs that would be cheaper as one layer, no two with a node in common, those at the end first.

    A run that grows dearer by it stays, such as a bottleneck or a depthwise layer ahead of a wide one.

    Args:
        graph: the network, without edits.
        feeds: one run's inputs, for the sizes.
        allows: whether what goes by these names may be edited.
    """
    shapes, consumers = observe(graph, feeds).shapes, graph.consumers()
    order = {key: k for k, key in enumerate(graph.nodes)}
    taken: set[str] = set()
    for key in reversed(order):
        if key in taken or graph.nodes[key].op_type in EMPTY:
            continue
        best, most = None, (0.0, 0, 0)
        for run in runs_to(graph, key, shapes, order, consumers):
            names = {*run.nodes, *(name for k in run.nodes for name in graph.nodes[k].input[1:])}
            gain = _gain(graph, run, shapes[key])
            if taken.isdisjoint(run.nodes) and gain > most and allows(names):
                best, most = run, gain
        if best is not None:
            taken.update(best.nodes)
            yield FuseLayers(key, best.source), best


def fuse(graph: Graph, edits: Iterable[FuseLayers], feeds: Feeds) -> Graph:
    """The graph, edited: each of those runs is one layer. A run may start or end in what an earlier edit made.

    Raises:
        PlanError: there is no such run.
    """
    graph.settle()
    left = list(edits)
    while left:
        shapes, consumers = observe(graph, feeds).shapes, graph.consumers()
        order = {key: k for k, key in enumerate(graph.nodes)}
        now: list[Run] = []
        while left:
            edit, touched = left[0], {k for run in now for k in run.nodes}
            runs = runs_to(graph, edit.node, shapes, order, consumers) if edit.node in graph.nodes else ()
            run = next((r for r in runs if r.source == edit.source), None)
            if run is None or not touched.isdisjoint((*run.nodes, graph.producer.get(run.source, ""))):
                break
            now.append(run)
            left.pop(0)
        if not now:
            raise PlanError(f"the plan fuses what ends at {left[0].node!r}, which is no run of linear layers")
        for run in now:
            _put(graph, run)
        graph.settle()
    return graph


def _gain(graph: Graph, run: Run, shape: tuple[int, ...]) -> tuple[float, int, int]:
    """(multiply-accumulates, numbers in weights, nodes) that fewer are there; none where any of them are more."""
    macs = run.macs - run.map.size * positions(shape, run.end)
    gain = macs, run.weights - run.map.size, len(run.nodes) - len(_ops(graph, run))
    return gain if min(gain) >= 0 and any(gain) else (0.0, 0, 0)


def _ops(graph: Graph, run: Run) -> list[str]:
    """The operators that stand for a run."""
    ops = {graph.nodes[key].op_type for key in run.nodes}
    turned = ["Transpose"] if run.end != run.start else []
    if "Conv" not in ops and run.map.point and run.start.index(1) == len(run.start) - 1:
        own = ["Gemm"] if "Gemm" in ops else ["MatMul", *(["Add"] if run.map.bias.any() else [])]
        return [*own, *turned]
    plain = tuple(range(len(run.start)))
    return [*(["Transpose"] if run.start != plain else []), "Conv", *(["Transpose"] if run.end != plain else [])]


def _put(graph: Graph, run: Run) -> None:
    """Write the layer where the run ended."""
    end, m, now = run.nodes[-1], run.map, run.source
    name, nodes, axes = graph.nodes[end].output[0], [], run.start

    def constant(stem: str, value: np.ndarray) -> str:
        return graph.add_constant(f"{end}_{stem}", np.ascontiguousarray(value, run.dtype))

    ops = _ops(graph, run)
    for k, op in enumerate(ops):
        made = name if k == len(ops) - 1 else graph.fresh(f"{end}_fused")
        if op == "Transpose":
            goal = run.end if k else tuple(range(len(axes)))
            nodes.append(helper.make_node(op, [now], [made], perm=[axes.index(a) for a in goal]))
            axes = goal
        elif op == "Conv":
            own = [constant("weight", m.weight), *([constant("bias", m.bias)] if m.bias.any() else [])]
            sizes: dict[str, Any] = {
                "kernel_shape": m.taps,
                "strides": m.strides,
                "dilations": m.steps,
                "group": m.groups,
            }
            nodes.append(helper.make_node(op, [now, *own], [made], **sizes, pads=[*m.before, *m.behind]))
        elif op == "Add":
            nodes.append(helper.make_node(op, [now, constant("bias", m.bias)], [made]))
        else:
            W = regrouped(m, 1).reshape(m.outputs, m.inputs)
            turned: dict[str, Any] = {"transB": 1} if op == "Gemm" else {}
            own = [constant("weight", W), constant("bias", m.bias)] if op == "Gemm" else [constant("weight", W.T)]
            nodes.append(helper.make_node(op, [now, *own], [made], **turned))
        now = made
    _replace(graph, run, nodes)


def _replace(graph: Graph, run: Run, nodes: list[NodeProto]) -> None:
    """Put nodes where the run's last was, and take the others out."""
    title = graph.nodes[run.nodes[-1]].name
    for node in nodes[-1:]:
        node.name = title
    graph.own(run.nodes[-1]).CopyFrom(nodes[0])
    for node in nodes[1:]:
        graph.insert_after(run.nodes[-1], node)
    for key in run.nodes[:-1]:
        graph.drop(key)
