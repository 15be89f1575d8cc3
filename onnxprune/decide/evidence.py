"""What a criterion may look at, and how it is gathered: only what is needed, each in one pass over the samples.

Weights are always at hand. Moments, curves and likeness are measured here; gradients are measured with torch, above
this room, and handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxprune.channels import Analysed, ChannelGroup
from onnxprune.decide.curves import Curve, Curves, reader_designs
from onnxprune.decide.norms import Weight, energies
from onnxprune.graph import operators
from onnxprune.graph.behaviour import zero_point
from onnxprune.graph.model import Use
from onnxprune.measure.designs import second_moments
from onnxprune.measure.gradients import Gradients
from onnxprune.measure.likeness import Likeness, likeness
from onnxprune.measure.moments import Moments, moments
from onnxprune.runtime.ports import Feeds
from onnxprune.samples.calibration import Calibration
from onnxprune.samples.partition import counted


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at. What it does not need is not gathered.

    Attributes:
        weight: gives the constant that a use reads.
        moments: of what the groups' readers read: tensor -> moments per index of its channel axis; empty without
            samples.
        rng: for what is random.
        curves: what every reader loses without some of its channels.
        energies: group -> (width,) share of what its readers without second moments read; None where it has none.
        likeness: how alike channels are.
        gradients: group -> what a backward pass says of its channels.
    """

    weight: Weight
    moments: Mapping[str, Moments]
    rng: np.random.Generator
    curves: Curves | None = None
    energies: Mapping[str, np.ndarray | None] = field(default_factory=dict)
    likeness: Likeness | None = None
    gradients: Mapping[str, Gradients] = field(default_factory=dict)

    def curve(self, group: ChannelGroup, order: np.ndarray | None = None) -> Curve:
        """The curve of a group along an order of its channels, first to go first; None: the order of least error."""
        assert self.curves is not None
        return self.curves.of(group, self.energies[group.name], order)


def gather(
    net: Analysed,
    samples: Calibration | None,
    needs: Collection[str],
    *,
    gradients: Mapping[str, Gradients] | None = None,
    threads: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evidence:
    """Look at the network and the samples.

    Args:
        net: the original network.
        samples: to learn from; None: there are none, and no moments.
        needs: what is needed, of `criteria.NEEDS`.
        gradients: what a backward pass says, where that is needed.
        threads: ORT threads.
        seed: for everything random.
        progress: called with (samples seen, samples) in every pass.
    """

    def batches(size: int) -> Iterator[Feeds]:
        assert samples is not None
        return counted(samples, size, progress)

    def weight(use: Use) -> np.ndarray:
        value = net.graph.value(use)
        assert value is not None
        return value

    curves, seen, alike = None, {}, None
    if "curves" in needs:
        designs = reader_designs(net)
        H = second_moments(net.model, list(designs.values()), net.shapes, batches, threads=threads, seed=seed)
        curves = Curves(net, designs, H)
        del H
    if samples is not None and ("moments" in needs or (curves is not None and any(curves.others.values()))):
        seen = _moments_read(net, batches(net.batch), threads)
    if "likeness" in needs:
        alike = likeness(net, batches, threads=threads, seed=seed)
    apart = {} if curves is None else {g.name: _read_apart(curves, g, weight, seen) for g in net.channels.groups}
    return Evidence(weight, seen, np.random.default_rng(seed), curves, apart, alike, gradients or {})


def _read_apart(curves: Curves, group: ChannelGroup, weight: Weight, seen: Mapping[str, Moments]) -> np.ndarray | None:
    """(width,) share of what readers without second moments read; None for a group that has none of those."""
    asked = bool(curves.others[group.name]) or not curves.readings[group.name]
    return energies(group, weight, seen) if asked else None


def _moments_read(net: Analysed, batches: Iterator[Feeds], threads: int | None) -> dict[str, Moments]:
    """One streamed pass: moments of everything that a reader reads."""
    graph, groups = net.graph, net.channels.groups
    read = {s.reads for g in groups for s in g.readers if s.reads}
    taps = {a.tensor: (a.axis, len(net.shapes[a.tensor])) for g in groups for a in g.activations if a.tensor in read}
    zeros: dict[str, float] = {}  # of what has no squares of its own
    for tensor, use in ((s.reads, s.use) for g in groups for s in g.readers if s.reads):
        node, weight = graph.nodes[use[0]], graph.value(use)
        if operators.of(node).integer:
            zero = zero_point(graph, node, 0)
            zeros[tensor] = 0.0 if zero is None else float(np.ravel(zero)[0])
        elif weight is not None and weight.dtype == np.float16:
            zeros[tensor] = 0.0
    return moments(net.model, taps, batches, zeros=zeros, threads=threads)
