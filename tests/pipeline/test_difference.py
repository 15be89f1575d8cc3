"""Two models held against each other: layers are found by name, else by order; widths, costs and weights are told."""

import json
from dataclasses import replace

import onnx
import pytest

import onnxprune
from onnxprune.cli import main
from onnxprune.measure import layer_costs
from onnxprune.measure.layer_costs import Layer
from onnxprune.pipeline.difference import matched
from onnxprune.report.difference import Pair
from onnxprune.report.page import render, title_of
from tests.channels import surgery

TEXT = """(float[N,4,H,W] x) => (float[N,3] y)
<float[16,4,3,3] w, float[16] c, float[16,16,3,3] v, float[16] d, float[3,16] g>
{ a = Conv <pads = [1, 1, 1, 1]> (x, w, c)  b = Relu(a)  e = Conv <pads = [1, 1, 1, 1]> (b, v, d)
  s = Add(b, e)  r = Relu(s)  p = GlobalAveragePool(r)  f = Flatten(p)  y = Gemm <transB = 1> (f, g) }"""


@pytest.fixture
def model():
    return surgery.model_of(TEXT)


def renamed(model):
    """The same network with other names of tensors."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    kept = {"x", "y"}
    for node in made.graph.node:
        for names in (node.input, node.output):
            names[:] = [name if name in kept else f"other_{name}" for name in names]
    for tensor in made.graph.initializer:
        tensor.name = f"other_{tensor.name}"
    return made


def with_weight(model, name, change):
    made = onnx.ModelProto()
    made.CopyFrom(model)
    held = next(t for t in made.graph.initializer if t.name == name)
    held.CopyFrom(onnx.numpy_helper.from_array(change(onnx.numpy_helper.to_array(held)), name))
    return made


def whats(found):
    return {pair.layer.node: pair.what() for pair in found.layers}


def test_the_same_model_differs_in_nothing(model):
    found = onnxprune.diff(model, model)
    assert found.same and not found.changed() and set(whats(found).values()) == {"as it is"}
    assert "byte for byte" in found.summary() and "0 of 3 layers differ" in found.summary()


def test_widths_costs_and_weights_are_told(model):
    result = onnxprune.prune(model, ratio=0.5, trusted=True)
    found = onnxprune.diff(model, result.model, trusted=True)
    (width,) = {after for _, before, after in result.groups if after < before}
    assert whats(found) == {"a": f"out 16→{width}", "e": f"in 16→{width}, out 16→{width}", "y": f"in 16→{width}"}
    assert (found.a.cost.macs, found.b.cost.macs) == (result.before.macs, result.after.macs)
    assert (found.a.cost.params, found.b.cost.params) == (result.before.params, result.after.params)
    assert (found.a.cost.bytes, found.b.cost.bytes) == (result.before.bytes, result.after.bytes)
    for side, cost in ((0, result.before), (1, result.after)):
        every = [(pair.before, pair.after)[side] for pair in found.layers]
        assert sum(layer.macs for layer in every) == cost.macs and sum(layer.params for layer in every) == cost.params
        assert all(layer.bytes == 4 * layer.params for layer in every)
    assert repr(found).startswith("<Difference a → b: MACs -") and "3 layers differ" in repr(found)


def test_other_weights_are_told(model):
    found = onnxprune.diff(model, with_weight(model, "v", lambda v: v + 1))
    assert whats(found) == {"a": "as it is", "e": "other weights", "y": "as it is"} and not found.same


def test_layers_with_other_names_are_found_by_their_order(model):
    found = onnxprune.diff(model, renamed(model))
    assert set(whats(found).values()) == {"as it is"} and not found.same


def test_a_node_that_has_its_name_still_is_found_by_it(model):
    other = renamed(model)
    for made in (model, other):
        made.graph.node[2].name = "second"
    del other.graph.node[0]
    other.graph.node[0].input[0] = "wide"
    other.graph.node.insert(0, onnx.helper.make_node("Concat", ["x", "x", "x", "x"], ["wide"], axis=1))
    assert whats(onnxprune.diff(model, other))["a"] == "gone" and whats(onnxprune.diff(model, other))["e"] == "as it is"


def test_what_is_in_one_alone_is_new_or_gone(model):
    other = surgery.model_of(TEXT.replace("r = Relu(s)", "t = Conv(s, u) r = Relu(t)").replace("> \n{", ">\n{")
                             .replace("float[3,16] g>", "float[3,16] g, float[16,16,1,1] u>"))  # fmt: skip
    found = onnxprune.diff(model, other)
    assert [pair.layer.node for pair in found.layers] == ["a", "e", "t", "y"] and whats(found)["t"] == "new"
    assert whats(onnxprune.diff(other, model))["t"] == "gone"
    assert "Conv 2→3" in found.summary()


def test_both_are_run_with_the_same_sizes(model):
    other = surgery.model_of(TEXT.replace("float[N,4,H,W]", "float[N,4,32,32]"))
    for pair in ((model, other), (other, model)):
        found = onnxprune.diff(*pair)
        ran = [side.inputs[0].ran for side in (found.a, found.b)]
        assert pair[0] is model or ran == [(1, 4, 32, 32)] * 2
    assert onnxprune.diff(model, model, input_shapes={"x": (1, 4, 8, 8)}).b.inputs[0].ran == (1, 4, 8, 8)
    assert "input        x: float32 (N, 4, H, W)" in onnxprune.diff(model, other).summary()


def test_the_longest_common_order_is_found_quickly():
    def layers(ops):
        return [layer_costs.Layer(f"{ops[:1]}{k}", "", op, (), (), (), 1.0, 1, 1) for k, op in enumerate(ops)]

    def pairs(one, other):
        return [(x and x.op, y and y.op) for x, y in matched(layers(one), layers(other))]

    assert pairs("abcd", "xbd") == [("a", None), (None, "x"), ("b", "b"), ("c", None), ("d", "d")]
    assert len(pairs("ab" * 400, "aab" * 250)) < 1000 and pairs("", "") == [] and pairs("", "x") == [(None, "x")]


def test_ports_that_differ_are_told(model):
    other = surgery.model_of(TEXT.replace("float[N,3] y", "float[N,3] y, float[N,16] f"))
    words = onnxprune.diff(model, other).summary()
    assert "output       none → f: float32 (N, 16), run with 1x16" in words


def test_quantized_weights_count_as_what_the_file_stores():
    found = layer_costs.constants(onnxprune.open_model(surgery.model_of(
        """(float[1,4,6,6] x) => (float[1,8,6,6] y) <int8[8,4,1,1] q, float[8] s, float[4] one>
        { w = DequantizeLinear <axis = 0> (q, s)  y = Conv(x, w) }""")).graph)  # fmt: skip
    assert {key: sorted(held) for key, held in found.items()} == {"y": ["q", "s"]}


def test_activations_are_what_is_alive_at_once(model):
    subject = onnxprune.open_model(model, input_shapes={"x": (1, 4, 8, 8)})
    found = layer_costs.activations(subject.graph, subject.channels.shapes)
    wide = 16 * 8 * 8 * 4
    assert (found.node, found.bytes) == ("s", 4 * 8 * 8 * 4 + 3 * wide)  # x, b, e and their sum


def test_the_command(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(model, "a.onnx")
    onnxprune.prune(model, ratio=0.5, trusted=True).save("b.onnx")
    assert main(["diff", "a.onnx", "b.onnx", "--input-shape", "x=1,4,8,8"]) == 0
    text = capsys.readouterr().out
    assert "3 of 3 layers differ" in text and "activations" in text and "parameters" in text
    assert main(["diff", "a.onnx", "b.onnx", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == 1 and told["kind"] == "onnxprune diff" and told["layers"][0]["what"].startswith("out 16→")
    assert "out 16→" in render(told, name="m") and told["run"]["command"].startswith("onnxprune diff a.onnx")
    assert title_of(told) == "a.onnx and b.onnx"
    assert main(["diff", "a.onnx", "none.onnx"]) == 7 and "none.onnx" in capsys.readouterr().err
    assert main(["diff", "a.onnx"]) == 2 and len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("width", [72, 80, 100])
def test_it_fits_the_terminal(model, width):
    from onnxprune.report.difference import render as text

    result = onnxprune.prune(model, ratio=0.5, trusted=True)
    assert max(map(len, text(onnxprune.diff(model, result.model, trusted=True), None, width).splitlines())) <= width


def test_a_layer_that_is_nowhere_is_refused(model):
    told = onnxprune.diff(model, model).to_dict()
    told["layers"][0] |= {"before": None, "after": None}
    with pytest.raises(ValueError, match="one of the two models"):
        render(json.loads(json.dumps(told)), name="m")


def test_what_differs_beside_the_channels_is_told_in_whole_sizes():
    """A layer of a series behind a new one with a stride reads as many channels, over fewer steps."""
    layer = Layer("c", "", "Conv", (1, 32, 2000), (1, 64, 500), (64, 32, 9), 8.0, 9, 36)
    assert Pair(layer, replace(layer, reads=(1, 32, 500)), False).what() == "in 1x32x2000→1x32x500"
    assert Pair(layer, replace(layer, reads=(1, 16, 500)), False).what() == "in 32→16"
    assert Pair(layer, replace(layer, reads=(32, 2000)), False).what() == "in 1x32x2000→32x2000"
