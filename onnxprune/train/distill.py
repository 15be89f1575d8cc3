"""Distillation without labels: the original network teaches the pruned one on unlabelled samples.

Starting from the refitted network, every step minimises over a batch

    Σ_t  ‖Z_p,t − Z_o,t‖² / ‖Z_o,t‖²   +   T² · KL( softmax(y_o / T) ‖ softmax(y_p / T) )

where t runs over the block ends (the places that the whole computation passes through) in the first part of the run,
and over the last feature map alone in the rest; Z_o is taken at the channels that the pruned network kept. Outputs that
are no scores of classes count by their relative squared error. A part of the samples is held out; the parameters that
do best there are the result. With a recipe the steps take its samples, and its loss is added. The schedule in two
parts and the relative errors are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.channels import Analysed, CutSizes
from onnxprune.graph import operators
from onnxprune.graph.model import Graph
from onnxprune.runtime.ports import Feeds, input_specs
from onnxprune.train.loop import Training, half_precision, process_group, rank, ranks, set_up, train
from onnxprune.train.network import Network, as_feeds, channels_last
from onnxprune.train.recipe import Recipe
from onnxprune.train.samples import Samples, augmenter

MOST_ENDS = 12
"""Block ends that are compared; of more, so many evenly spaced."""


@dataclass(frozen=True)
class Distillation:
    """How to distill.

    Attributes:
        training: the loop's settings; its `steps` are worked out from `epochs`, unless there are none.
        epochs: passes over the samples; None: as many steps as `training` says.
        batch: samples of a step.
        temperature: T.
        maps: weight of the feature maps.
        blockwise: share of the run in which every block end counts.
        held_out: share of the samples that is not trained on, for choosing the best parameters.
        augment: see `train.samples.AUGMENTATIONS`.
        batch_norm: see `network.BATCH_NORM`.
        recipe: file.py with samples to train on, and a loss of their labels that is added, see `recipe`; None: none.
        seed: for everything random.
    """

    training: Training = field(default_factory=lambda: Training(steps=1))
    epochs: int | None = 40
    batch: int = 64
    temperature: float = 2.0
    maps: float = 1.0
    blockwise: float = 0.3
    held_out: float = 0.125
    augment: tuple[str, ...] = ()
    batch_norm: str = "batch"
    recipe: str | None = None
    seed: int = 0


def distill(
    net: Analysed,
    pruned: Graph,
    alive: np.ndarray,
    batches: Iterable[Feeds],
    *,
    settings: Distillation | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Graph:
    """The pruned network, trained to compute what the original computes.

    Args:
        net: the network before the cut.
        pruned: the network after it, repaired already; its edits are carried out.
        alive: (unit_count + 1,) bool, what was kept.
        batches: unlabelled samples.
        settings: how.
        threads: of torch; None: one, which is the fastest on a busy machine.
        progress: called with (steps done, steps).

    Raises:
        UnsupportedError: torch has no form of an operator; the message names the node.
    """
    how = settings or Distillation()
    set_up(how.seed, threads)
    fit, held = _parted(batches, how)
    with process_group() as device:
        teacher = Network(net.graph).to(device).eval()
        student = channels_last(Network(pruned.settle(), batch_norm=how.batch_norm)).to(device)
        if next(student.parameters(), None) is None:  # all that could learn has gone
            return student.graph
        compared = Compared.of(net.graph, student.graph, CutSizes(net.channels, alive), device)
        training = how.training if how.epochs is None else replace(how.training, steps=how.epochs * fit.per_epoch)
        early = int(how.blockwise * training.steps)
        recipe = None if how.recipe is None else Recipe(how.recipe, input_specs(net.model))
        draw = step_samples(recipe or fit, how.augment, how.seed, device)

        def loss(step: int) -> tuple[Tensor, dict[str, float]]:
            feeds, labelled = draw(step)
            return compared.loss(teacher, student, feeds, how, all_ends=step < early, labelled=labelled)

        def check() -> float:
            with torch.no_grad(), half_precision(training, device):
                parts = [as_feeds(feeds, device) for feeds in held.all()]
                found = [(len(next(iter(p.values()))), compared.loss(teacher, student, p, how)[0]) for p in parts]
            return float(sum(n * value for n, value in found) / sum(n for n, _ in found))

        train(student, loss, training, check=check, progress=progress)
    return student.cpu().learned()


Labelled = Callable[[dict[str, Tensor]], Tensor]
"""A loss of a network's outputs, by name."""


def step_samples(
    source: Samples | Recipe, augment: Sequence[str], seed: int, device: torch.device
) -> Callable[[int], tuple[dict[str, Tensor], Labelled | None]]:
    """step -> (its samples, the loss of their labels): a recipe's, or augmented ones without labels."""
    change = augmenter(augment, seed)

    def draw(step: int) -> tuple[dict[str, Tensor], Labelled | None]:
        if isinstance(source, Recipe):
            samples, labels = source.batch(step)
            return as_feeds(samples, device), lambda outputs: source.loss(outputs, labels)
        return change(as_feeds(source.batch(step, seed, rank(), ranks()), device), step), None

    return draw


def _parted(batches: Iterable[Feeds], how: Distillation) -> tuple[Samples, Samples]:
    """(samples to train on, samples to choose the best parameters on). A single batch serves for both."""
    given = Samples(batches, how.batch)
    parts = given.all()
    if len(parts) < 2:
        return given, given
    last = max(1, round(how.held_out * len(parts)))
    return Samples(parts[:-last], how.batch), Samples(parts[-last:], how.batch)


@dataclass(frozen=True)
class Compared:
    """Which tensors of the two networks are compared.

    Attributes:
        ends: block ends, in order, the last feature map last: {tensor: (axis, kept channels of the original)}.
        outputs: {output, or what goes into the softmax behind it: whether it holds scores of classes}.
    """

    ends: Mapping[str, tuple[int, Tensor | None]]
    outputs: Mapping[str, bool]

    @classmethod
    def of(cls, teacher: Graph, student: Graph, cut: CutSizes, device: torch.device) -> Compared:
        """What the two have in common; `cut`: the sizes of the student's tensors by those of the teacher's."""
        ends = {}
        common = [t for t in block_ends(teacher) if t in student.producer and t in cut.shapes]
        for tensor in common:
            axis, line = cut.lines.get(tensor, (0, None))
            kept = None if line is None else torch.from_numpy(np.flatnonzero(cut.alive[line])).to(device)
            ends[tensor] = (axis, kept)
        outputs = {}
        for name in teacher.outputs:
            node = teacher.nodes.get(teacher.producer.get(name, ""))
            inside = scores_of(teacher, name)
            shape = cut.shapes.get(name, ())
            outputs[inside] = len(shape) == 2 and shape[1] > 1 and (node is None or node.op_type != "Sigmoid")
        return cls(ends, outputs)

    def loss(
        self,
        teacher: Network,
        student: Network,
        feeds: dict[str, Tensor],
        how: Distillation,
        *,
        all_ends: bool = False,
        labelled: Labelled | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """(what is minimised, its parts).

        Args:
            teacher, student: the two networks.
            feeds: samples.
            how: temperature and weights.
            all_ends: compare every block end, not the last one alone.
            labelled: a loss of the student's outputs that is added.
        """
        ends = list(self.ends)
        if len(ends) > MOST_ENDS:
            ends = [ends[int(i)] for i in np.linspace(0, len(ends) - 1, MOST_ENDS)]
        ends = ends if all_ends else ends[-1:]
        wanted = [*ends, *self.outputs]
        with torch.no_grad():
            goal = teacher(feeds, wanted)
        got = student(feeds, list(dict.fromkeys([*wanted, *(student.graph.outputs if labelled else ())])))
        maps = torch.zeros((), device=next(iter(got.values())).device)
        for tensor in ends:
            axis, kept = self.ends[tensor]
            z = goal[tensor] if kept is None else goal[tensor].index_select(axis, kept)
            maps = maps + relative(got[tensor], z)
        outputs = torch.zeros_like(maps)
        for name, scores in self.outputs.items():
            outputs = outputs + (divergence(got[name], goal[name], how.temperature) if scores
                                 else relative(got[name], goal[name]))  # fmt: skip
        total = how.maps * maps + outputs
        figures = {"maps": float(maps.detach()), "outputs": float(outputs.detach())}
        if labelled is not None:
            labels = labelled({name: got[name] for name in student.graph.outputs})
            total, figures = total + labels, {**figures, "labels": float(labels.detach())}
        return total, figures


def relative(got: Tensor, goal: Tensor) -> Tensor:
    """‖got − goal‖² / ‖goal‖², in float32."""
    got, goal = got.float(), goal.float()
    return (got - goal).square().sum() / goal.square().sum().clamp_min(1e-12)


def divergence(got: Tensor, goal: Tensor, temperature: float) -> Tensor:
    """T² · KL of the softened classes (Hinton, Vinyals, Dean 2015), mean over samples."""
    p, q = F.log_softmax(got.float() / temperature, -1), F.log_softmax(goal.float() / temperature, -1)
    return temperature**2 * F.kl_div(p, q, reduction="batchmean", log_target=True)


def scores_of(graph: Graph, output: str) -> str:
    """What is compared of an output: where it ends in a softmax or a sigmoid, what goes into that."""
    node = graph.nodes.get(graph.producer.get(output, ""))
    return node.input[0] if node is not None and operators.of(node).probabilities else output


def block_ends(graph: Graph) -> Sequence[str]:
    """The float activations that the whole computation passes through, where a convolution or a pooling reads them.

    While the nodes run in order, these are the tensors that are alone alive: behind them nothing else is needed.
    """
    last: dict[str, int] = {}
    order = [n for n in graph.nodes.values() if graph.constant(n.output[0]) is None]
    for k, node in enumerate(order):
        last.update((i, k) for i in node.input if i)
    readers = graph.consumers()
    live: set[str] = set(graph.inputs)
    found = []
    for k, node in enumerate(order):
        live.update(o for o in node.output if o)
        live = {t for t in live if last.get(t, -1) > k}
        if len(live) == 1:
            tensor = next(iter(live))
            if any(operators.of(graph.nodes[key]).reads_maps for key, _ in readers.get(tensor, ())):
                found.append(tensor)
    return found
