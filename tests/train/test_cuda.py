"""The torch room on a real NVIDIA GPU, where there is one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU", allow_module_level=True)

import onnx  # noqa: E402

import onnxprune  # noqa: E402
from onnxprune.cli import main  # noqa: E402
from onnxprune.graph.model import Graph  # noqa: E402
from onnxprune.runtime.sessions import open_session  # noqa: E402
from onnxprune.train.distill import distill  # noqa: E402
from onnxprune.train.network import Network, as_feeds  # noqa: E402
from onnxprune.train.processes import process_group  # noqa: E402
from tests.train.test_distill import HOW, batches, distance, halved  # noqa: E402

MODEL = "benchmarks/models/resnet20_fmnist.onnx"
CALIB = "benchmarks/data/calib.npz"
TEST = "benchmarks/data/test.npz"


def images(count=64):
    with np.load(CALIB) as samples:
        [name] = [k for k in samples.files if samples[k].ndim == 4]
        return samples[name][:count].astype(np.float32)


def test_forward_and_back_equal_onnx_runtime(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    x, [name] = images(), [i.name for i in onnx.load(MODEL).graph.input]
    network = Network(Graph(onnx.load(MODEL))).to("cuda").eval()
    with torch.no_grad():
        [there] = network(as_feeds({name: x}, "cuda")).values()
    [here] = open_session(MODEL).run({name: x})
    assert np.abs(there.cpu().numpy() - here).max() < 1e-4 * np.abs(here).max()
    assert network.to_onnx().SerializeToString() == Network(Graph(onnx.load(MODEL))).to_onnx().SerializeToString()


def test_the_device_is_the_gpu():
    with process_group() as device:
        assert device.type == "cuda"


def test_distillation_comes_closer_to_the_original():
    net, alive, cut = halved()
    trained = distill(net, Graph(cut), alive, batches(8), settings=HOW).export()
    assert distance(net.model, trained) < 0.5 * distance(net.model, cut)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    paths = [tmp_path / f"{k}.onnx" for k in "ab"]
    for path in paths:
        command = [MODEL, "--ratio", "0.8", "--calib", CALIB, "--repair", "distill", "--epochs", "6", "--json"]
        assert main([*command, "--augment", "flip,shift=2", "-o", str(path), "-q"]) == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("method", ["csgd", "gsm", "trp", "gates", "tune"])
def test_methods_run_there(method, tmp_path):
    output = tmp_path / "out.onnx"
    command = ["train", MODEL, "--method", method, "--ratio", "0.3", "--steps", "60", "--calib", CALIB]
    assert main([*command, "-o", str(output), "--json", "--samples", "256"]) == 0
    onnx.checker.check_model(str(output))


@pytest.mark.parametrize("label", ["torch.as_tensor(labels)", "torch.from_numpy(labels)"])
def test_a_recipe_need_not_know_where_the_network_is(label, tmp_path):
    recipe, output = tmp_path / "recipe.py", tmp_path / "out.onnx"
    recipe.write_text(
        f"""import numpy as np, torch
def batches():
    data = np.load({os.path.abspath(TEST)!r})
    for k in range(0, 512, 64):
        yield data["x"][k : k + 64].astype(np.float32), data["labels"][k : k + 64]
def loss(outputs, labels):
    return torch.nn.functional.cross_entropy(next(iter(outputs.values())), {label})
"""
    )
    how = ["--repair", "distill", "--epochs", "1", "--recipe", str(recipe)]
    assert main([MODEL, "--ratio", "0.5", "--calib", CALIB, "--samples", "256", *how, "--json", "-o", str(output)]) == 0
    onnx.checker.check_model(str(output))


def test_gradient_criteria():
    result = onnxprune.prune(MODEL, 0.5, calibration=CALIB, criterion="taylor", samples=128)
    assert result.after.macs < 0.55 * result.before.macs


def test_torchrun_by_nccl(tmp_path):
    """As many processes as there are GPUs: with one, the launcher and the device alone are tried."""
    count = str(torch.cuda.device_count())
    output = tmp_path / "out.onnx"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
    command += ["-m", "onnxprune", MODEL, "--ratio", "0.8", "--calib", CALIB, "--samples", "256", "--json"]
    command += ["--repair", "distill", "--epochs", "2", "-o", str(output)]
    run = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads(run.stdout)["cuts"] and output.exists()
