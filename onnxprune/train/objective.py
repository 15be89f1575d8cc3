"""What a training method minimises: agreement with the original, and the recipe's loss where there are labels.

A function of a network and a step, so that a method need not know what it is. The original network teaches its last
feature map and its outputs (`distill.Compared`), on the recipe's samples or on augmented ones without labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from onnxprune.channels import Channels, CutSizes
from onnxprune.errors import UsageError
from onnxprune.graph.model import Graph
from onnxprune.train.distill import Compared, Distillation, drawing
from onnxprune.train.network import Network
from onnxprune.train.recipe import Recipe
from onnxprune.train.samples import Feeds, Samples

Objective = Callable[[Network, int], Tensor]


def objective(
    original: Graph,
    channels: Channels,
    batches: Iterable[Feeds],
    recipe: str | None,
    *,
    batch: int = 64,
    augment: Sequence[str] = (),
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Objective:
    """The loss of a network at a step.

    Args:
        original: the network as it was given; the teacher.
        channels: its analysis.
        batches: unlabelled samples; not looked at where there is a recipe.
        recipe: file.py with labelled data and a loss, see `recipe`; None: none.
        batch: samples of a step.
        augment: see `samples.AUGMENTATIONS`.
        seed: of the batches' order and the augmentations.
        device: where the network is.

    Raises:
        UsageError: there is neither a recipe nor a sample; the recipe is not one.
    """
    on = torch.device(device)
    given = list(batches)
    labelled = None if recipe is None else Recipe(recipe, original.inputs)
    if not given and labelled is None:
        raise UsageError("nothing to train on; give --recipe with labelled data, or --calib with samples")
    how, draw = Distillation(), drawing(labelled or Samples(given, batch), augment, seed, on)
    teacher = Network(original.model).to(on).eval()
    compared = Compared.of(teacher.graph, original, CutSizes(channels, np.ones(channels.unit_count + 1, bool)), on)

    def loss(network: Network, step: int) -> Tensor:
        feeds, loss_of_labels = draw(step)
        return compared.loss(teacher, network, feeds, how, labelled=loss_of_labels)[0]

    return loss
