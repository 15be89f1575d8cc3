"""One layer's least squares: what it reads and should write, its solution, and putting that into the constants.

A `LayerFit` sees the layer through the BatchNormalization behind it: targets and solutions are in the units of the
tensor that later layers read. It knows one layer; which targets to use, and when, is `rewrite.repair.refit`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune import numerics, parallel
from onnxprune.graph.layers import Affine, add_bias, normalization
from onnxprune.graph.model import Graph
from onnxprune.measure.designs import Design, design_of

REFIT_RIDGE = 1e-4
"""Ridge, relative to the mean square of the inputs, when samples abound."""
STRONGER = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridges that are tried beside it on rows held back, when rows are few."""
ROWS_PER_INPUT = 10
"""Rows per input of a part from which samples abound."""
MATERIAL = 0.03
"""Share of the error that a stronger ridge must save there."""


@dataclass(frozen=True)
class LayerFit:
    """A layer that can be refitted.

    Attributes:
        graph: the network being repaired.
        place: where the layer's output is read.
        design: the layer as a least squares problem.
    """

    graph: Graph
    place: Affine
    design: Design

    @classmethod
    def of(cls, graph: Graph, place: Affine) -> LayerFit | None:
        """The fit of the layer behind a place; None when it is no plain linear layer."""
        design = design_of(graph, place.key)
        return None if design is None else cls(graph, place, design)

    def weights(self) -> np.ndarray:
        """(parts, inputs + 1, outputs) float64: the layer as it is now, BatchNormalization and bias included."""
        value = self.graph.value(self.design.weight)
        assert value is not None
        W, slope, shift = self.design.matrix(value), *self._normalization()
        W = W * slope.reshape(self.design.parts, 1, -1)
        return np.concatenate([W, shift.reshape(self.design.parts, 1, -1)], axis=1)

    def _normalization(self) -> tuple[np.ndarray, np.ndarray]:
        """Per output channel, what a unit of W·x becomes at the place, and what is added."""
        width = self.design.parts * self.design.outputs
        node, shift = self.graph.nodes[self.place.key], np.zeros(width)
        if len(node.input) > 2 and node.input[2]:
            own = self.graph.value((self.place.key, 2))
            assert own is not None
            shift = np.broadcast_to(own.astype(np.float64).reshape(-1), (width,))
        norm = normalization(self.graph, self.place)
        if norm is not None:
            key, slope, _ = norm
            mean, beta = self.graph.value((key, 3)), self.graph.value((key, 2))
            assert mean is not None and beta is not None
            return slope, (shift - mean) * slope + beta
        if self.place.shift is not None and self.place.shift[0] != (self.place.key, 2):
            added = self.graph.value(self.place.shift[0])
            assert added is not None
            shift = shift + added.astype(np.float64).reshape(-1)
        return np.ones(width), shift

    def write(self, solution: np.ndarray) -> None:
        """Put (parts, inputs + 1, outputs) into the layer; a BatchNormalization behind it is left as a shift."""
        graph, place = self.graph, self.place
        value, bias = graph.value(self.design.weight), solution[:, -1].reshape(-1)
        assert value is not None
        graph.set_constant(self.design.weight, self.design.stored(solution[:, :-1], value))
        norm = normalization(graph, place)
        if norm is not None:
            key, _, deviation = norm
            mean, node = graph.value((key, 3)), graph.nodes[place.key]
            own = graph.value((place.key, 2)) if len(node.input) > 2 and node.input[2] else None
            assert mean is not None
            graph.set_constant((key, 1), deviation.astype(value.dtype))
            graph.set_constant((key, 2), (bias + mean - (0 if own is None else own)).astype(value.dtype))
        elif place.shift is None:
            add_bias(graph, place.key, bias.astype(value.dtype))
        else:
            use, _ = place.shift
            old = graph.value(use)
            assert old is not None
            graph.set_constant(use, bias.reshape(old.shape).astype(old.dtype))


class Rows:
    """Sampled rows of one or two layers that write the same tensor, factorised once for any number of targets.

    Args:
        x: (parts, rows, inputs) float32, sample by sample.
        target: (parts, rows, outputs) what is to be written.
        anchor: (parts, inputs + 1, outputs) what the ridge draws towards.
        doubtful: whether samples that are held back choose the ridge even where there are many rows.
    """

    def __init__(self, x: np.ndarray, target: np.ndarray, anchor: np.ndarray, *, doubtful: bool = False):
        self.x, self.anchor = x, anchor
        _, count, inputs = x.shape
        cut, few = 3 * count // 4, count < ROWS_PER_INPUT * inputs
        fitted, held = (numerics.SecondMoments.of(x[:, at], target[:, at]) for at in (slice(cut), slice(cut, None)))
        self.lam = ridge_for(fitted, held, anchor, least=0.0 if few else MATERIAL) if few or doubtful else REFIT_RIDGE
        moments = fitted + held
        self.solver = numerics.Ridges(moments.H, self.lam)
        self.solution = self.solver.solve(moments.G, anchor)

    def solve(self, target: np.ndarray) -> np.ndarray:
        """The solution for other targets, (parts, rows, outputs)."""
        sums = target.sum(axis=1, keepdims=True, dtype=np.float64)
        products = np.concatenate([parallel.product(self.x.swapaxes(1, 2), target), sums], axis=1)
        self.solution = self.solver.solve(products, self.anchor)
        return self.solution

    def written(self) -> np.ndarray:
        """(parts, rows, outputs): what the layer writes with the solution."""
        W = self.solution.astype(np.float32)
        found = parallel.product(self.x, W[:, :-1])
        found += W[:, -1:]
        return found


def ridge_for(
    fitted: numerics.SecondMoments,
    held: numerics.SecondMoments,
    anchor: np.ndarray,
    *,
    least: float = 0.0,
) -> float:
    """The ridge whose solution predicts what was held back best, which are other samples; all parts share one.

    Args:
        fitted, held: moments with parts in front, of what solutions are fitted on and of what judges them.
        anchor: (parts, inputs + 1, outputs) what the ridge draws towards.
        least: share of the weak ridge's error that a stronger one must save: what a layer wins by being drawn
            towards the cut weights, the layers behind it may lose.
    """
    ladder, errors = (REFIT_RIDGE, *STRONGER), []
    for lam in ladder:
        errors.append(held.error(numerics.Ridges(fitted.H, lam).solve(fitted.G, anchor)))
    best = int(np.argmin(errors))
    return ladder[best] if errors[best] <= (1 - least) * errors[0] else REFIT_RIDGE
