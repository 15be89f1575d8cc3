"""Writing: the edits of a `Graph`, put into a clone of its model.

What no edit touches is copied byte for byte: metadata, doc strings, IR and opset, names, dynamic axes, value infos,
quantization annotations, control-flow bodies, the order of nodes. Knows protobuf; reads a graph and changes none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.graph.narrow import narrower, stored_type
from onnxprune.protobuf.nodes import captured, node_key, subgraphs
from onnxprune.protobuf.serialize import copied, copy_all_but, put

if TYPE_CHECKING:
    from onnxprune.graph.model import Edits, Graph, Use


def exported(graph: Graph, edits: Edits) -> onnx.ModelProto:
    """The edited model: a clone of the original with the edits in it, dead constants removed."""
    model = onnx.ModelProto()
    if edits.none():
        model.CopyFrom(graph.model)
        return model
    nodes = _edited_nodes(graph, edits)
    constants = _Constants(graph, nodes, Counter(i for n in nodes.values() for i in n.input), graph.captured())
    for name, new in edits.added.items():
        constants.add(name, new, edits.like[name])
    for name, group in _by_source(edits, nodes).items():
        exact = any(use in edits.exact for use in group)
        values = [edits.values.get(use) for use in group]
        first = next(v for v in values if v is not None)
        if constants.own(name) and all(v is not None and _identical(v, first) for v in values):
            constants.replace(name, first, exact)
            continue
        twins: list[tuple[np.ndarray, str]] = []
        for (key, i), value in zip(group, values, strict=True):
            if value is None:
                continue
            twin = next((n for v, n in twins if _identical(v, value)), None)
            if twin is None:
                twin = graph.fresh(name)
                twins.append((value, twin))
                constants.add(twin, value, name, exact)
            nodes[key] = copied(nodes[key])
            nodes[key].input[i] = twin
    _write(graph, model, {**constants.casts, **nodes}, constants)
    return model


@dataclass
class _Constants:
    """The constants of the edited model.

    Attributes:
        graph: the original.
        nodes: those that are to be written, by key; a Cast may take the place of one.
        readers: how often each tensor is read by them.
        inner: what bodies read.
        replaced: constants that keep their name -> their new values.
        resized: constants that nodes make of these -> their new sizes.
        added: new constants.
        casts: nodes that make others of these, by key.
    """

    graph: Graph
    nodes: dict[str, onnx.NodeProto]
    readers: Mapping[str, int]
    inner: Collection[str]
    replaced: dict[str, np.ndarray] = field(default_factory=dict)
    resized: dict[str, tuple[int, ...]] = field(default_factory=dict)
    added: dict[str, np.ndarray] = field(default_factory=dict)
    casts: dict[str, onnx.NodeProto] = field(default_factory=dict)

    def own(self, name: str) -> bool:
        """Whether the tensor may become another constant under its own name: nothing else is made with it."""
        if name in self.graph.inputs or name in self.graph.outputs or name in self.inner:
            return False
        node = self.nodes.get(self.graph.producer.get(name, ""))
        return node is None or [o for o in node.output if o] == [name]

    def replace(self, name: str, value: np.ndarray, exact: bool) -> None:
        """Note the new value of a constant, or of one that it is made from."""
        graph, key = self.graph, self.graph.producer.get(name)
        if key is None and name not in graph.initializers:
            self.added[name] = value
            return
        *between, (source, stored) = narrower(
            graph, name, value, lambda n: self.readers.get(n) == 1 and self.own(n), exact=exact
        ).items()
        narrow = None if key is None or between else stored_type(graph, name, value, exact=exact)
        if narrow is None:
            self.replaced[source] = stored
            self.resized.update((n, v.shape) for n, v in between)
        else:
            assert key is not None
            self.nodes[key] = self._cast(name, value, narrow)

    def add(self, name: str, value: np.ndarray, like: str, exact: bool = False) -> None:
        """Note a new constant, to be stored in the type of one that there is."""
        narrow = stored_type(self.graph, like, value, exact=exact)
        if narrow is None:
            self.added[name] = value
        else:
            self.casts[name] = self._cast(name, value, narrow)

    def _cast(self, name: str, value: np.ndarray, narrow: np.ndarray) -> onnx.NodeProto:
        """What makes a constant of a new one, stored in a narrower type."""
        stored = self.graph.fresh(name)
        self.added[stored], self.resized[name] = narrow, value.shape
        return onnx.helper.make_node("Cast", [stored], [name], to=onnx.helper.np_dtype_to_tensor_dtype(value.dtype))


def _edited_nodes(graph: Graph, edits: Edits) -> dict[str, onnx.NodeProto]:
    """The nodes that stay and those inserted, in order."""
    found: dict[str, onnx.NodeProto] = {}
    for key, node in graph.nodes.items():
        if key not in edits.dropped:
            found[key] = node
        # An inserted node may take over the output, and so the key, of the node before it.
        found.update((f"{key}\0{i}", n) for i, n in enumerate(edits.after.get(key, ())))
    return found


def _identical(a: np.ndarray, b: np.ndarray) -> bool:
    return a is b or (a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


def _by_source(edits: Edits, nodes: Mapping[str, onnx.NodeProto]) -> dict[str, list[Use]]:
    """Constant name -> all its uses, in order, for the constants that have an edited use."""
    sources = {nodes[key].input[i] for key, i in edits.values if key in nodes}
    found: dict[str, list[Use]] = {}
    for key, node in nodes.items():
        for i, name in enumerate(node.input):
            if name in sources:
                found.setdefault(name, []).append((key, i))
    return found


def tensor_of(value: np.ndarray, name: str, like: onnx.TensorProto | None = None) -> onnx.TensorProto:
    """A tensor of the file format; `like` lends its doc string and metadata."""
    tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
    if like is not None:
        if like.HasField("doc_string"):  # an empty one is not the same as none
            put(tensor, "doc_string", like.doc_string)
        tensor.metadata_props.extend(like.metadata_props)
    return tensor


def _constant_node(value: np.ndarray, name: str) -> onnx.NodeProto:
    return onnx.helper.make_node("Constant", [], [name], value=tensor_of(value, name))


def _refilled(node: onnx.NodeProto, value: np.ndarray) -> onnx.NodeProto:
    """A Constant node with another value."""
    copy = copied(node)
    like = next((a.t for a in node.attribute if a.name == "value"), None)
    del copy.attribute[:]
    tensor = tensor_of(value, node.output[0] if like is None else like.name, like)
    copy.attribute.append(onnx.helper.make_attribute("value", tensor))
    return copy


def _write(
    graph: Graph,
    model: onnx.ModelProto,
    nodes: Mapping[str, onnx.NodeProto],
    constants: _Constants,
) -> None:
    """Write the nodes and constants into an empty model, and all else as it was.

    Args:
        graph: the original.
        model: receives it all.
        nodes: those that are to be written, in order.
        constants: those that are to be others.
    """
    replaced, added = constants.replaced, constants.added
    source = graph.model
    copy_all_but(source, model, "graph")
    out, old = model.graph, source.graph
    # Before IR 4 an initializer had to be a graph input too: new constants become Constant nodes there.
    as_nodes = source.ir_version < 4
    body, folded = _with_constants(nodes, replaced, as_nodes)
    if as_nodes:
        body = [*(_constant_node(v, n) for n, v in added.items()), *body]
    body = _alive(body, set(graph.outputs), _originally_dead(graph))
    out.node.extend(body)
    used, was_used = _read(body) | set(graph.outputs), _read(old.node) | set(graph.outputs)
    for tensor in old.initializer:
        if tensor.name in replaced:
            out.initializer.append(tensor_of(replaced[tensor.name], tensor.name, tensor))
        elif tensor.name in used or tensor.name not in was_used:
            out.initializer.append(tensor)
    new = {name: replaced[name] for name in folded} | ({} if as_nodes else added)
    out.initializer.extend(tensor_of(v, n) for n, v in new.items())
    kept = {t.name for t in out.initializer}
    out.input.extend(v for v in old.input if v.name not in graph.initializers or v.name in kept)
    copy_all_but(old, out, "node", "initializer", "input", "value_info")
    # Sizes of activations that the edits changed are for `write_sizes`: the caller knows them.
    gone = _made(old) - _made(out)
    out.value_info.extend(v for v in old.value_info if v.name not in gone)
    sizes = {**constants.resized, **{name: value.shape for name, value in replaced.items()}}
    for info in (*out.input, *out.value_info):
        if info.name in sizes and info.type.tensor_type.HasField("shape"):
            _resize(info.type.tensor_type.shape, sizes[info.name])


def _with_constants(
    nodes: Mapping[str, onnx.NodeProto], replaced: Mapping[str, np.ndarray], as_nodes: bool
) -> tuple[list[onnx.NodeProto], list[str]]:
    """The nodes with new constants in the place of those that made the old ones; and the names of the constants that
    have become initializers: each the end of a folded path whose every use got one new value."""
    body: list[onnx.NodeProto] = []
    folded: list[str] = []
    for node in nodes.values():
        name = next((o for o in node.output if o in replaced), None)
        if name is None:
            body.append(node)
        elif node.op_type == "Constant":
            body.append(_refilled(node, replaced[name]))
        elif as_nodes:
            body.append(_constant_node(replaced[name], name))
        else:
            folded.append(name)
    return body, folded


def _read(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """What nodes and their bodies read."""
    nodes = list(nodes)
    return {i for n in nodes for i in n.input} | {name for n in nodes for name in captured(n)}


def _resize(declared: onnx.TensorShapeProto, shape: tuple[int, ...]) -> None:
    """Write the sizes that differ."""
    if len(declared.dim) != len(shape):
        del declared.dim[:]
        declared.dim.extend(onnx.TensorShapeProto.Dimension() for _ in shape)
    for dim, size in zip(declared.dim, shape, strict=True):
        if dim.dim_value != size:
            dim.dim_value = size


def _made(graph: onnx.GraphProto) -> set[str]:
    return {o for n in graph.node for o in n.output} | {t.name for t in graph.initializer}


def write_sizes(model: onnx.ModelProto, sizes: Mapping[str, Mapping[int, int]]) -> None:
    """Write the new sizes of cut axes into the value infos, in place: {tensor: {axis: new size}}."""
    for info in (*model.graph.value_info, *model.graph.output):
        axes = sizes.get(info.name)
        if axes and info.type.HasField("tensor_type") and info.type.tensor_type.HasField("shape"):
            dims = info.type.tensor_type.shape.dim
            for axis, size in axes.items():
                if axis < len(dims) and dims[axis].HasField("dim_value"):
                    dims[axis].dim_value = size


def any_sizes(node: onnx.NodeProto) -> None:
    """Leave open, in place, which sizes the tensors of a node's bodies have."""
    stack = list(subgraphs(node))
    while stack:
        body = stack.pop()
        stack += [inner for n in body.node for inner in subgraphs(n)]
        for info in (*body.input, *body.output, *body.value_info):
            for dim in info.type.tensor_type.shape.dim if info.type.HasField("tensor_type") else ():
                dim.Clear()


def _originally_dead(graph: Graph) -> set[str]:
    """Keys of nodes that were dead before any edit: they stay, as everything we did not touch."""
    nodes = list(graph.model.graph.node)
    alive = {node_key(n) for n in _alive(nodes, set(graph.outputs), set())}
    return {node_key(n) for n in nodes} - alive


def _alive(nodes: list[onnx.NodeProto], outputs: set[str], keep: set[str]) -> list[onnx.NodeProto]:
    """Nodes that an output depends on (one backward sweep over a sorted list)."""
    needed, alive = set(outputs), []
    for node in reversed(nodes):
        if node_key(node) in keep or any(o in needed for o in node.output if o):
            alive.append(node)
            needed.update(i for i in node.input if i)
            needed.update(captured(node))
    return alive[::-1]
