"""What rounding may do: how far apart two tensors are, how far sums in another order may move them, and inputs stirred
by a bit or two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune.protobuf.nodes import stored_tensors
from onnxprune.runtime.ports import Feeds


@dataclass(frozen=True)
class Precision:
    """What rounding may do, by the type that a model computes in.

    Attributes:
        tolerance: worst error allowed, as a share of the tensor's largest magnitude: sums in another order.
        stir: relative change of the input that stands for rounding.
        telling: a tensor that stirring moves by more tells nothing about the cut.
    """

    tolerance: float
    stir: float
    telling: float

    def explains(self, error: float, rounding: float) -> bool:
        """Whether an error is one of rounding, on a tensor that tells."""
        return error <= max(self.tolerance, MARGIN * rounding) and rounding <= self.telling


FULL = Precision(tolerance=1e-4, stir=3e-7, telling=1e-3)
HALF = Precision(tolerance=5e-3, stir=1e-3, telling=3e-2)
"""Where a model computes in float16 (eps 1e-3) in part."""
MARGIN = 10.0
"""An error may be so many times what stirring does."""
EQUAL_TOLERANCE = 1e-5
"""The tolerance of a cut that promises the original's outputs."""


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference as a share of the largest magnitude of `a`; inf where either is not finite."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return np.inf
    if not a.size or a.dtype.kind == "O":
        return 0.0
    if a.dtype.kind != "f":
        return 0.0 if np.array_equal(a, b) else np.inf
    error = gap(a, b) / (magnitude(a) + 1e-12)
    return float(error) if np.isfinite(error) else np.inf


def gap(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference; what is infinite or no number in both alike is none."""
    with np.errstate(invalid="ignore", over="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        largest = np.where(same, 0.0, np.abs(a.astype(np.float64) - b)).max(initial=0.0)
    return float(largest) if np.isfinite(largest) else np.inf


def magnitude(a: np.ndarray) -> float:
    """The largest finite magnitude."""
    return float(np.abs(a[np.isfinite(a)].astype(np.float64)).max(initial=0.0))


def precision_of(model: onnx.ModelProto) -> Precision:
    """By the types of what the model stores."""
    half = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    types = {t.data_type for _, t in stored_tensors(model.graph)}
    return HALF if types & half else FULL


def stirred(feeds: Feeds, seed: int, stir: float) -> dict[str, np.ndarray]:
    """The feeds with every float changed by up to this share of it."""
    rng = np.random.default_rng(seed)
    return {
        k: (v * (1 + rng.uniform(-stir, stir, v.shape))).astype(v.dtype) if v.dtype.kind == "f" else v
        for k, v in feeds.items()
    }
