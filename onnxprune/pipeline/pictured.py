"""A few held samples, and what the original and the pruned model say of each: for people who want to look."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.measure.kinds.table import KINDS
from onnxprune.measure.part import (
    BOXES,
    CLASS_MAP,
    DETECTIONS,
    HEAT_MAP,
    IMAGE,
    MASK,
    SCORES,
    Part,
    Values,
)
from onnxprune.measure.parts import parts_of
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.settings import Settings
from onnxprune.report import pictures
from onnxprune.report.pictures import Box, Picture, Sample, Shown, grey
from onnxprune.report.result import Result
from onnxprune.runtime import sessions

COLOURS, LEAST = (1, 3, 4), 8
"""Channels of an image, and its least side."""
FEW = 4
"""Most parts of the outputs that are shown."""
AMPLIFIED = 4.0
"""How much a picture of a difference is amplified."""


def pictured(result: Result, subject: Subject, settings: Settings, count: int) -> Result:
    """The result, with `count` samples that nothing was fitted on as small pictures: they are then part of its page and
    of its JSON, for whoever gets these.

    Raises:
        UsageError: there are no samples, or more are asked for than a page has room for.
    """
    if not 0 <= count <= pictures.MOST:
        raise UsageError(f"{count} samples on a page: give 1 to {pictures.MOST}")
    if not count:
        return result
    parts = subject.partition(settings.seed)
    if parts is None:
        raise UsageError("samples on a page are those that nothing was fitted on; give --calib")
    models = (subject.graph.model, "original"), (result.runs, "pruned model")
    left, right = (sessions.open_session(model, threads=settings.threads, name=name) for model, name in models)
    told: list[Sample] = []
    known: Sequence[Part] = ()
    for feeds in parts.held.spaced(count).batches(1):
        was, now = (dict(zip(s.outputs, map(np.asarray, s.run(dict(feeds))), strict=True)) for s in (left, right))
        known = known or parts_of(subject.graph, subject.net.shapes, was, said=subject.said)
        told.append(Sample(len(told) + 1, _image_of(feeds), tuple(_shown(known, feeds, was, now))))
    return replace(result, samples=tuple(told[:count]))


def _image_of(feeds: Values) -> Picture | None:
    """The first input that is an image."""
    for value in feeds.values():
        planes = _planes(np.asarray(value))
        if planes is not None:
            return pictures.picture(_pixels(planes, float(planes.min()), float(planes.max())))
    return None


def _planes(value: np.ndarray) -> np.ndarray | None:
    """(height, width, channels) of the first sample of what is an image, whatever its layout; None where none is."""
    first = value[0] if value.ndim == 4 and len(value) else value
    if first.ndim == 3 and first.dtype.kind in "fiu" and first.size:
        for planes in (np.moveaxis(first, 0, -1), first):
            if planes.shape[2] in COLOURS and min(planes.shape[:2]) >= LEAST:
                return np.asarray(planes[..., :3] if planes.shape[2] > 1 else planes, np.float64)
    return None


def _pixels(planes: np.ndarray, low: float, high: float) -> np.ndarray:
    found = grey(planes, low, high)
    return found[..., 0] if found.shape[2] == 1 else found


def _shown(parts: Sequence[Part], feeds: Values, was: Values, now: Values) -> Iterator[Shown]:
    shown = (SHOWS[part.kind](part, feeds, was, now) for part in parts if part.kind in SHOWS)
    yield from [one for one in shown if one is not None][:FEW]


def _boxes(part: Part, feeds: Values, was: Values, now: Values) -> Shown | None:
    if part.kind == BOXES and not part.form.startswith("xy"):
        return None  # nobody knows where they are
    sizes = [planes.shape[:2] for v in feeds.values() if (planes := _planes(np.asarray(v))) is not None]
    height, width = sizes[0] if sizes else (1, 1)
    (finder,) = KINDS[part.kind].sums
    found = [next(iter(finder(part).found(values, 1)), np.zeros((0, 6))) for values in (was, now)]  # type: ignore[attr-defined]
    most = max((float(np.abs(rows[:, :4]).max()) for rows in found if len(rows)), default=0.0)
    scale = np.array([1.0, 1.0] * 2 if most <= 2 else [width, height] * 2)
    before, after = (tuple(_box(row, scale) for row in rows[: pictures.BOXES]) for rows in found)
    return Shown(part.name, part.kind, f"{len(found[0])} found → {len(found[1])}", (), before, after)


def _box(row: np.ndarray, scale: np.ndarray) -> Box:
    corners = [round(float(v), 4) for v in np.clip(np.nan_to_num(row[:4] / scale), 0, 1)]
    return Box(corners[0], corners[1], corners[2], corners[3], int(row[4]), round(float(row[5]), 3))


def _image(part: Part, feeds: Values, was: Values, now: Values) -> Shown | None:
    both = [_planes(part.of(values[part.output])) for values in (was, now)]
    a, b = both
    if a is None or b is None:
        return None
    low, high = float(a.min()), float(a.max())
    away = np.abs(a - b) * AMPLIFIED
    shown = (_pixels(a, low, high), _pixels(b, low, high), _pixels(away, 0.0, high - low))
    return Shown(part.name, part.kind, "", tuple(map(pictures.picture, shown)))


def _maps(part: Part, feeds: Values, was: Values, now: Values) -> Shown | None:
    """Masks and heat maps: the largest of all maps at each place."""
    a, b = (_plane(part.of(values[part.output])) for values in (was, now))
    if a is None or b is None:
        return None
    low, high = float(a.min()), float(a.max())
    shown = (grey(a, low, high), grey(b, low, high), grey(AMPLIFIED * np.abs(a - b), 0.0, high - low))
    return Shown(part.name, part.kind, "", tuple(map(pictures.picture, shown)))


def _plane(value: np.ndarray) -> np.ndarray | None:
    value = value[0] if value.ndim > 2 else value
    plane = value.max(axis=0) if value.ndim == 3 else value
    return np.asarray(plane, np.float64) if plane.ndim == 2 and plane.size else None


def _classes(part: Part, feeds: Values, was: Values, now: Values) -> Shown | None:
    """Class maps, a colour a class; what differs is white."""
    found = []
    for values in (was, now):
        value = np.moveaxis(part.of(values[part.output]), part.axis, -1)
        plane = value.argmax(axis=-1)
        found.append(plane[0] if plane.ndim == 3 else plane)
    if found[0].ndim != 2:
        return None
    drawn = [pictures.PALETTE[plane % len(pictures.PALETTE)] for plane in found]
    other = np.where(found[0] == found[1], 0, 255).astype(np.uint8)
    return Shown(part.name, part.kind, "", tuple(map(pictures.picture, (*drawn, other))))


def _scores(part: Part, feeds: Values, was: Values, now: Values) -> Shown | None:
    a, b = (np.moveaxis(part.of(values[part.output]), part.axis, -1) for values in (was, now))
    if a.size != a.shape[-1]:
        return None
    best, then = (int(v.argmax()) for v in (a, b))
    return Shown(part.name, part.kind, f"class {best} ({a.flat[best]:.3g}) → {then} ({b.flat[then]:.3g})")


SHOWS: Mapping[str, Callable[[Part, Values, Values, Values], Shown | None]] = {
    DETECTIONS: _boxes, BOXES: _boxes, IMAGE: _image, MASK: _maps, HEAT_MAP: _maps, CLASS_MAP: _classes,
    SCORES: _scores,
}  # fmt: skip
"""What is shown of a kind of output."""
