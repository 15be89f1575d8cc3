"""Layers and channels gated together: which of them go, and how many of each, is learned under one budget.

Ours, after Zhang, "Layer Pruning for Accelerating Very Deep Neural Networks", 2019 (only its abstract is public: layers
and channels are cut together, in proportions that are learned). Every channel of a coupling set has a gate on what its
readers do with it, every residual branch a gate g_b in `y = x + g_b·F(x)`; all are between 0 and 1, and while the
weights wait they are moved against

    task + λ ( Σ_j c_j g_j + Σ_b c_b g_b )        c: share of the cost, the mean channel's is 1

with λ found by dual ascent: it rises while what the shut gates save is less than the budget, and falls while it is
more. No node is added to the graph: a gate scales weights, and its gradient is read off theirs. A step is at most
`STEP`, whatever the gradient's size (as in Adam), so that the balance of task and cost alone decides where a gate goes.

Then the most open channels and blocks that fit the budget stay: so many of each. Which channels of a set these are may
be decided otherwise, as gates know nothing of the repair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from onnxprune.channels import ChannelGroup
from onnxprune.graph.model import Use
from onnxprune.train.csgd import MAKERS, learned_slices
from onnxprune.train.gsm import fitting
from onnxprune.train.loop import Training, train
from onnxprune.train.network import Network
from onnxprune.train.objective import Objective

SHUT = 0.5
"""A gate under this counts as gone for the dual ascent."""
STEP = 0.01
"""The most that a gate moves in a step."""
ASCENT = 0.1
"""How fast λ follows the budget: its logarithm moves by so much times what is missing."""
MOMENTUM = 0.9
MEMORY = 0.98
"""How long gradients and their squares are remembered."""

Removed = Callable[[Mapping[str, tuple[int, ...]], frozenset[str]], float]
"""(kept channels of every group, dropped blocks) -> share of the cost that is gone."""


@dataclass(frozen=True)
class Branch:
    """A residual branch that may go.

    Attributes:
        name: of the block.
        last: uses of the constants that scale what the branch adds: a layer's weight and bias, or a BN's.
        cost: share of the whole.
    """

    name: str
    last: tuple[Use, ...]
    cost: float


@dataclass(frozen=True)
class Gated:
    """What gates decide.

    Attributes:
        keep: group -> channels that stay.
        dropped: names of the branches that go.
    """

    keep: Mapping[str, tuple[int, ...]]
    dropped: frozenset[str]


def gates(
    model: onnx.ModelProto,
    groups: Sequence[ChannelGroup],
    branches: Sequence[Branch],
    costs: Mapping[str, float],
    steps: Mapping[str, int],
    removed: Removed,
    ratio: float,
    loss: Objective,
    training: Training,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Gated:
    """Learn which channels and branches stay.

    Args:
        model: the original.
        groups: those that may lose channels.
        branches: those that may go.
        costs: group -> share of the cost of one of its channels.
        steps: group -> what its width is a multiple of.
        removed: the share of the cost that is gone with kept channels and dropped branches.
        ratio: what it has to be.
        loss, training, progress: as for `gsm`; of the training only the number of steps and the files count.
    """
    network = Network(model, batch_norm="batch").to(training.device)
    gated = _Gates(network, groups, branches)
    mean = sum(g.width * costs[g.name] for g in groups) / max(1, sum(g.width for g in groups))
    prices = {**{g.name: costs[g.name] / mean for g in groups}, **{b.name: b.cost / mean for b in branches}}
    memory: dict[str, Any] = {"open": gated.all(1.0), "pull": gated.all(0.0), "square": gated.all(0.0), "log": 0.0}

    def split(open_: Mapping[str, np.ndarray]) -> tuple[dict[str, tuple[int, ...]], frozenset[str]]:
        keep = {g.name: tuple(map(int, np.flatnonzero(open_[g.name]))) or (0,) for g in groups}
        return keep, frozenset(b.name for b in branches if not open_[b.name].any())

    def move(step: int) -> None:
        slopes = gated.slopes(memory["open"])
        network.zero_grad(set_to_none=True)  # the weights wait
        if step == 0:
            size = torch.cat([s.abs() / prices[name] for name, s in slopes.items()]).median()
            memory["log"] = math.log(max(float(size), 1e-12))
        strength = math.exp(memory["log"])
        for name, slope in slopes.items():
            pull, square = memory["pull"][name], memory["square"][name]
            pull.mul_(MOMENTUM).add_(slope, alpha=1 - MOMENTUM)
            square.mul_(MEMORY).add_(slope.square(), alpha=1 - MEMORY)
            price = strength * prices[name]
            seen = (square / (1 - MEMORY ** (step + 1))).sqrt()
            push = (pull / (1 - MOMENTUM ** (step + 1)) + price) / (seen + price)
            memory["open"][name].sub_(STEP * push.clamp(-1, 1)).clamp_(0, 1)
        gone = removed(*split({name: (g >= SHUT).numpy() for name, g in memory["open"].items()}))
        memory["log"] += ASCENT * (ratio - gone)

    def look(network: Network, step: int) -> Tensor:
        gated.apply(memory["open"])
        return loss(network, step)

    how = replace(training, optimizer="sgd", clip=None)
    train(network, lambda step: (look(network, step), {}), how, after_backward=move, memory=memory, progress=progress)
    # Gates that stand at the same end are told apart by what pulls at them.
    pulls = {name: -pull / prices[name] for name, pull in memory["pull"].items()}
    most = max(float(pull.abs().max()) for pull in pulls.values())
    worth = {name: (memory["open"][name] + 1e-3 * pull / max(most, 1e-30)).numpy() for name, pull in pulls.items()}
    chosen = fitting(
        gated.width, worth, {**steps, **{b.name: 0 for b in branches}}, lambda on: removed(*split(on)) >= ratio
    )  # fmt: skip
    return Gated(*split(chosen))


class _Gates:
    """The gates of a network: what they scale, and their slopes."""

    def __init__(self, network: Network, groups: Sequence[ChannelGroup], branches: Sequence[Branch]):
        self.network = network
        self.width = {**{g.name: g.width for g in groups}, **{b.name: 1 for b in branches}}
        self.base = {name: p.detach().clone() for name, p in network.named_parameters()}
        self.scaled: dict[str, list[tuple[str, int, Tensor]]] = {}  # gate -> parameter, axis, channel of an index
        for g in groups:
            slices = learned_slices(g, network, ("reads",)) or learned_slices(g, network, MAKERS)
            found = {(network.names[s.use], s.axis): torch.from_numpy(s.channel.astype(np.int64)) for s in slices}
            self.scaled[g.name] = [(n, axis, which) for (n, axis), which in found.items()]
        for b in branches:
            names = dict.fromkeys(network.names[use] for use in b.last)
            self.scaled[b.name] = [(n, 0, torch.zeros(len(self.base[n]), dtype=torch.int64)) for n in names]
        self.on: dict[str, list[tuple[str, int, Tensor]]] = {}  # parameter -> gate, axis, channel of an index
        for gate, scaled in self.scaled.items():
            for name, axis, which in scaled:
                self.on.setdefault(name, []).append((gate, axis, which))

    def all(self, value: float) -> dict[str, Tensor]:
        """The same number for every gate."""
        return {name: torch.full((width,), value) for name, width in self.width.items()}

    @torch.no_grad()
    def apply(self, open_: Mapping[str, Tensor]) -> None:
        """Give the parameters the values that they have behind the gates."""
        for name in self.on:
            getattr(self.network, name).copy_(self.base[name] * self._factor(name, open_))

    def _factor(self, name: str, open_: Mapping[str, Tensor], but: str | None = None) -> Tensor:
        """What a parameter is multiplied by, the gate `but` left out."""
        total = torch.ones(())
        for gate, axis, which in self.on[name]:
            if gate != but:
                shape = [1] * self.base[name].ndim
                shape[axis] = -1
                total = total * torch.where(which >= 0, open_[gate][which.clamp_min(0)], 1.0).reshape(shape)
        return total.to(self.base[name].device)

    def slopes(self, open_: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gate -> (width,) gradient of the loss with respect to it, from the gradients that the weights have."""
        found = {}
        for gate, scaled in self.scaled.items():
            total = torch.zeros(self.width[gate])
            for name, axis, which in scaled:
                grad = getattr(self.network, name).grad
                if grad is not None:
                    value = grad * self.base[name] * self._factor(name, open_, but=gate)
                    flat = value.sum([k for k in range(value.ndim) if k != axis]) if value.ndim > 1 else value
                    total.index_add_(0, which[which >= 0], flat.cpu()[which >= 0])
            found[gate] = total
        return found
