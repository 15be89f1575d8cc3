"""A device that was measured elsewhere: one script, whole files, and plans that are predicted and always the same."""

import ast
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import onnxprune
from onnxprune import api
from onnxprune.cli import main
from onnxprune.errors import BudgetError, FileError, UsageError
from onnxprune.pipeline import profiling, timed
from onnxprune.pipeline.settings import Settings
from onnxprune.timing import devices, profile_device
from onnxprune.timing.devices import Asking, recorded
from tests.channels import surgery
from tests.timing.test_node_times import TEXT


class Formula:
    """A device on which every node takes what its model's weights and its own name say; no clock."""

    asked = 0

    def __init__(self, work, threads):
        self.speed = threads

    def answer(self, question):
        Formula.asked += 1
        elements = [2e3 + sum(np.prod(w["dims"]) for w in m["weights"]) for m in question["models"]]
        if question["kind"] == "walls":
            return [float(n) / 1e4 / self.speed for n in elements]
        model = ort_nodes(profile_device.with_weights(devices.base64.b64decode(question["models"][0]["template"]), ()))
        each = float(elements[0]) / 1e4 / self.speed / len(model)
        return [{name: [each, op] for name, op in model}, each * len(model)]


def ort_nodes(raw):
    import onnx

    return [(n.name, n.op_type) for n in onnx.ModelProto.FromString(raw).graph.node]


@pytest.fixture(scope="module")
def model():
    return surgery.model_of(TEXT)


@pytest.fixture(scope="module")
def subject(model):
    samples = np.random.default_rng(0).standard_normal((48, 3, 24, 24)).astype(np.float32)
    return api.open_model(model, calibration=samples)


@pytest.fixture(scope="module")
def work(subject):
    return profiling.questions(subject, Settings(), "net.onnx")


@pytest.fixture
def device(work, tmp_path):
    profile_device.measure(work, tmp_path / "device.json", 2, runner=Formula)
    return str(tmp_path / "device.json")


def test_the_script_needs_onnxruntime_and_numpy_only():
    tree = ast.parse(Path(profile_device.__file__).read_text())
    found = {name.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for name in n.names}
    found |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert found - sys.stdlib_module_names == {"numpy", "onnxruntime"}


def test_a_model_without_its_weights_gets_others_of_the_same_kind(model):
    said = devices._asked_for(model)
    template = devices.base64.b64decode(said["template"])
    assert len(template) < len(model.SerializeToString()) / 2
    whole = profile_device.with_weights(template, said["weights"])
    assert {w["name"] for w in said["weights"]} == {"w0", "d", "w1", "w2"}  # the bias is small
    session = ort.InferenceSession(whole)
    assert session.run(None, {"x": np.ones((1, 3, 24, 24), np.float32)})[0].shape == (1, 10)
    made = profile_device.made({**said["weights"][0], "mean": 1.0, "spread": 2.0, "positive": True})
    assert made.dtype == np.float32 and (made > 0).all()


def test_a_question_is_known_by_sizes_and_not_by_values(model):
    feeds = {"x": np.zeros((1, 3, 24, 24), np.float32)}
    scaled = type(model)()
    scaled.CopyFrom(model)
    scaled.graph.initializer[0].raw_data = bytes(len(scaled.graph.initializer[0].raw_data))
    narrow = type(model)()
    narrow.CopyFrom(model)
    narrow.graph.initializer[0].dims[0] = 64
    key = devices._key("nodes", [model], feeds)
    assert key == devices._key("nodes", [scaled], feeds)
    two = {"x": np.zeros((2, 3, 24, 24), np.float32)}
    for others in (("walls", [model], feeds), ("nodes", [narrow], feeds), ("nodes", [model], two)):
        assert devices._key(*others) != key


def test_killed_it_goes_on(work, tmp_path, monkeypatch):
    class Killed(Formula):
        def answer(self, question):
            if Formula.asked == 5:
                raise KeyboardInterrupt
            return super().answer(question)

    path = tmp_path / "d.json"
    monkeypatch.setattr(Formula, "asked", 0)
    with pytest.raises(KeyboardInterrupt):
        profile_device.measure(work, path, 2, runner=Killed)
    assert len(json.loads(path.read_text())["answers"]) == 5  # whole, and no more than was measured
    with pytest.raises(UsageError, match="not measured there"):
        profiling.trust(api.open_model(surgery.model_of(TEXT)), recorded(str(path)))
    again = profile_device.measure(work, path, 2, runner=Formula)
    assert Formula.asked == len(work["questions"]) == len(again["answers"])
    profile_device.measure(work, path, 2, runner=Killed)  # nothing is left to ask
    with pytest.raises(ValueError, match="another threads"):
        profile_device.measure(work, path, 1, runner=Formula)
    assert [p.name for p in tmp_path.iterdir()] == ["d.json"]


def test_a_layer_that_the_device_refuses_is_left_out(work, tmp_path, subject):
    class Picky(Formula):
        def answer(self, question):
            if len(question["feeds"][0]["dims"]) == 2:  # the Gemm, alone
                raise RuntimeError("no such kernel\nand more")
            return super().answer(question)

    path = tmp_path / "d.json"
    content = profile_device.measure(work, path, 1, runner=Picky)
    assert {"failed": "no such kernel"} in content["answers"].values()
    assert profiling.trust(subject, recorded(str(path))).checks


def test_the_same_profile_gives_the_same_bytes_and_measures_nothing(subject, device, monkeypatch):
    monkeypatch.setattr(timed, "time_models", lambda *args, **rest: pytest.fail("timed here"))
    settings = Settings(device=device, threads=1)
    made = [api.reach(subject, onnxprune.Target("speedup", 1.5), settings) for _ in range(2)]
    assert made[0].model.SerializeToString() == made[1].model.SerializeToString()
    (said,) = [note for note in made[0].notes if "predicted" in note]
    assert "2 threads, batch 1" in said and "narrower copies were at most" in said and "not measured" in said
    assert made[0].latency is None and made[0].search.what == "predicted speed-up"
    by_share = api.plan_and_apply(subject, 0.4, Settings(device=device, of="latency", threads=1))
    assert any("the share of the time that went is predicted" in note for note in by_share.notes)
    ms = recorded(device).told("walls", *_whole(subject))[0]
    assert api.reach(subject, onnxprune.Target("latency_ms", ms / 1.4), settings).after.macs < subject_macs(subject)


def _whole(subject):
    copies = [copy for _, copy in profiling.narrowed(subject)]
    return [subject.model, *copies], subject.timed(1), 0.0, (1, 1)


def subject_macs(subject):
    from onnxprune.measure.cost import count_macs

    return count_macs(subject.graph, subject.channels.shapes)


def test_a_device_is_refused_where_it_says_nothing(subject, device, tmp_path):
    for settings, why in (
        ({}, "--speedup, --latency-ms or --of latency"),
        ({"of": "latency", "methods": ("3c",)}, "3c"),
        ({"of": "latency", "batch": 4}, "batch of 1"),
    ):
        with pytest.raises(UsageError, match=why):
            api.make_plan(subject, 0.5, Settings(device=device, **settings))
    other = api.open_model(surgery.model_of(TEXT.replace("48", "40")))
    with pytest.raises(UsageError, match="run `onnxprune profile` on this very model"):
        api.make_plan(other, 0.5, Settings(device=device, of="latency"))
    with pytest.raises((BudgetError, UsageError)):
        api.reach(subject, onnxprune.Target("speedup", 1e6), Settings(device=device))
    with pytest.raises(FileError):
        recorded(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"threads": 2', '"threads": -2'),
        lambda text: text.replace('"providers": ["CPU', '"providers": ["GPU'),
        lambda text: text.replace("[{", "[{}, {", 1),
    ],
)
def test_a_file_that_is_none_is_refused(device, damage):
    Path(device).write_text(damage(Path(device).read_text()))
    with pytest.raises(UsageError, match="is no profile of a device"):
        recorded(device)


def test_two_devices_keep_apart(device, work, tmp_path):
    profile_device.measure(work, tmp_path / "slow.json", 1, runner=Formula)
    one, two = recorded(str(tmp_path / "slow.json")), recorded(device)
    assert one != two and len({one, two, Asking()}) == 3 and one.elsewhere
    assert devices.recorded(device) is two  # read once


@pytest.mark.slow
def test_a_script_runs_alone_and_is_planned_with(model, tmp_path, capsys):
    """The whole way: another number of threads is the device, killed once."""
    import onnx

    onnx.save(model, tmp_path / "net.onnx")
    script, found = tmp_path / "measure.py", tmp_path / "device.json"
    assert main(["profile", str(tmp_path / "net.onnx"), "-o", str(script), "--threads", "2", "-q"]) == 0
    command = [sys.executable, "-I", str(script), "-o", str(found)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as begun:
        while not found.exists() and begun.poll() is None:
            time.sleep(0.01)
        begun.kill()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(0).standard_normal((48, 3, 24, 24)).astype(np.float32))
    capsys.readouterr()
    assert main([str(tmp_path / "net.onnx"), "--speedup", "1.3", "--device", str(found), "--calib",
                 str(tmp_path / "c.npz"), "-o", str(tmp_path / "o.onnx"), "--best-effort"]) == 0  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())  # lines break where the processor's name lets them
    assert "2 threads" in said


def test_the_command_line(model, tmp_path, capsys, monkeypatch):
    import onnx

    monkeypatch.setattr(profile_device, "Runner", Formula)
    monkeypatch.setattr(profile_device.measure, "__defaults__", (None, Formula))
    net, found, script = (str(tmp_path / name) for name in ("net.onnx", "d.json", "measure.py"))
    onnx.save(model, net)
    assert main(["profile", net, "-o", found, "--threads", "2", "--json", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "onnxprune profile" and len(told["checks"]) == len(profiling.NARROWED)
    assert main(["profile", net, "-o", found, "--threads", "2", "-q"]) == 0  # it is whole already
    assert "narrower copies" in capsys.readouterr().out
    assert main(["profile", net, "-o", found, "--threads", "1", "-q"]) == 2
    assert main(["profile", net, "-o", found, "--threads", "1", "-q", "--force"]) == 0
    assert main(["profile", net, "-o", script, "-q"]) == 0
    assert main(["profile", net, "-o", script, "-q"]) == 7
    assert main(["profile", net, "-o", net, "--force"]) == 7  # the model itself
    assert main([net, "--device", str(tmp_path / "none.json"), "--speedup", "2"]) == 7
    assert "`onnxprune profile MODEL -o FILE` makes one" in capsys.readouterr().err


def test_from_python(model, tmp_path, monkeypatch):
    import onnx

    monkeypatch.setattr(profile_device, "Runner", Formula)
    monkeypatch.setattr(profile_device.measure, "__defaults__", (None, Formula))
    net, found, script, said = tmp_path / "net.onnx", tmp_path / "d.json", tmp_path / "measure.py", []
    onnx.save(model, net)
    told = onnxprune.profile(net, found, threads=2, progress=lambda *at: said.append(at[0]))
    assert "copies" in told.words and len(told.checks) == len(profiling.NARROWED) and set(said) == {"time"}
    assert recorded(str(found)).threads == 2
    with pytest.raises(UsageError, match="--force"):
        onnxprune.profile(model, found, threads=1)
    assert onnxprune.profile(model, found, threads=1, force=True).total_ms > 0
    assert onnxprune.profile(net, script) is None and "WORK" in script.read_text()
    with pytest.raises(FileError):
        onnxprune.profile(net, script)
    before = net.read_bytes()
    with pytest.raises(FileError, match="input"):
        onnxprune.profile(net, net, force=True)
    assert net.read_bytes() == before


def test_what_is_timed_here_beside_a_device_is_timed_here(subject, device):
    """The plan goes by the device; the benchmark that was asked for, layers and all, runs on this machine."""
    settings = Settings(of="latency", device=str(device), repair="none", round_to=1)
    result = onnxprune.api.plan_and_apply(subject, 0.3, settings, bench=True)
    assert result.latency.comparisons[0].speedup > 0 and result.network.timed_on == "cpu"
