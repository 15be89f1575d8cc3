"""Runs of linear layers made one: what comes out equals what was there, in the spellings of several exporters; what is
no such run, or would grow dearer, stays."""

import json

import numpy as np
import onnx
import pytest

from onnxprune import cli
from onnxprune.channels import Analysed
from onnxprune.errors import PlanError
from onnxprune.pipeline.lossless import fusions
from onnxprune.plan import FuseLayers, PrunePlan
from onnxprune.rewrite.apply import edit_exactly
from tests.channels.surgery import distance, feeds_of, find, model_of, run

BN = "float[8] g, float[8] b, float[8] m, float[8] var"
IN8 = "(float[N,8,8,8] x) => (float[N,8,8,8] y)"


def net(body: str, weights: str, head: str = IN8) -> str:
    return f"{head}\n<{weights}> {{\n{body} }}"


OF_PAIR = f"float[8,8,3,3] w, {BN}, float[8,8,1,1] v, float[8] c"
# as torch's older exporter writes it, with its names; as its newer one does, every default spelled, biases expanded;
# as tf2onnx does: channels last, BatchNormalization as a product and a sum, a point as a matrix; as Paddle does, where
# every weight is made by a node
LEGACY = net(
    """h = Conv<dilations=[1,1], group=1, kernel_shape=[3,3], pads=[1,1,1,1], strides=[1,1]>(x, w)
  n = BatchNormalization<epsilon=0.00001, momentum=0.9, training_mode=0>(h, g, b, m, var)
  p = Conv<dilations=[1,1], group=1, kernel_shape=[1,1], pads=[0,0,0,0], strides=[1,1]>(n, v, c)
  y = Relu(p)""",
    OF_PAIR,
)
DYNAMO = net(
    """size = Constant<value_ints=[8]>()
  none = Constant<value_float=0.0>()
  like = CastLike(none, w)
  zeros = Expand(like, size)
  h = Conv<auto_pad="NOTSET", dilations=[1,1], group=1, pads=[1,1,1,1], strides=[1,1]>(x, w, zeros)
  n = BatchNormalization<epsilon=0.00001, momentum=0.9, training_mode=0>(h, g, b, m, var)
  d = Identity(n)
  p = Conv<auto_pad="NOTSET", dilations=[1,1], group=1, pads=[0,0,0,0], strides=[1,1]>(d, v, c)
  y = Relu(p)""",
    OF_PAIR,
)
LAST = net(
    """t = Transpose<perm=[0,3,1,2]>(x)
  h = Conv<auto_pad="SAME_UPPER">(t, w)
  u = Transpose<perm=[0,2,3,1]>(h)
  n = Mul(u, g)
  s = Add(n, b)
  p = MatMul(s, v)
  q = Add(p, c)
  y = Relu(q)""",
    "float[8,8,3,3] w, float[8] g, float[8] b, float[8,8] v, float[8] c",
    "(float[N,8,8,8] x) => (float[N,8,8,8] y)",
)
MADE = net(
    """w = Identity(w0)
  four = Constant<value_ints=[1,8,1,1]>()
  h = Conv<pads=[1,1,1,1]>(x, w)
  n = BatchNormalization(h, g, b, m, var)
  p = Conv(n, v)
  k = Reshape(c, four)
  q = Add(p, k)
  y = Relu(q)""",
    OF_PAIR.replace(" w,", " w0,"),
)
REP = """h = Conv<pads=[1,1,1,1]>(x, w, a)
  o = Conv(x, v)
  i = BatchNormalization(x, g, b, m, var)
  p = Add(h, o)
  q = Add(p, i)
  y = Relu(q)"""

# name, model, operators of the outcome
FUSED = [
    ("torch, older exporter", LEGACY, "Conv Relu"),
    ("torch, newer exporter", DYNAMO, "Conv Relu"),
    ("tf2onnx, channels last", LAST, "Transpose Conv Transpose Relu"),
    ("Paddle, weights made by nodes", MADE, "Conv Relu"),
    ("BatchNormalization", net("h = Conv(x, w)\n n = BatchNormalization(h, g, b, m, var)\n y = Relu(n)",
                               f"float[8,8,1,1] w, {BN}"), "Conv Relu"),
    ("scale and shift by numbers", net("""h = Conv(x, w)
  n = Mul(two, h)\n  s = Sub(three, n)\n  t = Div(s, two)\n  d = Dropout(t)\n  y = Add(d, b)""",
        "float[8,8,1,1] w, float two = {2}, float three = {3}, float[8,1,1] b"), "Conv"),
    ("1x1 without a bias ahead of a border", net("h = Conv(x, v)\n y = Conv<pads=[1,1,1,1]>(h, w, c)",
        "float[8,8,1,1] v, float[8,8,3,3] w, float[8] c"), "Conv"),
    ("strides multiply", net("h = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w)\n y = Conv<strides=[2,2]>(h, v)",
        "float[8,8,3,3] w, float[8,8,1,1] v", "(float[N,8,9,9] x) => (float[N,8,3,3] y)"), "Conv"),
    ("an image from 0 to 255", net("h = Div(x, most)\n y = Conv<pads=[1,1,1,1]>(h, w, c)",
        "float most = {255}, float[8,8,3,3] w, float[8] c"), "Conv"),
    ("numbers behind an activation", net("r = Relu(x)\n k = Mul(r, two)\n h = Add(k, three)\n y = Conv(h, w, c)",
        "float two = {2}, float three = {3}, float[8,8,1,1] w, float[8] c"), "Relu Conv"),
    ("Pad of zeros", net("h = Pad(x, pads)\n y = Conv(h, w, c)",
        "int64[8] pads = {0,0,1,1,0,0,1,1}, float[8,8,3,3] w, float[8] c"), "Conv"),
    ("Pad of a scaled image", net("r = Relu(x)\n h = Pad(r, pads)\n k = Mul(h, g)\n z = Conv(k, w, c)\n y = Relu(z)",
        "int64[8] pads = {0,0,0,0,0,0,2,2}, float[8,1,1] g, float[8,8,3,3] w, float[8] c"), "Relu Conv Relu"),
    ("two side by side", net("h = Conv<pads=[2,2,2,2]>(x, w, c)\n k = Conv<pads=[1,1,1,1]>(x, v)\n y = Sub(h, k)",
        "float[8,8,5,5] w, float[8] c, float[8,8,3,3] v"), "Conv"),
    ("RepVGG", net(REP, f"float[8,8,3,3] w, float[8] a, float[8,8,1,1] v, {BN}"), "Conv Relu"),
    ("RepVGG, depthwise", net(REP.replace("Conv<", "Conv<group=8, ").replace("Conv(x", "Conv<group=8>(x"),
        f"float[8,1,3,3] w, float[8] a, float[8,1,1,1] v, {BN}"), "Conv Relu"),
    ("a sum with itself", net("h = Conv<pads=[1,1,1,1]>(x, w)\n y = Add(h, x)", "float[8,8,3,3] w"), "Conv"),
    ("depthwise twice", net("h = Conv<group=8>(x, v)\n y = Conv<group=8, pads=[1,1,1,1]>(h, w)",
        "float[8,1,1,1] v, float[8,1,3,3] w"), "Conv"),
    ("depthwise ahead of few", net("h = Conv<group=8>(x, v)\n y = Conv(h, w)", "float[8,1,1,1] v, float[8,8,1,1] w"),
     "Conv"),
    ("narrow in the end", net("h = Conv(x, v)\n y = Conv(h, w)", "float[16,8,1,1] v, float[8,16,1,1] w"), "Conv"),
    ("Gemm, Gemm", net("h = Gemm<transB=1, alpha=0.5>(x, w, c)\n y = Gemm<beta=2.0>(h, v, e)",
        "float[16,8] w, float[16] c, float[16,4] v, float[4] e", "(float[N,8] x) => (float[N,4] y)"), "Gemm"),
    ("MatMul, MatMul", net("h = MatMul(x, w)\n k = Add(h, c)\n y = MatMul(k, v)",
        "float[8,16] w, float[16] c, float[16,4] v", "(float[N,5,8] x) => (float[N,5,4] y)"), "MatMul Add"),
    ("one axis", net("h = Conv<pads=[1,1]>(x, w)\n y = Conv(h, v)", "float[8,8,3] w, float[8,8,1] v",
        "(float[N,8,8] x) => (float[N,8,8] y)"), "Conv"),
    ("two runs", net("h = Conv(x, v)\n k = Conv(h, w)\n r = Relu(k)\n p = Conv(r, a)\n y = Conv(p, d)",
        "float[16,8,1,1] v, float[8,16,1,1] w, float[16,8,1,1] a, float[8,16,1,1] d"), "Conv Relu Conv"),
]  # fmt: skip

STAY = [
    ("activation between", net("h = Conv(x, v)\n r = Relu(h)\n y = Conv(r, w)", "float[8,8,1,1] v, float[8,8,1,1] w")),
    ("bias that reaches a border", net("h = Conv(x, v, c)\n y = Conv<pads=[1,1,1,1]>(h, w)",
        "float[8,8,1,1] v, float[8] c, float[8,8,3,3] w")),
    ("shift ahead of a border", net("h = Add(x, c)\n y = Conv<pads=[1,1,1,1]>(h, w)", "float[8,1,1] c, float[8,8,3,3] w")),
    ("bottleneck", net("h = Conv(x, v)\n y = Conv(h, w)", "float[2,8,1,1] v, float[8,2,1,1] w")),
    ("depthwise ahead of many", net("h = Conv<group=8, pads=[1,1,1,1]>(x, w)\n y = Conv(h, v)",
        "float[8,1,3,3] w, float[8,8,1,1] v")),
    ("another reads what is between", net("h = Conv(x, v)\n k = Conv(h, w)\n r = Relu(h)\n y = Add(k, r)",
        "float[8,8,1,1] v, float[8,8,1,1] w")),
    ("what is between is an output", net("h = Conv(x, v)\n y = Conv(h, w)", "float[8,8,1,1] v, float[8,8,1,1] w",
        "(float[N,8,8,8] x) => (float[N,8,8,8] y, float[N,8,8,8] h)")),
    ("sizes of two branches differ", net("h = Conv(x, v)\n k = Conv<strides=[8,8]>(x, w)\n y = Add(h, k)",
        "float[8,8,1,1] v, float[8,8,1,1] w")),
    ("constant of every position", net("h = Conv(x, v)\n y = Mul(h, w)", "float[8,8,1,1] v, float[8,8,8] w")),
    ("Pad of ones", net("h = Pad(x, pads, one)\n y = Conv(h, w)",
        "int64[8] pads = {0,0,1,1,0,0,1,1}, float one = {1}, float[8,8,3,3] w")),
    ("Pad by reflection", net('h = Pad<mode="reflect">(x, pads)\n y = Conv(h, w)',
        "int64[8] pads = {0,0,1,1,0,0,1,1}, float[8,8,3,3] w")),
    ("padding by size", net('h = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)\n y = Conv(h, v)',
        "float[8,8,3,3] w, float[8,8,1,1] v", "(float[N,8,9,9] x) => (float[N,8,5,5] y)")),
    ("half precision in the file", net("""w = Cast<to=1>(w16)\n h = Conv(x, w)\n y = Conv(h, v)""",
        "float16[8,8,1,1] w16, float[8,8,1,1] v")),
    ("statistics of the batch", net("h = Conv(x, v)\n y, mm, vv = BatchNormalization<training_mode=1>(h, g, b, m, var)",
        f"float[8,8,1,1] v, {BN}")),
    ("the half of a GELU", net("""d = Div(x, root)\n e = Erf(d)\n f = Add(e, one)\n k = Mul(x, f)\n h = Mul(k, half)
  y = Conv(h, w)""", "float root = {1.4142135}, float one = {1}, float half = {0.5}, float[8,8,1,1] w")),
    ("weights that are shared", net("h = Conv(x, w)\n k = Mul(h, g)\n r = Relu(k)\n s = Conv(r, w)\n y = Mul(s, b)",
        "float[8,8,1,1] w, float[8,1,1] g, float[8,1,1] b")),
    ("weights that are shared under two names", net("""v = Identity(w)
  h = Conv(x, w)\n k = Mul(h, g)\n r = Relu(k)\n s = Conv(r, v)\n y = Mul(s, b)""",
        "float[8,8,1,1] w, float[8,1,1] g, float[8,1,1] b")),
    ("a matrix with its bias", net("h = MatMul(x, w)\n y = Add(h, c)", "float[8,4] w, float[4] c",
        "(float[N,8] x) => (float[N,4] y)")),
]  # fmt: skip


def analysed(model: onnx.ModelProto) -> Analysed:
    graph, channels = find(model)
    return Analysed(graph, channels, feeds_of(model))


@pytest.mark.parametrize(("name", "text", "ops"), FUSED, ids=[r[0] for r in FUSED])
def test_fused(name, text, ops):
    known = analysed(model := model_of(text))
    found, dropped = fusions(known)
    assert found and not dropped
    made = edit_exactly(known, found).model
    kept = [n.op_type for n in made.graph.node if n.op_type not in ("Constant", "Identity", "Reshape")]
    assert kept == ops.split()
    onnx.checker.check_model(made)
    for a, b in zip(run(model, known.feeds), run(made, known.feeds), strict=True):
        assert a.any() and distance(a, b) < 1e-5


@pytest.mark.parametrize(("name", "text"), STAY, ids=[r[0] for r in STAY])
def test_left_alone(name, text):
    assert fusions(analysed(model_of(text))) == ((), ())


@pytest.mark.parametrize("edit", [FuseLayers("y", "h"), FuseLayers("k", "x"), FuseLayers("y", "nowhere")])
def test_no_such_run(edit):
    known = analysed(
        model_of(net("h = Conv(x, v)\n r = Relu(h)\n y = Conv(r, w)", "float[8,8,1,1] v, float[8,8,1,1] w"))
    )
    with pytest.raises(PlanError, match="no run of linear layers"):
        edit_exactly(known, [edit])


def test_a_run_that_moves_an_output_is_given_up(monkeypatch):
    from onnxprune.pipeline import lossless

    known = analysed(model_of(FUSED[-1][1]))
    real = lossless.check_equal

    def moved(original, made, probes):  # as if rounding showed where the second run is one
        found = real(original, made, probes)
        fused = "Conv Relu Conv" == " ".join(n.op_type for n in made.graph.node)
        return type(found)(1.0, found.samples, False, against="original") if fused else found

    monkeypatch.setattr(lossless, "check_equal", moved)
    found, dropped = fusions(known)
    assert [e.node for e in found] == ["y"] and dropped == ("k",)


def test_from_the_command_line(tmp_path, capsys):
    onnx.save(model_of(LEGACY), tmp_path / "m.onnx")
    args = [str(tmp_path / "m.onnx"), "--lossless", "--plan-out", str(tmp_path / "p.json")]
    assert cli.main([*args, "-o", str(tmp_path / "a.onnx"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fused"] == [{"node": "p", "source": "x"}] and told["cuts"] == [] and told["surgery"]["exact"]
    assert told["after"]["macs"] < told["before"]["macs"]
    plan = PrunePlan.load(tmp_path / "p.json")
    assert plan.fused() == (FuseLayers("p", "x"),) and PrunePlan.from_json(plan.to_json()) == plan
    carried = ["apply", str(tmp_path / "m.onnx"), str(tmp_path / "p.json"), "-o", str(tmp_path / "b.onnx")]
    assert cli.main(carried) == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert "1 runs of layers made one" in capsys.readouterr().out
    assert (
        cli.main(["verify", str(tmp_path / "m.onnx"), str(tmp_path / "a.onnx"), "--plan", str(tmp_path / "p.json")])
        == 0
    )
    assert cli.main(["diff", str(tmp_path / "m.onnx"), str(tmp_path / "a.onnx"), "--json"]) == 0


def test_a_dry_run_tells_what_becomes_of_layers(tmp_path, capsys):
    onnx.save(model_of(LEGACY), tmp_path / "m.onnx")
    assert cli.main([str(tmp_path / "m.onnx"), "--lossless", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["layer"]: row["what"] for row in told["layers"]} == {"h": "one with p", "p": "as it is"}
    assert told["macs"]["after"] < told["macs"]["before"]


def test_only_a_lossless_plan_fuses(tmp_path, capsys):
    onnx.save(model_of(LEGACY), tmp_path / "m.onnx")
    assert cli.main([str(tmp_path / "m.onnx"), "--lossless", "--plan-out", str(tmp_path / "p.json"),
                     "-o", str(tmp_path / "a.onnx")]) == 0  # fmt: skip
    plan = json.loads((tmp_path / "p.json").read_text()) | {"lossless": False}
    (tmp_path / "q.json").write_text(json.dumps(plan))
    assert cli.main(["apply", str(tmp_path / "m.onnx"), str(tmp_path / "q.json"),
                     "-o", str(tmp_path / "b.onnx")]) != 0  # fmt: skip
    assert "not lossless" in capsys.readouterr().err


def test_channels_go_first():
    """Channels that nobody reads go, and the layer is worked out of what is left."""
    text = net("h = Conv(x, v)\n r = Relu(h)\n p = Conv(r, w)\n y = Conv(p, u)",
               "float[8,8,1,1] v, float[16,8,1,1] w, float[8,16,1,1] u")  # fmt: skip
    model = model_of(text)
    for t in model.graph.initializer:
        if t.name == "w":
            value = onnx.numpy_helper.to_array(t).copy()
            value[:, 4:] = 0
            t.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(value), "w"))
    from onnxprune import Lossless, make_plan, open_model

    subject = open_model(model, trusted=True)
    plan = make_plan(subject, Lossless())
    assert plan.fused() and plan.settings["unread"] == 4
    made = edit_exactly(subject.net, plan.edits).model
    for a, b in zip(run(model, subject.feeds), run(made, subject.feeds), strict=True):
        assert distance(a, b) < 1e-5
