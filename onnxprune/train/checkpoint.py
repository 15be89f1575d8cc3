"""Checkpoints: what a run of training knows, in a file that is whole or not there, and the same when it is read.

It knows no network: what is kept is a dict of numbers, texts, tensors, and what holds them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from onnxprune.errors import UsageError, one_line
from onnxprune.files.write import atomic_write_by


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write `content`, and a digest of it, over what is there.

    Raises:
        FileError: it cannot be written.
    """

    def fill(file: IO[bytes]) -> None:
        told = _Told(file)
        torch.save({**content, "digest": _digest(content)}, cast(IO[bytes], told))
        if told.error is not None:
            raise told.error

    atomic_write_by(fill, path, force=True)


def load_checkpoint(path: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """What was written.

    Args:
        path: of the file.
        run: what must be under "run": whose checkpoint it is.

    Raises:
        UsageError: it is no checkpoint, another run's, or not what was written.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        same = bool(content["run"] == run)
        whole = content.pop("digest", None) == _digest(content)
    except Exception as error:
        raise UsageError(one_line(f"{path}: not a checkpoint; remove it or name another file")) from error
    if not same:
        raise UsageError(one_line(f"{path}: the checkpoint belongs to another run; remove it or name another file"))
    if not whole:
        raise UsageError(
            one_line(f"{path}: the checkpoint is damaged, or an older version wrote it; remove it or name another file")
        )
    return content


class _Told:
    """A file that keeps what the system refused: torch would only say that something went wrong.

    Attributes:
        error: the first refusal.
    """

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Whoever opened the file flushes it."""


def _digest(content: Any) -> str:
    """SHA-256 of it all, in order."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            found.update(f"{value.dtype} {tuple(value.shape)}".encode())
            if value.numel():
                found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            found.update(f"{{{len(value)}".encode())
            for key, item in value.items():
                add(key)
                add(item)
        elif isinstance(value, tuple | list):
            found.update(f"[{len(value)}".encode())
            for item in value:
                add(item)
        else:
            found.update(f"{type(value).__name__} {value!r};".encode())

    add(content)
    return found.hexdigest()
