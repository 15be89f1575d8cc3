"""From a path to a parsed model: what stands in the file, before anything in it is believed.

Knows what else gets called .onnx. Looks at no node and no tensor.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from onnx import ModelProto

from onnxprune.errors import FileError, ModelError, one_line
from onnxprune.files.refuse import refuse

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


def read_bytes(path: Path) -> bytes:
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
                refuse(
                    str(path),
                    f"{info.st_size:,} bytes, but protobuf stops at 2 GB; save it with external data",
                )
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise FileError(one_line(f"{path}: cannot be read: {reason}; check the path")) from error


def parse(data: bytes, label: str) -> ModelProto:
    if not data:
        refuse(label, "the file is empty; export or download it again")
    start = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    for magic, what in _SIGNATURES:
        if start.startswith(magic):
            refuse(label, f"is {what}")
    if data[4:8] == b"ORTM":
        refuse(label, "is in ORT format; give the .onnx file that it was made from")
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
        refuse(label, "holds no graph: truncated or not an ONNX model; export or download it again")
    return model
