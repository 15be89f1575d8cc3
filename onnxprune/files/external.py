"""External data of a model that is read: only plain files inside the model's folder, and only what they hold."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import stat
from functools import lru_cache
from pathlib import Path, PureWindowsPath

from onnx import TensorProto

from onnxprune.errors import FileError, ModelError, one_line
from onnxprune.files.parse import parse, read_bytes
from onnxprune.files.refuse import refuse
from onnxprune.files.tensors import in_words, shape_trouble
from onnxprune.files.walk import walk_model
from onnxprune.protobuf.serialize import nbytes


def load_external(tensors: list[tuple[str, TensorProto]], label: str, base: Path | None) -> None:
    """Moves external data into `raw_data`; nothing outside `base` is ever opened."""
    with contextlib.ExitStack() as stack:
        opened: dict[str, tuple[int, int]] = {}  # location → descriptor, size
        claimed: dict[str, int] = {}
        for name, tensor in tensors:
            if tensor.data_location != TensorProto.EXTERNAL:
                continue
            if base is None:
                refuse(label, f"tensor {name!r} is still in an external file; load it before, or pass its folder")
            entries = {e.key: e.value for e in tensor.external_data}
            location = entries.get("location", "")
            trouble = shape_trouble(tensor)
            if trouble:
                refuse(label, f"tensor {name!r} {trouble}; export the model again")
            if tensor.data_type == TensorProto.STRING:
                refuse(label, f"tensor {name!r} holds strings in an external file; export the model again")
            if location not in opened:
                fd = _open_external(base, location, name, label)
                stack.callback(os.close, fd)
                opened[location] = fd, os.fstat(fd).st_size
            fd, size = opened[location]
            need = nbytes(tensor)
            offset = _whole(entries.get("offset", "0"), "offset", name, label)
            length = _whole(entries.get("length", str(need)), "length", name, label)
            if offset + length > size:
                refuse(
                    label,
                    f"tensor {name!r} wants bytes {offset} to {offset + length} of external file {location!r}"
                    f", which has {size}; fetch the whole file",
                )
            if length != need:
                refuse(
                    label,
                    f"tensor {name!r} of {in_words(tensor)} takes {need} bytes, its external data has {length}"
                    "; export the model again",
                )
            claimed[location] = claimed.get(location, 0) + need
            if claimed[location] > 4 * size + 2**26:  # many tensors over the same bytes: a bomb
                refuse(label, f"external file {location!r} is read over and over; export the model again")
            if claimed[location] > 4 * _on_disk(fd) + 2**28:  # holes, which read as zeros
                refuse(label, f"external file {location!r} is nearly empty, {size:,} bytes of holes; fetch it again")
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
        refuse(label, f"tensor {name!r} names no external file; export the model again")
    if PureWindowsPath(location).anchor or location.startswith("/"):
        refuse(label, f"{where}, an absolute path; put the file beside the model and export again")
    if ".." in parts:
        refuse(label, f"{where}, outside the model's folder; put the file beside the model and export again")
    spot = base
    try:
        for part in parts:
            spot = spot / part
            if stat.S_ISLNK(os.lstat(spot).st_mode):
                refuse(label, f"{where}, through a symbolic link; put the file itself beside the model")
        flags = os.O_RDONLY
        for extra in ("O_BINARY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
            flags |= getattr(os, extra, 0)
        before = os.lstat(spot)
        if not stat.S_ISREG(before.st_mode):  # asked before opening: opening a device can already act
            refuse(label, f"{where}, which is not a regular file; put the data file beside the model")
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
        refuse(label, f"{where}, {trouble}")
    return fd


def _on_disk(fd: int) -> int:
    """Bytes that a file takes, holes left out."""
    info = os.fstat(fd)
    return 512 * getattr(info, "st_blocks", info.st_size // 512)


def _whole(text: str, what: str, name: str, label: str) -> int:
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,19}", text):
        refuse(label, f"tensor {name!r} has external {what} {text[:40]!r}; export the model again")
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
        if not holds(path, b"location"):  # the key of every entry: parsing a large model to find none is dear
            return ()
        walk = walk_model(parse(read_bytes(path), str(path)), str(path))
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


def holds(path: Path, text: bytes) -> bool:
    """Whether `text` stands anywhere in a regular file."""
    try:
        info = os.stat(path)
        return stat.S_ISREG(info.st_mode) and _found(path, text, info.st_ino, info.st_size, info.st_mtime_ns)
    except OSError:
        return False


@lru_cache(maxsize=64)
def _found(path: Path, text: bytes, *_state: int) -> bool:
    """`holds`, looked up once as long as the file's state is the same."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(text) >= 0
    except (OSError, ValueError):  # ValueError: an empty file, or a null character in the name
        return False
