"""Stored tensors that may be trusted: known types, possible shapes, as much data as they take, and finite numbers."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxprune.files.refuse import first_line, refuse
from onnxprune.files.walk import Walk
from onnxprune.graph import sparse
from onnxprune.graph.facts import Operator
from onnxprune.protobuf.nodes import titled
from onnxprune.protobuf.serialize import BITS, nbytes
from onnxprune.runtime.ports import MAX_RANK

MAX_DIM = 2**31 - 1
"""The longest axis."""
MAX_BYTES = 2**31
"""Of one tensor that is not stored as it is: made by ConstantOfShape, Expand, Tile or Range."""
UNPACKED = 2**28
"""Bytes that sparse tensors of any kind may take once they are unpacked, all together."""
MOST_SPARSE = 64
"""And so many times what they take in the file, where that is more."""
_EXACT_FLOATS: dict[int, str] = {
    TensorProto.FLOAT: "<f4",
    TensorProto.DOUBLE: "<f8",
    TensorProto.FLOAT16: "<f2",
}
_SMALL_FLOATS = {
    number
    for name, number in TensorProto.DataType.items()
    if name.startswith(("FLOAT", "BFLOAT")) and number not in _EXACT_FLOATS and BITS[number] >= 8
}


def check_tensors(walk: Walk, label: str) -> None:
    strange: dict[str, np.ndarray] = {}
    for name, tensor in walk.tensors:
        raw = tensor.raw_data if tensor.HasField("raw_data") else None
        trouble = shape_trouble(tensor) or _length_trouble(tensor, raw)
        if trouble:
            refuse(label, f"tensor {name!r} {trouble}; export or download the model again")
        try:
            values = _unusual(tensor, raw)
        except (ValueError, TypeError, OverflowError) as error:
            refuse(label, f"tensor {name!r} cannot be read: {first_line(error)}; export the model again")
        if values is not None:
            if np.isnan(values).any():
                refuse(label, f"tensor {name!r} has NaN; train or export the model again")
            strange[name] = values
    _check_sparse(walk, label)
    if not strange:
        return
    for node, line in walk.nodes:
        for name in node.input:
            if name in strange and not _has_meaning(strange[name], line):
                refuse(
                    label,
                    f"tensor {name!r}, read by {titled(node)}, has Inf; train or export the model again",
                )


def _check_sparse(walk: Walk, label: str) -> None:
    """Sparse tensors whose values have their places, and that all together do not blow up when they are unpacked."""
    room = max(UNPACKED, MOST_SPARSE * sum(sparse.stored(t) for _, t in walk.sparse))
    for name, tensor in walk.sparse:
        dims, kind = list(tensor.dims), tensor.values.data_type
        if len(dims) > MAX_RANK or any(d < 0 or d > MAX_DIM for d in dims) or kind not in BITS:
            refuse(label, f"sparse tensor {name!r} has shape {dims} and data type {kind}; export it dense")
        room -= math.prod(dims) * BITS[kind] // 8
        if room < 0:
            refuse(label, f"sparse tensor {name!r} of shape {dims} is too large to unpack; export it dense")
        try:
            sparse.places(tensor)
        except ValueError as error:
            refuse(label, f"sparse tensor {name!r} {first_line(error)}; export the model again")


def shape_trouble(tensor: TensorProto) -> str | None:
    """What is wrong with type and dims, or None."""
    dims = list(tensor.dims)
    if tensor.data_type not in BITS and tensor.data_type != TensorProto.STRING:
        return f"has the unknown data type {tensor.data_type}"
    if len(dims) > MAX_RANK:
        return f"has {len(dims)} axes"
    for dim in dims:
        if dim < 0:
            return f"has a negative dimension in {in_words(tensor)}"
        if dim > MAX_DIM:
            return f"has a dimension above {MAX_DIM} in {in_words(tensor)}"
    if math.prod(d for d in dims if d) * 16 > 2**63:
        return f"has {in_words(tensor)}, whose size overflows"
    return None


def _length_trouble(tensor: TensorProto, raw: bytes | None) -> str | None:
    """What is wrong with the amount of data, or None."""
    count = math.prod(tensor.dims)
    if raw is not None:
        if tensor.data_type == TensorProto.STRING:
            return "holds strings as raw data"
        need = nbytes(tensor)
        if len(raw) != need:
            return f"has {len(raw)} bytes of data, but {in_words(tensor)} takes {need}"
        return None
    have = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type)))
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        allowed = {2 * count}
    elif BITS.get(tensor.data_type, 8) < 8:  # packed, by some writers only
        allowed = {count, -(-count * BITS[tensor.data_type] // 8)}
    else:
        allowed = {count}
    if have not in allowed:
        return f"has {have} values, but {in_words(tensor)} takes {count}"
    return None


def _unusual(tensor: TensorProto, raw: bytes | None) -> np.ndarray | None:
    """The tensor as floats if any is NaN or infinite, else None."""
    kind = tensor.data_type
    if kind in _EXACT_FLOATS and raw is not None:
        values = np.frombuffer(raw, _EXACT_FLOATS[kind])
    elif kind in _EXACT_FLOATS or kind in _SMALL_FLOATS:
        values = numpy_helper.to_array(tensor).astype(np.float64)
    else:
        return None
    return None if np.isfinite(values).all() else values


def _has_meaning(values: np.ndarray, line: Operator) -> bool:
    """Whether such an operator may read these infinities. What none has a meaning for is a broken weight."""
    if line.masks:
        return bool(np.all(np.isinf(values) | (values == 0)))
    return line.bounds


def in_words(tensor: TensorProto) -> str:
    return f"shape {list(tensor.dims)}"
