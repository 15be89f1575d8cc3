"""Centripetal SGD: channels of a coupling set are trained until the members of each cluster are the same, then merged.

Ding et al., "Centripetal SGD for Pruning Very Deep Convolutional Networks", CVPR 2019. For filter j in cluster H, with
everything that makes the channel (kernels, biases, BN entries) moved alike:

    gradient_j ← mean_{k∈H} gradient_k + ε (F_j − mean_{k∈H} F_k)

so that members differ by a factor that shrinks every step. Clusters span whole coupling sets, and readers are left
free. At the end each reader's columns of a cluster are added up into the first member's: once the members are equal,
removing the others changes no output. Clusters by Ward linkage of the kernels are ours; the paper uses k-means or an
even split. ε is larger than the paper's 3e-3, as runs here are hundreds of steps and not hundreds of epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from onnxprune.channels import Analysed, ChannelGroup, Slice
from onnxprune.train.loop import Training, train
from onnxprune.train.network import Network
from onnxprune.train.objective import Objective

MAKERS = ("writes", "within")
"""Roles of the slices that make a channel: they are drawn together."""


@dataclass(frozen=True)
class Merged:
    """What C-SGD gives back.

    Attributes:
        trained: the model after training, at its full widths.
        model: the same, every cluster's columns in its first member and the others' columns zero.
        keep: group -> the first members, ascending: what a plan keeps.
        spread: largest difference within a cluster before the merge, relative to the tensor's largest entry.
    """

    trained: onnx.ModelProto
    model: onnx.ModelProto
    keep: Mapping[str, tuple[int, ...]]
    spread: float


def csgd(
    net: Analysed,
    widths: Mapping[str, int],
    loss: Objective,
    training: Training,
    *,
    strength: float = 3.0,
    progress: Callable[[int, int], None] | None = None,
) -> Merged:
    """Train the model so that groups can be cut to their new widths without changing an output.

    Args:
        net: the original.
        widths: group -> number of clusters.
        loss: what is minimised at a step.
        training: how; the optimizer should be "sgd".
        strength: ε.
        progress: called with (steps done, steps).
    """
    # stored statistics that nothing moves would keep members apart
    network = Network(net.graph, batch_norm="batch", takes=training.takes).to(training.device)
    groups = {g.name: g for g in net.channels.groups if widths.get(g.name, g.width) < g.width}
    clusters = {name: clusters_of(g, network, widths[name]) for name, g in groups.items()}
    pulls = [
        (s, _means(s, clusters[name]).to(training.device))
        for name, g in groups.items()
        for s in learned_slices(g, network, MAKERS)
    ]

    def centripetal(step: int) -> None:
        for s, mean in pulls:
            p = getattr(network, network.names[s.use])
            if p.grad is not None:
                free = p.grad - _apply(mean, p.grad, s.axis)
                p.grad += -free + strength * (p.detach() - _apply(mean, p.detach(), s.axis))

    train(network, lambda step: (loss(network, step), {}), training, after_backward=centripetal, progress=progress)
    spread, trained = 0.0, network.to_onnx()
    with torch.no_grad():
        for s, mean in (*pulls, *_statistics(groups, clusters, network)):
            p = getattr(network, network.names.get(s.use) or network.moving[s.use])
            spread = max(spread, float((p - _apply(mean, p, s.axis)).abs().max() / p.abs().max().clamp_min(1e-12)))
        for name, g in groups.items():
            for s in learned_slices(g, network, ("reads",)):
                p = getattr(network, network.names[s.use])
                p.copy_(_apply(_gathering(s, clusters[name]), p, s.axis))
    keep = {name: tuple(int(c) for c in np.unique(_first(labels))) for name, labels in clusters.items()}
    return Merged(trained, network.to_onnx(), keep, spread)


def clusters_of(group: ChannelGroup, network: Network, count: int) -> np.ndarray:
    """(width,) cluster of every channel, by Ward linkage of what makes the channels, each tensor to unit norm."""
    rows = []
    for s in learned_slices(group, network, MAKERS):
        value = getattr(network, network.names[s.use]).detach().double().cpu().numpy()
        value = np.moveaxis(value, s.axis, 0).reshape(value.shape[s.axis], -1)
        own = np.zeros((group.width, value.shape[1]))
        np.add.at(own, s.channel[s.channel >= 0], value[s.channel >= 0])
        rows.append(own / max(np.linalg.norm(own), 1e-30))
    return fcluster(linkage(np.concatenate(rows, axis=1), "ward"), count, "maxclust") - 1


def learned_slices(group: ChannelGroup, network: Network, roles: tuple[str, ...]) -> list[Slice]:
    """A group's slices of such roles whose constants are parameters."""
    return [s for s in group.slices if s.role in roles and s.use in network.names]


def _statistics(
    groups: Mapping[str, ChannelGroup], clusters: Mapping[str, np.ndarray], network: Network
) -> list[tuple[Slice, Tensor]]:
    """BN's stored statistics: they follow by themselves, and must have met too."""
    return [
        (s, _means(s, clusters[name])) for name, g in groups.items() for s in g.slices if s.use in network.moving
    ]  # fmt: skip


def _first(labels: np.ndarray) -> np.ndarray:
    """(width,) the first member of every channel's cluster."""
    _, at, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return at[inverse]


def _same(s: Slice, labels: np.ndarray) -> np.ndarray:
    """(length, length) bool: entries at the same place of channels of one cluster.

    A channel may own several entries (a flatten, a group); the k-th of each belong together.
    """
    length = len(s.channel)
    turn = np.zeros(length, int)
    seen: dict[int, int] = {}
    for i, c in enumerate(s.channel):
        turn[i] = seen.get(int(c), 0)
        seen[int(c)] = turn[i] + 1
    of = np.where(s.channel >= 0, labels[s.channel], -1 - np.arange(length))
    return (of[:, None] == of[None]) & (turn[:, None] == turn[None])


def _means(s: Slice, labels: np.ndarray) -> Tensor:
    """(length, length) matrix that puts a cluster's mean in the place of every member."""
    same = _same(s, labels).astype(np.float32)
    return torch.from_numpy(same / same.sum(1, keepdims=True))


def _gathering(s: Slice, labels: np.ndarray) -> Tensor:
    """(length, length) matrix that adds a cluster up at its first member and leaves 0 at the others."""
    first = _first(labels)
    leads = (s.channel < 0) | (first[s.channel] == s.channel)
    return torch.from_numpy(_same(s, labels).astype(np.float32) * leads[:, None])


def _apply(matrix: Tensor, value: Tensor, axis: int) -> Tensor:
    return torch.tensordot(matrix.to(value.device), value, dims=([1], [axis])).movedim(0, axis)
