"""Runs of layers as one convolution: what one can stand for is found again, and the cut is proven as one without them."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune import api
from onnxprune.decide.blocks import may_go
from onnxprune.decide.limits import Limits
from onnxprune.decide.runs import find_runs
from onnxprune.errors import UsageError
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.measure.cost import count_macs
from onnxprune.pipeline.planner import Planner
from onnxprune.plan import DropBlock, Factorize, KeepChannels, MergeBlock, PrunePlan
from tests.channels import surgery

NET = """(float[N,3,12,12] x) => (float[N,5] y)
  <float[8,3,3,3] w0, float[12,8,3,3] w1, float[12] b1, float[8,12,1,1] w2, float[8] b2, float[16,8,3,3] w3,
   float[16,8,1,1] w4, float[5,16] w5> {
  a = Conv<pads=[1,1,1,1]>(x, w0) r = Relu(a)
  b = Conv<pads=[1,1,1,1]>(r, w1, b1) %s c = Conv(s, w2, b2) d = Add(c, r) t = Relu(d)
  e = Conv<pads=[1,1,1,1], strides=[2,2]>(t, w3) f = Conv<strides=[2,2]>(t, w4) h = Add(e, f) u = Relu(h)
  g = GlobalAveragePool(u) k = Flatten(g) y = Gemm<transB=1>(k, w5) }"""
LINEAR = NET % "s = Identity(b)"
CURVED = NET % "s = Relu(b)"


def samples(count=96):
    return np.random.default_rng(0).standard_normal((count, 3, 12, 12)).astype(np.float32)


def opened(text):
    return api.open_model(surgery.model_of(text), calibration=samples())


def plan_of(subject, *names, more=()):
    edits = [run.edit for run in find_runs(subject.net) if run.name in names]
    assert len(edits) == len(names)
    return PrunePlan(subject.digest, (*more, *edits))


def masked(model, cuts):
    """The original with every removed index of every listed input times zero."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    nodes, made = {n.output[0]: n for n in model.graph.node}, {}
    for k, cut in enumerate(cuts):
        mask = np.ones([cut["length"] if a == cut["axis"] else 1 for a in range(cut["rank"])], np.float32)
        np.moveaxis(mask, cut["axis"], 0)[list(cut["removed"])] = 0
        model.graph.initializer.append(numpy_helper.from_array(mask, f"mask{k}"))
        node = nodes[cut["node"]]
        made.setdefault(cut["node"], []).append(
            helper.make_node("Mul", [node.input[cut["input"]], f"mask{k}"], [f"masked{k}"])
        )
        node.input[cut["input"]] = f"masked{k}"
    ordered = [m for n in model.graph.node for m in (*made.get(n.output[0], ()), n)]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    return model


def ops(model):
    return [n.op_type for n in model.graph.node if n.op_type in ("Conv", "Add")]


def test_the_runs_of_a_residual_net():
    subject = opened(CURVED)
    assert [(r.edit, r.nodes) for r in find_runs(subject.net)] == [
        (MergeBlock("d", "r", (0,), 3, 1, 8, 4), ("b", "s", "c", "d")),
        (MergeBlock("h", "t", (0, 1), 3, 2, 16, 4), ("e", "f", "h")),
    ]
    assert [r.edit.kernel for r in find_runs(subject.net, 1)] == [1, 1]


@pytest.mark.parametrize(
    "text",
    [
        CURVED.replace("u = Relu(h)", "u0 = Relu(h) z = GlobalAveragePool(s) z1 = Conv(z, wz) u = Add(u0, z1)")
        .replace("float[5,16] w5", "float[5,16] w5, float[16,12,1,1] wz"),
        CURVED.replace("c = Conv(s, w2, b2)", "c = Conv(s, w2, b2) q = Relu(x)").replace("d = Add(c, r)", "d = Add(c, v)"
        ).replace("float[5,16] w5", "float[5,16] w5, float[N,8,12,12] v").replace("(float[N,3,12,12] x)",
        "(float[N,3,12,12] x, float[N,8,12,12] v)").replace(", float[N,8,12,12] v>", ">"),
    ],
    ids=["read from outside", "of two inputs"],
)  # fmt: skip
def test_what_others_have_a_part_in_is_no_run(text):
    graph = surgery.find(surgery.model_of(text))
    assert "d" not in {run.name for run in find_runs(api.open_model(graph[0].model).net)}


def test_what_a_convolution_can_be_is_found():
    """Linear between input and Add: the fit is exact but for the border, where a bias inside is not seen."""
    subject = opened(LINEAR)
    result = api.apply_plan(subject, plan_of(subject, "d", "h"), api.Settings(threads=1))
    assert result.surgery.exact and ops(result.model) == ["Conv"] * 3
    x = samples(8)
    wanted, got = (surgery.run(m, {"x": x})[0] for m in (subject.model, result.model))
    assert np.abs(got - wanted).max() < 0.02 * np.abs(wanted).max()


def test_a_curved_block_is_closer_than_without_it():
    subject = opened(CURVED)
    x = np.random.default_rng(9).standard_normal((256, 3, 12, 12)).astype(np.float32)  # nothing is fitted on these
    wanted = surgery.run(subject.model, {"x": x})[0]
    (edit,) = plan_of(subject, "d").edits
    errors = []
    for edits in ((edit,), (DropBlock("d", 0, 1, 4, 8),)):
        made = api.apply_plan(subject, PrunePlan(subject.digest, edits), api.Settings(threads=1)).model
        errors.append(np.square(surgery.run(made, {"x": x})[0] - wanted).sum())
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("names", [("d",), ("h",), ("d", "h")], ids="".join)
@pytest.mark.parametrize("cut", [False, True])
def test_unrepaired_it_is_the_original_with_the_published_operands_masked(names, cut):
    subject = opened(CURVED)
    group = next(g for g in subject.channels.groups if g.width == 8)
    more = (KeepChannels(group.name, 8, (0, 2, 3, 5, 7)),) if cut else ()
    result = api.apply_plan(subject, plan_of(subject, *names, more=more), api.Settings(repair="none", threads=1))
    assert result.surgery.exact
    whole = [(c["node"], c["input"]) for c in result.cuts if c["node"] in names]
    assert whole == [(n, i) for n, i in (("d", 0), ("h", 0), ("h", 1)) if n in names]
    x = samples(4)
    wanted, got = (surgery.run(m, {"x": x})[0] for m in (masked(subject.model, result.cuts), result.model))
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert [m["block"] for m in result.to_dict()["merged"]] == list(names) and "one layer" in result.summary()


@pytest.mark.parametrize("repair", ["refit", "statistics", "merge", "none"])
def test_read_again_a_plan_makes_the_same_bytes(repair):
    subject, settings = opened(CURVED), api.Settings(repair=repair, threads=1)
    plan = plan_of(subject, "d", "h")
    assert PrunePlan.from_json(plan.to_json()) == plan
    first, again = (api.apply_plan(opened(CURVED), p, settings).model.SerializeToString()
                    for p in (plan, PrunePlan.from_json(plan.to_json())))  # fmt: skip
    assert first == again


D = MergeBlock("d", "r", (0,), 3, 1, 8, 4)
BAD = {
    "no such run": ((replace(D, source="x"),), "no run of layers"),
    "another stride": ((MergeBlock("h", "t", (0, 1), 3, 1, 16, 4),), "no run of layers"),
    "twice": ((D, D), "another edit"),
    "and dropped": ((D, DropBlock("d", 0, 1, 4, 8)), "another edit"),
    "and of low rank": ((D, Factorize("b", "channel", 2)), "inside a block"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_plan_that_merges_what_it_cannot(name):
    edits, words = BAD[name]
    subject = opened(CURVED)
    with pytest.raises(UsageError, match=words):
        api.apply_plan(subject, PrunePlan(subject.digest, edits), api.Settings(repair="none"))


@pytest.mark.parametrize(
    "change", [{"kernel": 2}, {"kernel": 0}, {"stride": 2}, {"branch": (2,)}, {"rank": 2}], ids=str
)
def test_an_edit_that_no_convolution_does(change):
    with pytest.raises(UsageError, match="no run of layers"):
        replace(D, **change)


@pytest.mark.parametrize(
    ("limits", "names"), [({}, "dh"), ({"exclude": "^w1$"}, "h"), ({"include": "^w4$"}, "h"), ({"include": "^w5$"}, "")]
)
def test_include_and_exclude_bind_runs(limits, names):
    net = opened(CURVED).net
    assert "".join(run.name for run in find_runs(net) if may_go(run.block, net, Limits(**limits))) == names


@pytest.mark.parametrize("of", ["macs", "params", "channels"])
@pytest.mark.parametrize(
    "methods", [("merge",), ("channels", "merge"), ("channels", "blocks", "rank", "merge")], ids=" ".join
)
def test_merges_are_weighed_in_the_budget(methods, of):
    if of == "channels" and methods != ("channels", "merge"):
        pytest.skip("nothing of it is saved")
    subject = opened(LINEAR)
    settings = api.Settings(methods=methods, of=of, threads=1, best_effort=True)
    planner = Planner(subject, settings)
    plan = planner.propose(0.35, "mix")
    assert plan is not None and "d" in {e.block for e in plan.merged()}, "a block that one layer stands for"
    assert PrunePlan.from_json(plan.to_json()) == plan
    made = planner.unrepaired(plan)
    seen = observe(Graph(made), subject.feeds)
    if of == "macs":
        assert planner.gain(plan) == pytest.approx(subject.cost().macs / count_macs(Graph(made), seen.shapes), rel=1e-6)
    result = api.apply_plan(subject, plan, settings)
    assert result.surgery.exact


def test_they_are_not_made_unless_asked_for():
    plan = api.make_plan(opened(LINEAR), api.Ratio(0.3), api.Settings(threads=1))
    assert not plan.merged()


def test_keep_block_keeps_them():
    settings = api.Settings(methods=("merge",), keep_block="^b$", threads=1, best_effort=True)
    assert {e.block for e in api.make_plan(opened(LINEAR), api.Ratio(0.9), settings).merged()} == {"h"}
