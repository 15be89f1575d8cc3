"""Boxes beside their scores: how both are told, and the boxes of one network held against those of another.

Found is what scores more than 0.25 and is left by greedy suppression within a class (IoU 0.6), as detectors are read.
Of two networks the first is the truth: a box of the second matches one of the same class at IoU 0.5, or 0.75; each is
matched once, the best scored first. For average precision, what scores more than 0.05 is ranked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.graph.joined import joined
from onnxprune.measure.kinds.anchors import (
    PROBABILITIES,
    SIGMOID,
    SOFTMAX,
    by_anchors,
    class_scores,
    corners,
    form_of_scores,
    probabilities,
    scaled,
)
from onnxprune.measure.kinds.look import Look, finely, in_unit, rows_along
from onnxprune.measure.kinds.precision import LOW, Precision
from onnxprune.measure.part import BOX_SCORES, BOX_VALUES, BOXES, SCORES, Part, Values

SCORE, SUPPRESSED = 0.25, 0.6
"""Least score of what is found; IoU from which the lower scored of two of a class goes."""
MATCHES = (0.5, 0.75)
MOST = 300
"""Best scored anchors of a sample that are looked at."""
FEW, MANY = 8, 32
"""Anchors below which an output is no output of boxes; below which four numbers of either sign are none."""
OFFSETS, PLACES = "offsets", "places"
"""Boxes told relative to anchors that nobody knows; numbers that boxes are made of later."""
ANYTHING = 0.4
"""Score from which a first score that only ever goes with another says whether there is anything at all."""
TAKEN = frozenset(("Split", "Slice"))
APART = 8.0
"""Ratio of the spreads of boxes and scores by which they are told where the graph joins nothing."""


# ---- how they are told ---------------------------------------------------------------------------------------


def joint(value: np.ndarray, borders: Collection[tuple[int, int]]) -> int | None:
    """The axis along which an output has four numbers of a box and scores behind them; None where it has none.

    Args:
        value: the output on samples.
        borders: (axis, place) at which tensors were joined, as far as the graph says.
    """
    if value.ndim != 3 or value.dtype.kind != "f" or not value.size:
        return None
    for axis in (1, 2):
        if value.shape[axis] < 5 or value.shape[3 - axis] < FEW:
            continue
        rows = np.moveaxis(value, axis, -1)
        boxes, scores = rows[..., :4].reshape(-1, 4), rows[..., 4:]
        if not in_unit(scores):
            continue
        least = boxes.std(axis=0, dtype=np.float64).min()
        spread = boxes.max() > 2 and least > APART * float(scores.std(dtype=np.float64))
        if ((axis, 4) in borders or spread) and form_of(boxes):
            return axis
    return None


def joint_and_more(value: np.ndarray, borders: Collection[tuple[int, int]]) -> tuple[int, int] | None:
    """(axis, end of the scores) of an output that has four numbers of a box, scores, and other numbers behind them; or
    maps of numbers that boxes are made of, and of scores. None where it has none."""
    if value.ndim == 4 and value.dtype.kind == "f" and value.size:
        ends = sorted(place for axis, place in borders if axis == 1 and place)
        few = value[:8]
        fits = len(ends) == 1 and ends[0] % 4 == 0 and (few[:, ends[0] :] < 0).mean() >= 0.9
        return (1, ends[0]) if fits and not in_unit(few) else None
    for axis in (1, 2) if value.ndim == 3 and value.dtype.kind == "f" and value.size else ():
        ends = sorted((place for along, place in borders if along == axis and place > 4), reverse=True)
        rows = np.moveaxis(value, axis, -1)
        if (axis, 4) in borders and value.shape[3 - axis] >= FEW and form_of(rows[..., :4].reshape(-1, 4)):
            for end in ends:
                if in_unit(rows[..., 4:end]):
                    return axis, end
    return None


def form_of(rows: np.ndarray) -> str:
    """What four numbers say: "xyxy", the corners; "xywh", middle and size; empty where they are no boxes."""
    if (np.asarray(rows[:, 2:] > rows[:, :2])).all(axis=1).mean() >= 0.99:
        return "xyxy"
    return "xywh" if (rows[:, 2:] > 0).all(axis=1).mean() >= 0.95 else ""


def boxes(look: Look) -> dict[int, Part]:
    """Parts of four numbers beside a part of scores with as many anchors, those scores, and what else is said of the
    same anchors. Corners, or middle and size, are looked for first, then offsets, then maps."""
    found: dict[int, Part] = {}
    asked = {k for kind in (BOXES, BOX_SCORES) for k, _, _ in look.of_kind(kind)}
    for offsets in (False, True):
        for k, part, value in (*look.open(), *look.of_kind(BOXES)):
            for axis in _axes(part, value, asked=k in asked):
                rows = np.moveaxis(value, axis, -1).reshape(-1, 4)
                form = form_of(rows) or ("xywh" if k in asked else "")
                form = OFFSETS if form == "xywh" and k not in asked and _signed(rows) else form
                wanted = k not in found and offsets == (form in ("", OFFSETS)) and not (offsets and len(rows) < MANY)
                beside = _beside(look, k, value.size // len(value) // 4, asked, found) if wanted else None
                if beside is not None:
                    found |= _both(look, k, replace(part, axis=axis, form=form or OFFSETS), *beside)
                    break
    found |= _heads(look, found)
    return found | _more(look, found)


def _signed(rows: np.ndarray) -> bool:
    """Whether what would be middles lies left of the picture too often."""
    return bool((rows[:, :2] < 0).mean() > 0.1)


def _both(look: Look, k: int, part: Part, j: int, scores: Part) -> dict[int, Part]:
    """Boxes and their scores, by their places."""
    objectness = _objectness(look, scores, look.value(j))
    form = part.form + (" objectness" if objectness else "")
    box = replace(part, kind=BOXES, form=form, beside=scores)
    if part.form == OFFSETS and not objectness:  # YOLOX, which has it, scales nothing
        best = class_scores(box, look.values).max(axis=-1).ravel()
        rows = by_anchors(box, look.value(k)).reshape(-1, 4)
        box = replace(box, form=f"scaled {form}" if scaled(rows, best) else form)
    return {j: scores, k: box}


def _axes(part: Part, value: np.ndarray, *, asked: bool) -> list[int]:
    """Axes, from the end, that may have the four numbers."""
    if value.ndim != 3 or not value.size:
        return []
    found = [axis for axis in (-1, -2) if value.shape[axis] == 4 and (asked or value.shape[-3 - axis] >= FEW)]
    return [axis for axis in found if not asked or axis == part.axis] or found


def _beside(
    look: Look, k: int, anchors: int, asked: Collection[int], found: Collection[int]
) -> tuple[int, Part] | None:
    """(place, part) of the scores of so many anchors; such from 0 to 1 first."""
    own, candidates = look.parts[k], list[tuple[bool, bool, int, Part]]()
    others = [j for j, _, _ in look.open() if j != k] + [j for j in asked if look.parts[j].kind == BOX_SCORES]
    for j in others:
        value, part = look.value(j), look.parts[j]
        axes = _along(value, anchors)
        if value.ndim == 2 and axes:
            value = value[..., None]
        if j in found or not axes or len(value) != len(look.value(k)):
            continue
        axis = part.axis if part.kind == BOX_SCORES and part.axis in axes else axes[0]
        form = form_of_scores(look, part, value, axis)
        if form is not None:
            kind = SCORES if form in (PROBABILITIES, SOFTMAX) else BOX_SCORES
            scores = replace(part, kind=kind, axis=axis, form=form)
            candidates.append((form in (SIGMOID, SOFTMAX), part.output != own.output, j, scores))
    return min(candidates, key=lambda c: c[:3])[2:] if candidates else None


def _along(value: np.ndarray, anchors: int) -> list[int]:
    """Axes, from the end, along which there are numbers of so many anchors."""
    if value.ndim == 2 and value.shape[1] == anchors:
        return [-1]
    return [a for a in (-1, -2) if value.ndim == 3 and value.size == len(value) * anchors * value.shape[a]]


def _objectness(look: Look, part: Part, value: np.ndarray) -> bool:
    """Whether the first score is of anything at all: it comes from elsewhere, or all scores are taken off what the
    boxes are made of too; and where it is high, another is."""
    if part.kind != BOX_SCORES or look.graph is None or value.ndim < 3 or value.shape[part.axis] < 2:
        return False
    made = look.made_by(part)
    alone = any(stop - start == 1 for region in joined(look.graph, part.output, look.shapes)
                for _, start, stop in region if start == 4)  # fmt: skip
    if not alone and not (made and made <= TAKEN):
        return False
    rows = rows_along(probabilities(part, value), part.axis)
    sure = rows[rows[:, 0] > ANYTHING]
    return len(sure) > 2 and bool((sure[:, 1:].max(axis=1) > ANYTHING).mean() >= 0.8)


def _heads(look: Look, found: Collection[int]) -> dict[int, Part]:
    """Coarse maps of scores beside maps of as many places, of numbers that boxes are made of later."""
    maps = {k: (part, value) for k, part, value in look.open()
            if value.ndim == 4 and k not in found and not finely(look, value)}  # fmt: skip
    told: dict[int, Part] = {}
    for j, (scores, value) in maps.items():
        form = form_of_scores(look, scores, value, -3)
        others = [k for k, (_, v) in maps.items() if k not in told and k != j and v.shape[1] % 4 == 0
                  and v.shape[2:] == value.shape[2:]]  # fmt: skip
        if form in ("", SIGMOID) and j not in told and others:
            own = replace(scores, kind=BOX_SCORES, axis=-3, form=form)
            told |= {j: own, others[0]: replace(maps[others[0]][0], kind=BOXES, axis=-3, form=PLACES, beside=own)}
    return told


def _more(look: Look, found: Mapping[int, Part]) -> dict[int, Part]:
    """What else is said of the anchors of boxes that were found."""
    told = {}
    for box in (p for p in found.values() if p.kind == BOXES and p.axis != -3):
        assert box.beside is not None
        value = box.of(np.asarray(look.values[box.output]))
        for k, part, other in look.open():
            axes = _along(other, value.size // len(value) // 4)
            same = part.output == box.output or not in_unit(other)
            if k not in found and k not in told and axes and other.ndim == 3 and len(other) == len(value) and same:
                axis = box.axis if box.axis in axes and part.output == box.output else axes[0]
                form = "objectness" if box.form.endswith("objectness") else ""
                told[k] = replace(part, kind=BOX_VALUES, axis=axis, form=form, beside=box.beside)
    return told


# ---- what is found -------------------------------------------------------------------------------------------


def found_in(part: Part, values: Values, least: float = SCORE) -> Iterator[np.ndarray]:
    """Of each sample, (found, 6): x0 y0 x1 y1 class score, the best first; what scores more than `least`."""
    scores = class_scores(part, values)
    rows = by_anchors(part, part.of(values[part.output])).astype(np.float64)
    if part.form.startswith("xywh"):
        half = rows[..., 2:] / 2
        rows = np.concatenate([rows[..., :2] - half, rows[..., :2] + half], axis=-1)
    best, classes = scores.max(axis=-1), scores.argmax(axis=-1)
    for box, kind, score in zip(rows, classes, best, strict=True):
        at = np.flatnonzero(score > least)
        at = at[np.argsort(-score[at], kind="stable")][:MOST]
        where = box if part.form.startswith("xy") else corners(box, part.form)
        yield _suppressed(np.column_stack([where[at], kind[at], score[at]]))


def _suppressed(rows: np.ndarray) -> np.ndarray:
    """Those that overlap no better one of their class by much."""
    near = (overlaps(rows, rows) >= SUPPRESSED) & (rows[:, None, 4] == rows[None, :, 4])
    kept: list[int] = []
    for k in range(len(rows)):
        if not near[k, kept].any():
            kept.append(k)
    return rows[kept]


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(a, b) IoU of boxes by their corners."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:4], b[None, :, 2:4])
    shared = np.maximum(high - low, 0).prod(axis=-1)
    areas = [np.maximum(v[:, 2:4] - v[:, :2], 0).prod(axis=-1) for v in (a, b)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1][None, :] - shared, 1e-12))


# ---- how alike -----------------------------------------------------------------------------------------------


@dataclass
class Matches:
    """What is summed up of boxes.

    Attributes:
        part: the boxes.
    """

    part: Part
    _there: int = 0
    _given: int = 0
    _hits: dict[float, int] = field(default_factory=lambda: dict.fromkeys(MATCHES, 0))
    _precision: Precision = field(default_factory=Precision)

    def add(self, was: Values, now: Values, samples: int) -> None:
        """A batch more: the outputs of both."""
        for wanted, got in zip(self.found(was, samples), self.found(now, samples, LOW), strict=True):
            self.count(wanted, got)

    def count(self, wanted: np.ndarray, got: np.ndarray) -> None:
        """A sample more: (true, 6) and (found, 6) boxes, the best scored first, those of little score too."""
        self._precision.add(wanted, got, overlaps(wanted, got))
        got = got[got[:, 5] > SCORE]
        self._there += len(wanted)
        self._given += len(got)
        for least in MATCHES:
            self._hits[least] += matched(wanted, got, least)

    def found(self, values: Values, samples: int, least: float = SCORE) -> Iterator[np.ndarray]:
        """Of each sample, (found, 6): x0 y0 x1 y1 class score, the best first; what scores more than `least`."""
        return found_in(self.part, values, least)

    def figures(self) -> dict[str, float]:
        """What the sums come to; nothing where the original found nothing."""
        if not self._there:
            return {}
        hits, strict = (self._hits[least] for least in MATCHES)
        both = self._there + self._given
        return {
            "box_f1": 2 * hits / both,
            "box_precision": hits / max(1, self._given),
            "box_recall": hits / self._there,
            "box_f1_75": 2 * strict / both,
        } | self._precision.figures()


def matched(wanted: np.ndarray, got: np.ndarray, least: float) -> int:
    """How many of the boxes that were got match a wanted one of their class."""
    close = np.where(wanted[:, None, 4] == got[None, :, 4], overlaps(wanted, got), 0.0)
    hits = 0
    for k in range(len(got)):
        best = int(close[:, k].argmax()) if len(wanted) else 0
        if len(wanted) and close[best, k] >= least:
            close[best] = 0.0
            hits += 1
    return hits
