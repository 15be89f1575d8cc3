"""Ranks: a planted one is found, what a plan promises is what comes out, and what cannot be is refused."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune import api
from onnxprune.decide import ranks
from onnxprune.errors import UsageError
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.measure.cost import CostModel, PairCost, count_macs, count_params, switches
from onnxprune.pipeline.planner import Planner
from onnxprune.pipeline.preview import preview
from onnxprune.pipeline.settings import RANKLESS, USUAL
from onnxprune.plan import Factorize, KeepChannels, PrunePlan
from tests.channels import surgery
from tests.rewrite.steps import factorize

NET = """(float[N,3,10,10] x) => (float[N,5] y)
  <float[16,3,3,3] w0, float[24,16,3,3] w1, float[16] b0, float[24] b1, float[5,24] w2> {
  a = Conv<pads=[1,1,1,1]>(x, w0, b0) r = Relu(a)
  b = Conv<pads=[1,1,1,1]>(r, w1, b1) s = Relu(b)
  g = GlobalAveragePool(s) f = Flatten(g) y = Gemm<transB=1>(f, w2) }"""


@pytest.fixture(autouse=True)
def nothing_is_slower(monkeypatch, tmp_path):
    """A pair of a layer as small as these takes as long as the clock says: here it is by its cost alone."""
    for times in (ranks.PairTimes, ranks.PairModel):
        monkeypatch.setattr(times, "relative", lambda self, key, way: (0.4,) * (len(way) + 1 - (len(way) > 1)))
        monkeypatch.setattr(times, "share", 0.0)
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path))


def planted(kind, rank, seed=3):
    """The net whose second conv has that rank."""
    model = surgery.model_of(NET)
    rng = np.random.default_rng(seed)
    if kind == "channel":
        w = rng.standard_normal((24, rank)) @ rng.standard_normal((rank, 16 * 9))
        w = w.reshape(24, 16, 3, 3)
    else:
        w = np.einsum("nrj,rci->ncij", rng.standard_normal((24, rank, 3)), rng.standard_normal((rank, 16, 3)))
    for t in model.graph.initializer:
        if t.name == "w1":
            t.CopyFrom(numpy_helper.from_array((w / 12).astype(np.float32), "w1"))
    return model


def samples(count=96):
    return np.random.default_rng(0).standard_normal((count, 3, 10, 10)).astype(np.float32)


@pytest.mark.parametrize("kind, rank, ratio", [("channel", 4, 0.7), ("spatial", 4, 0.7), ("channel", 7, 0.5)])
def test_a_planted_rank_is_found(kind, rank, ratio):
    model = planted(kind, rank)
    subject = api.open_model(model, calibration=samples())
    settings = api.Settings(methods=("rank",), threads=1)
    plan = api.make_plan(subject, api.Ratio(ratio), settings)
    (edit,) = (e for e in plan.factorized() if e.node == "b")
    assert edit.kind == kind and rank <= edit.rank <= rank + 1
    assert plan.factorized() == (edit,)
    result = api.apply_plan(subject, plan, api.Settings(repair="none", threads=1))
    x = samples(8)
    wanted, got = surgery.run(model, {"x": x})[0], surgery.run(result.model, {"x": x})[0]
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()
    alone = factorize(model, [edit], subject.feeds)
    assert np.abs(surgery.run(alone, {"x": x})[0] - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_the_plan_round_trip_and_its_result():
    subject = api.open_model(planted("channel", 4), calibration=samples())
    plan = api.make_plan(subject, api.Ratio(0.5), api.Settings(threads=1, methods=("channels", "rank")))
    assert PrunePlan.from_json(plan.to_json()) == plan
    result = api.apply_plan(subject, plan, api.Settings(threads=1))
    assert result.surgery.exact
    assert [e["node"] for e in result.to_dict()["factorized"]] == [e.node for e in plan.factorized()]
    # only rank 4 is on offer here, and it does no damage: more than half may go
    assert result.macs_removed > 0.49 and "low rank" in result.summary()
    assert result.after.params == count_params(result.model)


@pytest.mark.parametrize(
    ("of", "ratio", "cuts"),
    [("macs", 0.3, False), ("macs", 0.8, True), ("params", 0.3, False), ("params", 0.72, True)],
)
def test_the_model_prices_what_comes_out(of, ratio, cuts):
    """Factors, and from some ratio on channels as well, against a count of the finished file."""
    subject = api.open_model(planted("channel", 4), calibration=samples())
    planner = Planner(subject, api.Settings(methods=("channels", "rank"), of=of, round_to=1, threads=1))
    plan = planner.propose(ratio, "mix")
    assert plan is not None and plan.factorized() and bool(plan.keep()) == cuts
    made = planner.unrepaired(plan)

    def count(model):
        return (
            count_params(model)
            if of == "params"
            else count_macs(Graph(model), observe(Graph(model), subject.feeds).shapes)
        )

    assert planner.gain(plan) == pytest.approx(count(subject.model) / count(made), rel=1e-6)


@pytest.mark.parametrize(
    ("methods", "options", "made_of_two"),
    [
        ("rank", {}, "ab"),
        ("rank", {"exclude": "^w1$"}, "a"),
        ("rank", {"include": "^w1$"}, "b"),
        ("channels rank", {"include": "^w", "exclude": "0$"}, "b"),
        ("3c", {"exclude": "^w0$"}, "b"),
    ],
    ids=str,
)
def test_include_and_exclude_bind_ranks_too(methods, options, made_of_two):
    subject = api.open_model(planted("spatial", 4), calibration=samples(32))
    settings = api.Settings(methods=tuple(methods.split()), best_effort=True, threads=1, **options)
    assert {e.node for e in api.make_plan(subject, api.Ratio(0.95), settings).factorized()} == set(made_of_two)


@pytest.mark.parametrize("state, cost", [(0, 20 + 30 + 2), (1, 40 + 60 + 2), (2, 100 + 2)])
def test_a_pair_is_switched(state, cost):
    model = surgery.model_of("(float[1,10,1,1] x) => (float[] y) <float[10,10,1,1] w, float[2,10,1,1] v> "
                             "{ a = Conv(x, w) y = Conv(a, v) }")  # fmt: skip
    graph, channels = surgery.find(model)
    model = CostModel(graph, channels, "macs", pairs=[PairCost("a", np.array([[20.0, 0, 30], [40, 0, 60]]))])
    alive = np.ones(channels.unit_count + 1, bool)
    got = model(alive, np.array([switches(3)[state]]))
    assert got == pytest.approx(cost + 18, rel=1e-6)  # 2 x 10 behind it


BAD = {
    "no such node": (Factorize("nowhere", "channel", 2), "no layer"),
    "no layer": (Factorize("r", "channel", 2), "no layer"),
    "another kind": (Factorize("y", "channel", 2), "by 'channel'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_plan_that_factorises_what_it_cannot(name):
    subject = api.open_model(surgery.model_of(NET))
    edit, words = BAD[name]
    with pytest.raises(UsageError, match=words):
        api.apply_plan(subject, PrunePlan(subject.digest, (edit,)), api.Settings(repair="none"))


def test_a_plan_for_another_model_is_refused():
    plan = PrunePlan("0" * 64, (Factorize("b", "channel", 2),))
    with pytest.raises(UsageError, match="another model"):
        api.apply_plan(api.open_model(surgery.model_of(NET)), plan)


@pytest.mark.parametrize("kind, rank", [("sideways", 2), ("channel", 0)])
def test_an_edit_that_says_nothing(kind, rank):
    with pytest.raises(UsageError, match="plan: node"):
        Factorize("b", kind, rank)


def test_cut_and_factorised_without_samples():
    """Structure alone: the factors of the cut weights, whatever the samples."""
    subject = api.open_model(planted("channel", 4))
    group = next(g for g in subject.channels.groups if any(s.tensor == "w1" for s in g.weights))
    plan = PrunePlan(subject.digest, (KeepChannels(group.name, 24, tuple(range(12))), Factorize("b", "channel", 4)))
    result = api.apply_plan(subject, plan, api.Settings(repair="none"))
    assert result.surgery.exact
    sizes = {t.name: tuple(t.dims) for t in result.model.graph.initializer}
    assert sorted(sizes[n.input[1]] for n in result.model.graph.node if n.op_type == "Conv") == [
        (4, 16, 3, 3),
        (12, 4, 1, 1),
        (16, 3, 3, 3),
    ]
    onnx.checker.check_model(result.model)


def test_the_recipe_and_what_goes_with_it():
    subject = api.open_model(planted("spatial", 6), calibration=samples())
    plan = api.make_plan(subject, api.Ratio(0.6), api.Settings(methods=("3c",), threads=1))
    assert plan.factorized() and PrunePlan.from_json(plan.to_json()) == plan
    result = api.apply_plan(subject, plan, api.Settings(threads=1))
    assert result.macs_removed > 0.55
    with pytest.raises(UsageError, match="recipe stands alone"):
        api.Settings(methods=("3c", "channels"))
    with pytest.raises(UsageError, match="needs samples"):
        api.make_plan(api.open_model(surgery.model_of(NET)), api.Ratio(), api.Settings(methods=("rank",)))


def test_every_layer_says_what_happens_to_it():
    subject = api.open_model(planted("channel", 4))
    group = next(g for g in subject.channels.groups if any(s.tensor == "w1" for s in g.weights))
    plan = PrunePlan(subject.digest, (KeepChannels(group.name, 24, tuple(range(12))), Factorize("b", "channel", 4)))
    found = preview(subject, plan)
    assert [(c.layer, c.what) for c in found.layers] == [
        ("a", "as it is"),
        ("b", "channel rank 4, out 24→12"),
        ("y", "in 24→12"),
    ]
    b = found.layers[1]
    assert b.macs_before == 100 * 16 * 9 * 24 and b.macs_after == 100 * (16 * 9 * 4 + 4 * 12)
    assert found.after.macs == sum(c.macs_after for c in found.layers)


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, USUAL),
        ({"of": "macs"}, USUAL),
        ({"of": "params"}, RANKLESS),
        ({"of": "channels"}, RANKLESS),
        ({"of": "latency"}, USUAL),
        ({"of": "latency", "methods": ("channels",)}, ("channels",)),
        ({"methods": ("rank", "channels")}, ("rank", "channels")),
    ],
)
def test_ranks_are_usual_where_they_save_what_counts(given, expected):
    assert api.Settings(**given).kinds() == expected


MLP = """(float[N,64] x) => (float[N,8] y) <float[64,48] w0, float[48,96] w1, float[96,8] w2> {
  a = MatMul(x, w0) r = Relu(a) b = MatMul(r, w1) s = Relu(b) y = MatMul(s, w2) }"""


@pytest.mark.parametrize("methods", [("channels", "blocks", "rank"), ("3c",)], ids=", ".join)
@pytest.mark.parametrize("kind", ["the same colour", "one direction", "noise far from zero"])
def test_nearly_constant_activations(kind, methods):
    """Layers with more outputs than inputs, that read what hardly varies."""
    model = surgery.model_of(
        """(float[N,3,10,10] x) => (float[N,5] y)
  <float[16,3,3,3] w0, float[64,16,1,1] w1, float[96,64,3,3] w2, float[5,96] w3> {
  a = Conv(x, w0) r = Relu(a) b = Conv(r, w1) s = Relu(b) c = Conv(s, w2) t = Relu(c)
  g = GlobalAveragePool(t) f = Flatten(g) y = Gemm<transB=1>(f, w3) }"""
    )
    rng = np.random.default_rng(0)
    x = {
        "the same colour": np.full((32, 3, 10, 10), 0.5),
        "one direction": rng.standard_normal((32, 1, 1, 1)) * rng.standard_normal((3, 10, 10)),
        "noise far from zero": 1e4 + rng.standard_normal((32, 3, 10, 10)),
    }[kind].astype(np.float32)
    result = onnxprune.prune(model, 0.5, calibration=x, methods=methods, threads=1)
    assert result.macs_removed > 0.48


def test_a_matmul_that_a_repair_gave_a_bias_is_still_split():
    """`with_biases` hands its name on to an Add."""
    model = surgery.model_of(MLP)
    x = np.random.default_rng(0).standard_normal((256, 64)).astype(np.float32)
    subject = api.open_model(model, calibration=x)
    (group,) = (g for g in subject.channels.groups if g.width == 48)
    plan = api.make_plan(subject, api.Ratio(0.1), api.Settings(methods=("channels",), threads=1))
    both = replace(plan, edits=(KeepChannels(group.name, 48, tuple(range(24))), Factorize("b", "matrix", 8)))
    for repair in ("refit", "statistics", "merge", "none"):
        result = api.apply_plan(subject, both, api.Settings(repair=repair, threads=1))
        sizes = sorted(tuple(t.dims) for t in result.model.graph.initializer if len(t.dims) == 2)
        assert sizes == [(8, 96), (24, 8), (64, 24), (96, 8)], repair
