"""Figures of fidelity by name: what a person would ask of a part of the outputs.

One entry a figure: `--max-drop NAME=x`, `--min NAME=x`, the terminal, the page and JSON know of it by the table. How
one is measured, the kinds of parts know (`measure.kinds`). Imports neither numpy nor onnx.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxprune.measure.agreement import PartFidelity


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        title: what it is called.
        help: what it is, in a line.
        share: whether it is 1 at best, and shown in percent; a drop can be asked of these alone.
        unit: behind the value of another.
        of: takes it from what is known of a part; None: it is among `PartFidelity.figures`.
    """

    title: str
    help: str
    share: bool = True
    unit: str = ""
    of: Callable[[PartFidelity], float | None] | None = None

    def words(self, value: float) -> str:
        """`box F1 97.1%`."""
        return f"{self.title} {self.shown(value)}"

    def shown(self, value: float) -> str:
        """`97.1%`."""
        return f"{value:.1%}" if self.share else f"{value:.1f}{self.unit}"


FIGURES: Mapping[str, Figure] = {
    "top1": Figure("top-1", "share of the decisions whose largest score is the same", of=lambda p: p.same
                   if p.kind in ("class scores", "text", "class map") else p.figures.get("top1")),
    "top5": Figure("top-5", "share of them whose largest score is among the five largest"),
    "class_agreement": Figure("mean over classes", "share of the same decisions, averaged over the original's classes"),
    "labels": Figure("labels", "share of the labels that are set alike (above 0.5)", of=lambda p: p.same
                     if p.kind == "labels" else None),
    "label_f1": Figure("label F1", "F1 of the labels that are set, those of the original being true"),
    "pixels": Figure("pixels", "share of the pixels that are the same", of=lambda p: p.same
                     if p.kind in ("class map", "mask") else p.figures.get("pixels")),
    "miou": Figure("mean IoU", "intersection over union with the original's map, averaged over its classes"),
    "mask_iou": Figure("mask IoU", "intersection over union with the original's mask (above 0.5)"),
    "words": Figure("words", "share of the samples that are read as the same text"),
    "characters": Figure("characters", "1 less the edit distance over the length of the texts"),
    "box_f1": Figure("box F1", "F1 of the boxes that match one of the original's of the same class at IoU 0.5"),
    "box_precision": Figure("box precision", "share of the boxes that match one of the original's"),
    "box_recall": Figure("box recall", "share of the original's boxes that are matched"),
    "box_f1_75": Figure("box F1 at 0.75", "the same F1 at IoU 0.75"),
    "box_map50": Figure("mAP at 0.5", "average precision at IoU 0.5 of the original's boxes, mean over classes"),
    "box_map": Figure("mAP", "the same, averaged over IoU 0.5 to 0.95 (COCO)"),
    "box_r2": Figure("R² where something is found", "R² in which each anchor counts by the square of its score"),
    "keypoints": Figure("keypoints", "share of the points within 5% of the extent of their sample's points"),
    "peaks": Figure("peaks", "share of the maps whose largest value is within 2% of the width of where it was"),
    "pearson": Figure("Pearson", "correlation with the original over the samples, place by place"),
    "spearman": Figure("Spearman", "correlation of the ranks over the samples, averaged over places"),
    "recall1": Figure("recall@1", "share of the samples whose nearest embedding of the original is their own"),
    "psnr": Figure("PSNR", "peak signal to noise ratio against the original", share=False, unit=" dB"),
    "ssim": Figure("SSIM", "structural similarity to the original"),
    "integers": Figure("integers", "share of the integers that are the same", of=lambda p: p.same
                       if p.kind == "integers" else None),
    "cosine": Figure("cosine", "mean cosine per sample", of=lambda p: p.cosine),
    "r2": Figure("R²", "1 less the squared error over the variance of the original over the samples",
                 of=lambda p: p.r2),
    "sqnr": Figure("SQNR", "10 log10 of signal power over error power", share=False, unit=" dB",
                   of=lambda p: p.sqnr_db),
}  # fmt: skip
"""The table; the most telling of a kind stands in `measure.kinds.table`."""
DROPS = tuple(name for name, figure in FIGURES.items() if figure.share)
"""Those of which a drop can be asked."""


def value_of(name: str, part: PartFidelity) -> float | None:
    """A figure of a part; None where it has no such thing."""
    of = FIGURES[name].of
    return part.figures.get(name) if of is None else of(part)
