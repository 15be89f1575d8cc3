"""Texts read from a sequence of class scores (CTC): how they are told, and how alike two networks read.

Read greedily: the best class of every step, repeats merged, and the class that is no character left out; blanks at
either end do not count where the file says which characters classes are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.measure.kinds.look import Look, normalized
from onnxprune.measure.part import TEXT, Part, Values

STEPS, CLASSES, BLANK = 4, 8, 0.3
"""Fewer steps or classes are no text; share of the steps of the most frequent class, the first or last, that is."""
MAKERS = frozenset(("MatMul", "Gemm", "Add", "Conv"))
"""What may make the scores of steps before a softmax."""
CHARACTERS = "character"


def text(look: Look) -> dict[int, Part]:
    """Sequences of class scores of which the first or the last is the most frequent."""
    found = {}
    for k, part, value in look.open():
        if value.ndim != 3 or value.shape[2] < CLASSES or part.regions != ((),):
            continue
        batch = batch_axis(value, look.samples)
        blank = _blank(value.argmax(axis=-1), value.shape[2]) if value.shape[1 - batch] >= STEPS else ""
        made = look.made_by(part) if blank else set()
        if blank and ((made and made <= MAKERS) or normalized(value, -1)):
            found[k] = replace(part, kind=TEXT, form=blank + _spaces(look, value.shape[2], blank), batch=batch)
    for k, part, value in look.of_kind(TEXT):
        counts = np.bincount(value.argmax(axis=-1).ravel(), minlength=2)
        blank = "-1" if len(counts) == value.shape[-1] and counts[-1] > counts[0] else "0"
        form = blank + _spaces(look, value.shape[-1], blank)
        found[k] = replace(part, form=form, batch=batch_axis(value, look.samples))
    return found


def batch_axis(value: np.ndarray, samples: int | None) -> int:
    """The axis of samples: the first, unless only the second has as many."""
    return int(value.ndim > 1 and samples is not None and value.shape[0] != samples == value.shape[1])


def _blank(best: np.ndarray, classes: int) -> str:
    """The class that is no character, as numpy takes it; empty where there seems to be none."""
    counts = np.bincount(best.ravel(), minlength=classes)
    top = int(counts.argmax())
    wide = counts[top] >= BLANK * best.size and np.count_nonzero(counts) > 2
    return {0: "0", classes - 1: "-1"}.get(top, "") if wide else ""


def _spaces(look: Look, classes: int, blank: str) -> str:
    """The classes that are blank characters, each behind a space, by the list of characters that recognisers carry in
    their metadata: a line each, and in the end one that is not listed."""
    listed = {p.key: p.value for p in look.graph.model.metadata_props}.get(CHARACTERS) if look.graph else None
    lines = listed.splitlines() if isinstance(listed, str) else []  # bytes: no UTF-8
    if len(lines) not in (classes - 1, classes - 2):
        return ""
    lines = [*lines, " "][: classes - 1]
    return "".join(f" {k + (blank == '0')}" for k, line in enumerate(lines) if line.isspace())


def texts(part: Part, value: np.ndarray) -> Iterator[np.ndarray]:
    """The classes that each sample is read as."""
    value = np.moveaxis(value, part.batch, 0)
    blank, *spaces = (int(k) % value.shape[-1] for k in (part.form or "0").split())
    for row in value.argmax(axis=-1):
        fresh = row[np.flatnonzero(np.r_[True, row[1:] != row[:-1]])]
        read = fresh[fresh != blank]
        inked = np.flatnonzero(~np.isin(read, spaces))
        yield read[inked[0] : inked[-1] + 1] if len(inked) else read[:0]


def distance(a: np.ndarray, b: np.ndarray) -> int:
    """Least number of characters to put in, take out or change (Levenshtein, 1966)."""
    places = np.arange(len(b) + 1)
    row = places.copy()
    for k, one in enumerate(a, 1):
        changed = np.r_[k, np.minimum(row[1:] + 1, row[:-1] + (b != one))]
        row = np.minimum.accumulate(changed - places) + places  # characters put in, one after the other
    return int(row[-1])


@dataclass
class Reading:
    """What is summed up of texts.

    Attributes:
        part: the scores.
    """

    part: Part
    _same: int = 0
    _texts: int = 0
    _wrong: int = 0
    _characters: int = 0

    def add(self, was: Values, now: Values, samples: int) -> None:
        """A batch more: the outputs of both."""
        name = self.part.output
        for a, b in zip(*(texts(self.part, self.part.of(v[name])) for v in (was, now)), strict=True):
            self.count(a, b)

    def count(self, a: np.ndarray, b: np.ndarray) -> None:
        """A text, and what it was read as."""
        self._texts += 1
        self._characters += max(len(a), len(b))
        same = np.array_equal(a, b)
        self._same += same
        self._wrong += 0 if same else distance(a, b)

    def figures(self) -> dict[str, float]:
        """What the sums come to; nothing where no character was read."""
        if not self._characters:
            return {}
        return {"words": self._same / self._texts, "characters": 1 - self._wrong / self._characters}
