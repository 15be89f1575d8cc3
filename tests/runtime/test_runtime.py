"""Sessions on the CPU for real, on accelerators against a stand-in for the onnxruntime module."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxprune.errors import FileError, ModelError, ProviderError, UnsupportedError, UsageError
from onnxprune.protobuf import external, serialize
from onnxprune.runtime import install, ports, sessions
from onnxprune.runtime.ports import InputSpec
from onnxprune.runtime.providers import PROVIDERS, parse_provider_options
from onnxprune.runtime.reasons import reason

TEXT = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) {
    [first] a = Conv <kernel_shape = [1, 1]> (x, w)
    [second] y = Relu (a)
}"""


def net() -> onnx.ModelProto:
    model = parser.parse_model(TEXT)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w"))
    return model


X = {"x": np.ones((2, 3, 8, 8), np.float32)}

# ----------------------------------------------------------------------------------------- on the CPU


@pytest.mark.parametrize("form", ["model", "bytes", "path", "text"])
def test_a_session_from_anything(tmp_path, form):
    path = tmp_path / "m.onnx"
    path.write_bytes(net().SerializeToString())
    forms = {"model": net(), "bytes": path.read_bytes(), "path": path, "text": str(path)}
    session = sessions.open_session(forms[form], threads=1, spinning=False)
    assert session.inputs == (InputSpec("x", np.dtype(np.float32), ("N", 3, 8, 8)),)
    assert (session.outputs, session.providers) == (("y",), ("CPUExecutionProvider",))
    assert session.assignment is None
    np.testing.assert_array_equal(session.run(X)[0], np.full((2, 3, 8, 8), 3, np.float32))
    assert session.run(X, ["y"])[0].shape == (2, 3, 8, 8)


def test_options_reach_onnxruntime():
    raw = sessions.open_session(net(), threads=2, optimise=False, spinning=False).raw
    options = raw.get_session_options()
    assert (options.intra_op_num_threads, options.log_severity_level) == (2, 4)
    assert options.graph_optimization_level.name == "ORT_DISABLE_ALL"
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_model_too_large_for_protobuf(monkeypatch):
    monkeypatch.setattr(serialize, "MAX_PROTOBUF", 10)
    monkeypatch.setattr(external, "EXTERNAL_THRESHOLD", 10)
    session = sessions.open_session(net(), threads=1)
    folder = session._keep.name
    np.testing.assert_array_equal(session.run(X)[0], np.full((2, 3, 8, 8), 3, np.float32))
    assert len(os.listdir(folder)) == 2
    del session
    assert not os.path.exists(folder)


def test_a_large_model_that_does_not_load_leaves_no_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(serialize, "MAX_PROTOBUF", 10)
    monkeypatch.setattr(sessions.tempfile, "tempdir", str(tmp_path))
    model = net()
    model.graph.node[1].op_type = "Frob"
    with pytest.raises(ModelError):
        sessions.open_session(model)
    assert os.listdir(tmp_path) == []


BROKEN = net()
BROKEN.graph.node[1].op_type = "Frob"


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"model": BROKEN, "name": "my.onnx"}, ModelError, "my.onnx: does not load in ONNX Runtime: "),
        ({"model": b"rubbish"}, ModelError, "does not load"),
        ({"model": "nowhere.onnx"}, FileError, "no such file"),
        ({"providers": ["warp"]}, UsageError, "unknown provider 'warp'"),
        ({"providers": []}, UsageError, "no provider"),
        ({"threads": 0}, UsageError, "threads is 0"),
        ({"providers": ["directml"]}, ProviderError, "directml is not in onnxruntime"),
    ],
)
def test_refusals(arguments, error, says):
    with pytest.raises(error) as caught:
        sessions.open_session(**{"model": net(), **arguments})
    assert says in str(caught.value) and str(caught.value).isprintable()


def test_feeds_that_do_not_fit_are_one_line():
    session = sessions.open_session(net(), threads=1, name="my.onnx")
    with pytest.raises(ModelError, match=r"my.onnx: cannot be run with x float32\[1, 5, 8, 8\]") as caught:
        session.run({"x": np.ones((1, 5, 8, 8), np.float32)})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("ir", "opset", "runs"), [(8, 17, True), (8, 9999, False), (9999, 17, False)])
def test_what_the_installed_onnxruntime_runs(ir, opset, runs):
    install.refusal.cache_clear()
    assert (install.refusal(ir, opset) is None) == runs


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("[ONNXRuntimeError] : 3 : NO_SUCHFILE : Load model failed.", "Load model failed"),
        (
            "[ONNXRuntimeError] : 1 : FAIL : /src/onnxruntime/core/x.h:46 void f(const a&, int) It is new",
            "It is new",
        ),
        (
            "warm-up\n\x1b[1;31m2025-01-01 10:00:00.1 [E:onnxruntime:Default, p.cc:1 X] Error: no lib\x1b[m",
            "Error: no lib",
        ),
        ("", "str"),
    ],
)
def test_reasons_are_cleaned(raw, clean):
    assert reason(raw) == clean


# ------------------------------------------------------------------------------- onnxruntime, installed how

PAIRS = [
    ((), 'pip install "onnxprune[gpu]"` (NVIDIA GPU) or `pip install "onnxprune[cpu]"'),
    (
        ("onnxruntime", "onnxruntime-gpu"),
        'pip uninstall -y onnxruntime onnxruntime-gpu` and then `pip install "onnxprune[gpu]"',
    ),
    (("onnxruntime", "onnxruntime-openvino"), 'pip install "onnxprune[cpu]"'),
    (("onnxruntime",), "pip install --force-reinstall onnxruntime"),  # there, but does not import
]


@pytest.mark.parametrize(("installed", "says"), PAIRS)
def test_an_install_that_does_not_work(monkeypatch, installed, says):
    def distribution(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # import raises ImportError
    with pytest.raises(ProviderError) as caught:
        install.require_ort()
    assert caught.value.exit_code == 8 and says in str(caught.value)
    assert install.versions()["onnxruntime"] in ("not installed", " and ".join(installed))
    install.refusal.cache_clear()
    assert install.refusal(9999, 9999) is None
    install.refusal.cache_clear()


# ------------------------------------------------------------------------------------ on a made-up machine


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


@pytest.mark.parametrize("text", ["use_tf32=0", "cuda.use_tf32", "cuda.=1", "cuda.use_tf32=", "abacus.beads=9"])
def test_provider_options_that_are_none(text):
    with pytest.raises(UsageError, match=r"cuda\.use_tf32=0|unknown provider"):
        parse_provider_options([text])


@pytest.mark.parametrize(("provider", "pattern"), [("directml", False), ("coreml", True)])
def test_directml_runs_without_memory_patterns(machine, provider, pattern):
    machine(build=("directml", "coreml", "cpu"))
    assert sessions.open_session(net(), providers=[provider]).raw.mem_pattern == pattern


def test_the_cpu_tells_its_nodes_when_asked():
    assert sessions.open_session(net()).nodes is None
    session = sessions.open_session(net(), record=True)
    if session.nodes is not None:  # ONNX Runtime before 1.24 cannot tell
        assert session.assignment == {CPU: len(session.nodes)} and "Conv" in session.nodes[0].op_type


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


# ------------------------------------------------------------------------------------- inputs and outputs


def port(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def specs_of(*ports_):
    graph = helper.make_graph([], "g", ports_, [])
    return ports.input_specs(helper.make_model(graph))


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        (["N", 3, 224, 224], ("N", 3, 224, 224)),
        ([-1, 3, 48, "?"], (None, 3, 48, None)),
        ([0, None, "", 1], (None, None, None, 1)),
        ([], ()),
        (None, (None, None, None, None)),
    ],
)
def test_shapes_of_inputs(shape, seen):
    assert specs_of(port("x", TensorProto.FLOAT16, shape)) == (InputSpec("x", np.dtype(np.float16), seen),)


def test_weights_listed_as_inputs_are_none():
    model = net()
    model.graph.input.append(port("w", TensorProto.FLOAT, [3, 3, 1, 1]))
    assert [spec.name for spec in ports.input_specs(model)] == ["x"]


def test_an_input_that_is_no_tensor():
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    with pytest.raises(UnsupportedError, match="'s' is a sequence_type"):
        specs_of(sequence)


F, I64, BOOL = np.dtype(np.float32), np.dtype(np.int64), np.dtype(bool)


@pytest.mark.parametrize(
    ("shape", "options", "fed"),
    [
        (("N", 3, 8, 9), {}, (1, 3, 8, 9)),
        (("N", 3, None, None), {"batch": 2, "size": 64}, (2, 3, 64, 64)),
        ((None, None, None, None), {}, (1, 3, 224, 224)),
        ((None, None, None, 3), {"size": 32}, (1, 32, 32, 3)),
        ((None, None, None, 32, 32), {}, (1, 3, 16, 32, 32)),
        ((None, None, 80), {"size": 10}, (1, 10, 80)),
        (("N", "T"), {"size": 7}, (1, 7)),
        (("N",), {"batch": 5}, (5,)),
        ((), {}, ()),
        (("N", 3, "H", "W"), {"shapes": {"x": [4, 3, 5, 6]}}, (4, 3, 5, 6)),
    ],
)
def test_default_feed(shape, options, fed):
    array = ports.default_feed([InputSpec("x", F, shape)], **options)["x"]
    assert (array.shape, array.dtype) == (fed, F)


def test_kinds_of_data_and_shared_lengths():
    specs = [
        InputSpec("f", np.dtype(np.float16), ("N", "T")),
        InputSpec("i", I64, ("T", "N")),
        InputSpec("b", BOOL, (2,)),
    ]
    feed = ports.default_feed(specs, batch=2, size=5)
    assert feed["f"].shape == (2, 5) and feed["f"].dtype == np.float16 and feed["f"].std() > 0.3
    assert feed["i"].shape == (5, 2) and not feed["i"].any() and feed["b"].all()
    again = ports.default_feed(specs, batch=2, size=5)
    np.testing.assert_array_equal(feed["f"], again["f"])
    other = ports.default_feed(specs, shapes={"i": [9, 3]})
    assert other["f"].shape == (3, 9)


@pytest.mark.parametrize("shapes", [{"z": [1]}, {"x": [1, 3]}, {"x": [1, 4, 8, 8]}, {"x": [0, 3, 8, 8]}])
def test_shapes_that_do_not_fit(shapes):
    with pytest.raises(UsageError):
        ports.default_feed([InputSpec("x", F, ("N", 3, 8, 8))], shapes=shapes)


def test_more_outputs():
    model = net()
    before = model.SerializeToString()
    tapped = sessions.with_outputs(model, ["a", "y", "a"])
    assert [port.name for port in tapped.graph.output] == ["y", "a"]
    assert model.SerializeToString() == before
    y, a = sessions.open_session(tapped, threads=1).run(X)
    np.testing.assert_array_equal(np.maximum(a, 0), y)
    with pytest.raises(UsageError, match="'nothing'"):
        sessions.with_outputs(model, ["nothing"])


def test_versions_are_text():
    found = install.versions()
    assert set(found) == {"onnx", "onnxruntime", "numpy", "python", "platform", "cpu"}
    assert all(isinstance(text, str) and text and text.isprintable() for text in found.values())
