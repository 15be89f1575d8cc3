"""Constants that a few bytes blow up to gigabytes: how large, read in the model or computed in a child process."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from onnxprune.files import sandbox
from onnxprune.files.refuse import refuse
from onnxprune.files.tensors import MAX_BYTES
from onnxprune.files.walk import Walk
from onnxprune.protobuf.nodes import DEFAULT_DOMAINS, titled
from onnxprune.protobuf.serialize import BITS


def check_growth(model: ModelProto, walk: Walk, label: str) -> None:
    """No constant that a few bytes blow up to gigabytes: ConstantOfShape, Expand, Tile and Range.

    Where the size is written in the model, it is read there; where it is computed from constants, the
    computation runs in a child process.
    """
    growers = [(n, line.grows) for n, line in walk.nodes if line.grows and n.domain in DEFAULT_DOMAINS]
    if not growers:
        return
    known = _small_constants(walk)
    hidden = []
    for node, way in growers:
        size = _SIZE_BY[way](node, known)
        if size is None:
            hidden.append(node)
        elif size > MAX_BYTES:
            refuse(label, f"{titled(node)} would make a tensor of {size:,} bytes; the model cannot be run")
    if hidden:
        part = _constant_part(model, {id(n) for n in hidden})
        if part is not None:
            sandbox.in_child("run", part, label)


def _small_constants(walk: Walk) -> dict[str, np.ndarray]:
    """Stored tensors of at most 64 elements, as arrays, by name."""
    known = {}
    sparse = {name for name, _ in walk.sparse}
    for name, tensor in walk.tensors:
        if name not in sparse and math.prod(tensor.dims) <= 64 and tensor.data_type != TensorProto.STRING:
            with contextlib.suppress(ValueError, TypeError, OverflowError):  # then its value is not known
                known[name] = numpy_helper.to_array(tensor)
    for node, line in walk.nodes:
        if line.stores:
            for attribute in node.attribute:
                if attribute.name in ("value_int", "value_ints"):
                    value = attribute.i if attribute.name == "value_int" else list(attribute.ints)
                    known[node.output[0]] = np.asarray(value, np.int64)
    return known


def _size_of_fill(node: NodeProto, known: dict[str, np.ndarray]) -> int | None:
    shape = known.get(node.input[0]) if node.input else None
    if shape is None:
        return None
    item = next((-(-BITS.get(a.t.data_type, 32) // 8) for a in node.attribute if a.name == "value"), 4)
    return math.prod(max(int(d), 0) for d in shape.ravel()) * item


def _size_of_expand(node: NodeProto, known: dict[str, np.ndarray]) -> int | None:
    shape = known.get(node.input[1]) if len(node.input) > 1 else None
    return None if shape is None else math.prod(max(int(d), 1) for d in shape.ravel()) * 4


def _size_of_tile(node: NodeProto, known: dict[str, np.ndarray]) -> int | None:
    repeats = known.get(node.input[1]) if len(node.input) > 1 else None
    if repeats is None:
        return None
    data = known.get(node.input[0])
    return math.prod(int(r) for r in repeats.ravel()) * (4 if data is None else data.nbytes)


def _size_of_range(node: NodeProto, known: dict[str, np.ndarray]) -> int | None:
    parts = [known.get(name) for name in node.input]
    if len(parts) != 3 or any(p is None or p.size != 1 for p in parts):
        return None
    start, limit, delta = (float(p.item()) for p in parts if p is not None)
    if not delta or not all(math.isfinite(v) for v in (start, limit, delta)):
        return MAX_BYTES + 1
    steps = (limit - start) / delta
    return min(int(max(steps, 0.0)), 2**62) * 8 if math.isfinite(steps) else MAX_BYTES + 1


_SIZE_BY: dict[str, Callable[[NodeProto, dict[str, np.ndarray]], int | None]] = {
    "fill": _size_of_fill,
    "expand": _size_of_expand,
    "tile": _size_of_tile,
    "range": _size_of_range,
}
"""Bytes of what a node makes; None where the model does not write it."""


def _constant_part(model: ModelProto, wanted: set[int]) -> ModelProto | None:
    """The part of the outermost graph that needs no input and feeds a node in `wanted` (ids), or None."""
    graph = model.graph
    ports = {port.name for port in graph.input}
    stored = {t.name: t for t in graph.initializer if t.name not in ports}
    constant: dict[str, NodeProto] = {}
    targets: list[NodeProto] = []
    for node in graph.node:  # sorted by now
        plain = node.domain in DEFAULT_DOMAINS and not any(a.HasField("g") for a in node.attribute)
        if plain and all(not n or n in stored or n in constant for n in node.input):
            constant.update((name, node) for name in node.output if name)
            if id(node) in wanted:
                targets.append(node)
    if not targets:
        return None
    keep: dict[int, NodeProto] = {}
    used: dict[str, TensorProto] = {}
    todo = list(targets)
    while todo:
        node = todo.pop()
        if id(node) in keep:
            continue
        keep[id(node)] = node
        for name in node.input:
            if name in constant:
                todo.append(constant[name])
            elif name in stored:
                used[name] = stored[name]
    part = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    part.graph.name = "constants"
    part.graph.node.extend(node for node in graph.node if id(node) in keep)
    part.graph.initializer.extend(used.values())
    for node in targets:
        part.graph.output.add(name=node.output[0])
    return part
