"""Why it is not faster: causes are told apart, and options that are faster can be loaded as they were saved."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxprune
from onnxprune import api
from onnxprune.cli import main
from onnxprune.errors import UsageError
from onnxprune.report.explained import MEANING, render
from onnxprune.timing import explain, tuning
from onnxprune.timing.engine import Engine
from onnxprune.timing.explain import CAUSES, Explained, Machine, Spent, _caused, _Seen
from onnxprune.timing.tuning import Tuned, Tuning
from tests.channels import surgery
from tests.timing.test_node_times import TEXT

ON = Machine(macs_per_ms=1e8, bytes_per_ms=1e7, launch_ms=0.002)
CPU = "CPUExecutionProvider"


def spent(ms=1.0, macs=0.0, moved=0.0, op="Conv", share=0.1):
    return Spent("n", op, ms, share, macs, moved, max(macs / 1e8, moved / 1e7) + 0.002)


@pytest.mark.parametrize(
    ("cause", "node", "seen", "says"),
    [
        ("", spent(1.0, macs=1e8), {}, ""),
        ("fell back", spent(1.0, macs=1e8), {"wanted": "CUDAExecutionProvider"}, "does not run it"),
        ("layout copy", spent(0.1, op="ReorderInput"), {}, "another layout"),
        ("not fused", spent(0.1, op="BatchNormalization"), {"behind_layer": True}, "--lossless"),
        ("memory-bound", spent(0.1, moved=1e6, op="Relu"), {}, "moves more"),  # behind no layer
        ("width off the grid", spent(1.0, macs=1e8), {"widths": lambda: [(30, 32, 0.8), (17, 24, 0.9)]}, "32 .* of 30"),
        ("", spent(1.0, macs=1e8), {"widths": lambda: [(30, 32, 0.97)]}, ""),  # hardly faster
        ("launch-bound", spent(0.003, macs=1e4), {}, "drop blocks"),
        ("dominates", spent(1.2, macs=1e8, share=0.6), {}, "cut here"),
        ("slow kernel", spent(3.0, macs=1e8), {}, "3.0 times"),
    ],
)
def test_causes(cause, node, seen, says):
    import re

    usual = {"behind_layer": False, "provider": CPU, "wanted": CPU, "widths": tuple}
    found = _caused(_Seen(node, ON, **{**usual, **seen}))
    assert found.cause == cause and re.search(says, found.help)


def test_every_cause_is_said_in_words():
    assert CAUSES.keys() == MEANING.keys()


def test_a_network_is_explained(monkeypatch):
    monkeypatch.setattr(explain, "nearest_widths", lambda *args: [(48, 64, 0.5)])
    subject = api.open_model(surgery.model_of(TEXT))
    found = explain.explain(subject.graph, subject.feeds, subject.channels.shapes, Engine(), ON, "net")
    named = {n.name: n for n in found.nodes}
    assert {"h", "g", "z", "y"} <= named.keys() and named["h"].macs == 32 * 27 * 24 * 24
    assert named["z"].bytes == 4 * (32 + 48) * 24 * 24 + 4 * 48 * 32
    assert [n.ms for n in found.nodes] == sorted((n.ms for n in found.nodes), reverse=True)
    assert named["h"].cause == "width off the grid"
    text = render(_explanation([found, found.beside(found)]), verbose=True)
    assert "before ms" in text and "take 50% less" in text and "without any pruning" in text
    json.dumps(found.to_json())


def _explanation(models, tuned=()):
    from onnxprune.pipeline.explaining import Explanation

    return Explanation(models, tuned, {})


def test_a_model_beside_another():
    before, after = (Explained("a", 2.0, ON, [spent(ms)]) for ms in (2.0, 1.0))
    assert after.beside(before).nodes[0].before_ms == 2.0 and after.causes() == []


def test_the_best_options_are_those_that_are_faster_for_certain():
    rows = [
        Tuned("a", Tuning({"intra_op_num_threads": 2}), 1.5, 1.2, 1.8, "faster"),
        Tuned("b", Tuning(), 1.6, 1.1, 2.0, "faster"),
        Tuned("c", Tuning(), 3.0, 0.5, 9.0, "no measurable change"),
    ]
    assert tuning.best(rows).name == "a" and tuning.best(rows[2:]) is None
    assert tuning.saved(None, Engine())["options"] == {}
    both = Tuning({"x": 1}, "ORT_ENABLE_BASIC") | Tuning({"x": 2}, entries={"k": "0"})
    assert both == Tuning({"x": 2}, "ORT_ENABLE_BASIC", {"k": "0"})


def test_what_is_faster_alone_is_tried_together(monkeypatch):
    asked = []

    def compared(model, feeds, engine, tried, seed):
        asked.append(list(tried))
        return [Tuned(n, t, 1.2, 1.1, 1.3, "faster" if k < 2 else "slower") for k, (n, t) in enumerate(tried.items())]

    monkeypatch.setattr(tuning, "_compared", compared)
    assert tuning.tune(None, {}, Engine())[-1].name == "together" and asked[1:] == [["together"]]


def loaded(path, model):
    """As docs/devices.md has it."""
    said = json.load(open(path))
    options = onnxruntime.SessionOptions()
    for name, value in said["options"].items():
        setattr(options, name, value)
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, said["level"])
    for name, value in said["entries"].items():
        options.add_session_config_entry(name, value)
    return options, onnxruntime.InferenceSession(
        model, options, providers=said["providers"], provider_options=said["provider_options"]
    )


def test_on_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tuning, "ROUNDS", 10)
    chosen = Tuned("a", Tuning({"intra_op_num_threads": 1}, "ORT_ENABLE_BASIC", {"session.set_denormal_as_zero": "1"}),
                   2.0, 1.9, 2.1, "faster")  # fmt: skip
    monkeypatch.setattr("onnxprune.pipeline.explaining.best", lambda tuned: chosen)
    path, saved = str(tmp_path / "m.onnx"), str(tmp_path / "o.json")
    onnx.save(surgery.model_of(TEXT), path)
    assert main(["bench", path, path, "--explain", "--save-options", saved, "--json", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == 1 and told["kind"] == "onnxprune explanation" and len(told["models"]) == 2
    assert {t["name"] for t in told["options"]} >= {"1 thread", "idle threads sleep"}
    options, session = loaded(saved, path)
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert session.run(None, {"x": np.ones((1, 3, 24, 24), np.float32)})[0].shape == (1, 10)
    assert main(["bench", path, path, path, "--explain"]) == 2
    assert main(["bench", path, "--explain", "--batch", "1,2"]) == 2
    assert main(["bench", path, "--save-options", saved]) == 7  # it is there


def test_from_python(monkeypatch, tmp_path):
    monkeypatch.setattr(tuning, "ROUNDS", 10)
    model = surgery.model_of(TEXT)
    onnx.save(model, tmp_path / "net.onnx")
    found = onnxprune.explain([model, str(tmp_path / "net.onnx")], batch=1)
    assert [m.name for m in found.models] == ["model 1", "net"] and found.models[1].nodes[0].before_ms is not None
    assert found.models[0].nodes[0].name in found.summary() and found.to_json()["kind"] == "onnxprune explanation"
    assert set(found.saved) >= {"level", "options", "entries", "providers"}
    for wrong in ([], [model] * 3, "net.onnx"):
        with pytest.raises(UsageError, match="one or two"):
            onnxprune.explain(wrong)
