"""The command line on the model and samples that the project ships."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.cli import main

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "benchmarks/models/resnet20_fmnist.onnx"
CALIB = ROOT / "benchmarks/data/calib.npz"
TEST = ROOT / "benchmarks/data/test.npz"


def run(capsys, *argv):
    try:
        code = main([str(a) for a in argv])
    except SystemExit as stop:
        code = stop.code
    out = capsys.readouterr()
    return code or 0, out.out, out.err


def accuracy(path):
    import onnxruntime

    data = np.load(TEST)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return float((session.run(None, {"x": data["x"]})[0].argmax(1) == data["labels"]).mean())


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """The main job, twice, under two settings of BLAS: (model path, stdout of --json) of both runs."""
    folder, runs = tmp_path_factory.mktemp("job"), []
    for blas in ("1", "2"):
        out = folder / f"p{blas}.onnx"
        command = [
            sys.executable,
            "-m",
            "onnxprune.cli",
            MODEL,
            "--ratio",
            "0.5",
            "--calib",
            CALIB,
            "-o",
            out,
            "--json",
        ]
        env = {**os.environ, "OPENBLAS_NUM_THREADS": blas}
        runs.append((out, subprocess.run(command, capture_output=True, check=True, env=env).stdout))
    return runs


def test_main_job_halves_the_macs_and_keeps_the_accuracy(pruned):
    path, text = pruned[0]
    result = json.loads(text)
    assert abs(result["macs_removed"] - 0.5) <= 0.01
    assert result["surgery"]["exact"] and result["fidelity"]["held_out"]
    assert accuracy(MODEL) > 0.92
    assert accuracy(path) >= 0.915  # magnitude pruning without repair leaves about 0.1 at these widths
    onnx.checker.check_model(str(path), full_check=True)


def test_statistics_alone_bring_some_of_it_back(capsys, tmp_path):
    out = tmp_path / "p.onnx"
    simple = ["--criterion", "activation", "--allocation", "uniform", "--repair", "statistics"]
    code, *_ = run(capsys, MODEL, "--calib", CALIB, *simple, "--no-bench", "-o", out)
    assert code == 0 and 0.84 <= accuracy(out) < 0.91


def test_without_repair_the_accuracy_is_gone(capsys, tmp_path):
    out = tmp_path / "p.onnx"
    code, *_ = run(capsys, MODEL, "--ratio", 0.5, "--repair", "none", "--criterion", "l1", "-o", out)
    assert code == 0 and accuracy(out) < 0.5


def test_same_seed_same_bytes(pruned):
    """But for the run: when, where and by which command."""
    (first, text), (second, again) = pruned
    assert text.partition(b', "run": ')[0] == again.partition(b', "run": ')[0]
    assert set(json.loads(text)["run"]) == {"model", "version", "date", "command", "machine"}
    assert first.read_bytes() == second.read_bytes()


def test_json_is_complete_and_versioned(pruned):
    result = json.loads(pruned[0][1])
    assert result["schema"] == 1
    assert {"before", "after", "cuts", "pinned", "groups", "fidelity", "surgery", "settings"} <= set(result)
    assert set(result["cuts"][0]) == {"node", "input", "axis", "rank", "length", "removed"}


FEW = ("--calib", CALIB, "--samples", 96)


@pytest.mark.slow
def test_plan_then_apply_gives_the_same_bytes(capsys, tmp_path):
    plan, out, whole = tmp_path / "plan.json", tmp_path / "p.onnx", tmp_path / "w.onnx"
    assert run(capsys, MODEL, "--ratio", 0.5, *FEW, "-o", whole, "--no-bench")[0] == 0
    assert run(capsys, "plan", MODEL, "--ratio", 0.5, *FEW, "-o", plan)[0] == 0
    assert run(capsys, "apply", MODEL, plan, *FEW, "-o", out, "--no-bench")[0] == 0
    assert out.read_bytes() == whole.read_bytes()
    code, text, _ = run(capsys, "verify", MODEL, out, "--plan", plan, *FEW)
    assert code == 0 and "surgery" in text


@pytest.mark.slow
def test_several_ratios_are_those_made_one_by_one(capsys, tmp_path):
    base = tmp_path / "p.onnx"
    code, text, _ = run(capsys, MODEL, "--ratios", "0.3,0.6", *FEW, "-o", base, "--json")
    assert code == 0 and sorted(f.name for f in tmp_path.iterdir()) == ["p-0.3.onnx", "p-0.6.onnx"]
    found = [r["macs_removed"] for r in json.loads(text)["results"]]
    assert found == pytest.approx([0.3, 0.6], abs=0.01)
    assert run(capsys, MODEL, "--ratio", 0.6, *FEW, "-o", base, "--no-bench")[0] == 0
    assert base.read_bytes() == (tmp_path / "p-0.6.onnx").read_bytes()


@pytest.mark.parametrize("more", [["--ratio", "0.5"], ["--dry-run"], ["--plan-out", "plan.json"]])
def test_several_ratios_stand_for_themselves(capsys, tmp_path, more):
    code, _, err = run(capsys, MODEL, "--ratios", "0.3,0.6", *more, "-o", tmp_path / "p.onnx")
    assert code == 2 and "--ratios" in err and not list(tmp_path.iterdir())


def test_dry_run_writes_nothing(capsys, tmp_path):
    code, text, _ = run(capsys, MODEL, "--ratio", 0.5, "--dry-run", "-o", tmp_path / "p.onnx")
    assert code == 0 and text and not list(tmp_path.iterdir())


def test_inspect_names_groups_and_reasons(capsys):
    code, text, _ = run(capsys, "inspect", MODEL)
    assert code == 0 and "1.a.0.weight" in text and "model output" in text


def test_bench_json(capsys):
    code, text, _ = run(capsys, "bench", MODEL, MODEL, "--json")
    assert code == 0 and json.loads(text)["comparisons"][0]["verdict"] == "no measurable change"


def test_bench_of_several_batches_as_json_and_csv(capsys, tmp_path):
    out = tmp_path / "b.csv"
    code, text, _ = run(capsys, "bench", MODEL, "--batch", "1,2", "--rounds", 10, "--json", "--csv", out)
    found = json.loads(text)
    assert code == 0 and found["kind"] == "onnxprune bench" and [r["batch"] for r in found["results"]] == [1, 2]
    assert {"nodes", "provider_options", "versions", "load_start"} <= set(found["results"][0])
    assert len(out.read_text().splitlines()) == 3
    node = next(iter(found["results"][0]["nodes"].values()))[0]
    assert set(node) == {"node", "op_type", "provider"} and node["provider"] == "CPUExecutionProvider"


@pytest.mark.slow
def test_help_is_short_and_quick():
    best, lines = 9.0, 0
    for _ in range(5):
        # CPU seconds, not wall: the machine may be busy with something else
        start = sum(os.times()[2:4])
        done = subprocess.run([sys.executable, "-m", "onnxprune.cli", "--help"], capture_output=True, check=True)
        best, lines = min(best, sum(os.times()[2:4]) - start), len(done.stdout.splitlines())
    assert lines <= 60
    assert best <= 0.2


BAD = [
    ("ratio above one", ["--ratio", "1.5"], 2, "ratio"),
    ("ratio not a number", ["--ratio", "half"], 2, "ratio"),
    ("one of several ratios above one", ["--ratios", "0.5,1.5"], 2, "ratio"),
    ("ratios not numbers", ["--ratios", "0.5,half"], 2, "ratios"),
    ("no ratios", ["--ratios", ","], 2, "ratios"),
    ("unknown criterion", ["--criterion", "magic"], 2, "magic"),
    ("bad regular expression", ["--exclude", "("], 2, "regular expression"),
    ("missing samples", ["--calib", "nowhere.npz"], 4, "nowhere.npz"),
    ("wrong input name", ["--calib", "name"], 4, "x"),
    ("wrong shape", ["--calib", "shape"], 4, "shape"),
    ("a sample is not a number", ["--calib", "nan"], 4, "3"),
    ("out of reach", ["--ratio", "0.9999"], 6, "can go"),
]


@pytest.mark.parametrize(("case", "argv", "code", "says"), BAD, ids=[b[0] for b in BAD])
def test_bad_input(capsys, tmp_path, case, argv, code, says):
    rng = np.random.default_rng(0)
    good = rng.standard_normal((8, 1, 28, 28)).astype(np.float32)
    nan = good.copy()
    nan[3, 0, 5, 5] = np.nan
    made = {"name": {"image": good, "other": good}, "shape": {"x": good[:, :, :27]}, "nan": {"x": nan}}
    if argv[-1] in made:
        np.savez(tmp_path / "s.npz", **made[argv[-1]])
        argv = [*argv[:-1], str(tmp_path / "s.npz")]
    before, there = hashlib.sha256(MODEL.read_bytes()).digest(), sorted(tmp_path.iterdir())
    got, out, err = run(capsys, MODEL, *argv, "-o", tmp_path / "p.onnx")
    lines = [line for line in err.strip().splitlines() if line]
    assert got == code, err
    assert says in lines[-1] and "Traceback" not in err and not out
    assert hashlib.sha256(MODEL.read_bytes()).digest() == before
    assert sorted(tmp_path.iterdir()) == there


def test_missing_model(capsys, tmp_path):
    code, _, err = run(capsys, tmp_path / "none.onnx", "--ratio", 0.5)
    assert code == 7 and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("alias", ["same", "link"])
def test_output_is_input(capsys, tmp_path, alias):
    model = tmp_path / "m.onnx"
    model.write_bytes(MODEL.read_bytes())
    out = model
    if alias == "link":
        out = tmp_path / "l.onnx"
        out.symlink_to(model)
    code, *_ = run(capsys, model, "--ratio", 0.5, "-o", out, "--force")
    assert code == 7 and model.read_bytes() == MODEL.read_bytes()


def test_an_existing_output_is_refused(capsys, tmp_path):
    out = tmp_path / "p.onnx"
    out.write_bytes(b"mine")
    assert run(capsys, MODEL, "--ratio", 0.5, "-o", out)[0] == 7
    assert out.read_bytes() == b"mine"
    assert run(capsys, MODEL, "--ratio", 0.5, "-o", out, "--force")[0] == 0


def test_provider_that_is_not_there(capsys):
    assert run(capsys, "bench", MODEL, "--providers", "coreml")[0] == 8


def test_inspect_prints_json(capsys):
    code, text, _ = run(capsys, "inspect", MODEL, "--json")
    content = json.loads(text)
    assert code == 0 and content["groups"] and all(type(g["step"]) is int for g in content["groups"])
