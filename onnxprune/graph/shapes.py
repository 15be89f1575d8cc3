"""Sizes of every tensor, from one real run, and the shape arithmetic that depends on them.

Static shape inference guesses at data-dependent operators and dynamic axes; one run does not. The run taps
only shapes (a `Shape` node per tensor), so no activation outlives its consumers. Values that the graph computes
from shapes (Shape-Gather-Concat-Reshape) are then evaluated here, in numpy: `follow` gives the same values for
any other sizes, which is how a cut is checked against shapes computed at run time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune.errors import ModelError, PruneError
from onnxprune.graph import evaluate, runtime
from onnxprune.graph.model import Graph

Shape = tuple[int, ...]

NOT_TENSORS = frozenset(
    "SequenceConstruct SequenceEmpty SequenceInsert SequenceErase SplitToSequence SequenceMap Optional "
    "OptionalGetElement ConcatFromSequence_ ReverseSequence_ Constant".split()
)
BODIES = frozenset(("If", "Loop", "Scan"))


@dataclass(frozen=True)
class Observed:
    """What one run showed: the size of every tensor, and the values computed from sizes.

    Attributes:
        shapes: tensor name -> size per axis, constants included.
        derived: tensor name -> value, for tensors that depend on nothing but sizes and constants.
    """

    shapes: Mapping[str, Shape]
    derived: Mapping[str, np.ndarray]


def follow(graph: Graph, shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
    """Evaluate everything that depends only on the sizes in `shapes` and on constants."""
    derived: dict[str, np.ndarray] = {}
    for node in graph.nodes.values():
        if not evaluate.foldable(node) or node.op_type == "Constant":
            continue
        if node.op_type in ("Shape", "Size"):
            shape = shapes.get(node.input[0])
            if shape is None:
                shape = np.shape(derived[node.input[0]]) if node.input[0] in derived else None
            if shape is None or graph.constant(node.output[0]) is not None:
                continue
            # a view with zero strides: only its shape is looked at
            operands: list[np.ndarray | None] = [np.broadcast_to(np.zeros((), np.int8), shape)]
        else:
            if not any(i in derived for i in node.input):
                continue
            operands = [derived.get(i, graph.constant(i)) if i else None for i in node.input]
            if any(v is None for v, i in zip(operands, node.input, strict=True) if i):
                continue
        results = evaluate.evaluate(node, operands, graph.opset)
        if results is not None:
            derived.update(zip([o for o in node.output if o], results, strict=False))
    return derived


def depends_on_sizes(graph: Graph) -> set[str]:
    """Tensors that depend on nothing but sizes and constants (no sizes known yet)."""
    found: set[str] = set()
    for node in graph.nodes.values():
        if node.op_type in ("Shape", "Size") and evaluate.foldable(node):
            found.update(node.output)
        elif evaluate.foldable(node) and any(i in found for i in node.input):
            if all(i in found or graph.constant(i) is not None for i in node.input if i):
                found.update(node.output)
    return found


def observe(graph: Graph, feeds: Mapping[str, np.ndarray]) -> Observed:
    """Run the model once on `feeds` and note the size of every tensor.

    Raises:
        ModelError: the model does not run on these inputs.
    """
    skip = depends_on_sizes(graph)
    names: list[str] = []
    bodies: list[str] = []
    for node in graph.nodes.values():
        if node.op_type in NOT_TENSORS:
            continue
        for o in node.output:
            if o and o not in skip and graph.constant(o) is None:
                (bodies if node.op_type in BODIES or node.domain not in ("", "ai.onnx") else names).append(o)
    shapes: dict[str, Shape] = {k: tuple(v.shape) for k, v in feeds.items()}
    try:
        shapes.update(_run(graph.model, [*names, *bodies], feeds))
    except PruneError:
        # a body may yield a sequence, which has no shape: leave those out
        if not bodies:
            raise
        shapes.update(_run(graph.model, names, feeds))
    for node in graph.nodes.values():
        for name in (*node.input, *node.output):
            if name and name not in shapes and (value := graph.constant(name)) is not None:
                shapes[name] = value.shape
    derived = follow(graph, shapes)
    shapes.update({k: np.shape(v) for k, v in derived.items()})
    return Observed(shapes, derived)


def _run(model: onnx.ModelProto, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> dict[str, Shape]:
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    del tapped.graph.output[:]
    taps = [f"__shape_{k}" for k in range(len(names))]
    for name, tap in zip(names, taps, strict=True):
        tapped.graph.node.append(onnx.helper.make_node("Shape", [name], [tap]))
        tapped.graph.output.append(onnx.helper.make_tensor_value_info(tap, onnx.TensorProto.INT64, [None]))
    if not names:
        return {}
    session = runtime.open_session(tapped, optimise=False, name="model")
    try:
        values = session.run(dict(feeds), taps)
    except PruneError:
        raise
    except Exception as error:
        sizes = ", ".join(f"{k}{list(v.shape)}" for k, v in feeds.items())
        line = str(error).strip().splitlines()[0][:300]
        raise ModelError(
            f"the model does not run on {sizes}: {line} - give sizes that it takes with --input-shape NAME=1,3,H,W"
        ) from error
    return {name: tuple(int(d) for d in value) for name, value in zip(names, values, strict=True)}
