"""Sizes at which a network may see its input: what each saves, and what it does to the outputs.

One input that is an image, smaller by steps of an even number of pixels. A size is offered where the network runs on
it and its outputs keep their sizes: it gives classes or a vector of an image, no maps or boxes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.channels import Analysed
from onnxprune.errors import PlanError
from onnxprune.graph.work import work
from onnxprune.pipeline.looking import Looking
from onnxprune.plan import Origin, PrunePlan, Resample
from onnxprune.rewrite.quantized import floating
from onnxprune.rewrite.resample import resizable, seen_at

SAMPLES = 64
"""That sizes are judged by, and as many to repair with."""
STEPS, LEAST = 12, 0.5
"""The shorter side becomes smaller by about so many equal steps to nothing, but not below that share of it."""
COLOURS = 4
"""An axis of an image that is no longer than this counts its colours."""
TOGETHER = 1.5
"""Times that many cuts do together what is predicted of them: at half the MACs EfficientNet-Lite0 0.60 instead of
0.42."""
COUNTED = ("macs", "latency")
"""What falls with the number of positions."""


@dataclass(frozen=True)
class Smaller:
    """A size at which the network may see its input.

    Attributes:
        edit: what makes it so.
        saved: share of the MACs.
        damage: to the outputs.
    """

    edit: Resample
    saved: float
    damage: float


def smaller_inputs(
    looking: Looking, of: str, progress: Callable[[int, int], None] | None = None
) -> tuple[Smaller, ...]:
    """All of them, the smallest first.

    Args:
        looking: at the samples.
        of: what counts.
        progress: called with (sizes looked at, sizes).
    """
    net, settings = looking.subject.net, looking.settings
    asked = "resolution" in settings.kinds() and of in COUNTED and looking.how == "adaptive"
    if not asked or looking.subject.calibration is None or looking.look.trials is None or floating(net) is not None:
        return ()
    edits = list(_edits(net))
    seen = {e: s for e, s in zip(edits, _seen(net, edits), strict=False)}
    if not seen:
        return ()
    whole, compared = _macs(net), looking.compared(SAMPLES)
    found: list[Smaller] = []
    for k, (edit, at) in enumerate(seen.items()):
        hurt = float(np.mean(compared(PrunePlan(looking.subject.digest, (edit,), Origin(), seed=settings.seed))))
        found.append(Smaller(edit, 1 - _macs(at) / whole, hurt))
        if progress:
            progress(k + 1, len(seen))
    return tuple(reversed(found))


def promising(
    sizes: Sequence[Smaller], ratio: float, path: Sequence[tuple[float, float]], over: float
) -> list[Smaller]:
    """The sizes that may do less damage than cuts alone, once these save what is missing; the best first.

    Args:
        sizes: to choose from.
        ratio: share of the cost that is to go.
        path: (share of the cost that is gone, predicted damage) along the cheapest cuts.
        over: how much more than asked for a size may save.
    """
    told = [(s.damage + TOGETHER * _predicted(path, rest_of(ratio, s)), s) for s in sizes if s.saved <= ratio + over]
    most = TOGETHER * _predicted(path, ratio)
    return [s for total, s in sorted(told, key=lambda t: t[0]) if total < most]


def rest_of(ratio: float, size: Smaller) -> float:
    """What cuts have to save of a network that sees a smaller input; 0 where that is enough."""
    return max(0.0, 1 - (1 - ratio) / (1 - size.saved))


def _predicted(path: Sequence[tuple[float, float]], saved: float) -> float:
    """The damage of cuts that save so much; infinite beyond all of them."""
    removed, damage = np.array([(0.0, 0.0), *path]).T
    return float(np.interp(saved, removed, damage, right=np.inf))


def _edits(net: Analysed) -> Iterator[Resample]:
    """Smaller sizes of the one input, if that is an image; the largest first."""
    for name, fed in net.feeds.items():
        if len(net.feeds) > 1 or fed.ndim != 4 or not resizable(net, name):
            return
        axis = 2 if fed.shape[1] <= COLOURS else 1 if fed.shape[3] <= COLOURS else 0
        before = fed.shape[axis : axis + 2]
        step = 2 ** int(np.log2(max(min(before) / STEPS, 2)))
        for short in range(min(before) - step, int(np.ceil(LEAST * min(before))) - 1, -step) if axis else ():
            yield Resample(name, axis, before, tuple(round(b * short / min(before)) for b in before))


def _seen(net: Analysed, edits: Sequence[Resample]) -> Iterator[Analysed]:
    """The network at those sizes, up to the first at which it does not run."""
    for edit in edits:
        try:
            yield seen_at(net, [edit])
        except PlanError:
            return


def _macs(net: Analysed) -> float:
    return sum(done.macs for done in work(net.graph, net.shapes, net.channels.ran))
