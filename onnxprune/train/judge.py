"""The judges of training: how far a network is from what it should say, sample by sample, on samples that it does not
train on.

Nothing here trains. Figures are in float32, as the finished file computes, whatever training runs in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune import parallel
from onnxprune.measure.chance import LITTLE, noise
from onnxprune.measure.trained import Trained
from onnxprune.train.network import Network, as_feeds
from onnxprune.train.recipe import Recipe
from onnxprune.train.samples import Samples, augmenter, one_by_one
from onnxprune.train.shares import alone

VIEWS = 4
"""Views of every sample: of a ResNet-20, four views of 256 images of CIFAR-10 tell as much apart as 1,300 images in one
do; eight hardly more."""

SCALES = tuple(2 ** (k / 8) for k in range(-8, 9))
"""Scales of a network's scores that are tried, the same for all samples. Least squares leave scores that are too close
together, and to spread them lowers the KL without one answer becoming another: training an EfficientNet-Lite0 at -50%
seemed to help by that alone (0.83 to 0.75 on unseen photographs, three standard errors; at their own best scales 0.727
and 0.732)."""


class Judge:
    """Without labels: the distance from the original's answers, which are worked out once.

    Args:
        teacher: the original.
        held: samples that are not trained on.
        outputs: {tensor: whether it holds scores of classes}, what is compared.
        device: where the networks are.
        augment: how samples may be varied, see `train.samples.AUGMENTATIONS`: each is then looked at in `VIEWS` views,
            since much of what two networks differ by on one image is chance of that view.
        seed: of the views.

    Attributes:
        figure: what is told, see `measure.trained.Trained`.
        little: relative fall of it that does not matter.
    """

    little = LITTLE

    def __init__(
        self,
        teacher: Network,
        held: Samples,
        outputs: Mapping[str, bool],
        device: torch.device,
        augment: Sequence[str] = (),
        seed: int = 0,
    ):
        self.outputs, self.device = outputs, device
        self.figure = "KL" if all(outputs.values()) else "error"
        change = augmenter(one_by_one(augment), seed)
        parts = [as_feeds(part, device) for part in held.all()]
        self.views = VIEWS if one_by_one(augment) else 1
        self._feeds = [
            change(part, view * len(parts) + k) if view else part
            for view in range(self.views)
            for k, part in enumerate(parts)
        ]
        self._goals = list(parallel.each(lambda feeds: self._answers(teacher, feeds), self._feeds))

    def __call__(self, network: Network) -> Tensor:
        """(samples, views) Σ over outputs of KL(softmax(y_o) ‖ softmax(c y)), or of ‖y − y_o‖² / ‖y_o‖².

        Samples as they came are the first view; c is the scale of `SCALES` that suits the network best.
        """
        pairs = list(zip(self._feeds, self._goals, strict=True))
        parts = parallel.each(lambda pair: self._figures(self._answers(network, pair[0]), *pair), pairs)
        found = torch.cat(list(parts), 2)
        best = found.mean(2).argmin(1)
        total = torch.stack([output[k] for output, k in zip(found, best, strict=True)]).sum(0)
        return total.reshape(self.views, -1).T.cpu()

    @torch.no_grad()
    def _answers(self, network: Network, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.device.type == "cpu":
            alone()
        return network(feeds, list(self.outputs))

    def _figures(self, got: Mapping[str, Tensor], feeds: Mapping[str, Tensor], goal: Mapping[str, Tensor]) -> Tensor:
        """(outputs, scales, rows)"""
        count = len(next(iter(feeds.values())))
        rows = count if all(v.numel() % count == 0 for v in goal.values()) else 1
        found = torch.zeros(len(self.outputs), len(SCALES), rows, dtype=torch.float64, device=self.device)
        for k, (name, scores) in enumerate(self.outputs.items()):
            a, b = got[name].double().reshape(rows, -1), goal[name].double().reshape(rows, -1)
            if scores:
                logs = F.log_softmax(b, 1)
                for j, scale in enumerate(SCALES):
                    found[k, j] = (logs.exp() * (logs - F.log_softmax(scale * a, 1))).sum(1)
            else:
                found[k] = (a - b).square().sum(1) / b.square().sum(1).clamp_min(1e-12)
        return found


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


def verdict(
    step: str, judge: Judge | LabelJudge, start: Tensor, found: Mapping[str, Any], augment: Sequence[str] = ()
) -> Trained:
    """What came of a run of `loop.train`.

    Args:
        step: what was done.
        judge: what it was judged by.
        start: (samples,) of what it started from.
        found: what the loop gave back.
        augment: how samples varied.
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
        augment=",".join(augment),
    )
