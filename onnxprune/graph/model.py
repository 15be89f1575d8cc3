"""The editable view of an ONNX model: nodes, constants and who reads what.

A `Graph` never changes the model it was made from. Edits are collected (a new value for one use of a
constant, a changed node, an inserted or dropped node) and `export` writes them into a clone of the original
protobuf. What no edit touches is copied byte for byte: metadata, doc strings, IR and opset, names, dynamic
axes, value infos, quantization annotations, control-flow bodies, the order of nodes. So a round trip with no
edit is lossless by construction, and there is no importer whose losses would have to be given back.

Constants are one thing here, wherever the exporter put them: initializers, `Constant` nodes, and both behind
Identity, Transpose, Reshape, Cast and the like (folded lazily, as numpy values). A constant is edited per
*use* (node, input position), so initializers shared by several nodes need no special care.

This module knows protobuf. It knows nothing of channels.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune import files
from onnxprune.errors import ModelError
from onnxprune.graph import evaluate, fold

Use = tuple[str, int]
"""One use of a tensor: (first output name of the reading node, input position)."""

DEFAULT_DOMAINS = ("", "ai.onnx")
WITH_BODIES = frozenset(("If", "Loop", "Scan", "SequenceMap"))
"""The operators of the default domain that carry bodies."""
T = TypeVar("T")


def node_key(node: onnx.NodeProto) -> str:
    """The name a node goes by: its first non-empty output (node names may be missing or repeat)."""
    return next((o for o in node.output if o), "")


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """All attributes of a node as Python values (tensors and graphs stay protobuf)."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def attr(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """One attribute of a node, or `default`."""
    for a in node.attribute:
        if a.name == name:
            value = onnx.helper.get_attribute_value(a)
            return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return default


def set_attr(node: onnx.NodeProto, name: str, value: Any) -> None:
    """Replace one attribute, in place and at its place; add it when missing."""
    for a in node.attribute:
        if a.name == name:
            a.CopyFrom(onnx.helper.make_attribute(name, value))
            return
    node.attribute.append(onnx.helper.make_attribute(name, value))


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies a control-flow node carries."""
    for a in node.attribute:
        if a.type == onnx.AttributeProto.GRAPH:
            yield a.g
        elif a.type == onnx.AttributeProto.GRAPHS:
            yield from a.graphs


def captured(node: onnx.NodeProto) -> set[str]:
    """Names that the bodies of a control-flow node read from outside."""
    if node.op_type not in WITH_BODIES and node.domain in DEFAULT_DOMAINS:
        return set()  # without a look at its attributes, which is slow
    names: set[str] = set()
    stack = list(subgraphs(node))
    while stack:
        body = stack.pop()
        inside = {i.name for i in body.input} | {t.name for t in body.initializer}
        for n in body.node:
            inside.update(n.output)
        for n in body.node:
            names.update(i for i in n.input if i and i not in inside)
            stack.extend(subgraphs(n))
        names.update(o.name for o in body.output if o.name not in inside)
    return names


FLOATS = frozenset(getattr(onnx.TensorProto, kind) for kind in ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16"))


def body_weights(graph: Graph, node: onnx.NodeProto) -> dict[str, tuple[int, ...]]:
    """Name -> sizes of the float constants of two axes or more that the bodies of a control-flow node hold or
    read from outside."""
    found: dict[str, tuple[int, ...]] = {}
    stack = list(subgraphs(node))
    if stack:
        values = {name: graph.constant(name) for name in sorted(captured(node))}
        found = {k: v.shape for k, v in values.items() if v is not None and v.dtype.kind == "f" and v.ndim > 1}
    while stack:
        body = stack.pop()
        held = [(t.name, t) for t in body.initializer]
        for n in body.node:
            held += [(n.output[0], a.t) for a in n.attribute if n.op_type == "Constant" and a.name == "value"]
            stack.extend(subgraphs(n))
        found.update({k: tuple(t.dims) for k, t in held if t.data_type in FLOATS and len(t.dims) > 1})
    return found


def opset(model: onnx.ModelProto) -> int:
    """The opset of the default domain."""
    return next((o.version for o in model.opset_import if o.domain in DEFAULT_DOMAINS), 0)


def digest(model: onnx.ModelProto) -> str:
    """SHA-256 over the model's bytes: what a plan was made for."""
    told = hashlib.sha256()
    for part in files.serialized(model):
        told.update(part)
    return told.hexdigest()


RANDOM = frozenset("RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli".split())
NEVER_CONSTANT = RANDOM | set("DequantizeLinear QuantizeLinear If Loop Scan".split())


def _computable(node: onnx.NodeProto) -> bool:
    """Whether the node is a constant once its operands are. Quantized constants stay quantized."""
    return node.domain in DEFAULT_DOMAINS and node.op_type not in NEVER_CONSTANT


class Graph:
    """A model with its constants and consumers at hand, and the edits made so far.

    Attributes:
        model: the original, never edited.
        nodes: node key -> node, in execution order. Nodes edited or inserted here are copies.
    """

    def __init__(self, model: onnx.ModelProto, weights: Mapping[str, np.ndarray] | None = None):
        """`weights`: values of initializers that lie beside the model."""
        self.model = model
        self.opset = opset(model)
        self.nodes: dict[str, onnx.NodeProto] = {}
        for node in model.graph.node:
            key = node_key(node)
            if not key:
                raise ModelError(f"node {node.name!r} ({node.op_type}) has no output - remove it")
            self.nodes[key] = node
        self.producer = {o: k for k, n in self.nodes.items() for o in n.output if o}
        self.initializers = {t.name: t for t in model.graph.initializer}
        sparse = {t.values.name for t in model.graph.sparse_initializer}
        self.inputs = tuple(i.name for i in model.graph.input if i.name not in self.initializers)
        self.outputs = tuple(o.name for o in model.graph.output)
        self.opaque = sparse
        self._values: dict[str, np.ndarray | None] = dict(weights or {})
        self._forget()

    def _float_of(self, name: str) -> np.dtype | None:
        """The element type of a tensor where it is surely a plain float."""
        value = self._values.get(name)
        types = self.once("types", self, lambda: inferred_types(self.model)) if value is None else {}
        dtype = types.get(name) if value is None else value.dtype
        return dtype if dtype is not None and dtype.kind == "f" else None

    def fork(self) -> Graph:
        """The same network to edit, with every constant that is worked out already; this one must have no edits."""
        assert not self._pending()
        graph = copy(self)
        graph.nodes, graph.producer, graph._values = dict(self.nodes), dict(self.producer), dict(self._values)
        graph._forget()
        return graph

    def _forget(self) -> None:
        """No edits."""
        self._edits: dict[Use, np.ndarray] = {}
        self._owned: set[str] = set()
        self._after: dict[str, list[onnx.NodeProto]] = {}
        self._dropped: set[str] = set()
        self._added: dict[str, np.ndarray] = {}
        self._reserved: set[str] | None = None
        self._memo: dict[str, tuple[Any, Any]] = {}

    def _pending(self) -> bool:
        """Whether there are edits."""
        return bool(self._edits or self._owned or self._after or self._dropped)

    def settle(self) -> Graph:
        """Carry the edits out, in place: nodes, producers and constants are then those of the edited network. Returns
        the graph."""
        if self._pending():
            Graph.__init__(self, self.export())
        return self

    # -- reading ------------------------------------------------------------------------------------------

    def constant(self, name: str) -> np.ndarray | None:
        """The value of `name` when it does not depend on the model's inputs, else None."""
        if name in self._values:
            return self._values[name]
        # Depth first without recursion: chains of folded nodes may be long.
        stack = [name]
        while stack:
            top = stack[-1]
            if top in self._values:
                stack.pop()
            elif top in self.initializers:
                self._values[top] = numpy_helper.to_array(self.initializers[top])
            elif top not in self.producer or not _computable(node := self.nodes[self.producer[top]]):
                self._values[top] = None
            elif waiting := [i for i in node.input if i and i not in self._values]:
                stack.extend(waiting)
            else:
                operands = [self._values[i] if i else None for i in node.input]
                fit = all(v is not None for v, i in zip(operands, node.input, strict=True) if i)
                results = None
                if node.op_type == "CastLike" and operands[0] is not None:  # of the other, only the type counts
                    dtype = self._float_of(node.input[1])
                    results = None if dtype is None else [operands[0].astype(dtype)]
                elif fit and evaluate.foldable(node):
                    results = evaluate.evaluate(node, operands, self.opset)
                elif fit and node.input:
                    results = fold.run_node(node, operands, self.model)
                for k, o in enumerate(node.output):
                    self._values[o] = None if results is None or k >= len(results) else results[k]
                self._values.setdefault(top, None)  # a node whose output an edit has renamed
        return self._values[name]

    def once(self, what: str, owner: Any, make: Callable[[], T]) -> T:
        """What `make` finds out about this graph and `owner`, worked out once; forgotten with any edit."""
        held = self._memo.get(what)
        if held is None or held[0] is not owner:
            held = self._memo[what] = (owner, make())
        return held[1]  # type: ignore[no-any-return]

    def consumers(self) -> dict[str, list[Use]]:
        """Every tensor's uses by top-level nodes."""
        found: dict[str, list[Use]] = {}
        for key, node in self.nodes.items():
            for i, name in enumerate(node.input):
                if name:
                    found.setdefault(name, []).append((key, i))
        return found

    def captured(self) -> dict[str, str]:
        """Tensor name -> key of a control-flow node whose body reads it."""
        return {name: key for key, node in self.nodes.items() for name in captured(node)}

    # -- editing ------------------------------------------------------------------------------------------

    def own(self, key: str) -> onnx.NodeProto:
        """A copy of the node that may be edited, put in the node's place."""
        self._memo.clear()
        if key not in self._owned:
            self.nodes[key] = _copied(self.nodes[key])
            self._owned.add(key)
        return self.nodes[key]

    def set_constant(self, use: Use, value: np.ndarray) -> None:
        """Give one use of a constant a new value; other uses keep theirs."""
        key, i = use
        if i >= len(self.nodes[key].input) or not self.nodes[key].input[i]:  # an optional operand, left out so far
            node = self.own(key)
            node.input.extend([""] * (i + 1 - len(node.input)))
            node.input[i] = self.fresh(f"{key}_{i}")
        self._memo.clear()
        self._edits[use] = value

    def edited(self, use: Use) -> bool:
        """Whether this use of a constant has a new value."""
        return use in self._edits

    def value(self, use: Use) -> np.ndarray | None:
        """The constant that a use reads, edits included."""
        if use in self._edits:
            return self._edits[use]
        node = self.nodes[use[0]]
        name = node.input[use[1]] if use[1] < len(node.input) else ""
        return self.constant(name) if name else None

    def fresh(self, stem: str) -> str:
        """A name that no tensor of the graph or of a body has, and that is handed out only once."""
        if self._reserved is None:
            self._reserved = _all_names(self.model.graph)
        k = 1
        while f"{stem}_{k}" in self._reserved:
            k += 1
        self._reserved.add(f"{stem}_{k}")
        return f"{stem}_{k}"

    def add_constant(self, stem: str, value: np.ndarray) -> str:
        """A new constant that no node reads yet. Returns its name."""
        name = self.fresh(stem)
        self._added[name] = value
        return name

    def insert_after(self, key: str, node: onnx.NodeProto) -> None:
        """Put a new node behind the node `key`."""
        self._memo.clear()
        self._after.setdefault(key, []).append(node)

    def drop(self, key: str) -> None:
        """Remove a node; its consumers must have been rewired."""
        self._memo.clear()
        self._dropped.add(key)

    # -- writing ------------------------------------------------------------------------------------------

    def export(self) -> onnx.ModelProto:
        """The edited model: a clone of the original with the edits in it, dead constants removed."""
        model = onnx.ModelProto()
        if not self._pending():
            model.CopyFrom(self.model)
            return model
        nodes = self._edited_nodes()
        inner = self.captured()
        replaced: dict[str, np.ndarray] = {}  # constants that keep their name
        added: dict[str, np.ndarray] = dict(self._added)
        for name, group in _by_source(self, nodes).items():
            values = [self._edits.get(use) for use in group]
            first = next(v for v in values if v is not None)
            alike = all(v is not None and _identical(v, first) for v in values)
            if alike and name not in inner and name not in self.outputs and self._replaceable(name, nodes):
                (replaced if name in self.producer or name in self.initializers else added)[name] = first
                continue
            twins: list[tuple[np.ndarray, str]] = []
            for (key, i), value in zip(group, values, strict=True):
                if value is None:
                    continue
                twin = next((n for v, n in twins if _identical(v, value)), None)
                if twin is None:
                    twin = self.fresh(name)
                    twins.append((value, twin))
                    added[twin] = value
                nodes[key] = _copied(nodes[key])
                nodes[key].input[i] = twin
        _write(self, model, nodes, replaced, added)
        return model

    def _edited_nodes(self) -> dict[str, onnx.NodeProto]:
        """The nodes that stay and those inserted, in order."""
        found: dict[str, onnx.NodeProto] = {}
        for key, node in self.nodes.items():
            if key not in self._dropped:
                found[key] = node
            # An inserted node may take over the output, and so the key, of the node before it.
            found.update((f"{key}\0{i}", n) for i, n in enumerate(self._after.get(key, ())))
        return found

    def _replaceable(self, name: str, nodes: Mapping[str, onnx.NodeProto]) -> bool:
        """Whether the tensor may become another constant under its own name: nothing else is made with it."""
        if name in self.inputs:
            return False
        node = nodes.get(self.producer.get(name, ""))
        return node is None or [o for o in node.output if o] == [name]


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _all_names(graph: onnx.GraphProto) -> set[str]:
    """Every tensor name, those inside bodies too: a body may not shadow an outer name."""
    names: set[str] = set()
    stack = [graph]
    while stack:
        body = stack.pop()
        names.update(v.name for v in (*body.input, *body.output, *body.value_info, *body.initializer))
        names.update(t.values.name for t in body.sparse_initializer)
        for node in body.node:
            names.update(node.input)
            names.update(node.output)
            stack.extend(subgraphs(node))
    return names


def _identical(a: np.ndarray, b: np.ndarray) -> bool:
    return a is b or (a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


def _by_source(graph: Graph, nodes: Mapping[str, onnx.NodeProto]) -> dict[str, list[Use]]:
    """Constant name -> all its uses, in order, for the constants that have an edited use."""
    sources = {nodes[key].input[i] for key, i in graph._edits if key in nodes}
    found: dict[str, list[Use]] = {}
    for key, node in nodes.items():
        for i, name in enumerate(node.input):
            if name in sources:
                found.setdefault(name, []).append((key, i))
    return found


def element_types(model: onnx.ModelProto) -> dict[str, np.dtype]:
    """Element types of activations that the file states (masks, for one, must match them)."""
    return {
        info.name: onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        for info in (*model.graph.input, *model.graph.value_info, *model.graph.output)
        if info.type.HasField("tensor_type") and info.type.tensor_type.elem_type
    }


def inferred_types(model: onnx.ModelProto) -> dict[str, np.dtype]:
    """The same, worked out; what is stated for a model that cannot be inferred."""
    with contextlib.suppress(Exception):  # too large for protobuf, or operators without inference
        model = onnx.shape_inference.infer_shapes(model)
    return element_types(model)


def tensor_of(value: np.ndarray, name: str, like: onnx.TensorProto | None = None) -> onnx.TensorProto:
    """A tensor of the file format; `like` lends its doc string and metadata."""
    tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
    if like is not None:
        if like.HasField("doc_string"):  # an empty one is not the same as none
            tensor.doc_string = like.doc_string
        tensor.metadata_props.extend(like.metadata_props)
    return tensor


def _constant_node(value: np.ndarray, name: str) -> onnx.NodeProto:
    return onnx.helper.make_node("Constant", [], [name], value=tensor_of(value, name))


def _refilled(node: onnx.NodeProto, value: np.ndarray) -> onnx.NodeProto:
    """A Constant node with another value."""
    copy = _copied(node)
    like = next((a.t for a in node.attribute if a.name == "value"), None)
    del copy.attribute[:]
    tensor = tensor_of(value, node.output[0] if like is None else like.name, like)
    copy.attribute.append(onnx.helper.make_attribute("value", tensor))
    return copy


def _write(
    graph: Graph,
    model: onnx.ModelProto,
    nodes: dict[str, onnx.NodeProto],
    replaced: dict[str, np.ndarray],
    added: dict[str, np.ndarray],
) -> None:
    source = graph.model
    for field, value in source.ListFields():
        if field.name != "graph":
            _put(model, field.name, value)
    out, old = model.graph, source.graph
    body: list[onnx.NodeProto] = []
    # Before IR 4 an initializer had to be a graph input too: new constants become Constant nodes there.
    as_nodes = source.ir_version < 4
    if as_nodes:
        body += [_constant_node(v, n) for n, v in added.items()]
    folded = []  # a folded path whose every use got one new value: the path's end becomes an initializer
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
    body = _alive(body, set(graph.outputs), _originally_dead(graph))
    out.node.extend(body)
    used = {i for n in body for i in n.input} | {name for n in body for name in captured(n)}
    used |= set(graph.outputs)
    was_used = {i for n in old.node for i in n.input} | {name for n in old.node for name in captured(n)}
    was_used |= set(graph.outputs)
    for tensor in old.initializer:
        if tensor.name in replaced:
            out.initializer.append(tensor_of(replaced[tensor.name], tensor.name, tensor))
        elif tensor.name in used or tensor.name not in was_used:
            out.initializer.append(tensor)
    for name in folded:
        out.initializer.append(tensor_of(replaced[name], name))
    if not as_nodes:
        out.initializer.extend(tensor_of(v, n) for n, v in added.items())
    kept = {t.name for t in out.initializer}
    for value in old.input:
        if value.name in graph.initializers and value.name not in kept:
            continue
        out.input.append(value)
    for field, value in old.ListFields():
        if field.name not in ("node", "initializer", "input", "value_info"):
            _put(out, field.name, value)
    # Sizes of activations that the edits changed are for `forget_sizes`: the caller knows them.
    gone = _made(old) - _made(out)
    out.value_info.extend(v for v in old.value_info if v.name not in gone)
    for info in (*out.input, *out.value_info):
        if info.name in replaced and info.type.tensor_type.HasField("shape"):
            _resize(info.type.tensor_type.shape, replaced[info.name].shape)


def _put(message: Any, field: str, value: Any) -> None:
    """Set one field of a message, repeated, a message itself or plain."""
    if hasattr(value, "MergeFrom"):
        getattr(message, field).MergeFrom(value)
    else:
        setattr(message, field, value)


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
