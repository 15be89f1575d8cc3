"""Whether samples spread as far as what reads them was made for.

Where BatchNormalization stores the statistics of what the network was trained on, these tell (`measure.telling`). Where
it was folded away, the biases of the first layer tell: on what it was made for, its outputs vary about as much as its
biases are large; on pixels divided by 255 once too often they hardly vary at all. The threshold was set between three
text networks on photographs (0.4 to 0.8) and on the same photographs divided by 255 (0.002 to 0.003). That samples
spread too far cannot be told so: networks for raw pixels without a bias to speak of are usual.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from onnxprune.channels import Analysed
from onnxprune.graph import operators
from onnxprune.graph.layers import affine, keeps_statistics, layers
from onnxprune.measure.moments import moments
from onnxprune.runtime.ports import Feeds

HARDLY = 0.03
"""Deviation of the first layer's outputs, relative to its biases, below which they hardly vary."""
STEPS = 4.0
"""Steps of a quantized input over which samples spread at least."""
TWO = 2
"""Different values that are too few for an image of integers; biases that are too few to go by."""


def too_narrow(net: Analysed, batches: Sequence[Feeds], threads: int | None = None) -> Iterator[str]:
    """What speaks against the spread of some samples, in words; at most one sentence.

    Args:
        net: the original network.
        batches: some of the samples.
        threads: ORT threads.
    """
    looks = _few_values(batches), _steps(net, batches), _biases(net, batches, threads)
    yield from next(filter(None, map(list, looks)), [])


def _few_values(batches: Sequence[Feeds]) -> Iterator[str]:
    """Of images that are integers."""
    for name in batches[0] if batches else ():
        first = batches[0][name]
        if first.dtype.kind not in "ui" or first.ndim < 3:
            continue
        found = np.unique(np.concatenate([np.unique(feeds[name]) for feeds in batches]))
        if len(found) <= TWO:
            values = " and ".join(map(str, found))
            yield (
                f"input {name!r} is {first.dtype}, and the samples hold nothing but {values} there; give pixels as the "
                "network takes them, usually 0 to 255"
            )


def _steps(net: Analysed, batches: Sequence[Feeds]) -> Iterator[str]:
    """Of inputs that are quantized first."""
    for node in net.graph.nodes.values():
        line = operators.of(node)
        if not line.quantizer or line.dequantizes or node.input[0] not in net.graph.inputs:
            continue
        step, name = net.graph.constant(node.input[1]), node.input[0]
        if step is not None and step.size == 1 and step.item() > 0:
            deviation = float(np.concatenate([feeds[name].ravel() for feeds in batches]).std(dtype=np.float64))
            if 0 < deviation < STEPS * step.item():
                yield (
                    f"the samples spread over {deviation / step.item():.2g} steps of quantized input {name!r}; "
                    "scale them (mean, deviation, 0 to 1 or 0 to 255) as in training"
                )


def _biases(net: Analysed, batches: Sequence[Feeds], threads: int | None) -> Iterator[str]:
    """Of a first layer with biases."""
    found = layers(net.graph, net.shapes)
    place = affine(net.graph, found[0], net.graph.consumers(), net.shapes) if found else None
    bias = None if place is None or place.shift is None else net.graph.value(place.shift[0])
    if place is None or bias is None or bias.size < TWO or place.tensor not in net.shapes:
        return
    if place.shift is not None and keeps_statistics(net.graph.nodes[place.shift[0][0]]):
        return
    size = float(np.sqrt(np.mean(np.square(bias, dtype=np.float64))))
    seen = moments(net.model, {place.tensor: (place.axis, len(net.shapes[place.tensor]))}, batches, threads=threads)
    deviation = float(np.median(seen[place.tensor].std))
    if 0 < deviation < HARDLY * size:
        yield (
            f"the samples do not look like what the network was trained on: what its first layer makes of them varies "
            f"by {deviation / size:.1%} of its biases; scale them (mean, deviation, 0 to 1 or 0 to 255) as in training"
        )
