"""Targets on real models."""

import numpy as np
import pytest

from onnxprune import api
from onnxprune.errors import BudgetError, UsageError
from onnxprune.pipeline.goals import Aim
from onnxprune.pipeline.reach import _Loop
from tests.channels import surgery

TEXT_CNN = """(float[N,3,8,8] x) => (float[N,5] y)
    <float[16,3,3,3] a, float[16,16,3,3] b, float[5,16] c>
    { h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) i = Conv<pads=[1,1,1,1]>(r, b) s = Relu(i)
      p = GlobalAveragePool(s) f = Flatten(p) y = Gemm<transB=1>(f, c) }"""


def test_the_largest_cut_that_keeps_the_metric():
    x = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    subject = api.open_model(surgery.model_of(TEXT_CNN), calibration=x)
    whole = subject.cost().macs

    def metric(model):
        return 100 * api.open_model(model).cost().macs / whole

    result = api.reach(subject, api.Target("max_drop", 40), metric=metric)
    assert 0.2 <= result.macs_removed <= 0.4
    assert result.plan.settings["target"] == {"max_drop": 40} and "before" in result.notes[0]


def test_a_file_of_that_size():
    x = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    subject = api.open_model(surgery.model_of(TEXT_CNN), calibration=x)
    megabytes = 0.7 * subject.cost().bytes / 1e6
    result = api.reach(subject, api.Target("size_mb", megabytes))
    assert 0.75 * megabytes <= result.after.bytes / 1e6 <= megabytes


def test_a_speed_up_that_is_measured():
    text = """(float[N,3,24,24] x) => (float[N,5] y)
        <float[64,3,3,3] a, float[64,64,3,3] b, float[64,64,3,3] d, float[5,64] c>
        { h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) i = Conv<pads=[1,1,1,1]>(r, b) s = Relu(i)
          j = Conv<pads=[1,1,1,1]>(s, d) t = Relu(j) p = GlobalAveragePool(t) f = Flatten(p)
          y = Gemm<transB=1>(f, c) }"""
    x = np.random.default_rng(0).standard_normal((32, 3, 24, 24)).astype(np.float32)
    subject = api.open_model(surgery.model_of(text), calibration=x)
    result = api.reach(subject, api.Target("speedup", 1.6), api.Settings(best_effort=True))
    comparison = result.latency.comparisons[0]
    assert comparison.verdict == "faster" and 1.45 <= comparison.speedup <= 2.2
    assert result.plan.settings["of"] == "latency" and result.surgery.exact


def test_a_target_that_the_finished_model_misses_is_aimed_at_with_the_plan_that_was_found(monkeypatch):
    """Near plans were looked for anew each time, at minutes each."""
    x = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    subject = api.open_model(surgery.model_of(TEXT_CNN), calibration=x)
    target, settings = api.Target("size_mb", 1), api.Settings(threads=1, round_to=1)
    loop = _Loop(subject, target, target.entry, settings, None)
    chosen, finished, real = [], [], loop._chosen

    def finish(plan, aim):
        finished.append(plan)
        return "the model", aim.goal * (1.01 if len(finished) == 3 else 0.9)

    monkeypatch.setattr(loop, "_chosen", lambda aim, goal: chosen.append(goal) or real(aim, goal))
    monkeypatch.setattr(loop, "_finish", finish)
    monkeypatch.setattr(type(loop.kind), "aim", lambda self, value, run: Aim(1.3, "", loop.planner.gain))
    assert loop.run() == "the model" and chosen == [1.3]
    gains = [loop.planner.gain(plan) for plan in finished]
    assert gains == sorted(set(gains)) and gains[0] >= 1.3


def test_what_the_original_has_already():
    subject = api.open_model(surgery.model_of(TEXT_CNN), calibration=np.zeros((8, 3, 8, 8), np.float32))
    with pytest.raises(UsageError, match="already"):
        api.reach(subject, api.Target("size_mb", 5))
    with pytest.raises(UsageError, match="already"):
        api.reach(subject, api.Target("latency_ms", 1000))


def test_ranks_of_half_precision_are_refused_with_the_reason():
    text = """(float[N,3,8,8] x) => (float[] y) <float16[16,3,3,3] w, float16[5,16,1,1] u>
        { k = Cast<to=10>(x) h = Conv<pads=[1,1,1,1]>(k, w) r = Relu(h) q = Conv(r, u) y = Cast<to=1>(q) }"""
    x = np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)
    with pytest.raises(BudgetError, match="float16 and quantized"):
        api.prune(surgery.model_of(text), 0.3, calibration=x, methods=("rank",))


def test_out_of_reach_says_how_far_it_goes_and_best_effort_goes_there():
    x = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    subject = api.open_model(surgery.model_of(TEXT_CNN), calibration=x)
    target = api.Target("size_mb", 0.05 * subject.cost().bytes / 1e6)
    with pytest.raises(BudgetError, match=r"out of reach: 0\.\d+ MB is the least that was measured"):
        api.reach(subject, target)
    result = api.reach(subject, target, api.Settings(best_effort=True))
    assert result.after.bytes < 0.8 * result.before.bytes and "misses it" in result.warnings[-1]
