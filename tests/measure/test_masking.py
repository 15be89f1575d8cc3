"""The yardstick: what a list of cuts removes is nothing where it is read, and only there."""

import numpy as np
import onnx
import pytest

from onnxprune.channels import removed_cuts
from onnxprune.errors import UsageError
from onnxprune.measure.masking import masked
from tests.channels import surgery
from tests.rewrite.steps import cut as step_cut


def cut(node, operand, axis, rank, length, *removed):
    return {"node": node, "input": operand, "axis": axis, "rank": rank, "length": length, "removed": list(removed)}


def outcomes(text, cuts, **values):
    """(inputs, the model's constants by name, outputs of the masked model); `values` replace constants."""
    model = surgery.model_of(text)
    for t in model.graph.initializer:
        if t.name in values:
            t.CopyFrom(
                onnx.numpy_helper.from_array(np.asarray(values[t.name], onnx.numpy_helper.to_array(t).dtype), t.name)
            )
    before = model.SerializeToString()
    found = masked(model, cuts)
    assert model.SerializeToString() == before, "the original was edited"
    feeds = surgery.feeds_of(model, N=2)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    return feeds, constants, surgery.run(found.model, feeds)


def without(value, axis, *removed, zero=0):
    found = np.array(value)
    np.moveaxis(found, axis, 0)[list(removed)] = zero
    return found


TWO = "(float[N,4] x) => (float[] y, float[] z) <float[4,5] w, float[5,2] v> { h = MatMul(x, w) y = MatMul(h, v) z = Identity(h) }"
FLOATS = {  # name: (cuts, y, z) of TWO, where h = x @ w
    "nothing": ([], lambda x, w, v: x @ w @ v, lambda x, w: x @ w),
    "an input of the model": ([cut("h", 0, 1, 2, 4, 0, 3)], lambda x, w, v: without(x, 1, 0, 3) @ w @ v, lambda x, w: without(x, 1, 0, 3) @ w),
    "an activation, for one of its readers": ([cut("y", 0, 1, 2, 5, 1)], lambda x, w, v: without(x @ w, 1, 1) @ v, lambda x, w: x @ w),
    "a weight's rows": ([cut("y", 1, 0, 2, 5, 2, 4)], lambda x, w, v: x @ w @ without(v, 0, 2, 4), lambda x, w: x @ w),
    "a weight twice": ([cut("h", 1, 0, 2, 4, 1), cut("h", 1, 1, 2, 5, 0)],
                       lambda x, w, v: x @ without(without(w, 0, 1), 1, 0) @ v, lambda x, w: x @ without(without(w, 0, 1), 1, 0)),
    "two weights": ([cut("y", 1, 1, 2, 2, 0), cut("h", 1, 0, 2, 4, 3)],
                    lambda x, w, v: x @ without(w, 0, 3) @ without(v, 1, 0), lambda x, w: x @ without(w, 0, 3)),
    "all of it": ([cut("z", 0, 1, 2, 5, *range(5))], lambda x, w, v: x @ w @ v, lambda x, w: 0 * (x @ w)),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOATS)
def test_what_is_removed_is_zero_where_it_is_read(name):
    cuts, y, z = FLOATS[name]
    feeds, c, (got_y, got_z) = outcomes(TWO, cuts)
    assert np.allclose(got_y, y(feeds["x"], c["w"], c["v"]), atol=1e-5)
    assert np.allclose(got_z, z(feeds["x"], c["w"]), atol=1e-5)


def test_a_weight_that_two_nodes_read_is_cut_for_one():
    text = "(float[N,4] x) => (float[] y, float[] z) <float[4,5] w> { y = MatMul(x, w) z = MatMul(x, w) }"
    feeds, c, (y, z) = outcomes(text, [cut("y", 1, 1, 2, 5, 0, 2)])
    assert np.allclose(z, feeds["x"] @ c["w"], atol=1e-5)
    assert np.allclose(y, without(feeds["x"] @ c["w"], 1, 0, 2), atol=1e-5)


def test_a_tensor_keeps_its_type():
    text = "(float16[N,4] x) => (float16[] y) { h = Neg(x) y = Relu(h) }"
    feeds, _, (y,) = outcomes(text, [cut("y", 0, 1, 2, 4, 1)])
    assert y.dtype == np.float16 and np.array_equal(y, np.maximum(without(-feeds["x"], 1, 1), 0))


ZERO = [3, -7, 0, 11]
QUANTIZED = {  # name: (net, cut, constants, what the weight is then, as y tells it by an identity)
    "one zero point": (
        "(float[4,4] x) => (float[] y) <int8[4,4] w, float s = {1.0}, int8 zero> { v = DequantizeLinear(w, s, zero) y = MatMul(x, v) }",
        cut("v", 0, 0, 2, 4, 1), {"zero": 5}, lambda w: without(w - 5.0, 0, 1)),
    "zero points by column": (
        "(float[4,4] x) => (float[] y) <int8[4,4] w, float[4] s = {1.0, 1.0, 1.0, 1.0}, int8[4] zero> { v = DequantizeLinear(w, s, zero) y = MatMul(x, v) }",
        cut("v", 0, 0, 2, 4, 1, 2), {"zero": ZERO}, lambda w: without(w - np.array(ZERO, float), 0, 1, 2)),
    "zero points by row": (
        "(float[4,4] x) => (float[] y) <int8[4,4] w, float[4] s = {1.0, 1.0, 1.0, 1.0}, int8[4] zero> { v = DequantizeLinear<axis=0>(w, s, zero) y = MatMul(x, v) }",
        cut("v", 0, 1, 2, 4, 3), {"zero": ZERO}, lambda w: without(w - np.array(ZERO, float)[:, None], 1, 3)),
    "none: zero is zero": (
        "(float[4,4] x) => (float[] y) <int8[4,4] w, float s = {1.0}> { v = DequantizeLinear(w, s) y = MatMul(x, v) }",
        cut("v", 0, 1, 2, 4, 0), {}, lambda w: without(w.astype(float), 1, 0)),
    "MatMulInteger, by column": (
        "(uint8[4,4] x) => (float[] y) <int8[4,4] w, uint8 z = {0}, int8[4] zero> { m = MatMulInteger(x, w, z, zero) y = Cast<to=1>(m) }",
        cut("m", 1, 0, 2, 4, 1), {"zero": ZERO}, lambda w: without(w - np.array(ZERO, float), 0, 1)),
    "ConvInteger": (
        "(uint8[1,4,4,1] x) => (float[] y) <int8[4,4,1,1] w, uint8 z = {0}, int8 zero> { m = ConvInteger(x, w, z, zero) y = Cast<to=1>(m) }",
        cut("m", 1, 1, 4, 4, 2), {"zero": -7}, lambda w: without(w[:, :, 0, 0] + 7, 1, 2).T),
}  # fmt: skip


@pytest.mark.parametrize("name", QUANTIZED)
def test_an_integer_that_stands_for_zero_is_what_is_left(name):
    text, removed, values, expected = QUANTIZED[name]
    feeds, c, (y,) = outcomes(text, [removed], **values)
    x = feeds["x"].reshape(4, 4).astype(float)
    if "Conv" in text:  # positions last
        x, y = feeds["x"][0, :, :, 0].T.astype(float), y[0, :, :, 0].T
    assert np.allclose(y, x @ expected(c["w"].astype(float)), atol=1e-3)


@pytest.mark.parametrize("wrong", [cut("nowhere", 0, 0, 2, 4, 1), cut("h", 2, 0, 2, 4, 1)], ids=["node", "operand"])
def test_a_cut_of_what_is_not_there_is_refused(wrong):
    with pytest.raises(UsageError, match="which the model does not have"):
        masked(surgery.model_of(TWO), [wrong])


def test_nodes_without_a_first_output_are_told_apart():
    text = """(float[6,2,12] x) => (float[] y) <float[1,20,12] w, float[1,20,5] r, float[1,20,12] u, float[1,20,5] q, float[5,3] v>
        { , h = LSTM<hidden_size=5>(x, w, r) , g = LSTM<hidden_size=5>(x, u, q) a = Concat<axis=0>(h, g) y = MatMul(a, v) }"""
    model = surgery.model_of(text)
    graph, channels = surgery.find(model)
    assert [g.width for g in channels.groups] == [5]
    cuts = removed_cuts(graph, channels, channels.alive({channels.groups[0].name: [0, 2]}))
    assert {(c["node"], c["output"]) for c in cuts if "output" in c} == {("", "h"), ("", "g")}
    found = surgery.run(masked(model, cuts).model, surgery.feeds_of(model))
    wanted = surgery.run(
        step_cut(graph, channels, channels.alive({channels.groups[0].name: [0, 2]})), surgery.feeds_of(model)
    )
    assert np.abs(found[0] - wanted[0]).max() < 1e-5
