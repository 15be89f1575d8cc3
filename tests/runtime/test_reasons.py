"""What ONNX Runtime says, in one line."""

from __future__ import annotations

import pytest

from onnxprune.runtime.reasons import reason


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("[ONNXRuntimeError] : 3 : NO_SUCHFILE : Load model failed.", "Load model failed"),
        (
            "[ONNXRuntimeError] : 1 : FAIL : /src/onnxruntime/core/x.h:46 void f(const a&, int) It is new",
            "It is new",
        ),
        (
            "warm-up\n\x1b[1;31m2025-01-01 10:00:00.1 [E:onnxruntime:Default, p.cc:1 X] Error: no lib\x1b[m",
            "Error: no lib",
        ),
        ("", "str"),
    ],
)
def test_reasons_are_cleaned(raw, clean):
    assert reason(raw) == clean
