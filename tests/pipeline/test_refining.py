"""What is predicted for a device, corrected by what was measured there: the curve, whole runs, and files that say nothing."""

import json
import math

import numpy as np
import pytest

import onnxprune
from onnxprune import api
from onnxprune.cli import main
from onnxprune.errors import UsageError
from onnxprune.pipeline import profiling
from onnxprune.pipeline.refining import Correction
from onnxprune.pipeline.settings import Settings
from onnxprune.timing import profile_device
from tests.channels import surgery
from tests.timing.test_devices import Formula
from tests.timing.test_node_times import TEXT


@pytest.mark.parametrize(
    ("points", "predicted", "expected"),
    [
        ((), 2.0, 2.0),
        (((2.0, 2.0),), 3.0, 3.0),
        (((4.0, 2.0),), 4.0, 2.0),
        (((4.0, 2.0),), 16.0, 4.0),
        (((4.0, 2.0),), 2.0, math.sqrt(2)),
        (((2.0, 1.8), (4.0, 3.0)), 2.0, 1.8),
        (((2.0, 1.8), (4.0, 3.0)), 4.0, 3.0),
        (((2.0, 1.8),), 0.9, 0.9),
    ],
)
def test_a_correction_goes_through_what_was_measured(points, predicted, expected):
    assert Correction(points)(predicted) == pytest.approx(expected)


@pytest.fixture(scope="module")
def subject():
    samples = np.random.default_rng(0).standard_normal((48, 3, 24, 24)).astype(np.float32)
    return api.open_model(surgery.model_of(TEXT), calibration=samples)


@pytest.fixture(scope="module")
def device(subject, tmp_path_factory):
    path = tmp_path_factory.mktemp("device") / "device.json"
    work = profiling.questions(subject, Settings(threads=2), "net.onnx")
    profile_device.measure(work, path, 2, runner=Formula)
    return str(path)


def said(model, speedup=1.2, **change):
    """What `bench --json` says of a model."""
    own = {p.key.removeprefix("onnxprune."): p.value for p in model.metadata_props}
    found = {
        "kind": "onnxprune bench", "batch": 1, "threads": 2, "providers": {"a": ["CPUExecutionProvider"]},
        "comparisons": [{"baseline": "a", "candidate": "b", "speedup": speedup}],
        "said": {"a": {}, "b": {"predicted": own.get("predicted"), "model_digest": own["model_digest"]}},
    }  # fmt: skip
    return {**found, **change}


def written(tmp_path, content):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_what_was_measured_there_corrects_the_next_plan(subject, device, tmp_path):
    target, settings = onnxprune.Target("speedup", 1.5), Settings(device=device, threads=1)
    first = api.reach(subject, target, settings)
    predicted = first.plan.origin.predicted
    assert predicted >= 1.5 and f"{predicted:.4f}" in {p.value for p in first.model.metadata_props}
    bench = written(tmp_path, said(first.model, 1.2))
    again = api.reach(subject, target, Settings(device=device, threads=1, refine=(bench,)))
    factor = math.log(1.2) / math.log(predicted)
    assert again.plan.origin.predicted**factor >= 1.5 and again.after.macs < first.after.macs
    assert any(f"{predicted:.2f}x predicted was 1.20x" in note for note in again.notes)
    better = api.reach(
        subject, target, Settings(device=device, threads=1, refine=(written(tmp_path, said(first.model, 2)),))
    )
    assert better.after.macs >= first.after.macs


def test_bench_hands_on_what_a_file_says_of_itself(subject, device, tmp_path):
    result = api.reach(subject, onnxprune.Target("speedup", 1.5), Settings(device=device, threads=1))
    timed = onnxprune.bench([subject.model, result.model], names=["a", "b"], rounds=10, trusted=True).to_json()
    assert timed["said"] == {
        "a": {}, "b": {"predicted": f"{result.plan.origin.predicted:.4f}", "model_digest": subject.digest}
    }  # fmt: skip


BAD = {
    "another model": (lambda made: said(made, said={"a": {}, "b": {"predicted": "2", "model_digest": "x"}}), "no file"),
    "nothing predicted": (lambda made: said(made, said={"a": {}, "b": {}}), "no file"),
    "another batch": (lambda made: said(made, batch=8), "measured otherwise"),
    "other threads": (lambda made: said(made, threads=1), "measured otherwise"),
    "another provider": (lambda made: said(made, providers={"a": ["CUDAExecutionProvider"]}), "measured otherwise"),
    "an older bench": (lambda made: {k: v for k, v in said(made).items() if k != "said"}, "no outcome"),
    "another kind": (lambda made: said(made, kind="onnxprune profile"), "no file"),
    "no mapping": (lambda made: [1], "no outcome"),
    "no number": (lambda made: said(made, speedup="fast"), "no outcome"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_tells_nothing_of_this_device_is_refused(subject, device, tmp_path, name):
    made, words = BAD[name]
    result = api.reach(subject, onnxprune.Target("speedup", 1.3), Settings(device=device, threads=1))
    with pytest.raises(UsageError, match=words):
        api.reach(
            subject,
            onnxprune.Target("speedup", 1.3),
            Settings(device=device, threads=1, refine=(written(tmp_path, made(result.model)),)),
        )


@pytest.mark.parametrize(
    ("goal", "words"), [(["--speedup", "2"], "give --device"), (["--ratio", "0.5"], "give --device"),
                        (["--size-mb", "1"], "give --speedup"), (["--lossless"], "give --device")], ids=str
)  # fmt: skip
def test_refine_needs_a_prediction(goal, words, capsys, tmp_path):
    output = str(tmp_path / "out.onnx")
    assert main(["benchmarks/models/resnet20_fmnist.onnx", *goal, "--refine", "b.json", "-o", output]) == 2
    assert words in capsys.readouterr().err
