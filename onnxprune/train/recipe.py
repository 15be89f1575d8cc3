"""A recipe: the user's file with labelled data and a loss, for training where labels exist.

    # recipe.py
    def batches():                       # called again for every pass
        for images, labels in ...:
            yield images, labels         # an array (one input) or a dict of arrays, and anything

    def loss(outputs, labels):           # outputs: dict of torch tensors by name, on the CPU wherever the net is
        return torch.nn.functional.cross_entropy(outputs["y"], torch.as_tensor(labels))

    def held_out():                      # if you like: labelled data that nothing is trained on, to judge by
        yield images, labels

Without `held_out` the first batches of the first pass are set apart, and left out wherever they come again, bit for
bit; a recipe that varies its samples at random had better say what to judge by. Nothing here knows what the labels are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxprune.errors import CalibrationError, UsageError
from onnxprune.runtime.ports import InputSpec
from onnxprune.samples.messages import as_error, shape_text, shown
from onnxprune.samples.user_code import load_function
from onnxprune.train.network import Network, as_feeds
from onnxprune.train.processes import rank, ranks

LOOKED_AT = 32
"""Batches of the first pass among which some are set apart: an eighth."""
JUDGED = 64
"""Batches of `held_out` that are looked at, at most."""
PIECE = 8
"""Samples of a batch that give one figure, where its labels can be taken apart."""

Pair = tuple[dict[str, Any], Any]
"""(samples by input, labels)."""


class Recipe:
    """A recipe's batches and loss; called, the loss of a network at a step.

    Args:
        path: of the file.
        inputs: the network's.
        hold: set some of it apart to judge by.

    Attributes:
        held: (samples, labels) that are not trained on.
        shared: whether they are trained on all the same, as there are no others.

    Raises:
        UsageError: the file lacks `batches` or `loss`, gives no batch, or what the network does not take; or it raises.
    """

    def __init__(self, path: str, inputs: Sequence[InputSpec], *, hold: bool = False):
        given, self._loss = (load_function(f"{path}:{name}", UsageError)[0] for name in ("batches", "loss"))
        self.path, self._inputs, self._stream = path, inputs, _endless(given, path)
        self._item: Any = None
        self._taken = 0
        self.held: list[Pair] = []
        self.shared = False
        self._apart: set[int] = set()
        if hold:
            self._set_apart()

    def _set_apart(self) -> None:
        """Choose what to judge by, and leave it out of what is drawn."""
        try:
            own = load_function(f"{self.path}:held_out")[0]
        except CalibrationError:
            own = None
        if own is not None:
            self.held = self._pairs(own, "held_out", JUDGED)
            return
        pairs = self._pairs(load_function(f"{self.path}:batches")[0], "batches", LOOKED_AT)
        count = max(1, len(pairs) // 8)
        apart = {mark for samples, _ in pairs[:count] for mark in _marks(samples)}
        self.shared = all(mark in apart for samples, _ in pairs[count:] for mark in _marks(samples))
        self._apart = set() if self.shared else apart
        self.held = pairs[:count]

    def _pairs(self, given: Callable[[], Any], name: str, most: int) -> list[Pair]:
        """The first of what a function of the file gives."""
        with as_error(UsageError, f"{shown(self.path)}: {name}() raised"):
            found = list(itertools.islice(given(), most))
        if not found:
            raise UsageError(f"{shown(self.path)}: {name}() gives no batch")
        return [self._pair(item) for item in found]

    def _pair(self, item: Any) -> Pair:
        if not (isinstance(item, tuple) and len(item) == 2):
            raise UsageError(f"{shown(self.path)}: batches() must yield pairs (samples, labels)")
        samples, labels = item
        given = samples if isinstance(samples, dict) else {self._inputs[0].name: samples}
        return {spec.name: self._fitting(spec, given) for spec in self._inputs}, labels

    def _next(self) -> Pair:
        """The next batch without what was set apart; a batch whose labels cannot be taken apart goes as a whole."""
        while True:
            samples, labels = self._pair(next(self._stream))
            if not self._apart:
                return samples, labels
            left = [k for k, mark in enumerate(_marks(samples)) if mark not in self._apart]
            if len(left) == _count(samples):
                return samples, labels
            if left and _parts(samples, labels):
                return {name: np.asarray(v)[left] for name, v in samples.items()}, _rows(labels, left)

    def batch(self, step: int) -> Pair:
        """(samples by input, labels) of a step: batch after batch, from the start again when they end."""
        while self._taken <= step * ranks() + rank():  # every process takes its own; a run that goes on passes by
            with as_error(UsageError, f"{shown(self.path)}: batches() raised"):
                self._item = self._next()
            self._taken += 1
        pair: Pair = self._item
        return pair

    def _fitting(self, spec: InputSpec, samples: dict[str, Any]) -> np.ndarray:
        """What is given for an input, as an array that the network takes."""
        where = f"{shown(self.path)}: batches() yields"
        if spec.name not in samples:
            raise UsageError(f"{where} nothing for input {spec.name!r}, but for {', '.join(map(str, samples))}")
        with as_error(UsageError, f"{where} no array for input {spec.name!r}:"):
            value = np.asarray(samples[spec.name])
        fits = value.ndim == len(spec.shape) and all(
            not isinstance(axis, int) or axis == size
            for axis, size in zip(spec.shape[1:], value.shape[1:], strict=True)
        )
        if not fits or not value.size:
            raise UsageError(f"{where} {list(value.shape)} for input {spec.name!r} of shape {shape_text(spec.shape)}")
        if value.dtype.kind == spec.dtype.kind == "f":
            return value.astype(spec.dtype, copy=False)
        if value.dtype != spec.dtype:
            raise UsageError(f"{where} {value.dtype} for input {spec.name!r}, which is {spec.dtype}; cast or scale it")
        return value

    def loss(self, outputs: dict[str, Tensor], labels: Any) -> Tensor:
        """What the file says that outputs cost."""
        device = next(iter(outputs.values())).device
        with as_error(UsageError, f"{shown(self.path)}: loss() raised"):
            value = self._loss({name: output.cpu() for name, output in outputs.items()}, labels)
        if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
            raise UsageError(f"{shown(self.path)}: loss() must return a torch scalar, not {_kind_of(value)}")
        if torch.is_grad_enabled() and not value.requires_grad and any(o.requires_grad for o in outputs.values()):
            raise UsageError(f"{shown(self.path)}: loss() returns what does not depend on the outputs; it must")
        return value.to(device)

    def losses(self, outputs: dict[str, Tensor], samples: dict[str, Any], labels: Any) -> list[Tensor]:
        """The loss of every few samples of a batch, or of all where its labels or outputs cannot be taken apart."""
        count = _count(samples)
        if not _parts(samples, labels) or any(v.ndim == 0 or len(v) != count for v in outputs.values()):
            return [self.loss(outputs, labels)]
        cuts = [slice(i, i + PIECE) for i in range(0, count, PIECE)]
        return [self.loss({name: v[cut] for name, v in outputs.items()}, labels[cut]) for cut in cuts]

    def __call__(self, network: Network, step: int, device: torch.device) -> Tensor:
        feeds, labels = self.batch(step)
        return self.loss(network(as_feeds(feeds, device)), labels)


def _kind_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)} and type {value.dtype}"
    return type(value).__name__


def _endless(given: Callable[[], Any], path: str) -> Iterator[Any]:
    while True:
        empty = True
        for item in given():
            empty = False
            yield item
        if empty:
            raise UsageError(f"{shown(path)}: batches() gives no batch")


def _count(samples: dict[str, Any]) -> int:
    return len(next(iter(samples.values())))


def _marks(samples: dict[str, Any]) -> list[int]:
    """A number for every sample, the same for the same bytes."""
    arrays = [np.ascontiguousarray(v) for v in samples.values()]
    return [hash(tuple(a[k].tobytes() for a in arrays)) for k in range(_count(samples))]


def _parts(samples: dict[str, Any], labels: Any) -> bool:
    """Whether labels are one a sample, and can be taken apart."""
    lists = isinstance(labels, np.ndarray | Tensor | list) and getattr(labels, "ndim", 1) > 0
    return lists and len(labels) == _count(samples)


def _rows(labels: Any, rows: Sequence[int]) -> Any:
    return [labels[k] for k in rows] if isinstance(labels, list) else labels[list(rows)]
