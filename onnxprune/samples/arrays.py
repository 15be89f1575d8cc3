"""Samples out of numpy's files, ONNX tensors and whatever gives arrays, with bounds on what is read and kept.

Headers and sizes are checked against a cap before a byte of data is read, nothing is ever unpickled, and the name of
an archive member is a key, never a path. Data that lies in a file as it is gets mapped; what must be copied is held in
memory up to `MEMORY_BYTES` and in a temporary file without a name above.
"""

from __future__ import annotations

import io
import math
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnxprune.errors import CalibrationError
from onnxprune.samples.layout import Entry, Layout, Lazy, held
from onnxprune.samples.messages import line, no_room, saying, shape_text, shown
from onnxprune.samples.reading import Reading

MEMORY_BYTES = 256 << 20  # unpacked samples above this go to a temporary file
HEADER_BYTES = 1 << 16  # numpy writes 128 bytes; a header may claim 4 GiB


def npz(reading: Reading, path: Path) -> Entry:
    """The members of an archive that are inputs of the model; the others are not opened."""
    name = shown(path)
    with saying(name), path.open("rb") as file:
        _check_pointer(name, file.read(8))
    with saying(name), zipfile.ZipFile(path) as archive:
        members: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            key = info.filename.removesuffix(".npy")
            if key in members:
                raise CalibrationError(f"{name}: two members are named {key!r}; save it again")
            members[key] = info
        chosen = reading.keyed(name, members)
        return reading.layout.entry(name, {key: _member(reading, path, archive, key, chosen[key]) for key in chosen})


def member(path: Path, names: Sequence[str], max_bytes: int) -> np.ndarray | None:
    """What an archive holds under the first of the names that it has; None where it has none of them.

    Raises:
        CalibrationError: it is no archive, or that member is damaged, pickled, or larger than `max_bytes`.
    """
    reading = Reading(Layout(()), None, None, max_bytes)
    with saying(shown(path)), zipfile.ZipFile(path) as archive:
        held = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        name = next((n for n in names if n in held), None)
        return None if name is None else _member(reading, path, archive, name, held[name]).load()


def _member(reading: Reading, path: Path, archive: zipfile.ZipFile, key: str, info: zipfile.ZipInfo) -> Lazy:
    where = f"{shown(path)}: input {key!r}"
    stored = info.compress_type == zipfile.ZIP_STORED
    if not stored and info.file_size > reading.max_bytes:
        raise CalibrationError(
            f"{where} unpacks to {info.file_size:,} bytes, the cap is {reading.max_bytes:,};"
            " use fewer samples, or np.savez, which does not compress"
        )
    with archive.open(info) as file:
        header = _read_header(where, file, info.file_size)
    if stored:  # its bytes lie in the archive as they are: map them
        with path.open("rb") as raw:
            raw.seek(info.header_offset)
            local = raw.read(30)
        start = info.header_offset + 30 + sum(struct.unpack("<HH", local[26:30])) + header.start
        if start + header.bytes > path.stat().st_size:
            raise CalibrationError(f"{where}: the archive is cut short; copy it again")
        whole = reading.limit is None or not header.shape or header.shape[0] <= reading.limit
        check = partial(_check_sum, where, path, info, start - header.start) if whole else lambda: None
        return Lazy(header.shape, header.dtype, cache(partial(_mapped, header, path, start, check)))
    shape = header.shape
    if (
        reading.limit is not None
        and key in reading.layout.batched
        and not reading.layout.axes[key]
        and len(shape) == len(reading.layout.inputs[key].shape)
        and not header.fortran
    ):
        shape = (min(shape[0], reading.limit), *shape[1:])  # unpack no rows beyond the limit
    return Lazy(shape, header.dtype, cache(partial(_unpack, where, path, info, header, shape)))


def _mapped(header: _Header, path: Path, start: int, check: Callable[[], None]) -> np.ndarray:
    check()
    return header.map(path, start)


def _check_sum(where: str, path: Path, info: zipfile.ZipInfo, start: int) -> None:
    """Hold the bytes of a stored member, which is mapped, against its checksum."""
    found, left = 0, info.file_size
    with saying(where), path.open("rb") as file:
        file.seek(start)
        while left and (piece := file.read(min(left, 1 << 24))):
            found, left = zlib.crc32(piece, found), left - len(piece)
    if left or found != info.CRC:
        raise CalibrationError(f"{where}: its checksum is not that of the archive; copy it again")


def npy(reading: Reading, path: Path) -> Entry:
    """The one array of a file, mapped."""
    name = shown(path)
    key = reading.single(name)
    with saying(name), path.open("rb") as file:
        header = _read_header(name, file, path.stat().st_size)
    lazy = Lazy(header.shape, header.dtype, partial(header.map, path, header.start))
    return reading.layout.entry(name, {key: lazy})


def test_data_set(reading: Reading, folder: Path) -> Entry:
    """`input_0.pb` and so on, as ONNX's own tests hold them: one tensor an input, in the model's order."""
    arrays = {}
    for index, key in enumerate(reading.layout.inputs):
        path = folder / f"input_{index}.pb"
        if key in reading.layout.values and not path.exists():
            continue
        # Read again when a batch needs it: a thousand sets are not held in memory.
        arrays[key] = replace(held(_tensor(reading, path)), load=partial(_tensor, reading, path))
    return reading.layout.entry(shown(folder), arrays)


def _tensor(reading: Reading, path: Path) -> np.ndarray:
    import onnx

    name = shown(path)
    with saying(name):
        if path.stat().st_size > reading.max_bytes:
            raise CalibrationError(f"{name}: {path.stat().st_size:,} bytes, the cap is {reading.max_bytes:,}")
        tensor = onnx.TensorProto()
        tensor.ParseFromString(path.read_bytes())
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise CalibrationError(f"{name}: its data lies in another file; save it within")
        if any(dim < 0 for dim in tensor.dims):
            raise CalibrationError(f"{name}: a negative dimension; save it again")
        return onnx.numpy_helper.to_array(tensor)


def copies(reading: Reading, source: Iterable[Any]) -> list[Entry]:
    """Copies of all items: a generator cannot be read twice, and readers reuse their buffers."""
    store = _Store()

    def entries() -> Iterator[Entry]:
        for i, item in enumerate(source):
            entry = reading.item(f"{reading.title}: item {i}", item)
            kept = {key: store.keep(array) for key, array in entry.load().items()}
            if store.size > reading.max_bytes:
                raise CalibrationError(f"{entry.name}: over {reading.max_bytes:,} bytes by now; set a limit")
            yield replace(entry, arrays=kept)

    with saying(reading.title):
        taken = reading.enough(entries())
    store.seal()
    return taken


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    start: int  # bytes before the data

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def map(self, path: Path, start: int) -> np.ndarray:
        with saying(shown(path)):
            if not self.bytes:  # an empty map is an error
                return np.empty(self.shape, self.dtype)
            data = np.memmap(path, np.uint8, mode="r", offset=start, shape=(self.bytes,))
            return self.view(self.shape, data)

    def view(self, shape: tuple[int, ...], data: Any) -> np.ndarray:
        return np.ndarray(shape, self.dtype, data, order="F" if self.fortran else "C")


def _read_header(where: str, file: IO[bytes], size: int) -> _Header:
    """The header of an .npy of `size` bytes; its shape has been held against the size, no data is read."""
    magic = file.read(8)
    _check_pointer(where, magic)
    if len(magic) < 8 or not magic.startswith(b"\x93NUMPY"):
        raise CalibrationError(f"{where}: not an .npy array; save it with np.save or np.savez")
    wide = magic[6] > 1
    length = int.from_bytes(file.read(4 if wide else 2), "little")
    if length > HEADER_BYTES or magic[6] > 2:
        raise CalibrationError(f"{where}: a header of {length:,} bytes, format {magic[6]}; save plain numbers")
    text = file.read(length)
    start = 8 + (4 if wide else 2) + length
    read = np.lib.format.read_array_header_2_0 if wide else np.lib.format.read_array_header_1_0
    try:
        shape, fortran, dtype = read(io.BytesIO(length.to_bytes(4 if wide else 2, "little") + text))
    except Exception as error:  # the header is a literal that numpy evaluates: many ways to be wrong
        raise CalibrationError(f"{where}: not a header of an .npy array: {line(error)}") from error
    header = _Header(shape, dtype, fortran, start)
    if dtype.hasobject:
        raise CalibrationError(f"{where} holds pickled Python objects, which are never loaded; save plain numbers")
    if min(shape, default=1) < 0 or header.bytes > size - start:
        raise CalibrationError(
            f"{where}: the header says {shape_text(shape)} {dtype}, {header.bytes:,} bytes, but"
            f" {size - start:,} are there; save it again"
        )
    return header


def _check_pointer(where: str, lead: bytes) -> None:
    if lead == b"version ":
        raise CalibrationError(f"{where}: a Git LFS pointer, not the data; run git lfs pull")


def _unpack(where: str, path: Path, info: zipfile.ZipInfo, header: _Header, shape: tuple[int, ...]) -> np.ndarray:
    """The first rows of a compressed member, in memory or, where they are many, in a temporary file."""
    left = math.prod(shape) * header.dtype.itemsize
    store = _Store()
    with saying(where), zipfile.ZipFile(path) as archive, archive.open(info) as file:
        file.read(header.start)
        if left <= MEMORY_BYTES:
            data = file.read(left)
            if len(data) < left:
                raise EOFError("the data is cut short")
            return header.view(shape, data)
        while left:
            chunk = file.read(min(left, 1 << 24))
            if not chunk:
                raise EOFError("the data is cut short")
            store.spill(chunk)
            left -= len(chunk)
    store.seal()
    return header.view(shape, store.map)


class _Store:
    """Copies of arrays: in memory up to MEMORY_BYTES, then in one temporary file without a name.

    The file is unlinked from the start (or marked so, on Windows): not even `kill -9` leaves it behind.
    """

    def __init__(self) -> None:
        self.size = 0
        self.file: IO[bytes] | None = None
        self.map: np.ndarray | None = None

    def keep(self, array: np.ndarray) -> Lazy:
        self.size += array.nbytes
        if self.size <= MEMORY_BYTES:
            return held(np.array(array, order="C"))
        start = self.spill(array.tobytes())
        shape, dtype = array.shape, array.dtype
        return Lazy(shape, dtype, lambda: np.ndarray(shape, dtype, self.map, offset=start))

    def spill(self, data: bytes) -> int:
        with no_room():
            if self.file is None:
                self.file = tempfile.TemporaryFile(prefix="onnxprune-")
            start = self.file.tell()
            self.file.write(data)
        return start

    def seal(self) -> None:
        """Map what was spilled. The map keeps the bytes; the file itself can go."""
        if self.file is not None:
            with no_room(), self.file:
                self.file.flush()
                self.map = np.memmap(self.file, np.uint8, mode="r")  # type: ignore[call-overload]
            self.file = None
