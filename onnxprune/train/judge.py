"""The judges of training: how far a network is from what it should say, sample by sample, on samples that it does not
train on.

Nothing here trains. Figures are in float32, as the finished file computes, whatever training runs in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune import parallel
from onnxprune.measure.chance import LITTLE, noise
from onnxprune.measure.trained import Trained
from onnxprune.train.network import Network, as_feeds
from onnxprune.train.recipe import Recipe
from onnxprune.train.samples import Samples
from onnxprune.train.shares import alone


class Judge:
    """Without labels: the distance from the original's answers, which are worked out once.

    Args:
        teacher: the original.
        held: samples that are not trained on.
        outputs: {tensor: whether it holds scores of classes}, what is compared.
        device: where the networks are.

    Attributes:
        figure: what is told, see `measure.trained.Trained`.
        little: relative fall of it that does not matter.
    """

    little = LITTLE

    def __init__(self, teacher: Network, held: Samples, outputs: Mapping[str, bool], device: torch.device):
        self.outputs, self.device = outputs, device
        self.figure = "KL" if all(outputs.values()) else "error"
        self._feeds = [as_feeds(part, device) for part in held.all()]
        self._goals = list(parallel.each(lambda feeds: self._answers(teacher, feeds), self._feeds))

    def __call__(self, network: Network) -> Tensor:
        """(samples,) Σ over outputs of KL(softmax(y_o) ‖ softmax(y)), or of ‖y − y_o‖² / ‖y_o‖²."""
        found = parallel.each(
            lambda pair: self._figures(self._answers(network, pair[0]), pair[1], len(next(iter(pair[0].values())))),
            list(zip(self._feeds, self._goals, strict=True)),
        )
        return torch.cat(list(found)).cpu()

    @torch.no_grad()
    def _answers(self, network: Network, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.device.type == "cpu":
            alone()
        return network(feeds, list(self.outputs))

    def _figures(self, got: Mapping[str, Tensor], goal: Mapping[str, Tensor], count: int) -> Tensor:
        rows = count if all(v.numel() % count == 0 for v in goal.values()) else 1
        total = torch.zeros(rows, dtype=torch.float64, device=self.device)
        for name, scores in self.outputs.items():
            a, b = got[name].double().reshape(rows, -1), goal[name].double().reshape(rows, -1)
            if scores:
                logs = F.log_softmax(b, 1)
                total += (logs.exp() * (logs - F.log_softmax(a, 1))).sum(1)
            else:
                total += (a - b).square().sum(1) / b.square().sum(1).clamp_min(1e-12)
        return total


class LabelJudge:
    """With labels: the loss of a recipe on batches that are set apart (`Recipe.held`).

    Attributes:
        figure, little: as there.
    """

    figure = "loss"
    little = 0.0

    def __init__(self, recipe: Recipe, device: torch.device):
        self.recipe, self.device = recipe, device

    @torch.no_grad()
    def __call__(self, network: Network) -> Tensor:
        """(pieces of batches,) loss of each."""
        network.eval()
        found: list[Tensor] = []
        for samples, labels in self.recipe.held:
            found += self.recipe.losses(network(as_feeds(samples, self.device)), samples, labels)
        merits = torch.stack(found).double().cpu()
        # what is trained on as well has nothing to say of chance: two figures that are the same have no noise
        return merits.mean().repeat(2) if self.recipe.shared else merits


def verdict(step: str, judge: Judge | LabelJudge, start: Tensor, found: Mapping[str, Any]) -> Trained:
    """What came of a run of `loop.train`.

    Args:
        step: what was done.
        judge: what it was judged by.
        start: (samples,) of what it started from.
        found: what the loop gave back.
    """
    merits = found["merits"]
    return Trained(
        step,
        found["kept"],
        judge.figure,
        float(start.mean()),
        None if merits is None else float(merits.mean()),
        None if merits is None else noise(merits.numpy(), start.numpy(), judge.little),
        len(start),
        found["best_step"],
        found["steps"],
        found["lr"],
        why="training met numbers that are none" if merits is None else "",
    )
