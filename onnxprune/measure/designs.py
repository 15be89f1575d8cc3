"""Linear layers as least squares problems: what a layer reads, as rows, and its weight, as a matrix.

A conv of any number of spatial axes, stride, dilation and group, a Gemm and a MatMul all compute `Y = X̃W` row by
row (a row is one output position of one sample). `Design` says how to get `X̃` and `W` out of activations and
constants and back; `second_moments` collects `H = X̃ᵀX̃` of many layers in one streamed pass over the samples.
A new layer is one more function under `@design`. Nothing here knows channel groups, and nothing here decides or edits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune import numerics, parallel
from onnxprune.errors import CalibrationError, one_line
from onnxprune.graph import operators, pairs
from onnxprune.graph.facts import Operator
from onnxprune.graph.layers import Layer, affine_or_why, lacks_bias, products, unscaled, weight_axes
from onnxprune.graph.model import Graph, Use
from onnxprune.graph.refusals import Refusal, refuse, unless_refused
from onnxprune.numerics import on_disk
from onnxprune.protobuf.nodes import attr
from onnxprune.runtime import sessions
from onnxprune.runtime.ports import Feeds

WIDEST = 6000
"""Inputs per part from which second moments are not formed: (d, d) float64 would take gigabytes."""


@dataclass(frozen=True)
class Design:
    """One dense layer, grouped or not, whose weight is a constant.

    Attributes:
        key: the node.
        op: its operator.
        tensor: the activation it reads.
        weight: the use of its weight.
        axis: the channel axis of its output, and of what it reads.
        parts: groups of a conv; 1 elsewhere.
        inputs: rows of a part's matrix: channels per group times taps.
        outputs: columns of a part's matrix.
        taps: kernel positions.
        turned: the weight is stored (outputs, inputs).
        flat: what it reads has two axes, samples and channels.
        conv: kernel, strides, pads and dilations of a conv.
    """

    key: str
    op: str
    tensor: str
    weight: Use
    axis: int
    parts: int
    inputs: int
    outputs: int
    taps: int
    turned: bool
    flat: bool = False
    conv: Mapping[str, tuple[int, ...]] | None = None

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """(parts, inputs, outputs), float64, of a weight as it is stored."""
        if self.conv is not None:
            return weight.reshape(self.parts, self.outputs, self.inputs).transpose(0, 2, 1).astype(np.float64)
        return (weight.T if self.turned else weight)[None].astype(np.float64)

    def stored(self, matrix: np.ndarray, like: np.ndarray) -> np.ndarray:
        """The weight as it is stored, in the type of `like`, of a (parts, inputs, outputs) matrix."""
        if self.conv is not None:
            turned = np.ascontiguousarray(matrix.transpose(0, 2, 1))
            return turned.reshape(-1, *like.shape[1:]).astype(like.dtype)
        return np.ascontiguousarray(matrix[0].T if self.turned else matrix[0]).astype(like.dtype)

    def rows_read(self, x: np.ndarray, positions: np.ndarray | None) -> np.ndarray:
        """(rows, parts · inputs), never float16: what the layer reads at output positions (images, p), or at all."""
        if self.conv is None:
            return rows_of(x, self.axis, positions)
        given = self.conv
        if x.dtype == np.float16:  # sums of squares overflow, and its products are slow
            x = x.astype(np.float32)
        pads = given["pads"] if "pads" in given else _same_pads(given, x.shape[2:], given["upper"][0])
        return numerics.patches(
            x,
            given["kernel"],
            strides=given["strides"],
            pads=pads,
            dilations=given["dilations"],
            positions=positions,
        )

    def places(self, shape: Sequence[int]) -> int:
        """Output positions of one entry of the first axis, for an input of that shape."""
        if self.conv is None:
            return int(np.prod([n for k, n in enumerate(shape) if k not in (0, self.axis % len(shape))]))
        given, count = self.conv, 1
        pads = given["pads"] if "pads" in given else _same_pads(given, shape[2:], 1)
        n = len(shape) - 2
        for k, size in enumerate(shape[2:]):
            span = (given["kernel"][k] - 1) * given["dilations"][k] + 1
            count *= (size + pads[k] + pads[n + k] - span) // given["strides"][k] + 1
        return count

    def draw(self, x: np.ndarray, rows: int, memory: int, rng: np.random.Generator) -> np.ndarray | None:
        """(images, p) output positions to look at, about `rows` in all and few enough for their rows to fit into
        `memory` bytes; None for all positions."""
        most = memory // max(1, 4 * self.parts * self.inputs * len(x))
        count = max(1, min(-(-rows // max(1, len(x))), most))  # a body that does not run may make none
        return numerics.sample_positions(len(x), self.places(x.shape), count, rng)


Maker = Callable[[onnx.NodeProto, str, np.ndarray], Design]
MAKERS: dict[tuple[str, str], Maker] = {}
"""(domain, operator) -> what makes its design out of node, key and weight."""


def design(*names: str, domain: str = "") -> Callable[[Maker], Maker]:
    """Enter how designs of operators are made: (node, its key, the weight as it is stored) -> design.

    Raises:
        LookupError: an operator without a line, or whose line says no weight.
    """

    def enter(function: Maker) -> Maker:
        for name in names:
            if operators.named(name, domain).product is None:
                raise LookupError(f"{name} has a design, but no line with a weight in graph/operators.py")
            MAKERS[domain, name] = function
        return function

    return enter


def maker_of(line: Operator) -> Maker | None:
    """What makes an operator's design; None: its line says why there is none (`unfit`)."""
    return MAKERS.get((line.domain, line.name))


def design_of(graph: Graph, key: str) -> Design | None:
    """The layer as a least squares problem; None when it is not one that we can refit: quantized, weights computed at
    run time, a weight on the left, scaled or with a turned input."""
    return unless_refused(design_or_why(graph, key))


def design_or_why(graph: Graph, key: str) -> Design | Refusal:
    """The same, or why it is not one."""
    node = graph.nodes[key]
    line = operators.of(node)
    maker, product = maker_of(line), line.product
    if maker is None or product is None or len(node.input) < 2:
        return refuse(key, "unfit" if line.unfit else "no layer", op=line.name or "it", why=line.unfit)
    weight = graph.value((key, product.weight))
    if graph.constant(node.input[product.data]) is not None:
        left = weight is None and product.either
        return refuse(key, "on the left" if left else "reads a constant", op=line.name)
    if weight is None:
        return refuse(key, "two activations" if product.either else "computed", op=line.name)
    if weight.dtype not in (np.float32, np.float16):
        return refuse(key, "integers", op=line.name, dtype=weight.dtype)
    if attr(node, "transA", 0):
        return refuse(key, "turned", op=line.name)
    if not unscaled(node):
        return refuse(key, "scaled", op=line.name)
    if not product.kernel and weight.ndim != 2:
        return refuse(key, "stacked", op=line.name, rank=weight.ndim)
    return maker(node, key, weight)


def refusals(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Layer -> why it is not refitted, in words, for the layers that are not."""
    consumers = graph.consumers()
    found = {layer.key: _not_refitted(graph, layer, consumers, shapes) for layer in products(graph, shapes)}
    return {key: str(why) for key, why in found.items() if why is not None}


def split_refusals(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Layer -> why it is not made of two, in words, for the layers that cannot be."""
    found = {layer.key: _not_split(graph, layer.key) for layer in products(graph, shapes)}
    return {key: str(why) for key, why in found.items() if why is not None}


def _not_refitted(
    graph: Graph, layer: Layer, consumers: Mapping[str, list[Use]], shapes: Mapping[str, tuple[int, ...]]
) -> Refusal | None:
    made = design_or_why(graph, layer.key)
    if isinstance(made, Refusal):
        return made
    if made.inputs > WIDEST:
        return refuse(layer.key, "wide", op=layer.op, inputs=made.inputs, most=WIDEST)
    place = affine_or_why(graph, layer, consumers, shapes)
    # what has no operand for a bias is given an Add
    return place if isinstance(place, Refusal) and not lacks_bias(graph.nodes[layer.key]) else None


def _not_split(graph: Graph, key: str) -> Refusal | None:
    made = design_or_why(graph, key)
    if isinstance(made, Refusal):
        return made
    weight = graph.value(made.weight)
    assert weight is not None
    if made.inputs > WIDEST:
        return refuse(key, "wide", op=made.op, inputs=made.inputs, most=WIDEST)
    return pairs.why_not(key, graph.nodes[key], weight.shape)


@design("Conv")
def _conv(node: onnx.NodeProto, key: str, weight: np.ndarray) -> Design:
    parts, n = attr(node, "group", 1), weight.ndim - 2
    conv = {
        "kernel": weight.shape[2:],
        "strides": tuple(attr(node, "strides", [1] * n)),
        "dilations": tuple(attr(node, "dilations", [1] * n)),
    }
    mode = attr(node, "auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        conv["upper"] = (int(mode == "SAME_UPPER"),)
    else:
        conv["pads"] = tuple(attr(node, "pads", [0] * (2 * n))) if mode == "NOTSET" else (0,) * (2 * n)
    taps = int(np.prod(weight.shape[2:]))
    inputs, outputs = weight.shape[1] * taps, weight.shape[0] // parts
    name, reads = operators.of(node).name, node.input[0]
    return Design(key, name, reads, (key, 1), 1, parts, inputs, outputs, taps, True, conv=conv)


@design("Gemm", "MatMul", "Einsum")
def _matrix(node: onnx.NodeProto, key: str, weight: np.ndarray) -> Design:
    line, (writes, reads) = operators.of(node), weight_axes(node)
    product = line.product
    assert product is not None and line.channels is not None
    tensor, use = node.input[product.data], (key, product.weight)
    sizes, flat = (weight.shape[reads], weight.shape[writes]), line.channels == 1
    return Design(key, line.name, tensor, use, line.channels, 1, *sizes, 1, writes == 0, flat)


def _same_pads(conv: Mapping[str, tuple[int, ...]], size: Sequence[int], upper: int) -> tuple[int, ...]:
    """SAME_UPPER and SAME_LOWER: out = ceil(in / stride), the odd one behind or in front."""
    begins, ends = [], []
    for s, k, step, d in zip(size, conv["kernel"], conv["strides"], conv["dilations"], strict=True):
        total = max(0, (-(-s // step) - 1) * step + (k - 1) * d + 1 - s)
        small, large = total // 2, total - total // 2
        begins.append(small if upper else large)
        ends.append(large if upper else small)
    return (*begins, *ends)


def apart(rows: np.ndarray, parts: int) -> np.ndarray:
    """(parts, rows, n) of (rows, parts · n)."""
    return rows.reshape(len(rows), parts, -1).transpose(1, 0, 2)


def along_rows(several: Sequence[np.ndarray], parts: int) -> np.ndarray:
    """(parts, rows, n) of several (rows, parts · n). Where there are parts, rows lie side by side in memory: parts read
    little, and products with few columns are slow."""
    if parts == 1:
        return np.concatenate(several)[None]
    found = np.empty((parts, several[0].shape[1] // parts, sum(map(len, several))), several[0].dtype)
    np.concatenate([apart(rows, parts).swapaxes(1, 2) for rows in several], axis=2, out=found)
    return found.swapaxes(1, 2)


def joined(parts: np.ndarray) -> np.ndarray:
    """(rows, parts · n) of (parts, rows, n)."""
    return parts.transpose(1, 0, 2).reshape(parts.shape[1], -1)


def rows_of(z: np.ndarray, axis: int, positions: np.ndarray | None) -> np.ndarray:
    """(rows, channels), float32: a tensor's channel axis at the sampled positions (images, p) of the others."""
    flat = np.moveaxis(z, axis, -1)
    flat = flat.reshape(len(z), math.prod(flat.shape[1:-1]), z.shape[axis])
    if positions is not None:
        flat = flat[np.arange(len(z))[:, None], positions]
    return np.ascontiguousarray(flat.reshape(math.prod(flat.shape[:2]), z.shape[axis]), dtype=np.float32)


@parallel.within_threads
def second_moments(
    model: onnx.ModelProto,
    designs: Sequence[Design],
    shapes: Mapping[str, Sequence[int]],
    batches: Callable[[int], Iterable[Feeds]],
    *,
    positions: int = 64,
    memory: int = 1 << 28,
    threads: int | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """`H` of every layer, (parts, inputs + 1, inputs + 1) float64, the intercept last, in one pass.

    Args:
        model: the network that the layers belong to.
        designs: the layers; those wider than `WIDEST` are left out.
        shapes: sizes of every activation in a run of one sample or more (only their ratio matters).
        batches: gives the samples in batches of at most that many.
        positions: sampled output positions a sample.
        memory: bytes of activations that may leave ONNX Runtime at a time, and of one layer's rows.
        threads: ORT threads.
        seed: of the positions.

    Raises:
        CalibrationError: squares of what a layer reads are beyond the range of float32.
    """
    designs = [d for d in designs if d.inputs <= WIDEST]
    if not designs:
        return {}
    keeper = on_disk.Keeper()
    found = {d.key: keeper.zeros((d.parts, d.inputs + 1, d.inputs + 1)) for d in designs}
    tensors = sorted({d.tensor for d in designs})
    each = sum(4 * int(np.prod(shapes[t])) // max(1, shapes[t][0]) for t in tensors)
    session = sessions.open_with_outputs(model, tensors, threads=threads, name="calibration pass")
    rng = np.random.default_rng(seed)
    for feeds in batches(int(np.clip(memory // max(1, each), 1, 32))):
        samples = len(next(iter(feeds.values())))
        values = dict(zip(tensors, session.run(dict(feeds), tensors), strict=True))
        for d in designs:
            x = values[d.tensor]
            _accumulate(found[d.key], d, d.rows_read(x, d.draw(x, samples * positions, memory, rng)))
            on_disk.release((found[d.key],))
    for d in designs:
        check_finite(d, found[d.key])
    return found


def check_finite(d: Design, H: np.ndarray) -> None:
    """Refuse second moments that are beyond the range of numbers.

    Raises:
        CalibrationError: they are; the message names the layer.
    """
    if not np.isfinite(H).all():
        raise CalibrationError(
            one_line(f"what node {d.key!r} ({d.op}) reads is not finite, or its squares are not; scale the samples")
        )


def _accumulate(H: np.ndarray, d: Design, rows: np.ndarray) -> None:
    """Add the rows of one batch."""
    x = along_rows([rows], d.parts)
    H += numerics.SecondMoments.of(x, x[..., :0]).H
