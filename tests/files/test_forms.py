"""A model in memory is pruned whatever holds it, and stays as it was."""

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxprune
from onnxprune.errors import ModelError, UsageError
from onnxprune.files import forms
from tests.channels.surgery import model_of

NET = """(float[N,3,8,8] x) => (float[N,5] y) <float[16,3,3,3] w0, float[16,16,3,3] w1, float[5,16] w2> {
    a = Conv<pads=[1,1,1,1]>(x, w0) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w1) s = Relu(b)
    g = GlobalAveragePool(s) f = Flatten(g) y = Gemm<transB=1>(f, w2) }"""


@pytest.fixture
def model():
    found = model_of(NET)
    onnx.helper.set_model_props(found, {"mine": "kept"})
    return found


def pruned(model, **given):
    return onnxprune.prune(model, 0.5, trusted=True, metadata=False, **given)


def text(model):
    return model.SerializeToString(deterministic=True)


def test_bytes(model):
    assert text(pruned(text(model)).model) == text(pruned(model).model)
    with pytest.raises(ModelError, match=r"^model: cannot be decoded"):
        pruned(b"\x08\x00not a model")


@pytest.mark.parametrize("name", forms.FORMS)
def test_the_same_comes_of_it_as_of_the_file(model, name):
    form = forms.FORMS[name]
    library = pytest.importorskip(form.package)
    given = form.from_proto(library, model)
    before = text(form.to_proto(library, given))
    found, plain = pruned(given), pruned(model)
    assert found.cuts == plain.cuts and found.macs_removed > 0.4
    back = getattr(found, f"to_{name}")()
    assert form.is_one(back) and text(form.to_proto(library, given)) == before
    expected = form.to_proto(library, form.from_proto(library, plain.model))
    assert text(form.to_proto(library, back)) == text(expected)


@pytest.mark.parametrize("name", forms.FORMS)
def test_the_result_stays_as_it_was(model, name):
    """onnx-graphsurgeon's exporter writes into what was read: a name into a constant that has none."""
    library = pytest.importorskip(forms.FORMS[name].package)
    tensor = onnx.TensorProto(data_type=onnx.TensorProto.FLOAT, raw_data=np.ones(1, np.float32).tobytes())
    model.graph.node.insert(0, helper.make_node("Constant", [], ["one"], value=tensor))
    model.graph.node.append(helper.make_node("Mul", ["y", "one"], ["z"]))
    model.graph.output[0].name = "z"
    result = pruned(model)
    before = text(result.model)
    forms.FORMS[name].to_proto(library, getattr(result, f"to_{name}")())
    assert text(result.model) == before


def test_what_the_file_had_is_there(model):
    ir = pytest.importorskip("onnx_ir")
    found = pruned(ir.from_proto(model)).to_ir()
    assert found.metadata_props["mine"] == "kept"


def test_weights_beside_the_file(model, tmp_path):
    """onnx-ir leaves them where they are; the model in memory knows no folder."""
    ir = pytest.importorskip("onnx_ir")
    plain = pruned(model).cuts
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    assert pruned(ir.load(tmp_path / "m.onnx")).cuts == plain


def test_a_tail_that_is_cut_off_and_put_back(model):
    gs = pytest.importorskip("onnx_graphsurgeon")
    model.graph.node.append(helper.make_node("Special", ["y"], ["z"], domain="vendor"))
    model.graph.output[0].name = "z"
    model.opset_import.append(helper.make_opsetid("vendor", 1))
    graph = gs.import_onnx(model)
    tail = graph.nodes.pop()
    graph.outputs = list(tail.inputs)
    graph.outputs[0].dtype = np.float32
    small = pruned(graph).to_graphsurgeon()
    small.nodes.append(gs.Node("Special", inputs=small.outputs, outputs=tail.outputs, domain="vendor"))
    small.outputs = small.nodes[-1].outputs
    again = gs.export_onnx(small)
    assert again.graph.node[-1].domain == "vendor" and again.graph.output[0].name == "z"


def test_a_library_that_is_not_there(model, monkeypatch):
    monkeypatch.setattr(forms.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(UsageError, match="pip install onnx-ir"):
        pruned(model).to_ir()


def test_a_model_that_its_library_cannot_write(monkeypatch):
    Broken = type("Graph", (), {"__module__": "onnx_graphsurgeon.ir"})
    monkeypatch.setattr(forms.importlib, "import_module", lambda name: None)
    with pytest.raises(ModelError, match=r"^model: the onnx_graphsurgeon\.Graph cannot be written"):
        onnxprune.prune(Broken())
