"""Average precision of boxes as COCO has it: the area under precision over recall, as the least score falls.

Precision at a recall is the best at that recall or a higher one, taken at 101 recalls from 0 to 1 (Lin et al., 2014;
https://cocodataset.org/#detection-eval); the mean over the classes that are there, at IoU 0.5, or over ten IoUs from
0.5 to 0.95. Knows no network: rows are x0 y0 x1 y1 class score.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

MATCHES = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
LOW = 0.05
"""Least score of the boxes that are ranked; what scores less hardly adds to the area."""


@dataclass
class Precision:
    """What is summed up of boxes."""

    _there: list[np.ndarray] = field(default_factory=list)
    _given: list[np.ndarray] = field(default_factory=list)
    _hits: list[np.ndarray] = field(default_factory=list)

    def add(self, wanted: np.ndarray, got: np.ndarray, overlaps: np.ndarray) -> None:
        """A sample more.

        Args:
            wanted: (true, 6) boxes.
            got: (found, 6) boxes, the best scored first.
            overlaps: (true, found) IoU.
        """
        self._there.append(wanted[:, 4])
        self._given.append(got[:, 4:6])
        close = np.where(wanted[:, None, 4] == got[None, :, 4], overlaps, 0.0)
        hits, free = np.zeros((len(got), len(MATCHES)), bool), np.ones((len(MATCHES), len(wanted)), bool)
        for k in np.flatnonzero(close.max(axis=0, initial=0.0) >= MATCHES[0]):
            each = np.where(free, close[:, k], 0.0)
            best = each.argmax(axis=1)
            hits[k] = each.max(axis=1) >= MATCHES
            free[np.flatnonzero(hits[k]), best[hits[k]]] = False
        self._hits.append(hits)

    def figures(self) -> dict[str, float]:
        """`box_map50` and `box_map`, 0 to 1; nothing where there is no true box."""
        there = np.concatenate(self._there) if self._there else np.empty(0)
        if not len(there):
            return {}
        given, hits = np.concatenate(self._given), np.concatenate(self._hits)
        order = np.argsort(-given[:, 1], kind="stable")
        given, hits = given[order], hits[order]
        areas = [_areas(hits[given[:, 0] == c], int((there == c).sum())) for c in np.unique(there)]
        each = np.mean(areas, axis=0)
        return {"box_map50": float(each[0]), "box_map": float(each.mean())}


def _areas(hits: np.ndarray, there: int) -> np.ndarray:
    """(IoUs,) average precision of one class.

    Args:
        hits: (found, IoUs) whether each matches a true box, the best scored first.
        there: true boxes.
    """
    right = np.cumsum(hits, axis=0)
    precision = right / np.arange(1, len(hits) + 1)[:, None]
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    at = [np.searchsorted(recall, RECALLS) for recall in (right / there).T]
    return np.array([np.append(p, 0.0)[k].mean() for p, k in zip(precision.T, at, strict=True)])
