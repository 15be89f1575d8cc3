"""Distillation: the pruned network comes closer to the original on samples that it has not seen; and its wiring."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnxprune
from onnxprune.cli import main

MODEL = "benchmarks/models/resnet20_fmnist.onnx"
CALIB = "benchmarks/data/calib.npz"


def test_without_torch_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr("onnxprune.pipeline.settings.find_spec", lambda name: None)
    assert main([MODEL, "--calib", CALIB, "--repair", "distill", "--dry-run"]) == 2
    assert "pip install torch" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--augment", "flip"], ["--recipe", "x.py"]])
def test_training_options_go_with_training(option, capsys):
    assert main([MODEL, "--calib", CALIB, "--dry-run", *option]) == 2
    assert "give --repair distill" in capsys.readouterr().err


torch = pytest.importorskip("torch")

from onnxprune import api  # noqa: E402
from onnxprune.channels import Analysed, find_channels  # noqa: E402
from onnxprune.errors import UnsupportedError, UsageError  # noqa: E402
from onnxprune.graph.model import Graph  # noqa: E402
from onnxprune.graph.shapes import observe  # noqa: E402
from onnxprune.pipeline.repairs import repair_for  # noqa: E402
from onnxprune.pipeline.settings import Settings  # noqa: E402
from onnxprune.plan import Factorize, PrunePlan, Resample  # noqa: E402
from onnxprune.runtime.sessions import open_session  # noqa: E402
from onnxprune.train.compared import block_ends  # noqa: E402
from onnxprune.train.distill import Distillation, distill  # noqa: E402
from onnxprune.train.loop import Training, steps_within  # noqa: E402
from onnxprune.train.samples import Samples, augmenter  # noqa: E402
from tests.channels import surgery  # noqa: E402
from tests.pipeline.test_which_samples import HALF, roles  # noqa: E402
from tests.rewrite.steps import cut  # noqa: E402
from tests.synthetic import Net, head, residual  # noqa: E402


def small():
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8, 3))
    for _ in range(2):
        x = residual(net, x)
    model = net.model(head(net, x), size=8)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    return model


def batches(count, seed=0):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((32, 3, 8, 8), np.float32)} for _ in range(count)]


def halved():
    """(the original, what stays, the cut model)"""
    graph, feeds = Graph(small()), {"x": np.zeros((2, 3, 8, 8), np.float32)}
    channels = find_channels(graph, observe(graph, feeds))
    alive = channels.alive({g.name: range(0, g.width, 2) for g in channels.groups})
    return Analysed(graph, channels, feeds), alive, cut(graph, channels, alive)


def distance(original, model):
    held = batches(2, seed=9)
    want, got = ([open_session(m, threads=1).run(b)[0] for b in held] for m in (original, model))
    return np.square(np.concatenate(want) - np.concatenate(got)).mean()


POOLED = """(float[N,3,12,12] x) => (float[N,5] y)
  <float[8,3,3,3] w0, float[8] b0, float[16,8,3,3] w1, float[16] b1, float[5,16] w2> {
  a = Conv<pads=[1,1,1,1]>(x, w0, b0) r = Relu(a) b = Conv<pads=[1,1,1,1], strides=[2,2]>(r, w1, b1) s = Relu(b)
  g = GlobalAveragePool(s) k = Flatten(g) y = Gemm<transB=1>(k, w2) }"""
HOW = Distillation(training=Training(steps=1, lr=1e-2, warmup=5, check_every=10), epochs=8, batch=32)


@pytest.mark.parametrize("how", [HOW, replace(HOW, batch_norm="frozen"), replace(HOW, augment=("flip", "shift=1"))])
def test_closer_on_unseen_samples(how):
    net, alive, pruned = halved()
    out = distill(net, Graph(pruned), alive, batches(8), settings=how).export()
    assert distance(net.model, out) < 0.5 * distance(net.model, pruned)
    assert [n.op_type for n in out.graph.node] == [n.op_type for n in pruned.graph.node]


def test_same_seed_same_bytes():
    net, alive, pruned = halved()
    how = replace(HOW, epochs=1, augment=("mixup",))
    first, second = (distill(net, Graph(pruned), alive, batches(4), settings=how).export() for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()


def test_labels_from_a_recipe(tmp_path):
    Path(tmp_path, "recipe.py").write_text(
        "import numpy as np\n"
        "def batches():\n    yield np.zeros((4, 3, 8, 8), np.float32), 7.0\n"
        "def loss(outputs, labels):\n    return sum((v - labels).square().mean() for v in outputs.values())\n"
    )
    net, alive, pruned = halved()
    out = {}
    for name, recipe in (("with", str(tmp_path / "recipe.py")), ("without", None)):
        model = distill(net, Graph(pruned), alive, batches(4), settings=replace(HOW, recipe=recipe)).export()
        out[name] = np.square(
            open_session(model, threads=1).run({"x": np.zeros((1, 3, 8, 8), np.float32)})[0] - 7
        ).mean()
    assert out["with"] < 0.95 * out["without"]


def test_block_ends_are_what_everything_passes_through():
    graph = Graph(small())
    ends = block_ends(graph)
    assert ends[-1] == next(n.input[0] for n in graph.nodes.values() if n.op_type == "GlobalAveragePool")
    assert all(graph.nodes[graph.producer[t]].op_type == "Relu" for t in ends) and len(ends) == 3


@pytest.mark.parametrize("kept", ["trained", "start"])
def test_the_pipeline_refits_and_then_distills(kept, monkeypatch):
    """What training reaches is kept where the judges are sure, else the refit as it would have been without it."""
    monkeypatch.setattr("onnxprune.train.loop.beats", lambda after, before, little: kept == "trained")
    results = {}
    for repair in ("refit", "distill"):
        results[repair] = onnxprune.prune(
            small(), 0.5, calibration=batches(3), repair=repair, allocation="uniform", round_to=1, epochs=1, threads=1
        )
    assert results["distill"].repair == "distill"
    assert results["distill"].plan == results["refit"].plan
    for result in results.values():  # they tell how they were made
        del result.model.metadata_props[:]
    files = [results[repair].model.SerializeToString() for repair in ("distill", "refit")]
    assert (files[0] == files[1]) == (kept == "start")
    [told] = results["distill"].training
    assert (told.step, told.kept, told.samples, told.steps) == ("distill", kept, 12, 9) and not results[
        "refit"
    ].training
    words = "improved held-out KL" if kept == "trained" else "kept the start: 9 steps did not help"
    assert (
        words in results["distill"].summary()
        and words in json.loads(results["distill"].to_json())["training"][0]["words"]
    )


def test_a_network_that_sees_a_smaller_image_learns_from_the_whole_one(monkeypatch):
    """The original has more positions in its maps: their means are what is compared."""
    monkeypatch.setattr("onnxprune.train.loop.beats", lambda after, before, little: True)
    rng = np.random.default_rng(0)
    x = np.repeat(np.repeat(rng.standard_normal((448, 3, 4, 4)), 3, 2), 3, 3).astype(np.float32)
    subject = onnxprune.open_model(surgery.model_of(POOLED), calibration=x[:384])
    plan = PrunePlan(subject.digest, (Resample("x", 2, (12, 12), (8, 8)),))
    far = []
    for how in (Settings(), Settings(repair="distill", epochs=30, augment=("none",))):
        result = api.apply_plan(subject, plan, how)
        want, got = (open_session(m, threads=1).run({"x": x[384:]})[0] for m in (subject.model, result.model))
        p, q = (torch.log_softmax(torch.from_numpy(y), 1) for y in (want, got))
        far.append(float((p.exp() * (p - q)).sum(1).mean()))
    assert far[1] < 0.8 * far[0]
    assert [told.kept for told in result.training] == ["trained"]


def test_layers_made_of_two_are_trained_too(monkeypatch):
    """The pairs are there before the training, and it moves both halves."""
    monkeypatch.setattr("onnxprune.train.loop.beats", lambda after, before, little: True)
    subject = api.open_model(small(), calibration=batches(3))
    layer = [n for n in subject.graph.nodes.values() if n.op_type == "Conv"][2]
    [key] = [k for k, n in subject.graph.nodes.items() if n is layer]
    plan = PrunePlan(subject.digest, (Factorize(key, "channel", 3),), seed=0)
    refit, trained = (
        {
            t.name: t.raw_data
            for t in api.apply_plan(subject, plan, Settings(repair=repair, epochs=2, threads=1)).model.graph.initializer
        }
        for repair in ("refit", "distill")
    )
    made = refit.keys() - {t.name for t in small().graph.initializer}
    assert refit.keys() == trained.keys() and len(made) >= 2
    assert all(refit[name] != trained[name] for name in made)


# ---- samples -------------------------------------------------------------------------------------------------


def test_every_epoch_has_every_sample_once_and_ranks_share_a_batch():
    samples = Samples([{"x": np.arange(12).reshape(12, 1)}], 4)
    epoch = [samples.batch(step, seed=1)["x"] for step in range(3)]
    assert sorted(np.concatenate(epoch).ravel()) == list(range(12))
    assert not np.array_equal(epoch[0], samples.batch(3, seed=1)["x"])
    parts = [samples.batch(0, 1, rank, 2)["x"] for rank in (0, 1)]
    assert sorted(np.concatenate(parts).ravel()) == sorted(epoch[0].ravel())


def test_samples_of_several_sizes_keep_their_batches():
    samples = Samples([{"x": np.zeros((2, 1, n))} for n in (3, 5)], 4)
    assert sorted(samples.batch(k, 0)["x"].shape[2] for k in range(2)) == [3, 5]


@pytest.mark.parametrize(
    "spec", [["flip"], ["shift=1"], ["mixup"], ["cutmix"], ["crop"], ["flip", "shift=2", "mixup=0.3"]]
)
def test_augmentations_change_images_by_the_step_alone(spec):
    feeds = {"x": torch.randn(4, 2, 6, 6), "n": torch.zeros(4, 1)}
    augment = augmenter(spec, 0)
    one, again, other = augment(feeds, 1)["x"], augment(feeds, 1)["x"], augment(feeds, 2)["x"]
    assert torch.equal(one, again) and not torch.equal(one, other) and one.shape == feeds["x"].shape
    assert torch.equal(augmenter([], 0)(feeds, 1)["x"], feeds["x"])


def test_a_shift_moves_by_whole_pixels():
    x = torch.arange(36.0).reshape(1, 1, 6, 6)
    moved = augmenter(["shift=1"], 0)({"x": x}, 3)["x"]
    fits = [
        torch.equal(moved[0, 0, 1:5, 1:5], x[0, 0, 1 + dy : 5 + dy, 1 + dx : 5 + dx])
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ]
    assert sum(fits) == 1


def test_cutmix_takes_rectangles_of_the_share_asked_for():
    x = torch.arange(512.0).reshape(512, 1, 1, 1).expand(512, 1, 40, 20).contiguous()
    foreign = augmenter(["cutmix=0.5"], 0)({"x": x}, 3)["x"][:, 0] != x[:, 0]
    rows, columns = foreign.any(2), foreign.any(1)
    assert torch.equal(foreign, rows[:, :, None] & columns[:, None, :])  # rectangles
    assert all((line.int().diff() != 0).sum() <= 2 for line in (*rows, *columns))  # in one piece
    assert abs(float(foreign.float().mean()) - 0.25) < 0.02 and foreign.float().mean((1, 2)).max() < 0.56


def test_an_unknown_augmentation_is_named():
    with pytest.raises(UsageError, match="'turn'"):
        augmenter(["turn"], 0)


def of_integers(body: str):
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]> g (float[N,3,8,8] x) => (float[] y)
        <float s = {{0.125}}, int8 z = {{0}}> {{ {body} }}"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w", (16, 3, 3, 3)), ("u", (5, 16, 1, 1))):
        model.graph.initializer.append(numpy_helper.from_array(rng.integers(-9, 9, shape).astype(np.int8), name))
    return model, rng.standard_normal((16, 3, 8, 8)).astype(np.float32)


def test_operators_of_integers_are_trained_as_what_they_stand_for():
    model, x = of_integers(
        """q = QuantizeLinear(x, s, z) h = QLinearConv(q, s, z, w, s, z, s, z)
        k = QLinearConv(h, s, z, u, s, z, s, z) y = DequantizeLinear(k, s, z)"""
    )
    assert onnxprune.prune(model, 0.5, calibration=x, repair="distill", epochs=2).training


def test_without_weights_in_floats_there_is_nothing_to_train():
    with pytest.raises(UnsupportedError, match="nothing to train"):
        repair_for("distill", sampled=True, lossless=False, has_weights=lambda: False)


def test_integers_that_stand_for_floats_are_trained_as_these():
    model, x = of_integers(
        "a = DequantizeLinear(w, s, z) c = DequantizeLinear(u, s, z) h = Conv(x, a) r = Relu(h) y = Conv(r, c)"
    )
    result = onnxprune.prune(model, 0.5, calibration=x, repair="distill", epochs=2)
    assert result.training
    kinds = {t.name: t.data_type for t in result.model.graph.initializer}
    assert kinds["w"] == kinds["u"] == onnx.TensorProto.INT8


def test_it_learns_from_what_was_not_held_back():
    found, expected = roles("distill", False, HALF)
    assert found == expected


@pytest.mark.parametrize("seconds, least, most", [(0.0, 1, 1), (100.0, 300, 500)], ids=["no time", "time"])
def test_minutes_are_steps(seconds, least, most, monkeypatch):
    """A step takes 0.2 seconds and a look 0.4, on a clock that only they move."""
    now = [0.0]

    def passes(took):
        now[0] += took
        return torch.zeros(()), {}

    monkeypatch.setattr("onnxprune.train.loop.time.monotonic", lambda: now[0])
    monkeypatch.setattr("onnxprune.train.loop._differentiated", lambda *given: passes(0.2))
    training = Training(steps=1, lr=None)
    assert least <= steps_within(seconds, torch.nn.Linear(2, 2), None, training, lambda: passes(0.4)[0]) <= most


def test_a_run_of_so_many_minutes_learns_and_leaves_nothing_of_the_timing():
    net, alive, pruned = halved()
    told = []
    how = Distillation(training=Training(steps=1, lr=1e-2, warmup=5), minutes=0.03, batch=32)
    out = distill(net, Graph(pruned), alive, batches(4), settings=how, tell=told.append).export()
    assert told[0].steps > 4 and distance(net.model, out) < 0.8 * distance(net.model, pruned)
