"""Attributes of nodes, and what a node is called."""

import pytest
from onnx import helper

from onnxprune.protobuf.nodes import attr, node_key, set_attr, titled


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
