"""Boxes as they are left after suppression, a row each: how they are told, and how those of two networks match.

How many there are, and in which order, may differ between two networks; they are matched as `measure.kinds.boxes` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.measure.kinds.boxes import SCORE, Matches, overlaps
from onnxprune.measure.kinds.look import Look
from onnxprune.measure.part import DETECTIONS, INTEGERS, Part, Values

LAYOUTS = ("xyxy score class", "xyxy class score", "class score xyxy", "sample xyxy class score",
           "sample class score xyxy")  # fmt: skip
"""What the numbers of a row may say, from front to back."""
APART = LAYOUTS[0]
"""That of rows whose numbers stand in several outputs."""
FEW, BOX = 4, 4
"""Rows below which nothing is told; numbers of a box."""


def places(layout: str) -> dict[str, int]:
    """The place of each number; of the box, of its first."""
    found, at = {}, 0
    for name in layout.split():
        found[name] = at
        at += 4 if name == "xyxy" else 1
    return found | {"all": at}


def layout_of(value: np.ndarray) -> str:
    """What rows say, told by whole numbers of classes, scores up to 1 and corners in order; empty where they do not."""
    if value.ndim not in (2, 3) or value.dtype.kind != "f" or not value.size:
        return ""
    rows = value.reshape(-1, value.shape[-1])
    for layout in LAYOUTS:
        at = places(layout)
        if at["all"] == rows.shape[1] and ("sample" in at) == (value.ndim == 2) and _fits(rows, at):
            return layout
    return ""


def _fits(rows: np.ndarray, at: Mapping[str, int]) -> bool:
    score, kinds = rows[:, at["score"]], [rows[:, at[name]] for name in ("class", "sample") if name in at]
    if score.max() > 1 or score.min() < -1:  # -1 fills what is left over
        return False
    there = np.asarray(score > SCORE / 5)
    whole = all((v == v.round()).all() and (v >= 0).all() for v in (kind[there] for kind in kinds))
    first = at["xyxy"]
    ordered = np.asarray((rows[:, first + 2 : first + 4] > rows[:, first : first + 2]).all(axis=1))
    return bool(there.sum() >= FEW and whole and (score != score.round()).any() and ordered[there].mean() >= 0.95)


def apart(look: Look) -> dict[int, Part]:
    """Corners, scores and classes of the same rows in three outputs."""
    free = [k for k, part in enumerate(look.parts) if k not in look.decided or part.kind == INTEGERS]
    plain = {k: look.parts[k] for k in free if k not in look.asked and look.parts[k].regions == ((),)}
    values = {k: look.value(k) for k in plain}
    for k, corners in values.items():
        if corners.ndim not in (2, 3) or corners.shape[-1] != BOX or corners.dtype.kind != "f" or not corners.size:
            continue
        if corners.ndim == 2 and look.samples not in (None, 1):
            continue
        alike = [j for j, v in values.items() if j != k and v.shape == corners.shape[:-1] and v.dtype.kind in "fiu"]
        for j, i in ((j, i) for j in alike for i in alike if i != j and values[j].dtype.kind == "f"):
            part = replace(plain[k], kind=DETECTIONS, form=APART, others=(plain[j].output, plain[i].output))
            if _fits(rows_of(part, look.values).reshape(-1, 6), places(APART)):
                return {k: part}
    return {}


def rows_of(part: Part, values: Values) -> np.ndarray:
    """The rows of a part, put together where they stand in several outputs."""
    own = part.of(np.asarray(values[part.output]))
    if not part.others:
        return own
    more = [np.asarray(values[name]) for name in part.others]
    fit = all(v.shape == own.shape[:-1] for v in more)
    return np.concatenate([own, *(v[..., None].astype(own.dtype) for v in more)], axis=-1) if fit else own[:0, ...]


def detections(look: Look) -> dict[int, Part]:
    """Rows of boxes."""
    found = {k: replace(part, kind=DETECTIONS, form=form) for k, part, value in look.open()
             if part.regions == ((),) and (form := layout_of(value))}  # fmt: skip
    found |= {} if found else apart(look)
    for k, part, value in look.of_kind(DETECTIONS):
        wide = value.shape[-1]
        usual = next((name for name in LAYOUTS if places(name)["all"] == wide), LAYOUTS[0])
        found[k] = replace(part, form=layout_of(value) or usual)
    return found


def found_in(part: Part, value: np.ndarray, samples: int, least: float = SCORE) -> Iterator[np.ndarray]:
    """Of each sample, (found, 6): x0 y0 x1 y1 class score, the best first; what scores more than `least`."""
    at = places(part.form)
    for k in range(samples):
        rows = value[k] if value.ndim == 3 else value
        if "sample" in at:
            rows = rows[rows[:, at["sample"]] == k]
        rows = rows[rows[:, at["score"]] > least]
        rows = rows[np.argsort(-rows[:, at["score"]], kind="stable")].astype(np.float64)
        box = rows[:, at["xyxy"] : at["xyxy"] + 4]
        yield np.column_stack([box, rows[:, at["class"]], rows[:, at["score"]]])


def mismatch(part: Part, was: Values, now: Values) -> float:
    """1 less an F1 in which a box of the same class counts by its IoU and by how near its score is: 0 for the same
    boxes in any order, 1 where none is left."""
    a, b = rows_of(part, was), rows_of(part, now)
    samples = len(a) if a.ndim == 3 else 1
    if a.ndim == 2 and not part.others:
        samples += int(max((v[:, 0].max() for v in (a, b) if len(v)), default=-1))
    shared, count = 0.0, 0
    for wanted, got in zip(*(found_in(part, v, samples) for v in (a, b)), strict=True):
        near = 1 - np.abs(wanted[:, None, 5] - got[None, :, 5])
        alike = np.where(wanted[:, None, 4] == got[None, :, 4], overlaps(wanted, got) * near, 0.0)
        count += len(wanted) + len(got)
        for k in range(len(got) if len(wanted) else 0):
            best = int(alike[:, k].argmax())
            shared += float(alike[best, k])
            alike[best] = 0.0
    return 1 - 2 * shared / count if count else 0.0


@dataclass
class Rows(Matches):
    """What is summed up of rows of boxes."""

    def found(self, values: Values, samples: int, least: float = SCORE) -> Iterator[np.ndarray]:
        """Of each sample, (found, 6): x0 y0 x1 y1 class score, the best first; what scores more than `least`."""
        return found_in(self.part, rows_of(self.part, values), samples, least)
