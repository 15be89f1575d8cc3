"""The refit: what linear algebra can bring back comes back, for every kind of layer and of surroundings.

Each row plants redundancy: some channels of `h` are linear combinations of the others (or copies, where a ReLU
follows), so a network without them can compute the same. The cut loses a lot, the refit must lose next to nothing.
"""

from dataclasses import replace

import numpy as np
import pytest

import onnxprune
from onnxprune.channels import find_channels
from onnxprune.graph.layers import affine, layers
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.measure.designs import along_rows, joined
from onnxprune.rewrite.repair import together
from onnxprune.rewrite.repair.layer_fit import LayerFit, Rows
from onnxprune.rewrite.repair.refit import THOROUGH
from tests.channels.surgery import feeds_of, model_of, run
from tests.rewrite.steps import cut, refit, repair_statistics

X = "(float[N,3,8,8] x) => (float[] y)"
ROWS = [
    ("conv", "float[5,6,3,3] v", "y = Conv<pads=[1,1,1,1]>(h, v)"),
    ("strided conv with bias", "float[5,6,3,3] v, float[5] b", "y = Conv<strides=[2,2]>(h, v, b)"),
    ("same upper", "float[5,6,3,3] v", 'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(h, v)'),
    ("two readers", "float[5,6,3,3] v, float[4,6,1,1] u", "p = Conv(h, v) q = Conv(h, u) a = GlobalAveragePool(p) b = GlobalAveragePool(q) y = Concat<axis=1>(a, b)"),
    ("batch norm behind the reader", "float[5,6,3,3] v, float[5] s, float[5] t, float[5] m, float[5] var",
     "c = Conv(h, v) y = BatchNormalization(c, s, t, m, var)"),
    ("add behind the reader", "float[5,6,3,3] v, float[1,5,1,1] b", "c = Conv(h, v) y = Add(c, b)"),
    ("flatten and gemm", "float[7,384] v, float[7] b", "f = Flatten(h) y = Gemm<transB=1>(f, v, b)"),
    ("matmul", "float[6,7] v", "t = Transpose<perm=[0,2,3,1]>(h) y = MatMul(t, v)"),
    ("shortcut", "float[5,6,3,3] v, float[5,3,3,3] u", "c = Conv(h, v) d = Conv(x, u) y = Add(c, d)"),
    ("concat", "float[5,9,1,1] v", "c = Concat<axis=1>(x, h) y = Conv(c, v)"),
]  # fmt: skip
KEEP = (0, 1, 2, 4)


def planted(weights, body, *, copies=False, opset=18):
    """A net whose channels 3 and 5 of `h` the others can stand in for; and what is known of it."""
    model = model_of(f"{X} <float[6,3,3,3] w, {weights}> {{ h = Conv<pads=[1,1,1,1]>(x, w) {body} }}", opset)
    graph = Graph(model)
    w = graph.value(("h", 1)).copy()
    w[3], w[5] = (w[0], w[2]) if copies else (w[0] - 0.5 * w[1], 0.7 * w[2] + w[4])
    graph.set_constant(("h", 1), w)
    model = graph.export()
    graph = Graph(model)
    channels = find_channels(graph, observe(graph, feeds_of(model, N=1)))
    return model, graph, channels


def outcome(weights, body, adapt_sizes, samples=64, **planting):
    model, graph, channels = planted(weights, body, **planting)
    alive = channels.alive({channels.groups[0].name: KEEP})
    pruned = cut(graph, channels, alive)
    fit, held = feeds_of(model, seed=1, N=samples), feeds_of(model, seed=2, N=64)
    mended = adapt_sizes(graph, pruned, channels, alive, [fit]) if adapt_sizes else pruned
    return error(model, mended, held), mended


def error(model, other, feeds):
    (a,), (b,) = run(model, feeds), run(other, feeds)
    return float(np.square(a - b).sum() / np.square(a - a.mean()).sum())


@pytest.mark.parametrize(("name", "weights", "body"), ROWS, ids=[r[0] for r in ROWS])
def test_what_is_redundant_comes_back(name, weights, body):
    samples = 1100 if "gemm" in name else 64
    before, _ = outcome(weights, body, None)
    after, _ = outcome(weights, body, refit, samples)
    assert before > 0.03 and after < 1e-3 * before


def test_through_depthwise_and_relu_copies_come_back():
    weights = "float[6,1,3,3] d, float[5,6,1,1] v"
    body = "g = Conv<group=6, pads=[1,1,1,1]>(h, d) r = Relu(g) y = Conv(r, v)"
    model, _, _ = planted(weights, body, copies=True)
    graph = Graph(model)
    d = graph.value(("g", 1)).copy()
    d[3], d[5] = d[0], d[2]
    graph.set_constant(("g", 1), d)
    model = graph.export()
    graph = Graph(model)
    channels = find_channels(graph, observe(graph, feeds_of(model, N=1)))
    alive = channels.alive({channels.groups[0].name: KEEP})
    pruned = cut(graph, channels, alive)
    held = feeds_of(model, seed=2, N=64)
    before = error(model, pruned, held)
    after = error(model, refit(graph, pruned, channels, alive, [feeds_of(model, N=64)]), held)
    assert before > 0.03 and after < 1e-3 * before


def test_grouped_readers_learn_group_by_group():
    weights, body = "float[8,3,1,1] v", "y = Conv<group=2>(h, v)"
    model = model_of(f"{X} <float[6,3,3,3] w, {weights}> {{ h = Conv<pads=[1,1,1,1]>(x, w) {body} }}")
    graph = Graph(model)
    w = graph.value(("h", 1)).copy()
    w[2], w[5] = w[0] + w[1], w[3] - w[4]  # the last of each group of three
    graph.set_constant(("h", 1), w)
    model = graph.export()
    graph = Graph(model)
    channels = find_channels(graph, observe(graph, feeds_of(model, N=1)))
    alive = channels.alive({channels.groups[0].name: (0, 1)})
    pruned, held = cut(graph, channels, alive), feeds_of(model, seed=2, N=64)
    mended = refit(graph, pruned, channels, alive, [feeds_of(model, N=64)])
    assert error(model, pruned, held) > 0.03 and error(model, mended, held) < 1e-6


def test_statistics_may_stand_behind_another_layer():
    """The original has gone past what the layer in between makes when that layer's turn comes."""
    model = model_of(f"""{X} <float[6,3,3,3] w, float[6,6,3,3] a, float[6,6,3,3] b, float[6] s, float[6] t, float[6] mean,
        float[6] var, float[5,6,1,1] u, float[5,6,1,1] v> {{ h = Conv<pads=[1,1,1,1]>(x, w) c = Conv(h, a) d = Conv(h, b)
        r = Relu(d) n = BatchNormalization(c, s, t, mean, var) e = Conv(r, u) f = Conv(n, v) y = Add(e, f) }}""")
    graph = Graph(model)
    channels = find_channels(graph, observe(graph, feeds_of(model, N=1)))
    alive = channels.alive({g.name: KEEP for g in channels.groups})
    pruned, held = cut(graph, channels, alive), feeds_of(model, seed=2, N=64)
    mended = refit(graph, pruned, channels, alive, [feeds_of(model, N=64)])
    assert error(model, mended, held) < error(model, pruned, held)


def test_both_layers_of_an_add_are_solved_for_together(monkeypatch):
    """What the branch has lost, the shortcut's layer sees only mixed with what the branch still has."""
    model = model_of(f"""{X} <float[6,3,3,3] w, float[5,6,3,3] v, float[6,3,3,3] k, float[5,6,3,3] u>
        {{ h = Conv<pads=[1,1,1,1]>(x, w) c = Conv(h, v) j = Conv<pads=[1,1,1,1]>(x, k) d = Conv(j, u) y = Add(c, d) }}""")
    graph = Graph(model)
    w = graph.value(("h", 1))
    mixed = [w[2] + w[0], w[3] + w[0], w[4] + w[1], w[5] + w[1], w[2] - w[3], w[4] - w[5]]
    graph.set_constant(("j", 1), np.stack(mixed))
    model = graph.export()
    graph = Graph(model)
    channels = find_channels(graph, observe(graph, feeds_of(model, N=1)))
    group = next(g for g in channels.groups if any(s.use == ("c", 1) for s in g.readers))
    alive = channels.alive({group.name: (0, 1)})
    pruned, held = cut(graph, channels, alive), feeds_of(model, seed=2, N=64)
    mended = refit(graph, pruned, channels, alive, [feeds_of(model, N=64)])
    assert error(model, mended, held) < 1e-6
    monkeypatch.setattr(together.Together, "_behind", lambda *_: None)  # each for itself: it cannot be had
    alone = refit(graph, pruned, channels, alive, [feeds_of(model, N=64)])
    assert error(model, alone, held) > 1e-2


DEEP = ("float[6,6,3,3] k, float[5,6,1,1] v", "r = Relu(h) g = Conv<pads=[1,1,1,1]>(r, k) q = Relu(g) y = Conv(q, v)")


def test_the_producer_repairs_its_reader():
    model = model_of(f"{X} <float[6,3,3,3] w, {DEEP[0]}> {{ h = Conv<pads=[1,1,1,1]>(x, w) {DEEP[1]} }}")
    graph = Graph(model)
    channels = find_channels(graph, observe(graph, feeds_of(model, N=1)))
    group = next(g for g in channels.groups if any(s.use == ("y", 1) for s in g.readers))
    alive = channels.alive({group.name: (0, 2, 4)})
    pruned, held = cut(graph, channels, alive), feeds_of(model, seed=2, N=64)
    errors = []
    for rounds in (0, THOROUGH.rounds):
        effort = replace(THOROUGH, rounds=rounds)
        errors.append(error(model, refit(graph, pruned, channels, alive, [feeds_of(model, N=64)], effort=effort), held))
    assert errors[1] < 0.95 * errors[0]


PAIRS = [
    ("conv", "float[6,6,3,3] k, float[5,6,1,1] v", "r = Relu(h) g = Conv<pads=[1,1,1,1]>(r, k) q = Relu(g) y = Conv(q, v)"),
    ("strided reader", "float[6,6,3,3] k, float[5,6,3,3] v", "g = Conv(h, k) q = Relu(g) y = Conv<strides=[2,2], pads=[1,0,0,1]>(q, v)"),
    ("gemm", "float[8,6] k, float[8] b, float[5,8] v", "p = GlobalAveragePool(h) f = Flatten(p) g = Gemm<transB=1>(f, k, b) q = Relu(g) y = Gemm<transB=1>(q, v)"),
    ("matmul over positions", "float[6,8] k, float[8] b, float[8,5] v",
     "t = Transpose<perm=[0,2,3,1]>(h) m = MatMul(t, k) g = Add(m, b) q = Relu(g) y = MatMul(q, v)"),
]  # fmt: skip


def halved(weights, body):
    """A net, and a cut that leaves the last group half of its channels."""
    model = model_of(f"{X} <float[6,3,3,3] w, {weights}> {{ h = Conv<pads=[1,1,1,1]>(x, w) {body} }}")
    graph = Graph(model)
    channels = find_channels(graph, observe(graph, feeds_of(model, N=1)))
    group = next(g for g in channels.groups if any(s.use == ("y", 1) for s in g.readers))
    alive = channels.alive({group.name: range(0, group.width, 2)})
    return model, graph, channels, alive, cut(graph, channels, alive)


@pytest.mark.parametrize(("name", "weights", "body"), PAIRS, ids=[r[0] for r in PAIRS])
@pytest.mark.parametrize("samples", [5, 400])
def test_the_turn_of_the_producer_never_harms(name, weights, body, samples):
    model, graph, channels, alive, pruned = halved(weights, body)
    errors = []
    for rounds in (0, 5):
        effort = replace(THOROUGH, rounds=rounds)
        mended = refit(graph, pruned, channels, alive, [feeds_of(model, N=samples)], effort=effort)
        errors.append(error(model, mended, feeds_of(model, seed=2, N=64)))
    assert errors[1] <= 1.02 * errors[0]


def test_samples_of_several_sizes():
    text = "(float[N,3,H,W] x) => (float[] y) <float[6,3,3,3] w, float[6,6,3,3] k, float[5,6,1,1] v> { h = Conv<pads=[1,1,1,1]>(x, w) g = Conv<pads=[1,1,1,1]>(h, k) q = Relu(g) y = Conv(q, v) }"
    model = model_of(text)
    graph = Graph(model)
    channels = find_channels(graph, observe(graph, feeds_of(model, N=1, H=8, W=8)))
    group = channels.groups[-1]
    alive = channels.alive({group.name: range(0, group.width, 2)})
    pruned = cut(graph, channels, alive)
    batches = [feeds_of(model, seed=k, N=16, H=8, W=w) for k, w in enumerate((8, 12, 10))]
    held = feeds_of(model, seed=9, N=32, H=8, W=8)
    mended = refit(graph, pruned, channels, alive, batches)
    assert error(model, mended, held) < 0.9 * error(model, pruned, held)


@pytest.mark.parametrize("bounds", ["Relu(g)", "Clip(g, zero, six)"])
def test_targets_behind_a_clipping_need_not_be_met_outside_it(bounds, monkeypatch):
    low = ", ".join(["-0.8"] * 8)
    weights = f"float[8,6,3,3] v, float[8] b = {{{low}}}, float zero = {{0.0}}, float six = {{0.6}}"
    model = model_of(
        f"{X} <float[6,3,3,3] w, {weights}> {{ h = Conv<pads=[1,1,1,1]>(x, w) g = Conv(h, v, b) y = {bounds} }}"
    )
    graph = Graph(model)
    channels = find_channels(graph, observe(graph, feeds_of(model, N=1)))
    alive = channels.alive({channels.groups[0].name: (0, 1, 2)})
    pruned, errors = cut(graph, channels, alive), []
    for sweeps in (0, THOROUGH.sweeps):
        effort = replace(THOROUGH, sweeps=sweeps)
        mended = refit(graph, pruned, channels, alive, [feeds_of(model, N=64)], effort=effort)
        errors.append(error(model, mended, feeds_of(model, seed=2, N=64)))
    assert errors[1] < 0.997 * errors[0]


BEHIND = [
    ("nothing", "", "y = Conv(x, v)"),
    ("a bias", "float[5] b,", "y = Conv(x, v, b)"),
    ("an added constant", "float[5,1,1] b,", "c = Conv(x, v) y = Add(c, b)"),
    ("a batch norm", "float[5] s, float[5] t, float[5] m, float[5] var,", "c = Conv(x, v) y = BatchNormalization(c, s, t, m, var)"),
    ("a bias and a batch norm", "float[5] b, float[5] s, float[5] t, float[5] m, float[5] var,",
     "c = Conv(x, v, b) y = BatchNormalization(c, s, t, m, var)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "weights", "body"), BEHIND, ids=[r[0] for r in BEHIND])
def test_weights_are_seen_as_they_act_and_written_back(name, weights, body):
    model = model_of(f"{X} <{weights} float[5,3,3,3] v> {{ {body} }}")
    graph, feeds = Graph(model), feeds_of(model)
    shapes = observe(graph, feeds).shapes
    (layer,) = layers(graph, shapes)
    fit = LayerFit.of(graph, affine(graph, layer, graph.consumers(), shapes))
    W = fit.weights()
    (y,) = run(model, feeds)
    rows = fit.design.rows_read(feeds["x"], None)
    assert np.allclose(rows @ W[0, :-1] + W[0, -1], np.moveaxis(y, 1, -1).reshape(-1, 5), atol=1e-4)
    fit.write(W)
    assert np.allclose(run(graph.export(), feeds)[0], y, atol=1e-4)
    fit.write(2 * W)
    assert np.allclose(run(graph.export(), feeds)[0], 2 * y, atol=1e-3)


def test_with_few_samples_the_refit_is_no_worse_than_the_statistics():
    weights, body = "float[7,384] v, float[7] b", "f = Flatten(h) y = Gemm<transB=1>(f, v, b)"
    by_refit, _ = outcome(weights, body, refit, samples=40)
    by_statistics, _ = outcome(weights, body, repair_statistics, samples=40)
    assert by_refit <= by_statistics * (1 + 1e-6)


CURVES = {
    "SiLU": "g = Mul(four, c) s = Sigmoid(g) y = Mul(g, s)",
    "HardSwish": "g = Mul(four, c) y = HardSwish(g)",
    "behind an Add": "d = Conv(x, k) t = Add(d, c) g = Mul(four, t) s = Sigmoid(g) y = Mul(g, s)",
}


@pytest.mark.parametrize("name", CURVES)
def test_a_layer_sees_the_curve_behind_it(name):
    """What stands behind it comes closer than by least squares on what the layer itself writes."""
    body = f"c = Conv(h, v) {CURVES[name]}"
    model, graph, channels = planted("float[5,6,1,1] v, float[5,3,1,1] k, float four = {4}", body)
    alive = channels.alive({channels.groups[0].name: (0, 2)})
    pruned, held = cut(graph, channels, alive), feeds_of(model, seed=2, N=64)
    fit = [feeds_of(model, seed=1, N=64)]
    seen, blind = (
        error(model, refit(graph, pruned, channels, alive, fit, effort=e), held)
        for e in (THOROUGH, replace(THOROUGH, curved=False))
    )
    assert seen < 0.97 * blind


def test_a_layer_of_few_rows_an_input_is_refitted_with_the_ridge_that_held_samples_choose():
    """It was left as it was cut: with 384 inputs and 400 rows, statistics alone came back."""
    weights, body = "float[7,384] v, float[7] b", "f = Flatten(h) y = Gemm<transB=1>(f, v, b)"
    by_refit, _ = outcome(weights, body, refit, samples=400)
    by_statistics, _ = outcome(weights, body, repair_statistics, samples=400)
    assert by_refit < 0.5 * by_statistics


def test_rows_of_parts_lie_side_by_side_in_memory():
    """numpy's concatenation keeps the order of what it is given, and products with few columns took eight times as
    long."""
    rng = np.random.default_rng(0)
    several = [rng.normal(size=(n, 12)).astype(np.float32) for n in (3, 5)]
    whole, x = np.concatenate(several), along_rows(several, 4)
    assert x.shape == (4, 8, 3) and x.swapaxes(1, 2).flags.c_contiguous
    assert np.array_equal(joined(x), whole) and np.array_equal(joined(along_rows(several, 1)), whole)


def test_the_ridge_is_weak_when_rows_abound_and_chosen_when_they_do_not():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(400, 20)).astype(np.float32), rng.normal(size=(21, 3))
    t = (x @ w[:-1] + 0.3 * rng.normal(size=(400, 3))).astype(np.float32)
    nothing = np.zeros((1, 21, 3))
    assert Rows(x[None], t[None], w[None]).lam == 1e-4
    assert Rows(x[None, :24], t[None, :24], w[None]).lam > 0.1  # the anchor is the truth
    assert Rows(x[None, :120], t[None, :120], nothing).lam < 0.1


@pytest.mark.parametrize("images, strong", [(40, True), (2000, False)])
def test_few_samples_of_many_rows_choose_the_ridge_where_that_saves_much(images, strong):
    """Rows of one sample are alike: two hundred of each tell no more than one does."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(images, 20)), rng.normal(size=(21, 3))
    t = x @ w[:-1] + w[-1] + rng.normal(size=(images, 3))
    each = 8000 // images
    x, t = (np.repeat(v, each, axis=0).astype(np.float32) for v in (x, t))
    assert Rows(x[None], t[None], w[None]).lam == 1e-4
    assert (Rows(x[None], t[None], w[None], doubtful=True).lam > 0.1) == strong
    assert Rows(x[None], t[None], np.zeros((1, 21, 3)), doubtful=True).lam < 0.1


@pytest.mark.parametrize("product", ["MatMul(f, u)", 'Einsum<equation="bcn,nk->bck">(f, u)'], ids=["MatMul", "Einsum"])
@pytest.mark.parametrize("repair", ["refit", "statistics", "merge"])
def test_a_layer_along_positions_is_left_alone(product, repair):
    """It keeps all of its own channels; those that it loses lie on another axis."""
    text = f"""(float[N,3,4,4] x) => (float[] y) <float[8,3,3,3] w, float[16,6] u, float[6] b, float[6,16] t, float[4,8,1,1] v,
        int64[3] s = {{0, 8, 16}}, int64[4] q = {{0, 8, 4, 4}}>
        {{ h = Conv<pads=[1,1,1,1]>(x, w) f = Reshape(h, s) g = {product} a = Add(g, b) r = Relu(a) k = MatMul(r, t)
           z = Reshape(k, q) y = Conv(z, v) }}"""
    samples = np.random.default_rng(0).standard_normal((16, 3, 4, 4)).astype(np.float32)
    result = onnxprune.prune(model_of(text), ratio=0.5, calibration=samples, repair=repair, best_effort=True)
    assert Graph(result.model).constant("v").shape[1] < 8 and np.array_equal(
        Graph(result.model).constant("u"), Graph(model_of(text)).constant("u")
    )


def test_the_same_seed_gives_the_same_bytes():
    _, weights, body = ROWS[0]
    mended = [outcome(weights, body, refit)[1].SerializeToString() for _ in range(2)]
    assert mended[0] == mended[1]
