"""Two models held against each other: which layer of one is which of the other, and what each costs. Neither is
changed, and neither need come from the other."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import onnx
from onnx import numpy_helper

from onnxprune.errors import ModelError, UsageError
from onnxprune.measure.layer_costs import Layer, activations, constants, layers, operators
from onnxprune.pipeline.opened import ModelLike, Subject, open_model
from onnxprune.protobuf.nodes import opset
from onnxprune.report.difference import Difference, Pair, Port, Side
from onnxprune.runtime import ports

ALIGNED = 1000
"""Most layers without a match by name that are matched by their order: the time grows with the square."""


def diff(
    a: ModelLike,
    b: ModelLike,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_value: Mapping[str, Sequence[float]] | None = None,
    batch_axis: Mapping[str, int] | None = None,
    trusted: bool = False,
) -> Difference:
    """What two models differ in: costs, operators, inputs and outputs, and layer by layer.

        print(onnxprune.diff("model.onnx", "model.pruned.onnx").summary())

    Layers are the same where the name of their output and their operator are, else where the node's name is, else where
    they stand in the same order.

    Args:
        a, b: a path or a ModelProto (left untouched); each is run once.
        input_shapes: sizes for dynamic axes, by input name; else a guess, the same for both.
        input_value, batch_axis: as in `Settings`.
        trusted: whether the models' first runs are made in this process; else in children that can be killed.

    Raises:
        PruneError: one of them cannot be read or run.
    """
    opened = partial(open_model, input_value=input_value, batch_axis=batch_axis, trusted=trusted)
    first = opened(a, input_shapes=input_shapes)
    second = opened(b, input_shapes=input_shapes)
    if input_shapes is None and (sizes := _as_fed(first, second)):
        with contextlib.suppress(ModelError, UsageError):  # it does not take them; the sizes of both are told
            second = opened(b, input_shapes=sizes)
    old, new = (layers(s.graph, s.channels.shapes, s.channels.ran) for s in (first, second))
    held = [constants(s.graph) for s in (first, second)]
    pairs = (
        Pair(x, y, x is not None and y is not None and _equal(held[0][x.node], held[1][y.node]))
        for x, y in matched(old, new)
    )
    return Difference(_side(first, "a"), _side(second, "b"), tuple(pairs))


def _as_fed(first: Subject, second: Subject) -> dict[str, Sequence[int]]:
    """The sizes that the first was run with, for the inputs of the second that leave sizes open and had others."""
    found: dict[str, Sequence[int]] = {}
    for spec in second.specs:
        fed = first.feeds.get(spec.name)
        if fed is not None and fed.ndim == len(spec.shape) and fed.shape != second.feeds[spec.name].shape:
            fits = all(n == own for n, own in zip(fed.shape, spec.shape, strict=True) if isinstance(own, int))
            found |= {spec.name: fed.shape} if fits else {}
    return found


def matched(first: Sequence[Layer], second: Sequence[Layer]) -> Iterator[tuple[Layer | None, Layer | None]]:
    """Every layer of both with the one that it is in the other, or None, in the order of the first; what is in the
    second alone stands before what follows it there."""
    place = _places(first, second)
    taken, told = set(place.values()), 0

    def new(until: int) -> Iterator[tuple[None, Layer]]:
        yield from ((None, second[j]) for j in range(told, until) if j not in taken)

    for i, layer in enumerate(first):
        j = place.get(i)
        if j is not None:
            yield from new(j)
            told = max(told, j + 1)
        yield layer, None if j is None else second[j]
    yield from new(len(second))


def _places(first: Sequence[Layer], second: Sequence[Layer]) -> dict[int, int]:
    """Place of a layer in the first -> its place in the second."""
    found: dict[int, int] = {}
    for known in (lambda layer: layer.node, lambda layer: layer.title):
        left = [[k for k in range(len(side)) if k not in used] for side, used in
                ((first, found.keys()), (second, set(found.values())))]  # fmt: skip
        names = [[(known(side[k]), side[k].op) for k in own] for side, own in zip((first, second), left, strict=True)]
        once = [Counter(own) for own in names]
        at = dict(zip(names[1], left[1], strict=True))
        for key, i in zip(names[0], left[0], strict=True):
            if key[0] and once[0][key] == once[1][key] == 1:
                found[i] = at[key]
    rest = [k for k in range(len(first)) if k not in found], sorted({*range(len(second))} - {*found.values()})
    if max(map(len, rest)) <= ALIGNED:
        ops = [[side[k].op for k in own] for side, own in zip((first, second), rest, strict=True)]
        found |= {rest[0][i]: rest[1][j] for i, j in _in_order(ops[0], ops[1])}
    return found


def _in_order(one: Sequence[str], other: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Places of a longest common subsequence, as early as can be."""
    length = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]  # of what is common from there on
    for i in reversed(range(len(one))):
        row, below = length[i], length[i + 1]
        for j in reversed(range(len(other))):
            row[j] = below[j + 1] + 1 if one[i] == other[j] else max(below[j], row[j + 1])
    i = j = 0
    while i < len(one) and j < len(other):
        if one[i] == other[j]:
            yield i, j
            i, j = i + 1, j + 1
        elif length[i + 1][j] >= length[i][j + 1]:
            i += 1
        else:
            j += 1


def _equal(one: Mapping[str, onnx.TensorProto], other: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether two layers read constants of the same values, in the same order."""
    if len(one) != len(other):
        return False
    pairs = zip(one.values(), other.values(), strict=True)
    return all(a.data_type == b.data_type and a.dims == b.dims and _values(a) == _values(b) for a, b in pairs)


def _values(tensor: onnx.TensorProto) -> bytes:
    return tensor.raw_data or numpy_helper.to_array(tensor).tobytes()


def _side(subject: Subject, name: str) -> Side:
    graph, shapes, model = subject.graph, subject.channels.shapes, subject.model

    def ran(name: str) -> tuple[int, ...]:
        return tuple(map(int, shapes.get(name, ())))

    return Side(
        name=name if subject.path is None else str(subject.path),
        digest=subject.digest,
        opset=opset(model),
        ir_version=model.ir_version,
        nodes=len(model.graph.node),
        operators=operators(graph),
        activation_bytes=activations(graph, shapes).bytes,
        inputs=tuple(Port(s.name, str(s.dtype), s.shape, ran(s.name)) for s in ports.input_specs(model)),
        outputs=tuple(_output(port, ran(port.name)) for port in model.graph.output),
        cost=subject.cost(),
    )


def _output(port: onnx.ValueInfoProto, ran: tuple[int, ...]) -> Port:
    """An output; of a sequence or another thing that is no tensor, only that it is one."""
    tensor = port.type.tensor_type
    if port.type.WhichOneof("value") not in ("tensor_type", None):
        return Port(port.name, str(port.type.WhichOneof("value")).removesuffix("_type"), (), ran)
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else "unknown"
    sizes = tuple(d.dim_value if d.dim_value > 0 else d.dim_param or None for d in tensor.shape.dim)
    return Port(port.name, dtype, sizes if tensor.HasField("shape") else (None,) * len(ran), ran)
