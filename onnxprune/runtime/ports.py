"""What a model wants to be fed: names, types and sizes of its inputs, and made-up data that fits them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, ValueInfoProto, helper

from onnxprune.errors import ModelError, UnsupportedError, UsageError, one_line, unknown

Feeds = Mapping[str, np.ndarray]
"""Input name -> array: what one run is fed."""
MAX_FED_BYTES, MAX_RANK = 1 << 28, 32


@dataclass(frozen=True)
class InputSpec:
    """One graph input.

    `shape` has one entry an axis: an int is fixed, a str is a symbolic length (equal names, equal lengths),
    None is unknown. Exporters write unknown as -1, 0, `?` or an empty name. `batch_axis` counts samples, where any
    axis does; of a state that is carried from step to step it may be another one than the first.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | str | None, ...]
    batch_axis: int = 0

    @property
    def batch(self) -> int | str | None:
        """The length of the batch axis."""
        return self.shape[self.batch_axis]


def input_specs(model: ModelProto) -> tuple[InputSpec, ...]:
    """The inputs that a caller must feed; those with a stored value (old models list weights) are left out.

    An input whose rank is not declared is taken as an image batch: four unknown axes.

    Raises:
        UnsupportedError: an input is not a tensor.
    """
    stored = {t.name for t in model.graph.initializer}
    stored |= {s.values.name for s in model.graph.sparse_initializer}
    return with_batch_axes(tuple(_spec_of_port(port) for port in model.graph.input if port.name not in stored))


def with_batch_axes(specs: Sequence[InputSpec], said: Mapping[str, int] | None = None) -> tuple[InputSpec, ...]:
    """The inputs with the axes that count samples: those that are said, and of states the second, where it has the
    length of other inputs' first, and their own first has not.

    Raises:
        UsageError: there is no such input, or it has no such axis.
    """
    said, names = said or {}, [s.name for s in specs]
    for name, axis in said.items():
        if name not in names:
            raise unknown("input", name, names)
        rank = len(specs[names.index(name)].shape)
        if not 0 <= axis < rank:
            raise UsageError(one_line(f"input {name!r} has {rank} axes; axis {axis} is none of them"))
    first = {s.shape[0] for s in specs if s.shape and (len(s.shape) != 3 or not isinstance(s.shape[0], int))}

    def axis_of(spec: InputSpec) -> int:
        if spec.name in said:
            return said[spec.name]
        state = len(spec.shape) == 3 and isinstance(spec.shape[0], int) and spec.shape[0] not in first
        return 1 if state and (spec.shape[1] in first) else spec.batch_axis

    return tuple(replace(s, batch_axis=axis_of(s)) for s in specs)


def first_samples(batches: Sequence[Feeds], most: int) -> list[Feeds]:
    """The first batches, with about so many samples."""
    found, count = list[Feeds](), 0
    for feeds in batches:
        if count >= most:
            break
        found.append(feeds)
        count += max((len(v) for v in feeds.values() if v.ndim), default=1)
    return found


def check_size(specs: Sequence[InputSpec], name: str) -> None:
    """ModelError where one run must be fed with more than a model may hold, by the axes that are fixed, or with arrays
    of more axes than numpy has; `name` is what messages call it."""
    sizes = {s.name: s.dtype.itemsize * math.prod(n for n in s.shape if isinstance(n, int)) for s in specs}
    if sum(sizes.values()) > MAX_FED_BYTES:
        largest = max(sizes, key=lambda n: sizes[n])
        total = f"its inputs take {sum(sizes.values()):,} bytes, most of them {largest!r}"
        raise ModelError(one_line(f"{name}: {total}; export it with dynamic axes, or trust it (--trusted)"))
    deep = next((s for s in specs if len(s.shape) > MAX_RANK), None)
    if deep is not None:
        raise ModelError(one_line(f"{name}: input {deep.name!r} has {len(deep.shape)} axes; export the model again"))


def open_batch(spec: InputSpec) -> bool:
    """Whether an input declares that it takes any number of samples."""
    return bool(spec.shape) and not isinstance(spec.batch, int)


def in_batches_of(specs: Sequence[InputSpec], batch: int | None) -> tuple[InputSpec, ...]:
    """The inputs with every open batch at that size; as they are where it is None."""
    if batch is None:
        return tuple(specs)

    def fixed(s: InputSpec) -> InputSpec:
        return replace(s, shape=(*s.shape[: s.batch_axis], batch, *s.shape[s.batch_axis + 1 :]))

    return tuple(fixed(s) if open_batch(s) else s for s in specs)


def in_batch(specs: Sequence[InputSpec], feeds: Feeds, batch: int) -> dict[str, np.ndarray]:
    """The feeds with so many samples, the first one repeated, in the inputs that leave their batch open."""
    axes = {s.name: s.batch_axis for s in specs if open_batch(s)}
    return {k: np.repeat(v.take([0], axes[k]), batch, axis=axes[k]) if k in axes else v for k, v in feeds.items()}


USUAL_AXES = {1: "N", 2: "NL", 3: "NCL", 4: "NCHW", 5: "NCDHW"}
"""Rank -> what its axes usually are."""


def open_sizes(spec: InputSpec) -> bool:
    """Whether an input leaves a size open besides that of its batch."""
    shape, batch = spec.shape, spec.batch_axis
    return any(not isinstance(n, int) for at, n in enumerate(shape) if at != batch or len(shape) == 1)


def shape_hint(specs: Sequence[InputSpec]) -> str:
    """How to say the sizes that the inputs leave open: `--input-shape x=1,3,H,W` and so on, what is known filled in;
    and the values of those that are single numbers: `--input-value rate=NUMBER`."""
    sizes = [f"--input-shape {one_line(s.name)}={_sizes_in_words(s)}" for s in specs if open_sizes(s)]
    return " ".join([*sizes, *(f"--input-value {one_line(s.name)}=NUMBER" for s in specs if is_number(s))])


def is_number(spec: InputSpec) -> bool:
    """Whether an input is a single number that is no sample's: a rate, a threshold."""
    return all(n == 1 for n in spec.shape) and len(spec.shape) < 2 and spec.dtype.kind in "iuf"


def _sizes_in_words(spec: InputSpec) -> str:
    shape = spec.shape
    usual: Sequence[str] = USUAL_AXES.get(len(shape), [f"D{k}" for k in range(len(shape))])
    if len(shape) in (4, 5) and shape[-1] in (1, 3, 4) and not isinstance(shape[1], int):
        usual = usual[0] + usual[2:] + usual[1]  # type: ignore[operator]  # channels come last
    words = []
    for at, axis in enumerate(shape):
        if at == spec.batch_axis and not isinstance(axis, int) and len(shape) > 1:
            words.append("1")
        elif isinstance(axis, str) and re.fullmatch(r"[A-Za-z_]\w{0,19}", axis):
            words.append(axis)
        else:
            words.append(str(axis) if isinstance(axis, int) else usual[at])
    return ",".join(words)


def _spec_of_port(port: ValueInfoProto) -> InputSpec:
    kind = port.type.WhichOneof("value")
    if kind not in ("tensor_type", None):
        raise UnsupportedError(one_line(f"input {port.name!r} is a {kind}, not a tensor; nothing can feed it"))
    tensor = port.type.tensor_type
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type or onnx.TensorProto.FLOAT))
    except (KeyError, ValueError, TypeError):
        raise ModelError(
            one_line(f"input {port.name!r} has the unknown data type {tensor.elem_type}; export the model again")
        ) from None
    if not tensor.HasField("shape"):
        return InputSpec(port.name, dtype, (None,) * 4)
    shape = tuple(_axis(d.dim_value if d.HasField("dim_value") else d.dim_param) for d in tensor.shape.dim)
    return InputSpec(port.name, dtype, shape)


def _axis(length: int | str | None) -> int | str | None:
    if isinstance(length, int):
        return length if length > 0 else None
    return length if length and length not in ("?", "-1") else None


_ORT_TYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bool": "bool",
    "string": "object",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def spec_of_session(port: Any) -> InputSpec:
    """An input as a session of ORT tells of it."""
    match = re.fullmatch(r"tensor\((\w+)\)", port.type)
    dtype = np.dtype(_ORT_TYPES.get(match[1], "object") if match else "object")
    return InputSpec(port.name, dtype, tuple(_axis(d) for d in port.shape))


def default_feed(
    specs: Sequence[InputSpec],
    *,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, np.ndarray] | None = None,
    seed: int | np.random.Generator = 0,
    size: int = 224,
) -> dict[str, np.ndarray]:
    """Made-up data that fits the inputs: standard normal floats, zero integers, true booleans.

    Dynamic axes, unless `shapes` gives them: axis 0 is the batch. Rank 4 and 5 are images or clips: axis 1 is
    3 channels (when the last axis is fixed at 1, 3 or 4 the image is taken as NHWC and axis 1 is `size`), in
    rank 5 axis 2 is 16 frames, and the rest are `size`. Every dynamic axis of rank 2 or 3 (tokens, features,
    samples) is `size`. A symbolic length has the same value wherever it stands.

    Args:
        specs: from `input_specs` or `Session.inputs`.
        batch: length of a dynamic axis 0.
        shapes: whole shapes by input name.
        values: whole inputs by name.
        seed: of the normal numbers, or a generator.
        size: length of the other dynamic axes.

    Returns:
        An array for each input.

    Raises:
        UsageError: `shapes` names no input or contradicts a fixed axis.
    """
    shapes = dict(shapes or {})
    unknown = set(shapes) - {spec.name for spec in specs}
    if unknown:
        names = ", ".join(spec.name for spec in specs)
        raise UsageError(one_line(f"shape given for {sorted(unknown)[0]!r}, which is no input; inputs: {names}"))
    generator = np.random.default_rng(seed)
    lengths: dict[str, int] = {}
    for spec in specs:
        if spec.name in shapes:
            _check_fits(spec, shapes[spec.name])
            lengths.update((a, int(n)) for a, n in zip(spec.shape, shapes[spec.name], strict=True) if type(a) is str)
    feed = {}
    for spec in specs:
        shape = []
        for at, axis in enumerate(spec.shape):
            if spec.name in shapes:
                length = int(shapes[spec.name][at])
            elif isinstance(axis, int):
                length = axis
            else:
                length = batch if at == spec.batch_axis else _guess(spec.shape, at, batch, size)
                if axis is not None:
                    length = lengths.setdefault(axis, length)
            shape.append(length)
        feed[spec.name] = _filled(shape, spec.dtype, generator)
    feed |= values or {}
    order = sorted(
        specs, key=lambda spec: (not spec.shape, spec.batch_axis != 0)
    )  # one whose length counts samples first
    return {spec.name: feed[spec.name] for spec in order}


def made_up(
    specs: Sequence[InputSpec],
    *,
    input_value: Mapping[str, Sequence[float]] | None = None,
    batch_axis: Mapping[str, int] | None = None,
    **rest: Any,
) -> dict[str, np.ndarray]:
    """`default_feed` for what users say of inputs: numbers that some have, and axes that count samples."""
    found = with_batch_axes(specs, batch_axis)
    return default_feed(found, values=values_of(found, input_value or {}), **rest)


def values_of(specs: Sequence[InputSpec], given: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    """Whole inputs out of numbers by name: one number fills the input, as many as it has places are these in order.

    Raises:
        UsageError: there is no such input, or the numbers do not fit it.
    """
    known, found = {s.name: s for s in specs}, {}
    for name, numbers in given.items():
        if name not in known:
            raise unknown("input", name, known)
        spec, value = known[name], np.asarray(numbers)
        shape = [n if isinstance(n, int) else 1 for n in spec.shape]
        kind = spec.dtype.kind
        if value.size not in (1, math.prod(shape)) or kind not in "biuf" or (kind == "u" and value.min() < 0):
            sizes = "x".join(map(str, shape)) or "a single number"
            raise UsageError(one_line(f"--input-value {name}: {value.size} numbers do not fit {spec.dtype} {sizes}"))
        if kind in "iu" and not np.array_equal(value, np.rint(value)):
            raise UsageError(one_line(f"--input-value {name}: input {name!r} takes whole numbers"))
        found[name] = np.broadcast_to(value.reshape(shape if value.size > 1 else ()), shape).astype(spec.dtype)
    return found


def _guess(shape: tuple[int | str | None, ...], at: int, batch: int, size: int) -> int:
    rank = len(shape)
    if at == 0:
        return batch
    if rank in (4, 5) and at == 1 and shape[-1] not in (1, 3, 4):
        return 3
    if rank == 5 and at == 2:
        return 16
    return size


def _check_fits(spec: InputSpec, shape: Sequence[int]) -> None:
    fits = len(shape) == len(spec.shape) and all(
        int(n) > 0 and (not isinstance(axis, int) or axis == n) for n, axis in zip(shape, spec.shape, strict=False)
    )
    if not fits:
        known = ["?" if axis is None else axis for axis in spec.shape]
        raise UsageError(one_line(f"shape {list(shape)} does not fit input {spec.name!r} of shape {known}"))


def _filled(shape: Sequence[int], dtype: np.dtype, generator: np.random.Generator) -> np.ndarray:
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        return np.zeros(shape, dtype)
    if dtype.kind == "O":
        return np.full(shape, "", dtype)
    return generator.standard_normal(shape, dtype=np.float32).astype(dtype)  # "V": bfloat16 and smaller floats
