"""Sessions and a clock that are made up: what is timed is known to the digit. And what people are shown, as text."""

import io
from types import SimpleNamespace

import numpy as np
from rich.console import Console

from onnxprune.report.bench import render, render_all
from onnxprune.runtime import sessions
from onnxprune.runtime.providers import provider_name
from onnxprune.timing import bound_run, latency, rounds


class FakeRaw:
    """What BoundRun uses of an InferenceSession; a run takes `ms` on the fake clock."""

    def __init__(self, log, clock, ms):
        self.log, self.clock, self.ms = log, clock, ms

    def io_binding(self):
        log = self.log
        return SimpleNamespace(
            get_outputs=lambda: [SimpleNamespace(device="where it was put")],
            bind_ortvalue_output=lambda name, value: log.append(("kept", name, value.device)),
            bind_ortvalue_input=lambda name, value: log.append(("in", name, value.device)),
            bind_output=lambda name, device: log.append(("out", name, device)),
            synchronize_inputs=lambda: log.append("synchronize"),
            copy_outputs_to_cpu=lambda: log.append("fetch"),
        )

    def run_with_iobinding(self, binding, options=None):
        if options is not None:
            self.log.append(options)
        self.clock.now += int(self.ms * 1e6)
        self.log.append("run")


def fake_sessions(monkeypatch):
    """open(ms): a session whose runs take `ms`, on a clock that only runs advance."""
    clock, log, opened = SimpleNamespace(now=0, taken=0), [], []  # `taken`: while others had our core

    def open_session(model, **options):
        opened.append(options)
        return SimpleNamespace(
            name=options.get("name"),
            inputs=(SimpleNamespace(name="x", dtype=np.dtype(np.float32), shape=("n", 4)),),
            outputs=("y",),
            raw=FakeRaw(log, clock, float(model)),
            providers=(provider_name(options["providers"][0]), "CPUExecutionProvider"),
            assignment=None,
            nodes=None,
            provider_options={"CUDAExecutionProvider": (options.get("provider_options") or {}).get("cuda", {})},
        )

    class FakeValue:
        def __init__(self, device):
            self.device = device

        def update_inplace(self, array):
            log.append("update")

    time = SimpleNamespace(
        perf_counter_ns=lambda: clock.now,
        perf_counter=lambda: clock.now / 1e9,
        thread_time_ns=lambda: clock.now - clock.taken,
    )
    monkeypatch.setattr(sessions, "open_session", open_session)
    monkeypatch.setattr(latency, "rehearse", lambda *_: None)  # there is no model
    monkeypatch.setattr(rounds, "lost_turns", lambda: 0)
    monkeypatch.setattr(bound_run, "unrecorded", lambda: "unrecorded")
    monkeypatch.setattr(bound_run, "to_device", lambda array, device: FakeValue(device))
    for module in (latency, rounds, bound_run):
        monkeypatch.setattr(module, "time", time)
    return SimpleNamespace(clock=clock, log=log, opened=opened, feeds={"x": np.zeros((1, 4), np.float32)})


def shown(result) -> str:
    console = Console(width=140, file=io.StringIO(), color_system=None)
    console.print(render_all(result) if isinstance(result, tuple) else render(result))
    return console.file.getvalue()
