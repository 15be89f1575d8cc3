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
from onnxprune.measure.cost import count_macs
from onnxprune.measure.views import rows_of_image
from onnxprune.pipeline.looking import Looking
from onnxprune.plan import Origin, PrunePlan, Resample
from onnxprune.protobuf.serialize import weight_bytes
from onnxprune.rewrite.quantized import floating
from onnxprune.rewrite.resample import resizable, seen_at

SAMPLES = 64
"""That sizes are judged by, and as many to repair with."""
STEPS, LEAST = 12, 0.5
"""The shorter side becomes smaller by about so many equal steps to nothing, but not below that share of it."""
TOGETHER = 1.5
"""Times that many cuts do together what is predicted of them: at half the MACs EfficientNet-Lite0 0.60 instead of
0.42."""
WEIGHTS = 1 << 28
"""Bytes of weights, of which every size that is looked at has a copy, up to which any is."""
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


class Sizes:
    """The sizes at which a network may see its input, looked at one after the other, the largest first, as far as
    anybody asks.

    Args:
        edits: what makes them so, the largest first.
        look: what one saves, and what it does; None where the network does not run on it, or on smaller ones.

    Attributes:
        found: those that were looked at.
    """

    def __init__(self, edits: Sequence[Resample], look: Callable[[Resample], Smaller | None]) -> None:
        self.waiting, self.look, self.found = list(edits), look, list[Smaller]()

    @classmethod
    def of(cls, looking: Looking, of: str, progress: Callable[[int, int], None] | None = None) -> Sizes:
        """Those of a network.

        Args:
            looking: at the samples.
            of: what counts.
            progress: called with (sizes looked at, sizes).
        """
        net, settings, subject = looking.subject.net, looking.settings, looking.subject
        asked = "resolution" in settings.kinds() and of in COUNTED and looking.how == "adaptive"
        sampled = subject.calibration is not None and looking.look.trials is not None
        edits = list(_edits(net)) if asked and sampled and floating(net) is None else []
        edits = edits if edits and _seen(net, edits[0]) is not None else []
        if not edits:
            return cls((), lambda edit: None)
        whole, compared = _macs(net), looking.compared(SAMPLES)

        def look(edit: Resample) -> Smaller | None:
            at = _seen(net, edit)
            if at is None:
                return None
            hurt = float(np.mean(compared(PrunePlan(subject.digest, (edit,), Origin(), seed=settings.seed))))
            if progress:
                progress(1 + edits.index(edit), len(edits))
            return Smaller(edit, 1 - _macs(at) / whole, hurt)

        return cls(edits, look)

    def __bool__(self) -> bool:
        return bool(self.waiting or self.found)

    def promising(self, ratio: float, path: Sequence[tuple[float, float]], over: float) -> list[Smaller]:
        """The sizes that may do less damage than cuts alone, once these save what is missing; the best first.

        Args:
            ratio: share of the cost that is to go.
            path: (share of the cost that is gone, predicted damage) along the cheapest cuts.
            over: how much more than asked for a size may save.
        """
        most = TOGETHER * _predicted(path, ratio)
        sizes = [s for s in self._until(ratio + over, most) if s.saved <= ratio + over]
        told = [(s.damage + TOGETHER * _predicted(path, rest_of(ratio, s)), s) for s in sizes]
        return [s for total, s in sorted(told, key=lambda t: t[0]) if total < most]

    def reaching(self, ratio: float) -> Smaller | None:
        """The largest that saves so much, or the smallest that there is; None where there is none."""
        return next(reversed(self._until(ratio, np.inf)), None)

    def _until(self, saved: float, hurt: float) -> list[Smaller]:
        """The sizes up to the first that saves so much, or does so much damage, whatever was asked for before."""
        found: list[Smaller] = []
        while not any(s.saved >= saved or s.damage >= hurt for s in found[-1:]):
            if len(found) == len(self.found) and not self._next():
                break
            found.append(self.found[len(found)])
        return found

    def _next(self) -> bool:
        """Look at one size more; whether there was one."""
        size = self.look(self.waiting.pop(0)) if self.waiting else None
        if size is None:
            self.waiting.clear()
            return False
        self.found.append(size)
        return True


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
        axis = rows_of_image(fed.shape)
        if weight_bytes(net.model) > WEIGHTS or len(net.feeds) > 1 or not axis or not resizable(net, name):
            return
        before = fed.shape[axis : axis + 2]
        step = 2 ** int(np.log2(max(min(before) / STEPS, 2)))
        for short in range(min(before) - step, int(np.ceil(LEAST * min(before))) - 1, -step):
            yield Resample(name, axis, before, tuple(round(b * short / min(before)) for b in before))


def _seen(net: Analysed, edit: Resample) -> Analysed | None:
    """The network at that size; None where it does not run."""
    try:
        return seen_at(net, [edit])
    except PlanError:
        return None


def _macs(net: Analysed) -> float:
    return count_macs(net.graph, net.shapes, net.channels.ran)
