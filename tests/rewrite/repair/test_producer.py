"""Producer repair on its own: a pair of layers comes closer to what it should write than its reader alone can, never
further away, and the weights that come back are those that were measured."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from onnxprune.graph.model import Graph
from onnxprune.measure.designs import design_of, rows_of
from onnxprune.rewrite.repair.producer import Pair
from tests.channels import surgery

CONVS = """(float[N,4,7,7] x) => (float[] y, float[] h) <float[8,4,3,3] a, float[8] b, float[5,8,{0}] v, float[5] c, float low = {{0.0}},
    float high = {{0.7}}> {{ h = Conv{1}(x, a, b) r = {2} y = Conv{3}(r, v, c) }}"""
DENSE = """(float[N,6] x) => (float[] y, float[] h) <float[8,6] a, float[8] b, float[5,8] v, float[5] c>
    { h = Gemm<transB=1>(x, a, b) r = Relu(h) y = Gemm<transB=1>(r, v, c) }"""
PAIRS = {  # name: (net, bounds in between, share of the error that five rounds leave: measured, and a little)
    "conv": (CONVS.format("3,3", "", "Relu(h)", ""), (0.0, np.inf), 0.8),
    "padded": (CONVS.format("3,3", "<pads=[1,1,1,1]>", "Relu(h)", "<pads=[1,0,2,1]>"), (0.0, np.inf), 0.78),
    "strided, dilated": (CONVS.format("3,2", "", "Relu(h)", "<strides=[2,1], dilations=[1,2], pads=[1,1,0,0]>"), (0.0, np.inf), 0.82),
    "1x1": (CONVS.format("1,1", "", "Relu(h)", ""), (0.0, np.inf), 0.7),
    "clipped": (CONVS.format("3,3", "", "Clip(h, low, high)", ""), (0.0, 0.7), 0.96),
    "nothing between": (CONVS.format("3,3", "", "Identity(h)", ""), (-np.inf, np.inf), 0.45),
    "gemm": (DENSE, (0.0, np.inf), 0.58),
}  # fmt: skip
NARROW = 4


@dataclass
class Case:
    """A net without its last channels: its two layers, their weights, what the whole net writes."""

    pair: dict[str, Any]
    A: np.ndarray
    B: np.ndarray
    wanted: np.ndarray
    graph: Graph
    feeds: dict[str, np.ndarray]

    def run(self, A, B):
        """(rows, outputs): what the narrow net writes with these weights, by ONNX Runtime."""
        edited = self.graph.fork()
        for design, W in ((self.pair["producer"], A), (self.pair["reader"], B)):
            edited.set_constant(design.weight, design.stored(W[None, :-1], self.graph.value(design.weight)))
            edited.set_constant((design.key, 2), W[-1].astype(np.float32))
        return rows_of(surgery.run(edited.export(), self.feeds)[0], 1, None)

    def error(self, A, B):
        return float(np.square(self.run(A, B) - self.wanted).sum())

    def repair(self, rounds, A=None, unit=1.0, goal=None, error=None):
        """The two layers after so many rounds; `unit`: of what the reader writes."""
        wanted = unit * self.wanted
        pair = Pair(
            **self.pair,
            goal=goal or (lambda now: wanted),
            error=error or (lambda now: float(np.square(now - wanted).sum())),
        )
        return pair.repair(self.A if A is None else A, unit * self.B, rounds=rounds, lam=1e-4)


def case(name, samples=16, seed=3):
    text, clip, _ = PAIRS[name]
    whole = surgery.model_of(text, seed=seed)
    graph, feeds = Graph(whole), surgery.feeds_of(whole, N=samples)
    wanted = rows_of(surgery.run(whole, feeds)[0], 1, None)
    graph.set_constant(("h", 1), graph.value(("h", 1))[:NARROW])
    graph.set_constant(("h", 2), graph.value(("h", 2))[:NARROW])
    graph.set_constant(("y", 1), graph.value(("y", 1))[:, :NARROW])
    graph = Graph(graph.export())
    producer, reader = design_of(graph, "h"), design_of(graph, "y")
    hidden = surgery.run(graph.model, feeds)[1]
    A = np.concatenate([producer.matrix(graph.value(("h", 1)))[0], graph.value(("h", 2))[None].astype(float)])
    read = reader.rows_read(np.clip(hidden, *clip).astype(np.float32), None)
    B = np.linalg.lstsq(np.c_[read, np.ones(len(read))], wanted, rcond=None)[0]  # the best that the reader alone can do
    x = [feeds["x"][: samples // 2], feeds["x"][samples // 2 :]]
    pair = {"producer": producer, "reader": reader, "x": x, "hidden_shape": hidden.shape[1:], "clip": clip}
    return Case(pair, A, B, wanted, graph, feeds)


@pytest.mark.parametrize("name", PAIRS)
def test_two_layers_do_what_one_cannot(name):
    c = case(name)
    alone, once, often = (c.error(*c.repair(rounds)) for rounds in (0, 1, 5))
    assert alone == c.error(c.A, c.B)
    assert often <= once < alone and often < PAIRS[name][2] * alone


def test_a_round_that_does_no_good_is_not_kept():
    c = case("gemm")
    A, B = c.repair(3, goal=lambda now: -now)
    assert np.array_equal(A, c.A) and np.array_equal(B, c.B)


def test_a_step_that_is_too_long_is_halved():
    c = case("gemm", seed=24)
    assert c.error(*c.repair(5)) < 0.98 * c.error(*c.repair(0))


@pytest.mark.parametrize("unit", [0.05, 20.0])
def test_the_unit_of_what_is_written_does_not_matter(unit):
    c = case("1x1")
    (A, B), (again, scaled) = c.repair(2), c.repair(2, unit=unit)
    assert np.allclose(again, A, atol=1e-3) and np.allclose(scaled, unit * B, atol=unit * 2e-2)


def test_targets_stay_inside_the_bounds():
    """However much the reader asks for, no unit is asked to go where the clipping would cut it off."""
    c = case("clipped")
    A, _ = c.repair(1, goal=lambda now: now + 1e4, error=lambda now: -float(now.sum()))
    assert np.abs(A).max() < 10 * np.abs(c.A).max() and not np.allclose(A, c.A)


def test_units_outside_the_bounds_stay_where_they_are():
    """A unit that is off on every sample learns nothing: moving it would change nothing."""
    c = case("gemm")
    off = c.A.copy()
    off[-1, 2] = -100
    A, _ = c.repair(2, A=off)
    assert np.allclose(A[:, 2], off[:, 2], atol=1e-3) and np.abs(A - off).max() > 1e-2
