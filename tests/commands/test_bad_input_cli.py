"""Bad input at the command line: the right exit code, one line, the input untouched, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.cli import main
from onnxprune.errors import ModelError
from onnxprune.pipeline import plans

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "benchmarks/models/resnet20_fmnist.onnx"
CALIB = ROOT / "benchmarks/data/calib.npz"
GOOD = np.random.default_rng(0).standard_normal((8, 1, 28, 28)).astype(np.float32)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the model `m.onnx` in it, and we are in it."""
    (tmp_path / "m.onnx").write_bytes(MODEL.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snapshot(folder):
    return {p.name: (p.is_symlink(), p.read_bytes() if p.is_file() else None) for p in sorted(folder.iterdir())}


def refused(capsys, folder, argv, code, *says):
    """The command fails with `code` and one line that says all of `says`; nothing in the folder changed."""
    before = snapshot(folder)
    assert main([str(a) for a in argv]) == code
    out = capsys.readouterr()
    lines = out.err.splitlines()
    assert len(lines) == 1, out.err
    assert lines[0].startswith("onnxprune: error: ") and all(word in lines[0] for word in says), lines[0]
    assert lines[0].isprintable() and not out.out
    assert snapshot(folder) == before


USAGE = [
    ([], "no model"),
    (["m.onnx", "--ratio", "0"], "between 0 and 1"),
    (["m.onnx", "--ratio", "-0.5"], "between 0 and 1"),
    (["m.onnx", "--ratio", "nan"], "between 0 and 1"),
    (["m.onnx", "--nonsense"], "--nonsense"),
    (["m.onnx", "--rat", "0.5"], "--rat"),
    (["m.onnx", "more.onnx"], "more.onnx"),
    (["m.onnx", "--of", "flops"], "flops"),
    (["m.onnx", "--allocation", "fair"], "fair"),
    (["m.onnx", "--methods", "channels,magic"], "magic"),
    (["m.onnx", "--repair", "magic", "--calib", str(CALIB)], "magic"),
    (["m.onnx", "--repair", "statistics"], "--calib"),
    (["m.onnx", "--speedup", "1"], "no speed-up"),
    (["m.onnx", "--speedup", "nan"], "--speedup"),
    (["m.onnx", "--latency-ms", "0"], "--latency-ms"),
    (["m.onnx", "--size-mb", "-1"], "--size-mb"),
    (["m.onnx", "--speedup", "2", "--ratio", "0.5"], "one target"),
    (["m.onnx", "--speedup", "2", "--size-mb", "1"], "one target"),
    (["m.onnx", "--speedup", "2", "--dry-run"], "--dry-run"),
    (["m.onnx", "--speedup", "2", "--lossless"], "--lossless"),
    (["m.onnx", "--max-drop", "1"], "--calib"),
    (["m.onnx", "--eval", "labelled.npz"], "--max-drop"),
    (["m.onnx", "--keep-block", "("], "regular expression"),
    (["m.onnx", "--methods", "blocks"], "--calib"),
    (["m.onnx", "--samples", "10"], "--calib"),
    (["m.onnx", "--samples", "0", "--calib", str(CALIB)], "positive"),
    (["m.onnx", "--include", "["], "regular expression"),
    (["m.onnx", "--include", "no such layer"], "inspect"),
    (["m.onnx", "--round-to", "many"], "many"),
    (["m.onnx", "--round-to", "0"], "at least 1"),
    (["m.onnx", "--min-width", "0"], "at least 1"),
    (["m.onnx", "--threads", "0"], "thread"),
    (["bench", "m.onnx", "--threads", "0"], "thread"),
    (["m.onnx", "--seed=-1"], "seed"),
    (["inspect", "m.onnx", "--seed", "x"], "seed"),
    (["m.onnx", "--input-shape", "1,1,28,28"], "NAME="),
    (["m.onnx", "--input-shape", "x=1,2,28,28"], "does not fit"),
    (["m.onnx", "--input-shape", "z=1,1,28,28"], "z"),
    (["m.onnx", "--calib", str(CALIB), "--image", "size=big"], "224x224"),
    (["m.onnx", "--dry-run", "--plan-out", "p.json"], "--dry-run"),
    (["m.onnx", "--plan-out", "p.onnx", "-o", "p.onnx"], "--plan-out"),
    (["bench"], "MODEL"),
    (["bench", "m.onnx", "--rounds", "2"], "rounds"),
    (["bench", "m.onnx", "--providers", "abacus"], "abacus"),
    (["bench", "m.onnx", "--batch", "0"], "1,8,32"),
    (["bench", "m.onnx", "--batch", "4,many"], "1,8,32"),
    (["bench", "m.onnx", "--batch", "4,4"], "different"),
    (["bench", "m.onnx", "--batch", "4,8", "--input-shape", "x=1,1,28,28"], "write N"),
    (["bench", "m.onnx", "--input-shape", "x=M,1,28,28"], "NAME="),
    (["bench", "m.onnx", "--provider-option", "cuda.use_tf32=0"], "not among the providers"),
    (["bench", "m.onnx", "--provider-option", "cpu.arena=0"], "cpu"),
    (["bench", "m.onnx", "--provider-option", "tf32"], "cuda.use_tf32=0"),
    (["bench", "m.onnx", "--plot", "p.gif"], ".svg"),
    (["verify", "m.onnx", "m.onnx"], "--plan"),
    (["apply", "m.onnx", "m.onnx"], "not a plan"),
]


@pytest.mark.parametrize(("argv", "says"), USAGE, ids=lambda x: " ".join(x)[-40:] if isinstance(x, list) else "")
def test_usage(here, capsys, argv, says):
    refused(capsys, here, argv, 2, says)


def test_bad_plans(here, capsys):
    assert main(["plan", "m.onnx", "-o", "plan.json"]) == 0
    capsys.readouterr()
    good = Path("plan.json").read_text()
    for text in ("", "{", "[" * 100_000, '{"kind": "onnxprune plan"}', good.replace('"width": 16', '"width": 99', 1)):
        Path("plan.json").write_text(text)
        refused(capsys, here, ["apply", "m.onnx", "plan.json"], 2, "plan")
    other = onnx.load("m.onnx")
    other.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(other.graph.initializer[0]) * 2, other.graph.initializer[0].name)
    )
    onnx.save(other, "other.onnx")
    Path("plan.json").write_text(good)
    refused(capsys, here, ["apply", "other.onnx", "plan.json"], 2, "another model")
    refused(capsys, here, ["apply", "m.onnx", "none.json"], 7, "none.json")


FILES = [
    (b"", "empty"),
    (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    (b"<!DOCTYPE html><html></html>", "HTML"),
    (b"\x00\x01garbage" * 100, "m2.onnx"),
    (MODEL.read_bytes()[:200_000], "m2.onnx"),
]


@pytest.mark.parametrize(("data", "says"), FILES, ids=["empty", "lfs", "html", "random", "truncated"])
@pytest.mark.parametrize("command", [[], ["inspect"], ["bench"]], ids=["prune", "inspect", "bench"])
def test_bad_models(here, capsys, data, says, command):
    Path("m2.onnx").write_bytes(data)
    refused(capsys, here, [*command, "m2.onnx"], 3, says)


def test_missing_and_odd_paths(here, capsys):
    Path("folder").mkdir()
    refused(capsys, here, ["none.onnx"], 7, "none.onnx")
    refused(capsys, here, ["folder"], 7, "folder")
    refused(capsys, here, ["bench", "m.onnx", "none.onnx"], 7, "none.onnx")
    refused(capsys, here, ["m.onnx", "-o", "nowhere/p.onnx"], 7, "nowhere")
    refused(capsys, here, ["m.onnx", "-o", "folder"], 7, "folder")
    refused(capsys, here, ["evil\x1b[31m\n\u202e.onnx"], 7, "evil")


SAMPLES = [
    ("name", {"a": GOOD, "b": GOOD}, "'x'"),
    ("shape", {"x": GOOD[:, :, :27]}, "27"),
    ("rank", {"x": GOOD[0, 0]}, "x"),
    ("raw pixels", {"x": (GOOD * 50).astype(np.uint8)}, "preprocess"),
    ("none at all", {"x": GOOD[:0]}, "no"),
    ("NaN", {"x": np.where(np.arange(8)[:, None, None, None] == 5, np.float32(np.nan), GOOD)}, "sample 5"),
    ("Inf", {"x": np.where(np.arange(8)[:, None, None, None] == 2, np.float32(np.inf), GOOD)}, "sample 2"),
    ("pickled", {"x": np.array([{}, []], dtype=object)}, "ickle"),
]


@pytest.mark.parametrize(("arrays", "says"), [s[1:] for s in SAMPLES], ids=[s[0] for s in SAMPLES])
def test_bad_samples(here, capsys, arrays, says):
    np.savez("s.npz", **arrays)
    refused(capsys, here, ["m.onnx", "--calib", "s.npz", "--no-bench"], 4, says)


def test_unreadable_samples(here, capsys):
    Path("s.npz").write_bytes(b"PK\x03\x04 nothing")
    refused(capsys, here, ["m.onnx", "--calib", "s.npz"], 4, "s.npz")
    refused(capsys, here, ["m.onnx", "--calib", "none.npz"], 4, "none.npz")


@pytest.mark.parametrize("kind", ["itself", "symlink", "hard link", "samples"])
def test_an_output_that_is_an_input(here, capsys, kind):
    np.savez("s.npz", x=GOOD)
    if kind == "symlink":
        Path("o.onnx").symlink_to("m.onnx")
    elif kind == "hard link":
        os.link("m.onnx", "o.onnx")
    output = {"itself": "m.onnx", "samples": "s.npz"}.get(kind, "o.onnx")
    refused(capsys, here, ["m.onnx", "--calib", "s.npz", "-o", output, "--force"], 7, "itself")


MISSING = [
    (["none.onnx", "-o", "mine.onnx"], 7, "none.onnx"),
    (["m.onnx", "--calib", "none.npz", "-o", "mine.onnx"], 4, "none.npz"),
    (["m.onnx", "--calib", "none", "-o", "mine.onnx"], 4, "none: not found"),
    (["m.onnx", "--calib", "none.py:f", "-o", "mine.onnx"], 4, "none.py:f"),
    (["m.onnx", "--calib", "none.npz", "-o", "nowhere/p.onnx"], 4, "none.npz"),
    (["m.onnx", "--calib", "none.npz", "-o", "m.onnx"], 4, "none.npz"),
    (["m.onnx", "--calib", "none.npz", "--ratios", "0.3,0.5", "-o", "mine.onnx"], 4, "none.npz"),
    (
        ["m.onnx", "--calib", str(CALIB), "--report", "mine.onnx", "--max-drop", "1", "--eval", "none.npz"],
        4,
        "none.npz",
    ),
    (["m.onnx", "--calib", str(CALIB), "-o", "mine.onnx", "--max-drop", "1", "--eval", "none.py:f"], 4, "none.py:f"),
    (["m.onnx", "--calib", str(CALIB), "-o", "mine.onnx", "--repair", "distill", "--recipe", "none.py"], 2, "none.py"),
    (["plan", "m.onnx", "--calib", "none.npz", "-o", "mine.onnx"], 4, "none.npz"),
    (["apply", "m.onnx", "none.json", "-o", "mine.onnx"], 7, "none.json"),
    (["sensitivity", "m.onnx", "--calib", "none.npz", "-o", "mine.onnx"], 4, "none.npz"),
    (["sensitivity", "m.onnx", "--calib", "none.npz", "--plot", "mine.svg"], 4, "none.npz"),
    (["train", "m.onnx", "--method", "tune", "--calib", "none.npz", "-o", "mine.onnx"], 4, "none.npz"),
    (["train", "m.onnx", "--method", "tune", "--recipe", "none.py", "-o", "mine.onnx"], 2, "none.py"),
    (["bench", "m.onnx", "none.onnx", "--csv", "mine.onnx"], 7, "none.onnx"),
    (["report", "none.json", "-o", "mine.onnx"], 7, "none.json"),
]


@pytest.mark.parametrize(("argv", "code", "says"), MISSING, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_an_input_that_is_not_there_is_said_before_an_output_that_is(here, capsys, argv, code, says):
    if {"train", "distill"} & {*argv}:
        pytest.importorskip("torch")  # else its absence is said first
    for name in ("mine.onnx", "mine.svg"):
        Path(name).write_bytes(b"mine")
    refused(capsys, here, argv, code, says)


def test_existing_outputs(here, capsys):
    Path("m.pruned.onnx").write_bytes(b"mine")
    Path("plan.json").write_bytes(b"mine")
    refused(capsys, here, ["m.onnx"], 7, "--force")
    refused(capsys, here, ["m.onnx", "-o", "o.onnx", "--plan-out", "plan.json"], 7, "--force")
    refused(capsys, here, ["plan", "m.onnx", "-o", "plan.json"], 7, "--force")
    refused(capsys, here, ["plan", "m.onnx", "-o", "m.onnx", "--force"], 7, "itself")
    refused(capsys, here, ["bench", "m.onnx", "--csv", "plan.json"], 7, "--force")
    refused(capsys, here, ["bench", "m.onnx", "--csv", "m.onnx", "--force"], 7, "itself")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to(here, capsys):
    Path("shut").mkdir(mode=0o500)
    refused(capsys, here, ["m.onnx", "-o", "shut/p.onnx"], 7, "shut")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc")
def test_a_folder_that_takes_no_files(here, capsys):
    before = snapshot(here)
    assert main(["m.onnx", "-o", "/proc/p.onnx", "-q"]) == 7
    assert len(capsys.readouterr().err.splitlines()) == 1 and snapshot(here) == before


def test_a_full_disk(here, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnxprune.protobuf.disk.flush", full)
    refused(capsys, here, ["m.onnx", "-q"], 7, "space")


def test_nothing_prunable(here, capsys):
    node = helper.make_node("Relu", ["x"], ["y"])
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, 8, 8]) for n in "xy"]
    onnx.save(
        helper.make_model(
            helper.make_graph([node], "g", ports[:1], ports[1:]),
            ir_version=8,
            opset_imports=[helper.make_opsetid("", 17)],
        ),
        "relu.onnx",
    )
    refused(capsys, here, ["relu.onnx"], 5, "error: relu.onnx: nothing can be pruned")


def test_a_ratio_out_of_reach(here, capsys):
    refused(capsys, here, ["m.onnx", "--ratio", "0.999"], 6, "--best-effort")


def test_a_verification_that_is_missed(here, capsys):
    assert main(["m.onnx", "-o", "p.onnx", "--plan-out", "plan.json", "-q"]) == 0
    assert main(["m.onnx", "-o", "q.onnx", "--ratio", "0.7", "-q"]) == 0
    capsys.readouterr()
    check = ["verify", "m.onnx", "p.onnx", "--plan", "plan.json"]
    assert main(check) == 0
    for argv, says in [
        ([*check, "--calib", str(CALIB), "--min-cosine", "0.9999"], "cosine"),
        ([*check, "--calib", str(CALIB), "--min-top1", "1"], "top-1"),
        (["verify", "m.onnx", "q.onnx", "--plan", "plan.json"], "the plan says"),
    ]:
        capsys.readouterr()
        assert main(argv) == 6
        out = capsys.readouterr()
        assert len(out.err.splitlines()) == 1 and says in out.err and "surgery      exact" in out.out


def test_a_provider_that_is_absent(here, capsys):
    refused(capsys, here, ["bench", "m.onnx", "--providers", "coreml"], 8, "coreml")


def test_our_own_bug_is_one_line_too(here, capsys, monkeypatch):
    def broken(*_, **__):
        raise KeyError("two\nlines \x1b[31m")

    monkeypatch.setattr(plans, "planned", broken)
    refused(capsys, here, ["m.onnx"], 1, "KeyError", "--debug")
    assert main(["m.onnx", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("of", ["model", "masked original"])
def test_whoever_does_not_know_the_file_has_it_said(here, capsys, monkeypatch, of):
    def fails(*_, **__):
        raise ModelError(f"{of}: cannot be run with x float32[1]: no; check the inputs' shapes")

    monkeypatch.setattr("onnxprune.api.open_model", fails)
    refused(capsys, here, ["m.onnx"], 3, "error: m.onnx: ", "cannot be run")


NO_MEMORY = [MemoryError(), ImportError("/x/_ckdtree.so: failed to map segment from shared object"),
             SystemError("error return without exception set")]  # fmt: skip


@pytest.mark.parametrize("error", NO_MEMORY, ids=["an array", "a library", "without words"])
def test_no_memory(here, capsys, monkeypatch, error):
    def hungry(*_, **__):
        raise error

    monkeypatch.setattr(plans, "planned", hungry)
    refused(capsys, here, ["m.onnx"], 3, "out of memory")


PHASES = ["observe", "planned", "apply_plan", "save"]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"])
def test_signals_leave_nothing(here, capsys, monkeypatch, phase, number, code):
    """The signal arrives in each phase; in the last one when the temporary file is there."""
    room = {"save": "runtime.sessions.open_session", "observe": "graph.rehearsal.observe"}
    target = f"onnxprune.{room.get(phase, f'pipeline.plans.{phase}')}"
    if phase == "save":
        from onnxprune.runtime import sessions

        real = sessions.open_session

        def strike(model, *args, **kwargs):
            if isinstance(model, Path):  # only `Result.save` opens a path here
                assert any(p.name.endswith(".tmp") for p in here.iterdir())
                os.kill(os.getpid(), number)
            return real(model, *args, **kwargs)
    else:

        def strike(*args, **kwargs):
            os.kill(os.getpid(), number)
            time.sleep(5)

    monkeypatch.setattr(target, strike)
    refused(capsys, here, ["m.onnx", "-q"], code, "while")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"])
def test_a_signal_that_a_module_takes_for_an_error_is_a_signal(here, capsys, monkeypatch, number, code):
    def strike(*args, **kwargs):  # as numpy does where it is interrupted while it loads
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except BaseException as error:
            raise ImportError("Importing the numpy C-extensions failed") from error

    monkeypatch.setattr("onnxprune.pipeline.plans.planned", strike)
    refused(capsys, here, ["m.onnx", "-q"], code, "while")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"])
def test_signals_to_a_process(here, number, code):
    before = snapshot(here)
    command = [sys.executable, "-m", "onnxprune.cli", "m.onnx", "--calib", str(CALIB), "-v"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "repair" in line:
                process.send_signal(number)
                break
        out, err = process.communicate(timeout=30)
    assert process.returncode == code and not out
    assert "Traceback" not in err and err.splitlines()[-1].startswith("onnxprune: error: ")
    assert snapshot(here) == before


def test_a_reader_that_goes_away(here):
    command = f"{sys.executable} -m onnxprune.cli inspect m.onnx --json | head -c 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_standard_output_is_full(here):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "onnxprune.cli", "inspect", "m.onnx"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 7 and len(done.stderr.splitlines()) == 1
