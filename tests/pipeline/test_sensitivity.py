"""Sensitivity: each group cut alone, measured once, kept in a file that survives a kill."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.cli import main
from onnxprune.decide.trials import Trials
from onnxprune.errors import FileError, UsageError
from onnxprune.measure.damage import damage
from onnxprune.pipeline import sensitivity as sensitivities
from onnxprune.report.alone import Row
from onnxprune.report.sensitivity import Sensitivity
from onnxprune.runtime.sessions import open_session
from onnxprune.samples.partition import first_batches

X = np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float32)


def net(seed: int = 0, width: int = 8, *, residual: bool = False) -> onnx.ModelProto:
    """Two convs and a linear layer. Half of what the first conv writes is nothing, all of the second's counts.

    `residual`: the second conv adds to what it reads.
    """
    rng = np.random.default_rng(seed)
    shapes = {"w0": (width, 3, 3, 3), "w1": (width, width, 3, 3), "w2": (width, 5)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) / 4 for name, shape in shapes.items()}
    weights["w1"][:, width // 2 :] = 0
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["c"], "second", pads=[1, 1, 1, 1]),
        *([helper.make_node("Add", ["c", "b"], ["r"], "sum")] if residual else []),
        helper.make_node("Relu", ["r" if residual else "c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w2"], ["y"]),
    ]
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["n", 3, 8, 8]), ("y", ["n", 5]))
    ]
    stored = [numpy_helper.from_array(w, name) for name, w in weights.items()]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def here(tmp_path, monkeypatch):
    onnx.save(net(), tmp_path / "m.onnx")
    np.savez(tmp_path / "s.npz", x=X)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def measured(monkeypatch):
    """How many cuts were measured."""
    calls, real = [], Trials.damage
    monkeypatch.setattr(Trials, "damage", lambda self, model: (calls.append(1), real(self, model))[1])
    return calls


def points(found, name="w0"):
    return next({p.kept: p.damage for p in r.points} for r in found.rows if r.name == name)


# ---- what is measured -------------------------------------------------------------------------------------


def test_what_nobody_needs_goes_for_nothing_and_the_rest_does_damage():
    found = onnxprune.sensitivity(net(), X, widths=[0.75, 0.5, 0.25])
    assert [(r.kind, r.name, r.width) for r in found.rows] == [("group", "w0", 8), ("group", "w1", 8)]
    assert points(found) == pytest.approx({6: 0, 4: 0, 2: points(found)[2]}, abs=1e-9) and points(found)[2] > 1e-6
    falling = list(points(found, "w1").values())
    assert falling == sorted(falling) and falling[0] > 1e-6
    assert found.rows[0].can_go(1e-7) == 0.5 and found.rows[1].can_go(1e-7) == 0
    assert [r.name for r in found.ranked(1e-7)] == ["w0", "w1"]


def test_the_damage_is_that_of_the_outputs_of_a_network_cut_in_this_place():
    """Without the refit to help, zero what goes by hand: the measured damage is no larger, and not far from it."""
    found = onnxprune.sensitivity(net(), X, widths=[0.25])
    model = net()
    w2 = numpy_helper.to_array(model.graph.initializer[2]).copy()
    wanted = open_session(model).run({"x": X})
    least = []
    for pair in [(i, j) for i in range(8) for j in range(i)]:
        kept = np.isin(np.arange(8), pair)
        model.graph.initializer[2].CopyFrom(numpy_helper.from_array(w2 * kept[:, None], "w2"))
        least.append(damage(wanted, open_session(model).run({"x": X})))
    assert 0 < points(found, "w1")[2] < min(least)


def test_cuts_are_judged_on_samples_that_nothing_was_learnt_from(monkeypatch):
    seen, real = [], sensitivities.trials_of
    monkeypatch.setattr(sensitivities, "trials_of", lambda *a, **k: (seen.append(a[1:]), real(*a, **k))[1])
    onnxprune.sensitivity(net(), X, steps=1)
    learn, judge, _ = seen[0]
    learnt = {x.tobytes() for feeds in learn.batches(8) for x in feeds["x"]}
    judges = {x.tobytes() for feeds in judge.batches(8) for x in feeds["x"]}
    assert learnt and judges and not learnt & judges


def test_as_many_samples_judge_as_the_result_says(monkeypatch):
    seen, real = [], sensitivities.trials_of
    monkeypatch.setattr(sensitivities, "trials_of", lambda *a, **k: (seen.append(a[1:]), real(*a, **k))[1])
    found = onnxprune.sensitivity(net(), np.tile(X, (-(-300 // len(X)), 1, 1, 1)), steps=1)
    _, judge, count = seen[0]
    judged = sum(len(feeds["x"]) for feeds in first_batches(judge, count))
    assert 32 < found.settings["samples"] == count <= judged < count + 32


def test_macs_are_those_of_the_cut_alone():
    found = onnxprune.sensitivity(net(), X, widths=[0.5])
    first, second, last = 64 * 8 * 27, 64 * 8 * 72, 8 * 5
    total = first + second + last
    saved = [p.macs_removed for r in found.rows for p in r.points]
    assert saved == pytest.approx([(first + second) / 2 / total, (second + last) / 2 / total])


@pytest.mark.parametrize(
    ("steps", "widths", "expected"),
    [
        (1, None, [4]),
        (3, None, [6, 4, 2]),
        (100, None, [7, 6, 5, 4, 3, 2, 1]),
        (8, [0.5], [4]),
        (8, [0.01, 0.99], [7, 1]),
    ],
)
def test_widths(steps, widths, expected):
    assert list(points(onnxprune.sensitivity(net(), X, steps=steps, widths=widths))) == expected


def test_blocks_are_dropped_alone_with_the_layers_behind_refit():
    found = onnxprune.sensitivity(net(residual=True), X, methods=["blocks"])
    (row,) = found.rows
    assert (row.kind, row.name, row.width, [p.kept for p in row.points]) == ("block", "r", 1, [0])
    second, rest = 64 * 8 * 72, 64 * 8 * 27 + 8 * 5
    assert row.points[0].macs_removed == pytest.approx(second / (second + rest))
    without = net(residual=True)
    without.graph.node[3].op_type = "Identity"
    without.graph.node[3].input[:] = ["b"]
    wanted, got = (open_session(m).run({"x": X}) for m in (net(residual=True), without))
    assert 0 < row.points[0].damage < damage(wanted, got)  # what goes without a refit is worse


def test_methods_and_patterns_choose_what_is_tried():
    def names(**options):
        return [(r.kind, r.name) for r in onnxprune.sensitivity(net(residual=True), X, steps=1, **options).rows]

    both = names()
    assert both[-1] == ("block", "r") and all(kind == "group" for kind, _ in both[:-1]) and len(both) > 1
    assert names(methods=["channels"]) == both[:-1] and names(include="^r$") == [("block", "r")]
    assert names(exclude="^r$") == both[:-1]
    with pytest.raises(UsageError, match="magic"):
        names(methods=["magic"])


@pytest.mark.parametrize("bad", [{"steps": 0}, {"widths": []}, {"widths": [1.5]}, {"widths": [0]}, {"seed": -1}])
def test_bad_calls(bad):
    with pytest.raises(UsageError):
        onnxprune.sensitivity(net(), X, **bad)


# ---- kept and resumed -------------------------------------------------------------------------------------


def test_what_is_known_is_not_measured_again(here, measured):
    first = onnxprune.sensitivity("m.onnx", "s.npz", path="s.json", widths=[0.5])
    assert len(measured) == first.measured == 2
    again = onnxprune.sensitivity("m.onnx", "s.npz", path="s.json", widths=[0.5])
    assert again == first and again.measured == 0 and len(measured) == 2
    more = onnxprune.sensitivity("m.onnx", "s.npz", path="s.json", widths=[0.75, 0.5])
    assert more.measured == 2 and list(points(more)) == [6, 4] and points(more)[4] == points(first)[4]
    assert list(points(onnxprune.sensitivity("m.onnx", "s.npz", path="s.json", widths=[0.5]))) == [4]
    assert len(json.loads(Path("s.json").read_text())["rows"][0]["points"]) == 2  # the file holds all


def test_a_run_that_was_cut_short_goes_on_and_ends_in_the_same_bytes(here, measured):
    def stop_at(number):
        def progress(phase, done, total):
            if (phase, done) == ("measure", number):
                raise KeyboardInterrupt

        return progress

    with pytest.raises(KeyboardInterrupt):
        onnxprune.sensitivity("m.onnx", "s.npz", path="s.json", steps=3, progress=stop_at(4))
    assert len(measured) == 4 and json.loads(Path("s.json").read_text())["complete"] is False
    onnxprune.sensitivity("m.onnx", "s.npz", path="s.json", steps=3)
    assert len(measured) == 6 and json.loads(Path("s.json").read_text())["complete"] is True
    onnxprune.sensitivity("m.onnx", "s.npz", path="whole.json", steps=3)
    assert Path("s.json").read_bytes() == Path("whole.json").read_bytes()
    assert sorted(p.name for p in here.iterdir()) == ["m.onnx", "s.json", "s.npz", "whole.json"]


def test_a_kill_loses_one_measurement_at_most(here):
    """SIGKILL in the middle of a measurement: the file is whole and holds all before it."""
    script = (
        "import os, signal, onnxprune\n"
        "from onnxprune.decide.trials import Trials\n"
        "real, done = Trials.damage, []\n"
        "def damage(self, model):\n"
        "    done.append(1)\n"
        "    if len(done) == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(self, model)\n"
        "Trials.damage = damage\n"
        "onnxprune.sensitivity('m.onnx', 's.npz', path='s.json', steps=3)\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    left = Sensitivity.from_json(Path("s.json").read_text())
    assert sum(len(r.points) for r in left.rows) == 3 and not left.complete
    assert onnxprune.sensitivity("m.onnx", "s.npz", path="s.json", steps=3).measured == 3


CHANGES = [
    ("another model", lambda: onnx.save(net(seed=1), "m.onnx"), {}),
    ("other samples", lambda: np.savez("s.npz", x=X[:20]), {}),
    ("other settings", lambda: None, {"seed": 5}),
    ("no sensitivities", lambda: Path("s.json").write_text('{"kind": "onnxprune plan", "schema": 1}'), {}),
    ("no sensitivities", lambda: Path("s.json").write_bytes(b"\xff\x00mine"), {}),
    ("no sensitivities", lambda: Path("s.json").write_text("[" * 100_000), {}),
]


@pytest.mark.parametrize(("says", "change", "options"), CHANGES, ids=[f"{c[0]} {k}" for k, c in enumerate(CHANGES)])
def test_a_file_of_something_else_is_left_alone_unless_forced(here, says, change, options):
    onnxprune.sensitivity("m.onnx", "s.npz", path="s.json", widths=[0.5])
    change()
    before = Path("s.json").read_bytes()
    with pytest.raises(FileError, match=says):
        onnxprune.sensitivity("m.onnx", "s.npz", path="s.json", widths=[0.5], **options)
    assert Path("s.json").read_bytes() == before
    forced = onnxprune.sensitivity("m.onnx", "s.npz", path="s.json", widths=[0.5], force=True, **options)
    assert forced.measured == 2 and Sensitivity.from_json(Path("s.json").read_text()).rows == forced.rows


@pytest.mark.parametrize("path", ["m.onnx", "s.npz"])
def test_an_input_is_never_overwritten(here, path):
    before = Path(path).read_bytes()
    with pytest.raises(FileError, match="itself"):
        onnxprune.sensitivity("m.onnx", "s.npz", path=path, force=True)
    assert Path(path).read_bytes() == before


# ---- the command ------------------------------------------------------------------------------------------


def run(capsys, *argv):
    code = main([str(a) for a in argv])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_the_command_prints_and_keeps(here, capsys):
    code, text, err = run(capsys, "sensitivity", "m.onnx", "--calib", "s.npz", "--steps", 3)
    assert (code, err) == (0, "") and "w0" in text and "m.sensitivity.json" in text and "6 of them measured now" in text
    code, text, _ = run(capsys, "sensitivity", "m.onnx", "--calib", "s.npz", "--steps", 3, "--exclude", "w1", "--json")
    found = json.loads(text)
    assert code == 0 and [r["name"] for r in found["rows"]] == ["w0"] and len(found["rows"][0]["points"]) == 3
    assert (found["schema"], found["kind"], found["complete"]) == (1, "onnxprune sensitivity", True)


BAD = [
    (["m.onnx"], 2, "--calib"),
    (["m.onnx", "--calib", "s.npz", "--steps", "0"], 2, "steps"),
    (["m.onnx", "--calib", "s.npz", "--widths", "0.5,2"], 2, "between 0 and 1"),
    (["m.onnx", "--calib", "s.npz", "--widths", "half"], 2, "numbers"),
    (["m.onnx", "--calib", "s.npz", "--widths", "0.5", "--steps", "3"], 2, "drop one"),
    (["m.onnx", "--calib", "s.npz", "--include", "none such"], 2, "inspect"),
    (["m.onnx", "--calib", "s.npz", "--include", "("], 2, "regular expression"),
    (["m.onnx", "--calib", "s.npz", "--methods", "magic"], 2, "magic"),
    (["m.onnx", "--calib", "s.npz", "--methods", "blocks"], 5, "nothing can be cut"),
    (["m.onnx", "--calib", "s.npz", "--plot", "p.jpeg"], 2, ".svg"),
    (["m.onnx", "--calib", "none.npz"], 4, "none.npz"),
    (["m.onnx", "--calib", "nan.npz"], 4, "sample 3"),
    (["none.onnx", "--calib", "s.npz"], 7, "none.onnx"),
    (["m.onnx", "--calib", "s.npz", "-o", "nowhere/s.json"], 7, "nowhere"),
    (["m.onnx", "--calib", "s.npz", "-o", "m.onnx", "--force"], 7, "itself"),
    (["m.onnx", "--calib", "s.npz", "--plot", "p.onnx"], 2, ".svg"),
    (["m.onnx", "--calib", "s.npz", "--plot", "m.onnx"], 7, "itself"),
    (["relu.onnx", "--calib", "s.npz"], 5, "nothing can be cut"),
]


@pytest.mark.parametrize(("argv", "code", "says"), BAD, ids=lambda x: " ".join(x)[-30:] if isinstance(x, list) else "")
def test_bad_input(here, capsys, argv, code, says):
    bad = X.copy()
    bad[3, 0, 2, 2] = np.nan
    np.savez("nan.npz", x=bad)
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3, 8, 8]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ports[:1], ports[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "relu.onnx")
    before = {p.name: p.read_bytes() for p in here.iterdir()}
    got, out, err = run(capsys, "sensitivity", *argv)
    assert (got, out, len(err.splitlines())) == (code, "", 1) and says in err, err
    assert {p.name: p.read_bytes() for p in here.iterdir()} == before


def test_a_width_of_one_has_nothing_to_try():
    assert sensitivities.widths_of(Row("group", "g", 1, ()), [0.5]) == []  # type: ignore[arg-type]
