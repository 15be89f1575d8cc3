"""The table of what a part of the outputs may be for: one entry a kind.

In the order in which they are told, and in which they decide: where a network has scores and boxes of no class beside
them, a person asks for the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnxprune.measure.kinds import anchors, boxes, detections, pictures, scores, text, vectors
from onnxprune.measure.kinds.look import Look
from onnxprune.measure.part import (
    BOX_SCORES,
    BOX_VALUES,
    BOXES,
    CLASS_MAP,
    DETECTIONS,
    EMBEDDING,
    HEAT_MAP,
    IMAGE,
    INTEGERS,
    KEYPOINTS,
    LABELS,
    MASK,
    SCORES,
    SIGNAL,
    STATE,
    TEXT,
    VALUES,
    Part,
    Values,
)

DIVERGENCE, SINGLY, ERROR = "divergence of classes", "divergence of labels", "relative error"
MARGINS, MISMATCH, NONE = "change of margins", "boxes that do not match", "none"
"""Units of damage (`measure.damage`)."""


OF_BOXES = ("box_precision", "box_recall", "box_f1_75", "box_map50", "box_map")


class Measured(Protocol):
    """What sums up figures over batches, in bounded memory."""

    def add(self, was: Values, now: Values, samples: int) -> None:
        """A batch more: the outputs of both."""

    def figures(self) -> dict[str, float]:
        """Figures by name (`measure.figures`)."""


@dataclass(frozen=True)
class Kind:
    """What is known of a kind.

    Attributes:
        help: what it is, in a line.
        default: the figure that a person would ask for; also where several parts are of it.
        figures: the others that it may have, besides cosine, SQNR and R².
        unit: of its damage.
        told: finds the parts that are of it; None: only said, or what else there is.
        sums: what sums up its figures.
        axis: of the classes or of the numbers of a box, where nobody says; from the end.
        ranks: of the values that it may be of; empty: any.
        decision: what is decided, in words; empty: nothing is.
    """

    help: str
    default: str
    figures: Sequence[str] = ()
    unit: str = ERROR
    told: Callable[[Look], dict[int, Part]] | None = None
    sums: Sequence[Callable[[Part], Measured]] = ()
    axis: int = -1
    ranks: Collection[int] = ()
    decision: str = ""


KINDS: Mapping[str, Kind] = {
    INTEGERS: Kind(
        "whole numbers, such as labels or what is picked", "integers", ("miou", "pixels"), NONE, vectors.integers,
        (scores.Classes,), decision="same integers",
    ),
    DETECTIONS: Kind(
        "boxes that are left after suppression, a row each", "box_f1", OF_BOXES,
        MISMATCH, detections.detections, (detections.Rows,), ranks=(2, 3),
    ),
    BOXES: Kind(
        "four numbers of a box an anchor, beside scores", "box_f1", OF_BOXES,
        told=boxes.boxes, sums=(boxes.Matches,), ranks=(3,),
    ),
    BOX_SCORES: Kind("scores of boxes, 0 to 1", "r2", ranks=(2, 3)),
    BOX_VALUES: Kind(
        "other numbers of an anchor beside scores: points, angles, coefficients of masks", "box_r2",
        sums=(anchors.OfFound,), ranks=(3,),
    ),
    TEXT: Kind(
        "class scores at every step, read as a text (CTC)", "words", ("characters", "top1"), MARGINS, text.text,
        (text.Reading,), ranks=(3,), decision="top-1 agreement",
    ),
    CLASS_MAP: Kind(
        "class scores at every pixel", "miou", ("pixels", "top1"), DIVERGENCE, scores.class_maps, (scores.Classes,), -3,
        ranks=(3, 4), decision="same pixels",
    ),
    LABELS: Kind(
        "sigmoids, one a label", "labels", ("label_f1", "top1"), SINGLY, scores.labels, (scores.Sets,),
        decision="same labels",
    ),
    MASK: Kind(
        "sigmoids, one a pixel", "mask_iou", ("pixels",), told=scores.masks, sums=(scores.Sets,), ranks=(2, 3, 4),
        decision="same pixels",
    ),
    STATE: Kind("the last state of a recurrent layer, fed back later", "r2", told=vectors.states),
    SCORES: Kind(
        "scores of classes, before or after softmax", "top1", ("top5", "class_agreement"), DIVERGENCE, scores.scores,
        (scores.Classes,), decision="top-1 agreement",
    ),
    EMBEDDING: Kind(
        "vectors that are compared with each other", "cosine", ("recall1",), told=vectors.embeddings,
        sums=(vectors.Neighbours,),
    ),
    KEYPOINTS: Kind(
        "coordinates of points", "keypoints", ("pearson", "spearman"), told=vectors.keypoints,
        sums=(vectors.Points, vectors.Correlation), ranks=(2, 3),
    ),
    HEAT_MAP: Kind(
        "maps of peaks", "peaks", ("pearson", "spearman"), told=pictures.heat_maps,
        sums=(pictures.Peaks, vectors.Correlation), ranks=(3, 4),
    ),
    IMAGE: Kind("an image", "ssim", ("psnr",), told=pictures.images, sums=(pictures.Pictures,), ranks=(3, 4)),
    SIGNAL: Kind(
        "a signal over time", "r2", ("psnr", "pearson"), told=pictures.signals,
        sums=(pictures.Pictures, vectors.Correlation), ranks=(2, 3),
    ),
    VALUES: Kind("any other values", "r2", ("pearson", "spearman"), sums=(vectors.Correlation,)),
}  # fmt: skip
ORDER = (DETECTIONS, BOXES, TEXT, SCORES, CLASS_MAP, LABELS, MASK, KEYPOINTS, EMBEDDING, HEAT_MAP, IMAGE, SIGNAL,
         INTEGERS, VALUES, BOX_VALUES, BOX_SCORES, STATE)  # fmt: skip
"""Which kind decides where there are several."""


def tell(look: Look) -> list[Part]:
    """The parts, each with its kind."""
    with np.errstate(all="ignore"):  # values may be infinite, or none
        for kind in KINDS.values():
            if kind.told is not None:
                look.decide(kind.told(look))
    return look.parts


def spelled(name: str) -> str:
    """A kind as the command line takes it: `class-scores`."""
    return name.replace(" ", "-")


def names() -> Iterable[str]:
    """All kinds, so spelled."""
    return map(spelled, KINDS)
