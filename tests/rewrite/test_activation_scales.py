"""Scales of quantized activations: what a pair becomes when its reach changes, and that a repaired file has such."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

import onnxprune
from onnxprune.graph.model import Graph
from onnxprune.rewrite.activation_scales import Pair, chosen_anew, pairs
from onnxprune.rewrite.held import limits
from onnxprune.rewrite.quantized import held, in_floats
from onnxprune.runtime.sessions import open_session
from tests.rewrite.test_integers import quantized, samples


def pair(kind: type, zero: int | None, scale: float = 0.1) -> Pair:
    at = None if zero is None else np.array(zero, kind)
    bounds = limits(np.dtype(kind))
    assert bounds is not None
    return Pair("q", ("d",), "x", np.array(scale, np.float32), at, bounds)


@pytest.mark.parametrize(
    ("of", "low", "high", "scale", "zero"),
    [
        (pair(np.uint8, 0), 1.0, 0.5, 0.05, 0),  # from zero on
        (pair(np.uint8, None), 1.0, 0.5, 0.05, None),
        (pair(np.int8, -128), 1.0, 0.5, 0.05, -128),
        (pair(np.uint8, 128), 0.5, 0.8, 0.08, 128),  # symmetric: the longer side says
        (pair(np.int8, 0), 2.0, 0.5, 0.2, 0),
        (pair(np.int16, 0), 0.25, 0.5, 0.05, 0),
        (pair(np.uint8, 51), 1.0, 1.0, 0.1, 51),  # -5.1 .. 20.4
        (pair(np.uint8, 51), 2.0, 1.0, 0.12, 85),  # -10.2 .. 20.4
        (pair(np.uint8, 51), 1.0, 0.25, 0.04, 128),  # -5.1 .. 5.1
        (pair(np.int8, -77), 2.0, 1.0, 0.12, -43),
    ],
)
def test_a_pair_reaches_further_or_less_far(of, low, high, scale, zero):
    found, at = of.again(low, high)
    np.testing.assert_allclose(found, scale, rtol=1e-5)
    assert (at is None) == (zero is None)
    assert at is None or (int(at) == zero and at.dtype == of.zero.dtype)


TWO_SIDED = """<ir_version: 8, opset_import: ["": 17]> net (float[n,4] x) => (float[n,4] y)
    <float s = {0.05}, uint8 z = {128}, float t = {0.03}, uint8 o = {0}>
    { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) a = Mul(d, k) r = Transpose(a) m = QuantizeLinear(r, s, z)
      n = DequantizeLinear(m, s, z) b = Neg(n) p = QuantizeLinear(b, t, o) w = DequantizeLinear(p, t, o) y = Transpose(w) }"""


def test_what_had_one_scale_has_one_and_what_begins_at_zero_never_grows():
    model = parser.parse_model(TWO_SIDED)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full(4, 0.5, np.float32), "k"))
    batches = [{"x": np.random.default_rng(0).uniform(-4, 4, (16, 4)).astype(np.float32)}]
    whole, graph = Graph(model), Graph(model)
    before, after = in_floats(whole), in_floats(Graph(model))
    after.set_constant(("a", 1), np.full(4, 1.0, np.float32))
    chosen_anew(graph, whole, before, after, batches)
    first, second, last = pairs(graph.settle())
    assert first.scale == second.scale == np.float32(0.1) and first.at == second.at == 128
    assert last.scale == np.float32(0.03)
    after.set_constant(("a", 1), np.full(4, 0.25, np.float32))
    graph = Graph(model)
    chosen_anew(graph, whole, before, after, batches)
    first, second, last = pairs(graph.settle())
    assert first.scale == second.scale == np.float32(0.05)  # the input reaches as far as ever
    assert last.scale == pytest.approx(0.015)


def test_a_repaired_file_has_scales_that_fit(tmp_path):
    model = quantized(tmp_path, "QDQ", per_channel=True)
    given = {"calibration": samples(), "allocation": "uniform", "criterion": "l1"}
    plain, mended = (onnxprune.prune(model, 0.4, repair=how, **given) for how in ("none", "refit"))
    old, new = (list(pairs(Graph(r.model))) for r in (plain, mended))
    assert [p.scale.tobytes() for p in old] == [p.scale.tobytes() for p in pairs(Graph(model))]
    assert [p.scale.tobytes() for p in old] != [p.scale.tobytes() for p in new]
    graph = Graph(mended.model)
    constants = held(graph)
    for node in graph.nodes.values():
        if node.op_type == "Conv" and len(node.input) > 2:
            scale = graph.value((graph.producer[node.input[0]], 1)) * constants[node.input[1]].scale
            np.testing.assert_allclose(constants[node.input[2]].scale, scale, rtol=1e-6)
    onnx.checker.check_model(str(mended.save(tmp_path / "pruned.onnx")), full_check=True)
    assert np.isfinite(open_session(mended.model).run({"x": samples(2)})[0]).all()
