"""The training loop: steps, cosine schedule, held-out checks, checkpoints, metrics, cores, several processes.

It knows no model and no loss: it is given both as functions. Where it is told how well the network does before the
first step, training is on trial: the parameters of that beginning are kept unless others are better by more than
chance. Everything random is a function of the seed and the step, so that a run that was killed and resumed from its
checkpoint ends with the same parameters as one that was not. Under `torchrun` every process takes its share of each
batch and gradients are averaged (`train.processes`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnxprune.errors import unknown
from onnxprune.files.lines import add_line
from onnxprune.measure.chance import LITTLE, beats, standard_error
from onnxprune.train.checkpoint import load_checkpoint, save_checkpoint
from onnxprune.train.processes import average_gradients, rank
from onnxprune.train.shares import Figured, Shares, side_by_side

Loss = Callable[[int], Figured]
"""step -> (what is minimised, figures to log)."""
LOOKS = 12
"""Looks at held-out samples in a run, where nobody says how many."""
LOG_EVERY = 100
"""Steps between lines of the metrics, where nobody says how often to look."""
COSTS = 0.2
"""What a rate may cost the held-out samples in a short trial, as a share of what they lose at its start: ResNet-20 on
CIFAR-10, halved, was trained best at rates that stood 20 to 30% above the start a quarter of the way in."""
RATES = (1 / 64, 1 / 16, 1 / 4, 1.0)
"""Learning rates to try, as shares of the highest that makes sense."""
TRYING = 1 / 16
"""Share of a run that each of them is tried for."""
BACK_OFF = 0.25
"""What the rate is multiplied by where training runs into numbers that are none."""


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        steps: optimizer steps in all.
        lr: highest learning rate; rises over the first `warmup` steps and falls to 0 along a cosine. None: found by
            short trials, which are undone (`find_rate`), and no higher than `highest`.
        highest: see `lr`.
        warmup: steps; None: a tenth of the run, and no more than fifty.
        optimizer: "adamw", "sgd" (Nesterov momentum 0.9) or "gsm" (heavy momentum 0.98).
        decay: weight decay of kernels; vectors are not decayed.
        clip: gradients are scaled down to this norm; None: as they are.
        check_every: steps between looks at the held-out samples; the best parameters seen there are kept. None: so many
            that there are about a dozen looks.
        patience: looks without a better one after which the run ends; None: never.
        bf16: run in bfloat16 where torch thinks it safe; None: where the processor or GPU has instructions for it.
        checkpoint: file to resume from and to write to every `save_every` seconds.
        metrics: file that gets a line of JSON at every look; where nobody says how often to look, every hundred steps.
        device: where C-SGD, GSM, TRP and gates put their network; `process_group` gives it.
        takes: samples that their network takes at a time where it takes no others, see `network.only_batch`.
    """

    steps: int
    lr: float | None = 2e-3
    highest: float = 2e-3
    warmup: int | None = None
    optimizer: str = "adamw"
    decay: float = 1e-4
    clip: float | None = 1.0
    check_every: int | None = None
    patience: int | None = None
    bf16: bool | None = None
    checkpoint: Path | None = None
    save_every: float = 20.0
    metrics: Path | None = None
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    takes: int | None = None

    @property
    def rising(self) -> int:
        """Steps in which the learning rate rises."""
        return max(1, min(50, self.steps // 10) if self.warmup is None else self.warmup)

    @property
    def every(self) -> int:
        """Steps between looks at the held-out samples."""
        return max(1, -(-self.steps // LOOKS)) if self.check_every is None else self.check_every

    def looks_at(self, done: int) -> bool:
        """Whether there is such a look behind so many steps."""
        return done % self.every == 0 or done == self.steps

    def logs_at(self, done: int) -> bool:
        """Whether the metrics get a line behind so many steps."""
        return self.looks_at(done) if self.check_every else done % LOG_EVERY == 0 or done == self.steps


def rate(step: int, training: Training) -> float:
    """Learning rate of a step."""
    assert training.lr is not None
    rise = min(1.0, (step + 1) / training.rising)
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


Check = Callable[[], "float | Tensor"]
"""What counts on held-out samples, one figure or (samples,) or (samples, views) of them, the lower the better."""


def train(
    network: nn.Module,
    loss: Loss | Shares,
    training: Training,
    *,
    check: Check | None = None,
    start: Tensor | None = None,
    little: float = LITTLE,
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
        check: the figure of merit on held-out samples.
        start: what `check` says before the first step. The network then ends with the parameters that it has now,
            unless the best of the others is better by more than chance (`beats`); and where it runs into numbers
            that are none, it goes back to the best, with a lower rate.
        little: relative fall of the figure that does not matter.
        after_backward: may change the gradients of a step.
        after_step: may change the parameters after a step.
        memory: what a method has to know besides the parameters (tensors, numbers, dicts of them): it goes into the
            checkpoint, and is filled from it where a run goes on.
        progress: called with (steps done, steps).

    Returns:
        {"steps", "best", "best_step", "seconds", "resumed_at", "lr", "merits", "kept": "start" or "trained"}.

    Raises:
        UsageError: the checkpoint belongs to another run, or is damaged.
        FileError: it cannot be written, or the metrics.
    """
    held: dict[str, Any] = {"lr": training.lr, "slower": 1.0}
    optimizer = _optimizer(network, training)
    state = _State(network, optimizer, training, {} if memory is None else memory, held, start, little)
    first = state.resume()
    if held["lr"] is None:
        held["lr"], _ = find_rate(network, loss, training, check, start)
    how = replace(training, lr=held["lr"])
    for step in range(first, training.steps):
        for group in optimizer.param_groups:
            group["lr"] = held["slower"] * rate(step, how)
        total, figures = _differentiated(network, loss, optimizer, training, step)
        if start is not None and not math.isfinite(float(total)):
            state.back_off()
            continue
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
        if training.looks_at(done) or training.logs_at(done):
            network.eval()
            state.look(done, float(total), check, figures)
            if state.stale(done):
                break
        if state.due():
            state.save(done)
    state.save(training.steps)
    state.restore_best()
    network.eval()
    return state.summary()


def find_rate(
    network: nn.Module, loss: Loss | Shares, training: Training, check: Check | None, start: Tensor | None
) -> tuple[float, float]:
    """The learning rate for a run, by short runs that rise and fall as it will, and what share of the run these took
    less than the longest search. The network is left as it was.

    Ours. A short run favours low rates, which move little and so do little harm, while a long one wins back at its end
    what a higher rate costs on the way. So the highest rate is taken, of rising ones, that costs the held-out samples
    no more than `COSTS` of what they lose at the start, or that is no worse than the best within a standard error.
    It is looked for by halving, so that two trials do where the highest one serves; where a rate is too high, one
    between it and the last good one is tried too.
    """
    if check is None:
        return training.highest, 0.0
    short = max(2, round(TRYING * training.steps))
    network.eval()
    before = _copied(network)
    most = (1 + COSTS) * float(torch.as_tensor(check() if start is None else start, dtype=torch.float64).mean())
    tried: dict[float, np.ndarray] = {}
    trial = replace(training, steps=short, warmup=None, check_every=short, patience=None, checkpoint=None, metrics=None)
    whole = _spread(loss, training.steps / short)

    def good(lr: float) -> bool:
        found = train(network, whole, replace(trial, lr=lr), check=check)["merits"]
        network.load_state_dict(before)
        tried[lr] = np.full(1, np.inf) if found is None else found.numpy()  # None: numbers that are none
        return bool(np.mean(tried[lr]) <= most)

    rates = [share * training.highest for share in RATES]
    low, high = -1, len(rates)  # the highest that is known to be good, the lowest that is known not to be
    while high - low > 1:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if good(rates[middle]) else (low, middle)
    if 0 <= low < len(rates) - 1:
        good(math.sqrt(rates[low] * rates[high]))
    network.eval()
    return max(_good(tried, most), default=rates[0]), TRYING * (len(rates) - len(tried))


def _spread(loss: Loss | Shares, stride: float) -> Loss | Shares:
    """The loss at steps all over a run, for a short one: what changes in the course of the run changes in both."""
    if isinstance(loss, Shares):
        return Shares(lambda step: loss.of(int(step * stride)))
    return lambda step: loss(int(step * stride))


def _good(tried: Mapping[float, np.ndarray], most: float) -> list[float]:
    """Those whose mean is at most so much, or within a standard error of the least (Breiman et al. 1984), sample by
    sample."""
    tried = {lr: merits for lr, merits in tried.items() if np.isfinite(merits).all()}
    best = min(tried.values(), key=np.mean, default=np.zeros(1))
    errors = {lr: standard_error(merits, best) if best.size > 1 else 0.0 for lr, merits in tried.items()}
    return [lr for lr, m in tried.items() if np.mean(m - best) <= errors[lr] or np.mean(m) <= most]


def steps_within(
    seconds: float,
    network: nn.Module,
    loss: Loss | Shares,
    training: Training,
    check: Check | None = None,
    *,
    again: float = 0.0,
) -> int:
    """How many steps find room in so many seconds, with the looks at held-out samples and the trials of rates; at
    least one. A step and a look are timed; the network is left as it was. `again` is the share of the steps whose
    samples come again, and take less time."""
    trials = len(RATES) if training.lr is None else 0
    optimizer, clock = _optimizer(network, training), time.monotonic
    took: list[list[float]] = [[], []]
    for step in (0, 1, 2):  # the first one pays for what is set up once
        for kind in took:
            begin = clock()
            _differentiated(network, loss, optimizer, training, step)
            kind.append(clock() - begin)
    once = (1 - again) * min(took[0]) + again * min(took[1])
    optimizer.zero_grad(set_to_none=True)
    network.eval()
    begin = clock()
    if check is not None:
        check()
    left = seconds - sum(map(sum, took)) - (1 + LOOKS + trials) * (clock() - begin)
    return max(1, int(left / once / (1 + trials * TRYING)))


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in network.state_dict().items()}


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
    return OPTIMIZERS[training.optimizer](groups, training.lr or training.highest)


def _differentiated(
    network: nn.Module, loss: Loss | Shares, optimizer: torch.optim.Optimizer, training: Training, step: int
) -> Figured:
    """(the loss of a step, its figures); the network has the gradients, the mean over all processes."""
    network.train()
    if isinstance(loss, Shares):
        device = next(network.parameters()).device
        found = side_by_side(network, loss.of(step), lambda: half_precision(training, device))
        average_gradients(network)
        return found
    with half_precision(training, next(network.parameters()).device):
        total, figures = loss(step)
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    average_gradients(network)
    return total.detach(), figures


class _State:
    """How far a run has come, with what a checkpoint holds."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        training: Training,
        memory: dict[str, Any],
        held: dict[str, Any],
        start: Tensor | None,
        little: float,
    ):
        self.network, self.optimizer, self.training, self.memory, self.held = network, optimizer, training, memory, held
        self.best, self.best_step, self.resumed_at = math.inf, 0, 0
        self.start, self.little, self.first = start, little, None if start is None else _copied(network)
        self.merits: Tensor | None = None
        self.kept: dict[str, Tensor] | None = None
        self.begin = self.saved = time.monotonic()

    def look(self, step: int, loss: float, check: Check | None, figures: dict[str, float]) -> None:
        """Keep the parameters where they are the best so far, and add a line to the metrics."""
        merit = None
        if check is not None and self.training.looks_at(step):
            merits = torch.as_tensor(check(), dtype=torch.float64).cpu()
            merit = float(merits.mean())
            if merit < self.best:
                self.best, self.best_step, self.merits, self.kept = merit, step, merits, _copied(self.network)
        if self.training.metrics is not None and rank() == 0 and self.training.logs_at(step):
            seconds = round(time.monotonic() - self.begin, 2)
            line = {"step": step, "loss": loss, "held_out": merit, **figures, "seconds": seconds}
            add_line(self.training.metrics, line)

    def stale(self, step: int) -> bool:
        """Whether nothing better was seen for as long as patience lasts."""
        t = self.training
        return t.patience is not None and step - self.best_step >= t.patience * t.every

    def summary(self) -> dict[str, Any]:
        """What `train` gives back."""
        return {
            "steps": self.training.steps,
            "best": self.best,
            "best_step": self.best_step,
            "seconds": time.monotonic() - self.begin,
            "resumed_at": self.resumed_at,
            "lr": self.held["lr"],
            "merits": self.merits,
            "kept": "trained" if self.worth_it() else "start",
        }

    def worth_it(self) -> bool:
        """Whether training has made anything better; where nobody looked at the beginning, it is taken to have."""
        start, found = self.start, self.merits
        return start is None or (found is not None and beats(found.numpy(), start.numpy(), self.little))

    def restore_best(self) -> None:
        """The best parameters back into the network: those of the beginning among them, where these were looked at."""
        best = self.kept if self.worth_it() else self.first
        if best is not None:
            self.network.load_state_dict(best)

    def back_off(self) -> None:
        """From numbers that are none back to the best ones, and slower from here."""
        self.network.load_state_dict(self.kept or self.first or {})
        self.optimizer.state.clear()
        self.held["slower"] *= BACK_OFF

    def _run(self) -> dict[str, Any]:
        t = self.training
        shapes = {k: tuple(v.shape) for k, v in self.network.state_dict().items()}
        return {"steps": t.steps, "lr": t.lr, "optimizer": t.optimizer, "shapes": shapes}

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self.saved >= self.training.save_every

    def save(self, step: int) -> None:
        """Whole or not at all."""
        path = self.training.checkpoint
        if path is None or rank() != 0:
            return
        content = {
            "run": self._run(),
            "step": step,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": (self.best, self.best_step),
            "merits": self.merits,
            "held": self.held,
            "kept": self.kept,
            "memory": self.memory,
        }
        save_checkpoint(content, path)
        self.saved = time.monotonic()

    def resume(self) -> int:
        """The step to go on with."""
        path = self.training.checkpoint
        if path is None or not path.exists():
            return 0
        content = load_checkpoint(path, self._run())
        self.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.best, self.best_step = content["best"]
        self.kept, self.merits = content["kept"], content["merits"]
        self.held.update(content["held"])
        self.memory.update(content["memory"])
        self.resumed_at = int(content["step"])
        return self.resumed_at
