"""What is predicted for a device, corrected by what `onnxprune bench` measured of files that were planned for it.

    ln measured = f(ln predicted),   f through (0, 0) and every file, straight in between and beyond

A file that was planned with `--device` says what was predicted of it, uncorrected, and of which model it was made; the
JSON of `bench` hands that on beside what it measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.errors import UsageError, one_line
from onnxprune.files.text import read_text
from onnxprune.pipeline.asked import engine_of
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.settings import Settings
from onnxprune.runtime.providers import provider_name
from onnxprune.timing.devices import Recorded


@dataclass(frozen=True)
class Correction:
    """Predicted gains beside what was measured, old time over new; ascending.

    Attributes:
        points: (predicted, measured) of every file.
    """

    points: Sequence[tuple[float, float]] = ()

    def __call__(self, gain: float) -> float:
        """The gain to expect where that much is predicted."""
        if not self.points or gain <= 1:
            return gain
        x, y = np.log(np.array([(1.0, 1.0), *self.points])).T
        last = y[-1] / x[-1]
        at = math.log(gain)
        return math.exp(last * at if at > x[-1] else float(np.interp(at, x, y)))

    @property
    def words(self) -> tuple[str, ...]:
        """What is said of it."""
        seen = ", ".join(f"{predicted:.2f}x predicted was {measured:.2f}x" for predicted, measured in self.points)
        return (f"corrected by what was measured there: {seen}",) if self.points else ()


def correction(subject: Subject, settings: Settings) -> Correction:
    """What the files of `--refine` say of the device.

    Raises:
        UsageError: one is no JSON of `bench`, or not of this model on this device as it was profiled.
    """
    engine = engine_of(settings)
    if not settings.refine or not isinstance(engine, Recorded):
        return Correction()
    found = [point for path in settings.refine for point in _points(path, subject, engine)]
    return Correction(sorted(found))


def _points(path: str, subject: Subject, engine: Recorded) -> list[tuple[float, float]]:
    try:
        content = json.loads(read_text(path))
        results = content.get("results", [content]) if content["kind"] == "onnxprune bench" else []
        found = [point for result in results for point in _of(path, result, subject, engine)]
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UsageError(one_line(f"{path}: is no outcome of `onnxprune bench A B --json`")) from None
    if not found:
        raise UsageError(
            one_line(
                f"{path}: no file in it was planned for {subject_name(subject)} with --device (files say so in their "
                "metadata; --no-metadata leaves that out)"
            )
        )
    return found


def subject_name(subject: Subject) -> str:
    """What a subject is called."""
    return subject.path.name if subject.path is not None else "this model"


def _of(path: str, result: Mapping[str, Any], subject: Subject, engine: Recorded) -> list[tuple[float, float]]:
    """The points of one case.

    Raises:
        UsageError: it was measured otherwise than the device was profiled.
    """
    known = {c["candidate"]: c["speedup"] for c in result["comparisons"]}
    said = {name: own for name, own in result["said"].items() if name in known and "predicted" in own}
    mine = [name for name, own in said.items() if own.get("model_digest") == subject.digest]
    first = next(iter(result["providers"].values()))[0]
    ours = (engine.batch, engine.threads, provider_name(engine.providers[0]))
    if mine and (result["batch"], result["threads"], first) != ours:
        how = f"batch {engine.batch}, {engine.threads} threads, {engine.providers[0]}"
        raise UsageError(one_line(f"{path}: was measured otherwise than the device was profiled ({how})"))
    points = [(float(said[name]["predicted"]), float(known[name])) for name in mine]
    return [(p, m) for p, m in points if p > 1 and m > 0 and math.isfinite(p * m)]
