"""A ratio is not called reached where nobody can tell: what is not counted is named, timed, and refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from onnxprune import api
from onnxprune.cli import main
from onnxprune.errors import BudgetError, UnsupportedError
from onnxprune.graph import operators
from onnxprune.pipeline import opened
from onnxprune.timing.share import time_share
from tests.channels.surgery import feeds_of, model_of
from tests.graph.test_new_operator import entered

TEXT = """(float[N,3,8,8] x) => (float[] y) <float[16,3,3,3] a, float[16,16,3,3] b, float[8,16,1,1] c>
    { h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) i = Conv<pads=[1,1,1,1]>(r, b) s = Relu(i) k = Conv(s, c)
      y = com.microsoft.Inverse(k) }"""
KNOWN = TEXT.replace("com.microsoft.Inverse", "Relu")


@pytest.fixture
def share(monkeypatch):
    """share(0.3): what the nodes that nobody can count take."""
    calls = []

    def use(found):
        monkeypatch.setattr(opened, "time_share", lambda model, feeds, keys: calls.append(keys) or found)
        return calls

    return use


@pytest.mark.parametrize("found", [0.0, 0.019, 0.021, 0.9, None])
def test_a_ratio_of_macs_is_refused_where_too_much_is_not_counted(share, found):
    share(found)
    if found is not None and found <= 0.02:
        result = api.prune(model_of(TEXT), 0.3, round_to=1)
        assert not any("counted" in w for w in result.warnings)
    else:
        with pytest.raises(BudgetError, match=r"reached: .* 1 node \(com.microsoft.Inverse\) with .* --best-effort"):
            api.prune(model_of(TEXT), 0.3, round_to=1)
        result = api.prune(model_of(TEXT), 0.3, round_to=1, best_effort=True)
        (said,) = (w for w in result.warnings if "counted" in w)
        assert said.startswith("the share of MACs is of what can be counted, and 1 node (com.microsoft.Inverse)")
        assert (f"{found:.1%} of the time" if found else "could not be measured") in said
    assert result.before.uncounted_time == found and "Inverse" in result.summary()
    (kind,) = result.to_dict()["before"]["uncounted"]
    assert kind == {"op": "com.microsoft.Inverse", "nodes": 1, "why": "it is not known to onnxprune"}
    assert "com.microsoft.Inverse" in result.to_html()


@pytest.mark.parametrize(
    ("refused", "call"),
    [
        (True, lambda s: api.make_plan(s, 0.3)),
        (True, lambda s: list(api.sweep(s, [0.3, 0.5]))),
        (True, lambda s: api.plan_and_apply(s, api.Ratio(0.3))),
        (False, lambda s: api.make_plan(s, 0.3, api.Settings(of="params"))),
        (False, lambda s: api.make_plan(s, 0.3, api.Settings(of="channels"))),
        (False, lambda s: api.make_plan(s, 0.3, api.Settings(best_effort=True))),
        (False, lambda s: api.reach(s, api.Target("size_mb", 0.01), api.Settings(round_to=1))),
    ],
)
def test_who_asks_for_a_ratio_of_macs_is_refused(share, refused, call):
    share(0.5)
    subject = api.open_model(model_of(TEXT))
    if refused:
        with pytest.raises(BudgetError, match="counted"):
            call(subject)
    else:
        call(subject)


def test_ordinary_models_are_not_timed(share):
    calls = share(0.5)
    result = api.prune(model_of(KNOWN), 0.3, round_to=1)
    assert not calls and result.before.uncounted == () and result.before.uncounted_time is None


def test_a_network_of_which_nothing_is_counted_is_not_cut_blindly(share):
    share(0.9)
    with entered(operators.TABLE):
        operators.TABLE["", "Conv"] = replace(operators.named("Conv"), macs=None, uncounted="just so")
        with pytest.raises(UnsupportedError, match=r"no multiply-accumulates .* 3 nodes \(Conv\) .* --of params"):
            api.prune(model_of(KNOWN), 0.5, best_effort=True)


LONG = """(float[8,64,64] x) => (float[] y) <float[64,64] w> { a = com.microsoft.Inverse(x) b = MatMul(x, w) y = Add(a, b) }"""
BODY = """(float[64,8] x, bool c) => (float[] y) <float[8,8] w>
    { z = MatMul(x, w) y = If(c) <then_branch = t () => (float[64,8] a) { a = MatMul(z, w) },
                                  else_branch = e () => (float[64,8] b) { b = MatMul(z, w) }> }"""


@pytest.mark.parametrize(
    ("text", "keys", "low", "high"),
    [
        (LONG, {"a"}, 0.3, 1.0),
        (LONG, {"b"}, 0.0, 0.7),
        (LONG, {"a", "b", "y"}, 0.6, 1.0),
        (LONG, set(), 0.0, 0.0),
        (BODY, {"a"}, 0.001, 0.9),
        (BODY, {"b"}, 0.0, 0.0),
    ],
)
def test_the_time_that_nodes_take(text, keys, low, high):
    model = model_of(text)
    found = time_share(model, feeds_of(model), keys)
    assert found is not None and low <= found <= high


def test_time_that_cannot_be_measured():
    model = model_of(LONG)
    assert time_share(model, {"x": np.zeros((3, 3), np.float32)}, {"a"}) is None


FIGURES = ("MACs", "parameters", "file size")


def test_commands_say_the_same(capsys, tmp_path):
    """One cost, four commands: the columns of `plan`, `apply` and `verify`, and the line of `inspect`."""
    model, plan, pruned = "benchmarks/models/resnet20_fmnist.onnx", tmp_path / "p.json", tmp_path / "o.onnx"

    def said(*argv):
        assert main([*map(str, argv)]) == 0
        return capsys.readouterr().out

    def column(text, k):
        rows = [line for line in text.splitlines() if line.startswith(FIGURES)]
        return [[cell.strip() for cell in line[13:].split("  ") if cell.strip()][k] for line in rows]

    planned = said("plan", model, "--ratio", "0.5", "-o", plan)
    applied = said("apply", model, plan, "-o", pruned)
    verified = said("verify", model, pruned, "--plan", plan)
    for k in (0, 1):
        assert column(planned, k) == column(applied, k)[:2] and column(applied, k) == column(verified, k)
    for path, k in ((model, 0), (pruned, 1)):
        macs, params, size = column(applied, k)
        assert f"{macs} MACs, {params} parameters, {size}\n" in said("inspect", path)
    content = json.loads(said("verify", model, pruned, "--plan", plan, "--json"))
    written = json.loads(said("inspect", pruned, "--json"))
    assert content["after"]["macs"] == written["macs"] and content["after"]["params"] == written["params"]
