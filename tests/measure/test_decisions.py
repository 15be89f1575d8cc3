"""The part of a model behind its first decisions, run alone with enlarged rounding."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxprune.graph.model import Graph
from onnxprune.measure import decisions
from onnxprune.measure import surgery as verify
from onnxprune.measure.decisions import Tail
from tests.channels import surgery
from tests.measure import test_surgery

TOP = """(float[1,6] x) => (float[] y) <int64[1] k = {2}> {
    s = Sigmoid(x) t, i = TopK(s, k) y = GatherElements<axis=1>(x, i) }"""
THRESHOLD = """(float[1,6] x) => (float[] y) <float half = {0.5}> {
    s = Sigmoid(x) g = Greater(s, half) n = NonZero(g) q = Transpose<perm=[1,0]>(n) y = GatherND(x, q) }"""
BRANCH = """(float[1,6] x) => (float[] y) <int64[1] k = {2}, int64 one = {1}> {
    s = Sigmoid(x) t, i = TopK(s, k) z = Size(i) c = Greater(z, one)
    y = If(c) <then_branch = a () => (float[] p) { p = GatherElements<axis=1>(x, i) },
               else_branch = b () => (float[] q) { q = Identity(s) }> }"""
TWICE = """(float[1,6] x) => (float[] y) <int64[1] k = {4}, int64[1] two = {2}> {
    s = Sigmoid(x) t, i = TopK(s, k) r = Mul(t, t) y, j = TopK(r, two) }"""
SIZES = """(float[1,6] x) => (float[] y) <int64[1] k = {2}, float half = {0.5}> {
    n = Shape(x) f = Cast<to=1>(n) h = Mul(f, half) o = Floor(h) u = Cast<to=7>(o) s = Sigmoid(x)
    e = Expand(s, n) t, i = TopK(e, k) y = Gather<axis=1>(e, i) }"""
LAYER = """(float[1,6] x) => (float[] y) <int64[1] k = {2}, float[2,3] w> {
    s = Sigmoid(x) t, i = TopK(s, k) y = MatMul(t, w) }"""
NONE = "(float[1,6] x) => (float[] y) { y = Sigmoid(x) }"


def tail(text: str) -> Tail:
    return Tail(Graph(parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> g {text}')))


@pytest.mark.parametrize(
    ("text", "basis", "outputs", "short"),
    [
        (TOP, ["s"], ["y"], True),
        (THRESHOLD, ["s"], ["y"], True),
        (BRANCH, ["s"], ["y"], True),
        (TWICE, ["s"], ["y"], True),
        (SIZES, ["e"], ["y"], True),
        (LAYER, ["s"], ["y"], False),
        (NONE, [], [], False),
    ],
    ids=["TopK", "a threshold", "a branch", "one after the other", "sizes decide nothing", "a layer behind", "none"],
)
def test_what_lies_behind_a_decision(text, basis, outputs, short):
    found = tail(text)
    assert (found.basis, found.outputs, found.short) == (basis, outputs, short)


NEAR = 0.5 + np.array([[3, 1, -1, -2, 2, -3]], np.float32) * 3e-7
FAR = np.array([[0.9, 0.6, 0.4, 0.3, 0.2, 0.1]], np.float32)


@pytest.mark.parametrize("text", [TOP, BRANCH, THRESHOLD], ids=["TopK", "a branch", "a threshold"])
@pytest.mark.parametrize(("scores", "turns"), [(NEAR, True), (FAR, False)], ids=["near", "far"])
def test_rounding_turns_over_what_is_near(text, scores, turns):
    x = np.arange(6, dtype=np.float32)[None]
    noise = np.full((1, 6), 3e-7, np.float32)
    outcomes = [o["y"] for o in tail(text).stirred({"x": x}, {"s": scores}, {"s": scores + noise})]
    assert len(outcomes) == decisions.DRAWS
    picked = x[scores > 0.5] if text is THRESHOLD else x[0, np.argsort(-scores[0])[:2]]
    assert turns != all(np.array_equal(o.ravel(), picked) for o in outcomes)


def test_where_nothing_rounds_nothing_is_run():
    assert not list(tail(TOP).stirred({"x": FAR}, {"s": FAR}, {"s": FAR}))


@pytest.mark.parametrize(("ample", "turned"), [(decisions.AMPLE, False), (1e7, True)])
def test_the_check_plays_rounding_through_again(monkeypatch, ample, turned):
    """A model whose decisions hold by far, and rounding made so large that they do not."""
    model = surgery.model_of(
        """(float[1,3,8,8] x) => (float[] y) <float[32,3,3,3] w, float[9,32,6,6] v, int64[1] k = {3}> {
        h = Conv(x, w) r = Relu(h) c = Conv(r, v) s = Flatten(c) y, i = TopK(s, k) }"""
    )
    monkeypatch.setattr(decisions, "AMPLE", ample)
    runs = []
    run = verify.sessions.Session.run
    monkeypatch.setattr(verify.sessions.Session, "run", lambda self, *a: runs.append(self.name) or run(self, *a))
    monkeypatch.setattr(verify, "picks", lambda model: bool(runs.clear()) or decisions.picks(model))  # the check begins
    result = check(model)
    assert result.exact and bool(result.turned) == turned == bool(result.decisions)
    assert result.samples == 1, "one random input, and what follows the layers twice more"
    assert len(runs) == 2 + decisions.DRAWS


def check(model: onnx.ModelProto, **how: bool) -> verify.Surgery:
    graph, channels = surgery.find(model)
    alive = channels.alive({g.name: np.arange(0, g.width, 2) for g in channels.groups})
    pruned = test_surgery.cut(graph, channels, alive)
    feeds = [surgery.feeds_of(model, seed=k) for k in range(3)]
    cuts, kept = test_surgery.removed_cuts(graph, channels, alive), test_surgery.CutSizes(channels, alive).kept()
    return verify.check_surgery(model, pruned, cuts, feeds, kept=kept, until_turned=True, **how)


PARITY = """(float[1,3,8,8] x) => (float[] y)
    <float[32,3,3,3] w, float[9,32,6,6] v, int64[1] k = {{9}}, float[9,4] m, float a = {{1e7}}, float two = {{2}}> {{
    h = Conv(x, w) r = Relu(h) c = Conv(r, v) f = Flatten(c) g = Mul(f, a) s = Round(g) p = Mod <fmod = 1> (s, two)
    {} }}"""
"""Whether a large number is even is up to rounding."""


@pytest.fixture
def runs(monkeypatch):
    made = []
    run = verify.sessions.Session.run
    monkeypatch.setattr(verify.sessions.Session, "run", lambda self, *a: made.append(self.name) or run(self, *a))
    monkeypatch.setattr(verify, "masked", lambda *a, of=verify.masked, **k: made.clear() or of(*a, **k))
    return made


@pytest.mark.parametrize("behind", ["y = Identity(t)", "y = MatMul(t, m)"], ids=["nothing", "a layer"])
def test_a_check_that_stops_early_runs_each_model_once(behind, runs):
    """The slow way shows that nothing but the decisions differs; the one that stops early does not say that it did."""
    model = surgery.model_of(PARITY.format(f"t, i = TopK(p, k) {behind}"))
    result = check(model)
    assert result.exact and result.turned == ("y",) and len(runs) == 3
    with pytest.raises(verify.UnstableDecisions) as raised:
        check(model, stop_early=True)
    assert raised.value.surgery.turned == ("y",) and not raised.value.surgery.exact and len(runs) == 2


@pytest.mark.parametrize(
    "behind",
    [
        "t, i = TopK <axis = 0> (m, k) y = MatMul(p, m)",
        "t, i = TopK(p, k) j = Cast <to = 1> (i) e = Sub(j, j) y = Add(e, f)",
    ],
    ids=["what is picked plays no part", "no more than rounding"],
)
def test_a_check_that_stops_early_is_thorough_where_no_choice_explains_it(behind, runs):
    model = surgery.model_of(PARITY.format(behind))
    assert check(model, stop_early=True) == check(model)
