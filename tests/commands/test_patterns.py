"""Patterns that match nothing are not passed over in silence."""

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.cli import main
from onnxprune.errors import UsageError
from tests.channels import surgery

NET = """(float[N,3,8,8] x) => (float[N,5] y) <float[16,3,3,3] stem, float[16,16,3,3] first, float[16,16,3,3] second, float[5,16] head> {
    a = Conv<pads=[1,1,1,1]>(x, stem) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, first) s = Relu(b) c = Conv<pads=[1,1,1,1]>(s, second)
    sum = Add(c, r) t = Relu(sum) g = GlobalAveragePool(t) f = Flatten(g) y = Gemm<transB=1>(f, head) }"""
X = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
SAYS = "no group, weight or block"


@pytest.fixture
def here(tmp_path, monkeypatch):
    onnx.save(surgery.model_of(NET), tmp_path / "m.onnx")
    np.savez(tmp_path / "s.npz", x=X)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--exclude", "fisrt"], [SAYS, "--exclude 'fisrt'", "did you mean first?"]),
        (["--exclude", "nothing like it"], [SAYS]),
        (["--keep-block", "smu"], ["no node of a block", "did you mean sum?"]),
        (["--exclude", "first"], []),
        (["--exclude", "head"], []),  # stays whole anyway
        (["--exclude", "sum"], []),  # a block
        (["--keep-block", "su."], []),
        (["--exclude", "^$|first"], []),
    ],
)
@pytest.mark.parametrize("command", ["prune", "plan", "dry run"])
def test_a_pattern_that_keeps_nothing_is_warned_of(here, capsys, command, argv, says):
    line = {"prune": ["m.onnx", "--no-bench"], "plan": ["plan", "m.onnx"], "dry run": ["m.onnx", "--dry-run"]}[command]
    assert main([*line, "--ratio", "0.2", "--calib", "s.npz", *argv]) == 0
    warned = [text for text in capsys.readouterr().err.splitlines() if "matches no" in text]
    assert len(warned) == bool(says) and all(word in "".join(warned) for word in says)
    assert (
        main(
            [
                *line,
                "--ratio",
                "0.2",
                "--calib",
                "s.npz",
                *argv,
                "--quiet",
                *(["--force"] if line[0] == "m.onnx" and command == "prune" else []),
            ]
        )
        == 0
    )
    assert "matches no" not in capsys.readouterr().err


def test_other_commands(here, capsys):
    assert main(["sensitivity", "m.onnx", "--calib", "s.npz", "--steps", "1", "--exclude", "fisrt"]) == 0
    assert "did you mean first?" in capsys.readouterr().err
    assert main(["m.onnx", "--ratios", "0.2,0.3", "--calib", "s.npz", "--exclude", "fisrt", "--no-bench"]) == 0
    assert capsys.readouterr().err.count("did you mean first?") == 1


@pytest.mark.parametrize(
    "line", [["m.onnx"], ["m.onnx", "--lossless"], ["plan", "m.onnx"], ["m.onnx", "--methods", "rank"]], ids=" ".join
)
def test_a_pattern_that_leaves_nothing_to_cut_is_refused(here, capsys, line):
    argv = [] if "--lossless" in line else ["--calib", "s.npz"]
    assert main([*line, *argv, "--include", "secnod"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert SAYS in error and "did you mean second?" in error
    assert main(["sensitivity", "m.onnx", "--calib", "s.npz", "--include", "secnod"]) == 2


def test_in_python(here):
    result = onnxprune.prune("m.onnx", 0.2, calibration=X, exclude="fisrt", keep_block="smu")
    assert sum("matches no" in w for w in result.warnings) == 2
    with pytest.raises(UsageError, match="did you mean second"):
        onnxprune.prune("m.onnx", 0.2, calibration=X, include="secnod")
