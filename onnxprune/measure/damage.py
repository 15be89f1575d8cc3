"""How much worse the outputs got, as one number that can be summed, compared and minimised.

Class scores are compared as distributions (Kullback-Leibler divergence, in nats per sample), everything else by
its squared error relative to its variance. No labels: the original network is the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def damage(wanted: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> float:
    """Sum over the outputs of one batch of KL(wanted ‖ got), or of ‖wanted − got‖² / ‖wanted − mean‖².

    Args:
        wanted, got: the outputs of the original and of the candidate, in the same order.

    Returns:
        0 when they agree; infinite when `got` is not finite.
    """
    total = 0.0
    for a, b in zip(wanted, got, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if a.dtype.kind != "f" or a.shape != b.shape or not a.size:
            continue
        a, b = a.astype(np.float64), b.astype(np.float64)
        if not np.isfinite(b).all():
            return float("inf")
        logs = _log_probabilities(a)
        if logs is not None:
            p, q = logs(a), logs(b)
            total += float((np.exp(p) * (p - q)).sum() / (a.size // a.shape[-1]))
        else:
            total += float(np.square(a - b).sum() / max(np.square(a - a.mean()).sum(), 1e-300))
    return total


def _log_probabilities(a: np.ndarray) -> Callable[[np.ndarray], np.ndarray] | None:
    """How to take log p over the last axis of outputs like `a`: of probabilities as they are, of class scores
    (samples, classes) by softmax; None for other outputs."""
    if a.ndim < 2 or a.shape[-1] < 2:
        return None
    if a.min() >= 0 and np.allclose(a.sum(axis=-1), 1.0, atol=1e-3):
        return lambda v: np.log(np.maximum(v, 1e-9))
    return _log_softmax if a.ndim == 2 else None


def _log_softmax(a: np.ndarray) -> np.ndarray:
    a = a - a.max(axis=-1, keepdims=True)
    return a - np.log(np.exp(a).sum(axis=-1, keepdims=True))
