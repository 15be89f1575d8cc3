"""Sessions on the CPU, for real."""

from __future__ import annotations

import os

import numpy as np
import pytest

from onnxprune.errors import FileError, ModelError, ProviderError, UsageError
from onnxprune.protobuf import external, serialize
from onnxprune.runtime import sessions
from onnxprune.runtime.ports import InputSpec
from onnxprune.runtime.providers import CPU
from tests.runtime.models import X, net


@pytest.mark.parametrize("form", ["model", "bytes", "path", "text"])
def test_a_session_from_anything(tmp_path, form):
    path = tmp_path / "m.onnx"
    path.write_bytes(net().SerializeToString())
    forms = {"model": net(), "bytes": path.read_bytes(), "path": path, "text": str(path)}
    session = sessions.open_session(forms[form], threads=1, spinning=False)
    assert session.inputs == (InputSpec("x", np.dtype(np.float32), ("N", 3, 8, 8)),)
    assert (session.outputs, session.providers) == (("y",), ("CPUExecutionProvider",))
    assert session.assignment is None
    np.testing.assert_array_equal(session.run(X)[0], np.full((2, 3, 8, 8), 3, np.float32))
    assert session.run(X, ["y"])[0].shape == (2, 3, 8, 8)


def test_options_reach_onnxruntime():
    raw = sessions.open_session(net(), threads=2, optimise=False, spinning=False).raw
    options = raw.get_session_options()
    assert (options.intra_op_num_threads, options.log_severity_level) == (2, 4)
    assert options.graph_optimization_level.name == "ORT_DISABLE_ALL"
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_file_is_loaded_without_packing(tmp_path):
    (tmp_path / "m.onnx").write_bytes(net().SerializeToString())
    options = sessions.open_session(tmp_path / "m.onnx", adjust=sessions.unpacked).raw.get_session_options()
    assert options.get_session_config_entry("session.disable_prepacking") == "1"


def test_a_model_too_large_for_protobuf(monkeypatch):
    monkeypatch.setattr(serialize, "MAX_PROTOBUF", 10)
    monkeypatch.setattr(external, "EXTERNAL_THRESHOLD", 10)
    session = sessions.open_session(net(), threads=1)
    folder = session._keep.name
    np.testing.assert_array_equal(session.run(X)[0], np.full((2, 3, 8, 8), 3, np.float32))
    assert len(os.listdir(folder)) == 2
    del session
    assert not os.path.exists(folder)


def test_a_large_model_that_does_not_load_leaves_no_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(serialize, "MAX_PROTOBUF", 10)
    monkeypatch.setattr(sessions.tempfile, "tempdir", str(tmp_path))
    model = net()
    model.graph.node[1].op_type = "Frob"
    with pytest.raises(ModelError):
        sessions.open_session(model)
    assert os.listdir(tmp_path) == []


BROKEN = net()
BROKEN.graph.node[1].op_type = "Frob"


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"model": BROKEN, "name": "my.onnx"}, ModelError, "my.onnx: does not load in ONNX Runtime: "),
        ({"model": b"rubbish"}, ModelError, "does not load"),
        ({"model": "nowhere.onnx"}, FileError, "no such file"),
        ({"providers": ["warp"]}, UsageError, "unknown provider 'warp'"),
        ({"providers": []}, UsageError, "no provider"),
        ({"threads": 0}, UsageError, "threads is 0"),
        ({"providers": ["directml"]}, ProviderError, "directml is not in onnxruntime"),
    ],
)
def test_refusals(arguments, error, says):
    with pytest.raises(error) as caught:
        sessions.open_session(**{"model": net(), **arguments})
    assert says in str(caught.value) and str(caught.value).isprintable()


def test_feeds_that_do_not_fit_are_one_line():
    session = sessions.open_session(net(), threads=1, name="my.onnx")
    with pytest.raises(ModelError, match=r"my.onnx: cannot be run with x float32\[1, 5, 8, 8\]") as caught:
        session.run({"x": np.ones((1, 5, 8, 8), np.float32)})
    assert str(caught.value).isprintable()


def test_the_cpu_tells_its_nodes_when_asked():
    assert sessions.open_session(net()).nodes is None
    session = sessions.open_session(net(), record=True)
    if session.nodes is not None:  # ONNX Runtime before 1.24 cannot tell
        assert session.assignment == {CPU: len(session.nodes)} and "Conv" in session.nodes[0].op_type


def test_more_outputs():
    model = net()
    before = model.SerializeToString()
    tapped = sessions.with_outputs(model, ["a", "y", "a"])
    assert [port.name for port in tapped.graph.output] == ["y", "a"]
    assert model.SerializeToString() == before
    y, a = sessions.open_session(tapped, threads=1).run(X)
    np.testing.assert_array_equal(np.maximum(a, 0), y)
    with pytest.raises(UsageError, match="'nothing'"):
        sessions.with_outputs(model, ["nothing"])
