"""Training is on trial: what it started from is kept, unless what it reached is better by more than chance."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.cli import main
from onnxprune.measure.chance import beats, noise

torch = pytest.importorskip("torch")

from onnxprune.graph.model import Graph  # noqa: E402
from onnxprune.pipeline.training import train_and_prune  # noqa: E402
from onnxprune.pipeline.training_settings import TrainSettings  # noqa: E402
from onnxprune.runtime.ports import InputSpec  # noqa: E402
from onnxprune.train.compared import Compared  # noqa: E402
from onnxprune.train.distill import Distillation, distill  # noqa: E402
from onnxprune.train.judge import Judge  # noqa: E402
from onnxprune.train.loop import Training, find_rate, rate, train  # noqa: E402
from onnxprune.train.network import Network  # noqa: E402
from onnxprune.train.recipe import Recipe  # noqa: E402
from onnxprune.train.samples import Samples, harmless, is_image  # noqa: E402
from tests.train.test_distill import HOW, batches, halved, small  # noqa: E402

# ---- what is chance --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "before", "better"),
    [
        ([0.1], [0.9], False),  # one sample tells nothing
        ([0.1, 0.1], [0.9, 0.9], True),
        ([0.9, 0.9], [0.1, 0.1], False),
        ([1.0, 1.0], [1.0, 1.0], False),
        ([0.96, 0.96, 0.96], [1.0, 1.0, 1.0], False),  # sure, and too little to matter
        ([0.0, 1.5, 0.2, 1.4], [1.0, 1.0, 1.0, 1.0], False),  # much, and not sure
        ([math.nan, 0.1], [0.9, 0.9], False),
        ([[0.5, 0.7], [0.4, 0.8]], [[1.0, 1.0], [0.9, 1.1]], True),  # in two views
        ([[0.5, 1.5], [0.6, 1.4]], [[1.0, 1.0], [1.1, 1.1]], False),  # what one view wins, the other loses
        ([[1.1, 0.1], [1.1, 0.1]], [[1.0, 1.0], [1.0, 1.0]], False),  # worse on the samples as they came
    ],
)
def test_better_is_more_than_chance(after, before, better):
    assert beats(np.array(after), np.array(before)) == better


def test_the_noise_is_that_of_pairs():
    rng = np.random.default_rng(0)
    before = rng.exponential(size=200)
    after = 0.9 * before + 0.001 * rng.standard_normal(200)
    assert noise(after, before, 0.0) < 0.02 < before.std() / np.sqrt(200)


def test_views_of_a_sample_are_no_samples_of_their_own():
    rng = np.random.default_rng(0)
    before = rng.exponential(size=(200, 1))
    after = 0.9 * before + 0.1 * rng.standard_normal((200, 1))
    assert noise(np.repeat(after, 4, 1), np.repeat(before, 4, 1), 0.0) == pytest.approx(noise(after, before, 0.0))


# ---- the loop --------------------------------------------------------------------------------------------------

FAST = Training(steps=40, lr=0.05, bf16=False)


def trained(training, wanted, judged, losses=lambda step: 1.0):
    """A weight that starts at 0, is drawn to `wanted` and judged by four samples that want `judged`. Returns (the
    weight at the end, what the loop says)."""
    net = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.zero_()

    def figures():
        return (net.weight.detach().reshape(1) - judged).square().double().repeat(4)

    found = train(
        net, lambda step: ((net.weight - wanted).square().sum() * losses(step), {}), training,
        check=figures, start=figures(),
    )  # fmt: skip
    return float(net.weight.detach()), found


def test_what_does_worse_leaves_no_trace():
    weight, found = trained(FAST, 1.0, -1.0)
    assert weight == 0.0 and found["kept"] == "start"


def test_what_does_better_is_kept_as_it_was_at_its_best():
    weight, found = trained(FAST, 1.0, 0.3)
    assert found["kept"] == "trained" and abs(weight - 0.3) < 0.1 and found["best_step"] < 40


@pytest.mark.parametrize("wanted", [1.0, 0.3])
def test_numbers_that_are_none_are_left_behind(wanted):
    weight, found = trained(FAST, wanted, wanted, lambda step: math.nan if step == 7 else 1.0)
    assert found["kept"] == "trained" and 0.05 < weight <= 1.1 * wanted
    weight, found = trained(FAST, wanted, wanted, lambda step: math.nan)
    assert found["kept"] == "start" and weight == 0.0 and found["merits"] is None


@pytest.mark.parametrize("steps", [1, 2, 8, 100, 2000])
def test_the_schedule_fits_the_number_of_steps(steps):
    how = Training(steps=steps, lr=1.0)
    rates = [rate(step, how) for step in range(steps)]
    assert max(rates) > 0.9 and (steps < 8 or rates[-1] < 0.2) and how.rising <= max(1, steps / 10)
    looks = sum(how.looks_at(done) for done in range(1, steps + 1))
    assert min(steps, 10) <= looks <= 12 and how.looks_at(steps)


@pytest.mark.parametrize(("highest", "found"), [(1e-3, 1e-3), (300.0, 300 / 64), (6.4, 6.4 / 8)])
def test_the_rate_is_found_by_trials_that_leave_no_trace(highest, found):
    """Of SGD on a parabola: too low a one hardly moves, and a very high one flies off; where the next higher one does, the
    one between is tried."""
    how = replace(FAST, lr=None, highest=highest, optimizer="sgd", clip=None)
    weight, said = trained(how, 1.0, 1.0)
    again, _ = trained(replace(how, lr=said["lr"]), 1.0, 1.0)
    assert said["lr"] == pytest.approx(found) and weight == again


def test_a_trial_is_a_run_in_small():
    """What changes in the course of a run changes in its trials too."""
    net, seen = torch.nn.Linear(1, 1, bias=False), []

    def loss(step):
        seen.append(step)
        return net.weight.square().sum(), {}

    how = replace(FAST, steps=160, lr=None, highest=1e-3)
    assert find_rate(net, loss, how, lambda: net.weight.detach().square().reshape(1), None) == (1e-3, 2 / 16)
    assert len(seen) % 10 == 0 and seen[:10] == list(range(0, 160, 16)) == seen[-10:]


def test_short_trials_do_not_settle_for_the_lowest_rate():
    """What moves least is the least disturbed: of rates that chance alone tells apart the highest is taken."""
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(net.weight)
    wanted = torch.tensor([1.0, -1.0, 1.0, -1.0])  # by the mean it were best to stay

    def figures():
        return (net.weight.detach().reshape(1) - wanted).square().double()

    said = train(net, lambda step: ((net.weight - 1.0).square().sum(), {}), replace(FAST, lr=None, highest=0.05),
                 check=figures, start=figures())  # fmt: skip
    assert said["lr"] == 0.05 and said["kept"] == "start" and float(net.weight) == 0.0


def rising(x):
    """Left to right."""
    return x[..., -1].sum((1, 2)) - x[..., 0].sum((1, 2))


def whole(x):
    return x.sum((1, 2, 3))


def pixel_by_pixel(x):
    """No two alike."""
    return (x * torch.randn(x.shape[2:], generator=torch.Generator().manual_seed(1)).sign()).sum((1, 2, 3))


HARMLESS = [
    (rising, 32, 2, ("shift=4", "cutmix")),
    (whole, 32, 2, ("flip", "shift=4", "cutmix")),
    (whole, 64, 2, ("flip", "crop=0.5", "cutmix")),
    (pixel_by_pixel, 32, 0, ()),
]


@pytest.mark.parametrize(("score", "side", "calm", "found"), HARMLESS)
def test_samples_vary_as_the_original_sees_no_difference(score, side, calm, found):
    rng = torch.Generator().manual_seed(0)
    light, slope = torch.randn(2, 64, 1, 1, 1, generator=rng)
    x = torch.randn(64, 1, side, side, generator=rng) + calm * (light + slope * torch.linspace(-1, 1, side))
    assert harmless(lambda x: (score(x) > 0).long(), x, 0) == found


@pytest.mark.parametrize(
    ("shape", "dtype", "found"),
    [((9, 3, 16, 16), "f", True), ((9, 1, 8, 40), "e", True), ((9, 16, 16, 3), "f", False), ((9, 3, 16, 16), "u1", False),
     ((9, 3, 16), "f", False), ((9, 2, 4, 4), "f", False)],
)  # fmt: skip
def test_what_an_image_is(shape, dtype, found):
    assert is_image(np.zeros(shape, dtype)) is found


@pytest.mark.parametrize("augment", [None, ("none",), ("flip",)])
def test_how_samples_vary_is_told(augment):
    net, alive, pruned = halved()
    told = []
    how = replace(HOW, epochs=1, augment=augment)
    distill(net, Graph(pruned), alive, batches(4), settings=how, tell=told.append)
    said = told[0].augment.split(",") if told[0].augment else []
    assert said[-1:] == {None: ["cutmix"], ("none",): [], ("flip",): ["flip"]}[augment]


# ---- distillation ------------------------------------------------------------------------------------------------


def test_the_outcome_does_not_depend_on_the_cores():
    net, alive, pruned = halved()
    how, before = replace(HOW, epochs=2, augment=("flip", "mixup"), batch=64), torch.get_num_threads()
    files = [
        distill(net, Graph(pruned), alive, batches(8), settings=how, threads=threads).export().SerializeToString()
        for threads in (1, 2, None)
    ]
    assert files[0] == files[1] == files[2] and torch.get_num_threads() == before


@pytest.mark.parametrize("augment", [(), ("flip", "mixup")])
def test_answers_that_are_kept_are_those_that_are_worked_out_anew(monkeypatch, augment):
    net, alive, pruned = halved()
    found, asked, goals = [], [], Compared.goals
    monkeypatch.setattr(Compared, "goals", lambda *given: asked.append(1) or goals(*given))
    for room in (1 << 28, 0):
        asked.append(0)
        monkeypatch.setattr("onnxprune.train.distill.ANSWERS", room)
        monkeypatch.setattr("onnxprune.numerics.on_disk.share_of_room", lambda room=room: room)
        how = replace(HOW, epochs=6, augment=augment)
        model = distill(net, Graph(pruned), alive, batches(4), settings=how).export()
        found.append({t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer})
    for name, value in found[0].items():
        np.testing.assert_allclose(value, found[1][name], atol=1e-5)
    first, second = "".join(map(str, asked)).split("0")[1:]
    assert 0 < len(first) < len(second) / 2


def test_a_rate_that_destroys_is_found_out():
    net, alive, pruned = halved()
    good = distill(net, Graph(pruned), alive, batches(8), settings=HOW).export()
    told = []
    how = replace(HOW, training=Training(steps=1, lr=1e3), epochs=2)
    out = distill(net, Graph(good), alive, batches(8), settings=how, tell=told.append).export()
    assert out.SerializeToString() == good.SerializeToString()
    assert told[0].kept == "start" and told[0].in_words().startswith("kept the start: 14 steps did not help (held-out")


def test_two_epochs_of_few_batches_do_not_destroy():
    """Of a network that is mended already there is little to gain and much to lose."""
    net, alive, pruned = halved()
    good = distill(net, Graph(pruned), alive, batches(8), settings=HOW)
    told = []
    distill(net, good, alive, batches(1, seed=5), settings=Distillation(epochs=2), tell=told.append)
    assert told[0].steps >= 2 and (told[0].kept == "start" or told[0].after < told[0].before)


@pytest.mark.parametrize(("augment", "views"), [((), 1), (("mixup",), 1), (("flip", "shift=1"), 4)])
def test_samples_are_judged_in_the_views_that_keep_them_apart(augment, views):
    net, _, pruned = halved()
    teacher, student = (Network(graph).eval() for graph in (net.graph, Graph(pruned)))
    by = Judge(teacher, Samples(batches(2)), {net.graph.outputs[0]: True}, torch.device("cpu"), augment)
    found = by(student)
    plain = Judge(teacher, Samples(batches(2)), {net.graph.outputs[0]: True}, torch.device("cpu"))(student)
    assert found.shape == (64, views) and torch.equal(found[:, :1], plain)
    assert views == 1 or (found[:, 1] - found[:, 2]).abs().max() > 0


@pytest.mark.parametrize(("scores", "as_good"), [(True, True), (False, False)])
def test_scores_that_are_only_spread_further_are_the_same(scores, as_good):
    """The order of classes is what it was, though the KL is another."""
    net, _, _ = halved()
    teacher, [output] = Network(net.graph).eval(), net.graph.outputs

    class Spread(torch.nn.Module):
        def forward(self, feeds, wanted):
            return {name: 2**0.5 * value for name, value in teacher(feeds, wanted).items()}

    found = Judge(teacher, Samples(batches(2)), {output: scores}, torch.device("cpu"))(Spread())
    assert (float(found.abs().max()) < 1e-6) == as_good


def test_too_few_samples_to_judge_by_are_said_so():
    net, alive, pruned = halved()
    told = []
    one = [{"x": batches(1)[0]["x"][:1]}]
    out = distill(net, Graph(pruned), alive, one, settings=HOW, tell=told.append).export()
    assert out.SerializeToString() == Graph(pruned).export().SerializeToString()
    assert told[0].in_words() == "kept the start: there are too few samples to judge training by; give at least sixteen"


@pytest.mark.parametrize(("count", "size"), [(20, 8), (54, 8), (288, 32), (4000, 64)])
def test_a_batch_suits_the_number_of_samples(count, size):
    samples = Samples([{"x": np.zeros((count, 1), np.float32)}])
    assert samples.size == size and samples.per_epoch >= 2
    most, few = samples.parted(0.125)
    assert most.count + few.count == count and few.count == round(0.125 * count)


def test_parts_hold_whole_units_and_no_sample_is_left_out():
    samples = Samples([{"x": np.arange(30.0).reshape(30, 1)}], 8, unit=3)
    assert samples.size == 6 and [len(p["x"]) for p in samples.all()] == [15, 15]
    most, few = samples.parted(0.2)
    assert (most.count, few.count) == (24, 6)
    assert sorted(np.concatenate([p["x"] for p in (*most.all(), *few.all())]).ravel()) == list(range(30))


# ---- recipes -----------------------------------------------------------------------------------------------------

HEAD = "import numpy as np\ndef loss(outputs, labels):\n    return sum(v.sum() for v in outputs.values())\n"
ROWS = "x = np.arange({n}, dtype=np.float32).reshape(-1, 1)\ndef batches():\n"
ORDERS = {
    "in order": "    order = np.arange(len(x))\n",
    "shuffled": "    import random\n    order = np.random.default_rng(random.randrange(99)).permutation(len(x))\n",
}
CUT = "    for i in range(0, len(x), 4):\n        yield x[order[i:i+4]], {labels}\n"


def recipe(tmp_path, text):
    path = Path(tmp_path, "recipe.py")
    path.write_text(HEAD + text)
    return Recipe(str(path), [InputSpec("x", np.dtype(np.float32), (None, 1))], hold=True)


@pytest.mark.parametrize("labels", ["order[i:i+4]", "list(order[i:i+4])", "'no labels'"])
@pytest.mark.parametrize("order", ORDERS)
def test_what_is_set_apart_is_not_trained_on(tmp_path, order, labels):
    found = recipe(tmp_path, ROWS.format(n=64) + ORDERS[order] + CUT.format(labels=labels))
    apart = {float(v) for x, _ in found.held for v in x["x"].ravel()}
    assert len(apart) == 8 and not found.shared
    drawn = set()
    for step in range(60):
        x, marks = found.batch(step)
        drawn |= set(x["x"].ravel().tolist())
        assert isinstance(marks, str) or [float(m) for m in marks] == x["x"].ravel().tolist()
    assert not drawn & apart and (labels == "'no labels'" or len(drawn) == 56)


def test_a_recipe_may_say_what_to_judge_by(tmp_path):
    more = "def held_out():\n    yield np.full((2, 1), 9.0, np.float32), [1, 2]\n"
    found = recipe(tmp_path, ROWS.format(n=16) + ORDERS["in order"] + CUT.format(labels="order[i:i+4]") + more)
    assert [x["x"].ravel().tolist() for x, _ in found.held] == [[9.0, 9.0]]
    assert sum(len(found.batch(step)[0]["x"]) for step in range(4)) == 16


def test_one_batch_serves_for_both(tmp_path):
    found = recipe(tmp_path, ROWS.format(n=4) + ORDERS["in order"] + CUT.format(labels="order[i:i+4]"))
    assert found.shared and len(found.batch(0)[0]["x"]) == 4


# ---- the methods -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["csgd", "gsm"])
@pytest.mark.parametrize("better", [True, False])
def test_training_for_a_cut_is_held_against_the_plan_without_it(method, better, monkeypatch):
    monkeypatch.setattr("onnxprune.pipeline.trial.beats", lambda after, before, little: better)
    subject = onnxprune.open_model(small(), calibration=batches(4))
    result = train_and_prune(subject, TrainSettings(method, ratio=0.4, steps=4, batch=32))
    [told] = result.training
    assert told.kept == ("trained" if better else "start") and told.step == method and result.macs_removed >= 0.4
    plain = onnxprune.apply_plan(subject, result.plan) if not better else None
    assert plain is None or plain.model.SerializeToString() == result.model.SerializeToString()
    assert better or "kept the plan of `prune`, refitted: 4 steps did not help" in told.in_words()
    assert result.plan.settings["trained"] == method


def test_what_was_kept_is_in_the_terminal_the_json_and_on_the_page(tmp_path, capsys):
    onnx.save(small(), tmp_path / "m.onnx")
    np.savez(tmp_path / "s.npz", x=np.concatenate([b["x"] for b in batches(2)]))
    line = [str(tmp_path / "m.onnx"), "--calib", str(tmp_path / "s.npz"), "--repair", "distill", "--epochs", "1",
            "--report", str(tmp_path / "r.html"), "--no-bench", "--force"]  # fmt: skip
    assert main(line) == 0
    assert "training     distill: " in capsys.readouterr().out
    assert re.search(r"training</\w+>\s*<\w+[^>]*>\s*distill: ", (tmp_path / "r.html").read_text())
    assert main([*line, "--json"]) == 0
    [told] = json.loads(capsys.readouterr().out)["training"]
    assert told["kept"] in ("start", "trained") and told["words"] and told["samples"] == 8
