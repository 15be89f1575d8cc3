"""Large weights as arrays: each is held once, however many models, graphs and sessions have it.

protobuf hands out a copy of a tensor's data whenever they are asked for. What a copy is the same as, byte for byte,
is returned in its place; and beyond a few hundred megabytes, arrays lie in files (`numerics.on_disk`), not in memory.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping

import numpy as np
from onnx import TensorProto, numpy_helper

from onnxprune.numerics import on_disk
from onnxprune.protobuf.serialize import nbytes

LARGE_BYTES = 1 << 22
"""Bytes from which a weight is looked for among those that are held."""
IN_MEMORY = 1 << 28
"""Bytes of such weights that lie in memory, at most; the others lie in files."""
PLAIN: Mapping[int, str] = {
    TensorProto.FLOAT: "<f4",
    TensorProto.DOUBLE: "<f8",
    TensorProto.FLOAT16: "<f2",
    TensorProto.INT8: "i1",
    TensorProto.UINT8: "u1",
    TensorProto.INT32: "<i4",
}
"""Types whose data are numpy's own, by number."""
_LOOKED_AT = 64
"""Bytes by which arrays are told apart before they are compared."""

_Key = tuple[str, tuple[int, ...], bytes]
_held: dict[_Key, list[weakref.ref[np.ndarray]]] = {}
_others: dict[int, weakref.ref[np.ndarray]] = {}
_lock = threading.RLock()  # an array may go while another is looked for


def array_of(tensor: TensorProto) -> np.ndarray:
    """What `numpy_helper.to_array` returns, read-only; a large one may be an array that was returned before."""
    dtype = PLAIN.get(tensor.data_type)
    if dtype is None or not tensor.HasField("raw_data") or nbytes(tensor) < LARGE_BYTES:
        return np.asarray(numpy_helper.to_array(tensor))
    found = np.frombuffer(tensor.raw_data, dtype).reshape(tensor.dims)
    with _lock:
        key, known = _known(found)
        return _enter(key, found if _fits(found) else _in_file(found)) if known is None else known


def kept(value: np.ndarray) -> np.ndarray:
    """The array, which must not be written to any more; where memory is for no more large ones, a copy in a file."""
    plain = value.dtype.kind in "iuf" and value.flags.c_contiguous
    if not plain or value.nbytes < LARGE_BYTES or isinstance(value.base, np.memmap):
        return value
    with _lock:
        if _fits(value):  # it may be written to after all, so nobody else is given it
            number = id(value)
            _others[number] = weakref.ref(value, lambda gone: _others.pop(number, None))
            return value
        key, known = _known(value)
        return _enter(key, _in_file(value)) if known is None else known


def held() -> int:
    """Bytes of large weights that lie in memory now."""
    with _lock:
        alive = [one() for one in (*_others.values(), *(one for of in _held.values() for one in of))]
    return sum(a.nbytes for a in alive if a is not None and not isinstance(a.base, np.memmap))


def _known(value: np.ndarray) -> tuple[_Key, np.ndarray | None]:
    """Under what it is looked for, and what is held that is the same."""
    looked_at = _bytes(value)
    key = value.dtype.str, value.shape, looked_at[:: max(1, len(looked_at) // _LOOKED_AT)].tobytes()
    for one in _held.get(key, []):
        known = one()
        if known is not None and np.array_equal(_bytes(known), looked_at):
            return key, known
    return key, None


def _bytes(value: np.ndarray) -> np.ndarray:
    return value.reshape(-1).view(np.uint8)


def _fits(value: np.ndarray) -> bool:
    return held() + value.nbytes <= IN_MEMORY


def _in_file(value: np.ndarray) -> np.ndarray:
    made = np.asarray(on_disk.copied(value))
    made.flags.writeable = False
    return made


def _enter(key: _Key, value: np.ndarray) -> np.ndarray:
    _held.setdefault(key, []).append(weakref.ref(value, lambda gone: _forget(key, gone)))
    return value


def _forget(key: _Key, gone: weakref.ref[np.ndarray]) -> None:
    with _lock:
        _held[key].remove(gone)
        if not _held[key]:
            del _held[key]
