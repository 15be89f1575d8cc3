"""Gradient criteria: a channel that the outputs do not depend on is worth nothing, and labels are heard."""

import numpy as np
import pytest

import onnxprune
from onnxprune.cli import main
from onnxprune.decide.criteria import CRITERIA

GRADIENT = ("taylor", "fisher", "obd")
MODEL = "benchmarks/models/resnet20_fmnist.onnx"


@pytest.mark.parametrize("criterion", GRADIENT)
def test_without_torch_the_extra_is_named(criterion, monkeypatch, capsys):
    monkeypatch.setattr("onnxprune.decide.criteria.find_spec", lambda name: None)
    assert main([MODEL, "--criterion", criterion, "--dry-run"]) == 2
    assert "pip install torch" in capsys.readouterr().err


pytest.importorskip("torch")

from onnx import numpy_helper  # noqa: E402

from onnxprune.channels import Analysed  # noqa: E402
from onnxprune.decide.evidence import gather  # noqa: E402
from onnxprune.runtime.ports import InputSpec  # noqa: E402
from onnxprune.train.gradients import channel_gradients  # noqa: E402
from onnxprune.train.recipe import Recipe  # noqa: E402
from tests.synthetic import Net, head  # noqa: E402

BATCHES = [{"x": np.random.default_rng(k).standard_normal((16, 3, 6, 6), np.float32)} for k in range(3)]


def ablated():
    """Two convolutions; the second reads channel 5 of the first with weight 0, and channel 2 with large weights."""
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8, 3))
    model = net.model(head(net, net.op("Relu", net.conv(x, 8, 8, 3))), size=6)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    tensor = model.graph.initializer[2]
    w = numpy_helper.to_array(tensor).copy()
    assert w.shape == (8, 8, 3, 3)
    w[:, 5], w[:, 2] = 0, 4 * w[:, 2]
    tensor.CopyFrom(numpy_helper.from_array(w, tensor.name))
    return model


def scored(model, criterion, **options):
    """group -> scores, and the groups."""
    subject = onnxprune.open_model(model)
    net = Analysed(subject.graph, subject.channels, subject.feeds)
    found = channel_gradients(net, BATCHES, **options)
    evidence = gather(net, None, CRITERIA[criterion].needs - {"gradients"}, gradients=found)
    return {g.name: CRITERIA[criterion].function(g, evidence) for g in net.channels.groups}, net.channels.groups


def test_the_table_is_the_list():
    assert tuple(name for name, entry in CRITERIA.items() if "gradients" in entry.needs) == GRADIENT


@pytest.mark.parametrize("criterion", GRADIENT)
def test_what_nobody_reads_is_worth_nothing(criterion):
    scores, groups = scored(ablated(), criterion)
    first = scores[groups[0].name]
    assert first.shape == (8,) and first[5] == 0 and (np.delete(first, 5) > 0).all()
    assert first[2] > np.median(first)


def test_a_recipe_s_loss_is_differentiated(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "import numpy as np\n"
        "def batches():\n    yield np.ones((4, 3, 6, 6), np.float32), None\n"
        "def loss(outputs, labels):\n    return next(iter(outputs.values())).sum() * 0\n"
    )
    scores, _ = scored(
        ablated(), "taylor", labelled=Recipe(str(recipe), [InputSpec("x", np.dtype("float32"), ("N", 3, 6, 6))])
    )
    assert scores and all((s == 0).all() for s in scores.values())


@pytest.mark.parametrize("allocation", ["uniform", "adaptive"])
def test_the_pipeline_takes_them(allocation):
    result = onnxprune.prune(
        ablated(), 0.3, calibration=BATCHES, criterion="taylor", allocation=allocation, round_to=1, threads=1
    )
    assert 5 not in result.plan.keep()[result.plan.narrowed()[0].group]
    assert result.plan.settings["criterion"] == "taylor"
