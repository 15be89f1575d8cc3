"""Unlabelled samples for a model, from whatever people have them in: archives, folders, images, Python.

Every source becomes a list of *entries*. An entry knows its name, its shapes and its count of samples without
its data being read; the data is read when a batch needs it, and only one entry is held at a time. Headers and
sizes are checked against a cap before a byte of data is read, nothing is ever unpickled, and the name of an
archive member is a key, never a path. What the numbers mean is not known here: no model is run.
"""

from __future__ import annotations

import importlib.util
import io
import math
import os
import re
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from onnxprune.errors import CalibrationError, FileError, PruneError, UsageError

if TYPE_CHECKING:
    from onnxprune.runtime.ports import InputSpec

Arrays = dict[str, np.ndarray]

GIB = 1 << 30
MEMORY_BYTES = 256 << 20  # unpacked samples above this go to a temporary file
HEADER_BYTES = 1 << 16  # numpy writes 128 bytes; a header may claim 4 GiB
LABELS = frozenset({"label", "labels", "target", "targets", "y", "y_true"})
IMAGES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FUNCTION = re.compile(r"(?P<path>.+\.py):(?P<name>[^\W\d]\w*)")
KINDS = "a .npz, a .npy, a folder of .npy, images or test_data_set_*, or file.py:function"


# ---- what a caller sees ----------------------------------------------------------------------------------


def open_calibration(
    source: Any,
    inputs: Sequence[InputSpec],
    *,
    limit: int | None = None,
    image: ImageSpec | None = None,
    max_bytes: int = 2 * GIB,
) -> Calibration:
    """The samples in `source`, checked against the model's `inputs` and readable as often as wanted.

    From disk: `.npz` keyed by input name (a single-input model takes any single key), `.npy` (single input),
    a folder of `.npy` in name order (a sample or a batch each), a folder of or one `test_data_set_*`
    (`input_0.pb`, ...), a folder of images, class folders included (needs `image`), `file.py:function`.
    From Python: an array, a dict of arrays, a list or iterable of dicts, arrays or (inputs..., label) tuples,
    a callable that returns one of these, a `CalibrationDataReader`.

    Generators, readers and other iterables are read once, here, and copied: in memory up to 256 MiB, then
    in an unnamed temporary file (in `TMPDIR`) that is gone with the last reference to it. So a callable that
    augments at random gives the same samples in every pass, and a split stays disjoint.

    `limit`: at most so many samples (but one batch, if the model fixes its size); the first ones, except that
    an image folder gives evenly spaced ones, as its first would be of one class. `max_bytes`: the most that
    an archive member may unpack to, or an iterable give.

    Raises CalibrationError (samples missing, unreadable, or unfit for the model; NaN and Inf when the sample
    is read), UsageError (a bad call, or images without `image`), FileError (no room for the temporary file).
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; give a positive number of samples")
    if not inputs:
        raise CalibrationError("the model has no inputs: there is nothing to calibrate with")
    read = _Reader(_Layout(inputs), limit, image, max_bytes)
    entries = read.source(source)
    return Calibration(read.layout, entries, source=read.title, ignored=tuple(read.ignored), limit=limit)


@dataclass(frozen=True)
class ImageSpec:
    """How an image becomes an input: resized to `size`, then `(pixel / scale - mean) / std` by channel.

    `fit`: "stretch" to the size, "crop" the centre after the short side was scaled to size / `crop`, or
    "pad" the long-side-scaled image with black on the right and below. `mean` and `std` are in the order of
    `order`, one number each or one a channel.
    """

    size: tuple[int, int]  # height, width
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 255.0
    layout: str = "nchw"
    order: str = "rgb"
    resize: str = "bilinear"
    fit: str = "stretch"
    crop: float = 1.0

    def __post_init__(self) -> None:
        for field, allowed in IMAGE_WORDS.items():
            if getattr(self, field) not in allowed:
                raise UsageError(f"image: {field}={getattr(self, field)!r}; use one of {', '.join(allowed)}")
        if len(self.size) != 2 or min(self.size) < 1:
            raise UsageError(f"image: size={self.size}; give height x width, such as 224x224")
        for field in ("mean", "std"):
            values = getattr(self, field)
            if len(values) not in (1, self.channels) or not np.isfinite(values).all():
                raise UsageError(f"image: {field}={values}; give 1 or {self.channels} finite numbers")
        if not (math.isfinite(self.scale) and self.scale != 0 and 0 not in self.std and 0 < self.crop <= 1):
            raise UsageError("image: scale and std must not be 0, and crop lies above 0 and up to 1")

    @property
    def channels(self) -> int:
        return 1 if self.order == "gray" else 3

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image, with its batch axis of 1."""
        return (1, self.channels, *self.size) if self.layout == "nchw" else (1, *self.size, self.channels)

    @classmethod
    def parse(cls, text: str) -> ImageSpec:
        """`size=224x224,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,layout=nchw,order=rgb,scale=255`."""
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or name not in known:
                raise UsageError(f"image: {part!r} is not name=value with a name of {', '.join(sorted(known))}")
            try:
                if name == "size":
                    values[name] = tuple(int(side) for side in value.lower().split("x"))
                elif name in ("mean", "std"):
                    values[name] = tuple(float(number) for number in value.split(":"))
                else:
                    values[name] = value.lower() if name in IMAGE_WORDS else float(value)
            except ValueError:
                raise UsageError(f"image: cannot read {part!r}; sizes are 224x224, lists 0.5:0.5") from None
        if "size" not in values:
            raise UsageError("image: size is missing; give height x width, such as size=224x224")
        return cls(**values)


IMAGE_WORDS = {
    "layout": ("nchw", "nhwc"),
    "order": ("rgb", "bgr", "gray"),
    "resize": ("bicubic", "bilinear", "nearest", "lanczos", "box"),
    "fit": ("stretch", "crop", "pad"),
}


class Calibration:
    """Samples that can be read again and again, in batches. `len` counts samples, not batches.

    `ignored` names what the source held besides inputs (labels). `shared` is true for the two halves of a
    split that had too few samples to part. `batch` is the batch size that the model fixes, or None.
    """

    def __init__(
        self,
        layout: _Layout,
        entries: Sequence[_Entry],
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

    def __repr__(self) -> str:
        shapes = ", ".join(f"{spec.name} {_shape(spec.shape)}" for spec in self._layout.inputs.values())
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
        for row in self._rows:
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


# ---- what fits a model -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lazy:
    """An array whose shape and dtype are known and whose data comes when asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]


def _held(array: np.ndarray) -> _Lazy:
    return _Lazy(array.shape, array.dtype, lambda: array)


@dataclass(frozen=True)
class _Entry:
    """Some samples that are read together: an archive, a file, an image, what an iterable gave."""

    name: str
    count: int
    arrays: Mapping[str, _Lazy]

    def load(self) -> Arrays:
        return {name: lazy.load() for name, lazy in self.arrays.items()}


class _Layout:
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

    def entry(self, name: str, given: Mapping[str, _Lazy]) -> _Entry:
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
                    f"{where} has shape {_shape(given[key].shape)}, the model wants {_shape(spec.shape)};"
                    " check the order of the axes and the preprocessing"
                )
        if len(set(counts.values())) > 1:
            raise CalibrationError(f"{name}: inputs differ in their number of samples: {counts}; cut them alike")
        return _Entry(name, next(iter(counts.values()), 1), given)

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


def _shape(shape: Iterable[int | str | None]) -> str:
    return "(" + ", ".join("?" if dim is None else str(dim) for dim in shape) + ")"


# ---- where samples come from -----------------------------------------------------------------------------


class _Reader:
    """One method a kind of source; each yields entries. `title` is what messages call the source."""

    def __init__(self, layout: _Layout, limit: int | None, image: ImageSpec | None, max_bytes: int) -> None:
        self.layout, self.image, self.max_bytes = layout, image, max_bytes
        self.limit = limit if limit is None else max(limit, layout.batch or 1)
        self.title = "samples"
        self.ignored: dict[str, None] = {}  # an ordered set

    def source(self, source: Any) -> list[_Entry]:
        if not isinstance(source, str | os.PathLike):
            return self.python(source)
        self.title = _shown(source)
        with _saying(self.title):
            return self.path(os.fspath(source))

    def enough(self, entries: Iterable[_Entry]) -> list[_Entry]:
        """As many entries as the limit needs, and no further one made."""
        taken: list[_Entry] = []
        count = 0
        for entry in entries:
            taken.append(entry)
            count += entry.count
            if self.limit is not None and count >= self.limit:
                break
        return taken

    # files

    def path(self, source: str) -> list[_Entry]:
        path = Path(source)
        if path.is_dir():
            return self.folder(path)
        if path.is_file() and path.suffix.lower() == ".npz":
            return [self.npz(path)]
        if path.is_file() and path.suffix.lower() == ".npy":
            return [self.npy(path)]
        function = FUNCTION.fullmatch(source)
        if function and Path(function["path"]).is_file():
            return self.function(Path(function["path"]), function["name"])
        what = "not a source of samples" if path.exists() else "not found"
        raise CalibrationError(f"{self.title}: {what}; give {KINDS}")

    def folder(self, path: Path) -> list[_Entry]:
        if (path / "input_0.pb").exists():
            return [self.test_data_set(path)]
        if sets := [child for child in path.glob("test_data_set_*") if child.is_dir()]:
            sets.sort(key=lambda child: (len(child.name), child.name))  # 2 before 10
            return self.enough(map(self.test_data_set, sets))
        if arrays := sorted(child for child in path.iterdir() if child.suffix.lower() == ".npy"):
            return self.enough(map(self.npy, arrays))
        if images := sorted(child for child in path.rglob("*") if child.suffix.lower() in IMAGES):
            return self.images(images)
        raise CalibrationError(f"{self.title}: no .npy, test_data_set_* or images in this folder; give {KINDS}")

    def single(self, name: str) -> str:
        if len(self.layout.inputs) == 1:
            return next(iter(self.layout.inputs))
        raise CalibrationError(f"{name}: one array, but the model has {self.wanted()}; use an .npz or dicts")

    def wanted(self) -> str:
        names = ", ".join(map(repr, self.layout.inputs))
        return f"the input{'s' if len(self.layout.inputs) > 1 else ''} {names}"

    def keyed(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given` by input name; labels are set aside, any other unknown or missing name is an error."""
        names = list(self.layout.inputs)
        unknown = [key for key in given if key not in names]
        other = [key for key in unknown if key not in LABELS]
        missing = [key for key in names if key not in given]
        if missing == names and len(names) == 1:
            candidates = other or unknown
            if len(candidates) == 1 and not {"..", ""} & set(re.split(r"[\\/]", candidates[0])):
                self.ignored.update(dict.fromkeys(key for key in unknown if key != candidates[0]))
                return {names[0]: given[candidates[0]]}
        if missing or other:
            what = f"has no {missing[0]!r}" if missing else f"has {other[0]!r}"
            keys = ", ".join(map(repr, given)) or "nothing"
            raise CalibrationError(f"{name}: {what}; the model has {self.wanted()}, this has {_clip(keys)}")
        self.ignored.update(dict.fromkeys(unknown))
        return {key: given[key] for key in names}

    def npz(self, path: Path) -> _Entry:
        name = _shown(path)
        with _saying(name), path.open("rb") as file:
            _check_pointer(name, file.read(8))
        with _saying(name), zipfile.ZipFile(path) as archive:
            members: dict[str, zipfile.ZipInfo] = {}
            for info in archive.infolist():
                key = info.filename.removesuffix(".npy")
                if key in members:
                    raise CalibrationError(f"{name}: two members are named {key!r}; save it again")
                members[key] = info
            chosen = self.keyed(name, members)
            return self.layout.entry(name, {key: self.member(path, archive, key, chosen[key]) for key in chosen})

    def member(self, path: Path, archive: zipfile.ZipFile, key: str, info: zipfile.ZipInfo) -> _Lazy:
        where = f"{_shown(path)}: input {key!r}"
        stored = info.compress_type == zipfile.ZIP_STORED
        if not stored and info.file_size > self.max_bytes:
            raise CalibrationError(
                f"{where} unpacks to {info.file_size:,} bytes, the cap is {self.max_bytes:,};"
                " use fewer samples, or np.savez, which does not compress"
            )
        with archive.open(info) as file:
            header = _read_header(where, file, info.file_size)
        if stored:  # its bytes lie in the archive as they are: map them
            with path.open("rb") as raw:
                raw.seek(info.header_offset)
                local = raw.read(30)
            start = info.header_offset + 30 + sum(struct.unpack("<HH", local[26:30])) + header.start
            if start + header.bytes > path.stat().st_size:
                raise CalibrationError(f"{where}: the archive is cut short; copy it again")
            return _Lazy(header.shape, header.dtype, partial(header.map, path, start))
        shape = header.shape
        if (
            self.limit is not None
            and key in self.layout.batched
            and len(shape) == len(self.layout.inputs[key].shape)
            and not header.fortran
        ):
            shape = (min(shape[0], self.limit), *shape[1:])  # unpack no rows beyond the limit
        return _Lazy(shape, header.dtype, cache(partial(_unpack, where, path, info, header, shape)))

    def npy(self, path: Path) -> _Entry:
        name = _shown(path)
        key = self.single(name)
        with _saying(name), path.open("rb") as file:
            header = _read_header(name, file, path.stat().st_size)
        lazy = _Lazy(header.shape, header.dtype, partial(header.map, path, header.start))
        return self.layout.entry(name, {key: lazy})

    def test_data_set(self, folder: Path) -> _Entry:
        arrays = {}
        for index, key in enumerate(self.layout.inputs):
            path = folder / f"input_{index}.pb"
            # Read again when a batch needs it: a thousand sets are not held in memory.
            arrays[key] = replace(_held(self.tensor(path)), load=partial(self.tensor, path))
        return self.layout.entry(_shown(folder), arrays)

    def tensor(self, path: Path) -> np.ndarray:
        import onnx

        name = _shown(path)
        with _saying(name):
            if path.stat().st_size > self.max_bytes:
                raise CalibrationError(f"{name}: {path.stat().st_size:,} bytes, the cap is {self.max_bytes:,}")
            tensor = onnx.TensorProto()
            tensor.ParseFromString(path.read_bytes())
            if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
                raise CalibrationError(f"{name}: its data lies in another file; save it within")
            if any(dim < 0 for dim in tensor.dims):
                raise CalibrationError(f"{name}: a negative dimension; save it again")
            return onnx.numpy_helper.to_array(tensor)

    # images

    def images(self, paths: list[Path]) -> list[_Entry]:
        spec = self.image
        if spec is None:
            raise UsageError(
                f"{self.title}: a folder of images; say how the model reads them:"
                " image=ImageSpec(...), or --image size=224x224,mean=...,std=..."
            )
        if importlib.util.find_spec("PIL") is None:
            raise CalibrationError(f'{self.title}: images need Pillow; pip install "onnxprune[images]"')
        key = self.single(self.title)
        dtype = self.layout.dtypes[key]
        if self.limit is not None and self.limit < len(paths):
            paths = [paths[i] for i in np.linspace(0, len(paths) - 1, self.limit).round().astype(int)]
        return [
            self.layout.entry(_shown(path), {key: _Lazy(spec.shape, dtype, partial(_read_image, path, spec, dtype))})
            for path in paths
        ]

    # Python

    def function(self, path: Path, name: str) -> list[_Entry]:
        with importable(path.parent):
            return self.python(_function(path, name, self.title))  # read within: it may import its neighbours late

    def python(self, source: Any) -> list[_Entry]:
        if isinstance(source, Mapping) or hasattr(source, "__array__"):
            return [self.item(self.title, source)]
        if hasattr(source, "get_next"):
            entries = self.copies(_drain(source))
            if hasattr(source, "rewind"):
                with _saying(self.title):
                    source.rewind()  # leave the caller's reader as it was
            return entries
        if isinstance(source, list | tuple):
            return self.enough(self.item(f"{self.title}: item {i}", item) for i, item in enumerate(source))
        if hasattr(source, "__iter__") and not isinstance(source, str | bytes | os.PathLike):
            return self.copies(source)
        if callable(source):
            with _saying(self.title):
                made = source()
            if hasattr(made, "__iter__") or hasattr(made, "get_next") or not callable(made):
                return self.python(made)
        raise CalibrationError(
            f"{self.title}: {type(source).__name__} is no source of samples; give {KINDS}, arrays or dicts"
        )

    def item(self, name: str, item: Any) -> _Entry:
        """An entry of one dict, one array, or a tuple (inputs..., labels)."""
        if isinstance(item, Mapping):
            item = self.keyed(name, {str(key): value for key, value in item.items()})
        elif isinstance(item, list | tuple) and item and all(hasattr(part, "shape") for part in item):
            names = list(self.layout.inputs)
            if len(item) < len(names):
                raise CalibrationError(f"{name}: {len(item)} arrays, but the model has {self.wanted()}")
            self.ignored.update(dict.fromkeys(f"element {i}" for i in range(len(names), len(item))))
            item = dict(zip(names, item, strict=False))
        else:
            item = {self.single(name): item}
        arrays = {}
        for key, value in item.items():
            with _saying(f"{name}: input {key!r}"):
                arrays[key] = _held(np.asarray(value))
        return self.layout.entry(name, arrays)

    def copies(self, source: Iterable[Any]) -> list[_Entry]:
        """Copies of all items: a generator cannot be read twice, and readers reuse their buffers."""
        store = _Store()

        def entries() -> Iterator[_Entry]:
            for i, item in enumerate(source):
                entry = self.item(f"{self.title}: item {i}", item)
                kept = {key: store.keep(array) for key, array in entry.load().items()}
                if store.size > self.max_bytes:
                    raise CalibrationError(f"{entry.name}: over {self.max_bytes:,} bytes by now; set a limit")
                yield replace(entry, arrays=kept)

        with _saying(self.title):
            taken = self.enough(entries())
        store.seal()
        return taken


def _drain(reader: Any) -> Iterator[Any]:
    while (item := reader.get_next()) is not None:
        yield item


# ---- bytes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    start: int  # bytes before the data

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def map(self, path: Path, start: int) -> np.ndarray:
        with _saying(_shown(path)):
            if not self.bytes:  # an empty map is an error
                return np.empty(self.shape, self.dtype)
            data = np.memmap(path, np.uint8, mode="r", offset=start, shape=(self.bytes,))
            return self.view(self.shape, data)

    def view(self, shape: tuple[int, ...], data: Any) -> np.ndarray:
        return np.ndarray(shape, self.dtype, data, order="F" if self.fortran else "C")


def _read_header(where: str, file: IO[bytes], size: int) -> _Header:
    """The header of an .npy of `size` bytes; its shape has been held against the size, no data is read."""
    magic = file.read(8)
    _check_pointer(where, magic)
    if len(magic) < 8 or not magic.startswith(b"\x93NUMPY"):
        raise CalibrationError(f"{where}: not an .npy array; save it with np.save or np.savez")
    wide = magic[6] > 1
    length = int.from_bytes(file.read(4 if wide else 2), "little")
    if length > HEADER_BYTES or magic[6] > 2:
        raise CalibrationError(f"{where}: a header of {length:,} bytes, format {magic[6]}; save plain numbers")
    text = file.read(length)
    start = 8 + (4 if wide else 2) + length
    read = np.lib.format.read_array_header_2_0 if wide else np.lib.format.read_array_header_1_0
    try:
        shape, fortran, dtype = read(io.BytesIO(length.to_bytes(4 if wide else 2, "little") + text))
    except Exception as error:  # the header is a literal that numpy evaluates: many ways to be wrong
        raise CalibrationError(f"{where}: not a header of an .npy array: {_line(error)}") from error
    header = _Header(shape, dtype, fortran, start)
    if dtype.hasobject:
        raise CalibrationError(f"{where} holds pickled Python objects, which are never loaded; save plain numbers")
    if min(shape, default=1) < 0 or header.bytes > size - start:
        raise CalibrationError(
            f"{where}: the header says {_shape(shape)} {dtype}, {header.bytes:,} bytes, but"
            f" {size - start:,} are there; save it again"
        )
    return header


def _check_pointer(where: str, lead: bytes) -> None:
    if lead == b"version ":
        raise CalibrationError(f"{where}: a Git LFS pointer, not the data; run git lfs pull")


def _unpack(where: str, path: Path, info: zipfile.ZipInfo, header: _Header, shape: tuple[int, ...]) -> np.ndarray:
    """The first rows of a compressed member, in memory or, where they are many, in a temporary file."""
    left = math.prod(shape) * header.dtype.itemsize
    store = _Store()
    with _saying(where), zipfile.ZipFile(path) as archive, archive.open(info) as file:
        file.read(header.start)
        if left <= MEMORY_BYTES:
            data = file.read(left)
            if len(data) < left:
                raise EOFError("the data is cut short")
            return header.view(shape, data)
        while left:
            chunk = file.read(min(left, 1 << 24))
            if not chunk:
                raise EOFError("the data is cut short")
            store.spill(chunk)
            left -= len(chunk)
    store.seal()
    return header.view(shape, store.map)


class _Store:
    """Copies of arrays: in memory up to MEMORY_BYTES, then in one temporary file without a name.

    The file is unlinked from the start (or marked so, on Windows): not even `kill -9` leaves it behind.
    """

    def __init__(self) -> None:
        self.size = 0
        self.file: IO[bytes] | None = None
        self.map: np.ndarray | None = None

    def keep(self, array: np.ndarray) -> _Lazy:
        self.size += array.nbytes
        if self.size <= MEMORY_BYTES:
            return _held(np.array(array, order="C"))
        start = self.spill(array.tobytes())
        shape, dtype = array.shape, array.dtype
        return _Lazy(shape, dtype, lambda: np.ndarray(shape, dtype, self.map, offset=start))

    def spill(self, data: bytes) -> int:
        with _no_room():
            if self.file is None:
                self.file = tempfile.TemporaryFile(prefix="onnxprune-")
            start = self.file.tell()
            self.file.write(data)
        return start

    def seal(self) -> None:
        """Map what was spilled. The map keeps the bytes; the file itself can go."""
        if self.file is not None:
            with _no_room(), self.file:
                self.file.flush()
                self.map = np.memmap(self.file, np.uint8, mode="r")  # type: ignore[call-overload]
            self.file = None


def _read_image(path: Path, spec: ImageSpec, dtype: np.dtype) -> np.ndarray:
    from PIL import Image

    height, width = spec.size
    filters = Image.Resampling
    resample = filters[spec.resize.upper()]
    with _saying(_shown(path)):  # Pillow raises all sorts, its bomb check included
        with Image.open(path) as opened:
            image = opened.convert("L" if spec.order == "gray" else "RGB")
        if spec.fit == "stretch":
            image = image.resize((width, height), resample)
        else:
            ratios = height / image.height, width / image.width
            ratio = max(ratios) / spec.crop if spec.fit == "crop" else min(ratios)
            sides = max(round(image.width * ratio), 1), max(round(image.height * ratio), 1)
            image = image.resize(sides, resample)
            left, top = ((sides[0] - width) // 2, (sides[1] - height) // 2) if spec.fit == "crop" else (0, 0)
            image = image.crop((left, top, left + width, top + height))  # beyond the edge is black
        pixels: np.ndarray = np.asarray(image, np.float32).reshape(height, width, spec.channels)
    if spec.order == "bgr":
        pixels = pixels[..., ::-1]
    pixels = (pixels / spec.scale - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)
    if dtype.kind in "ui":
        pixels = np.clip(np.rint(pixels), np.iinfo(dtype).min, np.iinfo(dtype).max)
    if spec.layout == "nchw":
        pixels = pixels.transpose(2, 0, 1)
    return pixels[None].astype(dtype)


# ---- errors and names ------------------------------------------------------------------------------------


@contextmanager
def _saying(where: str) -> Iterator[None]:
    """Whatever damaged files and other people's code raise, as one line that names `where`."""
    try:
        yield
    except PruneError:
        raise
    except Exception as error:
        raise CalibrationError(f"{where}: cannot be read: {type(error).__name__}: {_line(error)}") from error


@contextmanager
def _no_room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = _shown(tempfile.gettempdir())
        raise FileError(f"{where}: samples do not fit: {_line(error)}; use fewer, or set TMPDIR") from error


def load_function(spec: str) -> tuple[Callable[..., Any], Path]:
    """The function that `file.py:name` names, and the file's folder, to be `importable` while it runs.

    Raises:
        CalibrationError: there is no such file or function, or the file raises.
    """
    found = FUNCTION.fullmatch(spec)
    if found is None or not Path(found["path"]).is_file():
        raise CalibrationError(f"{_shown(spec)}: not found; give file.py:function")
    path = Path(found["path"])
    with importable(path.parent), _saying(_shown(spec)):
        return _function(path, found["name"], _shown(spec)), path.parent


def _function(path: Path, name: str, title: str) -> Callable[..., Any]:
    """A function out of a file, which is run for it."""
    module = ModuleType(f"onnxprune_samples_{path.stem}")
    sys.modules[module.__name__] = module  # dataclasses look their module up by name
    module.__file__ = str(path)
    exec(compile(path.read_bytes(), path, "exec"), module.__dict__)  # an import would leave a __pycache__
    function = getattr(module, name, None)
    if not callable(function):
        raise CalibrationError(f"{title}: no function {name!r} in it; check the name")
    return function  # type: ignore[no-any-return]


_NEIGHBOURS: dict[str, dict[str, ModuleType]] = {}
"""Modules that came from a user's folder, by folder: two folders may each have a `common.py`."""


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """`folder` on the import path, as if the file in it had been run.

    What is imported from it is put aside afterwards, so that a file in another folder finds its own neighbours.
    """
    entry = str(folder.resolve())
    if entry in sys.path:  # the program's own modules
        yield
        return
    own = _NEIGHBOURS.setdefault(entry, {})
    before = dict(sys.modules)
    sys.modules.update(own)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
        tops = {name for name, module in sys.modules.items() if "." not in name and _stands_in(module, entry)}
        for name, module in list(sys.modules.items()):
            if before.get(name) is module or name.partition(".")[0] not in tops:
                continue
            own[name] = module
            if name in before:
                sys.modules[name] = before[name]
            else:
                del sys.modules[name]


def _stands_in(module: ModuleType, folder: str) -> bool:
    """Whether a module is `folder/name.py` or `folder/name/`: what that entry of the import path alone brings."""
    places = [getattr(module, "__file__", None)] if not hasattr(module, "__path__") else list(module.__path__)
    return any(os.path.dirname(os.path.realpath(p)) == folder for p in places if p)


def _shown(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return _clip("".join(c if c.isprintable() else "?" for c in text))


def _clip(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
