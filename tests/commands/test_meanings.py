"""What a user says of outputs on the command line: --output-kind, --weight."""

import json

import numpy as np
import onnx
import pytest

from onnxprune.cli import main
from tests.channels import surgery

TEXT = """(float[N,3,8,8] x) => (float[N,5] y, float[N,4] z)
    <float[16,3,3,3] a, float[16,16,3,3] b, float[5,16] c, float[4,16] d>
    { h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) i = Conv<pads=[1,1,1,1]>(r, b) s = Relu(i)
      p = GlobalAveragePool(s) f = Flatten(p) y = Gemm<transB=1>(f, c) z = Gemm<transB=1>(f, d) }"""


@pytest.fixture
def files(tmp_path):
    onnx.save(surgery.model_of(TEXT), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((48, 3, 8, 8)).astype(np.float32))
    return str(tmp_path / "m.onnx"), str(tmp_path / "x.npy"), tmp_path


def test_kinds_and_weights_reach_plan_result_and_file(files, capsys):
    model, x, folder = files
    said = ["--output-kind", "z=values", "--weight", "z=5"]
    plan = folder / "plan.json"
    assert main(["plan", model, "--calib", x, "--ratio", "0.3", "-o", str(plan), "--trusted", *said]) == 0
    settings = json.loads(plan.read_text())["settings"]
    assert settings["output_kind"] == {"z": "values"} and settings["weight"] == {"z": 5.0}
    out = folder / "o.onnx"
    capsys.readouterr()
    assert main(["apply", model, str(plan), "--calib", x, "-o", str(out), "--json", "--trusted"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [p["kind"] for p in found["fidelity"]["parts"]] == ["class scores", "values"], "as when the plan was made"
    assert found["fidelity"]["decides"][0] == "y"
    stored = {p.key: p.value for p in onnx.load(out).metadata_props}
    assert json.loads(stored["onnxprune.settings"])["weight"] == {"z": 5.0}
    assert main(["plan", model, "--calib", x, "--ratio", "0.3", "--trusted"]) == 0
    assert not {"output_kind", "weight"} & json.loads(capsys.readouterr().out)["settings"].keys()


@pytest.mark.parametrize(
    "given, words",
    [
        (["--output-kind", "y=boxs"], "unknown kind of output 'boxs'; did you mean boxes"),
        (["--output-kind", "why=boxes"], "unknown output 'why'"),
        (["--output-kind", "y"], "'y' is not NAME=KIND"),
        (["--output-kind", "y=text"], "output 'y' cannot be text"),
        (["--weight", "y=two"], "'y=two' is not NAME=X, such as y=2"),
        (["--weight", "y=-1"], "--weight y=-1.0 is no number from 0 up"),
        (["--output", "y=boxes"], "y=boxes names no file; did you mean --output-kind y=boxes?"),
    ],
)
def test_what_is_mistyped(files, capsys, given, words):
    model, x, _ = files
    assert main(["plan", model, "--calib", x, "--trusted", *given]) == 2
    assert words in capsys.readouterr().err


def test_kinds_and_figures_are_listed(capsys):
    assert main(["help", "kinds", "--json"]) == 0
    assert {"boxes", "class-scores", "hidden-state"} <= json.loads(capsys.readouterr().out)["entries"].keys()
    assert main(["help", "metrics"]) == 0
    assert "box_f1" in capsys.readouterr().out
