"""The editable view of an ONNX model: nodes, constants and who reads what.

A `Graph` never changes the model it was made from. Edits are collected (a new value for one use of a
constant, a changed node, an inserted or dropped node) and `export` writes them into a clone of the original
protobuf. So a round trip with no edit is lossless by construction, and there is no importer whose losses would
have to be given back.

Constants are one thing here, wherever the exporter put them: initializers, `Constant` nodes, and both behind
Identity, Transpose, Reshape, Cast and the like (folded lazily, as numpy values). A constant is edited per
*use* (node, input position), so initializers shared by several nodes need no special care.

This module knows protobuf. It knows nothing of channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnx

from onnxprune.errors import ModelError
from onnxprune.graph import evaluate, fold, operators
from onnxprune.graph.export import exported
from onnxprune.protobuf.nodes import (
    DEFAULT_DOMAINS,
    FLOATS,
    captured,
    inferred_types,
    node_key,
    opset,
    stored_tensors,
    subgraphs,
)
from onnxprune.protobuf.serialize import copied, serialized, weight_bytes
from onnxprune.runtime.stored import array_of, kept

Use = tuple[str, int]
"""One use of a tensor: (first output name of the reading node, input position)."""
T = TypeVar("T")


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
        held = stored_tensors(body)
        found.update({k: tuple(t.dims) for k, t in held if t.data_type in FLOATS and len(t.dims) > 1})
        for n in body.node:
            stack.extend(subgraphs(n))
    return found


def digest(model: onnx.ModelProto) -> str:
    """SHA-256 over the model's bytes: what a plan was made for."""
    found = hashlib.sha256()
    for part in serialized(model):
        found.update(part)
    return found.hexdigest()


def _computable(node: onnx.NodeProto) -> bool:
    """Whether the node is a constant once its operands are. Quantized constants stay quantized."""
    return (node.domain in DEFAULT_DOMAINS or evaluate.foldable(node)) and not operators.of(node).runs


@dataclass
class Edits:
    """What is to be another in the exported model.

    Attributes:
        values: use -> the new value of the constant that it reads.
        exact: those whose value must not be rounded to a narrower type that the file stores it in.
        owned: keys of the nodes that have been copied to be edited.
        after: node key -> new nodes behind it.
        dropped: keys of the nodes that go.
        added: name -> a new constant.
        like: name of such -> the constant in whose type the file stores it too.
    """

    values: dict[Use, np.ndarray] = field(default_factory=dict)
    exact: set[Use] = field(default_factory=set)
    owned: set[str] = field(default_factory=set)
    after: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    added: dict[str, np.ndarray] = field(default_factory=dict)
    like: dict[str, str] = field(default_factory=dict)

    def none(self) -> bool:
        """Whether the model stays as it is."""
        return not (self.values or self.owned or self.after or self.dropped)


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
        self.inputs = tuple(i.name for i in model.graph.input if i.name not in self.initializers)
        self.outputs = tuple(o.name for o in model.graph.output)
        self._values: dict[str, np.ndarray | None] = dict(weights or {})
        self._room = evaluate.ROOM + 4 * weight_bytes(model)  # for constants that are computed
        self._edits = Edits()
        self._reserved: set[str] | None = None
        self._memo: dict[str, tuple[Any, Any]] = {}

    def __reduce__(self) -> tuple[type[Graph], tuple[onnx.ModelProto]]:
        """Sent to another process, the graph is made anew there, of the network with its edits."""
        return Graph, (self.model if self._edits.none() else self.export(),)

    def __copy__(self) -> Graph:
        """In this process, all that is known is shared."""
        found = object.__new__(type(self))
        found.__dict__.update(self.__dict__)
        return found

    def float_of(self, name: str) -> np.dtype | None:
        """The element type of a tensor where it is surely a plain float."""
        value = self._values.get(name)
        types = self.once("types", self, lambda: inferred_types(self.model)) if value is None else {}
        dtype = types.get(name) if value is None else value.dtype
        return dtype if dtype is not None and dtype.kind == "f" else None

    def fork(self) -> Graph:
        """The same network to edit, with every constant that is worked out already; this one must have no edits."""
        assert self._edits.none()
        graph = copy(self)
        graph.nodes, graph.producer, graph._values = dict(self.nodes), dict(self.producer), dict(self._values)
        graph._edits, graph._reserved, graph._memo = Edits(), None, {}
        return graph

    def settle(self) -> Graph:
        """Carry the edits out, in place: nodes, producers and constants are then those of the edited network. Returns
        the graph."""
        if not self._edits.none():
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
                self._values[top] = array_of(self.initializers[top])
            elif top not in self.producer or not _computable(node := self.nodes[self.producer[top]]):
                self._values[top] = None
            elif waiting := [i for i in node.input if i and i not in self._values]:
                stack.extend(waiting)
            else:
                operands = [self._values[i] if i else None for i in node.input]
                fit = all(v is not None for v, i in zip(operands, node.input, strict=True) if i)
                results = None
                if node.op_type == "CastLike" and operands[0] is not None:  # of the other, only the type counts
                    dtype = self.float_of(node.input[1])
                    results = None if dtype is None else [operands[0].astype(dtype)]
                elif fit and evaluate.foldable(node):
                    results = evaluate.evaluate(node, operands, self.opset, self._room)
                elif fit and node.input:
                    results = fold.run_node(node, operands, self.model)
                self._room -= evaluate.held(results or ())
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
        if key not in self._edits.owned:
            self.nodes[key] = copied(self.nodes[key])
            self._edits.owned.add(key)
        return self.nodes[key]

    def set_constant(self, use: Use, value: np.ndarray, *, exact: bool = False) -> None:
        """Give one use of a constant a new value, which nobody writes to any more; other uses keep theirs. It may be
        rounded to the type in which the file stores it, unless it must be `exact`."""
        key, i = use
        if i >= len(self.nodes[key].input) or not self.nodes[key].input[i]:  # an optional operand, left out so far
            node = self.own(key)
            node.input.extend([""] * (i + 1 - len(node.input)))
            node.input[i] = self.fresh(f"{key}_{i}")
        self._memo.clear()
        self._edits.values[use] = kept(value)
        if exact:
            self._edits.exact.add(use)

    def edited(self, use: Use) -> bool:
        """Whether this use of a constant has a new value."""
        return use in self._edits.values

    def value(self, use: Use) -> np.ndarray | None:
        """The constant that a use reads, edits included."""
        if use in self._edits.values:
            return self._edits.values[use]
        node = self.nodes[use[0]]
        name = node.input[use[1]] if use[1] < len(node.input) else ""
        return self.constant(name) if name else None

    def fresh(self, stem: str) -> str:
        """A name that no tensor of the graph or of a body has, and that is handed out only once."""
        if self._reserved is None:
            self._reserved = all_names(self.model.graph)
        return free_name(stem, self._reserved)

    def add_constant(self, stem: str, value: np.ndarray, like: str = "") -> str:
        """A new constant that no node reads yet; it may be rounded to the type in which the file stores `like`. Returns
        its name."""
        name = self.fresh(stem)
        self._edits.added[name], self._edits.like[name] = value, like
        return name

    def insert_after(self, key: str, node: onnx.NodeProto) -> None:
        """Put a new node behind the node `key`."""
        self._memo.clear()
        self._edits.after.setdefault(key, []).append(node)

    def drop(self, key: str) -> None:
        """Remove a node; its consumers must have been rewired."""
        self._memo.clear()
        self._edits.dropped.add(key)

    # -- writing ------------------------------------------------------------------------------------------

    def export(self) -> onnx.ModelProto:
        """The edited model: a clone of the original with the edits in it, dead constants removed."""
        return exported(self, self._edits)


def free_name(stem: str, reserved: set[str]) -> str:
    """A name that is not reserved, and now is."""
    k = 1
    while f"{stem}_{k}" in reserved:
        k += 1
    reserved.add(f"{stem}_{k}")
    return f"{stem}_{k}"


def all_names(graph: onnx.GraphProto) -> set[str]:
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
