"""What the loss says of each channel: w·g, for the criteria that need it (`decide.criteria`).

Every weight is a parameter of the torch network, so one backward pass a batch gives g = ∂L/∂w of all of them, and w·g
is added up over everything that lives and dies with a channel: its own rows, its readers' columns, its BN entries.
Without labels L is the distillation loss of the network against itself with a little noise on its inputs (at
the original point the loss against itself is 0, and so is its gradient; the noise is ours), with labels it is the
recipe's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from onnxprune.channels import Analysed, ChannelGroup
from onnxprune.graph.model import Use
from onnxprune.measure.gradients import Gradients
from onnxprune.runtime.ports import Feeds
from onnxprune.train.compared import divergence, relative, scores_of
from onnxprune.train.network import Network, as_feeds
from onnxprune.train.processes import own_device

NOISE = 0.1
"""Spread of the noise on inputs, in units of their own."""

Products = Mapping[Use, Tensor]
"""w·g of every learned use."""


def channel_gradients(
    net: Analysed,
    batches: Iterable[Feeds],
    *,
    labelled: Callable[[Network, int, torch.device], Tensor] | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> dict[str, Gradients]:
    """w·g of every group's channels, by name.

    Args:
        net: the original network.
        batches: unlabelled samples; the recipe's are used instead where there is one, as many batches.
        labelled: a recipe's loss.
        seed: of the noise.
        threads: of torch; None: one.
    """
    torch.set_num_threads(threads or 1)
    device = own_device()
    network = Network(net.graph).to(device).eval()
    rng = torch.Generator().manual_seed(seed)
    sums: dict[str, list[np.ndarray]] = {g.name: [] for g in net.channels.groups}
    squares: dict[str, list[np.ndarray]] = {g.name: [] for g in net.channels.groups}
    for step, feeds in enumerate(batches):
        network.zero_grad(set_to_none=True)
        loss = labelled(network, step, device) if labelled else _against_itself(network, as_feeds(feeds, device), rng)
        loss.backward()
        products = weight_times_gradient(network)
        squared = {use: v.square() for use, v in products.items()}
        for group in net.channels.groups:
            sums[group.name].append(per_channel(group, products))
            squares[group.name].append(per_channel(group, squared))
    return {name: Gradients(np.stack(sums[name]), np.stack(squares[name])) for name in sums}


def _against_itself(network: Network, feeds: dict[str, Tensor], rng: torch.Generator) -> Tensor:
    """The distillation loss of noisy samples against clean ones."""
    graph = network.graph
    wanted = {scores_of(graph, name): True for name in graph.outputs}
    with torch.no_grad():
        goal = network(feeds, list(wanted))
    noisy = {
        k: v + NOISE * v.std() * torch.randn(v.shape, generator=rng).to(v.device) if v.is_floating_point() else v
        for k, v in feeds.items()
    }
    got = network(noisy, list(wanted))
    parts = [divergence(got[n], goal[n], 1.0) if got[n].ndim == 2 and got[n].shape[1] > 1 else relative(got[n], goal[n])
             for n in wanted]  # fmt: skip
    return torch.stack(parts).sum()


def weight_times_gradient(network: Network) -> Products:
    """w·g of every learned use that the loss depends on."""
    held = ((use, getattr(network, name)) for use, name in network.names.items())
    return {use: p.detach() * p.grad for use, p in held if p.grad is not None}


def per_channel(group: ChannelGroup, values: Mapping[Use, Tensor]) -> np.ndarray:
    """(width,) sums of values over everything that a channel owns."""
    total = np.zeros(group.width)
    for s in group.slices:
        value = values.get(s.use)
        if value is None or not s.use[0]:
            continue
        own = s.channel >= 0
        other = tuple(k for k in range(value.ndim) if k != s.axis)
        value = value.detach().double()
        sums = (value.sum(other) if other else value).cpu().numpy()
        total += np.bincount(s.channel[own], weights=sums[own], minlength=group.width)
    return total
