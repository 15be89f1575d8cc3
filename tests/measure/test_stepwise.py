"""Networks run in pieces: every tensor that is asked for in order comes, whatever was run ahead of it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxprune.graph.model import Graph
from onnxprune.measure.stepwise import Runner
from onnxprune.runtime import ports, sessions

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 4, 2, 2] x) => (float[1, 4, 2, 2] y) <int64[2] sizes = {2, 2}> {
    a = Relu(x)
    b = Neg(a)
    s, t = Split<axis = 1>(b, sizes)
    u = Sigmoid(s)
    v = Tanh(t)
    c = Concat<axis = 1>(u, v)
    d = Relu(c)
    y = Neg(d)
}"""


@pytest.mark.parametrize(
    "wanted",
    [
        ("a", "b", "s", "t", "u", "v", "c", "d"),
        ("a", "b", "c", "d"),
        ("a", "s", "t", "d"),
        ("a", "t", "d", "y"),
        ("s", "t"),
    ],
)
@pytest.mark.parametrize("stride", [1, 2, 3, 8])
def test_what_is_wanted_in_order_comes(wanted, stride):
    model = onnx.parser.parse_model(MODEL)
    feeds = ports.default_feed(ports.input_specs(model))
    everything = sessions.open_session(sessions.with_outputs(model, wanted)).run(feeds, wanted)
    runner = Runner(Graph(model), [feeds], ahead=wanted)
    runner.stride = stride
    for name, value in zip(wanted, everything, strict=True):
        assert np.array_equal(runner.until(name)[0], value), name


@pytest.mark.parametrize("first", ["a", "b", "s", "u", "c", "y"])
def test_a_fork_goes_on_where_the_networks_part(first):
    """The candidate differs from `first` on; the runner it was forked from is left as it was."""
    model, other = onnx.parser.parse_model(MODEL), onnx.parser.parse_model(MODEL)
    node = next(n for n in other.graph.node if first in n.output)
    swapped = {"Relu": "Abs", "Neg": "Abs", "Sigmoid": "Tanh"}
    node.op_type = swapped.get(node.op_type, node.op_type)
    batches = [ports.default_feed(ports.input_specs(model), seed=seed) for seed in range(2)]
    runner = Runner(Graph(model), batches)
    runner.before(first)
    for candidate, forked in ((other, runner.fork(Graph(other))), (model, runner)):
        session = sessions.open_session(candidate)
        for feeds, got in zip(batches, forked.outputs(), strict=True):
            assert np.array_equal(session.run(feeds)[0], got[0])


def test_constant_outputs_come_too():
    """An initializer, what nodes make of one, and an input that is handed on."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 2] x) => (float[1, 2] x, float[2] k, float[2] n, float[1, 2] y) <float[2] k = {1, -2}> {
    n = Neg(k)
    y = Relu(x)
}"""
    )
    feeds = {"x": np.array([[3, -4]], np.float32)}
    (got,) = Runner(Graph(model), [feeds]).outputs()
    assert [v.ravel().tolist() for v in got] == [[3, -4], [1, -2], [-1, 2], [3, 0]]


@pytest.mark.parametrize("first", ["a", "s", "u", "c", "d", "y"])
@pytest.mark.parametrize("together", [1, 2])
def test_who_joins_later_sees_what_the_others_saw(first, together):
    model = onnx.parser.parse_model(MODEL)
    batches = [ports.default_feed(ports.input_specs(model), seed=seed) for seed in range(3)]
    runner, whole = Runner(Graph(model), batches[:1]), Runner(Graph(model), batches)
    runner.before(first)
    for k in range(1, 3, together):
        runner.join(batches[k : k + together])
    assert runner.count == 3 and all(len(values) == 3 for values in runner.live.values())
    for got, wanted in zip(runner.outputs(), whole.outputs(), strict=True):
        assert np.array_equal(got[0], wanted[0])
