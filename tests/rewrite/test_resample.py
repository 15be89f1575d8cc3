"""A network that sees its input at another size: the same function of it, offered where it is one, taken where it pays."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import onnxprune
from onnxprune import api
from onnxprune.cli import main
from onnxprune.errors import PlanError, UnsupportedError
from onnxprune.pipeline.planner import Planner
from onnxprune.pipeline.resolutions import Sizes, Smaller, rest_of
from onnxprune.pipeline.settings import Settings
from onnxprune.plan import KeepChannels, PrunePlan, Resample
from onnxprune.rewrite.resample import _factor, seen_at
from tests.channels import surgery

NET = """(float[N,3,32,32] x) => (float[N,6] y)
  <float[16,3,3,3] w0, float[16] b0, float[16,16,3,3] w1, float[16] b1, float[6,16] w2> {
  a = Conv<pads=[1,1,1,1]>(x, w0, b0) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w1, b1) s = Relu(b)
  g = GlobalAveragePool(s) k = Flatten(g) y = Gemm<transB=1>(k, w2) }"""
FEW = """(float[N,3,32,32] x) => (float[N,4] y)
  <float[3,3,3,3] w0, float[3] b0, float[3,3,3,3] w1, float[3] b1, float[4,3] w2> {
  a = Conv<pads=[1,1,1,1]>(x, w0, b0) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w1, b1) s = Relu(b)
  g = GlobalAveragePool(s) k = Flatten(g) y = Gemm<transB=1>(k, w2) }"""
LAST = """(float[N,32,32,3] x) => (float[N,6] y) <float[16,3,3,3] w0, float[6,16] w2> {
  t = Transpose<perm=[0,3,1,2]>(x) a = Conv<pads=[1,1,1,1]>(t, w0) r = Relu(a)
  g = GlobalAveragePool(r) k = Flatten(g) y = Gemm<transB=1>(k, w2) }"""
MAPS = """(float[N,3,32,32] x) => (float[N,6,32,32] y) <float[16,3,3,3] w0, float[6,16,1,1] w1> {
  a = Conv<pads=[1,1,1,1]>(x, w0) r = Relu(a) y = Conv(r, w1) }"""
FIXED = """(float[N,3,32,32] x) => (float[N,6] y) <float[4,3,3,3] w0, float[6,4096] w1> {
  a = Conv<pads=[1,1,1,1]>(x, w0) r = Relu(a) k = Flatten(r) y = Gemm<transB=1>(k, w1) }"""
TO_24 = Resample("x", 2, (32, 32), (24, 24))


def smooth(count=128, last=False):
    """Pictures without detail, which look the same from further away."""
    rng = np.random.default_rng(0)
    waves = np.linspace(0, np.pi, 32)[None, :] * rng.uniform(0.3, 1.5, (count * 3, 1)) + rng.uniform(
        0, 6, (count * 3, 1)
    )
    found = (np.sin(waves)[:, :, None] * np.cos(waves)[:, None, :]).reshape(count, 3, 32, 32).astype(np.float32)
    return np.moveaxis(found, 1, 3).copy() if last else found


def opened(text=NET, **more):
    model = surgery.model_of(text)
    return api.open_model(model, calibration=smooth(last=text == LAST), **more)


def answers(model, x):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def resized(x, axes, side):
    """What ONNX Runtime makes of it alone."""
    scales = np.ones(4, np.float32)
    scales[list(axes)] = side / 32
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear",
                            coordinate_transformation_mode="half_pixel")  # fmt: skip
    port = helper.make_tensor_value_info
    graph = helper.make_graph([node], "g", [port("x", 1, [None] * 4)], [port("y", 1, [None] * 4)],
                              [onnx.numpy_helper.from_array(scales, "s")])  # fmt: skip
    return answers(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), x)


@pytest.mark.parametrize(("text", "axes"), [(NET, (2, 3)), (LAST, (1, 2))])
def test_it_is_the_same_function_of_a_smaller_input(text, axes):
    subject = opened(text)
    edit = Resample("x", axes[0], (32, 32), (24, 24))
    result = api.apply_plan(subject, PrunePlan(subject.digest, (edit,)), Settings(repair="none"))
    x = smooth(4, text == LAST)
    free = onnx.ModelProto.FromString(subject.model.SerializeToString())
    for k in axes:
        free.graph.input[0].type.tensor_type.shape.dim[k].ClearField("dim_value")
    np.testing.assert_allclose(answers(result.model, x), answers(free, resized(x, axes, 24)), rtol=1e-4, atol=1e-5)
    assert result.surgery.exact and result.cuts == ()
    assert result.after.macs / result.before.macs == pytest.approx((24 / 32) ** 2, rel=0.01)
    onnx.checker.check_model(result.model, full_check=True)


def test_channels_go_beside_it_and_the_cut_is_proven():
    subject = opened()
    group = subject.channels.groups[0]
    keep = KeepChannels(group.name, group.width, tuple(range(0, group.width, 2)))
    result = api.apply_plan(subject, PrunePlan(subject.digest, (TO_24, keep)))
    assert result.surgery.exact and len(result.cuts) > 0
    assert result.after.macs < 0.6 * 0.6 * result.before.macs


@pytest.mark.parametrize(
    "how",
    [{"precision": "fp16"}, {"quantize": "int8"}, {"repair": "refit"}, {"repair": "statistics"}, {"repair": "merge"}],
    ids=str,
)
def test_repairs_and_formats_go_with_it(how):
    subject = opened()
    group, x = subject.channels.groups[0], smooth(8)
    plan = PrunePlan(subject.digest, (TO_24, KeepChannels(group.name, group.width, tuple(range(12)))))
    far = [
        np.abs(answers(api.apply_plan(subject, plan, Settings(**which)).model, x) - answers(subject.model, x)).max()
        for which in (how, {"repair": "none"})
    ]
    assert far[0] < 0.5 * far[1]


@pytest.mark.parametrize(
    ("text", "edit", "words"),
    [
        (MAPS, TO_24, "outputs of other sizes"),
        (FIXED, TO_24, "does not run then"),
        (NET, Resample("z", 2, (32, 32), (24, 24)), "no such input"),
        (NET, Resample("x", 2, (28, 28), (24, 24)), "no such input"),
        (NET, Resample("x", 1, (3, 32, 32), (1, 24, 24)), "does not run then"),
    ],
)
def test_what_does_not_fit_is_refused(text, edit, words):
    subject = opened(text)
    with pytest.raises(PlanError, match=words):
        api.apply_plan(subject, PrunePlan(subject.digest, (edit,)))


@pytest.mark.parametrize(
    "given",
    [
        ("x", 0, (32,), (24,)),
        ("x", 2, (32, 32), (24,)),
        ("x", 2, (), ()),
        ("x", 2, (32,), (40,)),
        ("x", 2, (32,), (0,)),
    ],
)
def test_no_network_sees_an_input_so(given):
    with pytest.raises(PlanError, match="cannot be seen"):
        Resample(*given)


def test_the_plan_is_read_back():
    plan = PrunePlan("d", (TO_24,))
    assert PrunePlan.from_json(plan.to_json()) == plan and plan.resampled() == (TO_24,)


def test_pictures_without_detail_are_seen_smaller():
    subject = opened(FEW)
    plan = api.make_plan(subject, 0.7)
    assert [e.after < (24, 24) for e in plan.resampled()] == [True]
    result = api.apply_plan(subject, plan)
    assert result.macs_removed == pytest.approx(0.7, abs=0.05)
    cut = api.prune(subject.model, ratio=0.7, calibration=smooth(), methods="channels")
    assert result.fidelity.sqnr_db > cut.fidelity.sqnr_db
    assert "input x at" in result.summary() and result.to_dict()["resampled"][0]["before"] == (32, 32)
    assert "a Resize stands first" in result.to_html()


@pytest.mark.parametrize("text", [MAPS, FIXED])
def test_it_is_not_offered_where_sizes_matter(text):
    assert not Planner(opened(text), Settings()).sizes


def test_commands_tell_it_carry_it_out_and_check_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(surgery.model_of(FEW), "m.onnx")
    np.savez("x.npz", x=smooth())
    common = ("--calib", "x.npz")
    assert main(["m.onnx", "--ratio", "0.7", "--dry-run", *common]) == 0
    assert "the network would see input x at" in capsys.readouterr().out
    assert main(["m.onnx", "--ratio", "0.7", "--dry-run", "--json", *common]) == 0
    told = json.loads(capsys.readouterr().out)
    assert main(["plan", "m.onnx", "--ratio", "0.7", "-o", "plan.json", *common]) == 0
    assert main(["apply", "m.onnx", "plan.json", "-o", "p.onnx", "--json", *common]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in ("macs", "params"):
        assert told[name]["after"] == made["after"][name] == pytest.approx(made["after"][name])
    assert main(["verify", "m.onnx", "p.onnx", "--plan", "plan.json", *common]) == 0
    assert main(["report", "plan.json", "-o", "plan.html"]) == 0 and "instead of" in Path("plan.html").read_text()


def test_large_weights_are_not_copied(monkeypatch):
    assert Planner(opened(), Settings()).sizes
    monkeypatch.setattr("onnxprune.pipeline.resolutions.WEIGHTS", 1000)
    assert not Planner(opened(), Settings()).sizes


def test_nothing_else_is_allowed_and_that_is_not():
    with pytest.raises(UnsupportedError, match="no smaller input"):
        Planner(opened(MAPS), Settings(methods="resolution"))


@pytest.mark.parametrize("more", [{"of": "params"}, {"methods": "channels,blocks,rank"}, {"allocation": "uniform"}])
def test_it_is_not_offered_where_it_is_not_meant(more):
    assert not Planner(opened(), Settings(**more)).sizes


def test_a_target_is_reached_by_it():
    result = onnxprune.reach(
        opened(), onnxprune.Target("speedup", 1.5), Settings(best_effort=True, methods="resolution")
    )
    assert result.plan.resampled() and result.after.macs < result.before.macs


def test_its_plan_travels_to_a_twin():
    subject = opened(FEW)
    plan = api.make_plan(subject, 0.7)
    text = FEW.replace("32] x)", "32] image)").replace("(x, w0", "(image, w0")
    twin = api.open_model(surgery.model_of(text), calibration={"image": smooth()})
    found = onnxprune.transfer(plan, twin)
    assert [replace(e, input="x") for e in found.resampled()] == list(plan.resampled())
    assert api.apply_plan(twin, found).surgery.exact


@pytest.mark.parametrize("before", [28, 32, 224, 299, 640])
def test_factors_come_to_the_size(before):
    for after in range(1, before + 1):
        assert int(np.float32(before) * _factor(before, after)) == after


SIZES = [Smaller(Resample("x", 2, (32, 32), (k, k)), saved, hurt) for k, saved, hurt in
         [(28, 0.25, 0.1), (24, 0.45, 0.2), (20, 0.6, 0.4), (16, 0.75, 0.9)]]  # fmt: skip
PATH = [(0.2, 0.02), (0.4, 0.1), (0.5, 0.2), (0.6, 0.4), (0.8, 1.0)]


def known(sizes):
    """Sizes that are looked at in turn; None ends them."""
    at = {s.edit: s for s in sizes if s is not None}
    return Sizes([*at, Resample("x", 2, (32, 32), (8, 8))], lambda edit: at.get(edit))


@pytest.mark.parametrize(
    ("ratio", "sides"),
    [
        (0.1, []),  # all of them save more than is asked for
        (0.3, []),  # 28 does 0.10 and more, cuts alone do 0.09
        (0.5, [28, 24]),  # 0.1 + 0.11 and 0.2 + 0.014 beside 0.3
        (0.6, [24, 28, 20]),  # 0.2 + 0.07, 0.1 + 0.25 and 0.4 beside 0.6
        (0.9, [16, 20]),  # cuts alone do not get there, nor at 28 and 24
    ],
)
def test_sizes_are_promising_by_what_cuts_still_have_to_save(ratio, sides):
    assert [s.edit.after[0] for s in known(SIZES).promising(ratio, PATH, 0.02)] == sides


def test_no_more_sizes_are_looked_at_than_are_asked_for():
    sizes = known(SIZES)
    assert sizes and not sizes.found
    sizes.promising(0.3, PATH, 0.02)  # 28 does more than cuts alone
    assert len(sizes.found) == 1
    assert sizes.reaching(0.4) is SIZES[1] and len(sizes.found) == 2
    assert sizes.reaching(0.9) is SIZES[-1] and not sizes.waiting
    assert sizes.reaching(0.4) is SIZES[1] and sizes.promising(0.3, PATH, 0.02) == []
    assert not known([]).reaching(0.5)


def test_what_a_size_leaves_to_cuts():
    assert rest_of(0.5, SIZES[0]) == pytest.approx(1 / 3) and rest_of(0.5, SIZES[-1]) == 0


def test_a_smaller_input_must_be_clearly_better():
    subject = opened(FEW)
    planner = Planner(subject, Settings())
    whole, seen = PrunePlan(subject.digest, ()), PrunePlan(subject.digest, (TO_24,))
    for hurt, taken in ((0.8, whole), (0.7, seen)):
        planner.looking.contest._known = {(): np.array([1.0]), (TO_24,): np.array([hurt])}
        assert planner.better([whole, seen]) is taken


def test_few_forms_of_a_network_are_kept():
    net = opened().net
    forms = [seen_at(net, [Resample("x", 2, (32, 32), (k, k))]) for k in (30, 28, 26, 24, 22)]
    assert seen_at(net, [Resample("x", 2, (32, 32), (22, 22))]) is forms[-1]
    assert seen_at(net, ()) is net


def test_forms_are_looked_for_side_by_side():
    net = opened().net
    sides = [30, 28, 26, 24, 22, 20] * 8
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: seen_at(net, [Resample("x", 2, (32, 32), (k, k))]), sides))
    assert [form.shapes["a"][2] for form in found] == sides
