"""What a training method minimises: agreement with the original, and the recipe's loss where there are labels.

A function of a network and a step, so that a method need not know what it is. The original network teaches its last
feature map and its outputs (`distill.Compared`), on the recipe's samples or on augmented ones without labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from onnxprune.channels import Analysed, CutSizes
from onnxprune.errors import UsageError
from onnxprune.runtime.ports import Feeds, input_specs
from onnxprune.train.distill import Compared, Distillation, step_samples
from onnxprune.train.network import Network
from onnxprune.train.recipe import Recipe
from onnxprune.train.samples import Samples

Objective = Callable[[Network, int], Tensor]


def objective(
    net: Analysed,
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
        net: the network as it was given; the teacher.
        batches: unlabelled samples; not looked at where there is a recipe.
        recipe: file.py with labelled data and a loss, see `recipe`; None: none.
        batch: samples of a step.
        augment: see `train.samples.AUGMENTATIONS`.
        seed: of the batches' order and the augmentations.
        device: where the network is.

    Raises:
        UsageError: there is neither a recipe nor a sample; the recipe is not one.
    """
    on = torch.device(device)
    given = list(batches)
    labelled = None if recipe is None else Recipe(recipe, input_specs(net.model))
    if not given and labelled is None:
        raise UsageError("nothing to train on; give --recipe with labelled data, or --calib with samples")
    how, draw = Distillation(), step_samples(labelled or Samples(given, batch), augment, seed, on)
    teacher = Network(net.graph).to(on).eval()
    uncut = CutSizes(net.channels, np.ones(net.channels.unit_count + 1, bool))
    compared = Compared.of(net.graph, net.graph, uncut, on)

    def loss(network: Network, step: int) -> Tensor:
        feeds, loss_of_labels = draw(step)
        return compared.loss(teacher, network, feeds, how, labelled=loss_of_labels)[0]

    return loss
