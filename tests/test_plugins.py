"""What a user adds is one entry each, and runs end to end: a criterion, a repair, an option of its own.

Operators: `tests/graph/test_new_operator.py`; targets: `tests/pipeline/test_goals.py`; training methods:
`tests/train/test_methods.py`; formats of samples: `tests/samples/test_sources.py`.
"""

import json
from dataclasses import dataclass, fields

import numpy as np
import onnx
import pytest

from onnxprune import api
from onnxprune.cli import main
from onnxprune.commands.prune import parser
from onnxprune.decide.criteria import CRITERIA, criterion
from onnxprune.graph.model import Graph
from onnxprune.pipeline.options import at_least, option
from onnxprune.pipeline.settings import MAKING, REPAIR, Settings
from onnxprune.rewrite.repair.table import REPAIRS, repair
from tests.channels import surgery

NET = """(float[N,3,8,8] x) => (float[N,5] y) <float[16,3,3,3] a, float[16,16,3,3] b, float[5,16] c>
    { h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) i = Conv<pads=[1,1,1,1]>(r, b) s = Relu(i)
      p = GlobalAveragePool(s) f = Flatten(p) y = Gemm<transB=1>(f, c) }"""


@pytest.fixture
def line(tmp_path):
    """The command line but for what is tried."""
    onnx.save(surgery.model_of(NET), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32))
    return [str(tmp_path / "m.onnx"), "--calib", str(tmp_path / "x.npy"), "-o", str(tmp_path / "o.onnx"), "--force"]


@pytest.fixture
def backwards():
    @criterion("backwards", help="the first channels go first", needs="moments")
    def rising(group, evidence):
        assert evidence.moments
        return np.arange(group.width, dtype=float)

    yield
    del CRITERIA["backwards"]


@pytest.fixture
def scaled():
    """A repair that multiplies the last layer's weight by a factor, an option of its own."""

    @repair("scaled", help="the last layer times a factor", needs=("samples",), options=("factor",))
    def scale(task):
        assert len(task.batches)
        task.pruned.set_constant(("y", 1), task.options["factor"] * task.pruned.value(("y", 1)))
        return task.pruned

    yield
    del REPAIRS["scaled"]


@dataclass(frozen=True)
class Own(Settings):
    factor: int = option(3, "F", "a whole factor", "by what the last layer is multiplied", read=int,
                         check=at_least(1, "the factor is at least 1"), part=REPAIR, commands=MAKING)  # fmt: skip


def test_a_criterion_by_name(backwards, line, capsys):
    assert main([*line, "--ratio", "0.5", "--allocation", "uniform", "--criterion", "backwards", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["settings"]["criterion"] == "backwards"
    plan = [c["removed"] for c in result["cuts"] if (c["node"], c["axis"]) == ("h", 0)]
    assert plan and plan[0] == list(range(len(plan[0])))
    assert main(["help", "criteria"]) == 0 and "the first channels go first" in capsys.readouterr().out


def test_a_repair_with_an_option(scaled, line, capsys, monkeypatch, tmp_path):
    options = {f.name: f.metadata["option"] for f in fields(Own)}
    monkeypatch.setattr("onnxprune.pipeline.settings.OPTIONS", options)
    monkeypatch.setattr("onnxprune.commands.options.OPTIONS", options)
    monkeypatch.setattr("onnxprune.commands.prune.Settings", Own)
    line = [*line, "--allocation", "uniform"]  # else the repair has a say in the plan
    assert main([*line, "--repair", "none", "--allow-destroyed", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    before = Graph(onnx.load(tmp_path / "o.onnx")).value(("y", 1))
    assert main([*line, "--repair", "scaled", "--factor", "7", "--allow-destroyed", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["settings"]["repair"] == "scaled" and result["settings"]["factor"] == 7
    assert "factor" not in plain["settings"]
    np.testing.assert_array_equal(Graph(onnx.load(tmp_path / "o.onnx")).value(("y", 1)), 7 * before)
    assert "--factor F" in parser().format_help() and "a whole factor" in parser().format_help()
    assert main([*line, "--repair", "scaled", "--factor", "0"]) == 2
    assert "the factor is at least 1, not 0" in capsys.readouterr().err
    assert main(["help", "repairs"]) == 0 and "the last layer times a factor" in capsys.readouterr().out


def test_a_repair_from_python(scaled, line):
    subject = api.open_model(line[0], calibration=line[2])
    plan = api.make_plan(subject, 0.5, Settings(repair="none"))
    plain, mended = (api.apply_plan(subject, plan, s).model for s in (Settings(repair="none"), Own(repair="scaled")))
    np.testing.assert_array_equal(Graph(mended).value(("y", 1)), 3 * Graph(plain).value(("y", 1)))
