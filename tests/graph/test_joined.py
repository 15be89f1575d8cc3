"""Where an output was joined of several tensors."""

import pytest

from onnxprune.graph.joined import joined
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.runtime import ports
from tests.channels import surgery

HEAD = "(float[N,4,6] a, float[N,3,6] b, float[N,4,2] c, float[N,3,2] d) => (float[N,M,K] y)"
ROWS = {
    "side by side": (f"{HEAD} {{ y = Concat<axis=1>(a, b) }}", [((1, 0, 4),), ((1, 4, 7),)]),
    "turned": (f"{HEAD} {{ j = Concat<axis=1>(a, b) y = Transpose<perm=[0,2,1]>(j) }}", [((2, 0, 4),), ((2, 4, 7),)]),
    "in two directions": (
        f"{HEAD} {{ s = Concat<axis=1>(a, b) t = Concat<axis=1>(c, d) y = Concat<axis=-1>(s, t) }}",
        [((1, 0, 4), (2, 0, 6)), ((1, 4, 7), (2, 0, 6)), ((1, 0, 4), (2, 6, 8)), ((1, 4, 7), (2, 6, 8))],
    ),
    "one in another": (
        f"{HEAD} {{ s = Concat<axis=1>(a, b) y = Concat<axis=1>(a, s) }}",
        [((1, 0, 4),), ((1, 4, 8),), ((1, 8, 11),)],
    ),
    "reshaped": (
        f"""{HEAD} <int64[4] wide = {{0, 7, 2, 3}}, int64[3] flat = {{0, 7, 6}}>
        {{ j = Concat<axis=1>(a, b) r = Reshape(j, wide) y = Reshape(r, flat) }}""",
        [((1, 0, 4),), ((1, 4, 7),)],
    ),
    "an axis that is lost": (
        f"{HEAD} <int64[3] flat = {{0, 2, 21}}> {{ j = Concat<axis=1>(a, b) y = Reshape(j, flat) }}",
        [()],
    ),
    "computed": (f"{HEAD} {{ j = Concat<axis=1>(a, b) y = Sigmoid(j) }}", [()]),
    "samples": (f"{HEAD} {{ y = Concat<axis=0>(a, a) }}", [()]),
}


@pytest.mark.parametrize("row", ROWS)
def test_what_was_joined(row):
    text, regions = ROWS[row]
    model = surgery.model_of(text)
    graph = Graph(model)
    shapes = observe(graph, ports.default_feed(ports.input_specs(model))).shapes
    assert joined(graph, "y", shapes) == regions
    assert joined(graph, "y", {}) == [()]


def test_an_output_of_very_many_is_taken_whole():
    names = ", ".join("a" for _ in range(100))
    model = surgery.model_of(f"{HEAD} {{ y = Concat<axis=1>({names}) }}")
    graph = Graph(model)
    assert joined(graph, "y", observe(graph, ports.default_feed(ports.input_specs(model))).shapes) == [()]
