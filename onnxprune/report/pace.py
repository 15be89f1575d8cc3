"""How long the phases of a command take, learned from its past runs on this machine: a run can say what is left.

A run's phases in their order, with seconds, are kept in the user's cache, one run a kind of command. Another model
takes other times in about the same shares: what is left is scaled by how long this run took for what it has done.
Ours. To read it, only the standard library is imported.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence

from onnxprune.errors import FileError
from onnxprune.runtime.cache import user_cache

NAME, SCHEMA, KINDS = "phases.json", 1, 40
"""Of the file; its version, and the most kinds of commands that are kept: the last ones."""
LARGEST = 1_000_000
"""Bytes of a file that is read, at most."""
FLOOR_S = 1.0
"""Seconds of a run from which it says how the others scale."""

Phases = tuple[tuple[str, float], ...]


class Pace:
    """What a kind of command did last time, and what that says of this time.

    Args:
        kind: command and options, without their values; empty: nothing is known, nothing is kept.
    """

    def __init__(self, kind: str = ""):
        self.kind = kind
        self.past: Phases = _read().get(kind, ()) if kind else ()
        self.done: list[tuple[str, float]] = []

    def place(self, phase: str) -> tuple[int, int] | None:
        """(k, n) where this phase is the k-th of n; None where that is not known."""
        at = self._at(phase)
        return None if at is None else (at + 1, len(self.past))

    def left_s(self, phase: str, spent_s: float, share: float | None) -> float | None:
        """Seconds that are left; None where nobody knows.

        Args:
            phase: that runs.
            spent_s: in it.
            share: of it that is done; None: not known.
        """
        at = self._at(phase)
        if at is None:
            return None
        before, own = sum(s for _, s in self.past[:at]), self.past[at][1]
        own_done = own * share if share is not None else min(spent_s, own)
        took, then = sum(s for _, s in self.done) + spent_s, before + own_done
        scale = took / then if min(took, then) >= FLOOR_S else 1.0
        return max(0.0, (own - own_done + sum(s for _, s in self.past[at + 1 :])) * scale)

    def _at(self, phase: str) -> int | None:
        """The place of a phase in the past run: that which lies nearest to where this run is."""
        places = [k for k, (name, _) in enumerate(self.past) if name == phase]
        return min(places, key=lambda k: abs(k - len(self.done)), default=None)

    def ended(self, phase: str, seconds: float) -> None:
        """A phase is over."""
        self.done.append((phase, seconds))

    def keep(self) -> None:
        """Write this run down for the next; a cache that cannot be written is no error."""
        folder = user_cache()
        if not self.kind or not self.done or folder is None:
            return
        known = _read()
        known.pop(self.kind, None)
        known[self.kind] = tuple(self.done)
        content = {"schema": SCHEMA, "runs": dict(list(known.items())[-KINDS:])}
        from onnxprune.files.write import atomic_write_text  # a run has it loaded; `--help` has not

        with contextlib.suppress(OSError, FileError):
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write_text(json.dumps(content), folder / NAME, force=True, sources=[])


def _read() -> dict[str, Phases]:
    """What is known; a file that is something else counts as none."""
    folder = user_cache()
    try:
        if folder is None or not (path := folder / NAME).is_file() or path.stat().st_size > LARGEST:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
        runs = content["runs"] if content["schema"] == SCHEMA else {}
        return {str(kind): _phases(run) for kind, run in runs.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _phases(run: Sequence[tuple[str, float]]) -> Phases:
    found = tuple((str(name), float(seconds)) for name, seconds in run)
    if not all(math.isfinite(s) and s >= 0 for _, s in found):
        raise ValueError("no seconds")
    return found


def in_words(seconds: float) -> str:
    """`about 40 s left`, `about 3 min left`: no finer than is known."""
    if seconds < 55:
        return f"about {max(5, 5 * round(seconds / 5))} s left"
    return f"about {max(1, round(seconds / 60))} min left" if seconds < 3600 else f"about {seconds / 3600:.1f} h left"
