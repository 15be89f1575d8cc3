"""onnxprune: a smaller, measurably faster ONNX file that keeps its accuracy, without retraining.

result = onnxprune.prune("model.onnx", ratio=0.5, calibration=batches)
result.save("model.pruned.onnx")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnxprune.runtime import telemetry

__version__ = "0.1.0"

if TYPE_CHECKING:
    from onnxprune.api import (
        Gates,
        Lossless,
        Ratio,
        Settings,
        Target,
        apply_plan,
        make_plan,
        open_model,
        prune,
        reach,
        search,
        sweep,
        train_and_prune,
        transfer,
    )
    from onnxprune.errors import FidelityWarning, PruneError
    from onnxprune.pipeline.difference import diff
    from onnxprune.pipeline.explaining import explain
    from onnxprune.pipeline.profiling import profile
    from onnxprune.pipeline.sensitivity import sensitivity
    from onnxprune.pipeline.training_settings import TrainSettings
    from onnxprune.plan import PrunePlan
    from onnxprune.report.result import Result
    from onnxprune.samples.images import ImageSpec
    from onnxprune.timing.cases import bench_cases
    from onnxprune.timing.latency import bench

telemetry.forbid()

# Imported when first asked for: `onnxprune --help` must not wait for onnx and numpy.
_HOMES = {
    "prune": "api", "open_model": "api", "make_plan": "api", "apply_plan": "api", "Settings": "pipeline.settings",
    "PrunePlan": "plan", "PruneError": "errors", "Result": "report.result", "bench": "timing.latency",
    "ImageSpec": "samples.images", "sweep": "api", "reach": "api", "Lossless": "pipeline.goals",
    "Ratio": "pipeline.goals", "Target": "pipeline.goals",
    "sensitivity": "pipeline.sensitivity", "bench_cases": "timing.cases",
    "TrainSettings": "pipeline.training_settings", "train_and_prune": "api", "Gates": "pipeline.gates",
    "FidelityWarning": "errors", "diff": "pipeline.difference", "transfer": "api",
    "explain": "pipeline.explaining", "profile": "pipeline.profiling", "search": "api",
}  # fmt: skip

__all__ = [
    "FidelityWarning", "Gates", "ImageSpec",
    "Lossless", "PruneError", "PrunePlan", "Ratio", "Result", "Settings", "Target", "TrainSettings",
    "apply_plan", "bench", "bench_cases", "diff", "explain", "make_plan", "open_model", "profile", "prune", "reach",
    "search", "sensitivity", "sweep", "train_and_prune", "transfer",
]  # fmt: skip


def __dir__() -> list[str]:
    """The public names, though most are imported only when asked for."""
    return sorted([*__all__, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")
    return getattr(import_module(f"onnxprune.{_HOMES[name]}"), name)
