"""Targets on real models, and what --max-drop measures: a function, labelled samples, or agreement."""

import sys

import numpy as np
import pytest

from onnxprune import api
from onnxprune.errors import BudgetError, PruneError, UsageError
from onnxprune.measure.metric import agreement, open_metric
from onnxprune.runtime.ports import input_specs
from tests.channels import surgery

TEXT = "(float[N,4] x) => (float[N,3] y) <float[4,3] w> { y = MatMul(x, w) }"


@pytest.fixture(scope="module")
def model():
    return surgery.model_of(TEXT)


@pytest.fixture(scope="module")
def samples(model):
    x = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    return x, surgery.run(model, {"x": x})[0].argmax(1)


@pytest.mark.parametrize("name", ["labels", "label", "y"])
def test_top1_of_labelled_samples(model, samples, tmp_path, name):
    x, classes = samples
    wrong = classes.copy()
    wrong[:5] = (wrong[:5] + 1) % 3
    path = tmp_path / "labelled.npz"
    np.savez(path, x=x, **{name: wrong})
    assert open_metric(str(path), input_specs(model))(model) == 75.0


def test_agreement_of_a_model_with_itself_and_with_another(model, samples):
    x, _ = samples
    metric = agreement(model, lambda: iter([{"x": x}]), threads=1)
    assert metric(model) == 100.0
    assert metric(surgery.model_of(TEXT, seed=9)) < 100.0


def test_a_function_of_a_path_and_its_neighbours_in_two_folders(model, tmp_path):
    nodes = len(model.graph.node)
    for folder, value in (("a", 7), ("b", 70)):
        (tmp_path / folder / "pack").mkdir(parents=True)
        (tmp_path / folder / "neighbour.py").write_text(f"VALUE = {value}")
        (tmp_path / folder / "pack" / "more.py").write_text(f"VALUE = {value}")
        (tmp_path / folder / "own.py").write_text(
            "import onnx\ndef score(path):\n    from neighbour import VALUE\n    from pack.more import VALUE as more\n"
            "    return VALUE + more + len(onnx.load(path).graph.node)"
        )
    metrics = [open_metric(f"{tmp_path}/{folder}/own.py:score", input_specs(model)) for folder in "ab"]
    assert [metric(model) for metric in metrics * 2] == [14 + nodes, 140 + nodes] * 2
    assert not {"neighbour", "pack", "pack.more"} & set(sys.modules)


@pytest.mark.parametrize(
    "body, words",
    [
        ("return None", "not a number"),
        ("return float('nan')", "returned nan"),
        ("raise KeyError('k')", "raised KeyError"),
    ],
)
def test_a_function_that_gives_no_number(model, tmp_path, body, words):
    (tmp_path / "own.py").write_text(f"def score(path):\n    {body}")
    metric = open_metric(f"{tmp_path}/own.py:score", input_specs(model))
    with pytest.raises(UsageError, match=words) as error:
        metric(model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"x": np.zeros((3, 4), np.float32)}, "no whole numbers under labels"),
        ({"x": np.zeros((3, 4), np.float32), "labels": np.zeros(3)}, "no whole numbers"),
        ({"x": np.zeros((3, 4), np.float32), "labels": np.zeros(2, int)}, "3 samples but 2 labels"),
    ],
)
def test_labelled_samples_that_are_none(model, tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(PruneError, match=words):
        open_metric(str(tmp_path / "a.npz"), input_specs(model))


@pytest.mark.parametrize("spec", ["nothing", "missing.npz", "missing.py:f"])
def test_a_spec_that_is_none(model, spec):
    with pytest.raises(PruneError):
        open_metric(spec, input_specs(model))


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

    result = api.reach(subject, api.Settings(), api.Target("max_drop", 40), metric=metric)
    assert 0.2 <= result.macs_removed <= 0.4
    assert result.plan.settings["target"] == {"max_drop": 40} and "before" in result.notes[0]


def test_a_file_of_that_size():
    x = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    subject = api.open_model(surgery.model_of(TEXT_CNN), calibration=x)
    megabytes = 0.7 * subject.cost().bytes / 1e6
    result = api.reach(subject, api.Settings(), api.Target("size_mb", megabytes))
    assert 0.75 * megabytes <= result.after.bytes / 1e6 <= megabytes


def test_a_speed_up_that_is_measured():
    text = """(float[N,3,24,24] x) => (float[N,5] y)
        <float[64,3,3,3] a, float[64,64,3,3] b, float[64,64,3,3] d, float[5,64] c>
        { h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) i = Conv<pads=[1,1,1,1]>(r, b) s = Relu(i)
          j = Conv<pads=[1,1,1,1]>(s, d) t = Relu(j) p = GlobalAveragePool(t) f = Flatten(p)
          y = Gemm<transB=1>(f, c) }"""
    x = np.random.default_rng(0).standard_normal((32, 3, 24, 24)).astype(np.float32)
    subject = api.open_model(surgery.model_of(text), calibration=x)
    result = api.reach(subject, api.Settings(best_effort=True), api.Target("speedup", 1.6))
    comparison = result.latency.comparisons[0]
    assert comparison.verdict == "faster" and 1.45 <= comparison.speedup <= 2.2
    assert result.plan.settings["of"] == "latency" and result.surgery.exact


def test_what_the_original_has_already():
    subject = api.open_model(surgery.model_of(TEXT_CNN), calibration=np.zeros((8, 3, 8, 8), np.float32))
    with pytest.raises(UsageError, match="already"):
        api.reach(subject, api.Settings(), api.Target("size_mb", 5))
    with pytest.raises(UsageError, match="already"):
        api.reach(subject, api.Settings(), api.Target("latency_ms", 1000))


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
        api.reach(subject, api.Settings(), target)
    result = api.reach(subject, api.Settings(best_effort=True), target)
    assert result.after.bytes < 0.8 * result.before.bytes and "misses it" in result.warnings[-1]
