"""Scales of quantized activations, chosen anew for a network that was pruned and repaired.

A file's quantizer has chosen how far each activation reaches: between its least and its largest value on samples, or
what it thought better. After a repair the activations reach otherwise. So each reach grows or shrinks by as much as
that of the values themselves has, in floats, from the original to the repaired network; what was symmetric stays
symmetric, zero stays zero, and tensors that had one scale still do. A reach that begins at zero is a ReLU that the
quantizer has swallowed, or a clip, which cannot be told apart: it never grows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.graph import operators
from onnxprune.graph.model import Graph
from onnxprune.measure.stepwise import Runner
from onnxprune.rewrite.held import limits, same_bytes
from onnxprune.runtime.ports import Feeds, first_samples

SAMPLES = 64
"""Samples, about, that tell by how much a reach has changed."""

Reach = tuple[float, float]
"""The least and the largest value."""


@dataclass(frozen=True)
class Pair:
    """A QuantizeLinear of an activation, with one scale, that is undone by all who read it.

    Attributes:
        first: the QuantizeLinear.
        readers: the nodes that undo it.
        source: the activation.
        scale: of one number.
        zero: the same, integers; None: zero.
        bounds: the least and the largest integer.
    """

    first: str
    readers: tuple[str, ...]
    source: str
    scale: np.ndarray
    zero: np.ndarray | None
    bounds: tuple[int, int]

    @property
    def at(self) -> int:
        """The integer that stands for zero."""
        return 0 if self.zero is None else int(self.zero.reshape(-1)[0])

    @property
    def most(self) -> np.ndarray | None:
        """The largest value that it holds where the least is zero; None where it is not."""
        low, high = self.bounds
        return np.asarray((high - self.at) * self.scale.reshape(()), self.scale.dtype) if self.at == low else None

    def again(self, low: float, high: float) -> tuple[np.ndarray, np.ndarray | None]:
        """Scale and zero point, the ends of the reach being so many times as far from zero."""
        (least, largest), scale = self.bounds, float(self.scale.reshape(-1)[0])
        if self.at in (0, least, (least + largest + 1) // 2):  # it begins at zero, or is symmetric
            grown, at = scale * (high if self.at == least else max(low, high)), self.at
        else:
            bottom, top = (least - self.at) * scale * low, (largest - self.at) * scale * high
            grown = (top - bottom) / (largest - least)
            at = int(np.clip(np.rint(least - bottom / grown), least, largest))
        zero = None if self.zero is None else np.full(self.zero.shape, at, self.zero.dtype)
        return np.full(self.scale.shape, grown, self.scale.dtype), zero


def pairs(graph: Graph) -> Iterator[Pair]:
    """The pairs of a network, in order."""
    consumers = graph.consumers()
    for first, node in graph.nodes.items():
        line = operators.of(node)
        if not line.quantizer or line.dequantizes or graph.constant(node.input[0]) is not None:
            continue
        readers = tuple(key for key, _ in consumers.get(node.output[0], []))
        scale, zero = graph.value((first, 1)), graph.value((first, 2))
        alike = all(operators.of(graph.nodes[k]).dequantizes for k in readers) and all(
            same_bytes(graph.value((k, i)), v) for k in readers for i, v in ((1, scale), (2, zero))
        )
        if not readers or scale is None or scale.size != 1 or not alike or node.output[0] in graph.outputs:
            continue
        bounds = limits(np.dtype(np.uint8) if zero is None else zero.dtype)
        if bounds is not None:
            yield Pair(first, readers, node.input[0], scale, zero, bounds)


def chosen_anew(
    quantized: Graph, whole: Graph, before: Graph, after: Graph, batches: Sequence[Feeds], threads: int | None = None
) -> None:
    """Give a cut network, in place, other scales of activations.

    Args:
        quantized: the cut network.
        whole: the original.
        before: the original in floats.
        after: the cut network in floats, repaired.
        batches: samples.
        threads: ORT threads.
    """
    few, names = first_samples(batches, SAMPLES), {p.source for p in pairs(whole)}
    then = before.once("reaches", batches, lambda: _reaches(before, names, few, threads))
    alike: dict[tuple[bytes, int, tuple[int, int]], list[Pair]] = {}
    for p in pairs(quantized):
        alike.setdefault((p.scale.tobytes(), p.at, p.bounds), []).append(p)
    now = _reaches(after, then.keys(), few, threads)
    for same in alike.values():
        if any(p.source not in now for p in same):
            continue
        low, high = (max(_ratio(p, then, now, end) for p in same) for end in (0, 1))
        scale, zero = same[0].again(low, high)
        for p in same:
            for key in (p.first, *p.readers):
                quantized.set_constant((key, 1), scale.reshape(p.scale.shape), exact=True)
                if p.zero is not None and zero is not None:
                    quantized.set_constant((key, 2), zero.reshape(p.zero.shape), exact=True)


def _ratio(pair: Pair, then: Mapping[str, Reach], now: Mapping[str, Reach], end: int) -> float:
    """How many times as far from zero one end of what a pair holds is as it was."""
    was, now_is = (max(0.0, (-1, 1)[end] * reach[pair.source][end]) for reach in (then, now))
    if pair.most is not None:
        was = min(was, float(pair.most))
        now_is = min(now_is, was)
    return now_is / was if was > 0 and now_is > 0 else 1.0


def _reaches(graph: Graph, names: Iterable[str], batches: Sequence[Feeds], threads: int | None) -> dict[str, Reach]:
    """How far the tensors reach, of those that the network reads or makes."""
    runner = Runner(graph, batches, threads=threads)
    at = {**dict.fromkeys(graph.inputs, -1), **runner.made_at}
    order = sorted((n for n in names if n in at), key=at.__getitem__)
    runner = Runner(graph, batches, threads=threads, ahead=order)
    found = {}
    for name in order:
        values = [v for v in runner.until(name) if v.size]
        if values:
            found[name] = (float(min(v.min() for v in values)), float(max(v.max() for v in values)))
    return found
