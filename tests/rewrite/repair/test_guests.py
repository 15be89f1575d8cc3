"""Samples that join a repair on the way."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.measure.stepwise import Runner
from onnxprune.rewrite.repair import guests
from onnxprune.rewrite.repair.guests import Guests

BODY = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3, 16, 16] x) => (float[N, 8, 4, 4] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w0)
    b = Relu(a)
    p = MaxPool<kernel_shape = [4, 4], strides = [4, 4]>(b)
    c = Conv<pads = [1, 1, 1, 1]>(p, w1)
    y = Relu(c)
}"""


def net():
    rng = np.random.default_rng(0)
    weights = {"w0": rng.standard_normal((8, 3, 3, 3)), "w1": rng.standard_normal((8, 8, 3, 3))}
    model = onnx.parser.parse_model(BODY)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items())
    return model


def stops_of(graph):
    x = np.zeros((1, 3, 16, 16), np.float32)
    batches = [{"x": np.repeat(x, 4, axis=0)}] * 12
    return [Runner(graph, batches[:1]) for _ in range(2)], batches, observe(graph, {"x": x}).shapes


def test_the_first_layers_see_as_many_as_find_room(monkeypatch):
    runners, batches, shapes = stops_of(Graph(net()))
    monkeypatch.setattr(guests, "HELD", 3 * 2 * 4 * 4 * 8 * 16 * 16)  # two networks, three batches of the first layer
    found = Guests.of(runners, batches, (shapes, shapes), [("a",), ("c", "p")])
    assert found.room[0] == 3 and found.room[1] == 12
    found.come(0)
    assert found.share == 3 / 12
    for runner in runners:
        runner.until("p")
    found.come(1)
    assert found.share == 1 and [len(r.live["p"]) for r in runners] == [12, 12]


def test_room_never_shrinks_on_the_way(monkeypatch):
    """Who has joined stays: a large layer at the end keeps them away from the beginning."""
    runners, batches, shapes = stops_of(Graph(net()))
    monkeypatch.setattr(guests, "HELD", 3 * 2 * 4 * 4 * 8 * 16 * 16)
    assert Guests.of(runners, batches, (shapes, shapes), [("p",), ("a",)]).room == [3, 3]


@pytest.mark.parametrize("held", [1, 1 << 22])
def test_a_repair_with_little_room_is_nearly_as_good(held, monkeypatch):
    x = np.random.default_rng(1).standard_normal((256, 3, 16, 16)).astype(np.float32)
    wide = onnxprune.prune(net(), 0.3, calibration=x, threads=1, bench=False)
    monkeypatch.setattr(guests, "HELD", held)
    narrow = onnxprune.prune(net(), 0.3, calibration=x, threads=1, bench=False)
    assert narrow.fidelity.sqnr_db > wide.fidelity.sqnr_db - 1
