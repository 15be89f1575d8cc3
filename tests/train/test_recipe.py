"""A recipe is the user's: what is wrong with it is said with its name and line, and is no bug of ours."""

from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")

from onnxprune.cli import main
from tests.channels import surgery

NET = """(float[N,3,8,8] x) => (float[N,5] y) <float[16,3,3,3] w0, float[16] b0, float[16,16,3,3] w1, float[5,16] w2> {
    a = Conv<pads=[1,1,1,1]>(x, w0, b0) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w1) s = Relu(b)
    g = GlobalAveragePool(s) f = Flatten(g) y = Gemm<transB=1>(f, w2) }"""
GOOD = """import numpy as np
import sys
import torch
def batches():
    rng = np.random.default_rng(0)
    for _ in range(4):
        yield rng.standard_normal((8, 3, 8, 8)).astype(np.float32), rng.integers(0, 5, 8)
def loss(outputs, labels):
    return torch.nn.functional.cross_entropy(outputs["y"], torch.from_numpy(labels))
"""
YIELD = "yield rng.standard_normal((8, 3, 8, 8)).astype(np.float32), rng.integers(0, 5, 8)"
LOSS = 'return torch.nn.functional.cross_entropy(outputs["y"], torch.from_numpy(labels))'
WRONG = {  # what is there instead, and what is said
    "no such file": (None, None, ["recipe.py", "not found"]),
    "no loss": ("def loss", "def lose", ["no function 'loss'"]),
    "it does not compile": ("def loss(", "def loss((", ["recipe.py, line 8"]),
    "it raises": ("def batches", "raise KeyError('data')\ndef batches", ["KeyError", "recipe.py, line 4"]),
    "it exits": ("def batches", "sys.exit()\ndef batches", ["SystemExit", "recipe.py, line 4"]),
    "a module is missing": ("import sys", "import sys, no_such_module", ["no_such_module", "recipe.py, line 2"]),
    "batches raises": ("rng = np", "rng = np.random[0]; rng = np", ["batches() raised", "TypeError", "recipe.py, line 5"]),
    "batches raises late": ("for _ in range(4):", "for _ in 'ab':\n        int(_)", ["batches() raised", "recipe.py, line 7"]),
    "batches exits": ("for _", "sys.exit('done')\n    for _", ["batches() raised", "SystemExit", "recipe.py, line 6"]),
    "batches exits as if all were well": ("for _", "sys.exit(0)\n    for _", ["batches() raised", "recipe.py, line 6"]),
    "batches gives nothing": ("range(4)", "range(0)", ["gives no batch"]),
    "batches returns nothing": (f"    for _ in range(4):\n        {YIELD}", "    return None", ["batches() raised", "recipe.py"]),
    "no pair": (YIELD, "yield 7", ["pairs (samples, labels)"]),
    "another input": (YIELD, "yield {'z': np.zeros((8, 3, 8, 8), np.float32)}, [0] * 8", ["nothing for input 'x', but for z"]),
    "another size": ("(8, 3, 8, 8)", "(8, 3, 8, 9)", ["[8, 3, 8, 9] for input 'x'"]),
    "another number of axes": ("(8, 3, 8, 8)", "(8, 192)", ["[8, 192] for input 'x'"]),
    "whole numbers": ("astype(np.float32)", "astype(np.int64)", ["int64 for input 'x', which is float32"]),
    "no array": (YIELD, "yield 'cat.png', 3", ["for input 'x'"]),
    "loss raises": (LOSS, "return outputs['logits'].sum()", ["loss() raised", "KeyError", "recipe.py, line 9"]),
    "loss exits": (LOSS, "sys.exit(3)", ["loss() raised", "SystemExit", "recipe.py, line 9"]),
    "loss raises within torch": (LOSS, LOSS.replace("labels)", "labels[:3])"), ["loss() raised", "recipe.py, line 9"]),
    "loss returns nothing": (LOSS, "pass", ["torch scalar, not NoneType"]),
    "loss returns a number": (LOSS, "return 0.5", ["torch scalar, not float"]),
    "loss returns a vector": (LOSS, "return outputs['y'].sum(0)", ["torch scalar, not a tensor of shape [5]"]),
    "loss returns whole numbers": (LOSS, "return outputs['y'].argmax()", ["torch scalar, not a tensor of shape []"]),
    "loss knows no outputs": (LOSS, "return torch.ones(())", ["does not depend on the outputs"]),
    "loss leaves the graph": (LOSS, "return outputs['y'].detach().sum()", ["does not depend on the outputs"]),
}  # fmt: skip
COMMANDS = {
    "distill": ["m.onnx", "--repair", "distill", "--calib", "s.npz", "--epochs", "1", "--no-bench"],
    "gradients": ["m.onnx", "--criterion", "taylor", "--calib", "s.npz", "--no-bench"],
    "train": ["train", "m.onnx", "--method", "tune", "--steps", "4"],
    "train with samples": ["train", "m.onnx", "--method", "csgd", "--steps", "4", "--calib", "s.npz"],
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    onnx.save(surgery.model_of(NET), tmp_path / "m.onnx")
    np.savez(tmp_path / "s.npz", x=np.random.default_rng(0).standard_normal((48, 3, 8, 8)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, argv, says):
    assert main([*argv, "--recipe", "recipe.py", "-o", "out.onnx"]) == 2
    (line,) = (text for text in capsys.readouterr().err.splitlines() if "error:" in text)
    assert all(word in line for word in says) and "our bug" not in line, line
    assert not Path("out.onnx").exists()


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_recipe_is_said_with_its_place(here, capsys, name):
    before, after, says = WRONG[name]
    if before is not None:
        assert before in GOOD
        Path("recipe.py").write_text(GOOD.replace(before, after))
    refused(capsys, COMMANDS["train"], says)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["it exits", "batches raises late", "another size", "loss raises", "loss exits"])
def test_every_command_that_takes_one(here, capsys, name, command):
    before, after, says = WRONG[name]
    Path("recipe.py").write_text(GOOD.replace(before, after))
    refused(capsys, COMMANDS[command], says)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_good_one(here, capsys, command):
    Path("recipe.py").write_text(GOOD.replace("astype(np.float32)", "astype(np.float64)"))  # made float32
    assert main([*COMMANDS[command], "--recipe", "recipe.py", "-o", "out.onnx"]) == 0, capsys.readouterr().err
