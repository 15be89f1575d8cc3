"""What is true of a node where its attributes and constants decide."""

import pytest

from onnxprune.graph.behaviour import takes_any_batch
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from tests.channels import surgery

HEAD = """(float[N,4,6,6] x) => (float[] y) <float[4,4,3,3] w, float[4] b, float[4,1,1] low, float[1,4,1,1] one, float[4,4,1,1] four,
    float[3,6] side, float[6,2] v, int64[2] flat = {{-1, 144}}> {{ {} }}"""
NODES = {
    "y = Conv(x, w, b)": True,
    "k = Relu(x) y = Conv(x, k)": False,
    "y = Add(x, low)": True,
    "y = Add(x, one)": True,
    "y = Add(x, four)": False,
    "y = Add(x, x)": True,
    "y = MatMul(x, v)": True,
    "y = MatMul(side, x)": False,
    "y = Concat<axis=1>(x, x)": True,
    "y = Concat<axis=0>(x, x)": False,
    "y = Concat<axis=1>(x, one2)": False,
    "y = Transpose<perm=[0,2,3,1]>(x)": True,
    "y = Transpose<perm=[1,0,2,3]>(x)": False,
    "y = Transpose(x)": False,
    "y = Flatten(x)": True,
    "y = Flatten<axis=0>(x)": False,
    "y = GlobalAveragePool(x)": True,
    "y = Reshape(x, flat)": False,
    "y = Shape(x)": False,
}


@pytest.mark.parametrize("text", NODES)
def test_what_surely_takes_any_batch(text):
    head = HEAD.replace("float[6,2] v", "float[6,2] v, float[1,4,6,6] one2")
    model = surgery.model_of(head.format(text))
    graph = Graph(model)
    shapes = observe(graph, surgery.feeds_of(model, N=1)).shapes
    assert takes_any_batch(graph, graph.nodes["y"], shapes) == NODES[text]
