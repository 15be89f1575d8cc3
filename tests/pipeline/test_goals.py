"""What a run aims at: what makes no sense is refused, and a target of one's own is one class."""

import json
import math

import numpy as np
import onnx
import pytest

from onnxprune import api
from onnxprune.cli import main
from onnxprune.commands import prune
from onnxprune.errors import BudgetError, UsageError
from onnxprune.measure.cost import count_params
from onnxprune.pipeline.goals import TARGETS, Aim, Gain, Lossless, Ratio, Target, goal_of, target
from onnxprune.pipeline.settings import Settings
from tests.channels import surgery

NET = """(float[N,3,8,8] x) => (float[N,5] y) <float[16,3,3,3] a, float[16,16,3,3] b, float[5,16] c>
    { h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) i = Conv<pads=[1,1,1,1]>(r, b) s = Relu(i)
      p = GlobalAveragePool(s) f = Flatten(p) y = Gemm<transB=1>(f, c) }"""


@pytest.mark.parametrize(
    "kind, value", [("speedup", 1.0), ("speedup", 0.5), ("speedup", math.nan), ("latency_ms", 0), ("size_mb", -1)]
)
def test_targets_that_are_none(kind, value):
    with pytest.raises(UsageError, match="--"):
        Target(kind, value)


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5, math.nan, "half"])
def test_ratios_that_are_none(share):
    with pytest.raises(UsageError, match="not between 0 and 1"):
        Ratio(share)


def test_a_target_that_is_nearly_right_is_told():
    with pytest.raises(UsageError, match="unknown target 'speed_up'; did you mean speedup"):
        Target("speed_up", 2)


@pytest.mark.parametrize(
    ("given", "goal"),
    [
        ((0.3,), Ratio(0.3)),
        ((0.5, None, True), Lossless()),
        ((0.5, Target("size_mb", 2)), Target("size_mb", 2)),
    ],
)
def test_one_goal_of_what_is_given(given, goal):
    assert goal_of(*given) == goal


def test_goals_that_exclude_one_another():
    with pytest.raises(UsageError, match="takes no target; drop --size-mb"):
        goal_of(0.5, Target("size_mb", 2), lossless=True)
    with pytest.raises(UsageError, match="drop --repair refit"):
        Lossless().serve(Settings(repair="refit"))
    assert Lossless().serve(Settings(repair="none")) == Settings(repair="none")
    with pytest.raises(UsageError, match="reached by measuring"):
        api.make_plan(api.open_model(surgery.model_of(NET)), Target("size_mb", 1))


@pytest.mark.parametrize(
    ("kind", "asked", "counts"),
    [("speedup", None, "latency"), ("latency_ms", None, "latency"), ("size_mb", None, "params"),
     ("max_drop", None, None), ("speedup", "macs", "macs")],
)  # fmt: skip
def test_what_counts_is_what_serves_the_target_unless_said_otherwise(kind, asked, counts):
    assert Target(kind, 2).serve(Settings(of=asked)).of == counts


@pytest.fixture
def kilo_params():
    """A user's own target, in the table for the time of a test: so many thousand parameters."""

    @target
    class KiloParams(Gain):
        name, metavar, help = "kilo_params", "K", "the model has K thousand parameters"
        of, unit, timed = "params", "thousand", False

        def aim(self, value, run):
            whole = count_params(run.subject.model)
            return Aim(whole / (1e3 * value), f"{whole / 1e3:g} thousand", lambda plan: whole / self.left(run, plan))

        def left(self, run, plan):
            return count_params(run.planner.unrepaired(plan))

        def reached(self, result):
            return result.before.params / result.after.params

    yield "kilo_params"
    del TARGETS["kilo_params"]


def test_a_target_of_one_s_own_from_python(kilo_params):
    x = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    subject = api.open_model(surgery.model_of(NET), calibration=x)
    result = api.reach(subject, Target(kilo_params, 1.5))
    assert 1000 <= result.after.params <= 1500 < result.before.params
    assert result.plan.settings["target"] == {"kilo_params": 1.5} and result.plan.settings["of"] == "params"
    with pytest.raises(BudgetError, match=r"--kilo-params 0\.01 is out of reach: 0\.\d+ thousand is the least"):
        api.reach(subject, Target(kilo_params, 0.01))
    with pytest.raises(UsageError, match=r"has 2\.8\d+ thousand already; nothing to do for --kilo-params 5"):
        api.reach(subject, Target(kilo_params, 5))


def test_a_target_of_one_s_own_from_the_command_line(kilo_params, tmp_path, capsys):
    onnx.save(surgery.model_of(NET), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32))
    line = [str(tmp_path / "m.onnx"), "--calib", str(tmp_path / "x.npy"), "--json"]
    assert main([*line, "--kilo-params", "1.5"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["target"] == {"kilo_params": 1.5}
    assert "--kilo-params K         instead: the model has K thousand parameters" in prune.parser().format_help()
    assert main([*line, "--kilo-params", "-1"]) == 2
    assert "--kilo-params -1 is not a positive number" in capsys.readouterr().err
