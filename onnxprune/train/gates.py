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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxprune.channels import ChannelGroup
from onnxprune.graph.layers import gains
from onnxprune.graph.model import Graph, Use
from onnxprune.train.budget import Budget, indices, most_valuable
from onnxprune.train.csgd import MAKERS, learned_slices
from onnxprune.train.loop import Training, train
from onnxprune.train.network import Network
from onnxprune.train.objective import Objective

SHUT = 0.5
"""A gate under this counts as gone for the dual ascent."""
STEP = 0.01
"""The most that a gate moves in a step."""
ASCENT = 0.1
"""How fast λ follows the budget: its logarithm moves by so much times what is missing."""
BETA1, BETA2 = 0.9, 0.98
"""How long gradients and their squares are remembered, as in Adam."""


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


def scales(graph: Graph, use: Use, inside: Collection[str]) -> tuple[Use, ...]:
    """The constants that scale all that a use reads, where a node `inside` writes it that has such; else none."""
    key = graph.producer.get(graph.nodes[use[0]].input[use[1]], "")
    return gains(graph, key) if key in inside and key in graph.nodes else ()


def gates(
    graph: Graph,
    budget: Budget,
    branches: Sequence[Branch],
    loss: Objective,
    training: Training,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Gated:
    """Learn which channels and branches stay.

    Args:
        graph: the original.
        budget: what may go of the channels, and how much in all.
        branches: those that may go.
        loss, training, progress: as for `gsm`; of the training only the number of steps and the files count.
    """
    network = Network(graph, batch_norm="batch", takes=training.takes).to(training.device)
    gated = _Gates(network, budget.groups, branches)
    ascent = _Ascent(gated, budget, branches)

    def gated_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        gated.apply(ascent.memory["open"])
        return loss(network, step), {}

    # In bfloat16 the rounding of the outputs alone pulls gates open that the loss does not need.
    how = replace(training, optimizer="sgd", clip=None, bf16=bool(training.bf16))
    train(network, gated_loss, how, after_backward=ascent.move, memory=ascent.memory, progress=progress)
    return ascent.outcome()


class _Ascent:
    """The gates' values, moved against task and cost, and λ, which follows the budget.

    Attributes:
        memory: "open": gate -> (width,) its values; "pull" and "square": what is remembered of their gradients;
            "log": the logarithm of λ.
    """

    def __init__(self, gated: _Gates, budget: Budget, branches: Sequence[Branch]):
        self.gated, self.budget, self.branches = gated, budget, branches
        groups, costs = budget.groups, budget.costs
        mean = sum(g.width * costs[g.name] for g in groups) / max(1, sum(g.width for g in groups))
        self.prices = {**{g.name: costs[g.name] / mean for g in groups}, **{b.name: b.cost / mean for b in branches}}
        self.memory: dict[str, Any] = {
            "open": gated.all(1.0), "pull": gated.all(0.0), "square": gated.all(0.0), "log": 0.0,
        }  # fmt: skip

    def move(self, step: int) -> None:
        """Move gates and λ by the gradients of a step."""
        memory, prices = self.memory, self.prices
        slopes = self.gated.slopes(memory["open"])
        self.gated.network.zero_grad(set_to_none=True)  # the weights wait
        if step == 0:
            size = torch.cat([s.abs() / prices[name] for name, s in slopes.items()]).median()
            memory["log"] = math.log(max(float(size), 1e-12))
        strength = math.exp(memory["log"])
        for name, slope in slopes.items():
            pull, square = memory["pull"][name], memory["square"][name]
            pull.mul_(BETA1).add_(slope, alpha=1 - BETA1)
            square.mul_(BETA2).add_(slope.square(), alpha=1 - BETA2)
            price = strength * prices[name]
            seen = (square / (1 - BETA2 ** (step + 1))).sqrt()
            push = (pull / (1 - BETA1 ** (step + 1)) + price) / (seen + price)
            memory["open"][name].sub_(STEP * push.clamp(-1, 1)).clamp_(0, 1)
        gone = self.budget.removed(*self._parted({name: (g >= SHUT).numpy() for name, g in memory["open"].items()}))
        memory["log"] += ASCENT * (self.budget.ratio - gone)

    def _parted(self, on: Mapping[str, np.ndarray]) -> tuple[dict[str, tuple[int, ...]], frozenset[str]]:
        """(channels that stay, one at least of every group; branches that go)."""
        keep = {name: kept or (0,) for name, kept in indices({g.name: on[g.name] for g in self.budget.groups}).items()}
        return keep, frozenset(b.name for b in self.branches if not on[b.name].any())

    def outcome(self) -> Gated:
        """The most open channels and branches that fit the budget."""
        # Gates that stand at the same end are told apart by what pulls at them.
        pulls = {name: -pull / self.prices[name] for name, pull in self.memory["pull"].items()}
        most = max(float(pull.abs().max()) for pull in pulls.values())
        gates = self.memory["open"]
        worth = {name: (gates[name] + 1e-3 * pull / max(most, 1e-30)).numpy() for name, pull in pulls.items()}
        steps = {**self.budget.steps, **{b.name: 0 for b in self.branches}}
        chosen = most_valuable(self.gated.width, worth, steps, lambda on: self.budget.holds(*self._parted(on)))
        return Gated(*self._parted(chosen))


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
