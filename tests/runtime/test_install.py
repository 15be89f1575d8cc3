"""ONNX Runtime, installed how, and what it runs."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import signal
import sys
import time

import pytest

from onnxprune.errors import ProviderError
from onnxprune.runtime import install


@pytest.mark.parametrize(("ir", "opset", "runs"), [(8, 17, True), (8, 9999, False), (9999, 17, False)])
def test_what_the_installed_onnxruntime_runs(ir, opset, runs):
    install.refusal.cache_clear()
    assert (install.refusal(ir, opset) is None) == runs


PAIRS = [
    ((), "pip install onnxruntime-gpu` (NVIDIA GPU) or `pip install onnxruntime`"),
    (
        ("onnxruntime", "onnxruntime-gpu"),
        "pip uninstall -y onnxruntime onnxruntime-gpu` and then `pip install onnxruntime-gpu`",
    ),
    (("onnxruntime", "onnxruntime-openvino"), "and then `pip install onnxruntime`"),
    (("onnxruntime",), "pip install --force-reinstall onnxruntime"),  # there, but does not import
]


@pytest.mark.parametrize(("installed", "says"), PAIRS)
def test_an_install_that_does_not_work(monkeypatch, installed, says):
    def distribution(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # import raises ImportError
    with pytest.raises(ProviderError) as caught:
        install.require_ort()
    assert caught.value.exit_code == 8 and says in str(caught.value)
    assert install.versions()["onnxruntime"] in ("not installed", " and ".join(installed))
    install.refusal.cache_clear()
    assert install.refusal(9999, 9999) is None
    install.refusal.cache_clear()


def test_versions_are_text():
    found = install.versions()
    assert set(found) == {"onnx", "onnxruntime", "numpy", "python", "platform", "cpu"}
    assert all(isinstance(text, str) and text and text.isprintable() for text in found.values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_a_signal_while_onnxruntime_is_imported_is_a_signal(monkeypatch, number):
    def stop(*_):
        raise KeyboardInterrupt

    def importing(name):
        try:
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        except KeyboardInterrupt:  # what pybind11 makes of it
            raise ImportError("initialization failed") from None
        return real(name)

    real, before = importlib.import_module, signal.signal(number, stop)
    monkeypatch.setattr(install, "_sound", {})
    monkeypatch.setattr(install.importlib, "import_module", importing)
    try:
        with pytest.raises(KeyboardInterrupt):
            install.require_ort()
    finally:
        signal.signal(number, before)
