"""Least-squares refit: every reader learns anew from what is left.

In forward order, each dense layer of the pruned network gets the weights and bias that, from what it reads *now*,
come closest to what the original layer wrote (asymmetric reconstruction, He et al., ICCV 2017, with exact ridge
least squares in place of their solver):

    W, b = argmin ‖ T − X_p W − b ‖² + λ‖W − W_cut‖²,     T = Z_o + (s_o − s_p)

Z_o is the original output behind BatchNormalization, s the other operand of a residual add, so a branch also
repairs its shortcut; where the shortcut has a layer of its own that feeds the Add alone, both are solved for
together. Where a ReLU or ReLU6 follows, entries that the original clips need only stay clipped
(`numerics.relu_target`); through any other function of single elements errors count as it lets them through
(`rewrite.repair.through`). Grouped and depthwise convs are many small layers. What is no plain linear layer
(transposed convs, quantized layers, weights on the left), or has too few samples, gets its statistics back instead.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune import numerics, parallel
from onnxprune.channels import Analysed, CutSizes
from onnxprune.graph.behaviour import clipping
from onnxprune.graph.layers import Affine
from onnxprune.graph.model import Graph
from onnxprune.measure.designs import along_rows, rows_of
from onnxprune.measure.stepwise import MEMORY, Runner
from onnxprune.numerics import Table, on_disk
from onnxprune.protobuf.serialize import weight_bytes
from onnxprune.rewrite.repair.guests import Guests
from onnxprune.rewrite.repair.layer_fit import ROWS_PER_INPUT, LayerFit, Rows
from onnxprune.rewrite.repair.producer import Pair
from onnxprune.rewrite.repair.statistics import correct_statistics, kept_channels, mean_and_deviation
from onnxprune.rewrite.repair.task import RepairTask
from onnxprune.rewrite.repair.through import curve_behind, solve_through
from onnxprune.rewrite.repair.together import Shortcut, Together, opened
from onnxprune.runtime.ports import Feeds

BYTES = 1 << 28
"""Largest matrix of sampled inputs; fewer positions are sampled for wide layers."""
REFIT_BYTES = 3 * MEMORY
"""What a pass may hold besides weights: activations of two networks, and the rows of a layer."""
FEW_SAMPLES, FEW_ROWS = 16, 0.25
"""From so many samples on, a layer is refitted on fewer rows than `numerics.FEW` an input, with the ridge that samples
held back choose; on so few an input never."""
USUAL = 128
"""Entries of a row; of shorter ones more are worked on at a time."""
PRODUCER_ROWS = 80_000
"""Positions of whole samples they look at; a quarter of that costs a ResNet-20 half a point at -54% on CIFAR-10."""


@dataclass(frozen=True)
class Effort:
    """How much work a refit is.

    Attributes:
        positions: output positions sampled per image.
        sweeps: solves through a ReLU, each with targets from the solution before.
        rounds: turns that a layer and the one in front of it take.
        doubtful: whether samples that are held back choose the ridge of every layer: few samples of many rows each tell
            less than their rows say.
        curved: whether layers see what stands behind them where that is neither a ReLU nor a line.
    """

    positions: int
    sweeps: int
    rounds: int
    doubtful: bool = False
    curved: bool = False


THOROUGH = Effort(positions=64, sweeps=6, rounds=5, doubtful=True, curved=True)
"""For the model that is handed on; fifteen rounds gave 0.1 points more on a ResNet-20 at -80%."""
SKETCH = Effort(positions=64, sweeps=2, rounds=1, doubtful=True)
"""For plans that are compared, and for what is repaired once more."""
GLANCE = Effort(positions=24, sweeps=2, rounds=0, doubtful=True)
"""For many plans that are compared: half as dear as a sketch, and it ranks 15 to 20 plans near one about as well (by
their damage to 5,000 other images 0.80, 0.70 and 0.94 on three nets; the sketch 0.76, 0.81 and 0.94)."""
QUICK = Effort(positions=64, sweeps=2, rounds=0)
"""For trials."""


def bytes_of_refit(net: Analysed) -> int:
    """What a cut and refitted copy of the network may hold while it is made: its weights are written twice."""
    return REFIT_BYTES + 2 * weight_bytes(net.model)


def refit(
    task: RepairTask,
    *,
    effort: Effort = THOROUGH,
    only: Collection[str] | None = None,
    sizes: Mapping[str, tuple[int, ...]] | None = None,
    start: Runner | None = None,
) -> Graph:
    """The pruned network, edited: every linear layer is refitted, in one pass over both networks.

    Args:
        task: the networks and the samples.
        effort: how much work to do.
        only: keys of the layers to refit; None: all.
        sizes: of the pruned network's tensors that the original lacks.
        start: the original, run on the batches as far as the two networks are the same; left as it is.
    """
    with parallel.at_most(task.threads):
        room, together = opened(task, sizes, only=only, thorough=only is None and effort.rounds > 0)
        original, graph, cut = task.net.graph, room.graph, room.cut
        places = [p for p in room.places if p.tensor in together.visited]
        if not places:
            return graph
        if start is None:
            first = task.batches[:1]
            before, after = (Runner(g, first, threads=task.threads) for g in (original, graph))
        else:
            before, after = start.fork(original), start.fork(graph)
        before.hold_for([p.tensor for p in places])  # the statistics of one may stand behind another
        walk = _Walk(together, cut, before, after, np.random.default_rng(task.seed), effort)
        guests = None if start is not None else _guests(task.batches, walk, task.net.shapes, places)
        for k, place in enumerate(places):
            if guests is not None:
                guests.come(k)
                walk.share = guests.share
            if task.progress:
                task.progress(k, len(places))
            if after.index[place.key] < after.position:
                continue  # a statistics correction further on has run it already
            if not walk.refit(place):
                correct_statistics(graph, cut, place, mean_and_deviation(before.until(place.tensor), place.axis), after)
    return graph


def _guests(
    batches: Sequence[Feeds], walk: _Walk, shapes: Mapping[str, tuple[int, ...]], places: Sequence[Affine]
) -> Guests:
    """The samples, of which those take part that find room."""
    fits = [walk.together.fits.get(p.tensor) for p in places]
    stops = [(p.tensor,) if f is None else (p.tensor, f.design.tensor) for p, f in zip(places, fits, strict=True)]
    return Guests.of((walk.before, walk.after), batches, (shapes, walk.cut.shapes), stops)


class _Walk:
    """The state of one pass."""

    def __init__(
        self, together: Together, cut: CutSizes, before: Runner, after: Runner, rng: np.random.Generator, effort: Effort
    ):
        self.together, self.graph, self.cut = together, together.graph, cut
        self.before, self.after, self.rng, self.effort = before, after, rng, effort
        self.share = 1.0  # of the samples, those that take part
        for tensor in together.visited:  # what the earlier of two layers reads is kept for the later
            for other in together.beside(tensor):
                after.hold(other.design.tensor, together.fits[tensor].place.key)

    def refit(self, place: Affine) -> bool:
        """Refit one layer in place; False, and nothing done, when it is no linear layer or samples are too few."""
        fit = self.together.fits.get(place.tensor)
        if fit is None:
            return False
        inputs, targets = self.after.until(fit.design.tensor), self.before.until(place.tensor)
        kept = kept_channels(self.cut, place)
        shortcut = self.together.shortcut(place.tensor)
        other = None if shortcut is None else self._carried(shortcut, targets[0].shape, place, len(kept))
        partner = self.together.partners.get(place.tensor) if other else None
        fits = [fit] if partner is None else [fit, partner]
        most = BYTES // sum(len(t) for t in targets)
        read, wanted, carried = [], [], []
        for b, (x, z) in enumerate(zip(inputs, targets, strict=True)):
            positions = fit.design.draw(
                x, int(len(z) * self.effort.positions / self.share), most * len(z) // len(fits), self.rng
            )
            seen = [f.design.rows_read(v, positions) for f, v in zip(fits, self._inputs(fits, b, x), strict=True)]
            read.append(seen[0] if len(seen) == 1 else np.concatenate(seen, axis=1))
            wanted.append(rows_of(np.take(z, kept, place.axis), place.axis, positions))
            s = np.zeros((1, 1), np.float32)
            if other:
                wanted[-1] += rows_of(np.take(self.before.live[other][b], kept, place.axis), place.axis, positions)
                if partner is None:
                    s = rows_of(self.after.live[other][b], place.axis, positions)
            carried.append(np.broadcast_to(s, wanted[-1].shape))
            on_disk.release(self._live(b))
        x, z, s = (along_rows(rows, fit.design.parts) for rows in (read, wanted, carried))
        enough = FEW_ROWS if sum(map(len, targets)) >= FEW_SAMPLES else numerics.FEW
        if x.shape[1] < enough * x.shape[2] or not (_in_range(x) and _in_range(z)):
            return False  # too few: least squares would learn them by heart
        behind = shortcut.total if shortcut else place.tensor
        clip, curve = self._behind(behind, z) if shortcut is None or other else (None, None)
        solution = _solve(fits, x, z, s, clip, curve, self.effort)
        if partner is None:
            fit.write(solution)
            if place.tensor in self.together.producers and self.effort.rounds:
                self._repair_producer(fit, kept, shortcut, other, clip)
        else:
            own = fit.design.inputs
            keep = partner.weights()[:, -1:]
            fit.write(np.concatenate([solution[:, :own], solution[:, -1:] - keep], axis=1))
            partner.write(np.concatenate([solution[:, own:-1], keep], axis=1))
            self.after.refresh(partner.place.key, partner.place.tensor)
        return True

    def _live(self, b: int) -> list[np.ndarray]:
        """All that both networks hold of a batch."""
        return [values[b] for runner in (self.before, self.after) for values in runner.live.values()]

    def _repair_producer(
        self, fit: LayerFit, kept: np.ndarray, shortcut: Shortcut | None, other: str | None, clip
    ) -> None:
        """Let the layer in front of a refitted one take its turn, on some whole samples."""
        front, bounds = self.together.producers[fit.place.tensor]
        place = fit.place
        targets = self.before.live[place.tensor]
        shape = self.after.live[fit.design.tensor][0].shape
        rows = max(int(np.prod(shape)) // shape[1], int(np.prod(targets[0].shape)) // targets[0].shape[place.axis])
        wide = max(front.design.inputs, fit.design.inputs)
        budget = min(PRODUCER_ROWS, BYTES // (4 * wide))
        count = max(1, min(len(targets), budget // rows))
        alike = all(v.shape[1:] == shape[1:] for v in self.after.live[fit.design.tensor][:count])
        if not alike or rows * count < ROWS_PER_INPUT * wide:
            return  # samples of several sizes, or too few of them: the pair would learn them by heart
        z, s = [], []
        for b in range(count):
            z.append(rows_of(np.take(targets[b], kept, place.axis), place.axis, None))
            if other:
                z[-1] += rows_of(np.take(self.before.live[other][b], kept, place.axis), place.axis, None)
                s.append(rows_of(self.after.live[other][b], place.axis, None))
            on_disk.release(self._live(b))
        z_all = np.concatenate(z)
        s_all = np.concatenate(s) if s else np.broadcast_to(np.float32(0), z_all.shape)

        def goal(now: np.ndarray) -> np.ndarray:
            return _target(z_all, now, s_all, clip)

        def error(now: np.ndarray) -> float:
            def piece(at: slice) -> float:
                got, want = now[at] + s_all[at], z_all[at]
                if clip is not None:
                    got, want = np.clip(got, *clip), np.clip(want, *clip)
                return float(np.square(got - want).sum(dtype=np.float64))

            return sum(parallel.pieces(piece, len(now)))

        x = [self.after.live[front.design.tensor][b] for b in range(count)]
        pair = Pair(front.design, fit.design, x, shape[1:], bounds, goal, error)
        A, B = pair.repair(front.weights()[0], fit.weights()[0], rounds=self.effort.rounds, lam=1e-4)
        front.write(A[None])
        fit.write(B[None])
        self.after.refresh(front.place.key, fit.design.tensor)

    def _inputs(self, fits: Sequence[LayerFit], b: int, x: np.ndarray) -> list[np.ndarray]:
        return [x, *(self.after.live[f.design.tensor][b] for f in fits[1:])]

    def _carried(self, shortcut: Shortcut, shape: tuple[int, ...], place: Affine, width: int) -> str | None:
        """The shortcut's tensor where both networks make it before the layer, and with the channels of the branch."""
        name, axis, after = shortcut.other, place.axis, self.after
        if after.made_at.get(name, len(after.keys)) < after.index[place.key]:
            after.until(name)  # what the layer reads may have been made long before
        if name not in self.after.live or name not in self.before.live:
            return None
        fits = self.after.live[name][0].shape == (*shape[:axis], width, *shape[axis + 1 :])
        return name if fits and self.before.live[name][0].shape == shape else None

    def _behind(self, tensor: str, z: np.ndarray) -> tuple[tuple[float, float] | None, Table | None]:
        """What stands behind a tensor: bounds, or another curve, if anything does."""
        clip = self._clip(tensor)
        seen = clip is None and self.effort.curved
        return clip, curve_behind(self.graph, tensor, self.together.consumers, z) if seen else None

    def _clip(self, tensor: str) -> tuple[float, float] | None:
        """The bounds of the ReLU, or of the Clip from 0, that alone reads a tensor."""
        readers = self.together.consumers.get(tensor, [])
        if not readers or tensor in self.graph.outputs:
            return None
        bounds = {clipping(self.graph, key) for key, _ in readers}
        return bounds.pop() if len(bounds) == 1 else None


def _in_range(rows: np.ndarray) -> bool:
    """Whether sums of their squares are finite in float32."""
    largest = max(float(rows.max(initial=0.0)), -float(rows.min(initial=0.0)))
    return rows.shape[-2] * largest**2 < float(np.finfo(np.float32).max)


def _solve(
    fits: Sequence[LayerFit],
    x: np.ndarray,
    z: np.ndarray,
    s: np.ndarray,
    clip: tuple[float, float] | None,
    curve: Table | None,
    effort: Effort,
) -> np.ndarray:
    """(parts, inputs + 1, outputs) such that `written + s` comes closest to `z`, through what stands behind.

    Args:
        fits: the layers.
        x: (parts, rows, inputs) what they read.
        z: (parts, rows, outputs) what is to be written.
        s: the same of what is added.
        clip: bounds that what is written meets.
        curve: another function that it meets.
        effort: how many sweeps.
    """
    start = [f.weights() for f in fits]
    anchor = np.concatenate([*(w[:, :-1] for w in start), start[0][:, -1:]], axis=1)
    rows = Rows(x, z - s, anchor, doubtful=effort.doubtful)
    for _ in range(effort.sweeps if clip else 0):
        rows.solve(_target(z, rows.written(), s, clip))
    return rows.solution if curve is None else solve_through(rows, z, s, curve, effort.sweeps)


def _target(z: np.ndarray, now: np.ndarray, s: np.ndarray, clip: tuple[float, float] | None) -> np.ndarray:
    """float32, as large as `z`: what a layer is to write so that, `s` added and clipped, it comes closest to `z`."""
    out = np.empty(z.shape, np.float32)
    z, now, s, found = (v.reshape(-1, v.shape[-1]) for v in (z, now, s, out))

    def piece(at: slice) -> None:
        wanted = z[at] if clip is None else numerics.relu_target(z[at], now[at] + s[at], clip[1])
        np.subtract(wanted, s[at], out=found[at], casting="same_kind")

    parallel.pieces(piece, len(z), min(1.0, max(1, z.shape[1]) / USUAL))
    return out
