"""What a training method minimises: agreement with the original, and the recipe's loss where there are labels.

A function of a network and a step, so that a method need not know what it is. The original network teaches its last
feature map and its outputs (`distill.Compared`), on the recipe's samples or on augmented ones without labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor

from onnxprune.channels import Analysed, CutSizes
from onnxprune.errors import UsageError
from onnxprune.graph.model import Graph
from onnxprune.runtime.ports import Feeds, input_specs
from onnxprune.train.compared import Compared
from onnxprune.train.distill import Distillation, step_samples
from onnxprune.train.judge import Judge, LabelJudge
from onnxprune.train.network import Network, only_batch
from onnxprune.train.recipe import Recipe
from onnxprune.train.samples import Samples

Objective = Callable[[Network, int], Tensor]
"""(network, step) -> the loss."""


@dataclass(frozen=True)
class Taught:
    """An objective, and what else is known of it.

    Attributes:
        of: the objective.
        takes: samples that the network takes at a time, where it takes no others.
    """

    of: Objective
    takes: int | None = None

    def __call__(self, network: Network, step: int) -> Tensor:
        return self.of(network, step)


def objective(
    net: Analysed,
    batches: Iterable[Feeds],
    recipe: str | None,
    *,
    batch: int = 64,
    augment: Sequence[str] = (),
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Taught:
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
    labelled = None if recipe is None else Recipe(recipe, input_specs(net.model), hold=True)
    if not given and labelled is None:
        raise UsageError("nothing to train on; give --recipe with labelled data, or --calib with samples")
    teacher, compared = _original(net, on)
    samples = labelled or Samples(given, batch, teacher.takes or 1)
    temperature, draw = Distillation().temperature, step_samples(samples, augment, seed, on)
    ends = compared.ends_of(every=False)

    def loss(network: Network, step: int) -> Tensor:
        feeds, loss_of_labels = draw(step)
        goal = compared.goals(teacher, feeds, ends)
        return compared.loss(goal, network, feeds, temperature, ends, labelled=loss_of_labels)[0]

    return Taught(loss, teacher.takes)


def judge(
    net: Analysed, held: Iterable[Feeds], recipe: str | None, *, augment: Sequence[str] = (), device: torch.device
) -> tuple[Judge | LabelJudge, Callable[[onnx.ModelProto], np.ndarray]]:
    """(the judge, its figures for a model): by a recipe's labels, else by the original's answers.

    Args:
        net: the network as it was given.
        held: samples that nothing was trained on.
        recipe: as for `objective`; what it sets apart there is what is judged by here.
        augment: as for `Judge`.
        device: where to work it out.
    """
    teacher, compared = _original(net, device)
    judges = (
        Judge(teacher, Samples(held, None, teacher.takes or 1), compared.outputs, device, augment) if recipe is None
        else LabelJudge(Recipe(recipe, input_specs(net.model), hold=True), device)
    )  # fmt: skip

    def figures(model: onnx.ModelProto) -> np.ndarray:
        return judges(Network(Graph(model), takes=teacher.takes).to(device).eval()).numpy()

    return judges, figures


def _original(net: Analysed, device: torch.device) -> tuple[Network, Compared]:
    """The original as a teacher, and what it teaches to a network of its own size."""
    teacher = Network(net.graph).to(device).eval()
    teacher.takes = only_batch(teacher, net.feeds)
    uncut = CutSizes(net.channels, np.ones(net.channels.unit_count + 1, bool))
    return teacher, Compared.of(net.graph, net.graph, uncut, device)
