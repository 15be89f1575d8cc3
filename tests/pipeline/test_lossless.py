"""Lossless cuts: what is planted is found and goes exactly; what only looks alike stays."""

import json
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune import cli
from onnxprune.channels import Analysed
from onnxprune.graph.model import Graph
from onnxprune.pipeline.lossless import lossless
from onnxprune.plan import MergeColumns, PrunePlan
from tests.channels.surgery import distance, feeds_of, find, model_of, run
from tests.rewrite.steps import apply_lossless, carry_out

Values = dict[str, np.ndarray]


def planted(text: str, plant: Callable[[Values], None]) -> onnx.ModelProto:
    model = model_of(text)
    values = {t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer}
    plant(values)
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in values.items())
    return model


def twin(*names: str, factor: float = 1.0, i: int = 1, j: int = 5) -> Callable[[Values], None]:
    """Make row j of each tensor `factor` times row i."""

    def plant(v: Values) -> None:
        for n in names:
            v[n][j] = factor * v[n][i]

    return plant


def fill(value: float, *names: str, j: int = 5) -> Callable[[Values], None]:
    def plant(v: Values) -> None:
        for n in names:
            v[n][j] = value

    return plant


def both(*plants: Callable[[Values], None]) -> Callable[[Values], None]:
    return lambda v: [p(v) for p in plants] and None


def unread(name: str, j: int = 5) -> Callable[[Values], None]:
    def plant(v: Values) -> None:
        v[name][:, j] = 0

    return plant


PLAIN = """(float[N,3,8,8] x) => (float[N,4,8,8] y)
<float[8,3,3,3] w, float[8] b, float[4,8,K,K] v, float[4] c> {
  h = Conv<pads=[1,1,1,1]>(x, w, b)
  r = ACT(h)
  y = Conv<pads=[P,P,P,P]>(r, v, c) }"""


def plain(act: str = "Relu", kernel: int = 3, pad: int = 1, bias: bool = True) -> str:
    text = PLAIN.replace("K", str(kernel)).replace("P", str(pad)).replace("ACT", act)
    text = text.replace("float[N,4,8,8] y", f"float[N,4,{9 - kernel + 2 * pad},{9 - kernel + 2 * pad}] y")
    return text if bias else text.replace("(r, v, c)", "(r, v)").replace(", float[4] c", "")


NORM = """(float[N,3,8,8] x) => (float[N,4,8,8] y)
<float[8,3,3,3] w, float[8] g, float[8] b, float[8] m, float[8] var, float[4,8,3,3] v> {
  h = Conv<pads=[1,1,1,1]>(x, w)
  n = BatchNormalization(h, g, b, m, var)
  r = Relu(n)
  y = Conv<pads=[1,1,1,1]>(r, v) }"""

DEPTHWISE = """(float[N,3,8,8] x) => (float[N,4,8,8] y)
<float[8,3,1,1] w, float[8] b, float[8,1,3,3] d, float[8] e, float[4,8,1,1] v, float[4] c, float six> {
  h = Conv(x, w, b)
  r = ACT(h)
  k = Conv<group=8, pads=[1,1,1,1]>(r, d, e)
  s = ACT(k)
  y = Conv(s, v, c) }"""

RESIDUAL = """(float[N,3,8,8] x) => (float[N,4,8,8] y)
<float[8,3,3,3] w, float[8] b, float[8,8,3,3] u, float[8] a, float[4,8,3,3] v> {
  h = Conv<pads=[1,1,1,1]>(x, w, b)
  r = Relu(h)
  k = Conv<pads=[1,1,1,1]>(r, u, a)
  s = Add(k, r)
  t = Relu(s)
  y = Conv<pads=[1,1,1,1]>(t, v) }"""

CONCAT = """(float[N,3,8,8] x) => (float[N,4,8,8] y)
<float[8,3,3,3] w, float[8] b, float[6,3,3,3] u, float[6] a, float[4,14,3,3] v> {
  h = Conv<pads=[1,1,1,1]>(x, w, b)
  k = Conv<pads=[1,1,1,1]>(x, u, a)
  t = Concat<axis=1>(k, h)
  r = LeakyRelu(t)
  y = Conv<pads=[1,1,1,1]>(r, v) }"""

FLAT = """(float[N,3,8,8] x) => (float[N,5] y)
<float[8,3,3,3] w, float[8] b, float[128,5] v, float[5] c> {
  h = Conv<pads=[1,1,1,1]>(x, w, b)
  r = Relu(h)
  p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
  f = Flatten(p)
  y = Gemm(f, v, c) }"""

POOLED = """(float[N,3,8,8] x) => (float[N,5] y)
<float[8,3,3,3] w, float[8] b, float[8,5] v, float[5] c> {
  h = Conv<pads=[1,1,1,1]>(x, w, b)
  r = Sigmoid(h)
  p = GlobalAveragePool(r)
  f = Flatten(p)
  z = MatMul(f, v)
  y = Add(z, c) }"""

GATED = """(float[N,3,8,8] x) => (float[N,4,8,8] y)
<float[8,3,3,3] w, float[8] b, float[4,8,1,1] q, float[8,4,1,1] e, float[4,8,3,3] v> {
  h = Conv<pads=[1,1,1,1]>(x, w, b)
  r = Relu(h)
  p = GlobalAveragePool(r)
  s = Conv(p, q)
  g = Conv(s, e)
  a = Sigmoid(g)
  m = Mul(r, a)
  y = Conv<pads=[1,1,1,1]>(m, v) }"""

TWO = """(float[N,3,8,8] x) => (float[N,4,8,8] y)
<float[8,3,3,3] w, float[8] b, float[8,8,3,3] u, float[8] a, float[4,8,1,1] v, float[4] c> {
  h = Conv<pads=[1,1,1,1]>(x, w, b)
  r = Relu(h)
  k = Conv<pads=[P,P,P,P]>(r, u, a)
  t = Relu(k)
  y = Conv(t, v, c) }"""


def only_the_constant(v: Values) -> None:
    """Channel 5 is 0.5 everywhere, and channel 2 of the next layer reads nothing else."""
    v["w"][5], v["b"][5], v["a"][2] = 0, 0.5, 1
    v["u"][2, [0, 1, 2, 3, 4, 6, 7]] = 0


def twin_after_twin(v: Values) -> None:
    """Channels 2 and 3 of the second layer are equal once its equal inputs 1 and 5 are added up."""
    v["u"][3], v["a"][3] = v["u"][2], v["a"][2]
    v["u"][3, 1] += v["u"][3, 5]
    v["u"][3, 5] = 0


PRELU = plain("Leaky").replace("Leaky(h)", "PRelu(h, slope)").replace("<float[8,3", "<float[8,1,1] slope, float[8,3")
SIX = plain("Clip").replace("Clip(h)", "Clip(h, zero, six)").replace(
    "<float[8,3", "<float zero = {0}, float six = {6}, float[8,3")  # fmt: skip
PADDED = """(float[N,3,8,8] x) => (float[N,4,8,8] y)
<float[8,3,3,3] w, float[8] b, float[4,8,3,3] v, int64[8] pads = {0,0,1,1,0,0,1,1}, float[4] c> {
  h = Conv<pads=[1,1,1,1]>(x, w, b)
  r = Relu(h)
  p = Pad(r, pads)
  y = Conv(p, v, c) }"""
WIDER = """(float[N,3,8,8] x) => (float[N,4,8,8] y)
<float[8,3,3,3] w, float[8] b, float[12,8,3,3] u, float[12] a, float[4,12,1,1] v, int64[8] pads = {0,2,0,0,0,2,0,0}> {
  h = Conv<pads=[1,1,1,1]>(x, w, b)
  r = Relu(h)
  p = Pad(r, pads)
  q = Conv<pads=[1,1,1,1]>(r, u, a)
  z = Add(p, q)
  t = Relu(z)
  y = Conv(t, v) }"""
FRAMED = WIDER.replace("0,2,0,0,0,2,0,0", "0,2,1,0,0,2,1,0").replace("pads=[1,1,1,1]>(r", "pads=[2,1,2,1]>(r").replace(
    "N,4,8,8] y", "N,4,10,8] y")  # fmt: skip
BN = ("g", "b", "m", "var")


def folded_norm(v: Values) -> None:
    """Channel 5 is 3 times channel 1 behind BN, by another filter and other statistics."""
    v["w"][5], v["m"][5], v["var"][5] = -2 * v["w"][1], -2 * v["m"][1], v["var"][1]
    v["g"][5], v["b"][5] = -1.5 * v["g"][1], 3 * v["b"][1]


# name, model, what is planted, channels that can go
FOUND = [
    ("zero filter, dead behind Relu", plain(), both(fill(0, "w"), fill(-0.5, "b")), 1),
    ("zero filter and bias", plain(), fill(0, "w", "b"), 1),
    ("constant into a 1x1 conv", plain(kernel=1, pad=0), both(fill(0, "w"), fill(0.5, "b")), 1),
    ("constant into an unpadded conv", plain(pad=0), both(fill(0, "w"), fill(0.5, "b")), 1),
    ("constant into a conv without bias", plain(pad=0, bias=False), both(fill(0, "w"), fill(0.5, "b")), 1),
    ("constant through Sigmoid", plain("Sigmoid", 1, 0), both(fill(0, "w"), fill(0.5, "b")), 1),
    ("constant into MatMul and Add", POOLED, fill(0, "w"), 1),
    ("constant into Gemm, flattened", FLAT, both(fill(0, "w"), fill(0.5, "b")), 1),
    ("gamma zero, beta below zero", NORM, both(fill(0, "g"), fill(-0.1, "b")), 1),
    ("dead before Pad", PADDED, both(fill(0, "w"), fill(-0.1, "b")), 1),
    ("constant beside channels that Pad adds", WIDER, fill(0, "u", j=1), 1),
    ("two equal beside channels that Pad adds", WIDER, twin("u", "a", i=0, j=11), 1),
    ("dead on either side of a Pad", WIDER, both(fill(0, "w"), fill(-0.1, "b"), fill(0, "u", "a", j=7)), 1),
    ("equal on either side of a Pad", WIDER, both(twin("w", "b"), twin("u", "a", i=3, j=7)), 1),
    ("equal on either side of a Pad of rows too", FRAMED, both(twin("w", "b"), twin("u", "a", i=3, j=7)), 1),
    ("two equal beside channels that a Pad of rows adds", FRAMED, twin("u", "a", i=0, j=11), 1),
    ("dead through a gate", GATED, both(fill(0, "w"), fill(-0.1, "b")), 1),
    ("dead through depthwise", DEPTHWISE.replace("ACT", "Relu"), both(fill(0, "w"), fill(-1, "b"), fill(-1, "e")), 1),
    ("constant behind depthwise", DEPTHWISE.replace("ACT", "Relu"), both(fill(0, "d"), fill(1, "e")), 1),
    ("dead in a residual stream", RESIDUAL, both(fill(0, "w", "u"), fill(-1, "b", "a")), 1),
    ("dead in a concatenation", CONCAT, fill(0, "w", "b"), 1),
    ("constant through two convs", TWO.replace("P", "0").replace("4,8,8] y", "4,6,6] y"), only_the_constant, 2),
    ("twins of twins", TWO.replace("P", "1"), both(twin("w", "b"), twin_after_twin), 2),
    ("unread", plain(), unread("v"), 1),
    ("read below rounding", plain(), lambda v: v["v"].__setitem__((slice(None), 5), 1e-15), 1),
    ("unread by both readers", RESIDUAL, both(unread("v"), unread("u")), 1),
    ("equal", plain(), twin("w", "b"), 1),
    ("three equal", plain(), both(twin("w", "b"), twin("w", "b", j=6)), 2),
    ("proportional", plain(), twin("w", "b", factor=2.5), 1),
    ("opposite, no activation", plain("Identity"), twin("w", "b", factor=-2.0), 1),
    ("shifted, into an unpadded conv", plain("Identity", pad=0), both(twin("w"), fill(0.3, "b")), 1),
    ("equal, Sigmoid", plain("Sigmoid"), twin("w", "b"), 1),
    ("equal, Clip(0, 6)", SIX, twin("w", "b"), 1),
    ("equal, HardSwish", plain("HardSwish"), twin("w", "b"), 1),
    ("proportional, LeakyRelu", plain("LeakyRelu"), twin("w", "b", factor=0.5), 1),
    ("proportional, PRelu of one slope", PRELU, both(twin("w", "b", factor=2), twin("slope")), 1),
    ("equal, BN kept", NORM, twin("w", *BN), 1),
    ("proportional through BN", NORM, folded_norm, 1),
    ("proportional, depthwise", DEPTHWISE.replace("ACT", "Relu"), both(twin("w", "b", "e", factor=2), twin("d")), 1),
    (
        "factor made by the depthwise",
        DEPTHWISE.replace("ACT", "Relu"),
        both(twin("w", "b"), twin("d", "e", factor=3)),
        1,
    ),
    ("equal, residual", RESIDUAL, twin("w", "b", "u", "a"), 1),
    ("proportional, residual", RESIDUAL, twin("w", "b", "u", "a", factor=2), 1),
    ("equal, concatenated", CONCAT, twin("w", "b"), 1),
    ("proportional, two producers", CONCAT, both(twin("w", "b", factor=2), twin("u", "a", factor=3)), 2),
    ("proportional, pooled and flattened", FLAT, twin("w", "b", factor=2), 1),
    ("equal, gated", GATED, twin("w", "b", "e"), 1),
    ("twins and dead at once", plain(), both(twin("w", "b"), fill(0, "w", "b", j=3), unread("v", 7)), 3),
    ("everything is one channel", plain(), lambda v: [twin("w", "b", j=j)(v) for j in (0, *range(2, 8))] and None, 7),
]

# What looks like it and must stay whole.
KEPT = [
    ("constant into a padded conv", plain(), both(fill(0, "w"), fill(0.5, "b"))),
    ("constant 0.5 behind Sigmoid, padded", plain("Sigmoid"), fill(0, "w", "b")),
    ("gamma zero, beta above zero", NORM, both(fill(0, "g"), fill(0.1, "b"))),
    ("constant before Pad", PADDED, both(fill(0, "w"), fill(0.1, "b"))),
    ("twins that meet what Pad adds and what it hands on", WIDER, twin("u", "a", i=1, j=2)),
    ("equal on one side of a Pad", WIDER, twin("w", "b")),
    ("constant on either side of a Pad of rows", FRAMED,
     both(fill(0, "w"), fill(0.5, "b"), fill(0, "u", j=7))),
    ("border of a padded conv over a constant", TWO.replace("P", "1"), only_the_constant),
    ("nearly equal", plain(), lambda v: v["w"].__setitem__(5, v["w"][1] * (1 + 1e-3 * v["w"][2]))),
    ("equal filters, other bias", plain(), twin("w")),
    ("proportional filters, equal bias", plain(), both(twin("w", factor=2), twin("b"))),
    ("opposite, Relu", plain(), twin("w", "b", factor=-1.0)),
    ("proportional, Sigmoid", plain("Sigmoid"), twin("w", "b", factor=2)),
    ("proportional, Clip(0, 6)", SIX, twin("w", "b", factor=2)),
    ("proportional, HardSwish", plain("HardSwish"), twin("w", "b", factor=2)),
    ("equal, PRelu of two slopes", PRELU, twin("w", "b")),
    ("shifted, into a padded conv", plain("Identity"), both(twin("w"), fill(0.3, "b"))),
    ("equal, other beta", NORM, twin("w", "g", "m", "var")),
    ("equal, other depthwise", DEPTHWISE.replace("ACT", "Relu"), twin("w", "b", "e")),
    ("depthwise alike, inputs not", DEPTHWISE.replace("ACT", "Relu"), twin("d", "e")),
    ("residual, one branch alike", RESIDUAL, twin("u", "a")),
    ("residual, the stem alike", RESIDUAL, twin("w", "b")),
    ("residual, two factors", RESIDUAL, both(twin("w", "b", factor=2), twin("u", "a", factor=3))),
    ("residual, one branch dead", RESIDUAL, fill(0, "u", "a")),
    ("unread by one reader of two", RESIDUAL, unread("v")),
    ("equal, gates differ", GATED, twin("w", "b")),
    ("nothing planted", plain(), lambda v: None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "plant", "count"), FOUND, ids=[r[0] for r in FOUND])
def test_found_and_removed(name, text, plant, count):
    model = planted(text, plant)
    graph, channels = find(model)
    feeds = feeds_of(model)
    found, surgery, dropped = lossless(Analysed(graph, channels, feeds))
    assert found.unread + found.constant + found.twins == count and not dropped
    assert sum(g.width - len(found.keep[g.name]) for g in channels.groups if g.name in found.keep) == count
    assert surgery.exact and surgery.worst < 1e-5
    pruned = apply_lossless(graph, channels, found)
    for a, b in zip(run(model, feeds), run(pruned, feeds), strict=True):
        assert a.any() and distance(a, b) < 1e-5
    again = Graph(pruned)
    assert sum(v.size for v in weights(again)) < sum(v.size for v in weights(graph))


def weights(graph: Graph) -> list[np.ndarray]:
    return [numpy_helper.to_array(t) for t in graph.initializers.values()]


@pytest.mark.parametrize(("name", "text", "plant"), KEPT, ids=[r[0] for r in KEPT])
def test_left_alone(name, text, plant):
    model = planted(text, plant)
    graph, channels = find(model)
    found, _, dropped = lossless(Analysed(graph, channels, feeds_of(model)))
    assert not found.keep and not found.merges and not dropped


def test_the_proof_is_needed_a_padded_constant_is_not_exact():
    """The trap is real: folding the constant all the same moves the output."""
    model = planted(plain(), both(fill(0, "w"), fill(0.5, "b")))
    graph, channels = find(model)
    forced = MergeColumns("y", 1, 1, (5,), (-1,), (0.0,), (0.5,))
    keep = {channels.groups[0].name: [0, 1, 2, 3, 4, 6, 7]}
    feeds = feeds_of(model)
    assert distance(run(model, feeds)[0], run(carry_out(graph, channels, keep, [forced]), feeds)[0]) > 1e-3


def test_what_moves_an_output_is_given_up(monkeypatch):
    """A wrong proof is caught by the run beside the original, and only its group is given up."""
    model = planted(RESIDUAL, unread("v"))
    graph, channels = find(model)
    from onnxprune.decide import redundancy as decide

    right = decide._Reader.substitute
    monkeypatch.setattr(decide._Reader, "substitute", lambda self, q, alive: right(self, q, alive) or (-1, 0.0, 0.0))
    found, surgery, dropped = lossless(Analysed(graph, channels, feeds_of(model)))
    assert dropped and not found.keep and surgery.exact


def test_widths_stay_multiples_of_the_step():
    model = planted(plain(), both(twin("w", "b"), fill(0, "w", "b", j=3), unread("v", 7)))
    graph, channels = find(model)
    found, *_ = lossless(Analysed(graph, channels, feeds_of(model)), step=lambda g: 2)
    assert [len(k) for k in found.keep.values()] == [6] and found.spared == 1


def test_plan_both_ways():
    merge = MergeColumns("y", 1, 1, (5, 3), (1, -1), (2.5, 0.0), (0.0, 0.25))
    plan = PrunePlan("d", (merge,), lossless=True)
    assert PrunePlan.from_json(plan.to_json()) == plan and plan.lossless


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["--lossless", "--round-to", "1"], 0, ""),
        (["--lossless"], 5, "--round-to 1"),
        (["--lossless", "--ratio", "0.5"], 2, "--ratio"),
        (["--lossless", "--ratios", "0.3,0.5"], 2, "--lossless"),
        (["--lossless", "--repair", "merge"], 2, "--repair"),
    ],
)
def test_command_line(tmp_path, capsys, argv, code, says):
    path, out, plan = tmp_path / "m.onnx", tmp_path / "p.onnx", tmp_path / "plan.json"
    model = planted(plain(), both(twin("w", "b"), fill(0, "w", "b", j=3)))
    onnx.save(model, path)
    argv = [str(path), *argv, "--input-shape", "x=2,3,8,8", "-o", str(out), "--json"]
    argv += [] if "--ratios" in argv else ["--plan-out", str(plan)]
    got = cli.main(argv)
    printed = capsys.readouterr()
    assert got == code and says in printed.err
    if code:
        return
    result = json.loads(printed.out)
    assert result["surgery"]["against"] == "original" and result["surgery"]["worst"] <= 1e-5
    assert result["settings"]["twins"] == 1 and result["settings"]["constant"] == 1 and not result["warnings"]
    again = tmp_path / "again.onnx"
    shape = ["--input-shape", "x=2,3,8,8"]
    assert cli.main(["apply", str(path), str(plan), *shape, "-o", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()
    assert cli.main(["verify", str(path), str(out), "--plan", str(plan), *shape]) == 0
    assert "against the original" in capsys.readouterr().out
    other = onnx.load(out)
    for t in other.graph.initializer:
        if t.name == "v":
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t) * np.float32(1.01), "v"))
    onnx.save(other, again)
    assert cli.main(["verify", str(path), str(again), "--plan", str(plan), *shape]) == 6
