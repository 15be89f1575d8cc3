"""Text that is not UTF-8: protobuf reads it, gives it as bytes, and does not take these back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.errors import ModelError
from onnxprune.protobuf.serialize import byte_size, serialized

RNG = np.random.default_rng(0)


def wordy() -> onnx.ModelProto:
    """A text of its own in every field that holds one."""
    weights = [
        numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w", (64, 3, 8, 8)), ("v", (4, 64, 1, 1)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="n", doc_string="@node doc", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="@node name"),
        helper.make_node("Conv", ["b", "v"], ["y"], name="m"),
    ]
    nodes[0].attribute[0].doc_string = "@attribute doc"
    port = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["@axis", 3, 12, 12], doc_string="@port doc")
    port.type.denotation = "@type denotation"
    port.type.tensor_type.shape.dim[1].denotation = "@axis denotation"
    graph = helper.make_graph(
        nodes,
        "@graph name",
        [port],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, None, None])],
        weights,
        doc_string="@graph doc",
        value_info=[helper.make_tensor_value_info("a", TensorProto.FLOAT, ["@stated axis", 64, None, None])],
    )
    graph.initializer[0].doc_string = "@tensor doc"
    graph.quantization_annotation.add(tensor_name="a").quant_parameter_tensor_names.add(key="@scale", value="@of")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("@other domain", 1)]
    model = helper.make_model(graph, producer_name="@producer", opset_imports=opsets, ir_version=10)
    model.producer_version, model.domain, model.doc_string = "@version", "@domain", "@model doc"
    graph = model.graph
    for place, what in ((graph.initializer[0], "tensor"), (graph.node[0], "node"), (graph, "graph"), (model, "model")):
        place.metadata_props.add(key=f"@{what} key", value=f"@{what} value")
    return model


WORDY = wordy().SerializeToString()
NAMES = ("@node name", "@graph name", "@axis")
"""What is told to people by name, or decides."""
WORDS = (
    "@node doc", "@attribute doc", "@port doc", "@type denotation", "@axis denotation", "@graph doc", "@stated axis",
    "@tensor doc", "@scale", "@of", "@other domain", "@producer", "@version", "@domain", "@model doc", "@tensor key",
    "@tensor value", "@node key", "@node value", "@graph key", "@graph value", "@model key", "@model value",
)  # fmt: skip


def spoilt(text: str) -> tuple[bytes, bytes]:
    """The model with one text that is not UTF-8; and that text, as it is stored."""
    stored = bytes([len(text)]) + text.encode()  # no other text ends or begins like it
    assert WORDY.count(stored) == 1
    odd = stored.replace(b"@", b"\xe1")
    return WORDY.replace(stored, odd), odd


@pytest.mark.parametrize("text", WORDS)
def test_words_that_are_not_utf8_are_kept(text, tmp_path):
    data, odd = spoilt(text)
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    result = onnxprune.prune(path, ratio=0.4, threads=1)
    assert result.after.macs < result.before.macs
    assert odd in result.model.SerializeToString()
    result.save(tmp_path / "o.onnx")
    assert odd in (tmp_path / "o.onnx").read_bytes()
    # a second pass finds what the first has written
    again = onnxprune.prune(tmp_path / "o.onnx", ratio=0.2, threads=1, best_effort=True)
    assert odd in again.model.SerializeToString()


@pytest.mark.parametrize("text", NAMES)
def test_names_that_are_not_utf8_are_refused(text, tmp_path):
    (tmp_path / "m.onnx").write_bytes(spoilt(text)[0])
    with pytest.raises(ModelError, match=r"m\.onnx: .*UTF-8 text; export the model again"):
        onnxprune.prune(tmp_path / "m.onnx", ratio=0.4)


@pytest.mark.parametrize("text", WORDS)
def test_in_parts_it_is_the_same_bytes(text):
    model = onnx.ModelProto.FromString(spoilt(text)[0])
    whole = model.SerializeToString(deterministic=True)
    assert b"".join(serialized(model)) == whole and byte_size(model) == len(whole)
