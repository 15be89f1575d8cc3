"""Unlabelled samples for a model, from whatever people have them in: archives, folders, images, Python.

Every source becomes a list of *entries*. An entry knows its name, its shapes and its count of samples without
its data being read; the data is read when a batch needs it, and only one entry is held at a time. Headers and
sizes are checked against a cap before a byte of data is read, nothing is ever unpickled, and the name of an
archive member is a key, never a path. What the numbers mean is not known here: no model is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.errors import CalibrationError, UsageError
from onnxprune.numerics import on_disk
from onnxprune.samples import sources
from onnxprune.samples.images import ImageSpec
from onnxprune.samples.layout import Arrays, Entry, Layout, held
from onnxprune.samples.messages import shape_text
from onnxprune.samples.reading import Reading

if TYPE_CHECKING:
    from onnxprune.runtime.ports import InputSpec

GIB = 1 << 30
RELEASE = 64
"""Samples after which what was read of a mapped file leaves memory."""


def open_calibration(
    source: Any,
    inputs: Sequence[InputSpec],
    *,
    limit: int | None = None,
    image: ImageSpec | None = None,
    values: Mapping[str, np.ndarray] | None = None,
    max_bytes: int = 2 * GIB,
) -> Calibration:
    """The samples in `source`, checked against the model's `inputs` and readable as often as wanted.

    Generators, readers and other iterables are read once, here, and copied: in memory up to 256 MiB, then
    in an unnamed temporary file (in `TMPDIR`) that is gone with the last reference to it. So a callable that
    augments at random gives the same samples in every pass, and a split stays disjoint.

    Args:
        source: a path or an object, in any of the forms that `samples/sources.py` lists.
        inputs: of the model, from `input_specs`.
        limit: at most so many samples (but one batch, if the model fixes its size); the first ones, except that
            an image folder gives evenly spaced ones, as its first would be of one class.
        image: how an image becomes an input.
        values: inputs that samples need not have, whole, by name.
        max_bytes: the most that an archive member may unpack to, or an iterable give.

    Raises:
        CalibrationError: samples are missing, unreadable, or unfit for the model (NaN and Inf when the sample is read).
        UsageError: a bad call, or images without `image`.
        FileError: there is no room for the temporary file.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; give a positive number of samples")
    if not inputs:
        raise CalibrationError("the model has no inputs: there is nothing to calibrate with")
    reading = Reading(Layout(inputs, values), limit, image, max_bytes)
    entries = sources.read(reading, source)
    return Calibration(reading.layout, entries, source=reading.title, ignored=tuple(reading.ignored), limit=limit)


class Calibration:
    """Samples that can be read again and again, in batches. `len` counts samples, not batches.

    `ignored` names what the source held besides inputs (labels). `shared` is true for the two halves of a
    split that had too few samples to part. `batch` is the batch size that the model fixes, or None.
    """

    def __init__(
        self,
        layout: Layout,
        entries: Sequence[Entry],
        *,
        source: str,
        ignored: tuple[str, ...] = (),
        limit: int | None = None,
    ) -> None:
        self.source, self.ignored, self.shared = source, ignored, False
        self._layout = layout
        self._entries = [entry for entry in entries if entry.count]
        self._ends = np.cumsum([entry.count for entry in self._entries], dtype=np.int64)
        total = int(self._ends[-1]) if self._entries else 0
        if not total:
            raise CalibrationError(f"{source}: no samples; give at least one")
        if total < self._unit:
            raise CalibrationError(f"{source}: {total} samples, but the model's batch is fixed at {self._unit}")
        self._rows = np.arange(total if limit is None else min(total, max(limit, self._unit)))

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: the samples themselves, not where they lie."""
        kept = {name: value for name, value in self.__dict__.items() if name not in ("_entries", "_ends", "_rows")}
        samples = [{name: np.array(value) for name, value in sample.items()} for sample in self._samples()]
        return kept | {"samples": samples}

    def __setstate__(self, state: dict[str, Any]) -> None:
        samples = state.pop("samples")
        self.__dict__.update(state)
        named = ({name: held(value) for name, value in sample.items()} for sample in samples)
        self._entries = [Entry(f"sample {k}", 1, arrays) for k, arrays in enumerate(named)]
        self._ends = np.arange(1, len(samples) + 1, dtype=np.int64)
        self._rows = np.arange(len(samples))

    def __repr__(self) -> str:
        shapes = ", ".join(f"{spec.name} {shape_text(spec.shape)}" for spec in self._layout.inputs.values())
        return f"Calibration({self.source}: {len(self)} samples of {shapes})"

    @property
    def batch(self) -> int | None:
        return self._layout.batch

    @property
    def _unit(self) -> int:
        return self.batch or 1

    def batches(self, size: int) -> Iterator[Arrays]:
        """Batches of up to `size` samples in order: a dict from input name to a fresh array.

        A batch holds consecutive samples of equal shapes, so it may be smaller where shapes change. A model
        that fixes its batch gets exactly that many each time, whatever `size`; samples left over at the end,
        or where shapes change, are dropped. NaN or Inf in a sample raises CalibrationError with its index.
        """
        if size < 1:
            raise UsageError(f"batch size is {size}; give a positive number")
        return self._batches(self.batch or size)

    def first(self, n: int) -> Arrays:
        """The first batch of up to `n` samples."""
        return next(self.batches(n))

    def take(self, n: int) -> Calibration:
        """The first `n` samples, or all where there are fewer (at least one batch if the model fixes it)."""
        if n < 1:
            raise UsageError(f"take({n}); give a positive number of samples")
        return self._view(self._rows[: max(n, self._unit)])

    def spaced(self, n: int) -> Calibration:
        """About `n` samples from all over the set, evenly spaced, or all where there are fewer; whole batches, if the
        model fixes its size."""
        units = np.arange(len(self) // self._unit * self._unit).reshape(-1, self._unit)
        return self._view(self._rows[units[:: max(1, len(self) // max(n, self._unit))].ravel()])

    def in_batches_of(self, n: int) -> Calibration:
        """The same samples for a model that takes batches of `n` alone, whatever it declares."""
        found = self._view(self._rows)
        found._layout = copy(self._layout)
        found._layout.batch = n
        if len(self) < n:
            raise CalibrationError(f"{self.source}: {len(self)} samples, but the model takes batches of {n} alone")
        return found

    def split(self, held_out: float = 0.25, seed: int = 0) -> tuple[Calibration, Calibration]:
        """(rest, held out), disjoint, each in source order; the same seed gives the same split.

        Each side gets at least one sample (one batch, if the model fixes its size; whole batches stay
        together). With too few for two sides both are all of it, and `shared` says so.
        """
        if not 0 < held_out < 1:
            raise UsageError(f"held_out is {held_out}; give a part between 0 and 1")
        units = len(self) // self._unit
        if units < 2:
            halves = self._view(self._rows), self._view(self._rows)
            halves[0].shared = halves[1].shared = True
            return halves
        held = np.zeros(units, bool)
        count = min(max(round(held_out * units), 1), units - 1)
        held[np.random.default_rng(seed).permutation(units)[:count]] = True
        mask = np.repeat(held, self._unit)
        rows = self._rows[: len(mask)]  # a remainder that fills no batch is of no use to either side
        return self._view(rows[~mask]), self._view(rows[mask])

    def _view(self, rows: np.ndarray) -> Calibration:
        view = object.__new__(Calibration)
        view.__dict__.update(self.__dict__, _rows=rows)
        return view

    def _samples(self) -> Iterator[Arrays]:
        current = -1
        loaded: Arrays = {}
        for k, row in enumerate(self._rows, 1):
            if k % RELEASE == 0:  # pages of a file that is mapped, which were read
                on_disk.release(loaded.values())
            index = int(np.searchsorted(self._ends, row, side="right"))
            entry = self._entries[index]
            if index != current:
                current, loaded = index, {}  # let go of the last entry before the next is read
                loaded = entry.load()
            at = int(row - self._ends[index] + entry.count)
            yield self._layout.sample(loaded, at, f"{entry.name}: sample {row}")

    def _batches(self, size: int) -> Iterator[Arrays]:
        least = self.batch or 1
        pending: list[Arrays] = []
        made = 0
        for sample in self._samples():
            if pending and (len(pending) == size or not self._layout.alike(pending[0], sample)):
                if len(pending) >= least:
                    made += 1
                    yield self._layout.join(pending)
                pending = []
            pending.append(sample)
        if len(pending) >= least:
            made += 1
            yield self._layout.join(pending)
        if not made:
            raise CalibrationError(f"{self.source}: no {least} samples in a row of one shape, the model's batch")
