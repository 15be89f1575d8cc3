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

import torch
from torch import Tensor

from onnxprune.errors import UsageError
from onnxprune.samples.user_code import load_function
from onnxprune.train.loop import rank, ranks
from onnxprune.train.network import Network, as_feeds


class Recipe:
    """A recipe's batches and loss; called, the loss of a network at a step.

    Args:
        path: of the file.
        inputs: names of the network's inputs.

    Raises:
        UsageError: the file lacks `batches` or `loss`, or gives no batch.
    """

    def __init__(self, path: str, inputs: Sequence[str]):
        given, self._loss = (load_function(f"{path}:{name}")[0] for name in ("batches", "loss"))
        self.path, self._inputs, self._stream = path, inputs, _endless(given, path)
        self._item: Any = None
        self._taken = 0

    def batch(self, step: int) -> tuple[dict[str, Any], Any]:
        """(samples by input, labels) of a step: batch after batch, from the start again when they end."""
        while self._taken <= step * ranks() + rank():  # every process takes its own; a run that goes on passes by
            self._item = next(self._stream)
            self._taken += 1
        if not (isinstance(self._item, tuple) and len(self._item) == 2):
            raise UsageError(f"{self.path}: batches() must yield pairs (samples, labels)")
        samples, labels = self._item
        return samples if isinstance(samples, dict) else {self._inputs[0]: samples}, labels

    def loss(self, outputs: dict[str, Tensor], labels: Any) -> Tensor:
        """What the file says that outputs cost."""
        device = next(iter(outputs.values())).device
        value = self._loss({name: output.cpu() for name, output in outputs.items()}, labels)
        if not isinstance(value, Tensor) or value.ndim:
            raise UsageError(f"{self.path}: loss() must return a torch scalar")
        return value.to(device)

    def __call__(self, network: Network, step: int, device: torch.device) -> Tensor:
        feeds, labels = self.batch(step)
        return self.loss(network(as_feeds(feeds, device)), labels)


def _endless(given: Callable[[], Any], path: str) -> Iterator[Any]:
    while True:
        empty = True
        for item in given():
            empty = False
            yield item
        if empty:
            raise UsageError(f"{path}: batches() gives no batch")
