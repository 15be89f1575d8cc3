"""Model files, read with suspicion and written so that nobody ever sees half of one.

Reading answers one question: may the rest of the tool trust this model? Whatever can be checked by hand is
checked by hand (names, order, shapes, data lengths, attributes, external data), because `onnx.checker` lets
some of it pass and may take the process down with it. Where an ONNX library can blow up (local functions,
nested subgraphs, constants that grow) it works in a child process with a clock and a memory cap; an ordinary
model never starts one.

Writing knows one trick: fill a temporary file in the same folder, flush it, read it back, and only then give
it the name. It knows nothing of pruning, of channels, or of ONNX Runtime (a caller passes `verify`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import heapq
import math
import mmap
import os
import re
import secrets
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any, NoReturn

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxprune.errors import FileError, ModelError

# Caps. Module constants, so that a test can lower them.
MAX_PROTOBUF = 2_000_000_000  # bytes of weights in one file; protobuf itself stops at 2^31 - 1
MAX_DIM = 2**31 - 1  # longest axis
MAX_GROWN = 2**31  # bytes of one tensor made by ConstantOfShape, Expand, Tile or Range
MAX_DEPTH = 16  # subgraphs inside subgraphs
MAX_NODES = 1_000_000  # in all graphs, after inlining
CHILD_SECONDS = 10.0
CHILD_BYTES = 2 * 2**30  # on top of four times what is sent to the child
EXTERNAL_THRESHOLD = 1024  # smaller tensors stay in the .onnx file
EXTERNAL_ALIGNMENT = 4096  # so that a runtime may map the file

# Every onnxruntime that pyproject allows reads these; above them we ask the installed one.
_SAFE_IR, _SAFE_OPSET = 10, 21


def one_line(text: object) -> str:
    """`text` on one line: blanks collapsed, control characters and lone surrogates escaped."""
    flat = " ".join(str(text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in flat)


def _bad(label: str, text: str) -> NoReturn:
    raise ModelError(one_line(f"{label}: {text}"))


def _called(node: NodeProto) -> str:
    """`node 'conv1' (Conv)`; a node without a name goes by its first output."""
    name = node.name or next((o for o in node.output if o), "")
    return f"node {name!r} ({node.op_type})"


# ---------------------------------------------------------------------------------------------- reading


def read_model(path: str | Path) -> ModelProto:
    """The model in the file `path`, sound and self-contained.

    External data is loaded into `raw_data`, local functions are inlined, nodes that are out of order are
    sorted (stably). IR version, opset and metadata stay as they are.

    Args:
        path: an .onnx file; its external data lies beside it.

    Returns:
        A model that passed every check of `check_model`.

    Raises:
        FileError: the file is missing or cannot be read.
        ModelError: it is not a model, or not one to trust; the message names the node or tensor.
    """
    path = Path(path)
    data = _read_bytes(path)
    model = _parse(data, str(path))
    del data
    return _settle(model, str(path), base=path.parent, owned=True)


def check_model(model: ModelProto, *, name: str = "model", base: str | Path | None = None) -> ModelProto:
    """The same checks for a model that is already in memory.

    Args:
        model: left untouched.
        name: what messages call it.
        base: the folder of its external data, if it has any.

    Returns:
        `model` itself, or a copy with the nodes sorted, functions inlined and external data loaded where one
        of these was needed.

    Raises:
        ModelError: the model is not sound; the message names the node or tensor.
    """
    return _settle(model, name, base=None if base is None else Path(base), owned=False)


def _settle(model: ModelProto, label: str, *, base: Path | None, owned: bool) -> ModelProto:
    """Checks and puts right. Without `owned`, a model that must change is copied first."""
    _check_versions(model, label)
    walk = _walk(model, label)
    external = any(t.data_location == TensorProto.EXTERNAL for _, t in walk.tensors)
    if not owned and (model.functions or external):
        return _settle(_copied(model), label, base=base, owned=True)
    if external:
        _load_external(walk.tensors, label, base)
    if model.functions:
        _inline(model, label)
        walk = _walk(model, label)
    orders: list[tuple[GraphProto, list[int]]] = []
    _check_names(model.graph, label, orders, top=True)
    if orders and not owned:
        return _settle(_copied(model), label, base=base, owned=True)
    for graph, order in orders:
        _reorder(graph, order)
    if orders:  # reordering copies nodes: what the walk holds is stale
        walk = _walk(model, label)
    _check_tensors(walk, label)
    _check_nodes(walk, label)
    _check_growth(model, walk, label)
    _check_ports(model.graph, label)
    if len(walk.graphs) > 1:  # nested subgraphs
        _in_child("check", _skeleton(model), label)
    else:
        _run_checker(model, label)
    return model


def _copied(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _read_bytes(path: Path) -> bytes:
    try:
        # O_NONBLOCK: a named pipe must not hang us before fstat says what it is
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
        with open(os.open(path, flags), "rb") as file:
            info = os.fstat(file.fileno())
            if stat.S_ISDIR(info.st_mode):
                raise FileError(one_line(f"{path}: is a folder; name the .onnx file in it"))
            if not stat.S_ISREG(info.st_mode):
                raise FileError(one_line(f"{path}: is not a regular file; copy the model to one first"))
            if info.st_size >= 2**31:
                _bad(
                    str(path),
                    f"{info.st_size:,} bytes, but protobuf stops at 2 GB; save it with external data",
                )
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise FileError(one_line(f"{path}: cannot be read: {reason}; check the path")) from error


# What else gets called .onnx: (how it starts, what it is)
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git-LFS pointer, not the model itself; run `git lfs pull`"),
    (b"<", "an HTML or XML page, not a model; the download failed, fetch the raw file"),
    (b"PK\x03\x04", "a zip archive (a torch checkpoint?), not an ONNX model; export it to ONNX first"),
    (b"\x1f\x8b", "gzip-compressed; unpack it first"),
    (b"\x80\x02", "a Python pickle, not an ONNX model; export it to ONNX first"),
    (b"\x89HDF", "an HDF5 file, not an ONNX model; export it to ONNX first"),
    (b"{", "JSON text, not an ONNX model; give the .onnx file"),
)


def _parse(data: bytes, label: str) -> ModelProto:
    if not data:
        _bad(label, "the file is empty; export or download it again")
    start = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    for magic, what in _SIGNATURES:
        if start.startswith(magic):
            _bad(label, f"is {what}")
    if data[4:8] == b"ORTM":
        _bad(label, "is in ORT format; give the .onnx file that it was made from")
    try:
        model = ModelProto.FromString(data)
    except Exception as error:  # DecodeError, whose home moves between protobuf versions
        raise ModelError(
            one_line(
                f"{label}: cannot be decoded as ONNX: truncated, damaged, or nested too deeply"
                "; export or download it again"
            )
        ) from error
    if not model.HasField("graph"):
        _bad(label, "holds no graph: truncated or not an ONNX model; export or download it again")
    return model


def _check_versions(model: ModelProto, label: str) -> None:
    newest_ir, newest_opset = int(onnx.IR_VERSION), onnx.defs.onnx_opset_version()
    if model.ir_version < 1:
        _bad(label, "has no IR version; it is not a complete ONNX model, export it again")
    if model.ir_version > newest_ir:
        _bad(
            label,
            f"IR version {model.ir_version}, but onnx {onnx.__version__} reads up to {newest_ir}"
            "; upgrade onnx or export for an older one",
        )
    if not model.opset_import:
        _bad(label, "declares no opset; it is not a complete ONNX model, export it again")
    opset = 0
    for entry in model.opset_import:
        if entry.domain not in ("", "ai.onnx"):
            continue
        opset = entry.version
        if opset < 1:
            _bad(label, f"declares opset {opset}; export it again")
        if opset > newest_opset:
            _bad(
                label,
                f"opset {opset}, but onnx {onnx.__version__} knows up to {newest_opset}"
                "; upgrade onnx or export for an older opset",
            )
    if model.ir_version > _SAFE_IR or opset > _SAFE_OPSET:
        from onnxprune import runtime  # only here: an ordinary model loads without ONNX Runtime

        refusal = runtime.refusal(model.ir_version, max(opset, 1))
        if refusal:
            _bad(
                label,
                f"onnxruntime does not run IR version {model.ir_version}, opset {opset}: {refusal}"
                "; upgrade onnxruntime or export for an older opset",
            )


@dataclass
class _Walk:
    """Everything in a model, seen once. Subgraphs follow the graph they are in."""

    graphs: list[GraphProto] = field(default_factory=list)
    nodes: list[NodeProto] = field(default_factory=list)
    tensors: list[tuple[str, TensorProto]] = field(default_factory=list)  # the name it goes by, the tensor


def _walk(model: ModelProto, label: str) -> _Walk:
    """Walks graphs, subgraphs and functions without recursion; stops at the caps."""
    walk = _Walk()
    todo: list[tuple[GraphProto | onnx.FunctionProto, int]] = [(model.graph, 0)]
    todo += [(function, 0) for function in model.functions]
    while todo:
        body, depth = todo.pop()
        if depth > MAX_DEPTH:
            _bad(label, f"subgraphs are nested more than {MAX_DEPTH} deep; simplify the model first")
        if isinstance(body, GraphProto):
            walk.graphs.append(body)
            walk.tensors.extend((t.name, t) for t in body.initializer)
            for sparse in body.sparse_initializer:
                walk.tensors.append((sparse.values.name, sparse.values))
                walk.tensors.append((f"indices of {sparse.values.name}", sparse.indices))
        walk.nodes.extend(body.node)
        if len(walk.nodes) > MAX_NODES:
            _bad(label, f"has more than {MAX_NODES:,} nodes; simplify the model first")
        for node in body.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    todo.append((attribute.g, depth + 1))
                elif attribute.HasField("t"):
                    walk.tensors.append((node.output[0] if node.output else node.name, attribute.t))
                elif attribute.type in _RARE_ATTRIBUTES:
                    todo.extend((graph, depth + 1) for graph in attribute.graphs)
                    walk.tensors.extend((node.name, t) for t in attribute.tensors)
    return walk


_RARE_ATTRIBUTES = {AttributeProto.GRAPHS, AttributeProto.TENSORS}


# ---------------------------------------------------------------------------------------- external data


def _load_external(tensors: list[tuple[str, TensorProto]], label: str, base: Path | None) -> None:
    """Moves external data into `raw_data`; nothing outside `base` is ever opened."""
    with contextlib.ExitStack() as stack:
        opened: dict[str, tuple[int, int]] = {}  # location → descriptor, size
        claimed: dict[str, int] = {}
        for name, tensor in tensors:
            if tensor.data_location != TensorProto.EXTERNAL:
                continue
            if base is None:
                _bad(label, f"tensor {name!r} is still in an external file; load it before, or pass its folder")
            entries = {e.key: e.value for e in tensor.external_data}
            location = entries.get("location", "")
            trouble = _shape_trouble(tensor)
            if trouble:
                _bad(label, f"tensor {name!r} {trouble}; export the model again")
            if tensor.data_type == TensorProto.STRING:
                _bad(label, f"tensor {name!r} holds strings in an external file; export the model again")
            if location not in opened:
                fd = _open_external(base, location, name, label)
                stack.callback(os.close, fd)
                opened[location] = fd, os.fstat(fd).st_size
            fd, size = opened[location]
            need = _nbytes(tensor)
            offset = _whole(entries.get("offset", "0"), "offset", name, label)
            length = _whole(entries.get("length", str(need)), "length", name, label)
            if offset + length > size:
                _bad(
                    label,
                    f"tensor {name!r} wants bytes {offset} to {offset + length} of external file {location!r}"
                    f", which has {size}; fetch the whole file",
                )
            if length != need:
                _bad(
                    label,
                    f"tensor {name!r} of {_shape(tensor)} takes {need} bytes, its external data has {length}"
                    "; export the model again",
                )
            claimed[location] = claimed.get(location, 0) + need
            if claimed[location] > 4 * size + 2**26:  # many tensors over the same bytes: a bomb
                _bad(label, f"external file {location!r} is read over and over; export the model again")
            tensor.raw_data = _pread(fd, need, offset)
            tensor.ClearField("data_location")
            del tensor.external_data[:]


def _open_external(base: Path, location: str, name: str, label: str) -> int:
    """A descriptor of a plain file inside `base`: no link, no other way out."""
    where = f"tensor {name!r} has its data at {location!r}"
    # A PureWindowsPath splits at both kinds of slash and knows drives: refuse on every system what is
    # wrong on any.
    parts = PureWindowsPath(location).parts if isinstance(location, str) else ()
    if not parts or "\0" in location:
        _bad(label, f"tensor {name!r} names no external file; export the model again")
    if PureWindowsPath(location).anchor or location.startswith("/"):
        _bad(label, f"{where}, an absolute path; put the file beside the model and export again")
    if ".." in parts:
        _bad(label, f"{where}, outside the model's folder; put the file beside the model and export again")
    spot = base
    try:
        for part in parts:
            spot = spot / part
            if stat.S_ISLNK(os.lstat(spot).st_mode):
                _bad(label, f"{where}, through a symbolic link; put the file itself beside the model")
        flags = os.O_RDONLY
        for extra in ("O_BINARY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
            flags |= getattr(os, extra, 0)
        before = os.lstat(spot)
        if not stat.S_ISREG(before.st_mode):  # asked before opening: opening a device can already act
            _bad(label, f"{where}, which is not a regular file; put the data file beside the model")
        fd = os.open(spot, flags)
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"fails: {error.strerror}"
        raise ModelError(one_line(f"{label}: {where}, and that file {reason}; keep it beside the model")) from error
    info = os.fstat(fd)
    trouble = ""
    if not stat.S_ISREG(info.st_mode) or (info.st_ino, info.st_dev) != (before.st_ino, before.st_dev):
        trouble = "which is not a regular file; put the data file beside the model"
    elif info.st_nlink > 1:
        trouble = "a hard link to a file with another name; copy the file instead"
    if trouble:
        os.close(fd)
        _bad(label, f"{where}, {trouble}")
    return fd


def _whole(text: str, what: str, name: str, label: str) -> int:
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,19}", text):
        _bad(label, f"tensor {name!r} has external {what} {text[:40]!r}; export the model again")
    return int(text)


def _pread(fd: int, size: int, offset: int) -> bytes:
    """Bytes [offset, offset + size), in as many reads as the system wants."""
    os.lseek(fd, offset, os.SEEK_SET)
    chunks, left = [], size
    while left:
        chunk = os.read(fd, min(left, 2**30))
        if not chunk:
            raise FileError("an external data file shrank while it was read; try again")
        chunks.append(chunk)
        left -= len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def external_files(path: str | Path) -> tuple[Path, ...]:
    """The external data files that the model file `path` names; nothing when it cannot be parsed."""
    path = Path(path)
    try:
        if not _holds(path, b"location"):  # the key of every entry: parsing a large model to find none is dear
            return ()
        walk = _walk(_parse(_read_bytes(path), str(path)), str(path))
    except (ModelError, FileError):
        return ()
    names = {
        entry.value
        for _, tensor in walk.tensors
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(path.parent / name for name in sorted(names, key=str) if isinstance(name, str) and "\0" not in name)


def _holds(path: Path, text: bytes) -> bool:
    """Whether `text` stands anywhere in a regular file."""
    try:
        told = os.stat(path)
        return stat.S_ISREG(told.st_mode) and _found(path, text, told.st_ino, told.st_size, told.st_mtime_ns)
    except OSError:
        return False


@lru_cache(maxsize=64)
def _found(path: Path, text: bytes, *_state: int) -> bool:
    """`_holds`, looked up once as long as the file's state is the same."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(text) >= 0
    except (OSError, ValueError):  # ValueError: an empty file, or a null character in the name
        return False


# --------------------------------------------------------------------------------------------- tensors


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


_BITS = _element_bits()
_EXACT_FLOATS: dict[int, str] = {
    TensorProto.FLOAT: "<f4",
    TensorProto.DOUBLE: "<f8",
    TensorProto.FLOAT16: "<f2",
}
_SMALL_FLOATS = {
    number
    for name, number in TensorProto.DataType.items()
    if name.startswith(("FLOAT", "BFLOAT")) and number not in _EXACT_FLOATS and _BITS[number] >= 8
}


def _shape(tensor: TensorProto) -> str:
    return f"shape {list(tensor.dims)}"


def _shape_trouble(tensor: TensorProto) -> str | None:
    """What is wrong with type and dims, or None."""
    dims = list(tensor.dims)
    if tensor.data_type not in _BITS and tensor.data_type != TensorProto.STRING:
        return f"has the unknown data type {tensor.data_type}"
    for dim in dims:
        if dim < 0:
            return f"has a negative dimension in {_shape(tensor)}"
        if dim > MAX_DIM:
            return f"has a dimension above {MAX_DIM} in {_shape(tensor)}"
    if math.prod(d for d in dims if d) * 16 > 2**63:
        return f"has {_shape(tensor)}, whose size overflows"
    return None


def _nbytes(tensor: TensorProto) -> int:
    return -(-math.prod(tensor.dims) * _BITS[tensor.data_type] // 8)


def _length_trouble(tensor: TensorProto, raw: bytes | None) -> str | None:
    """What is wrong with the amount of data, or None."""
    count = math.prod(tensor.dims)
    if raw is not None:
        if tensor.data_type == TensorProto.STRING:
            return "holds strings as raw data"
        need = _nbytes(tensor)
        if len(raw) != need:
            return f"has {len(raw)} bytes of data, but {_shape(tensor)} takes {need}"
        return None
    have = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type)))
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        allowed = {2 * count}
    elif _BITS.get(tensor.data_type, 8) < 8:  # packed, by some writers only
        allowed = {count, -(-count * _BITS[tensor.data_type] // 8)}
    else:
        allowed = {count}
    if have not in allowed:
        return f"has {have} values, but {_shape(tensor)} takes {count}"
    return None


def _unusual(tensor: TensorProto, raw: bytes | None) -> np.ndarray | None:
    """The tensor as floats if any is NaN or infinite, else None."""
    kind = tensor.data_type
    if kind in _EXACT_FLOATS and raw is not None:
        values = np.frombuffer(raw, _EXACT_FLOATS[kind])
    elif kind in _EXACT_FLOATS or kind in _SMALL_FLOATS:
        values = onnx.numpy_helper.to_array(tensor).astype(np.float64)
    else:
        return None
    return None if np.isfinite(values).all() else values


# Where an infinity has a meaning: a bound, a mask, a padding. Anywhere else it is a broken weight.
_BOUNDS = frozenset(
    "Where Clip Max Min Pad Expand Cast CastLike Identity Concat If Loop Equal Less Greater LessOrEqual"
    " GreaterOrEqual Unsqueeze Squeeze Reshape Tile ScatterND ScatterElements ConstantOfShape IsInf Slice"
    " Gather Shape".split()
)


def _check_tensors(walk: _Walk, label: str) -> None:
    strange: dict[str, np.ndarray] = {}
    for name, tensor in walk.tensors:
        raw = tensor.raw_data if tensor.HasField("raw_data") else None
        trouble = _shape_trouble(tensor) or _length_trouble(tensor, raw)
        if trouble:
            _bad(label, f"tensor {name!r} {trouble}; export or download the model again")
        try:
            values = _unusual(tensor, raw)
        except (ValueError, TypeError, OverflowError) as error:
            _bad(label, f"tensor {name!r} cannot be read: {_first(error)}; export the model again")
        if values is not None:
            if np.isnan(values).any():
                _bad(label, f"tensor {name!r} has NaN; train or export the model again")
            strange[name] = values
    for graph in walk.graphs:
        for sparse in graph.sparse_initializer:
            size = math.prod(sparse.dims) * 8
            if any(d < 0 or d > MAX_DIM for d in sparse.dims) or size > MAX_GROWN:
                _bad(
                    label,
                    f"sparse tensor {sparse.values.name!r} has shape {list(sparse.dims)}; export it dense",
                )
    if not strange:
        return
    for node in walk.nodes:
        for name in node.input:
            if name in strange and not _is_bound(node.op_type, strange[name]):
                _bad(
                    label,
                    f"tensor {name!r}, read by {_called(node)}, has Inf; train or export the model again",
                )


def _is_bound(op_type: str, values: np.ndarray) -> bool:
    if op_type in ("Add", "Sub"):  # an attention mask: nothing but zeros and infinities
        return bool(np.all(np.isinf(values) | (values == 0)))
    return op_type in _BOUNDS


# ----------------------------------------------------------------------------------------------- names


def _check_names(
    graph: GraphProto, label: str, orders: list[tuple[GraphProto, list[int]]], *, top: bool = False
) -> dict[str, str]:
    """Every name defined once and before it is read, here and in the subgraphs.

    Args:
        graph: the graph; recursion is as deep as its subgraphs, which `_walk` has capped.
        label: what messages call the model.
        orders: receives (graph, node indices) for each graph whose nodes must be sorted.
        top: whether this is the outermost graph, where no name can come from outside.

    Returns:
        The names taken from outer graphs, each with the node that reads it.
    """
    given: set[str] = set()
    for port in graph.input:
        if port.name in given:
            _bad(label, f"input {port.name!r} is declared twice; rename one")
        given.add(port.name)
    stored: set[str] = set()
    for name in [t.name for t in graph.initializer] + [s.values.name for s in graph.sparse_initializer]:
        if not name:
            _bad(label, "an initializer has no name; export the model again")
        if name in stored:
            _bad(label, f"initializer {name!r} is stored twice; remove one")
        stored.add(name)
    given |= stored

    nodes = list(graph.node)
    maker: dict[str, int] = {}  # output → index of its node
    reads: list[list[str]] = []
    for index, node in enumerate(nodes):
        if not all(isinstance(text, str) for text in (node.name, node.op_type, node.domain, *node.input)):
            _bad(label, f"{_called(node)} has a name that is not UTF-8 text; export the model again")
        for name in node.output:
            if not name:
                continue
            if name in maker or name in given:
                other = _called(nodes[maker[name]]) if name in maker else "an input or initializer"
                _bad(label, f"output {name!r} of {_called(node)} is also made by {other}; rename one")
            maker[name] = index
        names = [name for name in node.input if name]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                names += _check_names(attribute.g, label, orders)
            elif attribute.type == AttributeProto.GRAPHS:
                for inner in attribute.graphs:
                    names += _check_names(inner, label, orders)
        reads.append(names)

    # protobuf hands over text that is not UTF-8 as bytes
    odd = next((name for name in (*given, *maker) if not isinstance(name, str)), None)
    if odd is not None:
        _bad(label, f"the name {odd!r} is not UTF-8 text; export the model again")
    outer: dict[str, str] = {}
    done = set(given)
    sorted_already = True
    for node, names in zip(nodes, reads, strict=True):
        for name in names:
            if name in done:
                continue
            if name in maker:
                sorted_already = False
            else:
                if top:
                    _bad(
                        label,
                        f"{_called(node)} reads {name!r}, which no node, input or initializer defines"
                        "; the model is incomplete, export it again",
                    )
                outer.setdefault(name, _called(node))
        done.update(node.output)
    for port in graph.output:
        if port.name not in done:
            if top:
                _bad(
                    label,
                    f"output {port.name!r} is made by no node; the model is incomplete, export it again",
                )
            outer.setdefault(port.name, "an output")
    if not sorted_already:
        orders.append((graph, _sorted(nodes, reads, maker, label)))
    return outer


def _sorted(nodes: list[NodeProto], reads: list[list[str]], maker: dict[str, int], label: str) -> list[int]:
    """Node indices in topological order, always the lowest index that may go next (Kahn's algorithm)."""
    waits = [{maker[name] for name in names if name in maker} for names in reads]
    frees: list[list[int]] = [[] for _ in nodes]
    for index, needed in enumerate(waits):
        for other in needed:
            frees[other].append(index)
    missing = [len(needed) for needed in waits]
    ready = [index for index, count in enumerate(missing) if not count]  # ascending: already a heap
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for other in frees[index]:
            missing[other] -= 1
            if not missing[other]:
                heapq.heappush(ready, other)
    if len(order) < len(nodes):
        placed = set(order)
        at = next(index for index in range(len(nodes)) if index not in placed)
        seen: list[int] = []
        while at not in seen:  # a node that cannot go waits for another such node: follow until it repeats
            seen.append(at)
            at = min(waits[at] - placed)
        around = seen[seen.index(at) :]
        names = ", ".join(_called(nodes[i]) for i in around[:3]) + (", …" if len(around) > 3 else "")
        _bad(label, f"the graph has a cycle through {names}; export the model again")
    return order


def _reorder(graph: GraphProto, order: list[int]) -> None:
    shelf = GraphProto()
    shelf.node.extend([graph.node[index] for index in order])
    del graph.node[:]
    graph.node.extend(shelf.node)


# ----------------------------------------------------------------------------------------------- nodes

_WEIGHT_AT = {"Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3, "DeformConv": 1}
_WINDOWED = frozenset(_WEIGHT_AT) | {"MaxPool", "AveragePool", "LpPool", "MaxUnpool"}


def _check_nodes(walk: _Walk, label: str) -> None:
    """Strides, groups and kernels that no runtime survives."""
    stored: dict[str, list[int]] = {}
    for name, tensor in walk.tensors:
        stored.setdefault(name, list(tensor.dims))
    for node in walk.nodes:
        if node.op_type in ("Gemm", "MatMul"):
            if len(node.input) > 1 and 0 in stored.get(node.input[1], ()):
                _bad(label, f"{_called(node)} has an empty weight {node.input[1]!r}; export the model again")
            continue
        if node.op_type not in _WINDOWED:
            continue
        group = 1
        for attribute in node.attribute:
            if attribute.name in ("strides", "dilations", "kernel_shape") and min(attribute.ints, default=1) < 1:
                _bad(
                    label,
                    f"{_called(node)} has {attribute.name} {list(attribute.ints)}; each must be at least 1",
                )
            if attribute.name == "group":
                group = attribute.i
                if group < 1:
                    _bad(label, f"{_called(node)} has group {group}; it must be at least 1")
        at = _WEIGHT_AT.get(node.op_type)
        if at is None or len(node.input) <= at or node.input[at] not in stored:
            continue
        dims = stored[node.input[at]]
        if 0 in dims:
            _bad(
                label,
                f"{_called(node)} has a weight {node.input[at]!r} of shape {dims}, with zero channels"
                "; export the model again",
            )
        if dims and dims[0] % group:
            _bad(
                label,
                f"{_called(node)} splits {dims[0]} channels of weight {node.input[at]!r} into {group} groups"
                "; they do not divide, export the model again",
            )


def _check_ports(graph: GraphProto, label: str) -> None:
    """Graph inputs whose fixed dimensions no array can have. A dimension of -1 means dynamic (Paddle)."""
    for port in graph.input:
        dims = [d.dim_value for d in port.type.tensor_type.shape.dim if d.HasField("dim_value")]
        if any(d > MAX_DIM for d in dims) or math.prod(d for d in dims if d > 0) * 16 > 2**63:
            _bad(label, f"input {port.name!r} has the impossible shape {dims}; export the model again")


# ---------------------------------------------------------------------------------------------- growth


def _check_growth(model: ModelProto, walk: _Walk, label: str) -> None:
    """Constants that a few bytes blow up to gigabytes: ConstantOfShape, Expand, Tile and Range.

    Where the size is written in the model, it is read there; where it is computed from constants, the
    computation runs in a child process.
    """
    growers = [n for n in walk.nodes if n.op_type in _GROWN and n.domain in ("", "ai.onnx")]
    if not growers:
        return
    known = _small_constants(walk)
    hidden = []
    for node in growers:
        size = _GROWN[node.op_type](node, known)
        if size is None:
            hidden.append(node)
        elif size > MAX_GROWN:
            _bad(label, f"{_called(node)} would make a tensor of {size:,} bytes; the model cannot be run")
    if hidden:
        part = _constant_part(model, {id(n) for n in hidden})
        if part is not None:
            _in_child("run", part, label)


def _small_constants(walk: _Walk) -> dict[str, np.ndarray]:
    """Stored tensors of at most 64 elements, as arrays, by name."""
    known = {}
    for name, tensor in walk.tensors:
        if math.prod(tensor.dims) <= 64 and tensor.data_type != TensorProto.STRING:
            with contextlib.suppress(ValueError, TypeError, OverflowError):  # then its value is not known
                known[name] = onnx.numpy_helper.to_array(tensor)
    for node in walk.nodes:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name in ("value_int", "value_ints"):
                    value = attribute.i if attribute.name == "value_int" else list(attribute.ints)
                    known[node.output[0]] = np.asarray(value, np.int64)
    return known


def _size_of_fill(node: NodeProto, known: dict[str, np.ndarray]) -> int | None:
    shape = known.get(node.input[0]) if node.input else None
    if shape is None:
        return None
    item = next((-(-_BITS.get(a.t.data_type, 32) // 8) for a in node.attribute if a.name == "value"), 4)
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
        return MAX_GROWN + 1
    steps = (limit - start) / delta
    return min(int(max(steps, 0.0)), 2**62) * 8 if math.isfinite(steps) else MAX_GROWN + 1


_GROWN: dict[str, Callable[[NodeProto, dict[str, np.ndarray]], int | None]] = {
    "ConstantOfShape": _size_of_fill,
    "Expand": _size_of_expand,
    "Tile": _size_of_tile,
    "Range": _size_of_range,
}


def _constant_part(model: ModelProto, wanted: set[int]) -> ModelProto | None:
    """The part of the outermost graph that needs no input and feeds a node in `wanted` (ids), or None."""
    graph = model.graph
    ports = {port.name for port in graph.input}
    stored = {t.name: t for t in graph.initializer if t.name not in ports}
    constant: dict[str, NodeProto] = {}
    targets: list[NodeProto] = []
    for node in graph.node:  # sorted by now
        plain = node.domain in ("", "ai.onnx") and not any(a.HasField("g") for a in node.attribute)
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


# ----------------------------------------------------------------------- functions, checker and the child


def _inline(model: ModelProto, label: str) -> None:
    """Replaces calls of local functions by their bodies, in place."""
    bodies = {(f.domain, f.name): f for f in model.functions}
    size: dict[tuple[str, str], int] = {}
    active: set[tuple[str, str]] = set()
    # How many nodes will there be? Counted without expanding: a short chain of functions, each calling the
    # one before twice, doubles with every link.
    todo = [(key, False) for key in bodies]
    while todo:
        key, leaving = todo.pop()
        if leaving:
            size[key] = sum(size.get((n.domain, n.op_type), 1) for n in _flat_nodes(bodies[key]))
            active.discard(key)
            if size[key] > MAX_NODES:
                _bad(label, f"function {key[1]!r} grows to more than {MAX_NODES:,} nodes; simplify the model")
            continue
        if key in size or key in active:
            continue
        active.add(key)
        todo.append((key, True))
        for node in _flat_nodes(bodies[key]):
            called = (node.domain, node.op_type)
            if called in active:
                _bad(label, f"function {key[1]!r} calls {called[1]!r}, which is recursive; export without it")
            if called in bodies and called not in size:
                todo.append((called, False))
    total = sum(size.get((n.domain, n.op_type), 1) for n in _flat_nodes(model.graph))
    if total > MAX_NODES:
        _bad(label, f"its functions grow to more than {MAX_NODES:,} nodes; simplify the model first")
    flat = ModelProto.FromString(_in_child("inline", _skeleton(model), label))
    del model.graph.node[:]
    model.graph.node.extend(flat.graph.node)
    del model.functions[:]
    model.functions.extend(flat.functions)  # those of another opset than the model's cannot be inlined
    have = {entry.domain for entry in model.opset_import}
    model.opset_import.extend(entry for entry in flat.opset_import if entry.domain not in have)


def _flat_nodes(body: GraphProto | onnx.FunctionProto) -> Iterator[NodeProto]:
    todo: list[GraphProto | onnx.FunctionProto] = [body]
    while todo:
        for node in todo.pop().node:
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    todo.append(attribute.g)
                todo.extend(attribute.graphs)


def _skeleton(model: ModelProto) -> ModelProto:
    """The model without its weights: each stored tensor becomes an input of the same shape.

    The checker and the inliner want serialised models; this keeps the weights out of that, and out of the
    child. Ports without a type or shape (which ONNX Runtime accepts) get one.
    """
    graph = model.graph
    bare = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    bare.graph.name = graph.name or "graph"
    bare.graph.node.extend(graph.node)
    bare.graph.input.extend(_with_shape(port) for port in graph.input)
    bare.graph.output.extend(_with_shape(port) for port in graph.output)
    ports = {port.name for port in graph.input}
    stored = [(t.name, t.data_type, t.dims) for t in graph.initializer]
    stored += [(s.values.name, s.values.data_type, s.dims) for s in graph.sparse_initializer]
    for name, kind, dims in stored:
        if name not in ports:
            bare.graph.input.append(helper.make_tensor_value_info(name, kind, list(dims)))
    return bare


def _with_shape(port: ValueInfoProto) -> ValueInfoProto:
    if port.HasField("type") and not port.type.HasField("tensor_type"):
        return port
    if port.type.tensor_type.HasField("shape") and port.type.tensor_type.elem_type:
        return port
    patched = ValueInfoProto()
    patched.CopyFrom(port)
    patched.type.tensor_type.elem_type = port.type.tensor_type.elem_type or TensorProto.FLOAT
    patched.type.tensor_type.shape.SetInParent()
    return patched


def _run_checker(model: ModelProto, label: str) -> None:
    try:
        onnx.checker.check_model(_skeleton(model))
    except Exception as error:
        raise ModelError(one_line(f"{label}: {_first(error)}; export the model again")) from error


def _first(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


_CHILD = r"""
import sys
job, seconds, room = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 1))
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, ValueError, OSError):
    pass
try:
    import onnx
    data = sys.stdin.buffer.read()
    if job == "inline":
        import onnx.inliner
        flat = onnx.inliner.inline_local_functions(onnx.ModelProto.FromString(data))
        sys.stdout.buffer.write(flat.SerializeToString())
    elif job == "check":
        onnx.checker.check_model(data)
        try:
            onnx.shape_inference.infer_shapes(data)
        except MemoryError:
            raise
        except Exception:
            pass  # inference may not know a type; all that counts is that it comes to an end
    else:
        from onnx.reference import ReferenceEvaluator
        try:
            ReferenceEvaluator(onnx.ModelProto.FromString(data)).run(None, {})
        except MemoryError:
            raise
        except Exception as error:
            if "allocate" in str(error):
                raise MemoryError from error
except MemoryError:
    sys.exit(4)
except Exception as error:
    sys.stderr.write(str(error))
    sys.exit(3)
"""
_JOBS = {
    "inline": "inlining its functions",
    "check": "checking its subgraphs",
    "run": "computing its constants",
}


def _in_child(job: str, model: ModelProto, label: str) -> bytes:
    """Does `job` where it can be killed; returns what the child wrote."""
    data = model.SerializeToString()
    room = CHILD_BYTES + 4 * len(data)
    command = [sys.executable, "-P", "-c", _CHILD, job, str(CHILD_SECONDS), str(room)]
    # OpenBLAS maps a large stack per thread, which the cap on addresses would count
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    what = _JOBS[job]
    try:
        done = subprocess.run(
            command, input=data, capture_output=True, timeout=CHILD_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            one_line(f"{label}: {what} took more than {CHILD_SECONDS:g} s; simplify the model first")
        ) from error
    except OSError as error:
        raise FileError(one_line(f"{label}: {what} needs a child process, which failed: {error}")) from error
    if done.returncode == 0:
        return done.stdout
    if done.returncode == 3:
        _bad(label, f"{_first(done.stderr.decode('utf-8', 'replace'))}; export the model again")
    if done.returncode == 4:
        _bad(label, f"{what} took more than {room / 2**30:.1f} GiB of memory; simplify the model first")
    _bad(label, f"{what} crashed (status {done.returncode}); simplify the model first")


# ---------------------------------------------------------------------------------------------- writing


def atomic_write(
    model: ModelProto,
    path: str | Path,
    *,
    force: bool = False,
    sources: Iterable[str | Path] = (),
    verify: Callable[[Path], object] | None = None,
) -> None:
    """Writes `model` to `path`, whole or not at all.

    A reader sees the old file or the new one, also when the process is killed. Above `MAX_PROTOBUF` bytes of
    weights they go to `<stem>-<hash of the content>.data` beside it, which is in place before the model is.

    Args:
        model: written as it is (IR version, opset, metadata); its nodes must pass `check_model`.
        path: the new file.
        force: replace an existing file. A symbolic link is replaced itself, not what it points to.
        sources: files that must never be overwritten, whatever `force` says; also under another name, and
            also the external data files that they name.
        verify: loads the temporary file before it gets its name; whatever it raises stops the writing. None: the
            file is parsed and checked.

    Raises:
        FileError: the path is taken or cannot be written (no space, no permission).
        ModelError: the model is not sound.
    """
    path = Path(path)
    ensure_writable(path, force=force, sources=sources)
    model = check_model(model, name=str(path))
    placed: list[Path] = []
    try:
        if weight_bytes(model) > MAX_PROTOBUF or byte_size(model) >= 2**31:
            model = write_external(model, path.parent, stem=path.stem, placed=placed)
        with _Stage(path, force) as stage:
            stage.write(serialized(model))
            back = _check_written(stage.temporary, model, path)
            if verify is None:
                _check_loads(back, stage.temporary, path)
            else:
                del back
                verify(stage.temporary)
            stage.commit()
    except BaseException:
        # The model may be in place already (an interruption right after), or a second writer's with the same
        # weights: then the data file stays.
        for extra in set(placed) - set(external_files(path)):
            extra.unlink(missing_ok=True)
        raise


def atomic_write_text(text: str, path: str | Path, *, force: bool = False, sources: Iterable[str | Path] = ()) -> None:
    """Writes `text` as UTF-8 to `path`, whole or not at all.

    Args:
        text: line ends are written as they are.
        path: the new file.
        force: replace an existing file.
        sources: files that must never be overwritten, whatever `force` says.

    Raises:
        FileError: the path is taken or cannot be written.
    """
    atomic_write_bytes(text.encode("utf-8", "backslashreplace"), path, force=force, sources=sources)


def atomic_write_bytes(
    data: bytes, path: str | Path, *, force: bool = False, sources: Iterable[str | Path] = ()
) -> None:
    """Writes `data` to `path`, whole or not at all; arguments and errors as for `atomic_write_text`."""
    path = Path(path)
    ensure_writable(path, force=force, sources=sources)
    with _Stage(path, force) as stage:
        stage.write([data])
        stage.commit()


def ensure_writable(path: str | Path, *, force: bool = False, sources: Iterable[str | Path] = ()) -> None:
    """Refuses an output path early, before the work is done.

    Args:
        path: where a file is going to be written.
        force: whether an existing file may be replaced.
        sources: files that must not be overwritten, as in `atomic_write`.

    Raises:
        FileError: the path is a source, a folder, taken, or in a folder that does not exist.
    """
    path = Path(path)
    if "\0" in str(path) or path.name in ("", ".", ".."):
        raise FileError(one_line(f"{path!s}: is not a file name; choose another"))
    taken = os.path.lexists(path)
    for source in map(Path, sources):
        if _same_file(path, source):
            raise FileError(one_line(f"{path}: is the input {source} itself; choose another output"))
        if taken and any(_same_file(path, extra) for extra in external_files(source)):
            raise FileError(one_line(f"{path}: holds the weights of the input {source}; choose another output"))
    if path.is_dir():
        raise FileError(one_line(f"{path}: is a folder; name a file"))
    if taken and not force:
        raise _taken(path)
    if not path.parent.is_dir():
        raise FileError(one_line(f"{path}: there is no folder {path.parent}; create it first"))


def _taken(path: Path) -> FileError:
    return FileError(one_line(f"{path}: exists already; use --force (force=True) to replace it"))


def _same_file(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        if os.path.samefile(one, other):
            return True
    return os.path.realpath(one) == os.path.realpath(other)


class _Stage:
    """A temporary file beside `path`: `write`, then `commit`; leaving the block removes what is left."""

    def __init__(self, path: Path, force: bool) -> None:
        self.path = path
        self.force = force
        self.temporary = path.parent / f".onnxprune-{secrets.token_hex(8)}.tmp"
        self._ours = True

    def __enter__(self) -> _Stage:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._ours:
            with contextlib.suppress(OSError):
                self.temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _write_error(self.path, error) from error

    def write(self, parts: Iterable[bytes]) -> None:
        try:
            file = _create(self.temporary)
        except FileExistsError:
            self._ours = False
            raise
        with file:
            for part in parts:
                file.write(part)
            _flush(file)

    def commit(self) -> None:
        if self.force:
            os.replace(self.temporary, self.path)
        else:
            _claim(self.temporary, self.path)
        _flush_folder(self.path.parent)


def _write_error(path: Path, error: OSError) -> FileError:
    reason = error.strerror or str(error)
    remedy = "check the folder and its permissions"
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", -1), errno.EFBIG):
        remedy = "free some space or choose another folder"
    return FileError(one_line(f"{path}: cannot be written: {reason}; {remedy}"))


def _create(path: Path):  # type: ignore[no-untyped-def]  # a BufferedWriter, which typeshed spells IO[bytes]
    """A new file, never one that is there already, and never through a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    for extra in ("O_NOFOLLOW", "O_BINARY", "O_CLOEXEC"):
        flags |= getattr(os, extra, 0)
    return open(os.open(path, flags, 0o666), "wb")


def _flush(file) -> None:  # type: ignore[no-untyped-def]
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Windows and some network file systems cannot
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK}


def _claim(temporary: Path, path: Path) -> None:
    """Gives the file its name if nobody has it yet: of two writers, one wins and one is told."""
    try:
        if os.name == "nt":
            os.rename(temporary, path)  # on Windows this refuses an existing name
        else:
            os.link(temporary, path)
        return
    except FileExistsError as error:
        raise _taken(path) from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    # A file system without hard links (FAT, some mounts): reserve the name with an empty file, then replace.
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError as error:
        raise _taken(path) from error
    try:
        os.replace(temporary, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _check_written(temporary: Path, written: ModelProto, path: Path) -> bytes:
    """What is on the disk, which must be what was meant."""
    back = temporary.read_bytes()
    at, same = 0, True
    for part in serialized(written):
        same = same and back[at : at + len(part)] == part
        at += len(part)
    if not same or at != len(back):
        raise FileError(one_line(f"{path}: the disk gave back other bytes than were written; check the disk"))
    return back


def _check_loads(back: bytes, temporary: Path, path: Path) -> None:
    """That a file with these bytes is a sound model."""
    model = _parse(back, str(path))
    walk = _walk(model, str(path))
    if any(t.data_location == TensorProto.EXTERNAL for _, t in walk.tensors):
        _load_external(walk.tensors, str(path), temporary.parent)
    if len(walk.graphs) > 1:
        return  # checked a moment ago, in a child
    _run_checker(model, str(path))


def serialized(model: ModelProto) -> Iterator[bytes]:
    """`model.SerializeToString()` in parts: the same bytes, but the weights are never copied all at once.

    protobuf grows one buffer for the whole message and then copies it, which for a large model costs more
    than all checks; here the raw data of every stored tensor are a part of their own. The model must be sound.
    """
    for part in _parts(model):
        yield part.raw_data if isinstance(part, TensorProto) else part


def byte_size(model: ModelProto) -> int:
    """`model.ByteSize()`, which Python's protobuf answers by writing the model out; here from the shapes."""
    return sum(_nbytes(part) if isinstance(part, TensorProto) else len(part) for part in _parts(model))


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
        size = sum(_nbytes(p) if isinstance(p, TensorProto) else len(p) for p in (head, *inside, tail))
        yield _varint(graph << 3 | 2) + _varint(size) + head
        yield from inside
        yield tail
    yield _fields(model, lambda number: number > graph)


def _runs(tensors: Iterable[TensorProto]) -> Iterator[list[TensorProto]]:
    """The tensors, in order: large ones alone, small ones together."""
    run: list[TensorProto] = []
    for tensor in tensors:
        if tensor.data_type in _BITS and _nbytes(tensor) >= LARGE_TENSOR:
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
    size = sum(_nbytes(p) if isinstance(p, TensorProto) else len(p) for p in parts)
    return [_varint(key) + _varint(size), *parts]


LARGE_TENSOR = 1 << 14
_BEFORE_DATA, _AFTER_DATA = ("data_type", "name"), ("doc_string",)
_OTHER_DATA = "external_data float_data int32_data string_data int64_data double_data uint64_data".split()


def _tensor_parts(tensor: TensorProto) -> list[bytes | TensorProto] | None:
    """A tensor, serialised, with itself in the place of its raw data; None when it has none, or more than these."""
    plain = tensor.HasField("raw_data") and tensor.data_type in _BITS
    plain = plain and not (tensor.HasField("segment") or tensor.HasField("data_location"))
    if not plain or any(getattr(tensor, name) for name in _OTHER_DATA):
        return None
    head, tail = TensorProto(dims=tensor.dims), TensorProto(metadata_props=tensor.metadata_props)
    for bare, names in ((head, _BEFORE_DATA), (tail, _AFTER_DATA)):
        for name in names:
            if tensor.HasField(name):
                setattr(bare, name, getattr(tensor, name))
    key = TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number << 3 | 2
    return [head.SerializeToString() + _varint(key) + _varint(_nbytes(tensor)), tensor, tail.SerializeToString()]


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
    _copy_but(message, bare, *left_out)
    return bytes(bare.SerializeToString(deterministic=True))


def weight_bytes(model: ModelProto) -> int:
    """Bytes of the stored tensors of the outermost graph, from their shapes alone."""
    return sum(_nbytes(t) for t in model.graph.initializer if t.data_type != TensorProto.STRING)


def write_external(
    model: ModelProto, folder: str | Path, *, stem: str = "model", placed: list[Path] | None = None
) -> ModelProto:
    """Writes the stored tensors to `<stem>-<hash of the content>.data` and returns the model without them.

    Args:
        model: left untouched.
        folder: where the data file goes, and where the returned model must be saved.
        stem: how the file's name starts.
        placed: receives the data file's path if it was not there before, as soon as it is in place.

    Returns:
        A model whose larger initializers point to the data file.

    Raises:
        FileError: the file cannot be written.
    """
    folder = Path(folder)
    temporary = folder / f".onnxprune-{secrets.token_hex(8)}.tmp"
    light = without_initializers(model)
    digest = hashlib.sha256()
    spots: list[tuple[TensorProto, int, int]] = []
    try:
        with _create(temporary) as file:
            at = 0
            for tensor in model.graph.initializer:
                copy = light.graph.initializer.add()
                if tensor.data_type == TensorProto.STRING or _nbytes(tensor) < EXTERNAL_THRESHOLD:
                    copy.CopyFrom(tensor)
                    continue
                raw = tensor.raw_data
                if not tensor.HasField("raw_data"):
                    raw = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)).raw_data
                for part in (bytes(-at % EXTERNAL_ALIGNMENT), raw):
                    digest.update(part)
                    file.write(part)
                    at += len(part)
                _describe(copy, tensor)
                spots.append((copy, at - len(raw), len(raw)))
            _flush(file)
        path = folder / f"{stem}-{digest.hexdigest()[:16]}.data"
        if placed is not None and not os.path.lexists(path):
            placed.append(path)
        os.replace(temporary, path)  # where the name is taken, the content is the same
        _flush_folder(folder)
    except OSError as error:
        raise _write_error(folder / f"{stem}.data", error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    for tensor, offset, length in spots:
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", path.name), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
    return light


def _describe(copy: TensorProto, tensor: TensorProto) -> None:
    """Everything of a tensor but its data."""
    copy.name, copy.data_type, copy.doc_string = tensor.name, tensor.data_type, tensor.doc_string
    copy.dims.extend(tensor.dims)
    if "metadata_props" in tensor.DESCRIPTOR.fields_by_name:
        copy.metadata_props.extend(tensor.metadata_props)


def without_initializers(model: ModelProto) -> ModelProto:
    """A copy of all but `graph.initializer`, whose weights are never copied."""
    light = ModelProto()
    _copy_but(model, light, "graph")
    _copy_but(model.graph, light.graph, "initializer")
    return light


def _copy_but(message, copy, *left_out: str) -> None:  # type: ignore[no-untyped-def]  # any protobuf message
    for descriptor, value in message.ListFields():
        if descriptor.name in left_out:
            continue
        target = getattr(copy, descriptor.name)
        if hasattr(target, "extend"):
            target.extend(value)
        elif hasattr(target, "CopyFrom"):
            target.CopyFrom(value)
        else:
            setattr(copy, descriptor.name, value)


__all__: Sequence[str] = (
    "atomic_write",
    "atomic_write_text",
    "byte_size",
    "check_model",
    "ensure_writable",
    "external_files",
    "one_line",
    "read_model",
    "serialized",
    "weight_bytes",
    "without_initializers",
    "write_external",
)
