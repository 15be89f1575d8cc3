"""What --max-drop measures: a function, labelled samples, or agreement."""

import sys

import numpy as np
import pytest

from onnxprune.errors import PruneError, UsageError
from onnxprune.graph.model import Graph
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
    metric = agreement(Graph(model), lambda: iter([{"x": x}]))
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


BOTH = """(float[N,4] x) => (float[N,3] p, float[N,4] z) <float[4,3] w, float[4,4] v>
    { y = MatMul(x, w) p = Softmax(y) z = MatMul(x, v) }"""


def test_what_a_drop_is_measured_in_is_that_of_the_part_that_decides(samples):
    x, _ = samples
    model, other = surgery.model_of(BOTH), surgery.model_of(BOTH)
    other.graph.initializer[1].raw_data = (-np.frombuffer(other.graph.initializer[1].raw_data, np.float32)).tobytes()
    metric = agreement(Graph(model), lambda: iter([{"x": x}]))
    assert metric.name == "agreement with the original in percent"
    assert metric(model) == metric(other) == 100 and metric.name.startswith("top-1 of p in percent")
    named = agreement(Graph(model), lambda: iter([{"x": x}]), of="r2")
    assert named(model) == 100 and named(other) == 0 and named.name == "R² of z in percent"


def test_a_figure_that_no_output_has(model, samples):
    x, _ = samples
    with pytest.raises(UsageError, match=r"no output has box_f1 \(y is class scores\); choose from top1, class_agr"):
        agreement(Graph(model), lambda: iter([{"x": x}]), of="box_f1")(model)


def test_a_figure_given_as_a_file(model):
    with pytest.raises(UsageError, match="did you mean box_f1, as in --max-drop box_f1=1"):
        open_metric("box_f", input_specs(model))
