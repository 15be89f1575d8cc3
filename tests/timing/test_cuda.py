"""On a real NVIDIA GPU, where there is one: sessions, the benchmark, node times, a speed-up, and what falls back."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import api
from onnxprune.cli import main
from onnxprune.errors import ProviderError
from onnxprune.graph.shapes import observe
from onnxprune.runtime.ports import default_feed
from onnxprune.runtime.sessions import open_session
from onnxprune.timing.engine import Engine
from onnxprune.timing.grids import Grids
from onnxprune.timing.latency import bench
from onnxprune.timing.node_times import node_times
from onnxprune.timing.pair_times import PairTimes

MODEL = "benchmarks/models/resnet20_fmnist.onnx"
CALIB = "benchmarks/data/calib.npz"
CUDA = "CUDAExecutionProvider"
EXACT = {"cuda": {"use_tf32": 0}}


def _why_not() -> str:
    try:
        Engine(("cuda",)).check()
    except ProviderError as error:
        return str(error)
    return ""


WHY_NOT = _why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no GPU: {WHY_NOT}")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    path = tmp_path_factory.mktemp("cuda") / "pruned.onnx"
    onnxprune.prune(MODEL, 0.5, calibration=CALIB, samples=256).save(path)
    return str(path)


@pytest.mark.parametrize(
    "options",
    [{"use_tf32": 0}, {"use_tf32": 0, "prefer_nhwc": 1}, {"use_tf32": 0, "cudnn_conv_algo_search": "HEURISTIC"}],
)
def test_the_gpu_computes_what_the_cpu_computes(options):
    session, cpu = open_session(MODEL, providers=["cuda"], provider_options={"cuda": options}), open_session(MODEL)
    feeds = default_feed(cpu.inputs, batch=16)
    for there, here in zip(session.run(feeds), cpu.run(feeds), strict=True):
        assert np.abs(there - here).max() < 1e-4 * np.abs(here).max()
    assert session.providers[0] == CUDA and set(session.assignment) == {CUDA}
    for name, value in options.items():
        assert session.provider_options[CUDA][name] == str(value)


@pytest.mark.parametrize("options", [{}, {"prefer_nhwc": 1}, {"enable_cuda_graph": 1}, {"use_tf32": 0}])
@pytest.mark.parametrize("batch", [1, 32])
def test_bench(pruned, options, batch):
    result = bench([MODEL, pruned], batch=batch, providers=("cuda",), provider_options={"cuda": options}, rounds=20)
    assert all(t.copy_in_ms > 0 and t.copy_out_ms > 0 and t.min_ms > 0.01 for t in result.timings)
    assert result.machine["accelerators"] and "NVIDIA" in result.machine["accelerators"][0]
    assert 0.8 < result.noise.median < 1.25
    assert all(used[0] == CUDA for used in result.providers.values())
    json.dumps(result.to_json(), allow_nan=False)


def test_a_recorded_graph_computes_the_same(pruned):
    """Replayed runs write where the first one wrote; new inputs are read where the old ones were."""
    from onnxprune.timing.bound_run import BoundRun

    options = {"cuda": {"use_tf32": 0, "enable_cuda_graph": 1}}
    session, cpu = open_session(pruned, providers=["cuda"], provider_options=options), open_session(pruned)
    feeds = default_feed(cpu.inputs, batch=4)
    run = BoundRun(session, feeds)
    run.warm_up(1.0)
    for seed in (1, 2):
        feeds = default_feed(cpu.inputs, batch=4, seed=seed)
        for name, value in run.inputs.items():
            value.update_inplace(feeds[name])
        run()
        [there], [here] = run.binding.copy_outputs_to_cpu(), cpu.run(feeds)
        assert np.abs(there - here).max() < 1e-4 * np.abs(here).max()


@pytest.mark.parametrize("batch", [1, 128])
def test_node_times(batch, tmp_path):
    subject = api.open_model(MODEL)
    feeds = subject.timed(batch)
    shapes = observe(subject.graph, feeds).shapes
    engine, grids = Engine(("cuda",)), Grids(tmp_path / "grids.json")
    times = node_times(subject.graph, feeds, shapes, engine=engine, grids=grids)
    layers = [k for k, n in subject.graph.nodes.items() if n.op_type == "Conv"]
    assert all(times.nodes.get(k, 0) > 0 for k in layers)
    assert sum(times.nodes.values()) + times.loose_ms == pytest.approx(times.total_ms, rel=1e-6)
    again = Grids(tmp_path / "grids.json")
    again.load()
    assert again.known == grids.known and again.known
    pairs = PairTimes(subject.graph, dict(shapes), engine, grids)
    assert all(t > 0 for t in pairs.relative(layers[3], (("channel", 8),)))


@pytest.mark.parametrize("options", [[], ["--provider-option", "cuda.enable_cuda_graph=1"]])
def test_a_speed_up_on_the_gpu(options, tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "cache"))
    output, told = tmp_path / "out.onnx", tmp_path / "out.html"
    command = [MODEL, "--speedup", "1.3", "--providers", "cuda", "--batch", "256", "--calib", CALIB, *options]
    assert main([*command, "--samples", "256", "-o", str(output), "--report", str(told)]) == 0
    assert "NVIDIA" in told.read_text() and "CUDAExecutionProvider" in told.read_text()
    onnx.checker.check_model(str(output))
    result = bench([MODEL, str(output)], batch=256, providers=("cuda",), rounds=20)
    assert result.comparisons[0].speedup > 1.15


def test_no_gpu_to_be_seen_is_said_and_not_replaced(tmp_path):
    for extra in (["bench", MODEL, MODEL], [MODEL, "--ratio", "0.5", "--bench", "-o", str(tmp_path / "x.onnx")]):
        command = [sys.executable, "-m", "onnxprune", *extra, "--providers", "cuda"]
        hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        run = subprocess.run(command, env=hidden, capture_output=True, text=True)
        assert run.returncode == 8 and run.stderr.count("\n") == 1 and "cuda" in run.stderr, run.stderr
        assert not run.stdout and not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize(
    ("option", "code"), [("cuda.no_such_option=1", 2), ("cuda.use_tf32=maybe", 2), ("tensorrt.trt_fp16_enable=1", 2)]
)
def test_options_that_the_gpu_refuses(option, code, capsys):
    assert main(["bench", MODEL, "--providers", "cuda", "--provider-option", option]) == code
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and not said.out
