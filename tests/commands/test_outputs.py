"""Where commands write: never over what they read, never into what is not theirs, and refused before the work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.cli import main
from onnxprune.commands import spelling
from tests.channels import surgery

NET = """(float[N,3,8,8] x) => (float[N,5] y) <float[16,3,3,3] w0, float[16,16,3,3] w1, float[5,16] w2> {
    a = Conv<pads=[1,1,1,1]>(x, w0) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w1) s = Relu(b)
    g = GlobalAveragePool(s) f = Flatten(g) y = Gemm<transB=1>(f, w2) }"""
X = np.random.default_rng(0).standard_normal((48, 3, 8, 8)).astype(np.float32)
RECIPE = "import numpy as np\ndef batches():\n    yield np.zeros((8, 3, 8, 8), np.float32), np.zeros(8, int)\n"
EVAL = ["--max-drop", "50"]


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    onnx.save(surgery.model_of(NET), tmp_path / "m.onnx")
    np.savez(tmp_path / "s.npz", x=X)
    np.savez(tmp_path / "l.npz", x=X, labels=np.zeros(len(X), int))
    (tmp_path / "own.py").write_text("import numpy as np\ndef f(*a):\n    return 1.0 if a else np.load('s.npz')['x']\n")
    (tmp_path / "recipe.py").write_text(RECIPE)
    for name in ("npy", "images/class", "sets/test_data_set_0"):
        (tmp_path / name).mkdir(parents=True)
    np.save(tmp_path / "npy" / "a.npy", X)
    (tmp_path / "images" / "class" / "a.png").write_bytes(b"an image")
    (tmp_path / "sets" / "test_data_set_0" / "input_0.pb").write_bytes(b"a tensor")
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "m.onnx", "-o", "plan.json"]) == 0
    capsys.readouterr()
    return tmp_path


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(capsys, monkeypatch, here, argv, code, *says):
    """One line, before the model is opened; nothing in the folder changed."""

    def opened(*_, **__):
        raise AssertionError("the work has begun")

    before = files(here)
    with monkeypatch.context() as patch:
        patch.setattr("onnxprune.api.open_model", opened)
        assert main(argv) == code
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("onnxprune: error:"))
    assert all(word in line for word in says), line
    assert files(here) == before


INPUTS = {
    "m.onnx": ["--calib", "s.npz"],
    "s.npz": ["--calib", "s.npz"],
    "own.py": ["--calib", "own.py:f"],
    "l.npz": ["--calib", "s.npz", *EVAL, "--eval", "l.npz"],
    "./own.py": ["--calib", "s.npz", *EVAL, "--eval", "own.py:f"],
    "npy/a.npy": ["--calib", "npy"],
    "images/class/a.png": ["--calib", "images", "--image", "size=8x8"],
    "sets/test_data_set_0/input_0.pb": ["--calib", "sets"],
}


@pytest.mark.parametrize("output", ["-o", "--plan-out", "--report"])
@pytest.mark.parametrize("target", INPUTS)
def test_nothing_is_written_over_what_is_read(here, capsys, monkeypatch, target, output):
    says = "one of the samples" if "/a." in target or "sets" in target else "itself"
    argv = ["m.onnx", *INPUTS[target], output, target, "--force", "--no-bench"]
    refused(capsys, monkeypatch, here, argv, 7, target.removeprefix("./"), says)


OTHERS = {
    "apply over the plan": (["apply", "m.onnx", "plan.json", "-o", "plan.json"], "plan.json"),
    "apply over samples": (["apply", "m.onnx", "plan.json", "--calib", "npy", "-o", "npy/a.npy"], "npy/a.npy"),
    "plan over samples": (["plan", "m.onnx", "--calib", "s.npz", "-o", "s.npz"], "s.npz"),
    "measurements over samples": (["sensitivity", "m.onnx", "--calib", "npy", "-o", "npy/a.npy"], "npy/a.npy"),
    "measurements over a function": (["sensitivity", "m.onnx", "--calib", "own.py:f", "-o", "own.py"], "own.py"),
    "figures over a model": (["bench", "m.onnx", "m.onnx", "--csv", "m.onnx"], "m.onnx"),
    "a page over its source": (["report", "plan.json", "-o", "plan.json"], "plan"),
    "the page of a sweep over samples": (
        ["m.onnx", "--calib", "s.npz", "--ratios", "0.3", "--report", "s.npz"],
        "s.npz",
    ),
}


@pytest.mark.parametrize("way", OTHERS)
def test_other_commands(here, capsys, monkeypatch, way):
    argv, says = OTHERS[way]
    refused(capsys, monkeypatch, here, [*argv, "--force"], 7, says)


def test_a_file_beside_samples_may_be_replaced(here, capsys):
    Path("npy/m.onnx").write_bytes(Path("m.onnx").read_bytes())
    for name in ("npy/o.onnx", "npy/p.json"):
        Path(name).write_text("old")
    argv = ["npy/m.onnx", "--calib", "npy", "--no-bench", "--force", "--allow-destroyed"]
    assert main([*argv, "-o", "npy/o.onnx", "--plan-out", "npy/p.json"]) == 0
    json.loads(Path("npy/p.json").read_text())


# ---- what training writes -----------------------------------------------------------------------------------

TRAIN = ["train", "m.onnx", "--method", "tune", "--calib", "s.npz", "--steps", "3", "--batch", "8"]
NOT_OURS = {
    "the model": (["--metrics", "m.onnx"], 7, "m.onnx: is the input"),
    "the samples": (["--metrics", "s.npz"], 7, "s.npz: is the input"),
    "the recipe": (["--recipe", "recipe.py", "--metrics", "recipe.py"], 7, "recipe.py: is the input"),
    "somebody's notes": (["--metrics", "own.py"], 7, "own.py: holds something else"),
    "a result": (["--metrics", "plan.json"], 7, "plan.json: holds something else"),
    "a folder for metrics": (["--metrics", "npy"], 7, "npy: is a folder"),
    "metrics nowhere": (["--metrics", "no/where"], 7, "no/where"),
    "metrics in the output": (["--metrics", "o.onnx"], 2, "--metrics"),
    "metrics in the page": (["--metrics", "o.html"], 2, "--metrics"),
    "metrics in the checkpoint": (["--metrics", "run.pt", "--checkpoint", "run.pt"], 2, "--checkpoint"),
    "metrics in the second checkpoint": (["--metrics", "run.pt.cut", "--checkpoint", "run.pt"], 2, "--checkpoint"),
    "a checkpoint in the model": (["--checkpoint", "m.onnx"], 7, "m.onnx: is the input"),
    "a checkpoint in the output": (["--checkpoint", "o.onnx"], 2, "--checkpoint"),
    "a checkpoint in the page": (["--checkpoint", "./o.html"], 2, "--checkpoint"),
    "a checkpoint nowhere": (["--checkpoint", "no/run.pt"], 7, "no/run.pt"),
    "a checkpoint in a folder": (["--checkpoint", "npy"], 7, "npy: is a folder"),
    "a checkpoint that is none": (["--checkpoint", "own.py"], 2, "own.py: not a checkpoint"),
    "a second checkpoint that is none": (["--checkpoint", "x"], 2, "x.cut: not a checkpoint"),
}


@pytest.mark.parametrize("way", NOT_OURS)
def test_training_writes_nothing_into_what_is_not_its_own(here, capsys, monkeypatch, way):
    pytest.importorskip("torch")
    argv, code, says = NOT_OURS[way]
    if way == "a second checkpoint that is none":
        Path("x.cut").write_text("notes")
    refused(capsys, monkeypatch, here, [*TRAIN, *argv, "-o", "o.onnx", "--report", "o.html", "--force"], code, says)


def test_training_goes_on_with_its_own(here, capsys):
    pytest.importorskip("torch")
    argv = [*TRAIN, "--metrics", "m.jsonl", "--checkpoint", "run.pt", "--allow-destroyed", "-o", "o.onnx", "--force"]
    for times in (1, 2):
        assert main(argv) == 0
        Path("run.pt.cut").unlink()
        assert len(Path("m.jsonl").read_text().splitlines()) == times


def test_training_from_python(here):
    pytest.importorskip("torch")
    import onnxprune
    from onnxprune.errors import FileError
    from onnxprune.pipeline.training import train_and_prune
    from onnxprune.pipeline.training_settings import TrainSettings

    subject = onnxprune.open_model("m.onnx", calibration="s.npz")
    before = files(here)
    for name in ("m.onnx", "own.py"):
        with pytest.raises(FileError, match=name):
            train_and_prune(subject, TrainSettings("tune", steps=3, metrics=Path(name)))
    assert files(here) == before


# ---- names that are not UTF-8 --------------------------------------------------------------------------------


@pytest.fixture
def odd(here):
    folder = os.fsdecode(b"fo\xfflder")
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system has no such names")
    for name in ("m.onnx", "s.npz"):
        (here / folder / name).write_bytes((here / name).read_bytes())
    return folder


def test_a_folder_whose_name_is_not_utf_8(odd, capsys):
    argv = [f"{odd}/m.onnx", "--calib", f"{odd}/s.npz", "--no-bench", "--allow-destroyed", "-o", f"{odd}/o.onnx"]
    assert main([*argv, "--plan-out", f"{odd}/p.json", "--report", f"{odd}/r.html"]) == 0
    assert main(["apply", f"{odd}/m.onnx", f"{odd}/p.json", "--no-bench", "-o", os.fsdecode(b"o\xff.onnx")]) == 0
    assert main(["verify", f"{odd}/m.onnx", f"{odd}/o.onnx", "--plan", f"{odd}/p.json"]) == 0
    assert main(["bench", f"{odd}/m.onnx", f"{odd}/o.onnx", "--rounds", "10", "--csv", f"{odd}/b.csv"]) == 0


def test_large_weights_need_a_name_in_utf_8(odd, monkeypatch, capsys):
    monkeypatch.setattr("onnxprune.protobuf.serialize.MAX_PROTOBUF", 10)
    before = sorted(os.listdir(odd))
    assert main(["m.onnx", "--no-bench", "-o", f"{odd}/o.onnx"]) == 7
    assert "o.data: the path of large weights must be UTF-8" in capsys.readouterr().err
    assert sorted(os.listdir(odd)) == before


def test_a_terminal_without_our_signs_is_given_its_own(capfd):
    """Arrows and dashes are spelled in ASCII; what has no likeness there is escaped."""
    spelling.use()
    said = "in 16→8, −30%…, R² 0.5, 10⁻⁵, λ".encode("ascii", spelling.NAME)
    assert said == b"in 16->8, -30%..., R^2 0.5, 10^-5, \\u03bb"
    assert "é→".encode("latin-1", spelling.NAME) == b"\xe9->"
    environment = {"PATH": "", "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(onnxprune.__file__).parents[1])}
    told = subprocess.run([sys.executable, "-m", "onnxprune", "help", "choosing"], env=environment, capture_output=True)
    assert told.returncode == 0 and b"-30% of the MACs" in told.stdout and b"\\u2212" not in told.stdout
