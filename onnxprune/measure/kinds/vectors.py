"""Embeddings, points, regressed values and state: how they are told, and what is asked of each."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.stats import rankdata

from onnxprune.graph.joined import is_state
from onnxprune.measure.kinds.look import Look, normalized
from onnxprune.measure.part import EMBEDDING, INTEGERS, KEYPOINTS, STATE, Part, Values

LONG = 32
"""Numbers from which a vector may be an embedding."""
NAMED = re.compile(r"embed|descriptor|feature", re.IGNORECASE)
LENGTHS = frozenset(("LpNormalization", "BatchNormalization", "LayerNormalization"))
"""What embeddings end in, and class scores do not."""
POINTS = (3, 512)
NEAR = 0.05
"""Share of the extent of the points of a sample from which a point is elsewhere."""
ROWS, PLACES = 2048, 16
"""Samples, and places of each, that ranks and neighbours are looked at of."""


# ---- how they are told ---------------------------------------------------------------------------------------


def integers(look: Look) -> dict[int, Part]:
    """Whole numbers."""
    return {
        k: replace(part, kind=INTEGERS)
        for k, part in enumerate(look.parts)
        if k not in look.decided and look.value(k).dtype.kind in "iub"
    }


def states(look: Look) -> dict[int, Part]:
    """The last states of recurrent layers."""
    graph = look.graph
    if graph is None:
        return {}
    return {k: replace(part, kind=STATE) for k, part, _ in look.open() if is_state(graph, part.output)}


def embeddings(look: Look) -> dict[int, Part]:
    """(samples, many) of length one, or behind a normalization, or so named."""
    return {k: replace(part, kind=EMBEDDING) for k, part, value in look.open() if is_embedding(look, part, value)}


def is_embedding(look: Look, part: Part, value: np.ndarray) -> bool:
    """Whether a part is vectors that are compared with each other."""
    if value.ndim != 2 or value.shape[1] < LONG or part.regions != ((),) or normalized(value, -1):
        return False
    made = look.made_by(part)
    if NAMED.search(part.output) or (made and made <= LENGTHS):
        return True
    return bool(np.allclose(np.linalg.norm(value.astype(np.float64), axis=1), 1.0, atol=1e-3))


def keypoints(look: Look) -> dict[int, Part]:
    """(samples, points, 2 or 3)."""
    return {
        k: replace(part, kind=KEYPOINTS)
        for k, part, value in look.open()
        if value.ndim == 3 and value.shape[2] in (2, 3) and POINTS[0] <= value.shape[1] <= POINTS[1]
        and part.regions == ((),) and not normalized(value, -1)
    }  # fmt: skip


# ---- how alike -----------------------------------------------------------------------------------------------


@dataclass
class Correlation:
    """What is summed up for correlations over the samples, place by place.

    Attributes:
        part: any values.
    """

    part: Part
    _first: np.ndarray | None = None
    _rows: int = 0
    _sums: tuple[np.ndarray, np.ndarray] | None = None
    _squares: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    _ranked: list[np.ndarray] = field(default_factory=list)
    _resized: bool = False

    def add(self, was: Values, now: Values, samples: int) -> None:
        """A batch more: the outputs of both."""
        a, b = (self.part.of(v[self.part.output]).astype(np.float64) for v in (was, now))
        if a.ndim == 0 or len(a) != samples:
            self._resized = True
            return
        a, b = a.reshape(samples, -1), b.reshape(samples, -1)
        if self._first is None:
            self._first, self._sums = a[0].copy(), (np.zeros(a.shape[1]), np.zeros(a.shape[1]))
        self._resized |= self._first.shape != a[0].shape
        if self._resized:
            return
        a, b = a - self._first, b - self._first  # means far from zero do not drown them
        assert self._sums is not None
        self._sums = self._sums[0] + a.sum(axis=0), self._sums[1] + b.sum(axis=0)
        for k, (u, v) in enumerate(((a, a), (a, b), (b, b))):
            self._squares[k] += float((u * v).sum())
        if self._rows < ROWS:
            at = np.unique(np.linspace(0, a.shape[1] - 1, PLACES).round().astype(int))
            self._ranked.append(np.stack([a[:, at], b[:, at]])[:, : ROWS - self._rows])
        self._rows += samples

    def figures(self) -> dict[str, float]:
        """What the sums come to; nothing where sizes differ, or where nothing varies."""
        if self._resized or self._rows < 3 or self._sums is None:
            return {}
        u, v = self._sums
        aa, ab, bb = (
            s - float((p * q).sum()) / self._rows
            for s, (p, q) in zip(self._squares, ((u, u), (u, v), (v, v)), strict=True)
        )
        least = 1e-12 * max(self._squares[0], 1e-300)
        found = {"pearson": ab / float(np.sqrt(aa * bb)) if bb > least else 0.0} if aa > least else {}
        ranks = np.concatenate(self._ranked, axis=1)
        alive = [k for k in range(ranks.shape[2]) if np.ptp(ranks[0, :, k]) > 0]
        each = [_ranks_alike(ranks[0, :, k], ranks[1, :, k]) for k in alive]
        return found | ({"spearman": float(np.mean(each))} if each else {})


def _ranks_alike(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation; 0 where the second does not vary."""
    u, v = rankdata(a), rankdata(b)
    return float(np.corrcoef(u, v)[0, 1]) if np.ptp(v) > 0 else 0.0


@dataclass
class Neighbours:
    """What is kept of embeddings: those of the first samples.

    Attributes:
        part: the embeddings.
    """

    part: Part
    _kept: list[np.ndarray] = field(default_factory=list)
    _rows: int = 0

    def add(self, was: Values, now: Values, samples: int) -> None:
        """A batch more: the outputs of both."""
        pair = [self.part.of(v[self.part.output]) for v in (was, now)]
        if self._rows < ROWS and pair[0].ndim > 1:
            rows = np.stack([p.reshape(len(p), -1).astype(np.float32) for p in pair])[:, : ROWS - self._rows]
            self._kept.append(rows)
            self._rows += rows.shape[1]

    def figures(self) -> dict[str, float]:
        """The share of those that find themselves, by cosine, among the original's; needs two."""
        if self._rows < 2 or len({k.shape[2] for k in self._kept}) > 1:
            return {}
        was, now = np.concatenate(self._kept, axis=1)
        was, now = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-30) for v in (was, now))
        alike = now @ was.T
        own = np.diag(alike)[:, None]
        return {"recall1": float(((alike > own + 1e-6).sum(axis=1) == 0).mean())}


@dataclass
class Points:
    """How many points stand where they stood.

    Attributes:
        part: (samples, points, coordinates), or coordinates one after the other.
    """

    part: Part
    _near: int = 0
    _points: int = 0

    def add(self, was: Values, now: Values, samples: int) -> None:
        """A batch more: the outputs of both."""
        a, b = (self.part.of(v[self.part.output]).astype(np.float64) for v in (was, now))
        if a.ndim < 3:
            a, b = (v.reshape(len(v), -1, 2) if v.size % (2 * len(v)) == 0 else v[..., None] for v in (a, b))
        a, b = a[..., :2], b[..., :2]  # a third number is a depth or a score
        extent = np.linalg.norm(np.ptp(a, axis=-2), axis=-1)
        away = np.linalg.norm(a - b, axis=-1)
        self._near += int((away <= NEAR * extent[..., None]).sum())
        self._points += away.size

    def figures(self) -> dict[str, float]:
        """What the sums come to."""
        return {"keypoints": self._near / self._points} if self._points else {}
