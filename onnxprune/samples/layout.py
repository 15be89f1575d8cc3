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

    Axis 0 of an input is its batch where any input leaves axis 0 open, or where all inputs fix it at the same
    number. The other inputs (a scalar threshold, a fixed (1, 2) scale) are given whole with every batch.
    """

    def __init__(self, inputs: Sequence[InputSpec]) -> None:
        self.inputs = {spec.name: spec for spec in inputs}
        self.dtypes = {spec.name: np.dtype(spec.dtype) for spec in inputs}
        first = {spec.name: spec.shape[0] for spec in inputs if spec.shape}
        fixed = {dim for dim in first.values() if isinstance(dim, int)}
        self.batched = {name for name, dim in first.items() if not isinstance(dim, int)}
        self.batch: int | None = None
        if not self.batched and len(fixed) == 1:
            self.batched, self.batch = set(first), fixed.pop()

    def entry(self, name: str, given: Mapping[str, Lazy]) -> Entry:
        """`given`, one array an input, held against the model's dtypes and shapes."""
        counts = {}
        for key, spec in self.inputs.items():
            where = f"{name}: input {key!r}"
            _check_dtype(where, self.dtypes[key], given[key].dtype)
            have, want = given[key].shape, spec.shape
            if key in self.batched:
                bare = len(have) == len(want) - 1  # one sample without its batch axis
                counts[key] = 1 if bare or not have else have[0]
                have, want = have if bare else have[1:], want[1:]
            if (
                len(have) != len(want)
                or 0 in have
                or any(isinstance(dim, int) and dim != size for dim, size in zip(want, have, strict=True))
            ):
                raise CalibrationError(
                    f"{where} has shape {shape_text(given[key].shape)}, the model wants {shape_text(spec.shape)};"
                    " check the order of the axes and the preprocessing"
                )
        if len(set(counts.values())) > 1:
            raise CalibrationError(f"{name}: inputs differ in their number of samples: {counts}; cut them alike")
        return Entry(name, next(iter(counts.values()), 1), given)

    def sample(self, loaded: Arrays, at: int, where: str) -> Arrays:
        """Sample `at` of an entry, cast to the model's dtypes; casting here keeps mapped arrays on disk."""
        sample = {}
        for name, array in loaded.items():
            dtype = self.dtypes[name]
            if name in self.batched:
                array = array[None] if array.ndim < len(self.inputs[name].shape) else array[at : at + 1]
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
        return {
            name: np.concatenate([sample[name] for sample in samples])
            if name in self.batched
            else np.array(samples[0][name])
            for name in self.inputs
        }


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
