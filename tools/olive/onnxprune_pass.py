"""A pass of Olive that prunes an ONNX model: `package.json` beside this file makes it known to `olive run`.

    olive run --config run.json --package-config tools/olive/package.json

with this folder on PYTHONPATH. Its options are keywords of `onnxprune.prune`; `calib` is a path of samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.passes import Pass
from olive.passes.pass_config import PassConfigParam

import onnxprune

OPTIONS: dict[str, tuple[type, Any, str]] = {
    "ratio": (float, 0.5, "share of the multiply-accumulates to remove"),
    "calib": (str, None, "unlabelled samples: .npz, .npy or a folder"),
    "quantize": (str, None, "int8: the pruned model in integers, rounded against what its layers read"),
    "min_top1": (float, None, "least share of held-out samples with the same top-1, else the pass fails"),
    "prune": (dict, {}, "further keywords of onnxprune.prune"),
}


class OnnxPrune(Pass):
    """Prunes a model with onnxprune."""

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, PassConfigParam]:
        return {
            name: PassConfigParam(type_=kind, default_value=usual, description=text)
            for name, (kind, usual, text) in OPTIONS.items()
        }

    def _run_for_config(self, model: ONNXModelHandler, config: Any, output_model_path: str) -> ONNXModelHandler:
        path = resolve_onnx_path(output_model_path, Path(model.model_path).name)
        gates = None if config.min_top1 is None else onnxprune.Gates(min_top1=config.min_top1)
        result = onnxprune.prune(
            model.model_path,
            config.ratio,
            calibration=config.calib,
            quantize=config.quantize,
            gates=gates,
            **(config.prune or {}),
        )
        return ONNXModelHandler(model_path=str(result.save(path, force=True)))
