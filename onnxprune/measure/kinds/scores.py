"""Class scores, labels, class maps and masks: how they are told, and what is asked of each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.measure.kinds.look import Look, finely, normalized, rows_along
from onnxprune.measure.kinds.vectors import is_embedding
from onnxprune.measure.part import BOXES, CLASS_MAP, LABELS, MASK, SCORES, TEXT, Part, Values

SIDE = 8
"""Height and width from which scores are a map."""
SIGMOIDS = frozenset(("Sigmoid", "HardSigmoid"))
MOST_CLASSES = 1 << 12
"""Whole numbers up to which a map of them is one of classes."""
SET = 0.5
"""From where a label or a pixel is set."""


# ---- how they are told ---------------------------------------------------------------------------------------


def labels(look: Look) -> dict[int, Part]:
    """Sigmoids, one a label, or one in all."""
    return {
        k: replace(part, kind=LABELS)
        for k, part, value in look.open()
        if _sigmoid(look, part) and value.ndim in (1, 2) and value.size
    }


def masks(look: Look) -> dict[int, Part]:
    """Maps of sigmoids that are near 0 or 1."""
    found = {}
    for k, part, value in look.open():
        if _sigmoid(look, part) and value.ndim in (3, 4) and min(value.shape[-2:]) >= SIDE:
            rows = rows_along(value, -1)
            if (np.minimum(rows, 1 - rows) < 0.1).mean() >= 0.7:
                found[k] = replace(part, kind=MASK)
    return found


def _sigmoid(look: Look, part: Part) -> bool:
    made = look.made_by(part)
    return bool(made) and made <= SIGMOIDS


def class_maps(look: Look) -> dict[int, Part]:
    """Maps of probabilities of classes, or of scores whose largest one lies in patches."""
    found = {}
    for k, part, value in look.open():
        if value.ndim != 4:
            continue
        for axis in (-3, -1):
            places = np.delete(value.shape[1:], axis % 4 - 1)
            if places.min() >= SIDE and (
                normalized(value, axis) or (axis == -3 and finely(look, value) and _patches(value))
            ):
                found[k] = replace(part, kind=CLASS_MAP, axis=axis)
                break
    return found


def _patches(value: np.ndarray) -> bool:
    """Whether the largest of several maps is the same at neighbouring places far more often than by chance, and the
    maps are neither alike, as colours are, nor flat but for peaks."""
    few = value[:8].astype(np.float64)
    if few.shape[1] < 2 or peaked(few):
        return False
    best = few.argmax(axis=1)
    shares = np.bincount(best.ravel()) / best.size
    chance = float(np.square(shares).sum())
    same = float((best[:, :, 1:] == best[:, :, :-1]).mean())
    if chance > 0.999 or (same - chance) / (1 - chance) < 0.5:
        return False
    rows = rows_along(few, 1)
    rows = rows[:, rows.std(axis=0) > 0]
    if rows.shape[1] < 2:
        return False
    alike = np.corrcoef(rows.T)[np.triu_indices(rows.shape[1], 1)].mean()
    return bool(alike < (-0.3 if few.shape[1] == 2 else 0.3))


def peaked(value: np.ndarray) -> bool:
    """Whether most maps (samples, maps, height, width) are nearly 0 but for peaks."""
    rows = np.abs(value).reshape(-1, value.shape[-2] * value.shape[-1])
    return bool((np.median(rows, axis=1) < 0.1 * rows.max(axis=1)).mean() >= 0.8)


def scores(look: Look) -> dict[int, Part]:
    """Probabilities of classes, or logarithms of such. Where no part says what is what so far: (samples, several) of
    any values, unless they are embeddings."""
    found = {}
    for k, part, value in look.open():
        axes = (-1, 1 - value.ndim) if value.ndim > 2 else (-1,)
        axis = next((a for a in axes if normalized(value, a)), None)
        if axis is not None:
            found[k] = replace(part, kind=SCORES, axis=axis)
    if found or any(look.parts[k].kind in (SCORES, LABELS, TEXT, CLASS_MAP, BOXES) for k in look.decided):
        return found
    return {k: replace(part, kind=SCORES) for k, part, value in look.open() if _by_shape(look, part, value)}


def _by_shape(look: Look, part: Part, value: np.ndarray) -> bool:
    if value.ndim != 2 or value.shape[1] < 2 or part.regions != ((),) or is_embedding(look, part, value):
        return False
    return not np.allclose(np.linalg.norm(value.astype(np.float64), axis=1), 1.0, atol=1e-3)


# ---- how alike -----------------------------------------------------------------------------------------------


@dataclass
class Classes:
    """What is summed up of decisions between classes, class by class.

    Attributes:
        part: the scores, or integers that are classes.
    """

    part: Part
    _hits: np.ndarray = field(default_factory=lambda: np.zeros(0))
    _was: np.ndarray = field(default_factory=lambda: np.zeros(0))
    _is: np.ndarray = field(default_factory=lambda: np.zeros(0))
    _near: int = 0
    _wide: bool = False

    def add(self, was: Values, now: Values, samples: int) -> None:
        """A batch more: the outputs of both."""
        a, b = (self.part.of(v[self.part.output]) for v in (was, now))
        if a.dtype.kind == "f":
            a, b = np.moveaxis(a, self.part.axis, -1), np.moveaxis(b, self.part.axis, -1)
            best = a.argmax(axis=-1)
            self._wide = a.shape[-1] > 9
            if self._wide and self.part.kind == SCORES:
                reached = np.take_along_axis(b, best[..., None], axis=-1)
                self._near += int(((b > reached).sum(axis=-1) < 5).sum())
            a, b = best, b.argmax(axis=-1)
        elif a.ndim < 3 or min(a.min(), b.min()) < 0 or max(a.max(), b.max()) >= MOST_CLASSES:
            return  # no map of classes
        self.count(a.ravel(), b.ravel())

    def count(self, a: np.ndarray, b: np.ndarray) -> None:
        """The classes that are true, and those that were given."""
        if not len(a):
            return
        count = 1 + int(max(a.max(), b.max(), len(self._was) - 1))
        for name, values in (("_hits", a[a == b]), ("_was", a), ("_is", b)):
            total = np.bincount(values, minlength=count).astype(np.float64)
            total[: len(getattr(self, name))] += getattr(self, name)
            setattr(self, name, total)

    def figures(self) -> dict[str, float]:
        """What the sums come to: by class, over those that the original has."""
        there = self._was > 0
        if not there.any():
            return {}
        if self.part.kind == SCORES:
            found = {"class_agreement": float((self._hits[there] / self._was[there]).mean())}
            return found | ({"top5": self._near / float(self._was.sum())} if self._wide else {})
        found = {"miou": self.overlap()}
        whole = {} if self.part.kind == CLASS_MAP else {"pixels": float(self._hits.sum() / self._was.sum())}
        return found | whole

    def overlap(self) -> float:
        """Mean IoU over the classes that are in either."""
        either = self._was + self._is - self._hits
        there = either > 0
        return float((self._hits[there] / either[there]).mean()) if there.any() else 0.0


@dataclass
class Sets:
    """What is summed up of what is set or not: labels, or the pixels of a mask.

    Attributes:
        part: the sigmoids.
    """

    part: Part
    _both: int = 0
    _was: int = 0
    _is: int = 0
    _best: int = 0
    _rows: int = 0

    def add(self, was: Values, now: Values, samples: int) -> None:
        """A batch more: the outputs of both."""
        u, v = (self.part.of(w[self.part.output]) for w in (was, now))
        self.count(u > SET, v > SET)
        if self.part.kind == LABELS and u.ndim == 2 and u.shape[1] > 1:
            self._best += int((u.argmax(axis=1) == v.argmax(axis=1)).sum())
            self._rows += len(u)

    def count(self, a: np.ndarray, b: np.ndarray) -> None:
        """What is set in truth, and what was."""
        self._both += int((a & b).sum())
        self._was += int(a.sum())
        self._is += int(b.sum())

    def figures(self) -> dict[str, float]:
        """What the sums come to; overlap only where something is set."""
        found: dict[str, float] = {"top1": self._best / self._rows} if self._rows else {}
        if self._was + self._is == 0:
            return found
        if self.part.kind == LABELS:
            return found | {"label_f1": 2 * self._both / (self._was + self._is)}
        return found | {"mask_iou": self._both / (self._was + self._is - self._both)}
