"""What the command line does with a pruned model that turns out slower: README, "not written (exit code 6)"."""

import json

import numpy as np
import onnx
import pytest

from onnxprune.cli import main
from onnxprune.runtime import sessions
from onnxprune.timing import bound_run, latency
from tests.channels import surgery

NET = """(float[1,3,6,6] x) => (float[] y) <float[16,3,3,3] w, float[5,16,1,1] v>
    { h = Conv<pads=[1,1,1,1]>(x, w) r = Relu(h) y = Conv(r, v) }"""
SLOWER, FASTER, SAME = 1.25, 0.5, 1.0


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Runs the main job where a run of the pruned model takes so many milliseconds, and of the original 1."""
    onnx.save(surgery.model_of(NET), tmp_path / "m.onnx")
    monkeypatch.setattr(bound_run, "WARM_UP_MS", 1.0)

    def run(ms, *argv):
        sizes, opened = [], sessions.open_session

        def opening(model, **options):
            sizes.append(model.ByteSize() if isinstance(model, onnx.ModelProto) else 0)
            return opened(model, **options)

        def rounds(runs, per_sample, orders, *rest, **options):
            own = np.array(sizes[-len(runs) :])
            return np.tile(np.where(own < own.max(), ms, 1.0), (len(orders), 1)), 0

        monkeypatch.setattr(sessions, "open_session", opening)
        monkeypatch.setattr(latency, "timed_rounds", rounds)
        command = [tmp_path / "m.onnx", "--bench", "--no-metadata", *argv, "-o", tmp_path / "p.onnx"]
        code = main([str(a) for a in command])
        monkeypatch.setattr(sessions, "open_session", opened)
        out, err = capsys.readouterr()
        return code, out, err, {p.name for p in tmp_path.iterdir()} - {"m.onnx"}

    return run


ROWS = [
    (SLOWER, [], 6, "the pruned model is slower than the original: 0.80x"),
    (SLOWER, ["--size-mb", "0.002", "--round-to", "1"], 6, "slower than the original: 0.80x"),
    (SLOWER, ["--best-effort"], 0, "not measurably faster: 0.80x [0.80, 0.80]"),
    (SLOWER, ["--no-bench"], 0, ""),
    (SAME, [], 0, "not measurably faster: 1.00x [1.00, 1.00]"),
    (FASTER, [], 0, ""),
]


@pytest.mark.parametrize(
    ("ms", "argv", "code", "says"), ROWS, ids=lambda v: " ".join(v) if isinstance(v, list) else None
)
def test_a_slower_model_is_written_only_where_that_is_asked_for(run, ms, argv, code, says):
    got, _, err, written = run(ms, *argv)
    assert got == code and says in err and written == ({"p.onnx"} if code == 0 else set())
    assert ("faster" in err) == ("faster" in says)


def test_nothing_else_is_written_either(run, tmp_path):
    *_, written = run(SLOWER, "--plan-out", tmp_path / "p.json", "--report", tmp_path / "p.html")
    assert not written
    *_, written = run(FASTER, "--plan-out", tmp_path / "p.json", "--report", tmp_path / "p.html")
    assert written == {"p.onnx", "p.json", "p.html"}


def test_the_speed_up_is_old_over_new(run):
    _, out, *_ = run(FASTER, "--json")
    found = json.loads(out)
    assert found["latency"]["comparisons"][0]["speedup"] == 2.0
    assert (found["before"]["latency_ms"], found["after"]["latency_ms"]) == (1.0, 0.5)


def test_of_several_ratios_the_slower_ones_are_not_written(run):
    code, *_, written = run(SLOWER, "--ratios", "0.25,0.5")
    assert code == 6 and not written
