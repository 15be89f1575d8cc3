"""How much worse the outputs got, as one number that can be summed, compared and minimised.

Class scores are compared as distributions (Kullback-Leibler divergence, in nats per sample), labels each as one,
everything else by its squared error relative to its variance. No labels of samples: the original network is the truth.
An output that joins several units, such as boxes in pixels and scores from 0 to 1, is compared part by part
(`measure.parts`), and boxes count by the scores beside them, in the same output or another: what a detector says of
places where it sees nothing is of no use to anyone. Boxes that are left after suppression count by how well they match
(`measure.kinds.detections`). A user may let a part count more or less (`graph.said`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.channels import Analysed
from onnxprune.measure.kinds.boxes import strength
from onnxprune.measure.kinds.detections import mismatch
from onnxprune.measure.kinds.table import DIVERGENCE, KINDS, SINGLY
from onnxprune.measure.part import DETECTIONS, Part
from onnxprune.measure.parts import parts_of

Outputs = Sequence[np.ndarray]


class Damage:
    """Compares what candidates put out with what the original does.

    Args:
        net: the original network.
        wanted: its outputs on each batch, in order.
    """

    def __init__(self, net: Analysed, wanted: Sequence[Outputs]):
        self.wanted = wanted
        names, first = list(net.graph.outputs), [np.asarray(v) for v in wanted[0]] if wanted else []
        found = parts_of(net.graph, net.shapes, dict(zip(names, first, strict=False)), said=net.said)
        self.parts = [[part for part in found if part.output == name] for name in names]

    def of(self, got: Sequence[Outputs]) -> float:
        """The mean over batches."""
        return float(np.mean(self.each(got)))

    def each(self, got: Sequence[Outputs]) -> np.ndarray:
        """(batches,) of every batch."""
        return np.array([damage(a, b, self.parts) for a, b in zip(self.wanted, got, strict=True)])


def damage(wanted: Outputs, got: Outputs, parts: Sequence[Sequence[Part]] | None = None) -> float:
    """Sum over the parts of one batch of KL(wanted ‖ got), or of ‖wanted − got‖² / ‖wanted − mean‖².

    Args:
        wanted, got: the outputs of the original and of the candidate, in the same order.
        parts: what each output consists of; None: what its values say.

    Returns:
        0 when they agree; infinite when `got` is not finite.
    """
    if parts is None:
        parts = [[part] for part in parts_of(None, {}, {str(k): np.asarray(v) for k, v in enumerate(wanted)})]
    named = {several[0].output: np.asarray(a) for a, several in zip(wanted, parts, strict=True) if several}
    total = 0.0
    for a, b, several in zip(wanted, got, parts, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if several and several[0].kind == DETECTIONS:  # as many as there are, in any order
            total += several[0].weight * mismatch(several[0], a, b)
            continue
        if a.dtype.kind != "f" or a.shape != b.shape or not a.size:
            continue
        a, b = a.astype(np.float64), b.astype(np.float64)
        if not np.isfinite(b).all():
            return float("inf")
        for part in several:
            weight = np.square(strength(part, named)) if part.beside is not None else _weight(a, several)
            total += part.weight * _of_part(part, part.of(a), part.of(b), weight)
    return total


def _of_part(part: Part, a: np.ndarray, b: np.ndarray, weight: np.ndarray | None) -> float:
    unit = KINDS[part.kind].unit
    if unit == DIVERGENCE:
        logs = _logs(np.moveaxis(a, part.axis, -1))
        p, q = (logs(np.moveaxis(v, part.axis, -1)) for v in (a, b))
        return float((np.exp(p) * (p - q)).sum() / (p.size // p.shape[-1]))
    if unit == SINGLY:
        return _singly(a, b)
    if weight is None or (part.beside is None and _is_scores(a)):
        return float(np.square(a - b).sum() / max(np.square(a - a.mean()).sum(), 1e-300))
    w = np.broadcast_to(weight, a.shape)
    mean = (w * a).sum() / max(w.sum(), 1e-300)
    return float((w * np.square(a - b)).sum() / max((w * np.square(a - mean)).sum(), 1e-300))


def _singly(a: np.ndarray, b: np.ndarray) -> float:
    """KL of what is set or not, summed over the labels of a sample, in nats."""
    p, q = (np.clip(v, 1e-6, 1 - 1e-6) for v in (a, b))
    each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    return float(each.sum() / max(1, len(each)))


def _weight(a: np.ndarray, parts: Sequence[Part]) -> np.ndarray | None:
    """What stands beside scores counts by the largest of them, squared as the scores' own errors are; None where parts
    are not stretches of one axis, or none of them is scores from 0 to 1."""
    if len(parts) < 2:
        return None
    regions = [part.regions[0] for part in parts if len(part.regions) == 1 and len(part.regions[0]) == 1]
    axes = {region[0][0] for region in regions}
    if len(regions) < len(parts) or len(axes) != 1:
        return None
    scores = [u for u in (part.of(a) for part in parts) if _is_scores(u)]
    if not scores or len(scores) == len(parts):
        return None
    return np.square(np.max([u.max(axis=axes.pop(), keepdims=True) for u in scores], axis=0))


def _is_scores(u: np.ndarray) -> bool:
    return bool(u.min() >= 0 and 0 < u.max() <= 1)


def _logs(scores: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """How to take log p over the last axis of scores like these: of probabilities as they are, of others by softmax."""
    if scores.min() >= 0 and np.allclose(scores.sum(axis=-1), 1.0, atol=1e-3):
        return lambda v: np.log(np.maximum(v, 1e-9))
    return _log_softmax


def _log_softmax(a: np.ndarray) -> np.ndarray:
    a = a - a.max(axis=-1, keepdims=True)
    return a - np.log(np.exp(a).sum(axis=-1, keepdims=True))
