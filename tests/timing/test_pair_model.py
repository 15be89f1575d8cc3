"""What a chain takes by reckoning: the node that is added and what it writes count, and nothing is timed."""

import numpy as np
import pytest

import onnxprune
from onnxprune.errors import UnsupportedError
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.timing import probes
from onnxprune.timing.pair_model import NODE, WRITTEN, PairModel
from tests.channels import surgery

NET = """(float[1,{c},{s},{s}] x) => (float[] y) <float[{n},{c},3,3] w> { y = Conv<pads=[1,1,1,1]>(x, w) }"""


def relative(c, n, s, way):
    model = surgery.model_of(NET.replace("{c}", str(c)).replace("{n}", str(n)).replace("{s}", str(s)))
    graph = Graph(model)
    shapes = observe(graph, {"x": np.zeros((1, c, s, s), np.float32)}).shapes
    return PairModel(graph, shapes).relative("y", way)


def test_a_pair_by_hand():
    whole = 100 * (32 * 9 * 64 + WRITTEN * 64) + NODE
    first, last = 100 * (32 * 9 * 16 + WRITTEN * 16) + NODE, 100 * (16 * 64 + WRITTEN * 64) + NODE
    assert relative(32, 64, 10, (("channel", 16),)) == pytest.approx((first / whole, last / whole))


def test_filters_are_filled_up():
    assert relative(32, 64, 10, (("channel", 4),))[0] > 0.9 * relative(32, 64, 10, (("channel", 16),))[0]


@pytest.mark.parametrize(("size", "faster"), [((16, 16, 8), False), ((64, 64, 32), True)])
def test_a_small_layer_is_not_worth_a_node(size, faster):
    assert (sum(relative(*size, (("spatial", size[0] // 2),))) < 1) == faster


def test_three_nodes_of_a_layer_split_twice():
    assert len(relative(64, 64, 16, (("spatial", 16), ("channel", 8)))) == 3


LARGE = """(float[N,3,24,24] x) => (float[N,5] y)
  <float[32,3,3,3] w0, float[48,32,3,3] w1, float[32] b0, float[48] b1, float[5,48] w2> {
  a = Conv<pads=[1,1,1,1]>(x, w0, b0) r = Relu(a)
  b = Conv<pads=[1,1,1,1]>(r, w1, b1) s = Relu(b)
  g = GlobalAveragePool(s) f = Flatten(g) y = Gemm<transB=1>(f, w2) }"""


def planted():
    model = surgery.model_of(LARGE)
    rng = np.random.default_rng(3)
    w = (rng.standard_normal((48, 12)) @ rng.standard_normal((12, 32 * 9)) / 12).reshape(48, 32, 3, 3)
    for t in model.graph.initializer:
        if t.name == "w1":
            t.raw_data = w.astype(np.float32).tobytes()
            t.ClearField("float_data")
    return model


def test_by_macs_ranks_are_usual_and_no_clock_is_asked(monkeypatch):
    def timed(*_):
        raise AssertionError("timed")

    monkeypatch.setattr(probes, "profiled", timed)
    x = np.random.default_rng(0).standard_normal((64, 3, 24, 24)).astype(np.float32)
    first, again = (onnxprune.prune(planted(), 0.5, calibration=x, threads=1) for _ in range(2))
    assert [e.node for e in first.plan.factorized()] == ["b"]
    assert first.plan == again.plan and first.model.SerializeToString() == again.model.SerializeToString()
    assert first.macs_removed > 0.49


def test_what_can_lose_nothing_at_all_is_refused_as_before():
    model = surgery.model_of("(float[1,3,8,8] x) => (float[] y) <float[4,3,3,3] w> { y = Conv(x, w) }")
    x = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    with pytest.raises(UnsupportedError, match="nothing can be pruned"):
        onnxprune.prune(model, 0.5, calibration=x, threads=1)
