"""Channel ids, and the ties between them.

Every index of every axis that may be cut has an integer *id*. The ids of a tensor are one numpy array with the
tensor's rank: an axis that carries ids has its true size there, an axis that must stay whole has size 1, so
numpy's own broadcasting, reshape, transpose and concatenate are the index maps of Broadcast, Reshape, Transpose
and Concat:

    NCHW activation    (1, C, 1, 1)        only channels may go
    after Flatten      (1, C·H·W)          every channel's id repeated H·W times
    heads split off    (1, 1, heads, d)    two axes carry ids *jointly*

`same` ties ids that must live or die together, `pin` says why an id must live. Nothing is decided until the
whole graph has been walked: then connected components are the *coupled channels*. A tensor that carries ids on
two axes must stay a box, so at the end its ids are tied along all axes but one (`_boxes`), whichever leaves
the most to prune.

Parameters are tied per axis (`Param.axis`: a weight may lose rows and columns independently) or like an
activation (`Param.joint`: a bias, a scale, a position embedding).

This module knows arrays and reasons. It knows no operator.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.graph.model import Use

Ids = np.ndarray
LIMIT = 1 << 21
"""Largest id array. A reshape that would need more (a dense head over a large map) is pinned instead."""

WRITES, READS, WITHIN = "writes", "reads", "within"


@dataclass
class Param:
    """A constant operand, seen from the node that reads it.

    Attributes:
        use: the node and input position that read it.
        shape: its size per axis.
        axes: axis -> ids, for weights; filled on demand by `axis`.
        roles: axis -> WRITES (rows: one per channel made), READS (columns: one per channel read), WITHIN.
        reads: axis -> the activation whose channels that axis contracts with.
        boxes: ids with the parameter's rank, for biases, scales and channels on several axes; filled by `joint`.
        seen: uses of the value that this constant has behind DequantizeLinear; they are cut with it.
        source: the constant that this one is a view of, transposed by `perm`.
    """

    ties: Ties
    use: Use
    shape: tuple[int, ...]
    axes: dict[int, Ids] = field(default_factory=dict)
    roles: dict[int, str] = field(default_factory=dict)
    reads: dict[int, str] = field(default_factory=dict)
    boxes: list[Ids] = field(default_factory=list)
    seen: list[Use] = field(default_factory=list)
    source: Param | None = None
    perm: tuple[int, ...] = ()

    def axis(self, axis: int, role: str = WITHIN, reads: str | None = None) -> Ids:
        """Ids of one axis of a weight, (length,), independent of its other axes."""
        axis %= len(self.shape)
        if self.source is not None:
            return self.source.axis(self.perm[axis], role, reads)
        if axis not in self.axes:
            self.axes[axis] = self.ties.fresh(self.shape[axis])
            self.roles[axis] = role
            self.ties.params.setdefault(self.use, self)
        if self.roles[axis] == WITHIN:  # what quantizes it came first
            self.roles[axis] = role
        if reads is not None:
            self.reads.setdefault(axis, reads)
        return self.axes[axis]

    def joint(self, axes: Iterable[int], role: str | None = None, reads: str | None = None) -> Ids:
        """Ids of the parameter as a whole, carried by `axes` only; with a role, its other axes are independent."""
        if self.source is not None:
            return self.source.joint([self.perm[a] for a in axes], role, reads).transpose(self.perm)
        carried = {a % len(self.shape) for a in axes}
        shape = [d if i in carried else 1 for i, d in enumerate(self.shape)]
        box = self.ties.fresh(int(np.prod(shape))).reshape(shape)
        for axis, ids in self.axes.items():
            if role is None or axis in carried:
                self.ties.same(box, ids.reshape([-1 if i == axis else 1 for i in range(len(shape))]))
        for other in self.boxes:
            if any(a > 1 and b > 1 for a, b in zip(shape, other.shape, strict=True)):
                self.ties.same(box, other)
        if role is not None:
            self.roles |= dict.fromkeys(carried, role)
            self.reads |= {} if reads is None else dict.fromkeys(carried, reads)
        self.boxes.append(box)
        self.ties.joints.append(box)
        self.ties.params.setdefault(self.use, self)
        return box

    def turned(self, perm: Sequence[int] | None) -> Param:
        """A transposed view: what is said of it is said of this constant."""
        order = tuple(reversed(range(len(self.shape)))) if perm is None else tuple(perm)
        shape = tuple(self.shape[k] for k in order)
        if self.source is not None:
            order = tuple(self.perm[k] for k in order)
        view = Param(self.ties, self.use, shape, source=self.source or self, perm=order)
        self.ties.views.append(view)
        return view


@dataclass(frozen=True)
class Reason:
    """Why something must stay: the node it was said at, the tensor and axis it was said of, and the words."""

    node: str
    tensor: str
    axis: int | None
    text: str


class Ties:
    """Ids handed out so far, the ties between them and the pins on them."""

    def __init__(self) -> None:
        self.count = 0
        self.left: list[np.ndarray] = []
        self.right: list[np.ndarray] = []
        self.pins: list[tuple[np.ndarray, int]] = []
        self.reasons: list[Reason] = []
        self.params: dict[Use, Param] = {}
        self.reads: dict[Use, tuple[int, Ids]] = {}
        self.joints: list[Ids] = []
        self.views: list[Param] = []
        self.fillers: list[tuple[int, int]] = []
        self.quantizers: set[Use] = set()
        self.inexact: list[str] = []
        self.where = ""
        self.tensor = ""

    def fresh(self, count: int) -> Ids:
        """New ids, (count,)."""
        self.count += count
        return np.arange(self.count - count, self.count)

    def filler(self, shape: Sequence[int]) -> Ids:
        """New ids of something that is the same along some axes: it has as many channels as whatever it meets."""
        ids = self.fresh(int(np.prod(shape))).reshape(shape)
        self.fillers.append((self.count - ids.size, self.count))
        self.joints.append(ids)
        return ids

    def filled(self, ids: Ids) -> bool:
        """Whether these are of a filler, of one that met nothing so far."""
        low, high = int(ids.min()), int(ids.max())
        return any(start <= low and high < end for start, end in self.fillers)

    def same(self, first: Ids, *others: Ids) -> Ids:
        """These live or die together, element by element (numpy broadcasting). Returns the first."""
        for other in others:
            a, b = np.broadcast_arrays(first, other)
            differ = a != b
            self.left.append(a[differ])
            self.right.append(b[differ])
        return first

    def pin(self, ids: Ids, text: str, axis: int | None = None) -> None:
        """These must live, and why."""
        self.reasons.append(Reason(self.where, self.tensor, axis, text))
        self.pins.append((distinct(ids), len(self.reasons) - 1))

    def dead_end(self, rank: int, text: str) -> Ids:
        """Ids of a tensor with nothing to cut: one id, pinned for the reason given."""
        ids = self.fresh(1).reshape((1,) * rank)
        self.pin(ids, text)
        return ids

    def whole(self, ids: Ids, axis: int, text: str, cause: Ids | None = None) -> Ids:
        """Keep an axis whole. Ids carried by other axes as well are tied along this one; ids carried by this
        axis alone are pinned. Returns ids with size 1 on that axis."""
        axis %= ids.ndim
        if ids.shape[axis] == 1:
            return ids
        first = ids.take([0], axis)
        if first.size > 1:
            self.same(ids, first)
            return first
        if cause is not None and cause.size == 1:
            self.same(ids, cause.reshape((1,) * ids.ndim))  # hand on the reason that the other one has
        else:
            self.pin(ids, text, axis)
        return first

    def only(self, ids: Ids, axes: Sequence[int], text: str) -> Ids:
        """Keep every axis whole but `axes`."""
        for k in range(ids.ndim):
            if k not in [a % ids.ndim for a in axes]:
                ids = self.whole(ids, k, text)
        return ids

    def along(self, ids: Ids, axis: int, length: int, text: str) -> Ids:
        """The ids of one axis, (length,), every other axis kept whole."""
        ids = self.only(ids, [axis], text)
        return np.broadcast_to(ids.reshape(-1), (length,))

    def pinned(self, ids: Ids) -> bool:
        """Whether all of these are pinned by what is known so far."""
        labels, reason = self.components()
        return bool((reason[labels[ids]] >= 0).all())

    # -- after the walk ---------------------------------------------------------------------------------------

    def components(self) -> tuple[np.ndarray, np.ndarray]:
        """Component label of every id, (count,), and the first reason of every component or -1."""
        left = np.concatenate(self.left) if self.left else np.zeros(0, int)
        right = np.concatenate(self.right) if self.right else np.zeros(0, int)
        edges = coo_array((np.ones(len(left), bool), (left, right)), (self.count, self.count))
        number, labels = connected_components(edges, directed=False)
        reason = np.full(number, -1)
        for ids, index in reversed(self.pins):
            reason[labels[ids]] = index
        return labels, reason

    def resolve(self) -> tuple[np.ndarray, np.ndarray]:
        """Components once every tensor is a box."""
        while True:
            labels, reason = self.components()
            if not self._boxes(labels, reason):
                return labels, reason

    def _boxes(self, labels: np.ndarray, reason: np.ndarray) -> bool:
        """Tie the ids of tensors that would not stay boxes. Returns whether any tie was new."""
        changed = False
        seen: set[int] = set()
        for ids in self.joints:
            if id(ids) in seen or sum(d > 1 for d in ids.shape) < 2:
                continue
            seen.add(id(ids))
            now = np.where(reason[labels[ids]] >= 0, -1, labels[ids])
            if carrying_axis(now) is not None:
                continue
            best, most = -1, -1
            for k in [k for k, d in enumerate(ids.shape) if d > 1]:
                others = tuple(j for j in range(ids.ndim) if j != k)
                free = int((now != -1).all(axis=others).sum())
                if free >= most:
                    best, most = k, free
            others = tuple(j for j in range(ids.ndim) if j != best)
            first = ids
            for j in others:
                first = first.take([0], j)
            self.same(ids, first)
            changed = True
        return changed


def distinct(numbers: np.ndarray) -> np.ndarray:
    """`np.unique`, which takes ten times as long as a set for the few numbers of a narrow axis."""
    if numbers.size > 64:
        return np.unique(numbers)
    return np.array(sorted(set(numbers.ravel().tolist())), numbers.dtype)


def along(box: np.ndarray, axis: int) -> np.ndarray:
    """The entries along one axis, (length,), at the first index of every other."""
    return np.moveaxis(box, axis, 0).reshape(box.shape[axis], -1)[:, 0]


def carrying_axis(labels: np.ndarray) -> int | None:
    """The axis along which a box carries its labels: the labels repeat along all the others.

    Returns:
        The axis; 0 for an array without any free label; the longest where all labels are the same; None when the tensor
        would not stay a box.
    """
    if (labels == -1).all():
        return 0
    for k in sorted(range(labels.ndim), key=lambda k: -labels.shape[k]):
        first = labels
        for j in range(labels.ndim):
            if j != k:
                first = first.take([0], j)
        if (labels == first).all():
            return k
    return None
