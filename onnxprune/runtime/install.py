"""ONNX Runtime as it is installed: which distribution, whether it loads, what it runs, and what a report says of it.

ORT is imported inside the functions: reading and writing models works without it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import platform
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
from onnx import helper

from onnxprune.errors import ProviderError, one_line
from onnxprune.runtime import signals, telemetry
from onnxprune.runtime.providers import CPU
from onnxprune.runtime.reasons import reason

# Distributions that all install the same `onnxruntime` package, over one another.
_DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-silicon",
)
_sound: dict[str, ModuleType] = {}
"""The module once its install was looked at: a look at the installed distributions takes as long as a session."""


def installed_distributions() -> tuple[str, ...]:
    """The installed distributions that bring an `onnxruntime` package; more than one is a broken install."""
    found = []
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.distribution(name)
            found.append(name)
    return tuple(found)


def require_ort() -> ModuleType:
    """The `onnxruntime` module.

    Raises:
        ProviderError: it is not installed, installed twice under two names, or does not load; with the
            commands that help.
    """
    module = sys.modules.get("onnxruntime")
    if module is not None and module is _sound.get("onnxruntime"):
        return module
    found = installed_distributions()
    if len(found) > 1:
        one = "onnxruntime-gpu" if "onnxruntime-gpu" in found else "onnxruntime"
        raise ProviderError(
            f"{' and '.join(found)} are both installed and overwrite each other; run "
            f"`pip uninstall -y {' '.join(found)}` and then `pip install {one}`"
        )
    try:
        with signals.later():  # interrupted while it loads, it says that it does not load
            module = importlib.import_module("onnxruntime")
    except ImportError as error:
        if found:
            raise ProviderError(
                one_line(
                    f"{found[0]} is installed but does not load: {error}; run "
                    f"`pip install --force-reinstall {found[0]}`"
                )
            ) from error
        raise ProviderError(
            "ONNX Runtime is not installed; run `pip install onnxruntime-gpu` (NVIDIA GPU) or `pip install onnxruntime`"
        ) from error
    telemetry.switch_off(module)
    _sound["onnxruntime"] = module
    return module


@cache
def refusal(ir_version: int, opset: int) -> str | None:
    """Why the installed ORT does not run models of this IR version and opset, or None.

    ORT says nowhere what it supports, so it is asked with a model of one node. None also when ORT is not
    installed: then nobody knows.
    """
    try:
        ort = require_ort()
    except ProviderError:
        return None
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", ends[:1], ends[1:])
    probe = helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)])
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        ort.InferenceSession(probe.SerializeToString(), options, providers=[CPU])
    except Exception as error:
        return reason(error)
    return None


def versions() -> dict[str, str]:
    """What a report must say about the machine and its software."""
    found = installed_distributions()
    try:
        ort = f"{require_ort().__version__} ({found[0] if found else 'unknown distribution'})"
    except ProviderError:
        ort = " and ".join(found) if found else "not installed"
    return {
        "onnx": onnx.__version__,
        "onnxruntime": ort,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return one_line(line.partition(":")[2])
    return platform.processor() or platform.machine()
