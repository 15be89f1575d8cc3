"""What a benchmark found: times, comparisons, and all that must be known to judge them, ready for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from onnxprune.runtime.accelerated import Placed
from onnxprune.timing.statistics import Interval, Verdict


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
    said: dict[str, dict[str, str]]  # model name -> what its file says of how it was planned
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
    part: str = ""  # what was timed, in words, where some nodes of a model do not run

    def to_json(self) -> dict[str, Any]:
        """Everything, samples included, as plain JSON types."""
        return {"schema": 1, "kind": "onnxprune bench", **_plain(self)}


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
