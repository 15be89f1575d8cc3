"""Functions of a user's own at the command line: what they raise is theirs, with file and line; an exit ends nothing."""

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.cli import main
from onnxprune.errors import CalibrationError
from tests.channels import surgery

NET = """(float[N,3,8,8] x) => (float[N,5] y) <float[16,3,3,3] w0, float[16,16,3,3] w1, float[5,16] w2> {
    a = Conv<pads=[1,1,1,1]>(x, w0) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w1) s = Relu(b)
    g = GlobalAveragePool(s) f = Flatten(g) y = Gemm<transB=1>(f, w2) }"""
X = np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def here(tmp_path, monkeypatch):
    onnx.save(surgery.model_of(NET), tmp_path / "m.onnx")
    np.savez(tmp_path / "s.npz", x=X)
    monkeypatch.chdir(tmp_path)
    return tmp_path


BODIES = {
    "sys.exit()": "SystemExit",
    "sys.exit(0)": "SystemExit: 0",
    "sys.exit('enough')": "SystemExit: enough",
    "raise SystemExit(143)": "SystemExit: 143",
    "argparse.ArgumentParser().parse_args(['--no'])": "SystemExit: 2",
    "raise ValueError('odd')": "ValueError: odd",
    "np.zeros(3)[5]": "IndexError",
    "assert False": "AssertionError",
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("where", ["the file", "the function", "a generator"])
@pytest.mark.parametrize("option", ["--calib", "--eval"])
def test_what_a_function_raises_is_said_with_its_line(here, capsys, option, where, body):
    text = {
        "the file": f"import argparse, sys\nimport numpy as np\n{body}\ndef f(*a): return 1.0\n",
        "the function": f"import argparse, sys\nimport numpy as np\ndef f(*a):\n    {body}\n    return 1.0\n",
        "a generator": f"import argparse, sys\nimport numpy as np\ndef f(*a):\n    {body}\n    yield np.zeros((1, 3, 8, 8), np.float32)\n",
    }[where]
    Path("own.py").write_text(text)
    if option == "--calib":
        argv, code = ["m.onnx", "--calib", "own.py:f"], 4
    elif where == "a generator":
        return  # a metric is called, and gives no number
    else:
        argv = ["m.onnx", "--calib", "s.npz", "--max-drop", "1", "--eval", "own.py:f"]
        code = 4 if where == "the file" else 2
    line = 3 if where == "the file" else 4
    assert main([*argv, "-o", "out.onnx", "--no-bench"]) == code
    (error,) = (text for text in capsys.readouterr().err.splitlines() if text.startswith("onnxprune: error:"))
    assert BODIES[body] in error and f"own.py, line {line}" in error and "our bug" not in error
    assert not Path("out.onnx").exists()


def test_a_signal_within_a_user_s_function_is_a_signal(here, capsys):
    Path("own.py").write_text("import signal\ndef f():\n    signal.raise_signal(signal.SIGTERM)\n")
    assert main(["m.onnx", "--calib", "own.py:f", "-o", "out.onnx"]) == 143
    assert "terminated" in capsys.readouterr().err and not Path("out.onnx").exists()
    Path("own.py").write_text("import signal\ndef f():\n    signal.raise_signal(signal.SIGINT)\n")
    assert main(["m.onnx", "--calib", "own.py:f", "-o", "out.onnx"]) == 130


def test_a_function_given_in_python(here):
    def samples():
        yield X[0]
        raise SystemExit(0)

    with pytest.raises(CalibrationError, match=r"SystemExit: 0 \(.*test_user_code.py, line \d+\)"):
        onnxprune.prune("m.onnx", calibration=samples)
