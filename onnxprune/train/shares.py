"""A loss in parts that are differentiated side by side, on as many cores as there are.

Two threads that share out every convolution wait for each other hundreds of times a step, and on a machine that does
anything else they spin for minutes. So each takes a part of the batch; and as the parts are the same however many
threads there are, and are added up in order, so is the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from onnxprune import parallel

Figured: TypeAlias = "tuple[Tensor, dict[str, float]]"
"""(what is minimised, figures to log)."""
Share: TypeAlias = "tuple[float, Callable[[], Figured]]"
"""(weight, what gives a part's own loss)."""


@dataclass(frozen=True)
class Shares:
    """A loss in parts.

    Attributes:
        of: step -> its parts.
    """

    of: Callable[[int], Sequence[Share]]


def side_by_side(
    network: nn.Module, shares: Sequence[Share], context: Callable[[], AbstractContextManager[object]]
) -> Figured:
    """The weighted loss of all parts, and its figures; the network has the gradients.

    Args:
        network: whose parameters are differentiated; the parts must not change it.
        shares: the parts.
        context: what each is computed in.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]

    def work(share: Share) -> tuple[Sequence[Tensor | None], Tensor, dict[str, float]]:
        weight, compute = share
        alone()
        with context():
            total, figures = compute()
        slopes = torch.autograd.grad(weight * total, parameters, allow_unused=True)
        return slopes, weight * total.detach(), {name: weight * value for name, value in figures.items()}

    whole, figures = torch.zeros(()), dict[str, float]()
    for p in parameters:
        p.grad = None
    for slopes, total, more in parallel.each(work, shares):
        for p, slope in zip(parameters, slopes, strict=True):
            if slope is not None:
                p.grad = slope if p.grad is None else p.grad.add_(slope)
        whole = whole + total
        figures = {name: figures.get(name, 0.0) + value for name, value in more.items()}
    return whole, figures


def alone() -> None:
    """Torch has one thread in this one: its number is a setting of every thread's own."""
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@contextmanager
def set_up(seed: int, threads: int | None) -> Iterator[None]:
    """Torch seeded, and with so many threads inside (None: one, which is the fastest on a busy machine): afterwards it
    has as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or 1)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_num_threads(before)
