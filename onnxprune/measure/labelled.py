"""Metrics with labels that need no code: what `--eval labelled.npz` measures. One entry a kind of labels.

The labels lie in the archive beside the model's inputs. What kind they are is told from the name under which they
stand and from their sizes, and the output that they are of from what the outputs are for (`measure.parts`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from onnxprune.measure.kinds import boxes, text
from onnxprune.measure.kinds.precision import LOW
from onnxprune.measure.kinds.scores import SET, Classes, Sets
from onnxprune.measure.part import (
    BOXES,
    CLASS_MAP,
    DETECTIONS,
    INTEGERS,
    LABELS,
    MASK,
    SCORES,
    TEXT,
    Part,
    Values,
)

NOBODY = 255
"""A class of a pixel that does not count, as in many data sets; as any below 0."""


class Judge(Protocol):
    """What sums up figures of outputs against labels."""

    def add(self, now: Values, at: slice, samples: int) -> None:
        """A batch more: the outputs on the samples `at`."""

    def figures(self) -> dict[str, float]:
        """Figures by name (`measure.figures`), 0 to 1."""


Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Labels:
    """A kind of labels.

    Attributes:
        name: what they are, in words.
        keys: names under which they may stand.
        wanted: what they look like, in words.
        fits: whether an array looks like that, of so many samples.
        kinds: of outputs that they may be of, in the order in which they are looked for.
        figures: what is measured; the first where nobody says.
        judge: (labels, all arrays, part, outputs on a sample) -> what sums it up; ValueError where they do not fit.
        beside: names of arrays that may say more.
        usual: (rank, kind, axis) of an output that is taken for one of them where none is told to be.
    """

    name: str
    keys: Sequence[str]
    wanted: str
    fits: Callable[[np.ndarray, int], bool]
    kinds: Sequence[str]
    figures: Sequence[str]
    judge: Callable[[np.ndarray, Arrays, Part, Values], Judge]
    beside: Sequence[str] = ()
    usual: tuple[int, str, int] | None = None


# ---- classes and labels --------------------------------------------------------------------------------------


def _decided(part: Part, value: np.ndarray) -> np.ndarray:
    """The classes that a part says."""
    if value.dtype.kind != "f":
        return value
    if part.kind == MASK or value.ndim == 1 or value.shape[part.axis] == 1:
        return (value > SET).astype(np.int64)
    return value.argmax(axis=part.axis)


@dataclass
class OfClasses:
    """What is summed up of one class a sample."""

    truth: np.ndarray
    part: Part
    _right: int = 0
    _near: int = 0
    _count: int = 0
    _wide: bool = False

    def add(self, now: Values, at: slice, samples: int) -> None:
        """A batch more."""
        value, truth = self.part.of(now[self.part.output]), self.truth[at]
        self._right += int((_decided(self.part, value).reshape(len(truth)) == truth).sum())
        self._count += len(truth)
        self._wide = value.dtype.kind == "f" and value.ndim == 2 and value.shape[1] > 9
        if self._wide:
            five = np.argsort(-value, axis=1, kind="stable")[:, :5]
            self._near += int((five == truth[:, None]).any(axis=1).sum())

    def figures(self) -> dict[str, float]:
        """What the sums come to."""
        return {"top1": self._right / self._count} | ({"top5": self._near / self._count} if self._wide else {})


def _of_classes(labels: np.ndarray, arrays: Arrays, part: Part, now: Values) -> Judge:
    value = part.of(now[part.output])
    if _decided(part, value).size != len(value):
        raise ValueError(f"it says {list(value.shape[1:])} numbers a sample, not one class")
    return OfClasses(labels.ravel(), part)


@dataclass
class OfLabels:
    """What is summed up of several labels a sample, set or not."""

    truth: np.ndarray
    part: Part
    sums: Sets = field(init=False)
    _same: int = 0
    _count: int = 0

    def __post_init__(self) -> None:
        self.sums = Sets(self.part)

    def add(self, now: Values, at: slice, samples: int) -> None:
        """A batch more."""
        value, truth = self.part.of(now[self.part.output]), self.truth[at]
        self.sums.count(truth > 0, value > SET)
        self._same += int(((truth > 0) == (value > SET)).sum())
        self._count += truth.size

    def figures(self) -> dict[str, float]:
        """What the sums come to."""
        return {"labels": self._same / self._count} | self.sums.figures()


def _of_labels(labels: np.ndarray, arrays: Arrays, part: Part, now: Values) -> Judge:
    _alike(labels, part.of(now[part.output]).shape[1:])
    return OfLabels(labels, part)


def _alike(labels: np.ndarray, sizes: Sequence[int]) -> None:
    if tuple(labels.shape[1:]) != tuple(sizes):
        raise ValueError(f"labels have {list(labels.shape[1:])} a sample, the output {list(sizes)}")


# ---- masks ---------------------------------------------------------------------------------------------------


@dataclass
class OfMasks:
    """What is summed up of the classes of pixels; those of which nobody knows the class do not count."""

    truth: np.ndarray
    part: Part
    sums: Classes = field(init=False)
    _right: int = 0
    _count: int = 0

    def __post_init__(self) -> None:
        self.sums = Classes(self.part)

    def add(self, now: Values, at: slice, samples: int) -> None:
        """A batch more."""
        truth = np.asarray(self.truth[at], np.int64)
        got = _decided(self.part, self.part.of(now[self.part.output])).reshape(truth.shape)
        known = (truth >= 0) & (truth != NOBODY)
        self.sums.count(truth[known], got[known])
        self._right += int((truth == got)[known].sum())
        self._count += int(known.sum())

    def figures(self) -> dict[str, float]:
        """What the sums come to: mean IoU over the classes that are in either."""
        return {"miou": self.sums.overlap(), "pixels": self._right / max(1, self._count)}


def _of_masks(labels: np.ndarray, arrays: Arrays, part: Part, now: Values) -> Judge:
    labels = labels[:, 0] if labels.ndim == 4 else labels
    sizes = _decided(part, part.of(now[part.output])).shape[1:]
    _alike(labels, sizes[1:] if len(sizes) == 3 and sizes[0] == 1 else sizes)
    return OfMasks(labels, part)


# ---- boxes ---------------------------------------------------------------------------------------------------


@dataclass
class OfBoxes:
    """What is summed up of boxes.

    Attributes:
        truth: of each sample, (true, 6) x0 y0 x1 y1 class 1.
        sums: of the kind of the part.
    """

    truth: Sequence[np.ndarray]
    sums: boxes.Matches

    def add(self, now: Values, at: slice, samples: int) -> None:
        """A batch more."""
        for wanted, got in zip(self.truth[at], self.sums.found(now, samples, LOW), strict=True):
            self.sums.count(wanted, got)

    def figures(self) -> dict[str, float]:
        """What the sums come to."""
        return self.sums.figures()


def _of_boxes(labels: np.ndarray, arrays: Arrays, part: Part, now: Values) -> Judge:
    from onnxprune.measure.kinds.table import KINDS

    if part.kind == BOXES and not part.form.startswith("xy"):
        raise ValueError(f"its boxes are {part.form.split(' objectness')[0]}, and nobody knows of which anchors")
    count, form = _samples(arrays), str(arrays.get("box_form", "xyxy"))
    if form not in ("xyxy", "xywh"):
        raise ValueError(f"box_form is {form!r}, neither xyxy nor xywh (corner and size)")
    if labels.ndim == 3:  # those that fill up have a class below 0
        each = [rows[rows[:, 4] >= 0] for rows in labels]
    else:
        if len(labels) and not 0 <= labels[:, 0].min() <= labels[:, 0].max() < count:
            raise ValueError(f"the first number of a row is its sample, 0 to {count - 1}")
        each = [labels[labels[:, 0] == k, 1:] for k in range(count)]
    truth = [np.column_stack([rows.astype(np.float64), np.ones(len(rows))]) for rows in each]
    for rows in truth if form == "xywh" else ():
        rows[:, 2:4] += rows[:, :2]
    (sums,) = (sums(part) for sums in KINDS[part.kind].sums)
    assert isinstance(sums, boxes.Matches)
    return OfBoxes(truth, sums)


def _samples(arrays: Arrays) -> int:
    return int(arrays["samples"])


# ---- texts ---------------------------------------------------------------------------------------------------


@dataclass
class OfTexts:
    """What is summed up of texts.

    Attributes:
        truth: the texts.
        characters: class -> the character; the one that is none is empty.
    """

    truth: Sequence[str]
    part: Part
    characters: Sequence[str]
    sums: text.Reading = field(init=False)

    def __post_init__(self) -> None:
        self.sums = text.Reading(self.part)

    def add(self, now: Values, at: slice, samples: int) -> None:
        """A batch more."""
        read = text.texts(self.part, self.part.of(now[self.part.output]))
        for wanted, got in zip(self.truth[at], read, strict=True):
            said = "".join(self.characters[k] for k in got).strip()
            self.sums.count(np.array(list(wanted.strip())), np.array(list(said)))

    def figures(self) -> dict[str, float]:
        """What the sums come to."""
        return self.sums.figures()


def _of_texts(labels: np.ndarray, arrays: Arrays, part: Part, now: Values) -> Judge:
    classes = part.of(now[part.output]).shape[part.axis]
    given = arrays.get("characters")
    if given is None:
        raise ValueError("nobody says which characters its classes are; give them under characters, in their order")
    listed = list(str(given)) if given.ndim == 0 else [str(c) for c in given]
    blank = int((part.form or "0").split()[0]) % classes
    if len(listed) == classes - 2:  # as recognisers list them: a space comes last
        listed.append(" ")
    if len(listed) == classes - 1:
        listed.insert(blank, "")
    if len(listed) != classes:
        raise ValueError(f"it has {classes} classes, one of them none, and there are {len(listed)} characters")
    return OfTexts([str(t) for t in labels], part, listed)


# ---- the table -----------------------------------------------------------------------------------------------


def _whole(v: np.ndarray) -> bool:
    return v.dtype.kind in "iub"


def _is_boxes(v: np.ndarray, n: int) -> bool:
    per_sample = v.ndim == 3 and v.shape[2] == 5 and len(v) == n
    return v.dtype.kind in "iuf" and (per_sample or (v.ndim == 2 and v.shape[1] == 6)) and bool(np.isfinite(v).all())


NAMES = ("labels", "label", "y")
TABLE: Sequence[Labels] = (
    Labels(
        "classes", NAMES, "whole numbers, one a sample", lambda v, n: _whole(v) and v.size == len(v) == n,
        (SCORES, LABELS, INTEGERS), ("top1", "top5"), _of_classes, (), (2, SCORES, -1),
    ),
    Labels(
        "labels", NAMES, "0 or 1, (samples, labels)",
        lambda v, n: _whole(v) and v.ndim == 2 and len(v) == n and not np.setdiff1d(v, (0, 1)).size,
        (LABELS,), ("label_f1", "labels"), _of_labels,
    ),
    Labels(
        "masks", ("masks", "mask", *NAMES), "whole numbers, (samples, height, width)",
        lambda v, n: _whole(v) and len(v) == n and (v.ndim == 3 or (v.ndim == 4 and v.shape[1] == 1)),
        (CLASS_MAP, MASK, INTEGERS), ("miou", "pixels"), _of_masks, (), (4, CLASS_MAP, -3),
    ),
    Labels(
        "boxes", ("boxes",),
        "(boxes, 6) sample x0 y0 x1 y1 class, or (samples, most, 5) x0 y0 x1 y1 class, filled up with class -1",
        _is_boxes, (BOXES, DETECTIONS), ("box_map", "box_map50", "box_f1", "box_precision", "box_recall", "box_f1_75"),
        _of_boxes, ("box_form",),
    ),
    Labels(
        "texts", ("texts", "text"), "text, one a sample", lambda v, n: v.dtype.kind == "U" and v.shape == (n,),
        (TEXT,), ("words", "characters"), _of_texts, ("characters",),
    ),
)  # fmt: skip


def keys() -> Iterator[str]:
    """All names under which labels, and what is said of them, may stand."""
    yield from dict.fromkeys(k for entry in TABLE for k in (*entry.keys, *entry.beside))


def part_for(entry: Labels, parts: Sequence[Part], values: Values) -> Part | None:
    """The part that labels are of; None where there is none.

    Args:
        entry: their kind.
        parts: of the outputs.
        values: what the outputs are on a sample.
    """
    told = next((part for kind in entry.kinds for part in parts if part.kind == kind), None)
    if told is not None or entry.usual is None:
        return told
    rank, kind, axis = entry.usual
    shapes = {name: v.shape for name, v in values.items() if v.dtype.kind == "f" and v.ndim == rank}
    name = next((name for name, shape in shapes.items() if shape[axis] > 1), None)
    return None if name is None else Part(name, kind=kind, axis=axis)


def found_in(arrays: Mapping[str, Any], samples: int) -> tuple[Labels, np.ndarray] | None:
    """The kind of the labels among some arrays, and these; None where nothing fits."""
    for entry in TABLE:
        for key in entry.keys:
            if key in arrays and entry.fits(arrays[key], samples):
                return entry, arrays[key]
    return None
