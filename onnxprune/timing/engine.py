"""What a network's time is taken on: providers of ONNX Runtime, their options, a number of threads."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import helper

from onnxprune.runtime import sessions
from onnxprune.runtime.ports import Feeds
from onnxprune.runtime.providers import CPU, RECORDED, provider_name, provider_of
from onnxprune.timing.accelerators import accelerators
from onnxprune.timing.bound_run import BoundRun
from onnxprune.timing.profile_device import in_turns

CHAIN = 64
"""Length of the chains that tell what a node takes that does nothing, and what a profiler does."""
LEAST = 0.01
"""Share of an idle run's time that a part of a model takes at least."""


@dataclass(frozen=True)
class Engine:
    """Where a network runs while it is timed.

    Attributes:
        providers: short names, the wanted one first.
        options: by provider, what ORT's documentation of that provider lists.
        threads: ORT threads.
    """

    providers: tuple[str, ...] = ("cpu",)
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict, hash=False)
    threads: int = 1
    elsewhere: ClassVar[bool] = False
    """Whether the times are of another machine: nothing of them is kept with those of this one."""

    @property
    def on_cpu(self) -> bool:
        """Whether ORT's own profile tells how long a node takes. Elsewhere it tells when a node was launched, or knows
        whole subgraphs only."""
        return provider_name(self.providers[0]) == CPU

    @property
    def on_gpu(self) -> bool:
        """Whether tensors live on a device of their own."""
        return provider_of(self.providers[0]).device != "cpu"

    @property
    def replays(self) -> bool:
        """Whether a run is recorded once and replayed: no node is launched then."""
        own = self.options.get(self.providers[0], self.options.get(provider_name(self.providers[0]), {}))
        return any(str(own.get(name, "0")).lower() not in ("0", "false") for name in RECORDED)

    @property
    def identity(self) -> list[Any]:
        """What makes times of two engines on one machine differ, as JSON has it."""
        known: list[Any] = [self.threads]
        if not self.on_cpu:
            options = {p: {k: str(v) for k, v in o.items()} for p, o in self.options.items()}
            seen = os.environ.get("CUDA_VISIBLE_DEVICES")
            known += [list(self.providers), options, list(accelerators(self.providers)), seen]
        return known

    def open(self, model: onnx.ModelProto, *, profile: Path | None = None, name: str = "timed") -> sessions.Session:
        """A session of it, as one that is benchmarked. Where it is profiled no run is recorded and replayed: a replay
        launches no node."""
        options = self.options
        if profile is not None:
            options = {p: {k: v for k, v in o.items() if k not in RECORDED} for p, o in options.items()}
        return sessions.open_session(
            model,
            providers=self.providers,
            provider_options=options,
            pack=True,
            threads=self.threads,
            spinning=self.threads == 1,
            name=name,
            profile=profile,
        )

    def check(self) -> None:
        """ProviderError where the provider is not there; at once, not after minutes of other work."""
        if not self.on_cpu:
            self.open(idle_chain(1), name="a first trial")

    def each_ms(
        self, model: onnx.ModelProto, feeds: Feeds, copies: int, budget_ms: float, least_most: tuple[int, int]
    ) -> float:
        """What one of several equal parts of a model takes, by the clock; not less than the clock can tell.

        Args:
            model: what is run.
            feeds: its inputs.
            copies: how many equal parts it has.
            budget_ms: after which there are no more runs.
            least_most: numbers of runs, the first `WARM` not counted.
        """
        idle = idle_ms(self)
        return max((self.run_ms(model, feeds, budget_ms, least_most) - idle) / copies, LEAST * idle)

    def run_ms(self, model: onnx.ModelProto, feeds: Feeds, budget_ms: float, least_most: tuple[int, int]) -> float:
        """What a run takes by the clock, inputs and outputs where the provider wants them.

        Args:
            model: what is run.
            feeds: its inputs.
            budget_ms: after which there are no more runs.
            least_most: numbers of runs, the first `WARM` not counted.

        Raises:
            ModelError: it does not run.
            ProviderError: the provider does not take it.
        """
        told = self.told("walls", [model], feeds, budget_ms, least_most)
        if told is not None:
            return float(told[0])
        run = BoundRun(self.open(model), feeds)
        run.warm_up(0.0)
        return in_turns([run], budget_ms, least_most)[0]

    def told(
        self, kind: str, models: Sequence[onnx.ModelProto], feeds: Feeds, budget_ms: float, least_most: tuple[int, int]
    ) -> Any:
        """What is known already of what would be measured; None: nothing.

        Args:
            kind: "nodes" (what each takes, and the whole), or "walls" (what a run of each model takes).
            models, feeds, budget_ms, least_most: how it would be.
        """
        return None


ON_CPU = Engine()


@functools.cache
def idle_ms(engine: Engine) -> float:
    """What a run takes that does next to nothing, by the clock."""
    return engine.run_ms(idle_chain(1), IDLE, 60.0, (40, 200))


@functools.cache
def chained_ms(engine: Engine) -> float:
    """What a node takes that does next to nothing, behind others: a chain of them, by the clock."""
    return max((engine.run_ms(idle_chain(CHAIN), IDLE, 60.0, (40, 200)) - idle_ms(engine)) / (CHAIN - 1), 1e-6)


IDLE = {"t0": np.ones(1, np.float32)}
"""The input of `idle_chain`."""


def idle_chain(length: int) -> onnx.ModelProto:
    """Nodes in a row that do next to nothing."""
    nodes = [helper.make_node("Relu", [f"t{k}"], [f"t{k + 1}"]) for k in range(length)]
    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("t0", f"t{length}")]
    body = helper.make_graph(nodes, "chain", ports[:1], ports[1:])
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
