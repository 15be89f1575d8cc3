"""One layer made of two: the pair computes what the low-rank weight computes, whatever the layer looks like."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.errors import UsageError
from onnxprune.graph.model import Graph
from onnxprune.graph.pairs import highest, kinds_of, pair_sizes
from onnxprune.measure.designs import design_of
from onnxprune.plan import Factorize
from onnxprune.rewrite.factorize import split_of
from tests.channels import surgery
from tests.rewrite.steps import factorize

ROWS = {  # name: (inputs and weights, node, kinds)
    "3x3": ("float[2,6,9,8] x", "float[8,6,3,3] w, float[8] b", "Conv<pads=[1,1,1,1]>(x, w, b)", "channel spatial"),
    "no pads": ("float[2,6,9,8] x", "float[8,6,3,3] w", "Conv(x, w)", "channel spatial"),
    "strides, uneven pads": (
        "float[2,6,9,8] x",
        "float[8,6,3,5] w",
        "Conv<pads=[0,2,1,3], strides=[2,3], kernel_shape=[3,5]>(x, w)",
        "channel spatial",
    ),
    "dilations": (
        "float[2,6,11,11] x",
        "float[8,6,3,3] w",
        "Conv<pads=[2,1,2,1], dilations=[2,3]>(x, w)",
        "channel spatial",
    ),
    "same upper": (
        "float[2,6,9,8] x",
        "float[8,6,3,4] w",
        'Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)',
        "channel spatial",
    ),
    "same lower": ("float[2,6,9,8] x", "float[8,6,3,4] w", 'Conv<auto_pad="SAME_LOWER">(x, w)', "channel spatial"),
    "valid": ("float[2,6,9,8] x", "float[8,6,3,3] w", 'Conv<auto_pad="VALID">(x, w)', "channel spatial"),
    "groups": (
        "float[2,6,9,8] x",
        "float[8,3,3,3] w, float[8] b",
        "Conv<group=2, pads=[1,1,1,1]>(x, w, b)",
        "channel spatial",
    ),
    "depthwise": ("float[2,6,9,8] x", "float[6,1,3,3] w", "Conv<group=6, pads=[1,1,1,1]>(x, w)", "spatial"),
    "1x1": ("float[2,6,9,8] x", "float[8,6,1,1] w", "Conv(x, w)", "channel"),
    "1x3": ("float[2,6,9,8] x", "float[8,6,1,3] w", "Conv<pads=[0,1,0,1]>(x, w)", "channel"),
    "one axis": ("float[2,6,9] x", "float[8,6,3] w", "Conv<pads=[1,1], strides=[2]>(x, w)", "channel"),
    "three axes": ("float[2,4,5,5,5] x", "float[8,4,2,2,2] w", "Conv<strides=[2,1,1]>(x, w)", "channel"),
    "gemm": ("float[5,6] x", "float[6,8] w, float[8] b", "Gemm(x, w, b)", "matrix"),
    "gemm, turned": ("float[5,6] x", "float[8,6] w, float[8] b", "Gemm<transB=1>(x, w, b)", "matrix"),
    "matmul": ("float[5,7,6] x", "float[6,8] w", "MatMul(x, w)", "matrix"),
    "half": ("float16[2,6,9,8] x", "float16[8,6,3,3] w", "Conv<pads=[1,1,1,1]>(x, w)", "channel spatial"),
}
CASES = [(name, kind) for name, row in ROWS.items() for kind in row[3].split()]


def model_of(name):
    ports, weights, node, _ = ROWS[name]
    kind = "float16" if "float16" in ports else "float"
    model = surgery.model_of(f"({ports}) => ({kind}[] y) <{weights}> {{ y = {node} }}")
    return model


def feeds_of(model):
    x = model.graph.input[0]
    sizes = [d.dim_value for d in x.type.tensor_type.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(x.type.tensor_type.elem_type)
    return {"x": np.random.default_rng(1).standard_normal(sizes).astype(dtype)}


def with_weight(model, value):
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for t in changed.graph.initializer:
        if t.name == "w":
            t.CopyFrom(numpy_helper.from_array(value, "w"))
    return changed


@pytest.mark.parametrize("name, kind", CASES)
def test_the_pair_is_the_low_rank_weight(name, kind):
    model = model_of(name)
    graph, feeds = Graph(model), feeds_of(model)
    design = design_of(graph, "y")
    weight = graph.value(design.weight)
    tolerance = 2e-2 if weight.dtype == np.float16 else 2e-5
    S = np.stack([np.eye(design.inputs)] * design.parts)
    for rank in (1, 2):
        if rank > highest(graph.nodes["y"], weight.shape, kind):
            continue
        whole = split_of(design, kind, design.matrix(weight), S, rank).product(rank)
        wanted = surgery.run(with_weight(model, design.stored(whole, weight)), feeds)[0]
        pair = factorize(model, [Factorize("y", kind, rank)], feeds)
        got = surgery.run(pair, feeds)[0]
        assert len(pair.graph.node) == 2 and got.shape == wanted.shape and got.dtype == wanted.dtype
        assert np.abs(got.astype(float) - wanted).max() <= tolerance * np.abs(wanted).max()
        stored = {t.name: tuple(t.dims) for t in pair.graph.initializer}
        assert tuple(stored[n.input[1]] for n in pair.graph.node) == pair_sizes(
            graph.nodes["y"], weight.shape, kind, rank
        )


@pytest.mark.parametrize("name, kind", CASES)
def test_full_rank_loses_nothing(name, kind):
    model = model_of(name)
    feeds = feeds_of(model)
    weight = Graph(model).value(("y", 1))
    pair = factorize(model, [Factorize("y", kind, 99)], feeds, [feeds])
    wanted, got = surgery.run(model, feeds)[0], surgery.run(pair, feeds)[0]
    tolerance = 2e-2 if weight.dtype == np.float16 else 2e-5
    assert np.abs(got.astype(float) - wanted).max() <= tolerance * np.abs(wanted).max()


def test_two_in_a_row_make_three():
    model = model_of("3x3")
    model.graph.node[0].name = "conv"
    feeds = feeds_of(model)
    three = factorize(model, [Factorize("y", "spatial", 18), Factorize("y", "channel", 8)], feeds, [feeds])
    assert [n.op_type for n in three.graph.node] == ["Conv"] * 3
    wanted, got = surgery.run(model, feeds)[0], surgery.run(three, feeds)[0]
    assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize(
    "edit, words",
    [
        (Factorize("nowhere", "channel", 2), "no layer"),
        (Factorize("y", "matrix", 2), "by 'matrix'"),
        (Factorize("z", "channel", 2), "no layer"),
    ],
)
def test_what_cannot_be_factorised_is_refused(edit, words):
    model = surgery.model_of("(float[2,6,9,8] x) => (float[] z) <float[8,6,3,3] w> { y = Conv(x, w) z = Relu(y) }")
    with pytest.raises(UsageError, match=words):
        factorize(model, [edit], feeds_of(model))


def test_kinds():
    found = {name: " ".join(kinds_of(Graph(m).nodes["y"], Graph(m).value(("y", 1)).shape)) for name in ROWS
             for m in [model_of(name)]}  # fmt: skip
    assert found == {name: row[3] for name, row in ROWS.items()}
