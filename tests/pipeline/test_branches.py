"""An If that sizes decide costs nothing: the network is cut like the one without it."""

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.pipeline.opened import open_model
from tests.channels import surgery

NET = """(float[N,1,H,16] x) => (float[] y)
    <float[8,1,4,3] w, float[8,8,3] u, float[5,8,1] v, int64 two = {2}, int64 one = {1}, int64[1] axis = {2}>
    { a = Conv<pads=[0,1,0,1]>(x, w) b = Relu(a) SQUEEZED d = Conv<pads=[1,1]>(s, u) e = Add(s, d) y = Conv(e, v) }"""
BY_SIZE = """z = Shape(b) h = Gather(z, two) k = Equal(h, one)
    s = If(k) <then_branch = t () => (float[] q) { q = Squeeze(b, axis) }, else_branch = f () => (float[] q) { q = Identity(b) }>"""
BOTH_RUN = """(float[N,3,H,H] x) => (float[] y) <float[8,3,3,3] w, float[6,8,1,1] u, float[5,6,1,1] v, int64 two = {2}, int64 zero = {0}>
    { a = Conv<pads=[1,1,1,1]>(x, w) b = Relu(a) z = Shape(b) h = Gather(z, two) o = Mod(h, two) k = Equal(o, zero)
      s = If(k) <then_branch = t () => (float[] q) { q = Neg(b) }, else_branch = f () => (float[] q) { q = Exp(b) }>
      c = Conv(s, u) r = Relu(c) y = Conv(r, v) }"""


def widths(model: onnx.ModelProto, **shapes: list[int]) -> tuple[list[int], list[str]]:
    subject = open_model(model, input_shapes=shapes)
    return sorted(g.width for g in subject.channels.groups), subject.warnings


@pytest.mark.parametrize("height", ["H", "4"])
def test_as_without_the_if(height: str) -> None:
    texts = [NET.replace("H,", f"{height},").replace("SQUEEZED", how) for how in ("s = Squeeze(b, axis)", BY_SIZE)]
    models = [surgery.model_of(text) for text in texts]
    results = [onnxprune.prune(m, ratio=0.5, input_shapes={"x": [1, 1, 4, 16]}, best_effort=True) for m in models]
    assert results[0].after.macs == results[1].after.macs < 0.55 * results[0].before.macs
    for length in (1, 3):
        x = {"x": np.random.default_rng(0).standard_normal((length, 1, 4, 16)).astype(np.float32)}
        assert np.array_equal(*(surgery.run(r.model, x)[0] for r in results))
    told = [w for w in results[1].warnings if "'s' (If)" in w]
    assert len(told) == (height == "H") and all("x=1,1,4,16" in w for w in told)


@pytest.mark.parametrize("size", ["H", "8"], ids=["open", "fixed"])
def test_what_runs_either_way_stays(size: str) -> None:
    model = surgery.model_of(BOTH_RUN.replace("H,H", f"{size},{size}"))
    subject = open_model(model, input_shapes={"x": [1, 3, 8, 8]})
    assert sorted(g.width for g in subject.channels.groups) == [6, 8] and subject.warnings == []
    assert ("If" in {n.op_type for n in subject.graph.nodes.values()}) == (size == "H")


def test_a_branch_with_a_weight_that_runs_either_way_keeps_what_it_reads() -> None:
    text = BOTH_RUN.replace("{ q = Exp(b) }", "{ q = Conv(b, k8) }").replace(
        "float[6,8,1,1] u", "float[6,8,1,1] u, float[8,8,1,1] k8"
    )
    assert widths(surgery.model_of(text), x=[1, 3, 8, 8]) == ([6], [])


def test_both_branches_are_right_after_a_cut() -> None:
    model = surgery.model_of(BOTH_RUN)
    result = onnxprune.prune(model, 0.5, input_shapes={"x": [1, 3, 8, 8]}, repair="none", best_effort=True)
    assert result.surgery.exact and result.after.macs < 0.55 * result.before.macs
    for size in (8, 9):  # one branch, the other
        x = np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32)
        (cut,), (whole,) = (surgery.run(m, {"x": x}) for m in (result.model, surgery.masked(model, result.cuts)))
        assert np.abs(cut - whole).max() < 1e-5 * np.abs(whole).max()


def test_weights_in_the_branch_taken_are_cut() -> None:
    text = """(float[1,3,8,8] x) => (float[] y) <float[8,3,3,3] w, float[8,8,3,3] u, float[5,8,1,1] v, int64 two = {2}, int64 four = {4}>
        { a = Conv(x, w) b = Relu(a) z = Shape(b) h = Gather(z, two) k = Greater(h, four)
          s = If(k) <then_branch = t () => (float[] q) { c = Conv<pads=[1,1,1,1]>(b, u) q = Add(c, b) },
                     else_branch = f () => (float[] q) { q = Identity(b) }> y = Conv(s, v) }"""
    model = surgery.model_of(text)
    assert widths(model)[0] == [8]
    result = onnxprune.prune(model, ratio=0.5, repair="none", best_effort=True)
    assert result.surgery.exact and result.after.macs < 0.55 * result.before.macs
