"""Weights in a file of their own, beside the model: above 2 GB protobuf holds no model that has them inside."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from onnx import ModelProto, TensorProto, numpy_helper

from onnxprune.errors import FileError, is_utf8, one_line
from onnxprune.protobuf import disk
from onnxprune.protobuf.serialize import nbytes, put, without_initializers

EXTERNAL_THRESHOLD = 1024
"""Bytes; smaller tensors stay in the .onnx file."""
EXTERNAL_ALIGNMENT = 4096
"""So that a runtime may map the file."""


def write_external(
    model: ModelProto,
    folder: str | Path,
    *,
    stem: str = "model",
    placed: list[Path] | None = None,
    mode: int | None = None,
) -> ModelProto:
    """Writes the stored tensors to `<stem>-<hash of the content>.data` and returns the model without them.

    Args:
        model: left untouched.
        folder: where the data file goes, and where the returned model must be saved.
        stem: how the file's name starts.
        placed: receives the data file's path if it was not there before, as soon as it is in place.
        mode: permissions of the data file; None: as the umask has them.

    Returns:
        A model whose larger initializers point to the data file.

    Raises:
        FileError: the file cannot be written.
    """
    folder = Path(folder)
    if not is_utf8(folder.absolute() / stem):
        raise FileError(one_line(f"{folder / stem}.data: the path of large weights must be UTF-8; choose another"))
    temporary = disk.temporary_in(folder)
    bare = without_initializers(model)
    digest = hashlib.sha256()
    spots: list[tuple[TensorProto, int, int]] = []
    try:
        with disk.making(temporary, 0o666 if mode is None else mode | 0o600) as file:
            at = 0
            for tensor in model.graph.initializer:
                copy = bare.graph.initializer.add()
                if tensor.data_type == TensorProto.STRING or nbytes(tensor) < EXTERNAL_THRESHOLD:
                    copy.CopyFrom(tensor)
                    continue
                raw = tensor.raw_data
                if not tensor.HasField("raw_data"):
                    raw = numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
                for part in (bytes(-at % EXTERNAL_ALIGNMENT), raw):
                    digest.update(part)
                    file.write(part)
                    at += len(part)
                _describe(copy, tensor)
                spots.append((copy, at - len(raw), len(raw)))
            disk.flush(file)
            file.close()
            path = folder / f"{stem}-{digest.hexdigest()[:16]}.data"
            if placed is not None and not os.path.lexists(path):
                placed.append(path)
            if mode is not None:
                os.chmod(temporary, mode)
            os.replace(temporary, path)  # where the name is taken, the content is the same
        disk.flush_folder(folder)
    except OSError as error:
        raise disk.write_error(folder / f"{stem}.data", error) from error
    for tensor, offset, length in spots:
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", path.name), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
    return bare


def _describe(copy: TensorProto, tensor: TensorProto) -> None:
    """Everything of a tensor but its data."""
    copy.name, copy.data_type = tensor.name, tensor.data_type
    put(copy, "doc_string", tensor.doc_string)
    copy.dims.extend(tensor.dims)
    if "metadata_props" in tensor.DESCRIPTOR.fields_by_name:
        copy.metadata_props.extend(tensor.metadata_props)
