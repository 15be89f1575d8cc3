"""Whether a set of samples can tell anything: enough of them, different ones, and such as the network was made for.

One look at the original over some of the samples. Every doubt is a sentence with the number that shows it and what to
do. The thresholds are ours, set between what photographs, clothes and characters showed and what the same networks
showed on noise, flat colours, copies and wrongly scaled pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.channels import Analysed
from onnxprune.graph.layers import keeps_statistics, layers
from onnxprune.graph.said import Said
from onnxprune.measure.kinds.scores import SET
from onnxprune.measure.moments import Moments, moments
from onnxprune.measure.part import LABELS, SCORES
from onnxprune.measure.parts import parts_of
from onnxprune.measure.spread import too_narrow
from onnxprune.runtime import sessions
from onnxprune.runtime.ports import Feeds

OF_HELD = "fidelity is judged on"
"""How what is said of the number of held-out samples begins."""
FEW_HELD = 8
"""Held-out samples below which agreement says next to nothing."""
ENOUGH = 16
"""Samples from which it says something how different they are."""
VALUES = 1024
"""Values of a sample that are compared with those of others: means of as many stretches."""
NEAR, COPIES = 0.05, 0.2
"""Distance of two samples, relative to that of any two, below which one is a copy; share of copies that is too much."""
CLASSES = 1 / 3
"""Share of the classes that so many samples of equally frequent ones would show, below which they are few."""
ONE_CLASS = 0.9
"""Share of samples of one class that is too much."""
DIRECTIONS = 3.0
"""Directions in which features vary (participation ratio) that are too few."""
WIDE, DEEP = 12, 3
"""Channels that a layer must have for that, and number of such layers: shallow networks see colours only."""
SHIFT, STRETCH = 0.25, 1.6
"""Distance of a mean from the stored one in stored deviations, and ratio of deviations, that are too large."""
PLACES = 6
"""Layers whose features are looked at."""


def doubts(net: Analysed, batches: Sequence[Feeds], *, held: int, threads: int | None = None) -> list[str]:
    """What speaks against a set of samples, in words; nothing where all is well.

    Args:
        net: the original network.
        batches: some of the samples, from all over the set.
        held: how many are held out to judge fidelity by.
        threads: ORT threads.
    """
    found = []
    if held < FEW_HELD:
        many = f"{held} held-out sample{'s' * (held != 1)}" if held else "no held-out sample"
        found.append(f"{OF_HELD} {many}, which tells next to nothing; give a few hundred samples")
    if sum(map(_count, batches)) < ENOUGH:
        return found
    found += [*_statistics(net, batches, threads)] or [*too_narrow(net, batches, threads)]
    found += _copies(np.concatenate([_thinned(feeds) for feeds in batches]))
    seen = _look(net, batches, threads)
    return [*found, *_classes(seen.classes), *_directions(seen.features)]


def _count(feeds: Feeds) -> int:
    return len(next(iter(feeds.values()))) if feeds else 0


# ---- copies ------------------------------------------------------------------------------------------------


def _thinned(feeds: Feeds) -> np.ndarray:
    """(samples, values) of the largest input: means of stretches, a last one that is shorter left out."""
    value = max(feeds.values(), key=lambda v: v.size)
    rows = value.reshape(len(value), -1).astype(np.float64)
    each = max(1, rows.shape[1] // VALUES)
    whole = min(rows.shape[1] // each, VALUES)
    return rows[:, : whole * each].reshape(len(rows), whole, each).mean(axis=2)


def _copies(rows: np.ndarray) -> Iterator[str]:
    rows = rows - rows.mean(axis=0)
    squares = np.square(rows).sum(axis=1)
    usual = 2 * squares.mean()
    if usual <= 0:
        yield f"all {len(rows)} samples are the same; give different ones"
        return
    far = squares[:, None] + squares[None] - 2 * rows @ rows.T
    np.fill_diagonal(far, np.inf)
    copies = int((far.min(axis=1) < NEAR**2 * usual).sum())
    if copies > COPIES * len(rows):
        yield (
            f"{copies} of {len(rows)} samples have a near copy among the others, so held-out ones are no test of what "
            "was fitted; give samples that differ"
        )


# ---- what the original says of them --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """What one run shows.

    Attributes:
        classes: part of the outputs with class scores -> (number of classes, the class of each sample).
        features: tensor -> (samples, channels) means over positions.
    """

    classes: Mapping[str, tuple[int, np.ndarray]]
    features: Mapping[str, np.ndarray]


def _look(net: Analysed, batches: Sequence[Feeds], threads: int | None) -> _Seen:
    made = [net.graph.nodes[layer.key].output[0] for layer in layers(net.graph, net.shapes)]
    made = [t for t in made if t not in net.graph.outputs and len(net.shapes.get(t, ())) > 1]
    places = [made[i] for i in np.unique(np.linspace(0, len(made) - 1, PLACES).round().astype(int))] if made else []
    session = sessions.open_with_outputs(net.model, places, threads=threads, name="original")
    features: dict[str, list[np.ndarray]] = {place: [] for place in places}
    said: dict[str, list[np.ndarray]] = {}
    sizes: dict[str, int] = {}
    for feeds in batches:
        values = dict(zip(session.outputs, map(np.asarray, session.run(dict(feeds))), strict=True))
        for place in places:
            value = values.pop(place)
            if len(value) == _count(feeds):
                features[place].append(value.reshape(*value.shape[:2], -1).mean(axis=2, dtype=np.float64))
        for part in parts_of(net.graph, net.shapes, values, said=Said(net.said.kinds)):
            scores = part.of(values[part.output])
            if part.kind == SCORES and scores.ndim == 2:
                said.setdefault(part.name, []).append(scores.argmax(axis=part.axis))
                sizes[part.name] = scores.shape[part.axis]
            elif part.kind == LABELS and scores.size == len(scores):  # yes or no
                said.setdefault(part.name, []).append((scores.ravel() > SET).astype(int))
                sizes[part.name] = 2
    classes = {name: (sizes[name], np.concatenate(parts)) for name, parts in said.items()}
    alike = {k: v for k, v in features.items() if v and len({x.shape[1] for x in v}) == 1}
    return _Seen(classes, {k: np.concatenate(v) for k, v in alike.items()})


def _classes(classes: Mapping[str, tuple[int, np.ndarray]]) -> Iterator[str]:
    for name, (count, said) in classes.items():
        found, times = np.unique(said, return_counts=True)
        if times.max() > ONE_CLASS * len(said):
            yield (
                f"the original sees one class in {times.max() / len(said):.0%} of {len(said)} samples ({name}), so "
                "agreement says little; give samples of all classes"
            )
        elif len(found) < CLASSES * count * (1 - (1 - 1 / count) ** len(said)):
            yield (
                f"the original sees {len(found)} of its {count} classes in {len(said)} samples ({name}), and what it "
                "knows of the others may be lost; give samples of more classes"
            )


def _directions(features: Mapping[str, np.ndarray]) -> Iterator[str]:
    found = [(_participation(rows), rows) for rows in features.values() if len(rows) >= ENOUGH]
    wide = [(ratio, rows) for ratio, rows in found if rows.shape[1] >= WIDE]
    if len(wide) >= DEEP and (most := max(ratio for ratio, _ in wide)) < DIRECTIONS:
        yield (
            f"the samples vary in about {most:.1f} directions only (effective rank of the features of "
            f"{max(rows.shape[1] for _, rows in wide)} channels); give samples that differ more"
        )


def _participation(rows: np.ndarray) -> float:
    """Effective rank of the correlations between columns: (Σλ)² / Σλ² of their eigenvalues."""
    centred = rows - rows.mean(axis=0)
    deviations = centred.std(axis=0)
    lively = deviations > 1e-6 * max(deviations.max(initial=0.0), 1e-30)
    if not lively.any():
        return 0.0
    powers = np.square(np.linalg.svd(centred[:, lively] / deviations[lively], compute_uv=False))
    return float(powers.sum() ** 2 / np.square(powers).sum())


# ---- what the network was made for ----------------------------------------------------------------------------


def _statistics(net: Analysed, batches: Sequence[Feeds], threads: int | None) -> Iterator[str]:
    """Against the statistics that BatchNormalization stores of the samples that the network was trained on."""
    nodes = {k: n for k, n in net.graph.nodes.items() if keeps_statistics(n) and n.input[0] in net.shapes}
    taps = {n.input[0]: (1, len(net.shapes[n.input[0]])) for n in nodes.values()}
    if not taps:
        return
    seen = moments(net.model, taps, batches, threads=threads)
    found = [_off(net, key, seen[node.input[0]]) for key, node in nodes.items()]
    shifts, stretches = np.array([f for f in found if f is not None]).reshape(-1, 2).T
    if not len(shifts):
        return
    shift, stretch = float(np.median(shifts)), float(np.median(stretches))
    first = float(stretches[0])  # it sees them as they are given, all others what was normalized before
    for ratio in (first, stretch):
        if not 1 / STRETCH < ratio < STRETCH:
            yield (
                f"the samples do not look like what the network was trained on: values spread {ratio:.2f} times as far "
                f"as BatchNormalization's statistics promise; scale them (mean, deviation, 0 to 1 or 0 to 255) as in "
                "training"
            )
            return
    if shift > SHIFT:
        yield (
            f"the samples do not look like what the network was trained on: means are off by {shift:.2f} of the "
            "deviations that BatchNormalization's statistics promise; scale them as in training, and take them from "
            "where the model is used"
        )


def _off(net: Analysed, key: str, seen: Moments) -> tuple[float, float] | None:
    """How far the mean is off in stored deviations, and the ratio of the deviations, for the median channel."""
    mean, variance = net.graph.value((key, 3)), net.graph.value((key, 4))
    if mean is None or variance is None or not (np.asarray(variance) > 0).any():
        return None
    stored = np.sqrt(np.asarray(variance, np.float64) + 1e-5)
    shift = np.median(np.abs(seen.mean - np.asarray(mean, np.float64)) / stored)
    return float(shift), float(np.median(seen.std / stored))
