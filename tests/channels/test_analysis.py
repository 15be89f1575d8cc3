"""What the analysis promises as a whole: statistics only on demand, sizes that vary stay free, linear time."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.channels import find_channels
from onnxprune.files.read import check_model
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from tests.channels import surgery
from tests.rewrite.steps import cut

# fmt: off
LAYER_NORM = """(float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] w, float[8] s, float[8] b, float[5,8,1,1] v>
    { h = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(h) n = LayerNormalization(t, s, b)
      u = Transpose<perm=[0,3,1,2]>(n) y = Conv(u, v) }"""
BY_HAND = """(float[N,6,12] x) => (float[] y)
    <float[12,8] w, float[8] s, float[8] b, float[8,5] v, int64[1] a = {-1}, float two = {2.0}, float e = {0.00001}>
    { h = MatMul(x, w) m = ReduceMean(h, a) d = Sub(h, m) q = Pow(d, two) p = ReduceMean(q, a) r = Add(p, e)
      k = Sqrt(r) n = Div(d, k) g = Mul(n, s) z = Add(g, b) y = MatMul(z, v) }"""
GROUP_NORM = """(float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] w, float[8] s, float[8] b, float[5,8,1,1] v>
    { h = Conv(x, w) n = GroupNormalization<num_groups=2>(h, s, b) y = Conv(n, v) }"""
DYNAMIC = """(float[1,12] x) => (float[] y) <float[12,8] u, int8[8,5] w>
    { h = MatMul(x, u) q, s, z = DynamicQuantizeLinear(h) m = MatMulInteger(q, w, z) f = Cast<to=1>(m) y = Mul(f, s) }"""
# fmt: on


@pytest.mark.parametrize(
    ("text", "without", "with_", "nodes"),
    [
        (LAYER_NORM, [], [8], 1),
        (BY_HAND, [], [8], 2),
        (GROUP_NORM, [2], [4], 1),
        (DYNAMIC, [8], [8], 0),
    ],
    ids=["LayerNormalization", "by hand", "GroupNormalization", "DynamicQuantizeLinear"],
)
def test_statistics_are_pruned_only_when_asked(text: str, without: list, with_: list, nodes: int) -> None:
    model = surgery.model_of(text, 21)
    graph, exact = surgery.find(model)
    assert [g.width for g in exact.groups] == without and not exact.inexact
    graph, channels = surgery.find(model, prune_statistics=True)
    assert [g.width for g in channels.groups] == with_ and len(channels.inexact) == nodes
    pruned = cut(graph, channels, channels.alive(surgery.choose(channels, "half")))
    feeds = surgery.feeds_of(model)
    (before,), (after,) = surgery.run(model, feeds), surgery.run(pruned, feeds)
    assert before.shape == after.shape and np.isfinite(after).all()


def test_a_local_function_is_inlined() -> None:
    text = """<ir_version: 9, opset_import: ["" : 18, "mine" : 1]>
        g (float[1,3,8,8] x) => (float[] y) <float[8,3,3,3] w, float[5,8,1,1] v>
        { h = Conv(x, w) r = mine.half(h) y = Conv(r, v) }
        <domain: "mine", opset_import: ["" : 18]> half (a) => (b) { c = Relu(a) b = Add(c, a) }"""
    model = check_model(surgery.model_of(text))
    graph, channels = surgery.find(model)
    assert [g.width for g in channels.groups] == [8]
    surgery.assert_exact(model, graph, channels, "half")


FUNCTIONS = """<ir_version: 9, opset_import: ["" : 18, "mine" : 1]>
    g (float[1,3,8,8] x) => (float[] y)
    <float[8,3,3,3] w, float[8] s, float[8] b, float[8] m, float[8] var, float[8,8,3,3] v, float[8] t, float[8] c,
     float[8] n, float[8] var2, float[5,8,1,1] o>
    { h = mine.block<pads=[1,1,1,1]>(x, w, s, b, m, var) k = mine.block<pads=[1,1,1,1]>(h, v, t, c, n, var2)
      z = Add(h, k) y = Conv(z, o) }
    <domain: "mine", opset_import: ["" : 18, "mine" : 1]> block <pads> (x, w, s, b, m, var) => (y)
    { c = Conv<pads: ints = @pads>(x, w) n = BatchNormalization(c, s, b, m, var) y = mine.silu<slope=0.25>(n) }
    <domain: "mine", opset_import: ["" : 18]> silu <slope> (x) => (y)
    { f = Constant<value_float: float = @slope>() g = Mul(x, f) h = Sigmoid(g) y = Mul(x, h) }"""


def test_nested_functions_with_attributes_are_inlined() -> None:
    """As torch's exporter writes modules: one function called with several sets of weights."""
    model = check_model(surgery.model_of(FUNCTIONS))
    graph, channels = surgery.find(model)
    assert [g.width for g in channels.groups] == [8]
    surgery.assert_explained(graph, channels)
    for how in ("half", "one"):
        surgery.assert_exact(model, graph, channels, how)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("""(float[N,3,H,H] x) => (float[] y)
            <float[8,3,3,3] w, float[8,8,3,3] u, float[4,8,1,1] v, int64[1] a = {0}, int64[1] b = {2}, int64[1] e = {4}>
            { h = Conv<pads=[1,1,1,1]>(x, w) d = Conv<pads=[1,1,1,1], strides=[2,2]>(h, u) s = Shape(d)
              n = Slice(s, a, b) t = Shape(h) m = Slice(t, b, e) k = Concat<axis=0>(n, m)
              z = Resize<mode="nearest">(d, , , k) q = Add(z, h) y = Conv(q, v) }""", (8, 12, 15)),
        ("""(float[N,3,H,H] x) => (float[] y)
            <float[8,3,3,3] w, float[8,5] v, int64[1] a = {0}, int64[1] o = {1}, int64[1] c = {8}, int64[1] m = {-1}>
            { h = Conv(x, w) s = Shape(h) n = Slice(s, a, o) k = Concat<axis=0>(n, c, m) f = Reshape(h, k)
              t = Transpose<perm=[0,2,1]>(f) y = MatMul(t, v) }""", (8, 11)),
    ],
    ids=["Resize to another map's size", "sequence"],
)  # fmt: skip
def test_sizes_that_vary_are_not_frozen(text: str, sizes: tuple[int, ...]) -> None:
    model = surgery.model_of(text)
    graph, channels = surgery.find(model, surgery.feeds_of(model, N=2, H=8))
    assert [g.width for g in channels.groups] == [8]
    for batch, size in zip((1, 2, 3), sizes, strict=False):
        surgery.assert_exact(model, graph, channels, "half", N=batch, H=size)


def test_a_single_channel_does_not_lie_along_the_batch() -> None:
    model = surgery.model_of("""(float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] w, float[1,8,1,1] u, float[5,8,1,1] v>
        { h = Conv(x, w) a = Conv(h, u) s = Sigmoid(a) z = Mul(h, s) y = Conv(z, v) }""")
    _, channels = surgery.find(model)
    assert {channels.lines[name][0] for name in ("h", "a", "s", "z")} == {1}


def test_the_same_model_gives_the_same_groups() -> None:
    model = surgery.model_of(GROUP_NORM, 21)
    first, second = (surgery.find(model)[1] for _ in range(2))
    assert [g.name for g in first.groups] == [g.name for g in second.groups]
    assert first.pinned == second.pinned


def test_the_hardest_cut_leaves_one_channel_and_the_original() -> None:
    model = surgery.model_of(GROUP_NORM, 21)
    before = model.SerializeToString()
    graph, channels = surgery.find(model)
    pruned = cut(graph, channels, channels.alive({g.name: [0] for g in channels.groups}))
    surgery.run(pruned, surgery.feeds_of(model))
    assert model.SerializeToString() == before


def long_net(blocks: int) -> onnx.ModelProto:
    """Residual blocks of 7 nodes, with a shape computed at run time and a Concat now and then."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((8, 3, 1, 1)) * 0.1}
    nodes = [helper.make_node("Conv", ["x", "w"], ["h0"])]
    for k in range(blocks):
        weights[f"u{k}"] = rng.standard_normal((8, 8, 1, 1)) * 0.1
        weights[f"v{k}"] = rng.standard_normal((8, 8, 1, 1)) * 0.1
        nodes += [
            helper.make_node("Conv", [f"h{k}", f"u{k}"], [f"a{k}"]),
            helper.make_node("Relu", [f"a{k}"], [f"b{k}"]),
            helper.make_node("Conv", [f"b{k}", f"v{k}"], [f"c{k}"]),
            helper.make_node("Add", [f"c{k}", f"h{k}"], [f"d{k}"]),
            helper.make_node("Shape", [f"d{k}"], [f"s{k}"]),
            helper.make_node("Flatten", [f"d{k}"], [f"f{k}"]),
            helper.make_node("Reshape", [f"f{k}", f"s{k}"], [f"h{k + 1}"]),
        ]
    weights["o"] = rng.standard_normal((4, 8, 1, 1))
    nodes.append(helper.make_node("Conv", [f"h{blocks}", "o"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "long",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.slow
def test_ten_thousand_nodes() -> None:
    """10 s is the promise for one idle core; the margin is for a busy machine."""
    model = long_net(1430)
    assert len(model.graph.node) > 10_000
    graph = Graph(model)
    observed = observe(graph, surgery.feeds_of(model))
    start = time.process_time()
    channels = find_channels(graph, observed)
    pruned = cut(graph, channels, channels.alive(surgery.choose(channels, "half")))
    spent = time.process_time() - start
    assert len(channels.groups) == 1431
    assert spent < 30, f"{spent:.1f} s"
    surgery.run(pruned, surgery.feeds_of(model))
