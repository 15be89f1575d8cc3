"""Which samples fit a model: axes that count samples, types, shapes, and how samples are joined to batches.

What is read lies in *entries*: some samples that are read together, whose names, shapes and count are known before
their data is. Where they come from is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.errors import CalibrationError
from onnxprune.samples.messages import shape_text

if TYPE_CHECKING:
    from onnxprune.runtime.ports import InputSpec

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Lazy:
    """An array whose shape and dtype are known and whose data comes when asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]


def held(array: np.ndarray) -> Lazy:
    return Lazy(array.shape, array.dtype, lambda: array)


@dataclass(frozen=True)
class Entry:
    """Some samples that are read together: an archive, a file, an image, what an iterable gave."""

    name: str
    count: int
    arrays: Mapping[str, Lazy]

    def load(self) -> Arrays:
        return {name: lazy.load() for name, lazy in self.arrays.items()}


class Layout:
    """Which axes of the inputs count samples.

    The batch axis of an input, the first one unless it is known better, counts samples where any input leaves its own
    open, or where all inputs fix them at the same number. The other inputs (a scalar threshold, a fixed (1, 2) scale)
    are given whole with every batch; an input for every sample may be stacked along an axis of its own in front.
    `values` are inputs that samples need not have.
    """

    def __init__(self, inputs: Sequence[InputSpec], values: Mapping[str, np.ndarray] | None = None) -> None:
        self.inputs = {spec.name: spec for spec in inputs}
        self.dtypes = {spec.name: np.dtype(spec.dtype) for spec in inputs}
        self.values = dict(values or {})
        self.axes = {spec.name: getattr(spec, "batch_axis", 0) for spec in inputs}
        first = {spec.name: spec.shape[self.axes[spec.name]] for spec in inputs if spec.shape}
        fixed = {dim for dim in first.values() if isinstance(dim, int)}
        self.batched = {name for name, dim in first.items() if not isinstance(dim, int)}
        self.batch: int | None = None
        if not self.batched and len(fixed) == 1:
            self.batched, self.batch = set(first), fixed.pop()

    def entry(self, name: str, given: Mapping[str, Lazy]) -> Entry:
        """`given`, one array an input, held against the model's dtypes and shapes."""
        given = {**{key: held(value) for key, value in self.values.items() if key not in given}, **given}
        counts = {}
        for key, spec in self.inputs.items():
            where = f"{name}: input {key!r}"
            _check_dtype(where, self.dtypes[key], given[key].dtype)
            have, want, axis = given[key].shape, spec.shape, self.axes[key]
            if len(have) == len(want) + 1 and (key not in self.batched or have[1 + axis] == 1):
                counts[key], have = have[0], have[1:]  # stacked
                want = (*want[:axis], 1, *want[axis + 1 :]) if key in self.batched else want
            elif key in self.batched:
                bare = len(have) == len(want) - 1  # one sample without its batch axis
                counts[key] = 1 if bare or len(have) <= axis else have[axis]
                have = have if bare else (*have[:axis], *have[axis + 1 :])
                want = (*want[:axis], *want[axis + 1 :])
            if (
                len(have) != len(want)
                or 0 in have
                or any(isinstance(dim, int) and dim != size for dim, size in zip(want, have, strict=True))
            ):
                raise CalibrationError(
                    f"{where} has shape {shape_text(given[key].shape)}, the model wants {shape_text(spec.shape)};"
                    f" check the order of the axes and the preprocessing{_of_images(have, want)}"
                )
        if len(set(counts.values())) > 1:
            raise CalibrationError(f"{name}: inputs differ in their number of samples: {counts}; cut them alike")
        return Entry(name, next(iter(counts.values()), 1), given)

    def remedy(self, name: str) -> str:
        """What may be done where samples lack an input: one that is no samples may be given once; empty otherwise."""
        alone = name not in self.batched and all(size == 1 for size in self.inputs[name].shape)
        return f"or give one for all samples: --input-value {name}=NUMBER" if alone else ""

    def sample(self, loaded: Arrays, at: int, where: str) -> Arrays:
        """Sample `at` of an entry, cast to the model's dtypes; casting here keeps mapped arrays on disk."""
        sample = {}
        for name, array in loaded.items():
            dtype, axis, rank = self.dtypes[name], self.axes[name], len(self.inputs[name].shape)
            if array.ndim > rank:
                array = array[at]
            elif name in self.batched:
                one = (slice(None),) * axis + (slice(at, at + 1),)
                array = np.expand_dims(array, axis) if array.ndim < rank else array[one]
            with np.errstate(over="ignore"):  # an overflow is an Inf, and found as one
                cast = array.astype(dtype, copy=False)
            if _is_float(dtype) and not np.isfinite(cast).all():
                raise CalibrationError(f"{where}: input {name!r} holds NaN or Inf; drop it or mend its preprocessing")
            if dtype.kind in "ui" and not np.array_equal(cast, array):
                raise CalibrationError(f"{where}: input {name!r} has {array.dtype} values beyond {dtype}; clip them")
            sample[name] = cast
        return sample

    def alike(self, one: Arrays, other: Arrays) -> bool:
        """Whether two samples fit one batch: shapes agree, and so do inputs that have no batch axis."""
        return bool(self.batched) and all(
            one[name].shape == other[name].shape and (name in self.batched or np.array_equal(one[name], other[name]))
            for name in one
        )

    def join(self, samples: list[Arrays]) -> Arrays:
        """Samples in one batch; an input whose first axis counts them comes first."""
        return {
            name: np.concatenate([sample[name] for sample in samples], axis=self.axes[name])
            if name in self.batched
            else np.array(samples[0][name])
            for name in sorted(self.inputs, key=lambda name: (name not in self.batched, self.axes[name] != 0))
        }


COLOURS = (1, 3)


def _of_images(have: Sequence[int], want: Sequence[int | str | None]) -> str:
    """How images of a folder are given with their channels where the model has them; empty where they are there."""
    if len(have) == len(want) == 3 and have[0] in COLOURS and want[0] not in COLOURS and want[2] in COLOURS:
        return f" (images of a folder: --image layout=nhwc{',order=gray' if want[2] == 1 else ''})"
    return ""


def _is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


def _check_dtype(where: str, want: np.dtype, have: np.dtype) -> None:
    if have.hasobject:
        raise CalibrationError(f"{where} holds Python objects, not numbers; make it one array of one dtype")
    both_int = want.kind in "ui" and have.kind in "ui"
    if want == have or both_int or (_is_float(want) and _is_float(have)):
        return
    hint = "cast it"
    if _is_float(want) and have.kind in "ui":
        hint = "raw pixels? preprocess them as for inference (scale, mean, std), then save as floats"
    raise CalibrationError(f"{where} is {have}, the model wants {want}; {hint}")
