"""A recipe: the user's file with labelled data and a loss, for training where labels exist.

    # recipe.py
    def batches():                       # called again for every pass
        for images, labels in ...:
            yield images, labels         # an array (one input) or a dict of arrays, and anything

    def loss(outputs, labels):           # outputs: dict of torch tensors by name, on the CPU wherever the net is
        return torch.nn.functional.cross_entropy(outputs["y"], torch.as_tensor(labels))

Nothing here knows what the labels are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxprune.errors import UsageError
from onnxprune.runtime.ports import InputSpec
from onnxprune.samples.messages import as_error, shape_text, shown
from onnxprune.samples.user_code import load_function
from onnxprune.train.loop import rank, ranks
from onnxprune.train.network import Network, as_feeds


class Recipe:
    """A recipe's batches and loss; called, the loss of a network at a step.

    Args:
        path: of the file.
        inputs: the network's.

    Raises:
        UsageError: the file lacks `batches` or `loss`, gives no batch, or what the network does not take; or it raises.
    """

    def __init__(self, path: str, inputs: Sequence[InputSpec]):
        given, self._loss = (load_function(f"{path}:{name}", UsageError)[0] for name in ("batches", "loss"))
        self.path, self._inputs, self._stream = path, inputs, _endless(given, path)
        self._item: Any = None
        self._taken = 0

    def batch(self, step: int) -> tuple[dict[str, Any], Any]:
        """(samples by input, labels) of a step: batch after batch, from the start again when they end."""
        while self._taken <= step * ranks() + rank():  # every process takes its own; a run that goes on passes by
            with as_error(UsageError, f"{shown(self.path)}: batches() raised"):
                self._item = next(self._stream)
            self._taken += 1
        if not (isinstance(self._item, tuple) and len(self._item) == 2):
            raise UsageError(f"{shown(self.path)}: batches() must yield pairs (samples, labels)")
        samples, labels = self._item
        given = samples if isinstance(samples, dict) else {self._inputs[0].name: samples}
        return {spec.name: self._fitting(spec, given) for spec in self._inputs}, labels

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
