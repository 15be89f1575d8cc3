"""The pipeline, in one screen: the functions behind the command line and the Python API.

    model → find_channels → calibrate → score → allocate → PrunePlan → apply → repair → verify → Result

Nothing here prints, and nothing is written unless `Result.save` is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxprune.channels import ChannelGroup
from onnxprune.errors import ModelError, UsageError
from onnxprune.measure.metric import Metric
from onnxprune.pipeline.apply import apply_plan
from onnxprune.pipeline.opened import ModelLike, Subject, open_model
from onnxprune.pipeline.planner import Progress
from onnxprune.pipeline.plans import make_plan, plan_and_apply, sweep
from onnxprune.pipeline.reach import reach
from onnxprune.pipeline.settings import Settings
from onnxprune.pipeline.targets import Target
from onnxprune.pipeline.timed import measure_latency
from onnxprune.report.result import Result
from onnxprune.samples.images import ImageSpec


def prune(
    model: ModelLike,
    ratio: float = 0.5,
    *,
    calibration: Any = None,
    bench: bool = False,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int | None = None,
    image: ImageSpec | None = None,
    target: Target | None = None,
    metric: str | Metric | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Result:
    """A smaller model that computes nearly the same: the whole pipeline.

        result = onnxprune.prune("model.onnx", ratio=0.5, calibration=batches)
        result.save("model.pruned.onnx")

    Args:
        model: a path or a ModelProto (left untouched).
        ratio: share of the multiply-accumulates to remove (or of what `of` names).
        calibration: unlabelled samples: arrays, dicts of arrays, an iterable or function giving them, a path,
            or an ORT `CalibrationDataReader`. A quarter is held out for the fidelity check.
        bench: also measure latency, original against pruned.
        input_shapes: sizes for dynamic axes, by input name.
        samples: use at most so many samples.
        image: how to read a folder of images.
        target: what to reach instead of a ratio: `Target("speedup", 2.0)`, "latency_ms", "size_mb" or "max_drop".
        metric: for "max_drop", see `reach`.
        progress: called with (phase, done, total).
        **settings: the other fields of `Settings`.

    Returns:
        The pruned model with costs, fidelity, the plan and the cuts. Nothing is printed or written.

    Raises:
        PruneError: see `onnxprune.errors`.
    """
    try:
        chosen = Settings(ratio=ratio, **settings)
    except TypeError as error:
        raise UsageError(f"prune(): {str(error).removeprefix('Settings.__init__() ')}") from error
    subject = open_model(
        model,
        calibration=calibration,
        input_shapes=input_shapes,
        samples=samples,
        image=image,
        prune_statistics=chosen.prune_statistics,
    )
    if target is not None:
        return reach(subject, chosen, target, metric=metric, progress=progress)
    return plan_and_apply(subject, chosen, bench=bench, progress=progress)


__all__ = [
    "ChannelGroup",
    "ModelError",
    "Settings",
    "Subject",
    "Target",
    "apply_plan",
    "make_plan",
    "measure_latency",
    "open_model",
    "plan_and_apply",
    "prune",
    "reach",
    "sweep",
]
