"""How much worse the outputs got, as one number that can be summed, compared and minimised.

Class scores are compared as distributions (Kullback-Leibler divergence, in nats per sample), those of texts by how far
the margins of decisions move, labels each as one, everything else by its squared error relative to its variance. No
labels of samples: the original network is the truth. An output that joins several units, such as boxes in pixels and
scores from 0 to 1, is compared part by part (`measure.parts`), and boxes count by the scores beside them, in the same
output or another: what a detector says of places where it sees nothing is of no use to anyone. Boxes that are left
after suppression count by how well they match (`measure.kinds.detections`), and what they are picked from counts beside
them: few are found in few samples, and one that is picked or not is a matter of luck. A user may let a part count more
or less (`graph.said`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from onnxprune.channels import Analysed
from onnxprune.measure.decisions import comparable
from onnxprune.measure.kinds.anchors import probabilities, strength
from onnxprune.measure.kinds.detections import mismatch
from onnxprune.measure.kinds.table import DIVERGENCE, ERROR, KINDS, MARGINS, SINGLY
from onnxprune.measure.part import BOX_SCORES, BOX_VALUES, BOXES, DETECTIONS, LABELS, SCORES, Part
from onnxprune.measure.parts import fullest, parts_of

Outputs = Sequence[np.ndarray]
OF_DETECTORS = frozenset((BOXES, BOX_SCORES, BOX_VALUES))


class Damage:
    """Compares what candidates put out with what the original does.

    Args:
        net: the original network.
        run: gives the tensors of these names in the original, a list a batch.

    Attributes:
        names: what is compared: the outputs, and behind them what some of them are picked from.
    """

    def __init__(self, net: Analysed, run: Callable[[Sequence[str]], Sequence[Outputs]]):
        self.names, picked = comparable(net.graph)
        self.wanted = run(self.names)
        values = fullest(_named(outputs, self.names) for outputs in self.wanted)
        outputs = {name: values[name] for name in net.graph.outputs if name in values}
        found = [p for p in parts_of(net.graph, net.shapes, outputs, said=net.said)
                 if p.output not in picked or p.kind == DETECTIONS]  # fmt: skip
        inner = {name: value for name, value in values.items() if name not in outputs}
        found += map(_of_picked, parts_of(net.graph, net.shapes, inner))
        self.parts = [[part for part in found if part.output == name] for name in self.names]
        self._spreads = _spreads([_named(outputs, self.names) for outputs in self.wanted], self.parts)

    def of(self, got: Sequence[Outputs]) -> float:
        """The mean over batches."""
        return float(np.mean(self.each(got)))

    def each(self, got: Sequence[Outputs]) -> np.ndarray:
        """(batches,) of every batch."""
        pairs = zip(self.wanted, got, strict=True)
        return np.array([damage(a, b, self.parts, self._spreads, self.names) for a, b in pairs])


def _of_picked(part: Part) -> Part:
    """A part of what is picked from: scores of many places are no decisions, whatever they look like."""
    alone = part.kind in (SCORES, LABELS) and not part.form
    return replace(part, kind=BOX_SCORES) if alone else part


def _spreads(wanted: Sequence[Mapping[str, np.ndarray]], parts: Sequence[Sequence[Part]]) -> dict[str, float]:
    """Of parts of detectors, what their errors are relative to: the mean over batches. Where a batch shows nothing that
    is found, its own spread is that of noise."""
    found: dict[str, list[float]] = {}
    for named in wanted:
        for several in parts:
            for part in several:
                if part.kind in OF_DETECTORS or (part.kind == SCORES and part.form):
                    a = named[part.output].astype(np.float64)
                    found.setdefault(part.name, []).append(_spread(*_weighed(part, a, several, named)))
    return {name: float(np.mean(each)) for name, each in found.items()}


def _named(outputs: Outputs, names: Sequence[str]) -> dict[str, np.ndarray]:
    return dict(zip(names, map(np.asarray, outputs), strict=True))


def _weighed(
    part: Part, a: np.ndarray, several: Sequence[Part], named: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The values of a part, scores by their roots, and how much each counts; None: all alike."""
    u = part.of(a)
    if part.kind == BOX_SCORES or (part.form and part.kind == SCORES):
        return _roots(part, u), None
    if part.beside is not None:
        return u, strength(part, named)
    return u, None if _is_scores(u) else _weight(a, several)


def damage(
    wanted: Outputs,
    got: Outputs,
    parts: Sequence[Sequence[Part]] | None = None,
    spreads: Mapping[str, float] = MappingProxyType({}),
    names: Sequence[str] | None = None,
) -> float:
    """Sum over the parts of one batch of KL(wanted ‖ got), of `_margins`, or of ‖wanted − got‖² / ‖wanted − mean‖².

    Args:
        wanted, got: the outputs of the original and of the candidate, in the same order.
        parts: what each output consists of; None: what its values say.
        spreads: part -> what its error is relative to, where that is not the spread in this batch.
        names: of the outputs; None: those that `parts` are of.

    Returns:
        0 when they agree; infinite when `got` is not finite.
    """
    if parts is None:
        parts = [[part] for part in parts_of(None, {}, {str(k): np.asarray(v) for k, v in enumerate(wanted)})]
    names = [several[0].output if several else "" for several in parts] if names is None else names
    named, now, total = _named(wanted, names), _named(got, names), 0.0
    for a, b, several in zip(wanted, got, parts, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if several and several[0].kind == DETECTIONS:  # as many as there are, in any order
            total += several[0].weight * mismatch(several[0], named, now)
            continue
        if a.dtype.kind != "f" or a.shape != b.shape or not a.size:
            continue
        a, b = a.astype(np.float64), b.astype(np.float64)
        if not np.isfinite(b).all():
            return float("inf")
        for part in several:
            u, weight = _weighed(part, a, several, named)
            total += part.weight * _of_part(part, u, part.of(b), weight, spreads.get(part.name))
    return total


def _of_part(part: Part, a: np.ndarray, b: np.ndarray, weight: np.ndarray | None, spread: float | None) -> float:
    """Of a part's values, those of the original as `_weighed` gives them."""
    unit = KINDS[part.kind].unit
    if part.kind == BOX_SCORES or (part.form and part.kind == SCORES):
        b, unit = _roots(part, b), ERROR
    if unit == DIVERGENCE:
        logs = _logs(np.moveaxis(a, part.axis, -1))
        p, q = (logs(np.moveaxis(v, part.axis, -1)) for v in (a, b))
        return float((np.exp(p) * (p - q)).sum() / (p.size // p.shape[-1]))
    if unit == MARGINS:
        logs = _logs(np.moveaxis(a, part.axis, -1))
        return _margins(*(logs(np.moveaxis(v, part.axis, -1)) for v in (a, b)))
    if unit == SINGLY:
        return _singly(a, b)
    noise = np.square(a - b) if weight is None else np.broadcast_to(weight, a.shape) * np.square(a - b)
    return float(noise.sum() / max(_spread(a, weight) if spread is None else spread, 1e-300))


def _roots(part: Part, a: np.ndarray) -> np.ndarray:
    """The square roots of scores (Hellinger's distance): what is nearly nothing tells of the little that is something.

    Few anchors in few samples decide. By the scores themselves and boxes weighed by their squares, a YOLOv8n at -30%
    found 884 of 1,000 boxes and 373 in place of 249; by the roots, and boxes weighed by the scores, 936 and 286.
    """
    return np.asarray(np.sqrt(np.maximum(probabilities(part, a), 0.0)))


def _spread(a: np.ndarray, weight: np.ndarray | None) -> float:
    """‖a − mean‖², weighed."""
    if weight is None:
        return float(np.square(a - a.mean()).sum())
    w = np.broadcast_to(weight, a.shape)
    return float((w * np.square(a - (w * a).sum() / max(w.sum(), 1e-300))).sum())


def _margins(p: np.ndarray, q: np.ndarray) -> float:
    """The mean over decisions of `min(1, (change / margin)²)`, the margin being that of the best class over the next
    one in log p (..., classes), and its change what `q` makes of it.

    Where a network is sure of nearly all that it decides, KL is that of the few decisions that turn among those looked
    at, a matter of luck. How far margins move tells it of all of them, and what several cuts do adds up. Ours.
    """
    best = p.argmax(axis=-1, keepdims=True)

    def margin(v: np.ndarray) -> np.ndarray:
        others = v.copy()
        np.put_along_axis(others, best, -np.inf, axis=-1)
        return np.take_along_axis(v, best, axis=-1)[..., 0] - others.max(axis=-1)

    was, now = margin(p), margin(q)
    return float(np.minimum(1.0, np.square((now - was) / np.maximum(was, 1e-3))).mean())


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
