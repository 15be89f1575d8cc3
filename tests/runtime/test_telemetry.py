"""Nothing is looked up, sent or kept by ONNX Runtime's telemetry, unless the user has asked for it himself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from onnxprune.runtime import telemetry

LIBRARY = """
import sys, onnxprune
found = onnxprune.open_model(sys.argv[1])
print(found.graph.outputs)
"""
COMMAND = ["-m", "onnxprune.cli"]
SAMPLES = ["--calib", "s.npz", "--allow-destroyed", "-q"]
PRUNE = """
import sys, warnings, numpy as np, onnxprune
warnings.simplefilter("ignore")
found = onnxprune.prune(sys.argv[1], 0.3, calibration=np.load("s.npz")["x"], round_to=1, bench=True)
found.save("m.pruned.onnx")
"""
WAYS = {
    "command": [*COMMAND, "m.onnx", "--ratio", "0.5", "--round-to", "1", "-q"],
    "all that a prune writes": [*COMMAND, "m.onnx", "--ratio", "0.5", "--round-to", "1", *SAMPLES, "-o", "m.pruned.onnx",
                                "--best-effort", "--plan-out", "m.pruned.json", "--report", "m.pruned.html", "--summary", "m.pruned.md"],
    "sensitivity": [*COMMAND, "sensitivity", "m.onnx", "--calib", "s.npz", "--steps", "1", "-q", "-o", "m.pruned.json"],
    "train": [*COMMAND, "train", "m.onnx", "--method", "tune", "--ratio", "0.3", "--steps", "2", "--batch", "8", *SAMPLES,
              "--checkpoint", "m.pruned.pt", "--metrics", "m.pruned.jsonl"],
    "bench": [*COMMAND, "bench", "m.onnx", "--rounds", "10", "--time-budget", "1", "-q"],
    "library": ["-c", LIBRARY, "m.onnx"],
    "library, a prune": ["-c", PRUNE, "m.onnx"],
}  # fmt: skip


@pytest.fixture
def places(tmp_path):
    """Folders for the work, the user's files and temporary ones; a model with two convolutions is in the first."""
    for name in ("work", "home", "tmp"):
        (tmp_path / name).mkdir()
    ends = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", [1, 3, 8, 8]), ("y", [1, 4, 8, 8]))]
    weights = [helper.make_tensor(n, 1, s, [0.1 * (k % 7) for k in range(s[0] * s[1])])
               for n, s in (("v", [16, 3, 1, 1]), ("w", [4, 16, 1, 1]))]  # fmt: skip
    nodes = [helper.make_node("Conv", ["x", "v"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
             helper.make_node("Conv", ["b", "w"], ["y"])]  # fmt: skip
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    (tmp_path / "work" / "m.onnx").write_bytes(model.SerializeToString())
    np.savez(tmp_path / "work" / "s.npz", x=np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32))
    return tmp_path


def environment(places: Path) -> dict[str, str]:
    """Whoever sees CI or the like there switches it off himself."""
    kept = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
    found = {name: os.environ[name] for name in kept if name in os.environ}
    found.setdefault("PYTHONPATH", os.getcwd())
    return found | {"HOME": str(places / "home"), "TMPDIR": str(places / "tmp")}


def run(places: Path, way: str, *before: str) -> subprocess.CompletedProcess[str]:
    if way == "train":
        pytest.importorskip("torch")
    return subprocess.run([*before, sys.executable, *WAYS[way]], cwd=places / "work", env=environment(places),
                          capture_output=True, text=True, timeout=300)  # fmt: skip


def left(places: Path) -> list[str]:
    """Files outside of the working folder; the layers' times that `--speedup` keeps would be ours."""
    return [str(p.relative_to(places)) for n in ("home", "tmp") for p in (places / n).rglob("*") if p.is_file()]


@pytest.mark.parametrize("way", WAYS)
def test_no_file_is_left(places, way):
    done = run(places, way)
    assert done.returncode == 0, done.stderr
    assert left(places) == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("way", WAYS)
def test_no_socket_and_no_file_but_those_asked_for(places, way):
    calls = "trace=socket,connect,openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat"
    log = places / "calls"
    done = run(places, way, "strace", "-f", "-qq", "-o", str(log), "-e", calls)
    if "ptrace" in done.stderr or not log.exists():
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    lines = [line for line in log.read_text(errors="replace").splitlines() if not re.search(r"= -1 ENOENT", line)]
    asked = re.compile(r"socket\(AF_UNIX|nscd/socket")  # torch asks this machine for the user's name
    sockets = [line for line in lines if re.search(r"\b(socket|connect)\(", line)]
    assert not [line for line in sockets if way != "train" or not asked.search(line)]
    writes = [line for line in lines if re.search(r"O_WRONLY|O_RDWR|O_CREAT|\b(creat|mkdir|mkdirat)\(", line)]
    paths = {match[1] for line in writes if (match := re.search(r'"([^"]*)"', line))}
    ours = rf"/dev/null|/proc/self/|.*__pycache__|{re.escape(str(places / 'tmp'))}/"  # the last: gone by then
    assert not [p for p in paths if p.startswith("/") and not re.match(ours, p)]
    assert {p for p in paths if not p.startswith("/")} <= {
        p for p in paths if p.startswith((".onnxprune-", "m.pruned"))
    }
    assert left(places) == []


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("", "1"), ("0", "0"), ("false", "false"), ("1", "1")])
def test_whoever_has_decided_himself_is_heeded(given, expected):
    script = "import os, onnxprune; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    env = {k: v for k, v in os.environ.items() if k != telemetry.VARIABLE}
    env |= {} if given is None else {telemetry.VARIABLE: given}
    env.setdefault("PYTHONPATH", os.getcwd())
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


@pytest.mark.parametrize("decided", [False, True])
def test_a_module_that_was_there_before_us_is_told(monkeypatch, decided):
    said = []
    monkeypatch.setattr(telemetry, "DECIDED", decided)
    telemetry.switch_off(type("Ort", (), {"disable_telemetry_events": staticmethod(lambda: said.append("off"))}))
    telemetry.switch_off(object())  # a build that has none
    assert said == ([] if decided else ["off"])
