"""The table of training methods: what is asked for by name is checked, told and run; a method of one's own is an entry."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.cli import main
from onnxprune.commands.train import parser
from onnxprune.errors import UsageError
from onnxprune.pipeline.training_methods import METHODS, Option, method_named, training_method
from onnxprune.pipeline.training_settings import TrainSettings, read_options


@pytest.fixture(autouse=True)
def with_torch(monkeypatch):
    monkeypatch.setattr("onnxprune.pipeline.training_settings.find_spec", lambda name: True)


def test_help_comes_from_the_table_and_waits_for_nothing():
    heavy = "{'numpy', 'onnx', 'torch', 'scipy', 'onnxruntime'}"
    script = f"""import sys
from onnxprune.commands.train import parser
parser()
assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"""
    subprocess.run([sys.executable, "-c", script], check=True)
    text = " ".join(parser().format_help().split())  # as wide as the terminal, whatever that is
    for method in METHODS.values():
        assert f" {method.name} " in text and method.help in text
        assert all(f"{name}={o.spelled} {o.help}" in text for name, o in method.options.items())


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("csdg", {}, "unknown method 'csdg'.* did you mean '?csgd"),
        ("csgd", {"strenght": 2.0}, "unknown option of csgd 'strenght'.* did you mean '?strength"),
        ("csgd", {"strength": -0.1}, "csgd: strength is a number from 0 up, not -0.1"),
        ("csgd", {"strength": float("nan")}, "strength is a number from 0 up, not nan"),
        ("csgd", {"strength": "2"}, "strength is a number from 0 up, not '2'"),
        ("gsm", {"strength": 2.0}, "gsm has no options, so no 'strength'"),
        ("trp", {"every": 0}, "trp: every is a whole number from 1 up, not 0"),
        ("trp", {"every": 2.0}, "every is a whole number from 1 up, not 2.0"),
        ("trp", {"every": True}, "every is a whole number from 1 up, not True"),
        ("trp", {"nuclear": -1}, "nuclear is a number from 0 up, not -1"),
        ("trp", {"project": 1}, "project is true or false, not 1"),
        ("tune", {"criterium": "l1"}, "unknown option of tune 'criterium'.* did you mean '?criterion"),
        ("tune", {"criterion": "l7"}, "unknown criterion 'l7'"),
        ("tune", {"ratio": 0.2}, "unknown option of tune 'ratio'"),  # said already, beside the options
    ],
)
def test_options_are_checked(method, options, words):
    with pytest.raises(UsageError, match=words):
        TrainSettings(method, options=options)


@pytest.mark.parametrize(
    ("method", "given", "read"),
    [
        ("csgd", ["strength=2"], {"strength": 2.0}),
        ("trp", ["every=5", "nuclear=1e-3", "project=false"], {"every": 5, "nuclear": 1e-3, "project": False}),
        ("tune", ["allocation=uniform", "round-to=8"], {"allocation": "uniform", "round_to": 8}),
        ("tune", ["round_to=auto", "methods=channels,blocks"], {"round_to": "auto", "methods": ("channels", "blocks")}),
        ("tune", ["prune_statistics=true"], {"prune_statistics": True}),
    ],
)
def test_options_are_read_from_text(method, given, read):
    assert read_options(method, given) == read
    TrainSettings(method, options=read)


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        ("csgd", "strength", "is not NAME=VALUE"),
        ("csgd", "strength=much", "strength is a number from 0 up, not 'much'"),
        ("trp", "every=0", "every is a whole number from 1 up, not 0"),
        ("trp", "project=maybe", "project is true or false, not 'maybe'"),
        ("tune", "min-width=wide", "min_width is of type int"),
        ("tune", "prune_statistics=no", "prune_statistics is of type bool"),
        ("tune", "provider_options=x", "provider_options is of type Mapping"),
        ("tune", "widht=2", "unknown option of tune 'widht'"),
    ],
)
def test_text_that_spells_no_option_is_refused(method, given, words):
    with pytest.raises(UsageError, match=words):
        read_options(method, [given])


def test_the_method_has_a_rate_unless_another_is_given():
    assert TrainSettings("gsm").rate == METHODS["gsm"].rate == 5e-3
    assert TrainSettings("gsm", lr=0.1).rate == 0.1


def test_what_is_cut_first_needs_samples():
    assert {m.name for m in METHODS.values() if m.cuts_first} == {"gates", "tune"}
    assert {m.name for m in METHODS.values() if m.needs_samples} == {"gates", "tune", "trp"}


def test_an_entry_is_made_once_and_says_what_all_its_options_are():
    with pytest.raises(ValueError, match="a method 'gsm' already"):
        training_method("gsm", "again", rate=1.0)(lambda task: None)
    with pytest.raises(ValueError, match=r"options \['a'\], but the function takes \['b'\]"):
        training_method("other", "wrong", rate=1.0, options={"a": Option("")})(lambda task, *, b=1: None)
    assert "other" not in METHODS


torch = pytest.importorskip("torch")

from onnxprune.pipeline.training import train_and_prune  # noqa: E402
from onnxprune.pipeline.training_task import Prepared, TrainingTask  # noqa: E402
from onnxprune.train.gsm import channel_masks  # noqa: E402
from onnxprune.train.loop import train  # noqa: E402
from onnxprune.train.network import Network  # noqa: E402
from tests.train.test_distill import batches, small  # noqa: E402
from tests.train.test_training import RECIPE, change  # noqa: E402


@pytest.fixture
def fading():
    """A user's own method, in the table for the time of a test."""

    @training_method(
        "fading", "what the plan removes fades away", rate=0.01,
        options={"left": Option("what is left of it after each step", least=0)},
    )  # fmt: skip
    def fade_and_cut(task: TrainingTask, *, left: float = 0.5) -> Prepared:
        keep, groups = task.decide().keep(), task.net.channels.groups
        alive = {g.name: np.isin(np.arange(g.width), keep.get(g.name, range(g.width))) for g in groups}
        network = Network(task.net.graph, batch_norm="batch").to(task.training.device)
        masks = channel_masks(groups, alive, network)

        @torch.no_grad()
        def fade(step):
            for name, mask in masks.items():
                p = getattr(network, name)
                p.copy_(torch.where(mask, p, left * p))

        train(
            network, lambda step: (task.loss(network, step), {}), task.training,
            after_step=fade, progress=task.report(),
        )  # fmt: skip
        model = network.to_onnx()
        return Prepared(model, model, task.keeping(model, keep), f"{left:g} left a step")

    yield "fading"
    del METHODS["fading"]


def test_a_method_of_one_s_own_from_python(fading):
    subject, told = onnxprune.open_model(small(), calibration=batches(4)), []
    how = TrainSettings("fading", ratio=0.4, steps=60, batch=32, options={"left": 0.6})
    result = train_and_prune(subject, how, lambda *args: told.append(args))
    moved, size = change(result)
    assert result.after.macs <= 0.6 * result.before.macs
    assert moved <= 1e-5 * size and not set(result.warnings) - set(subject.doubts)  # what was cut had faded
    assert result.notes[0] == "fading, 60 steps: 0.6 left a step" and ("train", 60, 60) in told
    assert result.plan.settings["trained"] == "fading"
    kept = train_and_prune(subject, TrainSettings("fading", ratio=0.4, steps=2, batch=32, options={"left": 1.0}))
    assert "give more --steps" in kept.warnings[-1]  # nothing has faded


def test_a_method_of_one_s_own_from_the_command_line(fading, tmp_path, capsys):
    onnx.save(small(), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.concatenate([b["x"] for b in batches(4)]))
    line = ["train", str(tmp_path / "m.onnx"), "--method", "fading", "--calib", str(tmp_path / "x.npy"),
            "--steps", "40", "--json"]  # fmt: skip
    assert main([*line, "--method-option", "left=0.4"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["trained"] == "fading"
    assert "fading  what the plan removes fades away (rate 0.01)\n          left=0.5" in parser().format_help()
    assert main([*line, "--method-option", "lefd=0.4"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_it_is_gone_afterwards():
    with pytest.raises(UsageError, match="unknown method 'fading'"):
        method_named("fading")


@pytest.mark.parametrize("method", ["csgd", "tune"])
def test_nothing_is_trained_on_what_is_held_out(method, monkeypatch):
    """Every sample is one number over and over: those that teach are others than those that fidelity is told of."""
    x = np.repeat(np.arange(64, dtype=np.float32), 3 * 8 * 8).reshape(64, 3, 8, 8)
    subject = onnxprune.open_model(small(), calibration=x)
    held, seen = subject.calibration.split(seed=3)[1].first(64)["x"][:, 0, 0, 0], set()

    def noted(feeds, device="cpu"):
        seen.update(feeds["x"][:, 0, 0, 0].tolist())
        return {"x": torch.from_numpy(feeds["x"])}

    monkeypatch.setattr("onnxprune.train.distill.as_feeds", noted)
    train_and_prune(subject, TrainSettings(method, ratio=0.3, steps=20, batch=16, seed=3))
    assert len(held) == 16 and len(seen) == 48 and seen.isdisjoint(held.tolist())


def test_ranks_are_decided_on_the_recipe_s_samples_where_there_are_no_others(tmp_path):
    from tests.train.test_training import wide

    (tmp_path / "recipe.py").write_text(RECIPE)
    how = TrainSettings("trp", ratio=0.4, steps=12, recipe=str(tmp_path / "recipe.py"))
    result = train_and_prune(onnxprune.open_model(wide()), how)
    assert result.after.macs <= 0.6 * result.before.macs and result.plan.factorized()
