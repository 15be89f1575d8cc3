"""Sessions on accelerators, against a stand-in for the onnxruntime module."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest

from onnxprune.errors import ModelError, ProviderError, UsageError
from onnxprune.runtime import install, sessions
from onnxprune.runtime.ports import InputSpec
from onnxprune.runtime.providers import PROVIDERS, parse_provider_options
from tests.runtime.models import net


class FakeSession:
    def __init__(self, machine, options, providers):
        self.machine = machine
        self.recorded = "session.record_ep_graph_assignment_info" in options.entries
        given = [p if isinstance(p, tuple) else (p, {}) for p in providers]
        self.options = {p: {"use_tf32": "1", **o} for p, o in given if p not in machine.dead}
        self.providers = list(self.options)
        self.mem_pattern = options.enable_mem_pattern

    def get_providers(self):
        return self.providers

    def get_provider_options(self):
        return self.options

    def get_inputs(self):
        return [SimpleNamespace(name="x", type="tensor(float)", shape=["N", 3, None])]

    def get_outputs(self):
        return [SimpleNamespace(name="y")]

    def get_provider_graph_assignment_info(self):
        if self.machine.nodes is None or not self.recorded:
            raise RuntimeError("not recorded")
        return [
            SimpleNamespace(
                ep_name=name, get_nodes=lambda count=count: [SimpleNamespace(name="n", op_type="Conv")] * count
            )
            for name, count in self.machine.nodes
        ]


class FakeOptions:
    enable_mem_pattern = True

    def __init__(self):
        self.entries = {}

    def add_session_config_entry(self, key, value):
        self.entries[key] = value


class Machine(SimpleNamespace):
    """Stands for the module onnxruntime of a GPU build.

    `dead`: providers that silently do not start. `raises`: by provider, what making a session raises.
    `nodes`: (provider, count) pairs that ORT recorded, None for a build that cannot.
    """

    __version__ = "1.30.0"
    SessionOptions = FakeOptions
    GraphOptimizationLevel = SimpleNamespace(ORT_ENABLE_ALL=1, ORT_DISABLE_ALL=0)

    def __init__(self, dead=(), raises=None, nodes=None, build=("cuda", "tensorrt", "cpu")):
        super().__init__(dead=dead, raises=raises or {}, nodes=nodes, build=build, preloaded=0, fallback=[])

    def get_available_providers(self):
        return [PROVIDERS[alias].name for alias in self.build]

    def preload_dlls(self):
        self.preloaded += 1
        print("Failed to load libcublas.so.13")  # as ORT does: on standard output
        raise RuntimeError("a missing library is no reason to stop")

    def InferenceSession(self, model, options, providers, enable_fallback=1):
        self.fallback.append(enable_fallback)
        if self.dead:
            os.write(2, b"\x1b[31m2025-01-01 10:00 [E:onnxruntime:Default, x.cc:1 F] Error: no libcudnn.so.9\n")
        first = providers[0][0] if isinstance(providers[0], tuple) else providers[0]
        if first in self.raises:
            raise self.raises[first]
        return FakeSession(self, options, providers)


CUDA, CPU = PROVIDERS["cuda"].name, PROVIDERS["cpu"].name


@pytest.fixture
def machine(monkeypatch):
    def use(**traits):
        made = Machine(**traits)
        monkeypatch.setattr(install, "require_ort", lambda: made)
        return made

    return use


def test_cuda_that_works_says_who_took_what(machine):
    made = machine(nodes=[(CUDA, 40), (CPU, 2), (CUDA, 5)])
    session = sessions.open_session(net(), providers=["cuda"])
    assert session.providers == (CUDA, CPU)
    assert session.assignment == {CUDA: 45, CPU: 2}
    assert session.inputs == (InputSpec("x", np.dtype(np.float32), ("N", 3, None)),)
    assert (made.preloaded, made.fallback) == (1, [0])


def test_provider_options_reach_the_provider(machine):
    """Not run on a GPU."""
    machine(nodes=[(CUDA, 1)])
    given = parse_provider_options(["cuda.use_tf32=0", "cuda.cudnn_conv_algo_search=HEURISTIC"])
    session = sessions.open_session(net(), providers=["cuda"], provider_options=given)
    assert session.provider_options[CUDA] == {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    flags = sessions.open_session(net(), providers=["cuda"], provider_options={"cuda": {"prefer_nhwc": True}})
    assert flags.provider_options == {CUDA: {"use_tf32": "1", "prefer_nhwc": "1"}, CPU: {"use_tf32": "1"}}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"cuda": {"use_tf33": 0}}, "cuda refuses an option: Unknown provider option"),
        ({"tensorrt": {"trt_fp16_enable": 1}}, "tensorrt, which is not among the providers"),
        ({"cpu": {"use_arena": 0}}, "no provider options"),
        ({"abacus": {"beads": 9}}, "abacus"),
    ],
)
def test_provider_options_that_do_not_fit(machine, given, says):
    machine(raises={CUDA: RuntimeError('Unknown provider option: "use_tf33".')})
    with pytest.raises(UsageError, match=says):
        sessions.open_session(net(), providers=["cuda", "cpu"], provider_options=given)


@pytest.mark.parametrize(("provider", "pattern"), [("directml", False), ("coreml", True)])
def test_directml_runs_without_memory_patterns(machine, provider, pattern):
    machine(build=("directml", "coreml", "cpu"))
    assert sessions.open_session(net(), providers=[provider]).raw.mem_pattern == pattern


def test_a_build_that_records_no_assignment(machine):
    machine()
    assert sessions.open_session(net(), providers=["cuda", "cpu"]).assignment is None


@pytest.mark.parametrize(
    ("traits", "provider", "error", "says"),
    [
        (
            {"dead": [CUDA]},
            "cuda",
            ProviderError,
            "asked for cuda, but ONNX Runtime fell back to cpu (Error: no libcudnn.so.9)",
        ),
        ({"dead": [CUDA]}, "cuda", ProviderError, "nvidia-smi"),
        (
            {"raises": {CUDA: RuntimeError("CUDA failure 100:\nno device")}},
            "cuda",
            ProviderError,
            "does not start: CUDA failure 100",
        ),
        (
            {"raises": {CUDA: RuntimeError("bad"), CPU: RuntimeError("bad")}},
            "cuda",
            ModelError,
            "does not load",
        ),
        ({"nodes": [(CPU, 7)]}, "cuda", ProviderError, "took no node (nodes by provider: cpu 7)"),
        (
            {"build": ["cpu"]},
            "cuda",
            ProviderError,
            "cuda is not in onnxruntime 1.30.0 (which has cpu); run `pip uninstall",
        ),
        ({"build": ["cpu"]}, "coreml", ProviderError, "macOS"),
        ({"dead": [PROVIDERS["tensorrt"].name]}, "tensorrt", ProviderError, "asked for tensorrt"),
    ],
)
def test_no_silent_fallback(machine, capfd, traits, provider, error, says):
    machine(**traits)
    with pytest.raises(error) as caught:
        sessions.open_session(net(), providers=[provider], name="my.onnx")
    assert says in str(caught.value) and str(caught.value).isprintable()
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")  # what the runtime says natively is in the message, not beside it


def test_tensorrt_falling_to_cuda_is_a_fall(machine):
    machine(dead=[PROVIDERS["tensorrt"].name])
    with pytest.raises(ProviderError, match="fell back to cuda"):
        sessions.open_session(net(), providers=["tensorrt", "cuda"])
