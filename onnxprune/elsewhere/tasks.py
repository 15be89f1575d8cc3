"""Pure functions of an item, with all that they need in one parcel: what a worker is sent once.

A `Task` names a function of this package and what it is made of (a model, samples, settings); the worker makes the
function once and calls it for every item. What its results depend on, `of` says in plain values: it is their name in a
store. What the function does is not known here.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from onnxprune import __version__
from onnxprune.errors import ProviderError, PruneError, UnsupportedError, one_line
from onnxprune.parallel import on_cores

Evaluate = Callable[[Any], Any]
"""An item -> its result."""


@dataclass(frozen=True)
class Task:
    """A function of items, and what it is made of.

    Attributes:
        make: a function of a module: payload -> what evaluates an item.
        payload: all that it needs; can be pickled.
        of: what results depend on besides the item, as plain values; None: they are not to be kept.
    """

    make: Callable[[Any], Evaluate]
    payload: Any
    of: Mapping[str, Any] | None = None

    @cached_property
    def parcel(self) -> Parcel:
        """What a worker is sent.

        Raises:
            UnsupportedError: it cannot be, as a model of more than 2 GB.
        """
        try:
            blob = pickle.dumps((self.make, self.payload), 5)
        except Exception as error:  # protobuf, pickle and what is pickled have errors of their own
            raise UnsupportedError(one_line(f"cannot be sent to workers: {error}; drop --backend")) from error
        return Parcel(hashlib.sha256(blob).hexdigest(), __version__, blob)


@dataclass(frozen=True)
class Parcel:
    """A task on its way.

    Attributes:
        key: SHA-256 of the blob.
        version: of this package where it was made.
        blob: the function and its payload, pickled.
    """

    key: str
    version: str
    blob: bytes

    def fetch(self) -> Parcel:
        """Itself: it has come."""
        return self


class Sent(Protocol):
    """A parcel, or where a worker finds it."""

    @property
    def key(self) -> str: ...
    def fetch(self) -> Parcel: ...


@dataclass(frozen=True)
class Missed:
    """An error of ours on its way back: what is pickled as an exception loses what it holds besides its text."""

    kind: type[PruneError]
    text: str
    holds: Mapping[str, Any]

    def error(self) -> PruneError:
        """The error."""
        found = self.kind.__new__(self.kind)
        found.args = (self.text,)
        found.__dict__.update(self.holds)
        return found


_opened: dict[str, Evaluate] = {}
_one = threading.RLock()


def evaluate(sent: Sent, item: Any, cores: int | None = None) -> Any:
    """In a worker: the result of one item, or `Missed`. The function is made at the first and kept until there is
    another; one item at a time is worked on.

    Args:
        sent: the task.
        item: what it is asked of.
        cores: how many it may use; None: all that its settings allow.
    """
    with _one, on_cores(cores):
        try:
            if sent.key not in _opened:
                made = _unpacked(sent.fetch())
                _opened.clear()
                _opened[sent.key] = made
            return _opened[sent.key](item)
        except PruneError as error:
            return Missed(type(error), str(error), dict(error.__dict__))


def _unpacked(parcel: Parcel) -> Evaluate:
    """The function of a parcel.

    Raises:
        ProviderError: the worker has another version of this package.
    """
    if parcel.version != __version__:
        raise ProviderError(f"a worker has onnxprune {__version__}, here is {parcel.version}; install the same on all")
    make, payload = pickle.loads(parcel.blob)  # made by whoever runs the engine, which runs what it is sent anyway
    found: Evaluate = make(payload)
    return found


def digest_of(content: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
