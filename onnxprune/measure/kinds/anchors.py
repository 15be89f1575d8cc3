"""Scores of anchors, and what else a detector says of each: how sure it is of what, and how alike two say the rest.

Scores are probabilities, or what becomes such: networks are exported before their last softmax or sigmoid as well. What
stands beside scores (points, angles, coefficients of masks, numbers of which a box is made later) says nothing where
there is nothing; it counts by the score, and by its square in R².
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from onnxprune.measure.kinds.look import Look, in_unit, normalized, rows_along
from onnxprune.measure.part import SCORES, Part, Values

PROBABILITIES, SIGMOID, SOFTMAX = "probabilities", "sigmoid", "softmax"
"""Forms of scores: of classes of which one is nothing, as they are; and what makes probabilities of them."""
NEGATIVE = 0.9
"""Share of the scores below 0 from which they are taken as those before a sigmoid: most say that there is nothing."""
NOTHING = 0.5
"""Share of the anchors whose best class is the first or the last from which that is nothing, before a softmax."""
SCALED, SCALES = 0.5, (0.1, 0.2)
"""Offsets of the middle, in sizes of the anchor, that no network gives where it is sure: larger ones are in units of
the usual scales, of the middle and of the logarithm of the size."""
SURE = 0.25
FAR, LARGEST = 1e3, 4.0
"""How far apart anchors are put whose places nobody knows, in their sizes; largest logarithm of a size."""


# ---- scores --------------------------------------------------------------------------------------------------


def form_of_scores(look: Look, part: Part, value: np.ndarray, axis: int) -> str | None:
    """What makes probabilities of scores; empty where they are such, None where they are no scores."""
    if in_unit(value):
        return PROBABILITIES if value.shape[axis] > 1 and normalized(value, axis) else ""
    if not np.isfinite(value).all() or value.shape[axis] >= value.size:
        return None
    rows = rows_along(value, axis)
    if rows.shape[1] > 1:
        best = rows.argmax(axis=1)
        if max(float((best == k).mean()) for k in (0, rows.shape[1] - 1)) >= NOTHING:
            return SOFTMAX
    return SIGMOID if float((rows < 0).mean()) >= NEGATIVE else None


def probabilities(part: Part, value: np.ndarray) -> np.ndarray:
    """The scores of a part as probabilities."""
    if part.form == SIGMOID:
        return np.asarray(1 / (1 + np.exp(-np.clip(value, -60, 60))))
    if part.form == SOFTMAX:
        raised = np.exp(value - value.max(axis=part.axis, keepdims=True))
        return np.asarray(raised / raised.sum(axis=part.axis, keepdims=True))
    return value


def by_anchors(part: Part, value: np.ndarray) -> np.ndarray:
    """(samples, anchors, numbers) of a part's values."""
    value = value[..., None] if value.ndim == 2 else np.moveaxis(value, part.axis, -1)
    return value.reshape(len(value), -1, value.shape[-1])


def class_scores(part: Part, values: Values) -> np.ndarray:
    """(samples, anchors, classes) scores of the classes that a box may have."""
    assert part.beside is not None
    own = part.beside
    scores = by_anchors(own, probabilities(own, own.of(values[own.output])))
    if own.kind == SCORES:  # one of them says that there is nothing: the first or the last
        first, last = (float(scores[..., k].mean()) for k in (0, -1))
        return scores[..., 1:] if first >= last else scores[..., :-1]
    return scores[..., 1:] * scores[..., :1] if part.form.endswith("objectness") else scores


def strength(part: Part, values: Values) -> np.ndarray:
    """How sure the network is of each anchor, along the part's own axes: the largest score."""
    value, best = part.of(values[part.output]), class_scores(part, values).max(axis=-1)
    return np.moveaxis(best.reshape(*np.moveaxis(value, part.axis, -1).shape[:-1], 1), -1, part.axis)


# ---- offsets from anchors ------------------------------------------------------------------------------------


def scaled(rows: np.ndarray, best: np.ndarray) -> bool:
    """Whether offsets (anchors, 4) are in units of the usual scales, by those of which a network is sure."""
    sure = rows[best > SURE] if (best > SURE).any() else rows
    return bool(np.quantile(np.abs(sure[:, :2]), 0.9) > SCALED)


def corners(rows: np.ndarray, form: str) -> np.ndarray:
    """(anchors, 4) corners of what is given as offsets, each in sizes of its anchor and far from all others: only boxes
    of the same anchor cover each other. Where the numbers are no offsets ("places"), each is a square."""
    number = FAR * np.arange(len(rows))[:, None]
    if form.startswith("places"):
        return np.concatenate([number - 0.5, number - 0.5, number + 0.5, number + 0.5], axis=1)
    move, grow = SCALES if form.startswith("scaled") else (1.0, 1.0)
    middle = number + np.clip(move * rows[:, :2], -FAR / 8, FAR / 8)
    half = np.exp(np.clip(grow * rows[:, 2:], -LARGEST, LARGEST)) / 2
    return np.concatenate([middle - half, middle + half], axis=1)


# ---- what stands beside --------------------------------------------------------------------------------------


@dataclass
class OfFound:
    """What is summed up of numbers that belong to anchors: squared errors and spread, each weighed by its score.

    Attributes:
        part: the numbers.
    """

    part: Part
    _noise: float = 0.0
    _sums: list[np.ndarray | float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def add(self, was: Values, now: Values, samples: int) -> None:
        """A batch more: the outputs of both."""
        if self.part.beside is None:
            return
        weight = np.square(class_scores(self.part, was).max(axis=-1)).reshape(-1, 1)
        a, b = (by_anchors(self.part, self.part.of(v[self.part.output])).astype(np.float64) for v in (was, now))
        a, b = (v.reshape(-1, v.shape[-1]) for v in (a, b))
        self._noise += float((weight * np.square(a - b)).sum())
        for k, more in enumerate((weight.sum(), (weight * a).sum(axis=0), (weight * np.square(a)).sum(axis=0))):
            self._sums[k] = self._sums[k] + more

    def figures(self) -> dict[str, float]:
        """What the sums come to: R², the spread being that of each number around its mean."""
        count, total, square = self._sums
        spread = float(np.sum(square - np.square(total) / max(float(np.sum(count)), 1e-30)))
        return {"box_r2": 1 - self._noise / spread} if spread > 1e-12 * float(np.sum(square)) else {}
