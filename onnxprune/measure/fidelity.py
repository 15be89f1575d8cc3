"""Fidelity: does the finished model still answer like the original? Asked on samples that nothing was fitted on.

Every part of the outputs is compared by itself (`measure.parts`): an error in pixels says nothing of scores beside it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx

from onnxprune.graph.joined import Sizes
from onnxprune.graph.model import Graph
from onnxprune.graph.said import NOTHING, Said
from onnxprune.measure.agreement import PartFidelity, Tally
from onnxprune.measure.decisions import picked_from
from onnxprune.measure.figures import FIGURES, Figure, value_of
from onnxprune.measure.part import DETECTIONS, INTEGERS
from onnxprune.measure.parts import fullest, parts_of
from onnxprune.measure.verdict import deciding, judged
from onnxprune.runtime import sessions
from onnxprune.runtime.ports import Feeds

TOLD_BY, FEW = 8, 28
"""Most batches that tell what outputs with a changing number of rows say; numbers of an output that tell little."""
Outputs = dict[str, np.ndarray]


class Asked(NamedTuple):
    """A figure that a person would ask for, its value, and the part that it is of."""

    figure: Figure
    value: float
    part: PartFidelity


def _known(figures: Mapping[str, float]) -> list[tuple[Figure, float]]:
    return [(FIGURES[name], value) for name, value in figures.items() if name in FIGURES]


@dataclass(frozen=True)
class Fidelity:
    """How alike the outputs are on held-out samples.

    Attributes:
        samples: number of samples.
        cosine: mean cosine per sample, of the worst part; None when no output is of floating point.
        sqnr_db: 10·log10 of signal power over error power, of the worst part; None likewise.
        top1: share of samples whose largest score is the same, in the worst part; None when there are no class scores.
        held_out: False when the samples were also fitted on (there was only one).
        equal: share of the entries of integer outputs (labels, class maps) that are the same; None when there are none.
        parts: every part of the outputs by itself.
        verdict: "kept", "changed" or "destroyed"; None when there is no output to compare.
        why: what the verdict goes by, in words.
        decides: the part that a person would ask for, and by which of its figures; empty where there is none.
    """

    samples: int
    cosine: float | None
    sqnr_db: float | None
    top1: float | None
    held_out: bool = True
    equal: float | None = None
    parts: tuple[PartFidelity, ...] = ()
    verdict: str | None = None
    why: str = ""
    decides: tuple[str, ...] = ()

    @property
    def asked(self) -> Asked | None:
        """The figure that a person would ask for, where it is none of the others."""
        for part in self.parts:
            for name in self.decides[1:2]:
                if part.name == self.decides[0] and name in part.figures and name in FIGURES:
                    return Asked(FIGURES[name], part.figures[name], part)
        return None

    def in_words(self) -> str:
        """`top-1 agreement 98.0%, cosine 0.9987, SQNR 25.1 dB`; before it what a person would ask of the part that
        decides, where that is another figure."""
        found = self.asked
        parts = [] if found is None else [figure.words(v) for figure, v in _known(found.part.figures)]
        parts += [] if self.top1 is None else [f"top-1 agreement {self.top1:.1%}"]
        if self.cosine is not None and self.sqnr_db is not None:
            parts += [f"cosine {self.cosine:.4f}", f"SQNR {self.sqnr_db:.1f} dB"]
        parts += [] if self.equal is None else [f"same integers {self.equal:.1%}"]
        return ", ".join(parts) or "no output to compare"


def check_fidelity(
    original: Graph,
    pruned: onnx.ModelProto,
    batches: Iterable[Feeds],
    *,
    shapes: Sizes | None = None,
    said: Said = NOTHING,
    held_out: bool = True,
) -> Fidelity:
    """Compare the finished model with the original, sample by sample.

    Args:
        original: what it was made from.
        pruned: the finished model.
        batches: samples that nothing was fitted on.
        shapes: tensor name -> sizes in a run of the original; None: outputs are not parted.
        said: what its user says of the outputs.
        held_out: whether they were kept apart indeed.
    """
    names, picked = _compared(original, pruned)
    left = sessions.open_with_outputs(original.model, names, name="original")
    right = sessions.open_with_outputs(pruned, names, name="pruned model")
    compared = (_both(feeds, left, right) for feeds in batches)
    ahead: list[tuple[int, Outputs, Outputs]] = []
    for both in itertools.islice(compared, TOLD_BY):
        ahead.append(both)
        if all(value.size >= FEW for value in both[1].values()):
            break
    told = fullest(was for _, was, _ in ahead)
    count = next((n for n, was, _ in ahead if was is told), None)
    tallies = [Tally(part) for part in parts_of(original, shapes or {}, told, said=said, samples=count)]
    samples = 0
    for count, was, now in itertools.chain(ahead, compared):
        samples += count
        for tally in tallies:
            tally.compare(was, now, count)
    return _summed_up(tallies, picked, samples, held_out)


def _both(feeds: Feeds, left: sessions.Session, right: sessions.Session) -> tuple[int, Outputs, Outputs]:
    """(samples, what the original gives, what the other one gives)."""
    was, now = (dict(zip(s.outputs, map(np.asarray, s.run(dict(feeds))), strict=True)) for s in (left, right))
    return len(next(iter(feeds.values()))) if feeds else 1, was, now


def _compared(original: Graph, pruned: onnx.ModelProto) -> tuple[list[str], set[str]]:
    """Tensors to compare besides the outputs, and outputs that are not comparable: which boxes a detector picks, and
    in which order, hangs on the last bit, so what it picks from is compared."""
    read, behind = picked_from(original)
    made = {o for n in pruned.graph.node for o in n.output}
    names = [name for name in read if name in made]
    return names, behind if names else set()


def _summed_up(tallies: Sequence[Tally], picked: set[str], samples: int, held_out: bool) -> Fidelity:
    """The worst part of each kind decides; what is picked counts only where nothing else can be compared."""
    seen = [t for t in tallies if t.samples]
    seen = [t for t in seen if t.part.output not in picked or t.part.kind == DETECTIONS] or seen
    parts = tuple(t.fidelity() for t in seen)
    verdict = judged(parts, samples)
    return Fidelity(
        samples=samples,
        cosine=min((p.cosine for p in parts if p.cosine is not None), default=None),
        sqnr_db=min((p.sqnr_db for p in parts if p.sqnr_db is not None), default=None),
        top1=min((top1 for p in parts if (top1 := value_of("top1", p)) is not None), default=None),
        held_out=held_out,
        equal=min((p.same for p in parts if p.same is not None and p.kind == INTEGERS), default=None),
        parts=parts,
        verdict=None if verdict is None else verdict.verdict,
        why="" if verdict is None else verdict.why,
        decides=() if (found := deciding(parts)) is None else (found[0].name, found[1]),
    )
