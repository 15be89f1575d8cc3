"""Trained Rank Pruning: training that keeps layers at low rank, so that splitting them at the end costs nothing.

Xu et al., "TRP: Trained Rank Pruning for Efficient Deep Neural Networks", IJCAI 2020. Every `m` steps, before the
forward pass, a layer's unfolded weight is replaced by its truncated SVD; after every backward pass the sub-gradient of
its nuclear norm, λ·UVᵀ, is added. The paper keeps the smallest rank that holds 90% of Σσ² and takes what ranks come;
here the ranks are those of the budget (ours), so that the finished model has the size that was asked for. What is
unfolded how is said by the edits: `channel` (n, c·k²), `spatial` (c·k, n·k), `matrix` as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor

from onnxprune.graph.model import Graph
from onnxprune.measure.designs import design_of
from onnxprune.plan import Factorize
from onnxprune.protobuf.nodes import attr
from onnxprune.train.loop import Training, train
from onnxprune.train.network import Network
from onnxprune.train.objective import Objective


@dataclass(frozen=True)
class LowRank:
    """What TRP gives back.

    Attributes:
        trained: before the last truncation.
        model: every layer of an edit has that rank.
        lost: largest share of Σσ² that the last truncation took from a layer.
    """

    trained: onnx.ModelProto
    model: onnx.ModelProto
    lost: float


@dataclass(frozen=True)
class Unfolding:
    """A weight as a stack of matrices (parts, rows, columns), and back."""

    unfold: Callable[[Tensor], Tensor]
    fold: Callable[[Tensor], Tensor]


def trp(
    graph: Graph,
    edits: Sequence[Factorize],
    loss: Objective,
    training: Training,
    *,
    every: int = 20,
    nuclear: float = 3e-4,
    project: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> LowRank:
    """Train the model towards layers of those ranks.

    Args:
        graph: the original.
        edits: layer, kind and rank.
        loss: what is minimised.
        training: how.
        every: m, steps between truncations.
        nuclear: λ.
        project: False: plain training to compare with, truncated once at the end.
        progress: called with (steps done, steps).
    """
    network = Network(graph, batch_norm="batch", takes=training.takes).to(training.device)
    layers = [(_parameter(network, e), e.rank) for e in edits]
    unfoldings = {name: unfolding(network, e) for (name, _), e in zip(layers, edits, strict=True)}
    lost = dict.fromkeys(unfoldings, 0.0)
    memory: dict[str, Any] = {"pulls": {}}

    @torch.no_grad()
    def truncate() -> None:
        for name, rank in layers:
            p, how = getattr(network, name), unfoldings[name]
            U, s, Vh = torch.linalg.svd(how.unfold(p.double()), full_matrices=False)
            energy = s.square()
            lost[name] = float((energy[..., rank:].sum(-1) / energy.sum(-1).clamp_min(1e-30)).max())
            U, s, Vh = U[..., :rank], s[..., :rank], Vh[..., :rank, :]
            p.copy_(how.fold((U * s[..., None, :]) @ Vh))
            memory["pulls"][name] = how.fold(U @ Vh).to(p.dtype)

    def objective(step: int) -> tuple[Tensor, dict[str, float]]:
        if project and step % every == 0:
            truncate()
        return loss(network, step), {"lost": max(lost.values(), default=0.0)}

    def pull(step: int) -> None:
        for name, direction in memory["pulls"].items():
            p = getattr(network, name)
            if p.grad is not None:
                p.grad += nuclear * direction.to(p.device)

    train(network, objective, training, after_backward=pull if project else None, memory=memory, progress=progress)
    trained = network.to_onnx()
    truncate()
    return LowRank(trained, network.to_onnx(), max(lost.values(), default=0.0))


def _parameter(network: Network, edit: Factorize) -> str:
    design = design_of(network.graph, edit.node)
    assert design is not None
    return network.names[design.weight]


def unfolding(network: Network, edit: Factorize) -> Unfolding:
    """How the weight of an edit's layer is unfolded."""
    node, shape = network.graph.nodes[edit.node], getattr(network, _parameter(network, edit)).shape
    if edit.kind == "matrix":
        return Unfolding(lambda w: w[None], lambda m: m[0])
    g = attr(node, "group", 1)
    n, c, *kernel = shape
    if edit.kind == "channel":
        return Unfolding(lambda w: w.reshape(g, n // g, -1), lambda m: m.reshape(shape))
    h, w = kernel
    split = (g, n // g, c, h, w)
    return Unfolding(
        lambda x: x.reshape(split).permute(0, 2, 3, 1, 4).reshape(g, c * h, n // g * w),
        lambda m: m.reshape(g, c, h, n // g, w).permute(0, 3, 1, 2, 4).reshape(shape),
    )
