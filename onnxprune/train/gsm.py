"""Global Sparse Momentum SGD: in every step the weights that matter least only decay, until they are zero.

Ding et al., "Global Sparse Momentum SGD for Pruning Very Deep Neural Networks", NeurIPS 2019. With Q weights to keep,

    T = |w · ∂L/∂w|      B = 1 for the Q largest T of the whole network, else 0
    Z ← βZ + ηw + B ∘ ∂L/∂w        w ← w − αZ

which is SGD with momentum β on gradients that B has masked. Vectors (biases, BN) are neither masked nor decayed.

The structured form is ours: one B for each channel of a coupling set,

    T_c = |Σ_{i∈c} w_i ∂L/∂w_i| / cost_c

over the channel's own rows, its readers' columns and its BN entries (`gradients.per_channel`), divided by the
multiply-accumulates that it costs; the channels of the largest T that fit the budget are active.

A passive weight ends near w·exp(−kαη/(1−β)) after k steps at rate α. The paper's η = 1e-4 needs a hundred thousand
steps for that, and with a larger η momentum makes it swing instead. Ours: a passive weight is not updated but
multiplied by a factor, such that it shrinks to `SHRUNK_TO` within the last `SHRINKING` of the run, in which B is fixed.
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
from onnxprune.graph.model import Graph
from onnxprune.train.budget import Budget, indices, most_valuable
from onnxprune.train.gradients import per_channel, weight_times_gradient
from onnxprune.train.loop import Training, train
from onnxprune.train.network import Network
from onnxprune.train.objective import Objective

SHRUNK_TO = 1e-7
"""What is left of a passive weight at the end, relative."""
SHRINKING = 0.6
"""Share of the run, its last part, in which the passive weights stay the same ones."""
LOOK_EVERY = 10
"""Steps between choices of the active channels; T is averaged over them (ours: one batch's T is noisy)."""


@dataclass(frozen=True)
class Sparse:
    """What GSM gives back.

    Attributes:
        model: trained at its full widths, what is passive near zero.
        keep: structured: group -> the active channels.
        left: largest passive entry at the end, relative to its tensor's largest one before training.
        masks: unstructured: parameter -> bool, the active weights.
    """

    model: onnx.ModelProto
    keep: Mapping[str, tuple[int, ...]]
    left: float
    masks: Mapping[str, Tensor]


def gsm(
    graph: Graph,
    density: float,
    loss: Objective,
    training: Training,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Sparse:
    """Unstructured, as published: a model whose kernels hold no more than so many weights.

    Args:
        graph: the original.
        density: Q over the number of weights in kernels.
        loss: what is minimised.
        training: how; optimizer and clipping are GSM's own.
        progress: called with (steps done, steps).
    """
    network = Network(graph, batch_norm="batch", takes=training.takes).to(training.device)
    kernels = {name: p for name, p in network.named_parameters() if p.ndim > 1}
    count = sum(p.numel() for p in kernels.values())
    most = max(1, round(density * count))
    memory: dict[str, Any] = {"masks": {name: torch.ones_like(p, dtype=torch.bool) for name, p in kernels.items()}}

    def choose(step: int) -> None:
        grads = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in kernels.items()}
        worth = torch.cat([(p.detach() * grads[n]).abs().reshape(-1) for n, p in kernels.items()])
        active = torch.zeros(count, dtype=torch.bool, device=worth.device)
        active[worth.topk(most).indices] = True
        for name, part in zip(kernels, active.split([p.numel() for p in kernels.values()]), strict=True):
            memory["masks"][name] = part.reshape(kernels[name].shape)

    left = train_sparse(network, loss, training, choose, memory, progress=progress)
    masks = memory["masks"]
    with torch.no_grad():
        for name, p in kernels.items():
            p.mul_(masks[name].to(p.device))
    return Sparse(network.to_onnx(), {}, left, masks)


def gsm_channels(
    graph: Graph,
    budget: Budget,
    loss: Objective,
    training: Training,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Sparse:
    """Structured (ours): a model in which as many channels have died as the budget asks for.

    Args:
        graph: the original.
        budget: what may go, and how much.
        loss, training, progress: as for `gsm`.
    """
    network, groups = Network(graph, batch_norm="batch", takes=training.takes).to(training.device), budget.groups
    memory: dict[str, Any] = {
        "masks": {},
        "seen": {g.name: torch.zeros(g.width, dtype=torch.float64) for g in groups},
        "alive": {g.name: torch.ones(g.width, dtype=torch.bool) for g in groups},
    }

    def choose(step: int) -> None:
        products, seen = weight_times_gradient(network), memory["seen"]
        for g in groups:
            seen[g.name] = 0.9 * seen[g.name] + torch.from_numpy(np.abs(per_channel(g, products)))
        if step % LOOK_EVERY and memory["masks"]:
            return
        worth = {g.name: seen[g.name].numpy() / budget.costs[g.name] for g in groups}
        widths = {g.name: g.width for g in groups}
        alive = most_valuable(widths, worth, budget.steps, lambda active: budget.holds(indices(active)))
        memory["alive"] = {name: torch.from_numpy(on) for name, on in alive.items()}
        memory["masks"] = channel_masks(groups, alive, network)

    left = train_sparse(network, loss, training, choose, memory, progress=progress)
    alive, masks = {name: active.numpy() for name, active in memory["alive"].items()}, memory["masks"]
    return Sparse(network.to_onnx(), indices(alive), left, masks)


def train_sparse(
    network: Network,
    loss: Objective,
    training: Training,
    choose: Callable[[int], None],
    memory: dict[str, Any],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Train with gradients that the masks let through; what they leave out shrinks.

    Args:
        network: trained in place.
        loss: what is minimised.
        training: how; optimizer and clipping are replaced.
        choose: called with a step's gradients there, in the first part of the run; may change the masks.
        memory: as for `train`; under "masks" parameter -> bool, active entries; one that is missing is active.
        progress: called with (steps done, steps).

    Returns:
        The largest entry that the masks leave out, relative to its tensor's largest one before training.
    """
    whole = {name: float(p.detach().abs().max().clamp_min(1e-12)) for name, p in network.named_parameters()}
    last = int((1 - SHRINKING) * training.steps)
    shrinking = math.exp(math.log(SHRUNK_TO) / max(1, training.steps - last))
    before: dict[str, Tensor] = {}

    def sparse(step: int) -> None:
        if step <= last:
            choose(step)
        for name, mask in memory["masks"].items():
            p = getattr(network, name)
            if p.grad is not None:
                p.grad *= mask.to(p.device)
            before[name] = p.detach().clone()

    @torch.no_grad()
    def shrink(step: int) -> None:
        for name, mask in memory["masks"].items():
            p = getattr(network, name)
            p.copy_(torch.where(mask.to(p.device), p, shrinking * before.get(name, p)))

    how = replace(training, optimizer="gsm", clip=None)
    train(
        network, lambda step: (loss(network, step), {}), how,
        after_backward=sparse, after_step=shrink, memory=memory, progress=progress,
    )  # fmt: skip
    out = ((name, getattr(network, name).detach().cpu().abs()[~mask.cpu()]) for name, mask in memory["masks"].items())
    return max((float(entries.max()) / whole[name] for name, entries in out if entries.numel()), default=0.0)


def channel_masks(
    groups: Sequence[ChannelGroup], alive: Mapping[str, np.ndarray], network: Network
) -> dict[str, Tensor]:
    """Parameter -> what is active of it: an entry is passive where a channel that it belongs to is."""
    masks: dict[str, Tensor] = {}
    for group in groups:
        for s in group.slices:
            name = network.names.get(s.use)
            if name is None:
                continue
            p = getattr(network, name)
            on = np.where(s.channel >= 0, alive[group.name][s.channel], True)
            shape = [1] * p.ndim
            shape[s.axis] = -1
            line = torch.from_numpy(on).to(p.device).reshape(shape)
            masks[name] = masks.get(name, torch.ones_like(p, dtype=torch.bool)) & line
    return masks
