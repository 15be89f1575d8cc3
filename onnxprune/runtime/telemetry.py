"""ONNX Runtime's telemetry, switched off.

Its official builds look up a host of Microsoft's, keep an identifier in the user's cache and leave a file in the
temporary folder, all while `onnxruntime` is imported. The variable that forbids this is read once, at that moment,
and is inherited by every process that we start; so it is set when `onnxprune` is imported, before anything else.
"""

from __future__ import annotations

import contextlib
import os
from types import ModuleType

VARIABLE = "ORT_DISABLE_TELEMETRY"
"""Whoever has set it himself, to 0 or 1, has decided; we do not."""
DECIDED = bool(os.environ.get(VARIABLE))


def forbid() -> None:
    """Before `onnxruntime` is imported: nothing is looked up, sent or kept."""
    if not DECIDED:
        os.environ[VARIABLE] = "1"


def switch_off(ort: ModuleType) -> None:
    """No further events from a module that was imported before us, or on Windows, which ignores the variable."""
    if not DECIDED:
        with contextlib.suppress(Exception):  # a build without it
            ort.disable_telemetry_events()
