"""Attributes of nodes, and what a node is called."""

import pytest
from onnx import helper, parser

from onnxprune.protobuf.nodes import attr, inferred, node_key, set_attr, titled


def test_set_attr_stays_in_its_place():
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2, strides=[1, 1])
    set_attr(node, "group", 1)
    set_attr(node, "auto_pad", "VALID")
    assert [a.name for a in node.attribute] == ["group", "strides", "auto_pad"]
    assert attr(node, "group") == 1 and attr(node, "auto_pad") == "VALID" and attr(node, "pads", 0) == 0


@pytest.mark.parametrize(
    ("outputs", "name", "key", "words"),
    [
        (["y"], "conv1", "y", "node 'conv1' (Conv)"),
        (["", "z"], "", "z", "node 'z' (Conv)"),
        ([], "", "", "node '' (Conv)"),
    ],
)
def test_what_a_node_goes_by(outputs, name, key, words):
    node = helper.make_node("Conv", ["x", "w"], outputs, name=name)
    assert (node_key(node), titled(node)) == (key, words)


def test_a_model_that_contradicts_itself_is_not_inferred():
    """An input that is an initializer too, of another type."""
    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 18]>
        g (float[2] x, float[1] w) => (y) <int64[1] w = {3}> { a = Relu(x) y = Relu(a) }""")
    assert inferred(model) is model
    model.graph.input[1].type.tensor_type.elem_type = 7
    assert {v.name for v in inferred(model).graph.value_info} >= {"a"}
