"""Several processes that learn as one, as `torchrun` starts them: who is who, and gradients averaged over all.

It knows nothing of what is trained. Gloo on CPUs, nccl on GPUs; the latter has been run with a single process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_device() -> torch.device:
    """The device of this process: its GPU, where every process on this machine has one."""
    if torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


@contextlib.contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the processes that `torchrun` has started, if any. Gives the device of this one."""
    device = own_device()
    cuda = device.type == "cuda"
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield device
        return
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def average_gradients(network: nn.Module) -> None:
    """Gradients and learned BN statistics become their means over all processes; one message for all."""
    if ranks() < 2:
        return
    tensors = [p.grad for p in network.parameters() if p.grad is not None]
    tensors += [b for b in network.buffers() if b.is_floating_point()]
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    flat /= ranks()
    for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        t.copy_(part.reshape(t.shape))
