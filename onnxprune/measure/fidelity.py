"""Fidelity: does the finished model still answer like the original? Asked on samples that nothing was fitted on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune.runtime import sessions
from onnxprune.runtime.ports import Feeds


@dataclass(frozen=True)
class Fidelity:
    """How alike the outputs are on held-out samples.

    Attributes:
        samples: number of samples.
        cosine: mean cosine between the outputs, per sample and output; None when no output is of floating point.
        sqnr_db: 10·log10 of signal power over error power, over all; None likewise.
        top1: share of samples whose largest entry is the same; None when no output is a vector of scores.
        held_out: False when the samples were also fitted on (there was only one).
        equal: share of the entries of integer outputs (labels, class maps) that are the same; None when there are none.
    """

    samples: int
    cosine: float | None
    sqnr_db: float | None
    top1: float | None
    held_out: bool = True
    equal: float | None = None

    def in_words(self) -> str:
        """`top-1 agreement 98.0%, cosine 0.9987, SQNR 25.1 dB`."""
        parts = [] if self.top1 is None else [f"top-1 agreement {self.top1:.1%}"]
        if self.cosine is not None and self.sqnr_db is not None:
            parts += [f"cosine {self.cosine:.4f}", f"SQNR {self.sqnr_db:.1f} dB"]
        parts += [] if self.equal is None else [f"same integers {self.equal:.1%}"]
        return ", ".join(parts) or "no output to compare"


def check_fidelity(
    original: onnx.ModelProto, pruned: onnx.ModelProto, batches: Iterable[Feeds], *, held_out: bool = True
) -> Fidelity:
    """Compare the finished model with the original, sample by sample."""
    left = sessions.open_session(original, name="original")
    right = sessions.open_session(pruned, name="pruned model")
    cosines: list[np.ndarray] = []
    agree: list[np.ndarray] = []
    equal: list[np.ndarray] = []
    signal = noise = 0.0
    samples = 0
    for feeds in batches:
        count = len(next(iter(feeds.values()))) if feeds else 1
        samples += count
        for a, b in zip(left.run(dict(feeds)), right.run(dict(feeds)), strict=True):
            a, b = np.asarray(a), np.asarray(b)
            if a.shape != b.shape or not a.size:
                continue
            if a.dtype.kind in "iub":
                equal.append((a == b).ravel())
            if a.dtype.kind != "f":
                continue
            a, b = a.astype(np.float64), b.astype(np.float64)
            signal, noise = signal + float((a**2).sum()), noise + float(((a - b) ** 2).sum())
            rows = a.shape[0] if a.ndim and a.shape[0] == count else 1
            u, v = a.reshape(rows, -1), b.reshape(rows, -1)
            norm = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
            cosines.append((u * v).sum(axis=1) / np.maximum(norm, 1e-30))
            if a.ndim == 2 and a.shape[1] > 1:
                agree.append(a.argmax(axis=1) == b.argmax(axis=1))
    sqnr = 10 * np.log10(signal / noise) if noise > 0 else np.inf
    return Fidelity(
        samples=samples,
        cosine=float(np.concatenate(cosines).mean()) if cosines else None,
        sqnr_db=float(min(sqnr, 300.0)) if cosines else None,
        top1=_share(agree),
        held_out=held_out,
        equal=_share(equal),
    )


def _share(truths: Sequence[np.ndarray]) -> float | None:
    return float(np.concatenate(truths).mean()) if truths else None
