"""--prune-statistics, from the command line to the JSON: off by default, inexact and said so."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from onnxprune import api, cli
from tests.channels import surgery

LAYER_NORM = """(float[N,3,8,8] x) => (float[] y) <float[16,3,3,3] w, float[16] s, float[16] b, float[5,16,1,1] v>
    { h = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(h) n = LayerNormalization(t, s, b)
      u = Transpose<perm=[0,3,1,2]>(n) y = Conv(u, v) }"""


def run(capsys: pytest.CaptureFixture, *argv: str) -> tuple[int, str, str]:
    code = cli.main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(surgery.model_of(LAYER_NORM, 17), path)
    return path


def test_off_by_default(model: Path, capsys: pytest.CaptureFixture) -> None:
    code, _, err = run(capsys, model, "--dry-run")
    assert code == 5 and "--prune-statistics" in err


def test_on_the_command_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    code, out, err = run(
        capsys, model, "--prune-statistics", "--plan-out", tmp_path / "p.json", "-o", tmp_path / "a.onnx"
    )
    assert code == 0, err
    assert "not exact, as asked for: 1 statistics" in out and "--prune-statistics" in err
    code, out, err = run(capsys, "apply", model, tmp_path / "p.json", "-o", tmp_path / "b.onnx", "--json")
    assert code == 0, err
    assert json.loads(out)["inexact"] == ["n"] and not json.loads(out)["surgery"]["exact"]
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    code, out, err = run(capsys, "verify", model, tmp_path / "a.onnx", "--plan", tmp_path / "p.json", "--json")
    assert code == 0, err
    assert json.loads(out)["inexact"] == ["n"]
    code, out, _ = run(capsys, "inspect", model, "--prune-statistics")
    assert code == 0 and "not exact: 1 nodes" in out and "1 group of" in out


def test_from_python(model: Path) -> None:
    result = api.prune(model, 0.5, prune_statistics=True)
    assert result.inexact == ("n",) and result.macs_removed > 0.4
    assert result.plan.settings["prune_statistics"] is True
