"""Settings are said once: Python's keywords, docs, checks and answers to wrong names come from the fields."""

import inspect
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest

import onnxprune
from onnxprune.errors import UsageError
from onnxprune.pipeline.asked import limits_of
from onnxprune.pipeline.goals import Ratio
from onnxprune.pipeline.options import Option
from onnxprune.pipeline.settings import OPTIONS, Settings, flag_of, help_of
from onnxprune.pipeline.training_settings import TrainSettings

BESIDES = ("model", "ratio", "target", "lossless", "metric", "calibration", "input_shapes", "samples", "image", "bench",
           "report_samples", "trusted", "gates", "progress")  # fmt: skip
"""What `prune` takes that is no setting: the model, the goal, the samples, whom to trust, and how the run is followed."""


def test_prune_has_a_keyword_for_every_setting_and_says_what_it_is():
    given = dict(inspect.signature(onnxprune.prune).parameters)
    assert tuple(given)[: len(BESIDES)] == BESIDES
    own = {name: p for name, p in given.items() if name not in BESIDES}
    assert {n: (p.annotation, p.default) for n, p in own.items()} == {
        f.name: (f.type, f.default) for f in fields(Settings)
    }
    assert list(own) == [f.name for f in fields(Settings)]
    assert all(p.kind is p.KEYWORD_ONLY for p in own.values())


def test_prune_hands_every_setting_on(monkeypatch):
    other = {
        "of": "params", "criterion": "taylor", "allocation": "uniform", "round_to": 3, "min_width": 2, "include": "i",
        "exclude": "e", "methods": ("channels",), "keep_block": "k", "best_effort": True, "prune_statistics": True,
        "input_value": {"rate": (1.0,)}, "batch_axis": {"state": 1},
        "repair": "distill", "epochs": 7, "minutes": 0.5, "augment": ("flip",), "recipe": "r.py",
        "quantize": "int8", "precision": None, "batch": 5,
        "providers": ("cuda",), "provider_options": {"cuda": {"a": 1}}, "device": "d.json", "refine": ("r.json",),
        "metadata": False,
        "output_kind": {"y": "boxes,axis=1"}, "weight": {"y": 2.0}, "threads": 2, "memory": 1 << 30,
        "backend": "dask", "address": "tcp://a:1", "store": "s",
        "seed": 9,
    }  # fmt: skip
    assert other.keys() == {f.name for f in fields(Settings)}
    monkeypatch.setattr("onnxprune.pipeline.settings.find_spec", lambda name: True)
    monkeypatch.setattr("onnxprune.decide.criteria.find_spec", lambda name: True)
    monkeypatch.setattr("onnxprune.elsewhere.backends.find_spec", lambda name: True)
    monkeypatch.setattr("onnxprune.api.open_model", lambda model, **how: how["prune_statistics"])
    monkeypatch.setattr("onnxprune.api.plans.plan_and_apply", lambda *given, **how: given)
    monkeypatch.setattr("onnxprune.api._called", lambda result, given: result)
    monkeypatch.setattr("onnxprune.api._warn", lambda result: None)
    assert onnxprune.prune("m", 0.3, **other) == (True, Ratio(0.3), Settings(**other))


def test_every_field_is_an_option_and_in_the_docs():
    assert [f.name for f in fields(Settings)] == list(OPTIONS)
    for name, option in OPTIONS.items():
        assert isinstance(option, Option) and help_of(name) and flag_of(name).startswith("--")
        assert f"        {name}: {option.doc}." in Settings.__doc__


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: onnxprune.prune("m.onnx", ratoi=0.5), r"unknown keyword of prune\(\) 'ratoi'; did you mean ratio"),
        (lambda: Settings(criterium="l1"), r"unknown keyword of Settings\(\) 'criterium'; did you mean criterion"),
        (lambda: replace(Settings(), seeds=1), "did you mean seed"),
        (lambda: TrainSettings("gsm", step=1), r"unknown keyword of TrainSettings\(\) 'step'; did you mean steps"),
        (lambda: Settings(criterion="simlarity"), "unknown criterion 'simlarity'; did you mean similarity"),
        (lambda: Settings(repair="refitt"), "unknown repair 'refitt'; did you mean refit"),
        (lambda: Settings(allocation="globl"), "unknown allocation 'globl'; did you mean global"),
        (lambda: Settings(methods=("chanels",)), "unknown method 'chanels'; did you mean channels"),
        (lambda: Settings(of="param"), "unknown cost 'param'; did you mean params"),
        (lambda: Settings(providers=("cudo",)), "unknown provider 'cudo'; did you mean cuda"),
    ],
)
def test_a_name_that_is_nearly_right_is_told(call, words):
    with pytest.raises(UsageError, match=words):
        call()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"round_to": 0}, "at least 1"),
        ({"round_to": "many"}, "at least 1"),
        ({"min_width": 0}, "at least 1"),
        ({"min_width": 1.5}, "at least 1, not 1.5"),
        ({"threads": 0}, "number of threads"),
        ({"threads": "2"}, "number of threads"),
        ({"seed": -1}, "seed"),
        ({"batch": 0}, "the batch is at least 1, not 0"),
        ({"epochs": 0}, "at least one epoch"),
        ({"minutes": 0.0}, "more than 0 minutes"),
        ({"minutes": float("nan")}, "more than 0 minutes"),
        ({"include": "("}, "not a regular expression"),
        ({"keep_block": "("}, "not a regular expression"),
        ({"methods": ()}, "no method given"),
        ({"methods": ("3c", "channels")}, "stands alone"),
        ({"minutes": 5}, "give --repair distill"),
        ({"augment": ("flip",)}, "give --repair distill"),
        ({"recipe": "r.py"}, "give --repair distill"),
        ({"recipe": "r.py", "criterion": "l1", "repair": "refit"}, "give --repair distill"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        Settings(**settings)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("methods", "channels,rank", ("channels", "rank")), ("methods", "3c", ("3c",)), ("providers", "cpu", ("cpu",)),
        ("memory", "4GB", 4 * 10**9), ("exclude", "head", "head"), ("round_to", "auto", "auto"),
    ],
)  # fmt: skip
def test_a_text_is_read_as_on_the_command_line(name, text, value):
    assert getattr(Settings(**{name: text}), name) == value


def test_numbers_of_numpy_are_numbers():
    assert Settings(seed=np.int64(3), threads=np.int32(2)).seed == 3


def test_settings_of_repairs_that_were_not_asked_for_are_not_remembered():
    assert not {"epochs", "augment", "recipe"} & Settings().decided().keys()
    assert Settings(epochs=7).decided()["epochs"] == 7
    assert Settings().decided({"of": "macs"})["of"] == "macs" and "of" not in Settings().decided()
    assert Settings(prune_statistics=True).decided()["prune_statistics"] is True


def test_no_channel_may_go_where_channels_are_no_method():
    assert limits_of(Settings(methods=("blocks",))).include == r"(?!)"
    assert limits_of(Settings(include="a", round_to=2)) == limits_of(Settings(include="a", round_to=2, methods=("3c",)))


def test_neither_goals_nor_settings_wait_for_numpy():
    script = """import sys
from onnxprune import Lossless, Ratio, Settings, Target
Target("speedup", 2).serve(Settings(repair="refit", methods=("channels",), threads=2))
assert not {"numpy", "onnx", "torch", "scipy", "onnxruntime"} & set(sys.modules)"""
    subprocess.run([sys.executable, "-c", script], check=True)
