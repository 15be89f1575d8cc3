"""Files beside the model that are damaged, or are none: each is refused by name, in time, and is no bug of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.cli import main
from tests.channels import surgery

ROOT = Path(__file__).parents[2]
NET = """(float[N,3,8,8] x) => (float[N,5] y) <float[16,3,3,3] w0, float[16,16,3,3] w1, float[5,16] w2> {
    a = Conv<pads=[1,1,1,1]>(x, w0) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w1) s = Relu(b)
    g = GlobalAveragePool(s) f = Flatten(g) y = Gemm<transB=1>(f, w2) }"""
X = np.random.default_rng(0).standard_normal((48, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    onnx.save(surgery.model_of(NET), tmp_path / "m.onnx")
    np.savez(tmp_path / "s.npz", x=X)
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "m.onnx", "-o", "plan.json"]) == 0
    assert main(["sensitivity", "m.onnx", "--calib", "s.npz", "--steps", "1", "-o", "s.json"]) == 0
    capsys.readouterr()
    return tmp_path


def refused(capsys, argv, code, *says):
    assert main(argv) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("onnxprune: error:")]
    assert len(lines) == 1 and all(word in lines[0] for word in says) and "our bug" not in lines[0], lines


def damaged(path, at, *, bits=1):
    data = bytearray(Path(path).read_bytes())
    data[at] ^= bits
    Path(path).write_bytes(bytes(data))


# ---- samples ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
@pytest.mark.parametrize("option", ["--calib", "--eval"])
def test_a_checksum_that_does_not_match(here, capsys, save, option):
    save("d.npz", x=X, labels=np.zeros(len(X), int))
    size = Path("d.npz").stat().st_size
    damaged("d.npz", size // 3)
    argv = (
        ["m.onnx", "--calib", "d.npz"]
        if option == "--calib"
        else ["m.onnx", "--calib", "s.npz", "--max-drop", "1", "--eval", "d.npz"]
    )
    refused(capsys, [*argv, "--no-bench", "-o", "o.onnx"], 4, "d.npz")
    assert not Path("o.onnx").exists()


def test_a_damaged_end_is_not_read_where_fewer_samples_are_wanted(here, capsys):
    np.savez("d.npz", x=X)
    damaged("d.npz", Path("d.npz").stat().st_size * 2 // 3)
    assert main(["m.onnx", "--calib", "d.npz", "--samples", "16", "--no-bench", "-o", "o.onnx"]) == 0


LABELLED = {
    "no archive": lambda p: p.write_bytes(b"PK\x03\x04 nothing"),
    "empty": lambda p: p.write_bytes(b""),
    "cut short": lambda p: p.write_bytes(p.read_bytes()[:2000]),
    "an array alone": lambda p: np.save(p.open("wb"), X),
    "a folder": lambda p: (p.unlink(), p.mkdir()),
    "a pipe": lambda p: (p.unlink(), os.mkfifo(p)),
    "pickled": lambda p: np.savez(p, x=X, labels=np.array([{}] * len(X), object)),
    "its directory": lambda p: damaged(p, p.stat().st_size - 30, bits=255),
    "a header": lambda p: p.write_bytes(p.read_bytes().replace(b"'shape': (48,)", b"'shape': (4x,)")),
    "a huge header": lambda p: p.write_bytes(p.read_bytes().replace(b"'shape': (48,)", b"'shape': (1e9,")),
    "NaN": lambda p: np.savez(p, x=np.where(X > 3, np.nan, X), labels=np.zeros(len(X), int)),
    "other inputs": lambda p: np.savez(p, a=X, b=X, labels=np.zeros(len(X), int)),
    "another size": lambda p: np.savez(p, x=X[:, :, :7], labels=np.zeros(len(X), int)),
    "no labels": lambda p: np.savez(p, x=X),
}


@pytest.mark.parametrize("way", LABELLED)
def test_labelled_samples(here, capsys, way):
    np.savez("d.npz", x=X, labels=np.zeros(len(X), int))
    LABELLED[way](Path("d.npz"))
    refused(capsys, ["m.onnx", "--calib", "s.npz", "--max-drop", "1", "--eval", "d.npz", "-o", "o.onnx"], 4, "d.npz")


# ---- plans and measurements -------------------------------------------------------------------------------


def edited(path, edit):
    content = json.loads(Path(path).read_text())
    edit(content)
    Path(path).write_text(json.dumps(content))


def first_keep(value):
    return lambda plan: plan["edits"][0].update(keep=[value])


PLANS = {
    "Infinity": first_keep(float("inf")),
    "NaN": first_keep(float("nan")),
    "an infinite seed": lambda plan: plan.update(seed=float("inf")),
    "an infinite setting": lambda plan: plan["settings"].update(lr=float("-inf")),
    "an infinite width": lambda plan: plan["edits"][0].update(width=float("inf")),
    "a negative channel": first_keep(-1),
    "a channel too many": first_keep(10**9),
    "a channel twice": lambda plan: plan["edits"][0].update(keep=[1, 1]),
    "nothing kept": lambda plan: plan["edits"][0].update(keep=[]),
    "no edits": lambda plan: plan.pop("edits"),
    "a number too large": lambda plan: plan["settings"].update(ratio=10**400),
    "a negative seed": lambda plan: plan.update(seed=-1),
    "no batch": lambda plan: plan.update(batch=0),
    "no provider": lambda plan: plan.update(providers=[]),
    "an unknown provider": lambda plan: plan.update(providers=["gpu9"]),
    "another model": lambda plan: plan.update(model_digest="0" * 64),
    "a group that is not there": lambda plan: plan["edits"][0].update(group="other"),
    "a block that is not there": lambda plan: plan["edits"].append(
        {"edit": "drop_block", "block": "b", "branch": 0, "axis": 1, "rank": 4, "length": 4}
    ),
    "a layer that is not there": lambda plan: plan["edits"].append(
        {"edit": "factorize", "node": "none", "kind": "channel", "rank": 2}
    ),
    "a merge that is not there": lambda plan: plan["edits"].append(
        {"edit": "merge_columns", "node": "n", "input": 1, "axis": 1,
         "source": [0], "target": [1], "factor": [1], "constant": [0]}
    ),
    "what outputs are": lambda plan: plan["settings"].update(output_kind=5),
    "weights of outputs": lambda plan: plan["settings"].update(weight=["y"]),
    "a kind that is none": lambda plan: plan["settings"].update(output_kind={"y": "odd"}),
}  # fmt: skip


@pytest.mark.parametrize("way", PLANS)
def test_plans(here, capsys, way):
    edited("plan.json", PLANS[way])
    refused(capsys, ["apply", "m.onnx", "plan.json", "-o", "o.onnx"], 2, "plan.json: ")


def test_a_number_that_is_too_large_to_be_one(here, capsys):
    text = Path("plan.json").read_text()
    Path("plan.json").write_text(text.replace('"seed": 0', '"seed": 1e999'))
    refused(capsys, ["apply", "m.onnx", "plan.json", "-o", "o.onnx"], 2, "plan.json", "1e999")


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder", "no text"])
@pytest.mark.parametrize("command", ["apply", "verify", "report"])
def test_what_is_no_file_of_text(here, capsys, command, kind):
    path = Path("odd.json")
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path = Path("/dev/zero")
    elif kind == "a folder":
        path.mkdir()
    else:
        path.write_bytes(b"\xff\xfe\x00")
    argv = {
        "apply": ["apply", "m.onnx", str(path), "-o", "o.onnx"],
        "verify": ["verify", "m.onnx", "m.onnx", "--plan", str(path)],
        "report": ["report", str(path), "-o", "o.html"],
    }[command]
    refused(capsys, argv, 2 if kind == "no text" else 7, str(path))


MEASURED = {
    "width 0": lambda rows: rows[0].update(width=0),
    "a negative width": lambda rows: rows[0].update(width=-4),
    "more kept than there are": lambda rows: rows[0]["points"][0].update(kept=10**6),
    "fewer than none": lambda rows: rows[0]["points"][0].update(kept=-1),
    "infinite damage": lambda rows: rows[0]["points"][0].update(damage=float("inf")),
    "an infinite width": lambda rows: rows[0].update(width=float("inf")),
    "no points": lambda rows: rows[0].pop("points"),
}


@pytest.mark.parametrize("way", MEASURED)
def test_measurements(here, capsys, way):
    edited("s.json", lambda content: MEASURED[way](content["rows"]))
    before = Path("s.json").read_bytes()
    argv = ["sensitivity", "m.onnx", "--calib", "s.npz", "--steps", "1", "-o", "s.json"]
    refused(capsys, argv, 7, "s.json", "--force")
    assert Path("s.json").read_bytes() == before
    assert main([*argv, "--force"]) == 0


# ---- standard streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("closed", "code"), [("<&-", 0), ("2>&-", 0), (">&-", 7), (">&- 2>&-", 7), ("<&- >&- 2>&-", 7), ("<&- 2>&-", 0)]
)
def test_closed_streams(here, closed, code):
    """What is closed is opened on nothing: the output would get the number of the stream, and what libraries say."""
    line = f'"{sys.executable}" -m onnxprune m.onnx --ratio 0.3 --no-bench -o o.onnx {closed}'
    done = subprocess.run(["sh", "-c", line], cwd=here, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)
    assert done.returncode == code
    assert Path("o.onnx").exists() == (code == 0)
    if code == 0:
        onnx.checker.check_model(onnx.load("o.onnx"))


def test_a_closed_output_is_said(here):
    line = f'"{sys.executable}" -m onnxprune inspect m.onnx >&-'
    done = subprocess.run(
        ["sh", "-c", line], cwd=here, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=120
    )
    assert (
        done.returncode == 7
        and done.stderr == b"onnxprune: error: standard output is closed; send it to a file, or to /dev/null\n"
    )
