"""What wins without any pruning: options of an ONNX Runtime session that are faster here, measured side by side.

Each set of options is a session of its own; all are timed in the same rounds as what ONNX Runtime does by itself, which
is opened twice: a gain counts where its interval is out of the noise (`timing.statistics`). What is faster alone is
then tried together.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import onnx

from onnxprune.runtime import sessions
from onnxprune.runtime.install import require_ort
from onnxprune.runtime.ports import Feeds
from onnxprune.runtime.providers import provider_name
from onnxprune.timing.bound_run import BoundRun
from onnxprune.timing.engine import Engine
from onnxprune.timing.rounds import SAMPLE_MS, no_collection, timed_rounds
from onnxprune.timing.statistics import noise_floor, paired_ratio, round_orders, verdict

ROUNDS, BUDGET_S = 30, 20.0
"""Rounds of one comparison, and the most time for it."""


@dataclass(frozen=True)
class Tuning:
    """Options of a session.

    Attributes:
        options: attributes of `onnxruntime.SessionOptions`.
        level: the name of a `GraphOptimizationLevel`.
        entries: its configuration entries.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    level: str = "ORT_ENABLE_ALL"
    entries: Mapping[str, str] = field(default_factory=dict)

    def set(self, made: Any) -> None:
        """Set them on a `SessionOptions`."""
        for name, value in self.options.items():
            setattr(made, name, value)
        made.graph_optimization_level = getattr(require_ort().GraphOptimizationLevel, self.level)
        for name, text in self.entries.items():
            made.add_session_config_entry(name, text)

    def __or__(self, other: Tuning) -> Tuning:
        level = other.level if other.level != "ORT_ENABLE_ALL" else self.level
        return Tuning({**self.options, **other.options}, level, {**self.entries, **other.entries})


def tunings(cores: int) -> dict[str, Tuning]:
    """The table: what is tried, by what it is called."""
    counts = sorted({1, max(1, cores // 2), cores})
    spin = "session.intra_op.allow_spinning"
    return {
        **{f"{n} thread{'s' * (n > 1)}": Tuning({"intra_op_num_threads": n}) for n in counts},
        "idle threads sleep": Tuning(entries={spin: "0"}),
        "no layout of its own (level extended)": Tuning(level="ORT_ENABLE_EXTENDED"),
        "no memory pattern": Tuning({"enable_mem_pattern": False}),
        "denormals are zero": Tuning(entries={"session.set_denormal_as_zero": "1"}),
    }


@dataclass(frozen=True)
class Tuned:
    """One set of options, timed beside what ONNX Runtime does by itself.

    Attributes:
        name: what it is called.
        tuning: the options.
        gain: the time without over the time with them; its 95% interval is `low` to `high`.
        verdict: whether that is out of the noise.
    """

    name: str
    tuning: Tuning
    gain: float
    low: float
    high: float
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def tune(model: onnx.ModelProto, feeds: Feeds, engine: Engine, seed: int = 0) -> list[Tuned]:
    """All sets of options, and behind them what is faster alone, together, where that is several.

    Args:
        model: what is run.
        feeds: its inputs.
        engine: its providers, and their options.
        seed: of the order within a round.
    """
    found = _compared(model, feeds, engine, tunings(os.cpu_count() or 1), seed)
    faster = sorted((t for t in found if t.verdict == "faster"), key=lambda t: -t.gain)
    if len(faster) < 2:
        return found
    both = Tuning()
    for one in reversed(faster):  # of two that set the same, the better one
        both = both | one.tuning
    return [*found, *_compared(model, feeds, engine, {"together": both}, seed)]


def best(tuned: Sequence[Tuned]) -> Tuned | None:
    """The fastest of those that are faster, for certain."""
    return max((t for t in tuned if t.verdict == "faster"), key=lambda t: t.low, default=None)


def saved(chosen: Tuned | None, engine: Engine) -> dict[str, Any]:
    """What deployment loads: options, level, entries and providers."""
    tuning, measured = (Tuning(), None) if chosen is None else (chosen.tuning, chosen.to_json())
    found = {"schema": 1, "kind": "onnxprune session options", **asdict(tuning)}
    names = [provider_name(p) for p in engine.providers]
    options = {provider_name(p): {k: str(v) for k, v in o.items()} for p, o in engine.options.items()}
    return {**found, "providers": names, "provider_options": [options.get(n, {}) for n in names], "measured": measured}


def _compared(
    model: onnx.ModelProto, feeds: Feeds, engine: Engine, tried: Mapping[str, Tuning], seed: int
) -> list[Tuned]:
    opened = [
        BoundRun(
            sessions.open_session(
                model,
                providers=engine.providers,
                provider_options=engine.options,
                pack=True,
                spinning=True,
                name="tuned",
                adjust=(_BY_ITSELF | tuning).set,
            ),
            feeds,
        )
        for tuning in (_BY_ITSELF, *tried.values(), _BY_ITSELF)
    ]
    with no_collection():
        warm = [run.warm_up(0.5) for run in opened]
        per_sample = [max(1, math.ceil(SAMPLE_MS / ms)) for _, ms in warm]
        per_sample[-1] = per_sample[0]  # or the noise would be that of two block lengths
        orders = round_orders(len(opened), ROUNDS, seed)
        times, _ = timed_rounds(opened, per_sample, orders, time.perf_counter() + BUDGET_S, None)
    noise = noise_floor(paired_ratio(times[:, 0], times[:, -1], seed=seed))
    found = []
    for k, (name, tuning) in enumerate(tried.items(), 1):
        ratio = paired_ratio(times[:, 0], times[:, k], seed=seed)
        found.append(Tuned(name, tuning, ratio.median, ratio.low, ratio.high, verdict(ratio, noise)))
    return found


_BY_ITSELF = Tuning({"intra_op_num_threads": 0})
"""What ONNX Runtime does where nothing is set: as many threads as cores, that spin."""
