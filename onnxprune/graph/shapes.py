"""Sizes of every tensor, from one real run, and the shape arithmetic that depends on them.

Static shape inference guesses at data-dependent operators and dynamic axes; one run does not. The run taps
only shapes (a `Shape` node per tensor), so no activation outlives its consumers. Values that the graph computes
from shapes (Shape-Gather-Concat-Reshape) are then evaluated here, in numpy: `follow` gives the same values for
any other sizes, which is how a cut is checked against shapes computed at run time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx
from onnx import helper

from onnxprune.errors import ModelError, one_line
from onnxprune.graph import evaluate, operators
from onnxprune.graph.bodies import SelfCounting, counted_inside, summed
from onnxprune.graph.model import Graph
from onnxprune.graph.sizes_only import sizes_only
from onnxprune.graph.work import NOTHING, Ran
from onnxprune.protobuf.nodes import DEFAULT_DOMAINS, captured, inferred, node_key
from onnxprune.runtime import sessions
from onnxprune.runtime.ports import MAX_RANK, Feeds
from onnxprune.runtime.weights import ModelAndWeights, add_external_weights

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Observed:
    """What one run showed: the size of every tensor, and the values computed from sizes.

    Attributes:
        shapes: tensor name -> size per axis, constants included.
        derived: tensor name -> value, for tensors that depend on nothing but sizes and constants.
        ran: what else only a run tells of the work that was done.
    """

    shapes: Mapping[str, Shape]
    derived: Mapping[str, np.ndarray]
    ran: Ran = NOTHING


def follow(graph: Graph, shapes: Mapping[str, Shape], known: Observed | None = None) -> dict[str, np.ndarray]:
    """Evaluate everything that depends only on the sizes in `shapes` and on constants.

    Args:
        graph: the graph, unedited.
        shapes: tensor name -> size per axis.
        known: what was seen at other sizes. A node whose operands are as they were there is not evaluated
            again: its value is the very same array.
    """
    derived: dict[str, np.ndarray] = {}
    room = evaluate.ROOM
    for node, inputs, outputs in graph.once("followed", graph, lambda: _followed(graph)):
        if operators.of(node).measures:
            shape = shapes.get(inputs[0])
            if shape is None:
                shape = np.shape(derived[inputs[0]]) if inputs[0] in derived else None
            if shape is None or graph.constant(outputs[0]) is not None:
                continue
            same = known is not None and known.shapes.get(inputs[0]) == shape
            # a view with zero strides: only its shape is looked at
            operands: list[np.ndarray | None] = [np.broadcast_to(np.zeros((), np.int8), shape)]
        else:
            if not any(i in derived for i in inputs):
                continue
            operands = [derived.get(i, graph.constant(i)) if i else None for i in inputs]
            if any(v is None for v, i in zip(operands, inputs, strict=True) if i):
                continue
            same = known is not None and all(i not in derived or derived[i] is known.derived.get(i) for i in inputs)
        if same and known is not None and all(o in known.derived for o in outputs if o):
            derived.update((o, known.derived[o]) for o in outputs if o)
            continue
        results = evaluate.evaluate(node, operands, graph.opset, room)
        if results is not None:
            room -= evaluate.held(results)
            derived.update(zip([o for o in outputs if o], results, strict=False))
    return derived


def _followed(graph: Graph) -> list[tuple[onnx.NodeProto, tuple[str, ...], tuple[str, ...]]]:
    """The nodes that may depend on nothing but sizes and constants, in order, with their operands and outputs."""
    made: set[str] = set()
    found = []
    for node in graph.nodes.values():
        if node.op_type == "Constant" or not evaluate.foldable(node):
            continue
        inputs = tuple(node.input)
        if operators.of(node).measures or any(i in made for i in inputs):
            found.append((node, inputs, tuple(node.output)))
            made.update(node.output)
    return found


def depends_on_sizes(graph: Graph) -> set[str]:
    """Tensors that depend on nothing but sizes and constants (no sizes known yet)."""
    found: set[str] = set()
    for node in graph.nodes.values():
        if operators.of(node).measures and evaluate.foldable(node):
            found.update(node.output)
        elif evaluate.foldable(node) and any(i in found for i in node.input):
            if all(i in found or graph.constant(i) is not None for i in node.input if i):
                found.update(node.output)
    return found


def observe(graph: Graph, feeds: Feeds, *, name: str = "model") -> Observed:
    """Run the model once on `feeds` and note the size of every tensor.

    Where all sizes follow from sizes, the run goes without the arithmetic of convolutions and products.

    Args:
        graph: the model.
        feeds: what it is fed.
        name: what messages call it.

    Raises:
        ModelError: the model does not run on these inputs.
    """
    nodes = [n for n in graph.nodes.values() if any(o and graph.constant(o) is None for o in n.output)]
    observed = _sizes(graph, feeds, nodes, name)
    keys, tensors = counted_inside(graph), summed(graph)
    return replace(observed, ran=_ran(graph, feeds, nodes, keys, tensors)) if keys or tensors else observed


def _sizes(graph: Graph, feeds: Feeds, nodes: Sequence[onnx.NodeProto], name: str) -> Observed:
    computed = depends_on_sizes(graph)
    empty = sizes_only(graph, nodes, computed)
    if empty is not None:
        with contextlib.suppress(ModelError):  # the model itself says best what does not fit
            net = _folded(graph, empty.nodes, set(feeds), empty.constants)
            observed = _observed(graph, feeds, computed, net, name)
            if empty.fits(observed.shapes):
                return observed
    return _observed(graph, feeds, computed, _folded(graph, nodes, set(feeds)), name)


def _observed(graph: Graph, feeds: Feeds, computed: set[str], net: ModelAndWeights, name: str) -> Observed:
    shapes: dict[str, Shape] = {k: tuple(v.shape) for k, v in feeds.items()}
    shapes |= {t.values.name: tuple(t.dims) for t in graph.model.graph.sparse_initializer}
    for node in graph.nodes.values():
        for tensor in (*node.input, *node.output):
            if tensor and tensor not in shapes and (value := graph.constant(tensor)) is not None:
                shapes[tensor] = value.shape
    unseen = [o for n in graph.nodes.values() for o in n.output if o and o not in shapes]
    like = {
        n.output[0]: n.input[0]
        for n in graph.nodes.values()
        if operators.of(n).keeps_size and n.output[0] not in graph.outputs
    }
    run = partial(_tap, net, _tensors_only(graph, net.model, unseen), feeds, name)
    shapes |= run([o for o in unseen if o not in computed and o not in like])
    for tensor in unseen:  # in execution order
        if tensor in like and tensor not in computed and like[tensor] in shapes:
            shapes[tensor] = shapes[like[tensor]]
    shapes |= run([o for o in unseen if o not in computed and o not in shapes])
    derived = follow(graph, shapes)
    # What looked like shape arithmetic but is beyond the table still has a size: a second run tells.
    beyond = [o for o in unseen if o in computed and o not in derived]
    if beyond:
        shapes |= run(beyond)
        derived = follow(graph, shapes)
    shapes |= {k: np.shape(v) for k, v in derived.items()}
    return Observed(shapes, derived)


def _ran(
    graph: Graph, feeds: Feeds, nodes: Sequence[onnx.NodeProto], keys: Collection[str], tensors: Collection[str]
) -> Ran:
    """What the model, counting itself, tells in one run; nothing where it cannot.

    Args:
        graph, feeds, nodes: as for `_sizes`.
        keys: nodes whose bodies count.
        tensors: those that add themselves up.
    """
    counting, made, totals = SelfCounting(graph.opset), list[onnx.NodeProto](), dict[str, str]()
    for node in nodes:
        instead, total = counting.instead(node) if node_key(node) in keys else ([node], None)
        made += instead
        totals |= {} if total is None else {node_key(node): total}
    sums = {tensor: counting.sum_of(tensor) for tensor in tensors}
    net = _folded(graph, [*made, *(n for added in sums.values() for n in added)], set(feeds))
    wanted = [*totals.values(), *(added[-1].output[0] for added in sums.values())]
    del net.model.graph.output[:]
    for name in wanted:
        net.model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, []))
    try:
        session = sessions.open_session(net.model, optimise=False, weights=net.weights, feed=True)
        values = [float(v) for v in session.run(feeds, wanted)]
    except ModelError:
        return Ran()
    return Ran(dict(zip(totals, values, strict=False)), dict(zip(sums, values[len(totals) :], strict=True)))


def only_tensors(graph: Graph) -> bool:
    """Whether every value surely is a tensor: no sequence, no map, and no operator that nobody knows."""
    return all(not operators.of(n).sequences and n.domain in DEFAULT_DOMAINS for n in graph.nodes.values())


def _tensors_only(graph: Graph, model: onnx.ModelProto, names: Sequence[str]) -> set[str]:
    """Without the names whose type is a sequence, an optional or a map. Only models that could have some are
    inferred; a name whose type nobody knows is taken for a tensor."""
    if only_tensors(graph):
        return set(names)
    found = inferred(model).graph
    kinds = {v.name: v.type.WhichOneof("value") for v in (*found.value_info, *found.output)}
    return {name for name in names if kinds.get(name) in (None, "tensor_type")}


def _folded(
    graph: Graph,
    nodes: Sequence[onnx.NodeProto],
    fed: Collection[str],
    further: Mapping[str, np.ndarray] | None = None,
) -> ModelAndWeights:
    """A model of these nodes, with all that is constant as weights; `further` are constants that the graph has not."""
    source = graph.model
    model = onnx.ModelProto(ir_version=source.ir_version)
    model.opset_import.extend(source.opset_import)
    model.functions.extend(source.functions)
    out = model.graph
    out.name = source.graph.name or "model"
    out.node.extend(nodes)
    out.input.extend(source.graph.input)
    out.output.extend(source.graph.output)
    out.sparse_initializer.extend(source.graph.sparse_initializer)
    present = {i.name for i in out.input}
    made = {o for n in nodes for o in n.output}
    read = dict.fromkeys(i for n in nodes for i in (*n.input, *sorted(captured(n))) if i)
    values: dict[str, np.ndarray] = {}
    for name in dict.fromkeys((*read, *graph.outputs, *sorted(present & graph.initializers.keys()))):
        value = None if name in made or name in fed else (further or {}).get(name, graph.constant(name))
        if value is None:
            continue
        values[name] = value
        if source.ir_version < 4 and name not in present:
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            out.input.append(helper.make_tensor_value_info(name, kind, value.shape))
    return ModelAndWeights(model, add_external_weights(model, values))


def _tap(
    net: ModelAndWeights, tensors: Collection[str], feeds: Feeds, title: str, wanted: Sequence[str]
) -> dict[str, Shape]:
    """The sizes of what is wanted and a tensor, in one run."""
    names = [name for name in wanted if name in tensors]
    if not names:
        return {}
    model = onnx.ModelProto()
    model.CopyFrom(net.model)
    del model.graph.output[:]
    taps = [f"__shape_{k}" for k in range(len(names))]
    # ORT starts with the last leaf: in this order every tap runs as soon as its tensor is there, and no
    # activation waits for it (10x in time and memory on a deep net).
    for name, tap in zip(reversed(names), reversed(taps), strict=True):
        model.graph.node.append(helper.make_node("Shape", [name], [tap]))
        model.graph.output.append(helper.make_tensor_value_info(tap, onnx.TensorProto.INT64, [None]))
    session = sessions.open_session(model, optimise=False, weights=net.weights, feed=True, name=title)
    values = session.run(feeds, taps)
    deep = next((name for name, value in zip(names, values, strict=True) if len(value) > MAX_RANK), None)
    if deep is not None:
        raise ModelError(one_line(f"{title}: tensor {deep!r} has more than {MAX_RANK} axes; export the model again"))
    return {name: tuple(int(d) for d in value) for name, value in zip(names, values, strict=True)}
