"""Operators that the table does not have: one line more, and everything follows."""

import contextlib

import numpy as np
import pytest

import onnxprune
from onnxprune.channels.rules import linear, registry
from onnxprune.graph import evaluate, operators
from onnxprune.graph.layers import layers
from onnxprune.graph.model import Graph
from onnxprune.measure import designs
from tests.channels.surgery import feeds_of, find, model_of, run

MICROSOFT = operators.MICROSOFT
ACTIVATED = """(float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] w, float[8] b, float[4,8,1,1] v>
    { h = Conv(x, w, b) z = com.microsoft.FastGelu(h) y = Conv(z, v) }"""
LAYERED = """(float[N,3,8,8] x) => (float[] y) <float[16,3,3,3] w, float[16] b, float[16,16,3,3] u, float[16] c, float[4,16,1,1] v>
    { h = Conv(x, w, b) r = Relu(h) k = com.microsoft.FusedConv(r, u, c) z = Relu(k) y = Conv(z, v) }"""  # fmt: skip


@contextlib.contextmanager
def entered(*tables):
    """What is entered into the tables meanwhile is taken out again."""
    before = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, old in zip(tables, before, strict=True):
            table.clear()
            table.update(old)


def test_a_new_activation_takes_one_line():
    model = model_of(ACTIVATED)
    with entered(operators.TABLE):
        del operators.TABLE[MICROSOFT, "FastGelu"]
        assert [g.width for g in find(model)[1].groups] == []
        operators.op("FastGelu", operators.UNARY, domain=MICROSOFT)
        result = onnxprune.prune(model, ratio=0.5)
        assert Graph(result.model).constant("v").shape == (4, 4, 1, 1)


def test_a_new_function_of_sizes_takes_one_line():
    model = model_of("(float[2] x) => (float[] y) <float c = {3.0}> { k = Sinh(c) y = Mul(x, k) }")
    node = next(n for n in model.graph.node if n.op_type == "Sinh")
    assert not evaluate.foldable(node)
    with entered(operators.TABLE):
        del operators.TABLE["", "Sinh"]
        operators.op("Sinh", operators.UNARY, numpy=np.sinh)
        assert evaluate.evaluate(node, [np.float32(3)], 18)[0] == np.sinh(np.float32(3))


@pytest.mark.parametrize("repair", ["refit", "merge", "statistics"])
def test_a_new_layer_takes_a_line_a_rule_and_a_design(repair):
    model = model_of(LAYERED)
    samples = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    with entered(operators.TABLE, registry.RULES, designs.MAKERS):
        del operators.TABLE[MICROSOFT, "FusedConv"]
        operators.op("FusedConv", operators.LAYER, operators.conv(bias=2), learned=(1, 2), domain=MICROSOFT)
        registry.rule("FusedConv", domain=MICROSOFT)(linear.conv)
        designs.design("FusedConv", domain=MICROSOFT)(designs.MAKERS["", "Conv"])
        graph, channels = find(model)
        assert sorted(g.width for g in channels.groups) == [16, 16]
        assert [layer.op for layer in layers(graph, channels.shapes)] == ["Conv", "FusedConv", "Conv"]
        assert not designs.refusals(graph, channels.shapes)
        plain = onnxprune.prune(model, ratio=0.5, calibration=samples, repair="none", seed=0)
        mended = onnxprune.prune(model, ratio=0.5, calibration=samples, repair=repair, seed=0)
        feeds = feeds_of(model)
        (wanted,) = run(model, feeds)
        errors = [np.abs(run(r.model, feeds)[0] - wanted).mean() for r in (mended, plain)]
        assert Graph(mended.model).constant("u").shape[0] < 16 and errors[0] < errors[1]
