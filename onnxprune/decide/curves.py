"""What each width of a channel group costs: an order in which its channels go, and the error at every width.

The error is that of everything that reads the group, with all that stays refit by least squares, each reader
relative to the variance of what it writes. It comes from second moments of the original network, so one pass over
the samples serves every width, every order and every ratio. A reader that is no plain linear layer (attention, a
recurrent cell, a transposed conv) counts with the energy that it reads, as if channels were independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune import numerics, parallel
from onnxprune.channels import Analysed, ChannelGroup, Slice
from onnxprune.graph.model import Graph
from onnxprune.measure.designs import Design, design_of
from onnxprune.numerics import on_disk

CURVE_RIDGE = 1e-4
"""Added to the diagonal of second moments before they are inverted, relative to its mean."""
COPIES = 5
"""Matrices of a layer's second moments' size that are held while it is inverted."""
ROUNDING = 1e-7
"""Of a sum in float32, relative."""
STEPS = 128
"""Steps in which a wide group's channels are eliminated; up to so many channels, one at a time."""


@dataclass(frozen=True)
class Curve:
    """One group's price list.

    Attributes:
        order: (width,) channels, first to go first.
        errors: (width + 1,) error with so many channels left, falling; `errors[width] = 0`.
    """

    order: np.ndarray
    errors: np.ndarray

    def kept(self, width: int) -> np.ndarray:
        """The channels that stay at that width, ascending."""
        return np.sort(self.order[len(self.order) - width :])


@dataclass(frozen=True)
class Reading:
    """One linear layer that reads channels of a group: which rows of its matrix are theirs.

    Attributes:
        design: the layer.
        rows: (width, q) rows of each part's matrix, per channel of the group.
    """

    design: Design
    rows: np.ndarray


def readings(group: ChannelGroup, designs: Mapping[str, Design]) -> tuple[list[Reading], list[Slice]]:
    """The linear layers that read a group, and the readers that are none."""
    found, others = [], []
    for s in group.readers:
        design = designs.get(s.use[0])
        rows = None if design is None or design.weight != s.use else _rows(s, group.width, design.taps)
        if rows is None:
            others.append(s)
        else:
            assert design is not None
            found.append(Reading(design, rows))
    return found, others


def _rows(s: Slice, width: int, taps: int) -> np.ndarray | None:
    """(width, q) rows of the matrix per channel; None when channels differ in how often they appear."""
    index = np.flatnonzero(s.channel >= 0)
    owner = s.channel[index]
    count = np.bincount(owner, minlength=width)
    if count.min() != count.max() or not count[0]:
        return None
    places = index[np.argsort(owner, kind="stable")].reshape(width, -1)
    return (places[:, :, None] * taps + np.arange(taps)).reshape(width, -1)


def reader_designs(net: Analysed) -> dict[str, Design]:
    """Every linear layer that reads a group, by node."""
    keys = dict.fromkeys(s.use[0] for g in net.channels.groups for s in g.readers)
    found = {key: design_of(net.graph, key) for key in keys}
    return {key: d for key, d in found.items() if d is not None}


@dataclass(frozen=True)
class Solver:
    """One layer's second moments, factorised as often as it is asked: for curves and for trial weights.

    Attributes:
        design: the layer.
        H: (parts, d + 1, d + 1).
        weight: as it is stored.
    """

    design: Design
    H: np.ndarray
    weight: np.ndarray

    @property
    def W(self) -> np.ndarray:
        """(parts, d + 1, n) float64, made anew: the weights, the intercept row zero, as the layer's own output is the
        target."""
        return np.concatenate(
            [self.design.matrix(self.weight), np.zeros((len(self.H), 1, self.design.outputs))], axis=1
        )

    @property
    def energy(self) -> float:
        """Σ‖T − mean T‖² of what the layer writes; where what it reads hardly varies, no less than the rounding of
        sums in float32 can tell from nothing."""
        found, least = 0.0, 1e-300
        for H, W in zip(self.H, self.W[:, :-1], strict=True):
            found += H[-1, -1] * float(np.vdot(W, numerics.covariance(H) @ W))
            least += ROUNDING * float(np.diag(H)[:-1] @ np.square(W).sum(axis=1))
        return max(found, least)

    def without(self, gone: np.ndarray) -> np.ndarray:
        """(parts, d + 1, n): the weights with the rows `gone` zero and the others refit."""
        whole = self.W
        out = np.zeros_like(whole)
        stay = np.setdiff1d(np.arange(whole.shape[1]), gone)
        for k, (H, W) in enumerate(zip(self.H, whole, strict=True)):
            inner = numerics.Ridge(H[np.ix_(stay, stay)], CURVE_RIDGE)
            out[k, stay] = inner.solve(H[stay] @ W, W[stay])
        return out


def solver(graph: Graph, design: Design, H: np.ndarray) -> Solver:
    weight = graph.value(design.weight)
    assert weight is not None
    return Solver(design, np.stack([numerics.shrunk_covariance(part) for part in H]), weight)


class Curves:
    """Makes curves for groups of one network.

    Args:
        net: the original network.
        designs: the layers that read its groups, by node.
        moments: second moments by node, from `measure.designs.second_moments`.
    """

    def __init__(self, net: Analysed, designs: Mapping[str, Design], moments: Mapping[str, np.ndarray]):
        self.net, groups = net, net.channels.groups
        holds = max((8 * COPIES * H.shape[-1] ** 2 for H in moments.values()), default=0)
        solvers = parallel.each(lambda key: solver(net.graph, designs[key], moments[key]), moments, holds=holds)
        keeper = on_disk.Keeper()
        self.solvers = {key: replace(s, H=keeper.keep(s.H)) for key, s in zip(moments, solvers, strict=True)}
        known = {k: designs[k] for k in self.solvers}
        self.readings: dict[str, list[Reading]] = {}
        self.others: dict[str, list[Slice]] = {}
        for g in groups:
            self.readings[g.name], self.others[g.name] = readings(g, known)
        self._readers: dict[str, list[numerics.Reader]] = {g.name: [] for g in groups}
        by_layer: dict[str, list[tuple[str, Reading]]] = {}
        for name, found in self.readings.items():
            for r in found:
                by_layer.setdefault(r.design.key, []).append((name, r))
        for inverted in parallel.each(self._inverted, by_layer.items(), holds=holds):
            for name, reader in inverted:
                self._readers[name].append(replace(reader, V=keeper.keep(reader.V), W=keeper.keep(reader.W)))

    def _inverted(self, layer: tuple[str, Sequence[tuple[str, Reading]]]) -> list[tuple[str, numerics.Reader]]:
        """Invert one layer's moments once: a block for each group that it reads."""
        s, users = self.solvers[layer[0]], layer[1]
        found, scale, weights = list[tuple[str, numerics.Reader]](), 1.0 / s.energy, s.W
        for k in range(s.design.parts):
            V = numerics.inverse(s.H[k], CURVE_RIDGE)
            for name, r in users:
                at = r.rows.ravel()
                local = np.arange(at.size).reshape(r.rows.shape)
                found.append((name, numerics.Reader(V[np.ix_(at, at)], weights[k, at], local, scale).narrowed()))
        on_disk.release((s.H,))
        return found

    def holds(self, name: str) -> int:
        """Bytes that working out a group's curve takes: two copies of what its readers have."""
        return sum(2 * (reader.V.nbytes + reader.W.nbytes) for reader in self._readers[name])

    def of(self, group: ChannelGroup, energies: np.ndarray | None = None, order: np.ndarray | None = None) -> Curve:
        """The curve of a group: by exact elimination, or along a given order.

        Args:
            group: the group.
            energies: (width,) share of what its other readers read (0 when it has none).
            order: channels, first to go first; None: the order of least error.
        """
        readers: list[numerics.Reader | numerics.Independent] = list(self._readers[group.name])
        if energies is not None and energies.any():
            readers.append(numerics.Independent(energies))
        if not readers:  # nobody reads anything but zeros: none of it matters
            return Curve(np.arange(group.width) if order is None else np.asarray(order), np.zeros(group.width + 1))
        found, errors = numerics.eliminate(readers, order=order, step=-(-group.width // STEPS))
        on_disk.release(part for reader in self._readers[group.name] for part in (reader.V, reader.W))
        return Curve(found, np.maximum.accumulate(np.maximum(errors, 0)[::-1])[::-1])
