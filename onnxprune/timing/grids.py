"""What is known of layers on this machine, kept in the user's cache from run to run.

A file that holds anything else, or numbers that no timing gives, counts as none: it is written anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnxprune.errors import FileError
from onnxprune.files.text import read_text
from onnxprune.files.write import atomic_write_text
from onnxprune.runtime import install
from onnxprune.runtime.cache import user_cache
from onnxprune.timing.engine import ON_CPU, Engine

MIXED = "mixed"
"""The entry of a layer's grid that holds κ."""
ALONE = "alone"
"""The entry that holds what the full layer takes alone, in ms, where that was taken by the clock."""
LARGEST = 1e9
"""No share and no time is that large."""


@dataclass
class Grids:
    """What is known of layers on this machine: signature -> {axis: [shares, relative times]}.

    Attributes:
        path: the file; None: nothing is kept.
    """

    path: Path | None
    known: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)
    changed: bool = False

    @classmethod
    def of_user(cls, engine: Engine = ON_CPU) -> Grids:
        """The user's cache for this machine, ORT and engine; `ONNXPRUNE_CACHE=` (empty) keeps nothing."""
        folder = None if engine.elsewhere else user_cache()
        if folder is None:
            return cls(None)
        identity = json.dumps([_machine(), *engine.identity], sort_keys=True)
        made = cls(folder / f"layers-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json")
        made.load()
        return made

    def load(self) -> None:
        """What the file holds; a file that cannot be read counts as none."""
        try:
            content = json.loads(read_text(self.path)) if self.path else {}
            if isinstance(content, dict) and content.get("schema") == 2:
                self.known = {str(k): v for k, v in content["layers"].items() if _sound(v)}
        except (FileError, ValueError, KeyError, AttributeError, RecursionError):
            self.known = {}

    def get(self, signature: str, entries: Collection[str] | None = None) -> dict[str, list[list[float]]] | None:
        """What is known of a layer; None too where it is not of those entries."""
        found = self.known.get(signature)
        return None if found is None or (entries is not None and set(found) != set(entries)) else found

    def put(self, signature: str, sweeps: dict[str, list[list[float]]]) -> None:
        self.known[signature] = sweeps
        self.changed = True

    def save(self) -> None:
        """Write it, whole or not at all; a cache that cannot be written is no error."""
        if self.path is None or not self.changed:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(
                json.dumps({"schema": 2, "machine": _machine(), "layers": self.known}),
                self.path,
                force=True,
                sources=[],
            )
            self.changed = False
        except Exception:
            self.path = None


def _sound(sweeps: object) -> bool:
    """Whether an entry is one of ours: for every axis ascending shares up to 1, and as many times."""
    try:
        return all(_is_row(name, x, y) for name, (x, y) in sweeps.items())  # type: ignore[attr-defined]
    except (TypeError, ValueError, AttributeError, OverflowError):
        return False


def _is_row(name: str, x: Sequence[float], y: Sequence[float]) -> bool:
    numbers = all(type(v) in (int, float) and 0 <= v < LARGEST for v in (*x, *y))
    if name == MIXED:
        return numbers and len(x) == 2 and len(y) == 1
    steps = list(x) == sorted(set(x)) and len(x) == len(y) > 0 and x[-1] == 1
    return numbers and steps and min(*x, *y) > 0 and (name == ALONE or name.isdecimal())


def _machine() -> dict[str, object]:
    """What makes a machine another one, as far as the system tells."""
    known = install.versions()
    return {k: known[k] for k in ("cpu", "platform", "onnxruntime")} | {"cores": os.cpu_count()}
