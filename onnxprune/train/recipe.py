"""A recipe: the user's file with labelled data and a loss, for training where labels exist.

    # recipe.py
    def batches():                       # called again for every pass
        for images, labels in ...:
            yield images, labels         # an array (one input) or a dict of arrays, and anything

    def loss(outputs, labels):           # outputs: dict of torch tensors by name
        return torch.nn.functional.cross_entropy(outputs["y"], torch.as_tensor(labels))

Nothing here knows what the labels are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from onnxprune.errors import UsageError
from onnxprune.measure.calibration import load_function
from onnxprune.train.loop import rank, ranks
from onnxprune.train.network import Network, as_feeds

Labelled = Callable[[Network, int, torch.device], Tensor]


def open_recipe(path: str, inputs: Sequence[str]) -> Labelled:
    """The recipe's loss of a network at a step: batch after batch, from the start again when they end.

    Raises:
        UsageError: the file lacks `batches` or `loss`, or gives no batch.
    """
    given, loss = (load_function(f"{path}:{name}")[0] for name in ("batches", "loss"))
    stream, taken = _endless(given, path), 0

    def labelled(network: Network, step: int, device: torch.device) -> Tensor:
        nonlocal taken
        while taken <= step * ranks() + rank():  # every process takes its own; a run that goes on passes by what it had
            item = next(stream)
            taken += 1
        if not (isinstance(item, tuple) and len(item) == 2):
            raise UsageError(f"{path}: batches() must yield pairs (samples, labels)")
        samples, labels = item
        feeds = samples if isinstance(samples, dict) else {inputs[0]: samples}
        value = loss(network(as_feeds(feeds, device)), labels)
        if not isinstance(value, Tensor) or value.ndim:
            raise UsageError(f"{path}: loss() must return a torch scalar")
        return value

    return labelled


def _endless(given: Callable[[], Any], path: str) -> Iterator[Any]:
    while True:
        empty = True
        for item in given():
            empty = False
            yield item
        if empty:
            raise UsageError(f"{path}: batches() gives no batch")
