"""A layer as a least squares problem: rows times matrix is what ONNX Runtime computes, for every kind of layer."""

import numpy as np
import pytest

from onnxprune.graph.model import Graph
from onnxprune.measure.designs import apart, design_of, rows_of, second_moments
from tests.channels.surgery import feeds_of, model_of, run

LAYERS = [
    ("conv", "float[N,6,9,7] x", "float[8,6,3,3] w", "y = Conv(x, w)"),
    ("strided, padded", "float[N,6,9,7] x", "float[8,6,3,3] w", "y = Conv<strides=[2,1], pads=[1,0,2,1]>(x, w)"),
    ("dilated", "float[N,6,9,9] x", "float[8,6,3,3] w", "y = Conv<dilations=[2,3], pads=[2,3,2,3]>(x, w)"),
    ("same upper", "float[N,6,9,8] x", "float[8,6,3,4] w", 'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)'),
    ("same lower", "float[N,6,9,8] x", "float[8,6,3,4] w", 'y = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w)'),
    ("valid", "float[N,6,9,8] x", "float[8,6,3,3] w", 'y = Conv<auto_pad="VALID">(x, w)'),
    ("grouped", "float[N,6,9,7] x", "float[8,3,3,3] w", "y = Conv<group=2, pads=[1,1,1,1]>(x, w)"),
    ("depthwise", "float[N,6,9,7] x", "float[12,1,3,3] w", "y = Conv<group=6, pads=[1,1,1,1]>(x, w)"),
    ("one axis", "float[N,6,11] x", "float[8,6,3] w", "y = Conv<strides=[2], pads=[1,1]>(x, w)"),
    ("three axes", "float[N,2,5,6,7] x", "float[4,2,3,3,3] w", "y = Conv<pads=[1,0,1,1,1,0]>(x, w)"),
    ("gemm", "float[N,6] x", "float[6,5] w", "y = Gemm(x, w)"),
    ("gemm turned", "float[N,6] x", "float[5,6] w", "y = Gemm<transB=1>(x, w)"),
    ("matmul", "float[N,4,6] x", "float[6,5] w", "y = MatMul(x, w)"),
]  # fmt: skip
OTHERS = [
    ("scaled gemm", "float[N,6] x", "float[6,5] w", "y = Gemm<alpha=0.5>(x, w)"),
    ("turned input", "float[6,N] x", "float[6,5] w", "y = Gemm<transA=1>(x, w)"),
    ("weight on the left", "float[N,6,4] x", "float[5,6] w", "y = MatMul(w, x)"),
    ("transposed conv", "float[N,6,5,5] x", "float[6,4,2,2] w", "y = ConvTranspose(x, w)"),
    ("stacked matrices", "float[N,4,6] x", "float[1,6,5] w", "y = MatMul(x, w)"),
]


def made(x, w, body):
    model = model_of(f"({x}) => (float[] y) <{w}> {{ {body} }}")
    return model, Graph(model), feeds_of(model, N=3)


def product(design, weight, rows):
    matrix = design.matrix(weight)
    return np.concatenate([apart(rows, design.parts)[k] @ matrix[k] for k in range(design.parts)], axis=1)


@pytest.mark.parametrize(("name", "x", "w", "body"), LAYERS, ids=[r[0] for r in LAYERS])
def test_rows_times_matrix_is_the_layer(name, x, w, body):
    model, graph, feeds = made(x, w, body)
    design, weight = design_of(graph, "y"), graph.value(("y", 1))
    (y,) = run(model, feeds)
    everywhere = design.rows_read(feeds["x"], None)
    assert np.allclose(product(design, weight, everywhere), rows_of(y, design.axis % y.ndim, None), atol=1e-4)
    assert len(everywhere) == len(y) * design.places(feeds["x"].shape)
    assert np.array_equal(design.stored(design.matrix(weight), weight), weight)
    positions = design.draw(feeds["x"], 6, 1 << 30, np.random.default_rng(0))
    if y.ndim > 2:
        assert positions.shape == (3, 2)
        some = product(design, weight, design.rows_read(feeds["x"], positions))
        assert np.allclose(some, rows_of(y, design.axis % y.ndim, positions), atol=1e-4)


@pytest.mark.parametrize(("name", "x", "w", "body"), OTHERS, ids=[r[0] for r in OTHERS])
def test_other_layers_are_none(name, x, w, body):
    _, graph, _ = made(x, w, body)
    assert design_of(graph, "y") is None


def test_positions_fit_into_memory():
    _, graph, _ = made(*LAYERS[0][1:])
    x = np.zeros((4, 6, 9, 7), np.float32)
    positions = design_of(graph, "y").draw(x, 100, 4 * (6 * 9) * 4 * 2, np.random.default_rng(0))
    assert positions.shape == (4, 2)


@pytest.mark.parametrize(("name", "x", "w", "body"), LAYERS, ids=[r[0] for r in LAYERS])
def test_a_layer_that_nothing_reaches_has_no_rows(name, x, w, body):
    """What a body makes that does not run once has no samples."""
    _, graph, feeds = made(x, w, body)
    design, none = design_of(graph, "y"), feeds["x"][:0]
    positions = design.draw(none, 100, 1 << 20, np.random.default_rng(0))
    assert design.rows_read(none, positions).shape == (0, design.parts * design.inputs)


def test_second_moments_are_those_of_all_rows():
    model = model_of("""(float[N,3,6,6] x) => (float[] y) <float[4,3,3,3] w, float[6,2,1,1] v>
        { h = Conv<pads=[1,1,1,1]>(x, w) r = Relu(h) y = Conv<group=2>(r, v) }""")
    graph, feeds = Graph(model), feeds_of(model, N=5)
    designs = [design_of(graph, k) for k in ("h", "y")]
    shapes = {"x": (1, 3, 6, 6), "r": (1, 4, 6, 6)}
    found = second_moments(
        model, designs, shapes, lambda n: [{"x": feeds["x"][:2]}, {"x": feeds["x"][2:]}], positions=1000
    )
    (r,) = run(
        model_of("(float[N,3,6,6] x) => (float[] r) <float[4,3,3,3] w> { h = Conv<pads=[1,1,1,1]>(x, w) r = Relu(h) }"),
        feeds,
    )
    for design, x in zip(designs, (feeds["x"], r), strict=True):
        rows = design.rows_read(x, None).astype(np.float64)
        for k in range(design.parts):
            tilde = np.c_[apart(rows, design.parts)[k], np.ones(len(rows))]
            assert np.allclose(found[design.key][k], tilde.T @ tilde, rtol=1e-4, atol=1e-3)
