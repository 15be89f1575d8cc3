"""What the outputs of a network consist of: one output may join boxes in pixels and scores from 0 to 1.

Where an output was joined is seen from the graph (`graph.joined`); whether what was joined differs in unit, and what
it says, from the values that the original gives on samples (`measure.kinds`), or from its user (`graph.said`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from onnxprune.errors import UsageError, one_line, unknown
from onnxprune.graph.joined import Region, Sizes, joined
from onnxprune.graph.model import Graph
from onnxprune.graph.said import NOTHING, Meaning, Said, Stretch, output_of
from onnxprune.measure.kinds.boxes import joint, joint_and_more
from onnxprune.measure.kinds.detections import layout_of
from onnxprune.measure.kinds.look import Look
from onnxprune.measure.kinds.table import KINDS, tell
from onnxprune.measure.part import BOX_SCORES, BOXES, INTEGERS, SCORES, VALUES, Part, merged, slices

UNITS_APART = 8.0
"""Ratio of the spreads of neighbours, sorted by spread, from which they have different units."""


def parts_of(
    graph: Graph | None,
    shapes: Sizes,
    values: Mapping[str, np.ndarray],
    *,
    said: Said = NOTHING,
    samples: int | None = None,
) -> tuple[Part, ...]:
    """The outputs, parted where units differ, and what they say.

    Args:
        graph: the network; None: outputs are not parted.
        shapes: tensor name -> sizes in a run of it.
        values: output -> what it was on samples.
        said: what the user says of them.
        samples: how many samples; None: not known.

    Raises:
        UsageError: what was said does not fit them.
    """
    parts = [p for name, value in values.items() for p in _parted(graph, name, shapes, np.asarray(value), said)]
    _check_names(said, parts, values)
    look = Look(graph, shapes, values, samples, parts)
    for k, part in enumerate(parts):
        meaning = _meaning(part, said)
        if meaning is not None:
            look.parts[k] = _as_said(part, meaning, look.value(k))
            look.asked.add(k)
    look.decided |= look.asked
    weighed = said.weights
    found = tell(look)
    _check_boxes(found)
    told = {name for part in found for name in part.others}
    found = [part for part in found if part.output not in told]
    return tuple(replace(p, weight=weighed.get(p.name, weighed.get(p.output, 1.0))) if weighed else p for p in found)


def fullest(batches: Iterable[Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    """Of the outputs on some batches those that tell most: a detector that finds nothing puts out no rows."""
    return max(batches, key=lambda values: sum(np.size(v) for v in values.values()), default={})


MADE_BY = {
    "Softmax": "class scores", "LogSoftmax": "class scores", "Sigmoid": "0 to 1: labels, a mask or scores of boxes",
    "HardSigmoid": "0 to 1: labels, a mask or scores of boxes", "ArgMax": "integers", "ArgMin": "integers",
    "TopK": "what is picked", "NonMaxSuppression": "what is picked", "LpNormalization": "an embedding",
}  # fmt: skip
"""What an output says by the operator that makes it, as far as that goes."""


def by_graph(graph: Graph, shapes: Sizes, output: str, said: Said = NOTHING) -> list[tuple[str, str]]:
    """(part, what it says) of an output as far as the graph tells, without samples: stretches that the same operators
    make are one part."""
    known = tuple(shapes.get(output, ()))
    look = Look(graph, shapes, {}, None, [])
    meaning = said.kinds.get(output)
    if meaning is not None and meaning.parts and known:
        parts = _as_set(output, meaning, known)
        return [(p.name, "" if (own := _meaning(p, said)) is None else own.kind) for p in parts]
    makers: dict[frozenset[str], list[Region]] = {}
    for region in joined(graph, output, shapes):
        makers.setdefault(frozenset(look.made_by(Part(output, (region,)))), []).append(region)
    own_makers = [(Part(output, merged(regions, known)), made) for made, regions in makers.items()]
    return [(part.name, _made_words(part, made, said)) for part, made in own_makers]


def _made_words(part: Part, made: Collection[str], said: Said) -> str:
    meaning = _meaning(part, said)
    if meaning is not None:
        return meaning.kind
    words = dict.fromkeys(MADE_BY.get(op, "") for op in sorted(made))
    return ", ".join(words) if made and all(words) else ""


# ---- where an output is parted -------------------------------------------------------------------------------


def _parted(graph: Graph | None, output: str, shapes: Sizes, value: np.ndarray, said: Said) -> list[Part]:
    meaning = said.kinds.get(output)
    if meaning is not None and meaning.parts:
        return _as_set(output, meaning, value.shape)
    if graph is None or value.dtype.kind != "f" or not value.size:
        return [Part(output)]
    if layout_of(value) if meaning is None else meaning.kind != BOXES:
        return [Part(output)]
    known, regions = tuple(shapes.get(output, ())), joined(graph, output, shapes)
    seen = len(regions) > 1 and value.ndim == len(known) and value.shape[1:] == known[1:]
    borders = {(axis, start) for region in regions for axis, start, _ in region} if seen else set()
    axis = _asked_joint(value, meaning) if meaning is not None else joint(value, borders)
    if axis is not None:
        return [Part(output, (((axis, 0, 4),),)), Part(output, (((axis, 4, value.shape[axis]),),))]
    if not seen:
        return [Part(output)]
    more = joint_and_more(value, borders) if meaning is None else None
    if more is not None:
        axis, places = more[0], (0, *((4,) if value.ndim == 3 else ()), more[1], value.shape[more[0]])
        return [Part(output, (((axis, a, b),),)) for a, b in pairwise(places)]
    groups = _by_unit(regions, [float(np.std(value[slices(r, value.ndim)], dtype=np.float64)) for r in regions])
    return [Part(output)] if len(groups) == 1 else [Part(output, merged(group, known)) for group in groups]


def _asked_joint(value: np.ndarray, meaning: Meaning) -> int | None:
    """The axis with the numbers of boxes and, behind them, their scores, of an output that is said to be boxes; None
    where it has no scores."""
    if value.ndim != 3:
        return None
    axes = [a for a in (1, 2) if value.shape[a] > 4 and value.shape[3 - a] > 1]
    if meaning.axis is not None:
        axes = [a for a in axes if a == meaning.axis % value.ndim]
    elif any(value.shape[a] == 4 for a in (1, 2)):
        return None
    return min(axes, key=lambda a: value.shape[a], default=None)


def _by_unit(regions: Sequence[Region], spreads: Sequence[float]) -> list[list[Region]]:
    """Regions of about the same spread together, in the order in which they stand."""
    order = sorted(range(len(regions)), key=lambda k: spreads[k])
    unit, units = 0, dict.fromkeys(order[:1], 0)
    for before, k in pairwise(order):
        unit += spreads[k] > UNITS_APART * spreads[before]
        units[k] = unit
    found: dict[int, list[Region]] = {}
    for k, region in enumerate(regions):
        found.setdefault(units[k], []).append(region)
    return list(found.values())


# ---- what was said -------------------------------------------------------------------------------------------


def _meaning(part: Part, said: Said) -> Meaning | None:
    """What was said of a part, by its own name or as a part of its output; None where nothing was."""
    own, whole = said.kinds.get(part.name), said.kinds.get(part.output)
    if own is not None and not own.parts:
        return own
    if whole is None or not whole.parts:
        return whole
    ((_, start, stop),) = part.regions[0] or ((0, 0, 0),)
    return whole.of(start, stop)


def _as_set(output: str, meaning: Meaning, sizes: Sequence[int]) -> list[Part]:
    """The parts that its user sets, and what these leave over.

    Raises:
        UsageError: they do not fit it.
    """
    axis = -1 if meaning.axis is None else meaning.axis
    if not -len(sizes) <= axis < len(sizes) or axis % len(sizes) == 0:
        known = f"output {output!r} has shape {list(sizes)}"
        raise UsageError(one_line(f"{known}: no axis {axis} behind that of the samples that has parts"))
    axis, size, at = axis % len(sizes), sizes[axis], 0
    set_ = list[Stretch]()
    for one in sorted(meaning.parts, key=lambda p: p.start):
        set_ += [Stretch(at, one.start), one] if at < one.start else [one]
        at = one.stop
    if at > size:
        raise UsageError(
            one_line(f"output {output!r}: part {set_[-1].start}-{at} of an axis of {size}; stop at {size}")
        )
    set_ += [Stretch(at, size)] if at < size else []
    return [Part(output, (((axis, p.start, p.stop),),), given=p.name) for p in set_]


def _check_boxes(parts: Collection[Part]) -> None:
    """Refuse boxes that nobody knows the scores of.

    Raises:
        UsageError: there are such.
    """
    for part in parts:
        if part.kind == BOXES and part.beside is None:
            why = "no scores from 0 to 1 of as many anchors are beside it"
            remedy = "say where they are: --output-kind NAME=box-scores, or another kind of this one"
            raise UsageError(one_line(f"output {part.name!r} cannot be boxes: {why}; {remedy}"))


def _check_names(said: Said, parts: Collection[Part], outputs: Collection[str]) -> None:
    names = [name for part in parts for name in dict.fromkeys((part.output, part.name))]
    for name in said.names():
        if name not in names and output_of(name) in outputs:
            raise unknown("part of the outputs", name, dict.fromkeys(names))


def _as_said(part: Part, meaning: Meaning, value: np.ndarray) -> Part:
    """A part of the kind that was said.

    Raises:
        UsageError: its values cannot be that.
    """
    name = BOX_SCORES if meaning.kind == BOXES and any(r and r[0][1] for r in part.regions) else meaning.kind
    kind, axis = KINDS[name], KINDS[name].axis
    if meaning.axis is not None:
        if not -value.ndim <= meaning.axis < value.ndim:
            raise UsageError(one_line(f"output {part.output!r} has shape {list(value.shape)}, no axis {meaning.axis}"))
        axis = meaning.axis % value.ndim - value.ndim
    whole = name == INTEGERS
    if (kind.ranks and value.ndim not in kind.ranks) or whole != (value.dtype.kind in "iub"):
        wanted = "whole numbers" if whole else f"floating point of rank {' or '.join(map(str, kind.ranks)) or 'any'}"
        what = f"{value.dtype} of shape {list(value.shape)}"
        raise UsageError(one_line(f"output {part.name!r} cannot be {name}: that is {wanted}, it is {what}"))
    if name in (SCORES, BOXES) and value.ndim < 2:
        raise UsageError(one_line(f"output {part.name!r} of shape {list(value.shape)} cannot be {name}"))
    return replace(part, kind=name, axis=axis)


__all__ = ["INTEGERS", "SCORES", "VALUES", "Part", "parts_of"]
