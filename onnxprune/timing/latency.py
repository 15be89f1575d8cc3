"""Latency, honestly measured: several models side by side in one process, and what may be concluded.

All models run with the same options on the same input. A session is opened and its input and output bound
once, warmed up, and then timed in rounds: each round times every model once, in random order, so a busy
machine hits all of them alike and the ratio within a round stays true. A sample is a block of runs long
enough for the clock, taken again where the system gave our core to another process meanwhile; where that
happens every time (a run longer than the scheduler's turns, on a full machine), a single thread's sample counts
as the time that it had its core. The first model is opened twice; the ratio of these two sessions is the
noise floor that every other ratio must clear before it counts (`timing_stats`).

Times are those of the run alone. On a device, inputs and outputs live there and the copies in and out are
timed apart; CUDA has been run on a GPU, the other devices have only been tested with fakes. What a provider is
called and whether it is really there is the business of `runtime`.
"""

import gc
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

from onnxprune.errors import UsageError, one_line
from onnxprune.runtime.accelerated import Placed
from onnxprune.runtime.install import versions
from onnxprune.runtime.ports import default_feed
from onnxprune.runtime.providers import CPU, RECORDED, device_of
from onnxprune.runtime.sessions import Session, open_session
from onnxprune.timing.accelerators import accelerators
from onnxprune.timing.statistics import Interval, Verdict, noise_floor, paired_ratio, round_orders, verdict

Model = str | Path | bytes | onnx.ModelProto

MIN_ROUNDS = 10
WARM_UP_RUNS, WARM_UP_MS = 10, 200.0
ATTEMPTS = 3  # at a sample that the system does not interrupt
LONG_MS = 5.0  # a run longer than the scheduler's turns is interrupted in the next attempt as well
SAMPLE_MS = 1.25  # the aim; a machine that then speeds up still gives samples of at least 1 ms


@dataclass(frozen=True)
class Timing:
    """Times of one run of one model. A sample is the mean of `runs_per_sample` runs, one sample a round."""

    name: str
    path: str | None  # None for a model that came from memory
    min_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    throughput_per_s: float  # inputs per second at the median: batch / p50
    rounds: int
    runs_per_sample: int
    samples: tuple[float, ...]  # (rounds,) ms, in the order of the rounds
    warm_up_runs: int = 0
    copy_in_ms: float | None = None  # on a device only: median time to bring the input there
    copy_out_ms: float | None = None  # … and to fetch the output


@dataclass(frozen=True)
class Comparison:
    """`speedup` is the median over rounds of baseline / candidate, with its 95 % interval; > 1 is faster."""

    baseline: str
    candidate: str
    speedup: float
    low: float
    high: float
    noise: tuple[float, float]
    verdict: Verdict


@dataclass(frozen=True)
class BenchResult:
    timings: tuple[Timing, ...]  # one a model, in the order given
    comparisons: tuple[Comparison, ...]  # the first model against each other one
    noise: Interval  # A/A: the first model against itself, opened a second time
    threads: int
    spinning: bool
    batch: int
    providers: dict[str, tuple[str, ...]]  # model name -> the providers that its session really has
    provider_options: dict[str, dict[str, dict[str, str]]]  # model name -> provider -> what is in force there
    assignment: dict[str, Any]  # model name -> provider -> how many nodes it runs; None where ORT cannot tell
    nodes: dict[str, tuple[Placed, ...] | None]  # the same node by node
    shapes: dict[str, tuple[int, ...]]  # input name -> the shape that was timed
    versions: dict[str, Any]
    machine: dict[str, Any]
    load_start: tuple[float, ...] | None  # load average over 1, 5, 15 minutes; None where the system has none
    load_end: tuple[float, ...] | None
    rounds: int  # that ran
    interrupted: int  # samples, of rounds x (models + 1), that lost their core to another process in every attempt
    by_core_time: bool  # and whether these count as the time that they had their core: one thread on the CPU
    rounds_asked: int
    time_budget_s: float | None
    elapsed_s: float
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Everything, samples included, as plain JSON types."""
        return {"schema": 1, "kind": "onnxprune bench", **_plain(self)}


def bench(
    models: Sequence[Model],
    *,
    names: Sequence[str] | None = None,
    feeds: Mapping[str, NDArray[Any]] | None = None,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    providers: Sequence[str] = ("cpu",),
    provider_options: Mapping[str, Mapping[str, object]] | None = None,
    threads: int = 1,
    rounds: int = 40,
    time_budget_s: float | None = None,
    seed: int = 0,
    spinning: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> BenchResult:
    """Time `models` side by side; the first is the baseline of every comparison.

    `feeds` is the input to time; without it a random one is made from the first model's inputs, with `batch`
    and `shapes` for the dynamic axes. `provider_options` are those of ORT, by provider:
    {"cuda": {"use_tf32": 0, "enable_cuda_graph": 1}}. With more than one thread, `spinning` (idle threads poll
    instead of sleep) is off unless asked for: on a busy machine it makes the median ten times the minimum.
    `time_budget_s` caps the total: fewer rounds, though never under 10, and for models so slow that it would
    not fit a shorter warm-up, though never under 2 runs. `progress(done, asked)` is called after each round.

    Raises:
        UsageError: a bad call, or models whose inputs differ.
        ModelError, FileError: a model that is not there, does not load or does not run on this input.
        ProviderError: a provider that is absent or fell back.
    """
    if not models:
        raise UsageError("bench needs at least one model")
    if threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}")
    if batch < 1:
        raise UsageError(f"batch must be at least 1, not {batch}")
    if rounds < MIN_ROUNDS:
        raise UsageError(f"rounds must be at least {MIN_ROUNDS}, not {rounds} - fewer say nothing about noise")
    if time_budget_s is not None and not time_budget_s > 0:
        raise UsageError(f"the time budget must be positive, not {time_budget_s} s")
    start = time.perf_counter()
    deadline = math.inf if time_budget_s is None else start + time_budget_s
    load_start = _load_average()
    labels = _names(models, names)
    spin = threads == 1 if spinning is None else spinning  # one thread has nobody to wait for

    def open_one(model: Model, name: str) -> Session:
        return open_session(
            model,
            providers=providers,
            provider_options=provider_options,
            threads=threads,
            optimise=True,
            spinning=spin,
            record=True,
            name=name,
        )

    sessions = [open_one(model, name) for model, name in zip(models, labels, strict=True)]
    source = labels[0] if feeds is None else "the feeds given"
    if feeds is None:
        feeds = default_feed(sessions[0].inputs, batch=batch, shapes=shapes, seed=seed)
        _check_batch(feeds, batch, labels[0])
    feeds = {name: np.asarray(array, order="C") for name, array in feeds.items()}
    for session, name in zip(sessions, labels, strict=True):
        _check_inputs(session, feeds, name, source)
    batch = batch_of(feeds, batch)

    sessions.append(open_one(models[0], labels[0]))  # A/A: the twin of the first
    runs = [BoundRun(session, feeds) for session in sessions]
    with _no_collection():
        # At most a quarter of what the budget leaves, shared out, goes into warming up.
        share = (deadline - time.perf_counter()) / 4 / len(runs)
        warm = [run.warm_up(share) for run in runs]
        per_sample = [max(1, math.ceil(SAMPLE_MS / best)) for _, best in warm]
        per_sample[-1] = per_sample[0]  # or A/A would compare two block lengths
        orders = round_orders(len(runs), rounds, seed)
        alone = threads == 1 and sessions[0].providers[0] == CPU
        times, interrupted = _rounds(runs, per_sample, orders, deadline, progress, alone=alone)
    copies = [run.copies_ms() for run in runs[:-1]]

    done = len(times)
    noise = paired_ratio(times[:, 0], times[:, -1], seed=seed)
    return BenchResult(
        timings=tuple(
            _timing(name, model, times[:, i], batch, per_sample[i], warm[i][0], copies[i])
            for i, (name, model) in enumerate(zip(labels, models, strict=True))
        ),
        comparisons=tuple(
            _compare(labels[0], labels[i], times[:, 0], times[:, i], noise, seed) for i in range(1, len(labels))
        ),
        noise=noise,
        threads=threads,
        spinning=spin,
        batch=batch,
        providers={n: tuple(s.providers) for n, s in zip(labels, sessions, strict=False)},
        provider_options={n: s.provider_options for n, s in zip(labels, sessions, strict=False)},
        assignment={n: s.assignment for n, s in zip(labels, sessions, strict=False)},
        nodes={n: s.nodes for n, s in zip(labels, sessions, strict=False)},
        shapes={name: tuple(array.shape) for name, array in feeds.items()},
        versions=versions(),
        machine={
            "system": platform.system(),
            "cpu": platform.machine(),
            "cores": os.cpu_count(),
            "accelerators": list(accelerators(providers)),
        },
        load_start=load_start,
        load_end=_load_average(),
        rounds=done,
        interrupted=interrupted,
        by_core_time=alone,
        rounds_asked=rounds,
        time_budget_s=time_budget_s,
        elapsed_s=time.perf_counter() - start,
        seed=seed,
    )


class BoundRun:
    """A session with its input and output bound once, on its own device; a call is one run, nothing else."""

    def __init__(self, session: Session, feeds: Mapping[str, NDArray[Any]]):
        self.session, self.feeds = session, feeds
        self.device = device = device_of(session.providers[0])
        raw = session.raw
        binding = raw.io_binding()
        self.inputs = {spec.name: to_device(feeds[spec.name], device) for spec in session.inputs}
        for name, value in self.inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name in session.outputs:
            binding.bind_output(name, device)
        self.binding, self._run = binding, raw.run_with_iobinding
        options = session.provider_options.get(session.providers[0], {})
        if any(options.get(key) in ("1", "True", "true") for key in RECORDED):
            self._keep_outputs()

    def __call__(self) -> None:
        self._run(self.binding)

    def _keep_outputs(self) -> None:
        """Bind the outputs where a first run, one that is not recorded, has put them.

        A recorded run writes to the addresses it was recorded with.
        """
        try:
            self.session.raw.run_with_iobinding(self.binding, unrecorded())
        except Exception:
            self.session.run(self.feeds)  # fails in the same way and says so in one line
            raise
        for name, value in zip(self.session.outputs, self.binding.get_outputs(), strict=True):
            self.binding.bind_ortvalue_output(name, value)

    def warm_up(self, share_s: float) -> tuple[int, float]:
        """As `_warm_up`. ModelError where the model cannot be run on this input."""
        try:
            return _warm_up(self, share_s)
        except Exception:
            self.session.run(self.feeds)  # fails in the same way and says so in one line
            raise

    def copies_ms(self, repeats: int = 20) -> tuple[float, float] | None:
        """Median times of the copies in and out; None where there are none, on the CPU."""
        if self.device == "cpu":
            return None
        times = np.empty((repeats, 2))
        for row in times:
            begin = time.perf_counter_ns()
            for name, value in self.inputs.items():
                value.update_inplace(self.feeds[name])
            self.binding.synchronize_inputs()
            middle = time.perf_counter_ns()
            self.binding.copy_outputs_to_cpu()
            row[:] = middle - begin, time.perf_counter_ns() - middle
        copy_in, copy_out = np.median(times, axis=0) / 1e6
        return float(copy_in), float(copy_out)


def to_device(array: NDArray[Any], device: str) -> Any:
    import onnxruntime as ort

    return ort.OrtValue.ortvalue_from_numpy(array, device, 0)


def unrecorded() -> Any:
    """Options of a run that is neither recorded nor replayed (ORT's key and value for that)."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "-1")
    return options


def _warm_up(run: Callable[[], None], share_s: float) -> tuple[int, float]:
    """(runs, ms of the fastest): 10 runs and 200 ms, or what fits into `share_s`, but at least 2."""
    begin, best, count = time.perf_counter_ns(), math.inf, 0
    while True:
        before = time.perf_counter_ns()
        run()
        now = time.perf_counter_ns()
        count, best = count + 1, min(best, (now - before) / 1e6)
        spent_ms = (now - begin) / 1e6
        enough = count >= WARM_UP_RUNS and spent_ms >= WARM_UP_MS
        if enough or (count >= 2 and spent_ms >= share_s * 1e3):  # the first run is no guide to the rest
            return count, max(best, 1e-6)


def _rounds(
    runs: Sequence[Callable[[], None]],
    per_sample: Sequence[int],
    orders: NDArray[np.intp],
    deadline: float,
    progress: Callable[[int, int], None] | None,
    *,
    alone: bool = False,
) -> tuple[NDArray[np.float64], int]:
    """(ms per run: (rounds that ran, models), samples interrupted in every attempt); `alone` as for `_sample`.

    Stops early where one more round would miss the deadline.
    """
    times, interrupted = np.empty(orders.shape), 0
    begin = time.perf_counter()
    for done, order in enumerate(orders):
        now = time.perf_counter()
        if done >= MIN_ROUNDS and now + (now - begin) / done > deadline:
            return times[:done], interrupted
        for i in order:
            times[done, i], clean = _sample(runs[i], per_sample[i], alone=alone)
            interrupted += not clean
        if progress is not None:
            progress(done + 1, len(orders))
    return times, interrupted


def _sample(run: Callable[[], None], runs: int, *, alone: bool = False) -> tuple[float, bool]:
    """(ms per run, whether we kept our core): the first clean attempt, or the fastest of them all.

    A sample that contains another process's turn on our core measures the scheduler, not the model. On a
    full machine that is every third sample of a millisecond and every one of ten, and the median is no longer
    out of its reach. Where the work is `alone` in this thread, the fastest is by the time that the thread had its
    core, and of a long one the first; with other threads or a device that time says nothing.
    """
    best, block = math.inf, range(runs)
    for _ in range(ATTEMPTS):
        turns = _lost_turns()
        had, before = time.thread_time_ns(), time.perf_counter_ns()
        for _ in block:
            run()
        ms = (time.perf_counter_ns() - before) / runs / 1e6
        on_core = (time.thread_time_ns() - had) / runs / 1e6
        if _lost_turns() == turns:
            return ms, True
        best = min(best, on_core if alone and on_core > 0 else ms)
        if alone and best > LONG_MS:
            break
    return best, False


def _lost_turns() -> int:
    """How often the scheduler took a core from this process; always 0 where the system does not tell."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _timing(
    name: str,
    model: Model,
    samples: NDArray[np.float64],
    batch: int,
    per_sample: int,
    warm_up_runs: int,
    copies: tuple[float, float] | None,
) -> Timing:
    p50, p90, p99 = (float(q) for q in np.quantile(samples, [0.5, 0.9, 0.99]))
    copy_in, copy_out = copies or (None, None)
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
        runs_per_sample=per_sample,
        samples=tuple(samples.tolist()),
        warm_up_runs=warm_up_runs,
        copy_in_ms=copy_in,
        copy_out_ms=copy_out,
    )


def _compare(
    baseline: str,
    candidate: str,
    baseline_ms: NDArray[np.float64],
    candidate_ms: NDArray[np.float64],
    same_against_same: Interval,
    seed: int,
) -> Comparison:
    ratio, noise = paired_ratio(baseline_ms, candidate_ms, seed=seed), noise_floor(same_against_same)
    return Comparison(baseline, candidate, ratio.median, ratio.low, ratio.high, noise, verdict(ratio, noise))


def _names(models: Sequence[Model], names: Sequence[str] | None) -> list[str]:
    """Given names, or file stems; a name that came before gets a number."""
    if names is not None:
        if len(names) != len(models):
            raise UsageError(f"{len(models)} models but {len(names)} names - give one name a model")
        if len(set(names)) != len(names):
            raise UsageError(f"names must differ: {', '.join(names)}")
        return list(names)
    labels: list[str] = []
    for i, model in enumerate(models, 1):
        stem = Path(model).stem if isinstance(model, str | Path) else f"model {i}"
        label, n = stem, 2
        while label in labels:
            label, n = f"{stem} ({n})", n + 1
        labels.append(label)
    return labels


def _check_inputs(session: Session, feeds: Mapping[str, NDArray[Any]], name: str, source: str) -> None:
    """The one feed, from `source`, must fit the model: the same names and dtypes, and every fixed axis."""
    specs = {spec.name: spec for spec in session.inputs}
    if specs.keys() != feeds.keys():
        raise UsageError(
            one_line(
                f"{name}: its inputs are {_listed(specs)}, but {source}: {_listed(feeds)} - "
                "models can only be compared on the same inputs"
            )
        )
    for key, spec in specs.items():
        array, dtype = feeds[key], np.dtype(spec.dtype)
        if dtype != array.dtype:
            raise UsageError(
                one_line(f"{name}: input {key} is {dtype}, but {source}: {array.dtype} - cast one of them")
            )
        fits = len(spec.shape) == array.ndim and all(
            not isinstance(size, int) or size == given for size, given in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            raise UsageError(
                one_line(
                    f"{name}: input {key} is {_shape(spec.shape)}, but {source}: {_shape(array.shape)} - "
                    "pass a batch, shapes or feeds that fit every model"
                )
            )


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"


def _shape(shape: Sequence[Any]) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"


def _check_batch(feeds: Mapping[str, NDArray[Any]], batch: int, name: str) -> None:
    """A batch that was asked for must be the one that is run."""
    runs = batch_of(feeds, batch)
    if batch not in (1, runs):
        key, array = next((key, array) for key, array in feeds.items() if array.ndim)
        raise UsageError(
            one_line(
                f"{name}: batch {batch} was asked for, but input {key} is {_shape(array.shape)}: its first axis is "
                "fixed, by the model or by the shape given; drop the batch, or export with a dynamic batch axis"
            )
        )


def batch_of(feeds: Mapping[str, NDArray[Any]], batch: int) -> int:
    """What one run really computes: the first axis of the first input that has one."""
    return next((array.shape[0] for array in feeds.values() if array.ndim), batch)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of the samples."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _load_average() -> tuple[float, ...] | None:
    try:
        return os.getloadavg()
    except (AttributeError, OSError):  # Windows has none
        return None


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Sequence | set | frozenset | np.ndarray):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float) else str(value)
