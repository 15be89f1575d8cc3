"""The training loop: steps, cosine schedule, held-out checks, checkpoints, metrics, several processes.

It knows no model and no loss: it is given both as functions. Everything random is a function of the seed and the step,
so that a run that was killed and resumed from its checkpoint ends with the same parameters as one that was not. Under
`torchrun` every process takes its share of each batch and gradients are averaged (gloo on CPUs, nccl on GPUs; the
latter has been run with a single process).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from onnxprune.errors import FileError, UsageError, unknown

Loss = Callable[[int], tuple[Tensor, dict[str, float]]]
"""step -> (what is minimised, figures to log)."""


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        steps: optimizer steps in all.
        lr: highest learning rate; rises over the first `warmup` steps and falls to 0 along a cosine.
        warmup: steps.
        optimizer: "adamw", "sgd" (Nesterov momentum 0.9) or "gsm" (heavy momentum 0.98).
        decay: weight decay of kernels; vectors are not decayed.
        clip: gradients are scaled down to this norm; None: as they are.
        check_every: steps between looks at the held-out samples; the best parameters seen there are kept.
        patience: looks without a better one after which the run ends; None: never.
        bf16: run in bfloat16 where torch thinks it safe; None: where the processor or GPU has instructions for it.
        checkpoint: file to resume from and to write to every `save_every` seconds.
        metrics: file that gets a line of JSON at every look.
        device: where C-SGD, GSM, TRP and gates put their network; `process_group` gives it.
    """

    steps: int
    lr: float = 2e-3
    warmup: int = 50
    optimizer: str = "adamw"
    decay: float = 1e-4
    clip: float | None = 1.0
    check_every: int = 100
    patience: int | None = None
    bf16: bool | None = None
    checkpoint: Path | None = None
    save_every: float = 20.0
    metrics: Path | None = None
    device: torch.device = torch.device("cpu")  # noqa: RUF009


def rate(step: int, training: Training) -> float:
    """Learning rate of a step."""
    rise = min(1.0, (step + 1) / max(1, training.warmup))
    return training.lr * rise * 0.5 * (1 + math.cos(math.pi * step / training.steps))


def half_precision(training: Training, device: torch.device) -> torch.autocast:
    """The context to run a network in: bfloat16 where asked for, or where it is fast.

    Without instructions for it (AMX, AVX-512 BF16) it is emulated and takes seven times as long as float32.
    """
    enabled = _fast_bf16(device) if training.bf16 is None else training.bf16
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name)() for name in names if hasattr(torch.cpu, name))


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]] = {
    "adamw": lambda groups, lr: torch.optim.AdamW(groups, lr=lr),
    "sgd": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True),
    "gsm": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.98),
}


def train(
    network: nn.Module,
    loss: Loss,
    training: Training,
    *,
    check: Callable[[], float] | None = None,
    after_backward: Callable[[int], None] | None = None,
    after_step: Callable[[int], None] | None = None,
    memory: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Train in place. With `check` the network ends with the parameters that were best there.

    Args:
        network: what is trained.
        loss: of a step.
        training: how.
        check: the figure of merit on held-out samples, the lower the better.
        after_backward: may change the gradients of a step.
        after_step: may change the parameters after a step.
        memory: what a method has to know besides the parameters (tensors, numbers, dicts of them): it goes into the
            checkpoint, and is filled from it where a run goes on.
        progress: called with (steps done, steps).

    Returns:
        {"steps", "best", "best_step", "seconds", "resumed_at"}.

    Raises:
        UsageError: the checkpoint belongs to another run.
    """
    optimizer = _optimizer(network, training)
    state = _State(network, optimizer, training, {} if memory is None else memory)
    for step in range(state.resume(), training.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, training)
        total, figures = _differentiated(network, loss, optimizer, training, step)
        if after_backward:
            after_backward(step)
        if training.clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), training.clip)
        optimizer.step()
        if after_step:
            after_step(step)
        done = step + 1
        if progress:
            progress(done, training.steps)
        if done % training.check_every == 0 or done == training.steps:
            network.eval()
            state.look(done, float(total), None if check is None else check(), figures)
            if state.stale(done):
                break
        if state.due():
            state.save(done)
    state.save(training.steps)
    state.restore_best()
    network.eval()
    return state.summary()


def _optimizer(network: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimizer of that name; vectors are not decayed.

    Raises:
        UsageError: there is none.
    """
    if training.optimizer not in OPTIMIZERS:
        raise unknown("optimizer", training.optimizer, OPTIMIZERS)
    kernels = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": training.decay}, {"params": vectors, "weight_decay": 0.0}]
    return OPTIMIZERS[training.optimizer](groups, training.lr)


def _differentiated(
    network: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer, training: Training, step: int
) -> tuple[Tensor, dict[str, float]]:
    """(the loss of a step, its figures); the network has the gradients, the mean over all processes."""
    network.train()
    with half_precision(training, next(network.parameters()).device):
        total, figures = loss(step)
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    average_gradients(network)
    return total.detach(), figures


class _State:
    """How far a run has come, with what a checkpoint holds."""

    def __init__(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, training: Training, memory: dict[str, Any]
    ):
        self.network, self.optimizer, self.training, self.memory = network, optimizer, training, memory
        self.best, self.best_step, self.resumed_at = math.inf, 0, 0
        self.kept: dict[str, Tensor] | None = None
        self.begin = self.saved = time.monotonic()

    def look(self, step: int, loss: float, merit: float | None, figures: dict[str, float]) -> None:
        """Keep the parameters where they are the best so far, and add a line to the metrics."""
        if merit is not None and merit < self.best:
            self.best, self.best_step = merit, step
            self.kept = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        if self.training.metrics is not None and rank() == 0:
            seconds = round(time.monotonic() - self.begin, 2)
            line = {"step": step, "loss": loss, "held_out": merit, **figures, "seconds": seconds}
            with self.training.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def stale(self, step: int) -> bool:
        """Whether nothing better was seen for as long as patience lasts."""
        t = self.training
        return t.patience is not None and step - self.best_step >= t.patience * t.check_every

    def summary(self) -> dict[str, Any]:
        """What `train` gives back."""
        return {
            "steps": self.training.steps,
            "best": self.best,
            "best_step": self.best_step,
            "seconds": time.monotonic() - self.begin,
            "resumed_at": self.resumed_at,
        }

    def restore_best(self) -> None:
        if self.kept is not None:
            self.network.load_state_dict(self.kept)

    def _run(self) -> dict[str, Any]:
        t = self.training
        shapes = {k: tuple(v.shape) for k, v in self.network.state_dict().items()}
        return {"steps": t.steps, "lr": t.lr, "optimizer": t.optimizer, "shapes": shapes}

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self.saved >= self.training.save_every

    def save(self, step: int) -> None:
        """Whole or not at all: written beside, then renamed."""
        path = self.training.checkpoint
        if path is None or rank() != 0:
            return
        content = {
            "run": self._run(),
            "step": step,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": (self.best, self.best_step),
            "kept": self.kept,
            "memory": self.memory,
        }
        beside = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with beside.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise FileError(f"{path}: the checkpoint cannot be written: {error.strerror}; free some space") from error
        self.saved = time.monotonic()

    def resume(self) -> int:
        """The step to go on with."""
        path = self.training.checkpoint
        if path is None or not path.exists():
            return 0
        try:
            content = torch.load(path, weights_only=True, map_location="cpu")
            same = content["run"] == self._run()
        except Exception as error:
            raise UsageError(f"{path}: not a checkpoint; remove it or name another file") from error
        if not same:
            raise UsageError(f"{path}: the checkpoint belongs to another run; remove it or name another file")
        self.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.best, self.best_step = content["best"]
        self.kept = content["kept"]
        self.memory.update(content["memory"])
        self.resumed_at = int(content["step"])
        return self.resumed_at


def set_up(seed: int, threads: int | None) -> None:
    """Seed torch and set its threads; None: one, which is the fastest on a busy machine."""
    torch.set_num_threads(threads or 1)
    torch.manual_seed(seed)


# ---- several processes ---------------------------------------------------------------------------------------


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
