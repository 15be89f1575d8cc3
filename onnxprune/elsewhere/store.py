"""Results by what they are results of: a folder, here or wherever fsspec reaches.

The name of a file is the SHA-256 of all that its result depends on, and the file says that in full, so that one that
is damaged, or of something else, is worked out anew. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from onnxprune.elsewhere.tasks import digest_of
from onnxprune.errors import FileError, UsageError, of_system, one_line
from onnxprune.files.write import atomic_write_text

KIND = "onnxprune evaluation"
NOTHING = object()
"""There is no such result."""


class Place(Protocol):
    """Where files are."""

    def read(self, name: str) -> bytes | None: ...
    def write(self, name: str, text: str) -> None: ...


class Folder:
    """A folder of this machine, made where it is missing."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise of_system(error) from error

    def read(self, name: str) -> bytes | None:
        try:
            return self.path.joinpath(name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise of_system(error) from error

    def write(self, name: str, text: str) -> None:
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        atomic_write_text(text, path, force=True)


class Remote:
    """A folder at an address that fsspec knows (s3://, gs://, memory://, ...)."""

    def __init__(self, address: str) -> None:
        if find_spec("fsspec") is None:
            raise UsageError(f"--store {address} needs fsspec - pip install fsspec")
        import fsspec

        self.address = address
        try:
            self.files, self.path = fsspec.core.url_to_fs(address)
        except (ValueError, ImportError) as error:
            raise UsageError(one_line(f"--store {address}: {error}")) from error

    def read(self, name: str) -> bytes | None:
        try:
            found: bytes = self.files.cat_file(f"{self.path}/{name}")
        except FileNotFoundError:
            return None
        except Exception as error:  # each file system has errors of its own
            raise FileError(one_line(f"{self.address}: cannot be read: {error}")) from error
        return found

    def write(self, name: str, text: str) -> None:
        try:
            self.files.makedirs(f"{self.path}/{name.rpartition('/')[0]}", exist_ok=True)
            self.files.pipe_file(f"{self.path}/{name}", text.encode())
        except Exception as error:
            raise FileError(one_line(f"{self.address}: cannot be written: {error}")) from error


class Store:
    """Results of evaluations, each a plain value.

    Args:
        address: a folder, or an address with `://`.

    Raises:
        FileError: it cannot be read or written.
        UsageError: fsspec is not installed, or does not know the address.
    """

    def __init__(self, address: str) -> None:
        self.place: Place = Remote(address) if "://" in address else Folder(address)

    def get(self, of: Mapping[str, Any], item: Any) -> Any:
        """The result, or `NOTHING`."""
        content = _content(of, item)
        text = self.place.read(_name(content))
        try:
            found = json.loads(text or b"null")
            return found["value"] if found["of"] == content else NOTHING
        except (ValueError, TypeError, LookupError, RecursionError):
            return NOTHING

    def put(self, of: Mapping[str, Any], item: Any, value: Any) -> None:
        """Keep a result: what JSON gives back as it is."""
        content = _content(of, item)
        told = {"schema": 1, "kind": KIND, "of": content, "value": value}
        self.place.write(_name(content), json.dumps(told, sort_keys=True) + "\n")


def _content(of: Mapping[str, Any], item: Any) -> Any:
    """What a result is of, as JSON reads it back."""
    return json.loads(json.dumps({**of, "item": item}))


def _name(content: Any) -> str:
    key = digest_of(content)
    return f"{key[:2]}/{key}.json"
