"""Where an outcome comes from: digests, the passes before, and the run that made it.

All of it but the run is the same for the same input; when, where and by which command it ran stands apart.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

from onnxprune import __version__
from onnxprune.runtime.install import versions


@dataclass(frozen=True)
class Provenance:
    """Where a result comes from.

    Attributes:
        model_digest: SHA-256 of the original.
        samples_digest: of the samples, in order; None where there are none.
        carried_out: the settings with which the plan was carried out, by name.
        earlier: what passes before have written into the original (`files.metadata`), oldest first.
        run: when and where it was made, and by which command or call.
    """

    model_digest: str = ""
    samples_digest: str | None = None
    carried_out: Mapping[str, Any] = field(default_factory=dict)
    earlier: Sequence[Mapping[str, str]] = ()
    run: Mapping[str, Any] = field(default_factory=dict)


def this_run(*, command: Sequence[str] = (), call: str = "") -> dict[str, Any]:
    """What is known of this run: version, date, machine, and the command line or the call where one is known."""
    asked = {"command": shlex.join(command)} if command else {"call": call} if call else {}
    return {"version": __version__, "date": _now(), **asked, "machine": dict(_machine())}


def call_words(name: str, given: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """A call as it was written, all but what is as usual; arrays by their sizes."""
    said = [f"{k}={_value(v)}" for k, v in given.items() if k not in usual or not _same(v, usual[k])]
    return f"{name}({', '.join(said)})"


def _same(value: Any, usual: Any) -> bool:
    return value is usual or (isinstance(value, str | int | float | tuple) and value == usual)


def _value(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"<array {'x'.join(map(str, value.shape))}>"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str | int | float | bool | tuple | os.PathLike):
        return repr(os.fspath(value) if isinstance(value, os.PathLike) else value)
    return repr(value) if is_dataclass(value) else f"<{getattr(value, '__name__', type(value).__name__)}>"


def _now() -> str:
    """The time in UTC, to the second; `SOURCE_DATE_EPOCH` says otherwise, as for all reproducible builds."""
    now, said = datetime.now(UTC), os.environ.get("SOURCE_DATE_EPOCH", "")
    if said.isdecimal():
        with contextlib.suppress(ValueError, OverflowError, OSError):  # no date
            now = datetime.fromtimestamp(int(said), UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")


@cache
def _machine() -> Mapping[str, Any]:
    return {**versions(), "cores": os.cpu_count()}
