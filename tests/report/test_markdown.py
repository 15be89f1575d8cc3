"""A result as Markdown, and what runs it in a job."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.cli import main
from tests.channels.surgery import model_of

ROOT = Path(__file__).parents[2]
NET = """(float[N,3,8,8] x) => (float[N,5] y) <float[16,3,3,3] w0, float[16,16,3,3] w1, float[5,16] w2> {
    a = Conv<pads=[1,1,1,1]>(x, w0) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w1) s = Relu(b)
    g = GlobalAveragePool(s) f = Flatten(g) y = Gemm<transB=1>(f, w2) }"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    onnx.save(model_of(NET), tmp_path / "m.onnx")
    np.savez(tmp_path / "s.npz", x=np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cells(text):
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_it_says_what_the_terminal_says(here, capsys):
    assert main("m.onnx --ratio 0.3 --calib s.npz --no-bench --allow-destroyed --summary s.md --json".split()) == 0
    told, text = json.loads(capsys.readouterr().out), Path("s.md").read_text()
    rows = {row[0]: row[1:] for row in cells(text)}
    assert text.startswith(f"### m.onnx: {told['fidelity']['verdict']}\n")
    assert rows["MACs"][2] == f"{(told['after']['macs'] / told['before']['macs'] - 1) * 100:+.1f}%"
    assert {"asked", "surgery", "verdict", "fidelity", "groups"} <= rows.keys()
    assert len({len(row) for row in cells(text)[:4]}) == 1


def test_names_are_no_markup(here):
    result = onnxprune.prune("m.onnx", 0.3, trusted=True)
    hostile = dataclasses.replace(result, notes=("a | b <img src=x> [c](d) `e` @f #1 *g* \x1b[31m",))
    text = hostile.to_markdown()
    assert not re.search(r"<img|\[c\]|`|@|\x1b|\*", text) and all(len(row) in (2, 4) for row in cells(text))


@pytest.mark.parametrize(
    "words", ["--ratios 0.2,0.3", "--ratio 0.3 --dry-run", "--ratio 0.3 --report s.md"], ids=["sweep", "dry", "twice"]
)
def test_where_there_is_none(here, capsys, words):
    assert main(["m.onnx", *words.split(), "--calib", "s.npz", "--no-bench", "--summary", "s.md"]) == 2
    assert "--summary" in capsys.readouterr().err and not Path("s.md").exists()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(("options", "code", "verdict"), [("", 0, "kept"), ("--min-cosine 1.1", 2, "")])
def test_the_action(here, options, code, verdict):
    """What the action for jobs runs: outputs, the page of the job, the exit code."""
    tool = here / "bin" / "onnxprune"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m onnxprune "$@"\n')
    tool.chmod(0o755)
    (here / "bin" / "python").symlink_to(sys.executable)
    asked = {"MODEL": "m.onnx", "CALIB": "s.npz", "AIM": "--ratio 0.02", "OUTPUT": "o.onnx", "OPTIONS": options}
    told = {"GITHUB_STEP_SUMMARY": str(here / "page"), "GITHUB_OUTPUT": str(here / "outputs")}
    path = {"PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    asked["OPTIONS"] += " --no-bench"
    done = subprocess.run(
        ["bash", ROOT / "tools/action/prune.sh"], env=os.environ | asked | told | path, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    outputs = dict(line.split("=", 1) for line in Path("outputs").read_text().splitlines())
    assert outputs == {"result": "o.onnx.json", "verdict": verdict}
    assert ("### m.onnx" if code == 0 else f"exit code {code}") in Path("page").read_text()
    assert Path("o.onnx").exists() is (code == 0)
