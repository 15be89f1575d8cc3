"""Where timed runs run: what makes two engines differ, and node times by the clock (here on the CPU as a stand-in)."""

import subprocess
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

import onnxprune
from onnxprune import api
from onnxprune.cli import main
from onnxprune.errors import ProviderError, UsageError
from onnxprune.pipeline import asked, looking, opened, prices
from onnxprune.pipeline.settings import Settings
from onnxprune.timing import accelerators, node_times
from onnxprune.timing.engine import Engine
from onnxprune.timing.grids import ALONE, Grids, _sound
from onnxprune.timing.pair_times import PairTimes
from tests.channels import surgery
from tests.timing.test_node_times import TEXT

MODEL = "benchmarks/models/resnet20_fmnist.onnx"
CALIB = "benchmarks/data/calib.npz"
without_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this build has CUDA"
)


class ByClock(Engine):
    """The CPU, timed as an accelerator is."""

    on_cpu = False


@pytest.fixture
def gpu(monkeypatch):
    """gpu(name): what nvidia-smi says."""

    def use(said, error=None):
        def run(command, **options):
            assert command[0] == "nvidia-smi"
            if error:
                raise error
            return SimpleNamespace(stdout=said)

        monkeypatch.setattr(accelerators.subprocess, "run", run)
        accelerators._nvidia.cache_clear()

    yield use
    accelerators._nvidia.cache_clear()


def test_times_are_kept_apart_by_all_that_makes_them_differ(gpu, monkeypatch):
    gpu("NVIDIA A, 580.1\n")
    fast = Engine(("cuda", "cpu"), {"cuda": {"use_tf32": 1}})
    identities = {
        str(e.identity) for e in (Engine(), Engine(threads=2), Engine(("cuda",)), fast, Engine(("openvino",)))
    }
    gpu("NVIDIA B, 580.1\n")
    identities.add(str(Engine(("cuda",)).identity))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    identities.add(str(Engine(("cuda",)).identity))
    assert len(identities) == 7 and "NVIDIA B, 580.1" in Engine(("cuda",)).identity[3]
    assert [e.on_gpu for e in (Engine(), Engine(("openvino",)), fast)] == [False, False, True]
    assert Engine(("cpu",)).on_cpu and not Engine(("cuda", "cpu")).on_cpu


def test_a_profiled_run_is_not_replayed(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr("onnxprune.runtime.sessions.open_session", lambda model, **options: given.append(options))
    engine = Engine(("cuda",), {"cuda": {"enable_cuda_graph": 1, "use_tf32": 0}})
    engine.open(None), engine.open(None, profile=tmp_path / "p")
    assert [o["provider_options"]["cuda"] for o in given] == [{"enable_cuda_graph": 1, "use_tf32": 0}, {"use_tf32": 0}]


@pytest.mark.parametrize("error", [FileNotFoundError(), subprocess.TimeoutExpired("nvidia-smi", 20)])
def test_where_nobody_tells_there_is_no_name(gpu, error):
    gpu("", error)
    assert accelerators.accelerators(["cuda"]) == ()


def test_only_nvidia_is_asked_for_by_nvidias_tool(gpu):
    gpu("NVIDIA A, 580.1\nNVIDIA B, 580.1\n")
    assert accelerators.accelerators(["tensorrt", "cpu"]) == ("NVIDIA A, 580.1", "NVIDIA B, 580.1")
    assert accelerators.accelerators(["cpu"]) == accelerators.accelerators(["openvino"]) == ()


@without_cuda
def test_an_absent_provider_is_found_out_before_the_work(tmp_path, capsys):
    with pytest.raises(ProviderError, match="cuda"):
        Engine(("cuda",)).check()
    Engine().check()
    output = tmp_path / "out.onnx"
    options = ["--calib", CALIB, "--speedup", "2", "--providers", "cuda", "-o", str(output)]
    assert main([MODEL, *options]) == 8
    assert "provider cuda is not in onnxruntime" in capsys.readouterr().err and not output.exists()
    assert main(["plan", MODEL, "--of", "latency", "--calib", CALIB, "--providers", "cuda"]) == 8
    plan = tmp_path / "plan.json"
    assert main(["plan", MODEL, "-o", str(plan)]) == 0
    assert main(["apply", MODEL, str(plan), "--providers", "cuda", "-o", str(output)]) == 8 and not output.exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch": 0}, "at least 1"),
        ({"providers": ()}, "no provider given"),
        ({"providers": ("warp",)}, "unknown provider"),
        ({"provider_options": {"cuda": {"use_tf32": 0}}}, "not among the providers"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        Settings(**settings)


FIXED = TEXT.replace("[1,3,24,24]", "[8,3,24,24]")
SPELLED = """(float[N,4] x) => (float[N,3] y) <float[4,6] w, float[6,3] v, int64[2] s = {1, 6}>
    { h = MatMul(x, w) r = Relu(h) g = Reshape(r, s) y = MatMul(g, v) }"""


@pytest.mark.parametrize(
    ("text", "batch", "words"),
    [
        (TEXT, 8, "fixes its batch at 1"),
        (FIXED, 4, "fixes its batch at 8"),
        (SPELLED, 4, "does not run with a batch of 4"),
    ],
)
def test_a_batch_that_the_model_does_not_take_is_refused_at_once(text, batch, words, monkeypatch):
    monkeypatch.setattr("onnxprune.pipeline.looking.look", lambda *args, **more: pytest.fail("work before the check"))
    with pytest.raises(UsageError, match=words):
        onnxprune.prune(surgery.model_of(text), 0.25, batch=batch)


def test_batches_that_it_takes(capsys, tmp_path):
    subject = api.open_model(surgery.model_of(FIXED))
    assert subject.timed(8)["x"].shape == subject.timed(1)["x"].shape == (8, 3, 24, 24)
    output, plan = tmp_path / "o.onnx", tmp_path / "p.json"
    command = [MODEL, "--ratio", "0.7", "--batch", "4", "-q", "-o", str(output)]
    assert main([*command, "--plan-out", str(plan)]) == 0  # --batch means: time it
    assert "CPU, batch 4)" in capsys.readouterr().out
    assert main(["apply", MODEL, str(plan), "-q", "-o", str(output), "--force", "--bench"]) == 0
    assert "CPU, batch 4)" in capsys.readouterr().out  # as the plan says


@pytest.fixture(scope="module")
def subject():
    """Large enough for a layer's work to be most of a run by the clock, which includes its launch."""
    return api.open_model(surgery.model_of(TEXT.replace("[1,3,24,24]", "[1,3,96,96]")))


def test_by_the_clock_every_layer_is_timed_alone(subject):
    grids = Grids(None)
    times = node_times.node_times(subject.graph, subject.feeds, subject.channels.shapes, engine=ByClock(), grids=grids)
    assert {"h", "g", "z", "y"} <= set(times.nodes) and "r" not in times.nodes
    assert sum(times.nodes.values()) + times.loose_ms == pytest.approx(times.total_ms, rel=1e-6)
    assert set(times.stairs["h"]) == {0, 1} and set(times.stairs["g"]) == {0}
    assert times.stairs["z"][0].time[0] < 0.9  # 48 outputs over 96x96 positions
    for known in grids.known.values():
        assert known[ALONE][1][0] > 0 and _sound(known)
        assert all(len(x) <= node_times.POINTS_BY_CLOCK + 2 for x, _ in known.values())


def test_layers_that_the_profile_does_not_name_are_known_by_the_clock(subject, monkeypatch):
    """As where a provider runs the whole network as one node."""
    monkeypatch.setattr(node_times, "profiled", lambda *args: ({"fused_0": (0.01, "Fused_0")}, 2.0))
    times = node_times.node_times(
        subject.graph, subject.feeds, subject.channels.shapes, engine=ByClock(), grids=Grids(None)
    )
    assert {"h", "g", "z", "y"} == set(times.nodes) and sum(times.nodes.values()) + times.loose_ms == pytest.approx(2)


def test_a_layer_that_the_provider_does_not_take_has_no_stairs(subject, monkeypatch):
    real = ByClock.open

    def picky(self, model, **more):
        if any(n.op_type == "Gemm" for n in model.graph.node) and len(model.graph.node) < 6:
            raise ProviderError("took no node")
        return real(self, model, **more)

    monkeypatch.setattr(ByClock, "open", picky)
    times = node_times.node_times(
        subject.graph, subject.feeds, subject.channels.shapes, engine=ByClock(), grids=Grids(None)
    )
    assert set(times.stairs) == {"h", "g", "z"}


def test_chains_by_the_clock(subject):
    pairs = PairTimes(subject.graph, dict(subject.channels.shapes), ByClock(), Grids(None))
    narrow, wide = (pairs.relative("z", (("channel", rank),)) for rank in (4, 32))
    assert len(narrow) == 2 and narrow[0] == narrow[1] and sum(narrow) < sum(wide)


@pytest.mark.slow
def test_a_speed_up_by_the_clock(monkeypatch):
    """The whole loop with a latency model that was not read off a profile."""
    for module in (asked, looking, opened, prices):
        monkeypatch.setattr(module, "engine_of", lambda settings: ByClock())
    monkeypatch.setenv("ONNXPRUNE_CACHE", "")
    result = onnxprune.prune(
        MODEL, calibration=CALIB, samples=128, target=onnxprune.Target("speedup", 1.4), batch=4, threads=1
    )
    assert result.latency.batch == 4 and result.latency.comparisons[0].speedup >= 1.4
    assert np.isfinite(result.fidelity.cosine)
