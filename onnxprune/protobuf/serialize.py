"""A model as bytes: written in parts, measured without writing, copied without its weights.

Knows the wire format and the size of an element; knows nothing of files, of graphs or of ONNX Runtime.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

M = TypeVar("M", ModelProto, NodeProto)
MAX_PROTOBUF = 2_000_000_000
"""Bytes of weights in one file; protobuf itself stops at 2^31 - 1."""
LARGE_TENSOR = 1 << 14
"""Bytes from which a tensor is a part of its own."""
_BEFORE_DATA, _AFTER_DATA = ("data_type", "name"), ("doc_string",)
_OTHER_DATA = "external_data float_data int32_data string_data int64_data double_data uint64_data".split()


def _element_bits() -> dict[int, int]:
    """Bits of one element, by data type; strings and undefined are not in it."""
    bits: dict[int, int] = {}
    for name, number in TensorProto.DataType.items():
        if name in ("UNDEFINED", "STRING"):
            continue
        width = re.search(r"^U?INT(2|4)$|^FLOAT(4)", name)
        if width:
            bits[number] = int(width[1] or width[2])
        else:
            bits[number] = 8 * helper.tensor_dtype_to_np_dtype(number).itemsize
    return bits


BITS = _element_bits()


def nbytes(tensor: TensorProto) -> int:
    """Bytes of its elements, from type and shape alone."""
    return -(-math.prod(tensor.dims) * BITS[tensor.data_type] // 8)


def serialized(model: ModelProto) -> Iterator[bytes]:
    """`model.SerializeToString()` in parts: the same bytes, but the weights are never copied all at once.

    protobuf grows one buffer for the whole message and then copies it, which for a large model costs more
    than all checks; here the raw data of every stored tensor are a part of their own. The model must be sound.
    """
    for part in _parts(model):
        yield part.raw_data if isinstance(part, TensorProto) else part


def byte_size(model: ModelProto) -> int:
    """`model.ByteSize()`, which Python's protobuf answers by writing the model out; here from the shapes."""
    return sum(nbytes(part) if isinstance(part, TensorProto) else len(part) for part in _parts(model))


def _parts(model: ModelProto) -> Iterator[bytes | TensorProto]:
    """The serialised model, with a tensor where its raw data belong.

    protobuf writes fields by their number, so what comes before and after the graph, before and after its
    tensors, and before and after a tensor's data can be written apart.
    """
    graph = ModelProto.DESCRIPTOR.fields_by_name["graph"].number
    stored = GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
    yield _fields(model, lambda number: number < graph)
    if model.HasField("graph"):
        head = _fields(model.graph, lambda number: number < stored)
        tail = _fields(model.graph, lambda number: number > stored)
        inside = [part for run in _runs(model.graph.initializer) for part in _stored_parts(run)]
        size = sum(nbytes(p) if isinstance(p, TensorProto) else len(p) for p in (head, *inside, tail))
        yield _varint(graph << 3 | 2) + _varint(size) + head
        yield from inside
        yield tail
    yield _fields(model, lambda number: number > graph)


def _runs(tensors: Iterable[TensorProto]) -> Iterator[list[TensorProto]]:
    """The tensors, in order: large ones alone, small ones together."""
    run: list[TensorProto] = []
    for tensor in tensors:
        if tensor.data_type in BITS and nbytes(tensor) >= LARGE_TENSOR:
            if run:
                yield run
            yield [tensor]
            run = []
        else:
            run.append(tensor)
    if run:
        yield run


def _stored_parts(run: list[TensorProto]) -> list[bytes | TensorProto]:
    """One or more entries of `graph.initializer`, serialised, with a tensor in the place of its raw data."""
    parts = _tensor_parts(run[0]) if len(run) == 1 else None
    if parts is None:
        return [bytes(GraphProto(initializer=run).SerializeToString(deterministic=True))]
    key = GraphProto.DESCRIPTOR.fields_by_name["initializer"].number << 3 | 2
    size = sum(nbytes(p) if isinstance(p, TensorProto) else len(p) for p in parts)
    return [_varint(key) + _varint(size), *parts]


def _tensor_parts(tensor: TensorProto) -> list[bytes | TensorProto] | None:
    """A tensor, serialised, with itself in the place of its raw data; None when it has none, or more than these."""
    plain = tensor.HasField("raw_data") and tensor.data_type in BITS
    plain = plain and not (tensor.HasField("segment") or tensor.HasField("data_location"))
    if not plain or any(getattr(tensor, name) for name in _OTHER_DATA):
        return None
    head, tail = TensorProto(dims=tensor.dims), TensorProto(metadata_props=tensor.metadata_props)
    for bare, names in ((head, _BEFORE_DATA), (tail, _AFTER_DATA)):
        for name in names:
            if tensor.HasField(name):
                put(bare, name, getattr(tensor, name))
    key = TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number << 3 | 2
    return [head.SerializeToString() + _varint(key) + _varint(nbytes(tensor)), tensor, tail.SerializeToString()]


def _varint(value: int) -> bytes:
    """A number as protobuf writes it: seven bits a byte, the lowest first."""
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes((*parts, value))


def _fields(message: Any, wanted: Callable[[int], bool]) -> bytes:
    """The serialised fields whose number is wanted."""
    bare = type(message)()
    left_out = {d.name for d in message.DESCRIPTOR.fields if not wanted(d.number)}
    copy_all_but(message, bare, *left_out)
    return bytes(bare.SerializeToString(deterministic=True))


def weight_bytes(model: ModelProto) -> int:
    """Bytes of the stored tensors of the outermost graph, from their shapes alone."""
    return sum(nbytes(t) for t in model.graph.initializer if t.data_type != TensorProto.STRING)


def copied(message: M) -> M:
    """A copy of a model or a node, to be edited."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def without_initializers(model: ModelProto) -> ModelProto:
    """A copy of all but `graph.initializer`, whose weights are never copied."""
    bare = ModelProto()
    copy_all_but(model, bare, "graph")
    copy_all_but(model.graph, bare.graph, "initializer")
    return bare


def copy_all_but(message, copy, *left_out: str) -> None:  # type: ignore[no-untyped-def]  # any protobuf message
    """Add the fields of a message, but those named, to another of its kind."""
    for descriptor, value in message.ListFields():
        if descriptor.name in left_out:
            continue
        target = getattr(copy, descriptor.name)
        if hasattr(target, "extend"):
            target.extend(value)
        elif hasattr(target, "CopyFrom"):
            target.CopyFrom(value)
        else:
            put(copy, descriptor.name, value)


def put(message, name: str, value: Any) -> None:  # type: ignore[no-untyped-def]  # any protobuf message
    """Set a field to what another message holds there: protobuf reads text that is not UTF-8, gives it as bytes, and
    takes it back on the wire alone."""
    field = message.DESCRIPTOR.fields_by_name[name]
    if field.type == field.TYPE_STRING and isinstance(value, bytes):
        message.MergeFromString(_varint(field.number << 3 | 2) + _varint(len(value)) + value)
    else:
        setattr(message, name, value)
