"""Which function of single elements stands behind a tensor, however it is spelled."""

import numpy as np
import pytest

from onnxprune.graph.activation import activation
from onnxprune.graph.model import Graph
from tests.channels import surgery

HEAD = """(float[N,4,6,6] x) => (float[] y) <float[4,4,3,3] w, float[1] two = {{2}}, float[1] three = {{3}}, float[1] six = {{6}},
    float zero = {{0}}, float top = {{6}}, float[1,4,1,1] own> {{ t = Conv(x, w) {} }}"""
AT = np.linspace(-8, 8, 1001)
HARD = AT * np.clip(AT + 3, 0, 6) / 6
SILU = AT / (1 + np.exp(-AT))
ROWS = {
    "HardSwish of four nodes": (
        "a = Add(t, three) c = Clip(a, zero, top) m = Mul(t, c) e = Div(m, six) y = Conv(e, w)", "e", HARD),
    "with a scale in front and behind": (
        "g = Mul(two, t) s = Sigmoid(g) m = Mul(g, s) e = Sub(m, three) y = Conv(e, w)", "e",
        2 * AT / (1 + np.exp(-2 * AT)) - 3),
    "SiLU into two readers": ("s = Sigmoid(t) e = Mul(t, s) u = Conv(e, w) v = Conv(e, w) y = Add(u, v)", "e", SILU),
    "to the end": ("y = Tanh(t)", "y", np.tanh(AT)),
    "one node": ("e = LeakyRelu<alpha=0.1>(t) y = Conv(e, w)", "e", np.where(AT > 0, AT, 0.1 * AT)),
    "up to a constant of each channel": ("e = Tanh(t) b = Add(e, own) y = Conv(b, w)", "e", np.tanh(AT)),
    "up to where it parts": ("e = Tanh(t) s = Sigmoid(e) u = Conv(e, w) v = Conv(s, w) y = Add(u, v)", "e", np.tanh(AT)),
}  # fmt: skip
NOTHING = {
    "a layer": "y = Conv(t, w)",
    "two layers": "s = Sigmoid(t) u = Conv(s, w) v = Conv(t, w) y = Add(u, v)",
    "another tensor": "y = Add(t, t2)",
    "a constant of each channel": "e = Add(t, own) y = Tanh(e)",
    "neighbours": "y = Softmax<axis=1>(t)",
}


@pytest.mark.parametrize("name", ROWS)
def test_it_is_followed(name):
    body, end, values = ROWS[name]
    graph = Graph(surgery.model_of(HEAD.format(body), 18))
    found = activation(graph, "t", graph.consumers())
    assert found.end == end
    assert np.allclose(found.values(AT), values, atol=1e-5)


@pytest.mark.parametrize("name", NOTHING)
def test_there_is_none(name):
    graph = Graph(surgery.model_of(HEAD.format("t2 = Conv(x, w) " + NOTHING[name]), 18))
    assert activation(graph, "t", graph.consumers()) is None


def test_what_is_an_output_itself_is_seen_as_it_is():
    text = "(float[N,4] x) => (float[N,4] t, float[N,4] y) <float[4,4] w> { t = MatMul(x, w) y = Tanh(t) }"
    graph = Graph(surgery.model_of(text))
    assert activation(graph, "t", graph.consumers()) is None
