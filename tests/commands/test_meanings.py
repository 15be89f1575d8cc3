"""What a user says of outputs on the command line: --output-kind, --weight."""

import json
import re

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


def test_parts_that_are_set_reach_plan_and_result(files, capsys):
    model, x, folder = files
    plan, out = str(folder / "plan.json"), str(folder / "o.onnx")
    said = ["--output-kind", "y=class-scores,parts=kind:0-3,size:3-5:values", "--weight", "size=5"]
    assert main(["plan", model, "--calib", x, "--ratio", "0.3", "-o", plan, "--trusted", *said]) == 0
    assert main(["inspect", model, *said[:2]]) == 0
    assert "size: values" in capsys.readouterr().out
    assert main(["apply", model, plan, "--calib", x, "-o", out, "--json", "--trusted"]) == 0
    parts = json.loads(capsys.readouterr().out)["fidelity"]["parts"]
    assert [(p["name"], p["kind"]) for p in parts][:2] == [("kind", "class scores"), ("size", "values")]


@pytest.mark.parametrize(
    "given, words",
    [
        (["--output-kind", "y=boxs"], "unknown kind of output 'boxs'; did you mean boxes"),
        (["--output-kind", "why=boxes"], "unknown output 'why'"),
        (["--output-kind", "y"], "'y' is not NAME=KIND"),
        (["--output-kind", "y=text"], "output 'y' cannot be text"),
        (["--output-kind", "y=values,parts=0-4,4-9"], "output 'y': part 4-9 of an axis of 5; stop at 5"),
        (["--output-kind", "y=values,parts=a-4"], "'a-4' is no part such as 0-4, 0-4:boxes or box:0-4:boxes"),
        (["--output-kind", "y=values,parts=a:0-4", "--weight", "b=2"], "unknown output 'b'"),
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


def test_a_drop_by_name(files, capsys):
    model, x, folder = files
    out = folder / "o.onnx"
    run = [model, "--calib", x, "-o", str(out), "--trusted", "--no-bench", "--force", "--allow-destroyed"]
    assert main([*run, "--max-drop", "r2=60"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--max-drop 60, in R² of" in text and "in percent" in text
    assert main([*run, "--ratio", "0.6", "--max-drop", "r2=0.01"]) == 6
    assert "the metric drops from 100 to" in (err := capsys.readouterr().err) and "by more than 0.01: R² of" in err
    assert main([*run, "--ratio", "0.6", "--min", "r2=0.999"]) == 6
    assert "is below 99.9%" in capsys.readouterr().err
    assert main([*run, "--ratio", "0.6", "--min", "r2=-1", "--min", "sqnr=-200"]) == 0


def test_a_drop_of_a_figure_of_labels(files, capsys):
    model, x, folder = files
    labels = str(folder / "labelled.npz")
    np.savez(labels, x=np.load(x), labels=np.arange(48) % 5)
    out = str(folder / "o.onnx")
    run = [model, "--calib", x, "-o", out, "--trusted", "--no-bench", "--force", "--allow-destroyed", "--eval", labels]
    assert main([*run, "--max-drop", "top1=60"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "labels: classes of output 'y', 48 samples: top-1" in text and "--max-drop 60, in top-1 of labelled.npz" in text
    )
    assert main([*run, "--ratio", "0.3", "--max-drop", "top1=99"]) == 0
    told = capsys.readouterr().err
    assert "labels: classes of output 'y', 48 samples: top-1" in told
    assert re.search(r"top-1 of labelled.npz in percent: [\d.]+ of the original, [\d.]+ now", told)
    assert main([*run, "--ratio", "0.3", "--max-drop", "miou=1"]) == 2
    assert "labels are classes, which have no miou; choose from top1, top5" in capsys.readouterr().err
    assert main([*run[:-1], str(folder / "none.npz"), "--max-drop", "top1=1"]) == 4
    assert "none.npz: not found" in capsys.readouterr().err
    assert main([*run[:4], labels, *run[5:-1], f"{labels}:top1", "--max-drop", "60"]) == 7, "its own samples"


@pytest.mark.parametrize(
    "given, words",
    [
        (["--max-drop", "box_f=1"], "unknown metric 'box_f'; did you mean box_f1"),
        (["--max-drop", "psnr=1"], "psnr knows no best value that it could drop from; give --min psnr=X"),
        (["--max-drop", "top1=x"], "'top1=x' is neither a number nor NAME=NUMBER"),
        (["--max-drop", "top1=-1"], "not a positive number"),
        (["--max-drop", "box_f1=1"], "no output has box_f1 (y is class scores, z is class scores); choose from"),
        (["--max-drop", "top1=1", "--eval", "own.py:f"], "says what is measured, and --eval too; drop one"),
        (["--min", "box_f1=90"], "--min box_f1=90 is not between -1 and 1; a share, such as 0.9"),
        (["--min", "words"], "'words' is not NAME=X, such as box_f1=0.9"),
        (["--min", "boxf1=0.9"], "unknown metric 'boxf1'; did you mean box_f1"),
        (["--ratio", "0.5", "--min", "box_f1=0.9"], "no output has box_f1 (y is class scores, z is class scores)"),
    ],
)
def test_figures_that_are_mistyped(files, capsys, given, words):
    model, x, _ = files
    assert main([model, "--calib", x, "--trusted", "--no-bench", "--allow-destroyed", *given]) == 2
    assert words in capsys.readouterr().err


def test_least_values_need_samples(files, capsys):
    assert main([files[0], "--min", "top1=0.9"]) == 2
    assert "--min needs samples; give --calib" in capsys.readouterr().err
