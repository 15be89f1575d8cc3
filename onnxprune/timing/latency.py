"""Latency, honestly measured: several models side by side in one process, and what may be concluded.

All models run with the same options on the same input. A session is opened and its input and output bound once
(`bound_run`), warmed up, and then timed in rounds (`rounds`). The first model is opened twice; the ratio of these two
sessions is the noise floor that every other ratio must clear before it counts (`statistics`).

Times are those of the run alone. What a provider is called and whether it is really there is the business of `runtime`.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import LoadError, UsageError, one_line
from onnxprune.files.metadata import PREFIX
from onnxprune.runtime import sessions
from onnxprune.runtime.install import versions
from onnxprune.runtime.ports import made_up
from onnxprune.runtime.providers import CPU
from onnxprune.timing.accelerators import accelerators
from onnxprune.timing.bench_inputs import Model, batch_of, fitting_feeds, labels_of, part_of, rehearse
from onnxprune.timing.bench_result import BenchResult, Comparison, Timing
from onnxprune.timing.bound_run import BoundRun
from onnxprune.timing.rounds import MIN_ROUNDS, SAMPLE_MS, no_collection, timed_rounds
from onnxprune.timing.statistics import Interval, noise_floor, paired_ratio, round_orders, verdict

SAID = ("predicted", "model_digest")
"""What a file says of itself that a measurement is held against."""
Progress = Callable[[int, int], None]
"""Called with (rounds done, rounds asked for)."""


def bench(
    models: Sequence[Model],
    *,
    names: Sequence[str] | None = None,
    feeds: Mapping[str, NDArray[Any]] | None = None,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    input_value: Mapping[str, Sequence[float]] | None = None,
    batch_axis: Mapping[str, int] | None = None,
    providers: Sequence[str] = ("cpu",),
    provider_options: Mapping[str, Mapping[str, object]] | None = None,
    threads: int = 1,
    rounds: int = 40,
    time_budget_s: float | None = None,
    seed: int = 0,
    spinning: bool | None = None,
    trusted: bool = False,
    progress: Progress | None = None,
) -> BenchResult:
    """Time `models` side by side.

    Args:
        models: the first is the baseline of every comparison.
        names: what to call them; None: by their files.
        feeds: the input to time; None: a random one is made from the first model's inputs.
        batch, shapes: for its dynamic axes.
        providers: short names, the wanted one first.
        input_value, batch_axis: as for `prune`.
        provider_options: those of ORT, by provider: {"cuda": {"use_tf32": 0, "enable_cuda_graph": 1}}.
        threads: of ORT.
        rounds: at least 10.
        time_budget_s: caps the total: fewer rounds, though never under 10, and for models so slow that it would not
            fit a shorter warm-up, though never under 2 runs.
        seed: of the random input and of the order within a round.
        spinning: whether idle threads poll instead of sleep; None: with one thread, which has nobody to wait for. On a
            busy machine it makes the median ten times the minimum.
        trusted: whether the models' first runs are made in this process; else in children that can be killed.
        progress: called after each round.

    Raises:
        UsageError: a bad call, or models whose inputs differ.
        ModelError, FileError: a model that is not there, does not load or does not run on this input.
        ProviderError: a provider that is absent or fell back.
    """
    spin = threads == 1 if spinning is None else spinning
    asked = _Asked(tuple(providers), provider_options, threads, spin, batch, rounds, time_budget_s, seed)
    asked.check(len(models))
    labels, made = (
        labels_of(models, names),
        partial(made_up, shapes=shapes, input_value=input_value, batch_axis=batch_axis),
    )
    for model, label in zip(models, labels, strict=True) if not trusted else ():
        rehearse(model, label, feeds, made)
    runs, opened, part = list(models), list[sessions.Session](), ""
    for k, (model, name) in enumerate(zip(models, labels, strict=True)):
        try:
            opened.append(asked.open(model, name))
        except LoadError:
            split = part_of(model, name, shapes, trusted=trusted)
            if split is None:
                raise
            runs[k], part = split.part, part or one_line(f"{name}: {'; '.join(split.in_words())}")
            opened.append(asked.open(runs[k], name))
    source = labels[0] if feeds is None else "the feeds given"
    fed = fitting_feeds(opened, feeds, source, batch=batch, made=made, seed=seed)
    opened.append(asked.open(runs[0], labels[0]))  # A/A: the twin of the first
    timed = _timed(asked, [BoundRun(s, fed) for s in opened], progress)
    return replace(_result(asked, models, labels, fed, opened, timed), part=part)


@dataclass(frozen=True)
class _Asked:
    """How models are timed, as `bench` was asked; and since when."""

    providers: tuple[str, ...]
    provider_options: Mapping[str, Mapping[str, object]] | None
    threads: int
    spinning: bool
    batch: int
    rounds: int
    time_budget_s: float | None
    seed: int
    start: float = field(default_factory=lambda: time.perf_counter())
    load: tuple[float, ...] | None = field(default_factory=lambda: _load_average())

    def check(self, models: int) -> None:
        """UsageError where it cannot be done."""
        if not models:
            raise UsageError("bench needs at least one model")
        if self.threads < 1:
            raise UsageError(f"threads must be at least 1, not {self.threads}")
        if self.batch < 1:
            raise UsageError(f"batch must be at least 1, not {self.batch}")
        if self.rounds < MIN_ROUNDS:
            raise UsageError(f"rounds must be at least {MIN_ROUNDS}, not {self.rounds} - fewer say nothing about noise")
        if self.time_budget_s is not None and not self.time_budget_s > 0:
            raise UsageError(f"the time budget must be positive, not {self.time_budget_s} s")

    @property
    def deadline(self) -> float:
        """When it must be over, on the clock of `start`."""
        return math.inf if self.time_budget_s is None else self.start + self.time_budget_s

    def open(self, model: Model, name: str) -> sessions.Session:
        """A session as it is timed."""
        return sessions.open_session(
            model,
            providers=self.providers,
            provider_options=self.provider_options,
            threads=self.threads,
            pack=True,
            optimise=True,
            spinning=self.spinning,
            record=True,
            name=name,
        )


@dataclass(frozen=True)
class _Timed:
    """The times of all models and of the twin of the first, the last column."""

    times: NDArray[np.float64]  # (rounds that ran, models + 1) ms per run
    interrupted: int  # samples
    by_core_time: bool
    warm_up_runs: list[int]
    runs_per_sample: list[int]
    copies: list[tuple[float, float] | None]

    def ratio(self, i: int, seed: int) -> Interval:
        """How many times as long the first model takes as the one in column i."""
        return paired_ratio(self.times[:, 0], self.times[:, i], seed=seed)


def _timed(asked: _Asked, runs: Sequence[BoundRun], progress: Progress | None) -> _Timed:
    """Warm up, then time in rounds."""
    with no_collection():
        # At most a quarter of what the budget leaves, shared out, goes into warming up.
        share = (asked.deadline - time.perf_counter()) / 4 / len(runs)
        warm = [run.warm_up(share) for run in runs]
        per_sample = [max(1, math.ceil(SAMPLE_MS / best)) for _, best in warm]
        per_sample[-1] = per_sample[0]  # or A/A would compare two block lengths
        orders = round_orders(len(runs), asked.rounds, asked.seed)
        alone = asked.threads == 1 and runs[0].session.providers[0] == CPU
        times, interrupted = timed_rounds(runs, per_sample, orders, asked.deadline, progress, alone=alone)
    copies = [run.copies_ms() for run in runs[:-1]]
    return _Timed(times, interrupted, alone, [count for count, _ in warm], per_sample, copies)


def _said(session: sessions.Session) -> dict[str, str]:
    """What a model's metadata says of how it was planned; a stand-in says nothing."""
    try:
        found = session.raw.get_modelmeta().custom_metadata_map
    except AttributeError:
        return {}
    return {name: found[PREFIX + name] for name in SAID if PREFIX + name in found}


def _result(
    asked: _Asked,
    models: Sequence[Model],
    labels: Sequence[str],
    feeds: Mapping[str, NDArray[Any]],
    opened: Sequence[sessions.Session],
    timed: _Timed,
) -> BenchResult:
    """All of it in one; `opened` are the models' sessions in order, and the twin's."""
    own = dict(zip(labels, opened, strict=False))
    noise = timed.ratio(-1, asked.seed)
    batch = batch_of(feeds, asked.batch)
    return BenchResult(
        timings=tuple(_timing(i, labels[i], model, timed, batch) for i, model in enumerate(models)),
        comparisons=tuple(
            _compare(labels[0], labels[i], timed.ratio(i, asked.seed), noise) for i in range(1, len(labels))
        ),
        noise=noise,
        threads=asked.threads,
        spinning=asked.spinning,
        batch=batch,
        providers={n: tuple(s.providers) for n, s in own.items()},
        provider_options={n: s.provider_options for n, s in own.items()},
        assignment={n: s.assignment for n, s in own.items()},
        nodes={n: s.nodes for n, s in own.items()},
        said={n: _said(s) for n, s in own.items()},
        shapes={name: tuple(array.shape) for name, array in feeds.items()},
        versions=versions(),
        machine={
            "system": platform.system(),
            "cpu": platform.machine(),
            "cores": os.cpu_count(),
            "accelerators": list(accelerators(asked.providers)),
        },
        load_start=asked.load,
        load_end=_load_average(),
        rounds=len(timed.times),
        interrupted=timed.interrupted,
        by_core_time=timed.by_core_time,
        rounds_asked=asked.rounds,
        time_budget_s=asked.time_budget_s,
        elapsed_s=time.perf_counter() - asked.start,
        seed=asked.seed,
    )


def _timing(i: int, name: str, model: Model, timed: _Timed, batch: int) -> Timing:
    """What was found out about the model in column i."""
    samples = timed.times[:, i]
    p50, p90, p99 = (float(q) for q in np.quantile(samples, [0.5, 0.9, 0.99]))
    copy_in, copy_out = timed.copies[i] or (None, None)
    return Timing(
        name=name,
        path=str(model) if isinstance(model, str | Path) else None,
        min_ms=float(samples.min()),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        mean_ms=float(samples.mean()),
        throughput_per_s=batch * 1e3 / p50,
        rounds=len(samples),
        runs_per_sample=timed.runs_per_sample[i],
        samples=tuple(samples.tolist()),
        warm_up_runs=timed.warm_up_runs[i],
        copy_in_ms=copy_in,
        copy_out_ms=copy_out,
    )


def _compare(baseline: str, candidate: str, ratio: Interval, same_against_same: Interval) -> Comparison:
    noise = noise_floor(same_against_same)
    return Comparison(baseline, candidate, ratio.median, ratio.low, ratio.high, noise, verdict(ratio, noise))


def _load_average() -> tuple[float, ...] | None:
    try:
        return os.getloadavg()
    except (AttributeError, OSError):  # Windows has none
        return None
