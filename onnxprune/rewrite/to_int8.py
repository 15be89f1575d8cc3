"""A network that was quantized, its weights rounded anew: against what the quantized network reads.

ONNX Runtime's quantizer rounds every weight to the nearest integer. Here each layer, in forward order, is first solved
for again, by least squares from what it reads now, quantized, to what it wrote in floats, with samples that are held
back to say how far that is to be believed; then its weights are rounded so that errors make up for one another
(`numerics.round_with_feedback`), and its bias takes what is left of the mean. The layers behind read what that makes.

What ONNX Runtime has decided stays: which tensors are quantized, and the scales of activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune import numerics, parallel
from onnxprune.graph import operators
from onnxprune.graph.layers import bias_of, has_bias
from onnxprune.graph.model import Graph
from onnxprune.measure.designs import WIDEST, Design, along_rows, apart, design_of
from onnxprune.measure.stepwise import Runner
from onnxprune.rewrite.held import Held
from onnxprune.rewrite.quantized import BIAS, bias_scale, held, put, weights_in_floats
from onnxprune.rewrite.repair.layer_fit import ridge_for
from onnxprune.runtime.ports import Feeds

POSITIONS = 64
"""Output positions that are looked at of each sample."""
BYTES = 1 << 28
"""Largest matrix of sampled inputs."""
HELD_BACK = 0.25
"""Share of the samples that judges the ridge."""
MATERIAL = 0.03
"""Share of the error that a stronger ridge must save there."""


def round_anew(
    quantized: Graph,
    floating: Graph,
    batches: Sequence[Feeds],
    *,
    threads: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Graph:
    """The quantized network, edited: its weights and biases are other integers.

    Args:
        quantized: the network with QuantizeLinear and DequantizeLinear.
        floating: what it was made of; nodes go by the same names.
        batches: samples.
        threads: ORT threads.
        seed: of the sampled positions.
        progress: called with (layers done, layers).
    """
    todo = _todo(quantized, floating)
    if not todo or not batches:
        return quantized
    sim, rng = weights_in_floats(quantized), np.random.default_rng(seed)
    before, after = (Runner(g, batches, threads=threads) for g in (floating, sim))
    with parallel.at_most(threads):
        for k, layer in enumerate(todo):
            if progress is not None:
                progress(k, len(todo))
            layer.settle(quantized, sim, *_rows(layer, before, after, rng))
    return quantized.settle()


@dataclass(frozen=True)
class _Layer:
    """A layer with integers for weights.

    Attributes:
        key: of its node in the quantized network.
        was: its weight there.
        bias: its bias there, as integers; None: it has none.
        design: as least squares, with its weights in floats and what it reads quantized.
        own: the same in floats.
        matrix: (parts, inputs, outputs), its weight in floats.
        shift: (parts, 1, outputs), its bias there; None: it has none.
    """

    key: str
    was: Held
    bias: Held | None
    design: Design
    own: Design
    matrix: np.ndarray
    shift: np.ndarray | None

    def settle(self, quantized: Graph, sim: Graph, x: np.ndarray, t: np.ndarray) -> None:
        """Round the layer, in both networks.

        Args:
            quantized: where its integers go.
            sim: where the floats go that these stand for.
            x: (parts, rows, inputs) what it reads.
            t: (parts, rows, outputs) what it is to write.
        """
        d, cut = self.design, int(x.shape[1] * (1 - HELD_BACK))
        fitted, judged = (numerics.SecondMoments.of(x[:, at], t[:, at]) for at in (slice(cut), slice(cut, None)))
        shift = np.zeros((d.parts, 1, d.outputs)) if self.shift is None else self.shift
        anchor = np.concatenate([self.matrix, shift], axis=1)
        moments = fitted + judged
        wanted = anchor
        if self.shift is not None:
            lam = ridge_for(fitted, judged, anchor, least=MATERIAL)
            wanted = numerics.Ridges(moments.H, lam).solve(moments.G, anchor)
        value = sim.value(d.weight)
        assert value is not None
        now = self._rounded(wanted[:, :-1], np.stack([_spread(h, self.shift is not None) for h in moments.H]), value)
        put(quantized, (self.key, d.weight[1]), now, shared=False)
        sim.set_constant(d.weight, now.value().astype(value.dtype).reshape(value.shape))
        if self.bias is not None:
            left = moments.G[:, -1:] - moments.H[:, -1:, :-1] @ d.matrix(now.value())
            self._shift(quantized, sim, left.reshape(-1) / moments.count, now)

    def _rounded(self, wanted: np.ndarray, S: np.ndarray, like: np.ndarray) -> Held:
        """The integers that stand for (parts, inputs, outputs) weights."""
        d = self.design
        first = self.was.again(d.stored(wanted, like))
        grid = np.broadcast_to(first.scale.astype(np.float64).reshape(-1), (d.parts * d.outputs,))
        most = int(np.abs(first.integers.astype(np.int64)).max(initial=1))
        ints = numerics.round_with_feedback(wanted, S, grid.reshape(d.parts, d.outputs), -most, most)
        return replace(first, integers=d.stored(ints, first.integers))

    def _shift(self, quantized: Graph, sim: Graph, bias: np.ndarray, weight: Held) -> None:
        """Write the bias; its scale is that of what the layer reads times that of its weight."""
        assert self.bias is not None
        product = operators.of(quantized.nodes[self.key]).product
        assert product is not None and product.bias is not None
        scale = bias_scale(quantized, self.key, {product.weight: weight})
        now = self.bias.with_scale(bias.reshape(self.bias.integers.shape), self.bias.scale if scale is None else scale)
        put(quantized, (self.key, product.bias), now, shared=False)
        sim.set_constant((self.key, product.bias), now.value())


def _spread(H: np.ndarray, centred: bool) -> np.ndarray:
    """(inputs, inputs): what errors of weights cost; a bias takes what they do to the mean."""
    return numerics.covariance(H) if centred else H[:-1, :-1] / max(1.0, H[-1, -1])


def _rows(layer: _Layer, before: Runner, after: Runner, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(what the layer reads, what it wrote in floats), (parts, rows, n) each."""
    read, wrote = [], []
    now, then = after.until(layer.design.tensor), before.until(layer.own.tensor)
    most = BYTES // sum(map(len, now))
    for x, z in zip(now, then, strict=True):
        positions = layer.design.draw(x, len(x) * POSITIONS, most * len(x), rng)
        read.append(layer.design.rows_read(x, positions))
        rows = layer.own.rows_read(z, positions)
        out = apart(rows, layer.own.parts) @ layer.matrix.astype(np.float32)
        wrote.append(out if layer.shift is None else out + layer.shift.astype(np.float32))
    return along_rows(read, layer.design.parts), np.concatenate(wrote, axis=1)


def _todo(quantized: Graph, floating: Graph) -> list[_Layer]:
    """The layers that can be rounded anew, in forward order."""
    twins, constants = {n.name: key for key, n in floating.nodes.items()}, held(quantized)
    consumers, sim = quantized.consumers(), weights_in_floats(quantized)
    found = []
    for key, node in quantized.nodes.items():
        product, twin = operators.of(node).product, twins.get(node.name)
        if product is None or twin is None or node.input[product.weight] not in constants:
            continue
        was = constants[node.input[product.weight]]
        d, own = design_of(sim, key), design_of(floating, twin)
        alike = (
            d is not None and own is not None and (d.parts, d.inputs, d.outputs) == (own.parts, own.inputs, own.outputs)
        )
        if d is None or own is None or not alike or d.inputs > WIDEST:
            continue
        value, symmetric = floating.value(own.weight), was.zero is None or not was.zero.any()
        along = was.scale.size == 1 or was.scale.size == d.parts * d.outputs
        if value is None or was.integers.dtype.kind != "i" or not symmetric or not along:
            continue
        if len(consumers[node.input[product.weight]]) > 1 or len(consumers.get(was.ints[0], ())) > 1:
            continue
        bias, shift = _bias(quantized, floating, key, twin, d.parts * d.outputs, constants)
        matrix = own.matrix(value)
        found.append(_Layer(key, was, bias, d, own, matrix, None if shift is None else shift.reshape(d.parts, 1, -1)))
    return found


def _bias(quantized: Graph, floating: Graph, key: str, twin: str, width: int, constants: dict[str, Held]):
    """(the bias as integers, its floats); None, where it is not held so."""
    product = operators.of(quantized.nodes[key]).product
    if product is None or product.bias is None or not has_bias(quantized.nodes[key]):
        return None, None
    bias, shift = constants.get(quantized.nodes[key].input[product.bias]), bias_of(floating, twin, width)
    return (bias, shift) if bias is not None and shift is not None and bias.integers.dtype == BIAS else (None, None)
