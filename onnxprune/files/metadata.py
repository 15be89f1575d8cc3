"""What a pruned file says of itself: `metadata_props` named `onnxprune.*`, and what earlier passes have left there.

The newest pass has the names to itself; those before it are kept, oldest first, in `onnxprune.history`. Other entries
are not ours and stay as they are. What is read was written by anyone: it is text to show, and nothing is decided by it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import onnx

PREFIX = "onnxprune."
HISTORY = f"{PREFIX}history"
PASSES, LENGTH = 50, 10_000
"""Most passes that are remembered, and characters of an entry that are."""


def stamp(model: onnx.ModelProto, entries: Mapping[str, str]) -> None:
    """Write what a pass says of itself, in place; none: the model says nothing of pruning, of earlier passes either.

    Args:
        model: as it came, with what earlier passes have written.
        entries: by name, without the prefix.
    """
    before = earlier(model)
    kept = [p for p in model.metadata_props if not _is_ours(p)]
    own = [(f"{PREFIX}{name}", value) for name, value in entries.items()]
    if own and before:
        own.append((HISTORY, json.dumps(before, ensure_ascii=False, separators=(",", ":"))))
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    for key, value in own:
        model.metadata_props.add(key=key, value=value)


def earlier(model: onnx.ModelProto) -> list[dict[str, str]]:
    """What the passes before have written, oldest first; each by name, without the prefix."""
    found = {p.key: p.value for p in model.metadata_props if _is_ours(p)}
    before = _history(found.pop(HISTORY, ""))
    last = _entries({key.removeprefix(PREFIX): value for key, value in found.items()})
    return [*before, *([last] if last else [])][-PASSES:]


def _is_ours(entry: onnx.StringStringEntryProto) -> bool:
    """Whether an entry is named as ours, and is text: what is not UTF-8 comes as bytes."""
    return isinstance(entry.key, str) and isinstance(entry.value, str) and entry.key.startswith(PREFIX)


def _history(text: str) -> list[dict[str, str]]:
    """The passes of a history; none where it is none."""
    try:
        given = json.loads(text) if text else []
    except (ValueError, RecursionError):
        return []
    passes = [_entries(p) for p in given if isinstance(p, dict)] if isinstance(given, list) else []
    return [p for p in passes if p]


def _entries(given: Mapping[object, object]) -> dict[str, str]:
    return {k: v for k, v in given.items() if isinstance(k, str) and isinstance(v, str) and len(k) + len(v) <= LENGTH}
