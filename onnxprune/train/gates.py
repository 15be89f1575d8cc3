"""Layers and channels gated together: which of them go, and how many of each, is learned under one budget.

Ours, after Zhang, "Layer Pruning for Accelerating Very Deep Neural Networks", 2019 (only its abstract is public: layers
and channels are cut together, in proportions that are learned). Every channel of a coupling set has a gate s_j, every
residual branch a gate g_b in `y = x + g_b·F(x)`, and training minimises

    task + λ ( Σ_j c_j |s_j| + Σ_b c_b |g_b| )        c: share of the cost, the mean channel's is 1

with λ found by dual ascent: it rises while fewer channels and blocks than asked for have a gate under `SHUT`, and
falls while more have. No node is added to the graph: a gate is the norm of what it scales, relative to where it began
(a channel's own rows; the last layer of a branch), and the penalty's proximal step scales that.

Then the gates decide: the most open channels and blocks that fit the budget stay, and the others shrink to nothing
while the rest learn to do without them (`gsm.train_sparse`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from onnxprune.channels import ChannelGroup
from onnxprune.graph.model import Use
from onnxprune.train.csgd import MAKERS, learned_slices
from onnxprune.train.gsm import DYING, channel_masks, fitting, train_sparse
from onnxprune.train.loop import Training, rate
from onnxprune.train.network import Network
from onnxprune.train.objective import Objective

SHUT = 0.1
"""A gate under this counts as gone for the dual ascent."""
TRAVEL = 0.6
"""Share of the first phase in which λ would shut the mean gate if none shut before."""

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
    """What gates give back.

    Attributes:
        model: trained at its full size, what is to go near zero.
        keep: group -> channels that stay.
        dropped: names of the branches that go.
        left: largest entry of what is to go, relative to its tensor's largest one before training.
        strength: λ at the end of the first phase.
    """

    model: onnx.ModelProto
    keep: Mapping[str, tuple[int, ...]]
    dropped: frozenset[str]
    left: float
    strength: float


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
    """Train gates until the budget holds, then let what is shut die.

    Args:
        model: the original.
        groups: those that may lose channels.
        branches: those that may go.
        costs: group -> share of the cost of one of its channels.
        steps: group -> what its width is a multiple of.
        removed: the share of the cost that is gone with kept channels and dropped branches.
        ratio: what it has to be.
        loss, training, progress: as for `gsm`.
    """
    network = Network(model, batch_norm="batch")
    count = sum(g.width for g in groups)
    mean = sum(g.width * costs[g.name] for g in groups) / max(1, count)
    gate = _Gates(network, groups, branches, {**costs, **{b.name: b.cost for b in branches}}, mean)
    first = max(1, int((1 - DYING) * training.steps))
    rise = 2 / (training.lr * ratio * (TRAVEL * first) ** 2)
    memory: dict[str, Any] = {"masks": {}, "strength": 0.0, "chosen": {}}
    widths = {**{g.name: g.width for g in groups}, **{b.name: 1 for b in branches}}

    def split(open_: Mapping[str, np.ndarray]) -> tuple[dict[str, tuple[int, ...]], frozenset[str]]:
        keep = {g.name: tuple(map(int, np.flatnonzero(open_[g.name]))) or (0,) for g in groups}
        return keep, frozenset(b.name for b in branches if not open_[b.name].any())

    def penalise(step: int) -> None:
        if step >= first:
            return
        gate.shrink(rate(step, training) * memory["strength"])
        sizes = gate.sizes()
        gone = removed(*split({name: size >= SHUT for name, size in sizes.items()}))
        memory["strength"] = max(0.0, memory["strength"] + rise * (ratio - gone))
        if step == first - 1:
            fits = lambda open_: removed(*split(open_)) >= ratio  # noqa: E731
            chosen = fitting(widths, sizes, {**steps, **{b.name: 0 for b in branches}}, fits)
            masks = channel_masks(groups, chosen, network)
            for b in branches:
                if not chosen[b.name].any():
                    names = {network.names[use] for use in b.last}
                    masks.update({n: torch.zeros_like(getattr(network, n), dtype=torch.bool) for n in names})
            memory.update(masks=masks, chosen={name: torch.from_numpy(on) for name, on in chosen.items()})

    left = train_sparse(network, loss, training, lambda step: None, memory, before_shrink=penalise, progress=progress)
    keep, dropped = split({name: on.numpy() for name, on in memory["chosen"].items()})
    return Gated(network.to_onnx(), keep, dropped, left, memory["strength"])


class _Gates:
    """The gates of a network: their sizes, and the penalty's proximal step."""

    def __init__(
        self,
        network: Network,
        groups: Sequence[ChannelGroup],
        branches: Sequence[Branch],
        costs: Mapping[str, float],
        mean: float,
    ):
        self.network, self.costs, self.mean = network, costs, mean
        self.rows: dict[
            str, list[tuple[str, int, Tensor]]
        ] = {}  # what a gate scales: parameter, axis, gate of an index
        self.width = {g.name: g.width for g in groups}
        for g in groups:
            made = [(network.names[s.use], s.axis, torch.from_numpy(s.channel.astype(np.int64)))
                    for s in learned_slices(g, network, MAKERS)]  # fmt: skip
            self.rows[g.name] = list({(n, axis): (n, axis, which) for n, axis, which in made}.values())
        for b in branches:
            self.width[b.name] = 1
            names = dict.fromkeys(network.names[use] for use in b.last)
            self.rows[b.name] = [(n, 0, torch.zeros(len(getattr(network, n)), dtype=torch.int64)) for n in names]
        self.began = {name: self._norms(name).mean().clamp_min(1e-12) for name in self.rows}

    def _norms(self, name: str) -> Tensor:
        total = torch.zeros(self.width[name])
        for parameter, axis, which in self.rows[name]:
            p = getattr(self.network, parameter).detach()
            squares = p.square().sum([k for k in range(p.ndim) if k != axis]) if p.ndim > 1 else p.square()
            total.index_add_(0, which[which >= 0], squares[which >= 0])
        return total.sqrt()

    def sizes(self) -> dict[str, np.ndarray]:
        """Name -> (width,) how far each gate is open; about 1 at the start."""
        return {name: (self._norms(name) / self.began[name]).numpy() for name in self.rows}

    @torch.no_grad()
    def shrink(self, amount: float) -> None:
        """Every gate nearer to zero by `amount` times its cost."""
        for name, rows in self.rows.items():
            open_ = self._norms(name) / self.began[name]
            less = (open_ - amount * self.costs[name] / self.mean).clamp_min(0) / open_.clamp_min(1e-12)
            for parameter, axis, which in rows:
                p = getattr(self.network, parameter)
                factor = torch.where(which >= 0, less[which.clamp_min(0)], torch.ones(()))
                shape = [1] * p.ndim
                shape[axis] = -1
                p.mul_(factor.reshape(shape))
