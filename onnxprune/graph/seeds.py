"""Random nodes that draw alike in every model.

ONNX Runtime seeds a node without a `seed` by the number of nodes before it, so the same noise is another in a pruned
model, and the two cannot be compared. While models are compared such nodes carry a seed made of their name.
"""

from __future__ import annotations

import zlib

import onnx

from onnxprune.graph import operators
from onnxprune.protobuf.nodes import attr, node_key


def with_seeds(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a seed on every random node of its outermost graph that has none; itself where there are none."""
    if not any(map(_seedless, model.graph.node)):
        return model
    seeded = onnx.ModelProto()
    seeded.CopyFrom(model)
    for node in filter(_seedless, seeded.graph.node):
        node.attribute.append(onnx.helper.make_attribute("seed", _seed(node)))
    return seeded


def as_written(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as a file has it, without the seeds that `with_seeds` has put in; itself where there are none."""
    if not any(map(_seeded, model.graph.node)):
        return model
    written = onnx.ModelProto()
    written.CopyFrom(model)
    without_seeds(written)
    return written


def without_seeds(model: onnx.ModelProto) -> None:
    """Take the seeds out that `with_seeds` has put in, in place."""
    for node in model.graph.node:
        if _seeded(node):
            kept = [a for a in node.attribute if a.name != "seed"]
            del node.attribute[:]
            node.attribute.extend(kept)


def _seedless(node: onnx.NodeProto) -> bool:
    return operators.of(node).random and attr(node, "seed") is None


def _seeded(node: onnx.NodeProto) -> bool:
    return operators.of(node).random and attr(node, "seed") == _seed(node)


def _seed(node: onnx.NodeProto) -> float:
    """A number that a float holds exactly."""
    return float(zlib.crc32(node_key(node).encode()) >> 8)
