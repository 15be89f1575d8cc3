"""Curves and trials: the error at a width is what least squares leaves, wherever the channels are read."""

import numpy as np
import pytest

from onnxprune.channels import Analysed, find_channels
from onnxprune.decide.curves import Curves, reader_designs
from onnxprune.decide.trials import Trials, damages, tried_widths
from onnxprune.errors import CalibrationError
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.measure.designs import apart, rows_of, second_moments
from onnxprune.runtime.sessions import open_session, with_outputs
from tests.channels.surgery import feeds_of, model_of

HEAD = "(float[N,3,6,6] x) => (float[] y) <float[6,3,3,3] w0, float[6] b0, {}> {{ h = Conv<pads=[1,1,1,1]>(x, w0, b0) r = Relu(h) {} }}"
NETS = {
    "one reader": HEAD.format("float[5,6,3,3] v", "y = Conv(r, v)"),
    "two readers": HEAD.format("float[5,6,3,3] v, float[5,6,1,1] u", "p = Conv(r, v) q = Conv<strides=[2,2]>(r, u) a = GlobalAveragePool(p) b = GlobalAveragePool(q) y = Add(a, b)"),
    "beside others in a concat": HEAD.format("float[2,3,1,1] u, float[5,8,1,1] v", "k = Conv(x, u) c = Concat<axis=1>(k, r) y = Conv(c, v)"),
    "behind a flatten": HEAD.format("float[5,216] v", "f = Flatten(r) y = Gemm<transB=1>(f, v)"),
    "a grouped reader": HEAD.format("float[4,3,3,3] v, float[2,4,1,1] u", "g = Conv<group=2>(r, v) y = Conv(g, u)"),
}  # fmt: skip


def prepared(text, samples=40):
    model = model_of(text)
    graph, feeds = Graph(model), feeds_of(model, N=samples)
    one = {"x": feeds["x"][:1]}
    channels = find_channels(graph, observe(graph, one))
    net = Analysed(graph, channels, one)
    designs = reader_designs(net)
    H = second_moments(model, list(designs.values()), channels.shapes, lambda n: [feeds], positions=1000)
    return model, graph, feeds, channels, Curves(net, designs, H)


def left_over(curves, model, feeds, group, gone):
    """Relative error of every reader when the channels `gone` are refit away, by plain least squares."""
    total = 0.0
    for r in curves.readings[group.name]:
        d = r.design
        x, y = open_session(with_outputs(model, [d.tensor, d.key])).run(feeds, [d.tensor, d.key])
        rows, target = d.rows_read(x, None).astype(np.float64), rows_of(y, 1, None).astype(np.float64)
        variance = np.square(target - target.mean(0)).sum()
        error = 0.0
        for k in range(d.parts):
            own, t = apart(rows, d.parts)[k], np.split(target, d.parts, axis=1)[k]
            stay = np.setdiff1d(np.arange(d.inputs), r.rows[gone].ravel())
            X = np.c_[own[:, stay], np.ones(len(own))]
            error += np.square(t - X @ np.linalg.lstsq(X, t, rcond=None)[0]).sum()
        total += error / variance
    return total


@pytest.mark.parametrize("name", NETS)
def test_errors_are_what_least_squares_leaves(name):
    model, _, feeds, channels, curves = prepared(NETS[name], 900 if "flatten" in name else 40)
    group = channels.groups[0]
    curve = curves.of(group)
    assert sorted(curve.order) == list(range(group.width)) and curve.errors[-1] == 0
    assert (np.diff(curve.errors) <= 1e-12).all()
    for width in (group.width - 1, group.width // 2):
        brute = left_over(curves, model, feeds, group, curve.order[: group.width - width])
        assert curve.errors[width] == pytest.approx(brute, rel=0.05, abs=2e-3)
    singles = [left_over(curves, model, feeds, group, np.array([c])) for c in range(group.width)]
    assert singles[curve.order[0]] == pytest.approx(min(singles), rel=0.02, abs=1e-3)


def test_the_curve_of_another_order_is_never_below():
    *_, channels, curves = prepared(NETS["one reader"])
    group = channels.groups[0]
    best = curves.of(group)
    other = curves.of(group, order=best.order[::-1])
    assert (other.order == best.order[::-1]).all()
    assert other.errors[group.width - 1] > best.errors[group.width - 1]


def test_twins_cost_nothing():
    model, graph, feeds, channels, _ = prepared(NETS["one reader"])
    w, b = graph.value(("h", 1)).copy(), graph.value(("h", 2)).copy()
    w[4], b[4] = 2 * w[1], 2 * b[1]
    graph.set_constant(("h", 1), w)
    graph.set_constant(("h", 2), b)
    model = graph.export()
    net = Analysed(Graph(model), channels, {})
    designs = reader_designs(net)
    H = second_moments(model, list(designs.values()), channels.shapes, lambda n: [feeds], positions=1000)
    curve = Curves(net, designs, H).of(channels.groups[0])
    assert curve.order[0] in (1, 4) and curve.errors[5] < 3e-3 * curve.errors[4]


@pytest.mark.parametrize("name", NETS)
def test_a_group_masked_alone_is_refit_where_it_is_read(name):
    _, _, feeds, channels, curves = prepared(NETS[name])
    group = channels.groups[0]
    trials = Trials(curves, [feeds])
    curve = curves.of(group)
    assert trials.damage(trials.masked_alone(group, np.array([], int))) < 1e-6
    half = group.width - 1 - group.width // 3
    measured = [trials.damage(trials.masked_alone(group, curve.order[:k])) for k in (1, half)]
    assert 0 < measured[0] and (half == 1 or measured[0] < measured[1])
    cut = trials.masked_alone(group, curve.order[:half])
    whole = trials.damage(trials.masked_alone(group, curve.order))  # only the intercept is left
    assert measured[1] < whole
    for r in curves.readings[group.name]:
        weight = cut.value(r.design.weight)
        assert not r.design.matrix(weight)[:, r.rows[curve.order[:half]].ravel()].any()


def test_damages_meet_the_measurements_and_fall_with_the_width():
    *_, feeds, channels, curves = prepared(NETS["two readers"])
    group, trials = channels.groups[0], Trials(curves, [feeds])
    curve, widths = curves.of(group), [4, 2]
    found = damages(group, curve, trials, widths)
    assert found[group.width] == 0 and (np.diff(found) <= 0).all()
    for w in widths:
        measured = trials.damage(trials.masked_alone(group, curve.order[: group.width - w]))
        assert found[w] == pytest.approx(measured, rel=1e-6)


def test_tried_widths_are_allowed_ones():
    *_, channels, _ = prepared(NETS["one reader"])
    group = channels.groups[0]
    assert tried_widths(group, [2, 4, 6]) == [4, 2]
    assert tried_widths(group, [6]) == []


def test_inputs_that_hardly_vary_give_finite_curves():
    """The variance of what such a layer writes is rounding, below zero even: nothing may be divided by it."""
    model = model_of(NETS["behind a flatten"])
    graph = Graph(model)
    rng = np.random.default_rng(0)
    feeds = {"x": (1e4 + rng.standard_normal((1, 3, 6, 6)) + 1e-3 * rng.random((24, 1, 1, 1))).astype(np.float32)}
    one = {"x": feeds["x"][:1]}
    channels = find_channels(graph, observe(graph, one))
    net = Analysed(graph, channels, one)
    designs = reader_designs(net)
    H = second_moments(model, list(designs.values()), channels.shapes, lambda n: [feeds])
    curves = Curves(net, designs, H)
    assert all(s.energy > 1e-30 for s in curves.solvers.values())
    assert all(np.isfinite(curves.of(g).errors).all() for g in channels.groups)
    trials = Trials(curves, [feeds])
    for group in channels.groups:
        assert np.isfinite(damages(group, curves.of(group), trials, tried_widths(group, range(1, group.width)))).all()


def test_samples_whose_squares_are_not_finite_are_refused():
    model, graph, feeds, channels, _ = prepared(NETS["one reader"])
    designs = reader_designs(Analysed(graph, channels, feeds))
    huge = {"x": feeds["x"] * np.float32(1e25)}
    with pytest.raises(CalibrationError, match=r"'y' \(Conv\) reads .* scale the samples"):
        second_moments(model, list(designs.values()), channels.shapes, lambda n: [huge])


def test_what_nobody_reads_but_as_zeros_costs_nothing():
    """A group whose only reader is no linear layer and reads zeros: none of its channels matters."""
    _, _, _, channels, curves = prepared(NETS["one reader"])
    group = channels.groups[0]
    curves._readers[group.name] = []
    for energies in (None, np.zeros(group.width)):
        curve = curves.of(group, energies)
        assert not curve.errors.any() and sorted(curve.order) == list(range(group.width))
