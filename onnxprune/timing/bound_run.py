"""One run of a session and nothing else: its input and output bound once, where the provider wants them.

On a device, inputs and outputs live there and the copies in and out are timed apart; CUDA has been run on a GPU, the
other devices have only been tested with fakes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.runtime.install import require_ort
from onnxprune.runtime.providers import RECORDED, device_of
from onnxprune.runtime.sessions import Session

WARM_UP_RUNS, WARM_UP_MS = 10, 200.0


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
        self.binding, self._run = binding, raw.run_with_iobinding
        self._bind_outputs()
        options = session.provider_options.get(session.providers[0], {})
        if any(options.get(key) in ("1", "True", "true") for key in RECORDED):
            self._keep_outputs()

    def __call__(self) -> None:
        self._run(self.binding)

    def _bind_outputs(self) -> None:
        for name in self.session.outputs:
            self.binding.bind_output(name, self.device)

    def _bound_anew(self, binding: Any) -> None:
        """A run that does not write into what the last one has left."""
        binding.clear_binding_outputs()
        self._bind_outputs()
        self.session.raw.run_with_iobinding(binding)

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
        # An output has another rank than the file declares: ORT only warns of that, but does not write there again.
        self._run = self._bound_anew
        return _warm_up(self, share_s)

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
    """The array where a provider keeps its tensors."""
    return require_ort().OrtValue.ortvalue_from_numpy(array, device, 0)


def unrecorded() -> Any:
    """Options of a run that is neither recorded nor replayed (ORT's key and value for that)."""
    options = require_ort().RunOptions()
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
