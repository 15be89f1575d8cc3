"""The commands that README and documents show are run, page by page in a folder of its own, on a small network that
stands there under the names of theirs.

Half of its channels are copies of others, so that half the work goes without a trace.
"""

import re
import shlex

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune import cli
from onnxprune.commands import prune
from onnxprune.graph.model import Graph
from tests import test_docs
from tests.channels.surgery import model_of

NET = """(float[N,1,12,12] x) => (float[N,10] y) <float[16,1,3,3] a, float[16] b, float[16,16,3,3] c, float[16] d, float[16,10] e>
    { h = Conv<strides=[2,2]>(x, a, b) i = Relu(h) j = Conv(i, c, d) k = Relu(j) l = GlobalAveragePool(k) m = Flatten(l)
      y = Gemm(m, e) }"""
ELSEWHERE = {
    "ssh": "another machine",
    "--device": "a profile: tests/timing",
    "profile MODEL": "minutes: tests/timing",
    "dask": "a scheduler: tests/elsewhere",
    "--providers cuda": "a GPU",
    "--speedup": "times decide: tests/pipeline",
    "photographs/": "photographs: tests/samples",
    "--output-kind y=boxes": "a detector: tests/measure",
    "onnxprune demo": "tests/commands/test_demo.py",
    "venv": "an environment: the job that installs",
    "ruff": "the job of style",
    "mypy": "the job of style",
    "pytest": "all tests",
}  # fmt: skip
"""Part of a command that is not run here -> why, or where it is."""
SHORTER = {"--steps 2000": "--steps 20 --allow-destroyed", "--trials 40": "--trials 2", "--trial 17": "--trial 0"}
NAMES = {
    "MODEL": "model.onnx", "SAMPLES": "samples.npz", "ORIGINAL": "model.onnx", "PRUNED": "model.pruned.onnx",
    "A.onnx": "model.onnx", "B.onnx": "model.pruned.onnx", "FILE.py": "recipe.py --steps 20 --allow-destroyed", "RESULT.json": "result.json",
    "TOPIC": "start",
}  # fmt: skip
"""What the README calls its files -> ours."""


def network():
    model = model_of(NET)
    graph, twice = Graph(model), np.tile(np.arange(8), 2)
    for key, i, axes in (("h", 1, (0,)), ("h", 2, (0,)), ("j", 1, (0, 1)), ("j", 2, (0,))):
        value = graph.value((key, i))
        for axis in axes:
            value = value.take(twice, axis)
        graph.set_constant((key, i), value)
    return graph.export()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with all files that the commands read."""
    for place in ("benchmarks/models", "benchmarks/data"):
        (tmp_path / place).mkdir(parents=True)
    model, images = network(), np.random.default_rng(0).standard_normal((96, 1, 12, 12)).astype(np.float32)
    labels = onnxprune.runtime.sessions.open_session(model).run({"x": images})[0].argmax(1)
    for name in ("model.onnx", "benchmarks/models/resnet20_fmnist.onnx"):
        onnx.save(model, tmp_path / name)
    for name in ("samples.npz", "benchmarks/data/calib.npz"):
        np.savez(tmp_path / name, x=images)
    for name in ("labelled.npz", "benchmarks/data/test.npz"):
        np.savez(tmp_path / name, x=images, labels=labels)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    onnx.save(model, tmp_path / "retrained.onnx")
    quick = {"calibration": images, "allocation": "uniform", "repair": "statistics"}
    result = onnxprune.prune(str(tmp_path / "model.onnx"), 0.3, **quick)
    for name in ("model.pruned.onnx", "resnet20_fmnist.pruned.onnx"):
        result.save(tmp_path / name)
    (tmp_path / "result.json").write_text(result.to_json())
    result.plan.save(tmp_path / "plan.json")
    (tmp_path / "recipe.py").write_text(
        next(code for tags, code in test_docs.blocks("training", "python") if "file=" in tags)
    )
    monkeypatch.chdir(tmp_path)


def shown(page):
    """The commands of a page that are run here, in order."""
    lines = [line for _, code in test_docs.blocks(page, "sh") for line in code.replace("\\\n", "").splitlines()]
    if page == "README":
        lines = [re.sub(r"\b(MODEL|SAMPLES|ORIGINAL|PRUNED|A\.onnx|B\.onnx|FILE\.py|RESULT\.json|TOPIC)(?![\w.])",
                        lambda m: NAMES[m[0]], row[0].strip("`")) for row in test_docs.rows("README", "## From the command line")
                 if row[0].startswith("`onnxprune") and not any(part in row[0] for part in ELSEWHERE)]  # fmt: skip
    for line in lines:
        if not any(part in line for part in ELSEWHERE):
            for long, short in SHORTER.items():
                line = line.replace(long, short)
            yield line.partition(" > ")[0]


@pytest.mark.parametrize("page", [page for page in test_docs.PAGES if list(shown(page))])
def test_commands_run(page, folder, capsys):
    pytest.importorskip("torch" if page in ("README", "training") else "onnx")
    for line in shown(page):
        first, *words = shlex.split(line)
        assert first == "onnxprune", line
        make = cli.COMMANDS[words[0]][0] if words[0] in cli.COMMANDS else prune.parser
        more = {flag for action in make()._actions for flag in action.option_strings} & {"--force", "--no-bench"}
        assert cli.main([*words, *sorted(more)]) == 0, (line, capsys.readouterr().err)


def test_what_is_left_out_is_there():
    everything = "\n".join(test_docs.PAGES.values())
    assert [part for part in ELSEWHERE if part not in everything] == []
