"""Nodes that ONNX Runtime cannot run, and the model split at them: the part that runs, and the rest.

A plugin of TensorRT, an operator of a domain of its own or a type without a kernel stops the whole file from being
loaded. Everything that does not depend on such a node is a model of its own; what the rest reads of it are its further
outputs. Where the sizes of what such a node makes are known, what is behind it runs as well, with these as inputs.
Whatever is done to the part is put back into the file, and the rest is in it as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx

from onnxprune.errors import one_line
from onnxprune.graph import operators
from onnxprune.graph.branches import rename
from onnxprune.graph.model import all_names, free_name
from onnxprune.protobuf.nodes import DEFAULT_DOMAINS, inferred_types, node_key, read_by, titled
from onnxprune.protobuf.serialize import copied, copy_all_but

KEPT_WITH_NODES = ("initializer", "sparse_initializer", "input", "output", "value_info")
"""What of a graph goes with the nodes that read it or make it."""


@dataclass(frozen=True)
class Barrier:
    """Where a model was split.

    Attributes:
        whole: the model, as it was read.
        stops: key of a node that does not run -> why, in words.
        rest: keys of the nodes that are not in the part: these, and what depends on them.
        fed: what the part is fed that such nodes make.
        ends: what the rest reads of the part: its further outputs.
    """

    whole: onnx.ModelProto
    stops: Mapping[str, str]
    rest: frozenset[str]
    fed: tuple[onnx.ValueInfoProto, ...]
    ends: tuple[onnx.ValueInfoProto, ...]

    @classmethod
    def of(
        cls,
        model: onnx.ModelProto,
        stops: Mapping[str, str],
        shapes: Mapping[str, Sequence[int]] | None = None,
        *,
        feed: bool = True,
        typed: bool = True,
    ) -> Barrier:
        """A model split at some nodes.

        Args:
            model: left untouched; the barrier keeps it.
            stops: key of a node that does not run -> why.
            shapes: sizes of what these make, by name, besides those that the file states.
            feed: whether what is behind them is to run, where sizes are known.
            typed: whether the types of the ends are worked out.
        """
        fed: dict[str, onnx.ValueInfoProto] = {}
        rest, dark = set(stops), set[str]()  # dark: tensors that nobody can make
        for node in model.graph.node:
            key = node_key(node)
            if key in stops:
                ports = {o: _port(model, o, shapes or {}) if feed else None for o in node.output if o}
                fed |= {o: port for o, port in ports.items() if port is not None}
                dark |= {o for o, port in ports.items() if port is None}
            elif dark.intersection(read_by(node)):
                rest.add(key)
                dark.update(o for o in node.output if o)
        read = {name for n in model.graph.node if node_key(n) not in rest for name in read_by(n)}
        ends = _ends(model, rest, typed=typed)
        return cls(model, stops, frozenset(rest), tuple(p for p in fed.values() if p.name in read), ends)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What the nodes that do not run are called."""
        return tuple(called(n) for n in self.whole.graph.node if node_key(n) in self.stops)

    @cached_property
    def part(self) -> onnx.ModelProto:
        """The part of the model that runs; without any node where nothing does."""
        return self.part_of(self.whole)

    def reasons(self) -> dict[str, str]:
        """Tensor between the part and the rest -> why its channels stay."""
        key_of = {o: node_key(n) for n in self.whole.graph.node for o in n.output}
        title = {node_key(n): called(n) for n in self.whole.graph.node}
        found = {p.name: f"made by {title[key_of[p.name]]}, which does not run" for p in self.fed}
        for node in self.whole.graph.node:
            if (key := node_key(node)) in self.rest:
                said = "which does not run" if key in self.stops else "which is behind a node that does not run"
                for name in read_by(node):
                    if name in {p.name for p in self.ends}:
                        found.setdefault(name, f"read by {title[key]}, {said}")
        return found

    def in_words(self) -> list[str]:
        """What to tell of it: a line for every kind of node that does not run, and one of what follows."""
        kinds: dict[str, list[str]] = {}
        for node in self.whole.graph.node:
            if (key := node_key(node)) in self.stops:
                kinds.setdefault(self.stops[key], []).append(called(node))
        lines = [f"{names[0]}{_more(names)} does not run: {why}" for why, names in kinds.items()]
        behind = len(self.rest) - len(self.stops)
        left = f"; what is behind stays whole ({behind} node{'s' * (behind > 1)})" if behind else ""
        fed = f"; {_listed([p.name for p in self.fed])} is fed as if it were an input" if self.fed else ""
        ends = _listed([p.name for p in self.ends]) or "the outputs"
        lines.append(f"what is pruned, compared, counted and timed is the part that runs, up to {ends}{left}{fed}")
        return [one_line(line) for line in lines]

    def part_of(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The same part of the model, or of one that was made of it."""
        part, old = onnx.ModelProto(), model.graph
        copy_all_but(model, part, "graph")
        copy_all_but(old, part.graph, "node", *KEPT_WITH_NODES)
        out = part.graph
        nodes = [n for n in old.node if node_key(n) not in self.rest]
        lost = {o for n in old.node if node_key(n) in self.rest for o in n.output}
        out.output.extend(o for o in old.output if o.name not in lost)
        present = {o.name for o in out.output}
        out.output.extend(p for p in self.ends if p.name not in present)
        dead = {node_key(n) for n in old.node} - _alive(old.node, {o.name for o in old.output})
        alive = _alive(nodes, {o.name for o in out.output}) | dead
        out.node.extend(n for n in nodes if node_key(n) in alive)
        used = {name for n in out.node for name in read_by(n)} | {o.name for o in out.output}
        out.initializer.extend(t for t in old.initializer if t.name in used)
        out.sparse_initializer.extend(t for t in old.sparse_initializer if t.values.name in used)
        out.input.extend(i for i in old.input if i.name in used or i.name not in _stored(old))
        out.input.extend(self.fed)
        made = {o for n in out.node for o in n.output} | _stored(out)
        out.value_info.extend(v for v in old.value_info if v.name in made)
        return part

    def whole_of(self, part: onnx.ModelProto) -> onnx.ModelProto:
        """The model with another part in the place of its own."""
        model, old = onnx.ModelProto(), self.whole.graph
        copy_all_but(part, model, "graph")
        copy_all_but(part.graph, model.graph, "node", "input", "output", "value_info")
        out = model.graph
        rest = [n for n in old.node if node_key(n) in self.rest]
        new, constants = self._constants(part, model, rest)
        out.node.extend(_ordered([*constants, *part.graph.node, *(_renamed(n, new) for n in rest)]))
        there, held = {i.name: i for i in part.graph.input}, _stored(out)
        old_held = _stored(old)
        out.input.extend(
            there.get(i.name, i) for i in old.input if i.name in there or i.name in held or i.name not in old_held
        )
        there = {o.name: o for o in part.graph.output}
        out.output.extend(there.get(o.name, o) for o in old.output)
        out.value_info.extend(part.graph.value_info)
        stated = {v.name for v in out.value_info}
        made = {o for n in (*constants, *rest) for o in n.output} | (held - _stored(part.graph))
        out.value_info.extend(v for v in old.value_info if v.name in made and v.name not in stated)
        return model

    def _constants(
        self, part: onnx.ModelProto, model: onnx.ModelProto, rest: Sequence[onnx.NodeProto]
    ) -> tuple[dict[str, str], list[onnx.NodeProto]]:
        """What the rest reads that depends on no input, for where it is not in the part as it was.

        Stored tensors are added to the model, in place. Returns the new names of those whose own mean another in the
        part, and the nodes to add.
        """
        old = self.whole.graph
        constant = [
            n for n in old.node if node_key(n) not in self.rest and not _live(self.whole).intersection(n.output)
        ]
        needed = {name for n in rest for name in read_by(n)}
        for node in reversed(constant):
            if needed.intersection(node.output):
                needed.update(read_by(node))
        reserved, new = all_names(part.graph) | all_names(old), dict[str, str]()
        there = {node_key(n): n.SerializeToString() for n in part.graph.node}
        taken = {o for n in part.graph.node for o in n.output} | _stored(part.graph)
        nodes = _hold(old.initializer, part.graph.initializer, model, needed, taken, new, reserved)
        nodes += _hold(old.sparse_initializer, part.graph.sparse_initializer, model, needed, taken, new, reserved)
        for node in constant:
            if not needed.intersection(node.output):
                continue
            moved = _renamed(node, new)
            if there.get(node_key(node)) == moved.SerializeToString():
                continue
            if taken.intersection(node.output):
                new.update((o, free_name(o, reserved)) for o in node.output if o)
                moved = _renamed(node, new)
            nodes.append(moved)
        return new, nodes


def called(node: onnx.NodeProto) -> str:
    """`node 'nms' (TRT.EfficientNMS_TRT)`."""
    if node.domain in DEFAULT_DOMAINS:
        return titled(node)
    return f"node {node.name or node_key(node)!r} ({node.domain}.{node.op_type})"


def _port(model: onnx.ModelProto, name: str, shapes: Mapping[str, Sequence[int]]) -> onnx.ValueInfoProto | None:
    """A tensor as an input, where all its sizes but the first are known; else None."""
    stated = {v.name: v for v in (*model.graph.value_info, *model.graph.output)}.get(name)
    kind = stated.type.tensor_type if stated is not None and stated.type.HasField("tensor_type") else None
    elem = (kind.elem_type if kind is not None else 0) or onnx.TensorProto.FLOAT
    if name in shapes:
        sizes: list[int | str] = list(shapes[name])
        first = next((i.type.tensor_type.shape.dim for i in model.graph.input), None)
        if first and sizes and not first[0].dim_value:
            sizes[0] = first[0].dim_param or "batch"
        return onnx.helper.make_tensor_value_info(name, elem, sizes)
    if kind is None or not kind.elem_type or not kind.HasField("shape"):
        return None
    return stated if all(d.dim_value > 0 for d in kind.shape.dim[1:]) and kind.shape.dim else None


def _ends(model: onnx.ModelProto, rest: set[str], *, typed: bool) -> tuple[onnx.ValueInfoProto, ...]:
    """What the rest reads that the part makes, with its type where the file states or implies it."""
    made = {o for n in model.graph.node if node_key(n) not in rest for o in n.output} & _live(model)
    names = dict.fromkeys(r for n in model.graph.node if node_key(n) in rest for r in read_by(n) if r in made)
    stated = {v.name: v for v in (*model.graph.value_info, *model.graph.output)}
    types = inferred_types(model) if typed and names.keys() - stated.keys() else {}

    def port(name: str) -> onnx.ValueInfoProto:
        if name in stated or name not in types:
            return stated.get(name) or onnx.helper.make_empty_tensor_value_info(name)
        return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(types[name]), None)

    return tuple(map(port, names))


def _live(model: onnx.ModelProto) -> set[str]:
    """The tensors that depend on the inputs, or are drawn at random."""
    stored = _stored(model.graph)
    live = {i.name for i in model.graph.input if i.name not in stored}
    for node in model.graph.node:
        if operators.of(node).random or not live.isdisjoint(read_by(node)):
            live.update(o for o in node.output if o)
    return live


def _stored(graph: onnx.GraphProto) -> set[str]:
    return {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}


def _alive(nodes: Iterable[onnx.NodeProto], outputs: set[str]) -> set[str]:
    """Keys of the nodes that an output depends on."""
    needed, alive = set(outputs), set[str]()
    for node in reversed(list(nodes)):
        if needed.intersection(o for o in node.output if o):
            alive.add(node_key(node))
            needed.update(read_by(node))
    return alive


def _ordered(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes, each behind those that make what it reads; else in the order given."""
    maker = {o: k for k, n in enumerate(nodes) for o in n.output if o}
    done = [False] * len(nodes)
    for k in range(len(nodes)):
        stack = [k]
        while stack:
            top = stack[-1]
            waiting = (
                [] if done[top] else [m for r in read_by(nodes[top]) if (m := maker.get(r)) is not None and not done[m]]
            )
            if waiting:
                stack += waiting
                continue
            stack.pop()
            if not done[top]:
                done[top] = True
                yield nodes[top]


def _renamed(node: onnx.NodeProto, new: Mapping[str, str]) -> onnx.NodeProto:
    """The node with other names for some of what it reads or makes."""
    if new.keys().isdisjoint((*read_by(node), *node.output)):
        return node
    body = onnx.GraphProto(node=[node])
    rename(body, new)
    return body.node[0]


def _hold(
    old: Sequence[Any],
    there: Sequence[Any],
    model: onnx.ModelProto,
    needed: set[str],
    taken: set[str],
    new: dict[str, str],
    reserved: set[str],
) -> list[onnx.NodeProto]:
    """Add stored tensors, dense or sparse, where they are needed and not there as they were.

    Args:
        old, there: those of the whole model, and of the part.
        model: receives them.
        needed, taken: names of what the rest needs, and of what the part has.
        new, reserved: receive the new names.

    Returns the nodes that make some of them.
    """
    known = {_tensor(t).name: t for t in there}
    nodes = []
    for tensor in old:
        name = _tensor(tensor).name
        if name not in needed or (name in known and known[name].SerializeToString() == tensor.SerializeToString()):
            continue
        tensor = copied(tensor)
        if name in taken:
            _tensor(tensor).name = new[name] = free_name(name, reserved)
        if not isinstance(tensor, onnx.TensorProto):
            model.graph.sparse_initializer.append(tensor)
        elif model.ir_version < 4 and name in taken:  # there an initializer had to be an input too
            nodes.append(onnx.helper.make_node("Constant", [], [new[name]], value=tensor))
        else:
            model.graph.initializer.append(tensor)
    return nodes


def _tensor(stored: onnx.TensorProto | onnx.SparseTensorProto) -> onnx.TensorProto:
    return stored if isinstance(stored, onnx.TensorProto) else stored.values


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more of its kind" if len(names) > 1 else ""


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = len(names) - most
    return ", ".join(map(repr, names[:most])) + (f" and {more} more" if more > 0 else "")
