"""Samples that hardly spread are warned of, where something in the network says what it was made for."""

import numpy as np
import pytest

from onnxprune.channels import Analysed, find_channels
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.measure.telling import doubts
from tests.channels.surgery import model_of

TAIL = "r = Relu(h) k = Conv(r, v) g = GlobalAveragePool(k) y = Flatten(g) }"
PLAIN = (
    "(float[N,3,8,8] x) => (float[] y) <float[16,3,3,3] w, float[16] b, float[5,16,1,1] v> { h = Conv(x, w, b) " + TAIL
)
INSIDE = (
    """(uint8[N,8,8,3] x) => (float[] y) <float[16,3,3,3] w, float[16] b, float[5,16,1,1] v, float m = {127.5}>
    { c = Cast<to=1>(x) d = Sub(c, m) e = Div(d, m) t = Transpose<perm=[0,3,1,2]>(e) h = Conv(t, w, b) """
    + TAIL
)
QUANTIZED = (
    """(float[N,3,8,8] x) => (float[] y) <float[16,3,3,3] w, float[16] b, float[5,16,1,1] v, float s = {0.02}, int8 z = {0}>
    { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) h = Conv(d, w) """
    + TAIL
)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((32, 3, 8, 8)).astype(np.float32)
PIXELS = RNG.integers(0, 256, (32, 8, 8, 3)).astype(np.uint8)


def said(text, x):
    model = model_of(text)
    graph = Graph(model)
    feeds = {"x": x[:1]}
    net = Analysed(graph, find_channels(graph, observe(graph, feeds)), feeds)
    return [
        w
        for w in doubts(net, [{"x": x[:16]}, {"x": x[16:]}], held=16)
        if "spread" in w or "look like" in w or "hold nothing" in w
    ]


@pytest.mark.parametrize(
    ("text", "x", "words"),
    [
        (PLAIN, X / 1000, "first layer makes of them varies by"),
        (INSIDE, (PIXELS > 127).astype(np.uint8), "nothing but 0 and 1"),
        (INSIDE, np.where(PIXELS > 127, 255, 0).astype(np.uint8), "nothing but 0 and 255"),
        (QUANTIZED, X / 255, "steps of quantized input 'x'"),
    ],
    ids=["biases", "0 and 1", "clipped", "steps"],
)
def test_what_is_warned_of(text, x, words):
    found = said(text, x)
    assert len(found) == 1 and words in found[0]


@pytest.mark.parametrize(
    ("text", "x"),
    [(PLAIN, X), (PLAIN, 50 * X), (PLAIN, X / 10), (INSIDE, PIXELS), (QUANTIZED, X)],
    ids=["plain", "wide", "narrower", "pixels", "quantized"],
)
def test_what_is_not(text, x):
    assert not said(text, x)
