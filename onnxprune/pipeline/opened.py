"""A model opened for pruning: read, checked, run once with sizes that it takes, analysed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain, islice
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx

from onnxprune.channels import Analysed, Channels, find_channels, written_by_optimiser
from onnxprune.errors import CalibrationError, LoadError, ModelError, UnsupportedError, UsageError, one_line
from onnxprune.files.forms import proto_of
from onnxprune.files.read import check_model, read_model
from onnxprune.graph import sparse
from onnxprune.graph.barrier import Barrier
from onnxprune.graph.behaviour import takes_any_batch
from onnxprune.graph.layers import check_weights
from onnxprune.graph.layouts import plain_layouts
from onnxprune.graph.model import Graph, digest
from onnxprune.graph.pairs_of_integers import in_pairs
from onnxprune.graph.rehearsal import REMEDY, Rehearsal, unless_refused
from onnxprune.graph.said import NOTHING, Said
from onnxprune.graph.seeds import with_seeds
from onnxprune.graph.shapes import Observed
from onnxprune.graph.stops import suspicious
from onnxprune.graph.unfused import unfused
from onnxprune.graph.work import uncounted
from onnxprune.measure.cost import Cost, cost_of
from onnxprune.measure.kinds.asked import said_of
from onnxprune.measure.telling import doubts
from onnxprune.numerics import on_disk
from onnxprune.pipeline.asked import engine_of, run_batch
from onnxprune.pipeline.branches import followed
from onnxprune.pipeline.settings import Settings
from onnxprune.protobuf.serialize import byte_size
from onnxprune.runtime import ports, sessions
from onnxprune.runtime.child import Stopped
from onnxprune.samples.calibration import Calibration, open_calibration
from onnxprune.samples.digest import digest as digest_of
from onnxprune.samples.images import ImageSpec
from onnxprune.samples.partition import Partition
from onnxprune.timing.bench_inputs import batch_of
from onnxprune.timing.share import time_share

LOOKED_AT = 192
"""Samples that are looked at for doubts."""
ModelLike = str | PathLike[str] | onnx.ModelProto | bytes | Any
"""A path, a ModelProto, its bytes, or a model of one of `files.forms`."""


@dataclass(frozen=True)
class Subject:
    """A model opened for pruning: checked, run once, analysed.

    `batch` is the only batch that it takes although it declares that it takes any; None where it keeps its word.
    `sparse` are the tensors that are stored sparse in the file, by name; `model` has them dense.
    `barrier` is what was split off as it does not run: then all else is of the part that does.
    `asked` is what was said about reading the model and its samples, `axes` which axes count these, `said`
    what was said of its outputs.
    """

    model: onnx.ModelProto
    graph: Graph
    feeds: Mapping[str, np.ndarray]
    channels: Channels
    digest: str
    path: Path | None = None
    calibration: Calibration | None = None
    warnings: list[str] = field(default_factory=list)
    batch: int | None = None
    sparse: Mapping[str, onnx.SparseTensorProto] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, int] = field(default_factory=dict)
    said: Said = NOTHING
    barrier: Barrier | None = None
    parts: dict[int, Partition] = field(default_factory=dict, repr=False, compare=False)

    @property
    def net(self) -> Analysed:
        """The network and its analysis."""
        return Analysed(self.graph, self.channels, self.feeds, self.said)

    @cached_property
    def doubts(self) -> tuple[str, ...]:
        """What speaks against the samples, in words."""
        if self.calibration is None:
            return ()
        parts = Partition.of(self.calibration, 0)
        held = 0 if parts.held.shared else len(parts.held)
        return tuple(
            doubts(self.net, on_disk.kept(self.calibration.spaced(LOOKED_AT).batches(self.net.batch)), held=held)
        )

    def partition(self, seed: int) -> Partition | None:
        """The samples by what they serve, parted once for a seed; None where there are none."""
        if self.calibration is None:
            return None
        if seed not in self.parts:
            self.parts[seed] = Partition.of(self.calibration, seed)
        return self.parts[seed]

    @cached_property
    def samples_digest(self) -> str | None:
        """Of the samples, where there are any."""
        return None if self.calibration is None else digest_of(self.calibration)

    @property
    def specs(self) -> tuple[ports.InputSpec, ...]:
        """The inputs, as the model really takes them."""
        return ports.in_batches_of(ports.with_batch_axes(ports.input_specs(self.model), self.axes), self.batch)

    def timed(self, batch: int = 1) -> dict[str, np.ndarray]:
        """Feeds of so many samples, the first one repeated, for timing.

        Raises:
            UsageError: the model takes no such batch.
        """
        feeds = ports.in_batch(self.specs, self.feeds, batch)
        own = batch_of(feeds, batch)
        if batch not in (1, own):
            raise UsageError(f"a batch of {batch} was asked for, but the model fixes its batch at {own}; drop --batch")
        return feeds

    def check_timing(self, settings: Settings) -> None:
        """Find out at once, not after minutes of other work, what would stop a timed run.

        Raises:
            ProviderError: the provider is not there.
            UsageError: the model does not take the batch.
        """
        engine_of(settings).check()
        if (batch := run_batch(settings)) > 1:
            feeds = self.timed(batch)
            try:
                sessions.open_session(self.model, pack=False).run(feeds)
            except ModelError as error:
                raise UsageError(f"the model does not run with a batch of {batch} ({error}); drop --batch") from error

    def cost(self) -> Cost:
        """The original's cost."""
        found = cost_of(self.graph, self.channels.shapes, self.channels.ran)
        if self.sparse or self.barrier is not None:
            found = replace(found, bytes=byte_size(self.whole_of(sparse.packed(self.model, self.sparse))))
        return replace(found, uncounted_time=self._uncounted_time) if found.uncounted else found

    def whole_of(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """What is written of a model that was made of this one: what does not run is back in it."""
        return model if self.barrier is None else self.barrier.whole_of(model)

    def part_of(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Of a model that was written, what can be compared with this one."""
        return model if self.barrier is None else self.barrier.part_of(model)

    @cached_property
    def _uncounted_time(self) -> float | None:
        """The share of a run's time that nodes take whose multiply-accumulates are not known, measured here."""
        nodes = uncounted(self.graph, self.channels.shapes, self.channels.ran)
        return time_share(self.model, self.feeds, {n.node for n in nodes})


def open_model(
    model: ModelLike,
    *,
    calibration: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int | None = None,
    image: ImageSpec | None = None,
    input_value: Mapping[str, Sequence[float]] | None = None,
    batch_axis: Mapping[str, int] | None = None,
    prune_statistics: bool = False,
    output_kind: Mapping[str, str] | None = None,
    weight: Mapping[str, float] | None = None,
    trusted: bool = False,
) -> Subject:
    """Read, check, run once and analyse a model.

    Args:
        model: a path, or a model in memory (left untouched): a ModelProto, bytes, an `onnx_graphsurgeon.Graph` or an
            `onnx_ir.Model`.
        calibration: unlabelled samples in any form that `open_calibration` takes, or None.
        input_shapes: sizes for dynamic axes, by input name; else the samples' sizes, else a guess.
        samples: use at most so many samples.
        image: how to turn a folder of images into samples.
        input_value: numbers for inputs that are the same for all samples, by name; samples need not have them.
        batch_axis: the axis that counts samples, by input name, where it is not the first and is not found.
        prune_statistics: also find channels over which a normalization takes its mean.
        output_kind, weight: what outputs are for, and how much each counts, by name, as in `Settings`.
        trusted: whether the model's first runs are made in this process; else in children that can be killed.

    Raises:
        ModelError, CalibrationError, FileError: what was given cannot be used.
    """
    held = proto_of(model)
    path = None if held is not None else Path(cast(str, model))
    proto = check_model(held) if held is not None else read_model(cast(Path, path))
    opening = _Opening(
        Rehearsal("model" if path is None else str(path), trusted), digest(proto), path,
        _Samples(calibration, samples, image), input_shapes, input_value or {}, batch_axis, prune_statistics,
        output_kind, weight,
    )  # fmt: skip
    barriers = _split(proto, opening) if suspicious(proto) else []  # before samples are read that can be read but once
    if not barriers:
        try:
            return opening.subject(proto)
        except LoadError:
            barriers = _split(proto, opening)
            if not barriers:
                raise
    for barrier in barriers[:-1] if opening.samples.may_hold({p.name for p in barriers[0].fed}) else ():
        with contextlib.suppress(CalibrationError):  # the samples do not have what the nodes that do not run make
            return opening.subject(barrier.part, barrier)
    return opening.subject(barriers[-1].part, barriers[-1])


@dataclass
class _Samples:
    """Samples as they were given, read once however often a model is opened with them."""

    source: Any
    limit: int | None
    image: ImageSpec | None
    _opened: tuple[Any, Calibration] | None = field(default=None, init=False)

    def may_hold(self, names: set[str]) -> bool:
        """Whether they may have these tensors; of what can be read but once, the first item is looked at."""
        if not isinstance(self.source, Iterator):
            return True
        first = list(islice(self.source, 1))
        self.source = chain(first, self.source)
        return all(isinstance(item, Mapping) and names <= item.keys() for item in first)

    def open(self, specs: Sequence[ports.InputSpec], values: Mapping[str, np.ndarray]) -> Calibration | None:
        """For these inputs; None where there are none."""
        if self.source is None:
            return None
        if self._opened is None or self._opened[0] != specs:
            data = open_calibration(self.source, specs, limit=self.limit, image=self.image, values=values)
            self._opened = specs, data
        return self._opened[1]


@dataclass(frozen=True)
class _Opening:
    """How a model is opened, as `open_model` was asked: what it is given, and what of that is handed on."""

    first: Rehearsal
    identity: str
    path: Path | None
    samples: _Samples
    input_shapes: Mapping[str, Sequence[int]] | None
    input_value: Mapping[str, Sequence[float]]
    batch_axis: Mapping[str, int] | None
    prune_statistics: bool
    output_kind: Mapping[str, str] | None
    weight: Mapping[str, float] | None

    @property
    def asked(self) -> dict[str, Any]:
        """What a plan remembers of it."""
        return {
            "input_shapes": self.input_shapes and {name: list(sizes) for name, sizes in self.input_shapes.items()},
            "image": self.samples.image and asdict(self.samples.image),
            "output_kind": self.output_kind and dict(self.output_kind),
            "weight": self.weight and dict(self.weight),
        }

    def subject(self, proto: onnx.ModelProto, barrier: Barrier | None = None) -> Subject:
        """The model, or the part of one that runs, run once and analysed.

        Raises:
            LoadError: it does not run at all.
            ModelError, CalibrationError: as `open_model`.
        """
        first, input_shapes = self.first, self.input_shapes
        proto, packed = sparse.unpacked(with_seeds(in_pairs(unfused(plain_layouts(proto)))))
        specs = ports.with_batch_axes(ports.input_specs(proto), self.batch_axis)
        if barrier is not None and input_shapes:  # those of what is not run are not needed
            lost = {o for n in barrier.whole.graph.node for o in n.output} - {s.name for s in specs}
            input_shapes = {name: sizes for name, sizes in input_shapes.items() if name not in lost}
        values = ports.values_of(specs, self.input_value)
        said = said_of(self.output_kind, self.weight, [o.name for o in proto.graph.output])
        if not first.trusted:
            ports.check_size(specs, first.label)
        data = self.samples.open(specs, values)
        feeds: Mapping[str, np.ndarray]
        if data is not None and not input_shapes:
            feeds = data.first(1)
        else:
            feeds = ports.default_feed(specs, shapes=input_shapes, values=values)
        graph = Graph(proto)
        batch = None
        try:
            feeds, observed = _first_run(graph, specs, feeds, first, values, guess=data is None and not input_shapes)
        except (Stopped, LoadError):
            raise
        except ModelError as error:
            batch, feeds, observed = _other_batch(graph, specs, feeds, () if input_shapes else BATCHES, first, error)
        else:
            batch = _only_batch(graph, specs, feeds, observed, first, sampled=data is not None)
        if data is not None and batch is not None:
            data = data.in_batches_of(batch)
            feeds = feeds if input_shapes else data.first(1)
        graph, observed, notes = followed(graph, observed, specs, feeds, first)
        if not first.trusted:
            _check_axes(graph, observed, feeds, first.label)
        check_weights(graph, observed.shapes, first.label)
        reasons = {} if barrier is None else barrier.reasons()
        notes += [] if barrier is None else barrier.in_words()
        notes += written_by_optimiser(graph)
        with first.running(graph.model, feeds):
            channels = find_channels(graph, observed, prune_statistics=self.prune_statistics, reasons=reasons)
        return Subject(
            graph.model, graph, feeds, channels, self.identity, self.path, data, notes, batch=batch, sparse=packed,
            asked=self.asked, axes=self.batch_axis or {}, said=said, barrier=barrier,
        )  # fmt: skip


def _split(proto: onnx.ModelProto, opening: _Opening) -> list[Barrier]:
    """Ways to open a model that does not load without the nodes that ONNX Runtime cannot run, best first; none where
    it is not such nodes that it does not load for.

    Raises:
        UnsupportedError: nothing runs before these.
    """
    stops = opening.first.stopping(proto, opening.input_shapes)
    if not stops:
        return []
    found = [Barrier.of(proto, stops, opening.input_shapes, feed=feed) for feed in (True, False)]
    runs = [b for b in found if any(o.name for o in b.part.graph.output) and b.part.graph.node]
    if not runs:
        why = f"{found[-1].in_words()[0]}, and nothing that can be pruned runs before it"
        remedy = "state the sizes of what it makes (--input-shape TENSOR=..., or value_info in the file)"
        raise UnsupportedError(one_line(f"{opening.first.label}: {why}; {remedy}"))
    return runs if found[0].fed else runs[-1:]


LONG_AXIS, AXES = 1 << 20, 1 << 27
"""An axis may be as long whatever is fed; all together may have so many places: each is looked at."""


def _check_axes(graph: Graph, observed: Observed, feeds: Mapping[str, np.ndarray], label: str) -> None:
    """ModelError where activations have axes blown up far beyond what is fed."""
    most, places = max(LONG_AXIS, 64 * sum(v.size for v in feeds.values())), 0
    for name, shape in observed.shapes.items():
        if name in graph.initializers or graph.constant(name) is not None:  # stored, however long
            continue
        places += sum(shape)
        if max(shape, default=0) > most or places > AXES:
            what = f"tensor {name!r} has shape {list(shape)}, too long to be analysed"
            raise ModelError(one_line(f"{label}: {what}; {REMEDY}"))


BATCHES = (2, 4, 8, 16, 32, 64)
"""Batches to try where a model that declares any batch does not run with one sample."""


def _other_batch(
    graph: Graph,
    specs: Sequence[ports.InputSpec],
    feeds: Mapping[str, np.ndarray],
    batches: Sequence[int],
    first: Rehearsal,
    error: ModelError,
) -> tuple[int, Mapping[str, np.ndarray], Observed]:
    """What a model that declares any batch takes instead of the one it has just failed with: the batch that it was
    exported with, if it is a usual one."""
    one = sum(feeds[s.name].nbytes for s in specs if ports.open_batch(s))
    for batch in batches:
        if not 0 < batch * one <= ports.MAX_FED_BYTES:
            break
        other = ports.in_batch(specs, feeds, batch)
        with unless_refused(str(error)):
            return batch, other, first.observe(graph, other)
    raise error


def _only_batch(
    graph: Graph,
    specs: Sequence[ports.InputSpec],
    feeds: Mapping[str, np.ndarray],
    observed: Observed,
    first: Rehearsal,
    *,
    sampled: bool,
) -> int | None:
    """The batch of the feeds, where the model declares any batch and runs with no other; else None.

    Only looked at where other batches would be used, and where some node may not take them.
    """
    own = next((feeds[s.name].shape[s.batch_axis] for s in specs if ports.open_batch(s)), None)
    running = [n for n in graph.nodes.values() if any(graph.constant(o) is None for o in n.output if o)]
    free = all(map(ports.open_batch, specs)) and all(takes_any_batch(graph, n, observed.shapes) for n in running)
    if own is None or (own == 1 and not sampled) or free:
        return None
    other = ports.in_batch(specs, feeds, 2 if own == 1 else 1)
    with unless_refused():
        first.run(graph.model, other)
        return None
    return own


GUESSES = (96, 32, 640, 299, 512)
"""Sizes to try for dynamic image axes after the usual 224."""
LINES = ((48, 320), (32, 100), (32, 320))
"""Heights and widths of text lines: recognisers squeeze the height away, so only theirs fits."""


def _first_run(
    graph: Graph,
    specs: Sequence[ports.InputSpec],
    feeds: Mapping[str, np.ndarray],
    first: Rehearsal,
    values: Mapping[str, np.ndarray],
    *,
    guess: bool,
) -> tuple[Mapping[str, np.ndarray], Observed]:
    """Run the model once. When nobody said how large a dynamic input is, other usual sizes are tried as well."""
    try:
        return feeds, first.observe(graph, feeds)
    except (Stopped, LoadError):
        raise
    except ModelError as error:
        unsaid = [s for s in specs if s.name not in values]
        numbers = [s for s in unsaid if ports.is_number(s)]
        if not guess or not any(map(ports.open_sizes, specs)):
            if guess and numbers:
                raise ModelError(f"{error}; say what they are: {ports.shape_hint(numbers)}") from error
            raise
        tried = []
        if [len(s.shape) for s in specs] == [4]:
            shape = next(iter(feeds.values())).shape
            for size in LINES:
                with contextlib.suppress(UsageError):  # a fixed axis says otherwise
                    tried.append(ports.default_feed(specs, shapes={specs[0].name: (*shape[:2], *size)}))
        refusal = f"{error}; say what sizes it takes: {ports.shape_hint(unsaid)}"
        for other in (*tried, *(ports.default_feed(specs, size=size, values=values) for size in GUESSES)):
            with unless_refused(refusal):
                return other, first.observe(graph, other)
        raise ModelError(refusal) from error
