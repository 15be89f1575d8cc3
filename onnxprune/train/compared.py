"""What a pruned network is compared on with the original that teaches it: block ends, the last map, outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.channels import CutSizes
from onnxprune.graph import operators
from onnxprune.graph.model import Graph
from onnxprune.train.network import Network
from onnxprune.train.shares import Figured

Labelled = Callable[[dict[str, Tensor]], Tensor]
"""A loss of a network's outputs, by name."""
MOST_ENDS = 12
"""Block ends that are compared; of more, so many evenly spaced."""


@dataclass(frozen=True)
class Compared:
    """Which tensors of the two networks are compared.

    Attributes:
        ends: block ends, in order, the last feature map last: {tensor: (axis, kept channels of the original)}.
        outputs: {output, or what goes into the softmax behind it: whether it holds scores of classes}.
        weight: of maps, and of outputs that are no scores, see `Distillation.maps`.
    """

    ends: Mapping[str, tuple[int, Tensor | None]]
    outputs: Mapping[str, bool]
    weight: float

    @classmethod
    def of(cls, teacher: Graph, student: Graph, cut: CutSizes, device: torch.device, weight: float = 1.0) -> Compared:
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
        return cls(ends, outputs, weight)

    def ends_of(self, *, every: bool) -> list[str]:
        """The block ends that are compared, at most `MOST_ENDS` of them, or the last one alone."""
        ends = list(self.ends)
        if len(ends) > MOST_ENDS:
            ends = [ends[int(i)] for i in np.linspace(0, len(ends) - 1, MOST_ENDS)]
        return ends if every else ends[-1:]

    @torch.no_grad()
    def goals(self, teacher: Network, feeds: dict[str, Tensor], ends: Sequence[str]) -> dict[str, Tensor]:
        """What the original says of outputs, and of block ends at the channels that were kept."""
        found = teacher(feeds, list(dict.fromkeys([*ends, *self.outputs])))
        for tensor in set(ends) - set(self.outputs):
            axis, kept = self.ends[tensor]
            found[tensor] = found[tensor] if kept is None else found[tensor].index_select(axis, kept)
        return found

    def loss(
        self,
        goal: Mapping[str, Tensor],
        student: Network,
        feeds: dict[str, Tensor],
        temperature: float,
        ends: Sequence[str],
        *,
        labelled: Labelled | None = None,
    ) -> Figured:
        """(what is minimised, its parts).

        Args:
            goal: what the original says, see `goals`.
            student: the network that learns.
            feeds: samples.
            temperature: T.
            ends: block ends that are compared.
            labelled: a loss of the student's outputs that is added.
        """
        wanted = dict.fromkeys([*ends, *self.outputs, *(student.graph.outputs if labelled else ())])
        got = student(feeds, list(wanted))
        maps = torch.zeros((), device=next(iter(got.values())).device)
        for tensor in ends:
            maps = maps + relative(*alike(got[tensor], goal[tensor]))
        outputs = torch.zeros_like(maps)
        for name, scores in self.outputs.items():
            outputs = outputs + (divergence(got[name], goal[name], temperature) if scores
                                 else self.weight * relative(got[name], goal[name]))  # fmt: skip
        total = self.weight * maps + outputs
        figures = {"maps": float(maps.detach()), "outputs": float(outputs.detach())}
        if labelled is not None:
            labels = labelled({name: got[name] for name in student.graph.outputs})
            total, figures = total + labels, {**figures, "labels": float(labels.detach())}
        return total, figures


def alike(got: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps as they can be compared: their means over positions where a network that sees a smaller image has fewer
    of them."""
    if got.shape == goal.shape:
        return got, goal
    axes = [k for k, (a, b) in enumerate(zip(got.shape, goal.shape, strict=True)) if a != b]
    return got.mean(axes), goal.mean(axes)


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
