"""How much each place can lose: every group is cut alone, to several widths, every residual block dropped alone, and
the damage to the outputs measured.

Measurements are kept in a file as they come, rewritten whole each time: a run that was cut short goes on where it
stopped, and a later one with more widths measures only those. One floor above `api`: it prints nothing. Rows have a
kind.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import __version__
from onnxprune.channels import ChannelGroup
from onnxprune.decide.blocks import AnyBlock, all_blocks, may_go
from onnxprune.decide.curves import Curve
from onnxprune.decide.limits import Limits
from onnxprune.decide.study import trial_samples, trials_of
from onnxprune.decide.trials import SHARES, Trials
from onnxprune.elsewhere.spread import Elsewhere
from onnxprune.elsewhere.tasks import Evaluate, Task
from onnxprune.errors import FileError, UnsupportedError, UsageError, unknown
from onnxprune.files.text import read_text
from onnxprune.files.write import atomic_write_text, ensure_writable
from onnxprune.graph.work import work
from onnxprune.measure.cost import CostModel, count_macs
from onnxprune.numerics import on_disk
from onnxprune.parallel import bounded, one_blas_thread, within
from onnxprune.pipeline.asked import Progress, unmatched
from onnxprune.pipeline.block_trials import block_damages
from onnxprune.pipeline.candidates import why_not
from onnxprune.pipeline.looking import BLOCK_SAMPLES
from onnxprune.pipeline.opened import ModelLike, Subject, open_model
from onnxprune.report.alone import Point, Row
from onnxprune.report.sensitivity import Sensitivity, merged
from onnxprune.samples.calibration import Calibration
from onnxprune.samples.digest import digest
from onnxprune.samples.images import ImageSpec
from onnxprune.samples.partition import Partition

METHODS = ("channels", "blocks")
"""Kinds of cuts that are tried."""
STEPS = 8


def sensitivity(
    model: ModelLike,
    calibration: Any,
    *,
    path: str | Path | None = None,
    force: bool = False,
    steps: int = STEPS,
    widths: Sequence[float] | None = None,
    methods: Collection[str] = METHODS,
    include: str | None = None,
    exclude: str | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int | None = None,
    image: ImageSpec | None = None,
    input_value: Mapping[str, Sequence[float]] | None = None,
    batch_axis: Mapping[str, int] | None = None,
    prune_statistics: bool = False,
    output_kind: Mapping[str, str] | None = None,
    weight: Mapping[str, float] | None = None,
    trusted: bool = False,
    seed: int = 0,
    threads: int | None = None,
    memory: int | None = None,
    backend: str | None = None,
    address: str | None = None,
    store: str | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Damage to the outputs against the kept width, for every group of channels cut alone, and of every block dropped.

    Args:
        model, calibration, input_shapes, samples, image, input_value, batch_axis, prune_statistics, output_kind,
            weight, trusted: as for `open_model`.
        path: where measurements are kept; the file of an earlier run on the same model and samples is gone on with.
        force: replace a file at `path` that holds something else.
        steps: measure at that many widths, evenly spaced below the full one.
        widths: kept shares instead, each between 0 and 1.
        methods: "channels", "blocks" or both.
        include, exclude: regular expressions on the names of groups and their weights, and of the nodes in a block.
        seed, threads, memory, backend, address, store: as in `Settings`.
        progress: called with (phase, done, total).

    Raises:
        PruneError: as `prune`; FileError where `path` holds other measurements.
    """
    subject = open_model(
        model,
        calibration=calibration,
        input_shapes=input_shapes,
        samples=samples,
        image=image,
        input_value=input_value,
        batch_axis=batch_axis,
        prune_statistics=prune_statistics,
        output_kind=output_kind,
        weight=weight,
        trusted=trusted,
    )
    return measure(
        subject,
        path=path,
        force=force,
        shares=shares(steps, widths),
        methods=methods,
        limits=Limits(1, 1, include, exclude),
        seed=seed,
        threads=threads,
        memory=memory,
        elsewhere=Elsewhere(backend, address, store),
        progress=progress,
    )


def shares(steps: int = STEPS, widths: Sequence[float] | None = None) -> tuple[float, ...]:
    """The kept shares to measure at.

    Raises:
        UsageError: fewer than one step, or a share that is not between 0 and 1.
    """
    if widths is None:
        if not 1 <= steps <= 10_000:
            raise UsageError(f"steps is {steps}; give a number from 1 up, such as {STEPS}")
        return tuple(k / (steps + 1) for k in range(steps, 0, -1))
    if not widths or not all(0 < w < 1 for w in widths):
        raise UsageError("widths are kept shares between 0 and 1, such as 0.75,0.5,0.25")
    return tuple(sorted(set(widths), reverse=True))


@one_blas_thread
@bounded
def measure(
    subject: Subject,
    *,
    path: str | Path | None = None,
    force: bool = False,
    shares: Sequence[float] = shares(),
    methods: Collection[str] = METHODS,
    limits: Limits | None = None,
    seed: int = 0,
    threads: int | None = None,
    memory: int | None = None,
    elsewhere: Elsewhere | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """As `sensitivity`, of a model that is open.

    Args:
        subject: the model, with samples.
        path: where measurements are kept, to go on from; None: nowhere.
        force: replace a file with other measurements.
        shares: widths to try, as shares that are kept, descending.
        methods: the kinds of cuts.
        limits: which groups, and which widths.
        seed: for everything random.
        threads: ORT threads, and tasks side by side.
        memory: as in `Settings`.
        elsewhere: where cuts are measured, and what is known of them; None: here, and nothing.
        progress: called with (phase, done, total).

    Raises:
        UsageError: no samples, an unknown method, or nothing is left.
        UnsupportedError: nothing can be cut.
        FileError: `path` holds other measurements, or cannot be written.
    """
    if subject.calibration is None:
        raise UsageError("sensitivity needs samples; give --calib")
    if seed < 0 or (threads is not None and threads < 1):
        raise UsageError("the seed is at least 0, the number of threads at least 1")
    places = _places(subject, shares, methods, limits or Limits(1))
    trial = _Trial(subject, subject.calibration, seed, threads, progress)
    store = _Store(trial.nothing(), path, force, [subject.path, Path(subject.calibration.source)])
    todo = [(p, kept) for p in places for kept in p.widths if kept not in store.kept(p)]
    points = _points(trial, todo, elsewhere or Elsewhere(), memory)
    for k, (place, kept) in enumerate(todo):
        if progress:
            progress("measure", k, len(todo))
        point = Point(kept, *next(points))
        store.add(Row(place.kind, place.name, place.width, (point,)), complete=k + 1 == len(todo))
    if progress and todo:
        progress("measure", len(todo), len(todo))
    rows = [(store.rows[p.kind, p.name], p.widths) for p in places if p.widths]
    shown = tuple(replace(r, points=tuple(p for p in r.points if p.kept in widths)) for r, widths in rows)
    return replace(store.empty, rows=shown, measured=len(todo))


def _points(
    trial: _Trial, todo: Sequence[tuple[_Place, int]], elsewhere: Elsewhere, memory: int | None
) -> Iterator[tuple[float | None, float]]:
    """(damage, share of the MACs that goes) of every cut, in order."""
    of, items = trial.nothing(), [(p.kind, p.name, kept) for p, kept in todo]
    depends = {
        "what": "a cut alone", "model": of.model_digest, "samples": of.samples_digest, "settings": dict(of.settings),
        "axes": dict(trial.subject.axes),
    }  # fmt: skip
    subject = replace(trial.subject, parts={})
    task = Task(_measuring, (subject, trial.seed, trial.threads, memory), depends)
    places = {item: place for item, (place, _) in zip(items, todo, strict=True)}
    return elsewhere.results(task, items, lambda some: (trial.measured(places[i], i[2]) for i in some))


def _measuring(payload: tuple[Subject, int, int | None, int | None]) -> Evaluate:
    """In a worker: (kind, name, kept) -> what comes of that cut."""
    subject, seed, threads, memory = payload
    assert subject.calibration is not None
    trial = _Trial(subject, subject.calibration, seed, threads, None)
    whole = _places(subject, (), METHODS, Limits(1))
    found = {(p.kind, p.name): p for p in whole}

    @one_blas_thread
    def measured(item: tuple[str, str, int]) -> tuple[float | None, float]:
        kind, name, kept = item
        with within(memory):
            return trial.measured(found[kind, name], kept)

    return measured


@dataclass(frozen=True)
class _Place:
    """What is cut alone, and to which widths; a block has the width 1, or 0 when it goes."""

    kind: str
    name: str
    width: int
    widths: Sequence[int]
    what: ChannelGroup | AnyBlock


def _places(subject: Subject, shares: Sequence[float], methods: Collection[str], limits: Limits) -> list[_Place]:
    """Groups, then blocks, in graph order.

    Raises:
        UsageError: an unknown method, or nothing is left.
        UnsupportedError: nothing can be cut.
    """
    for method in methods:
        if method not in METHODS:
            raise unknown("method", method, METHODS)
    if not methods:
        raise UsageError(f"no method given; any of {', '.join(METHODS)}")
    channels = subject.channels
    groups = channels.groups if "channels" in methods else ()
    blocks = all_blocks(subject.net) if "blocks" in methods else ()
    if not groups and not blocks:
        raise UnsupportedError(f"nothing can be cut: {why_not(channels)}")
    unmatched(subject.net, include=limits.include)
    found = [_Place("group", g.name, g.width, widths_of(g, shares), g) for g in groups if limits.allows(g)]
    found += [_Place("block", b.name, 1, (0,), b) for b in blocks if may_go(b, subject.net, limits)]
    if not found:
        raise UsageError("--include and --exclude leave nothing to cut; `onnxprune inspect` lists the groups")
    return found


def widths_of(group: ChannelGroup, shares: Sequence[float]) -> list[int]:
    """The group's widths nearest to the shares, widest first; a group of one channel has none."""
    found = {min(max(math.floor(s * group.width + 0.5), 1), group.width - 1) for s in shares}
    return sorted(found - {0}, reverse=True)


class _Trial:
    """Measures one cut at a time; the look at the samples that this takes is made when the first is asked for."""

    def __init__(
        self, subject: Subject, data: Calibration, seed: int, threads: int | None, progress: Progress | None
    ) -> None:
        self.subject, self.data, self.seed, self.threads = subject, data, seed, threads
        self.progress = progress
        # As many samples as the adaptive allocation tries its cuts on, whatever widths are asked for here.
        channels = subject.channels
        each = count_macs(subject.graph, channels.shapes, channels.ran) * len(channels.groups) * len(SHARES)
        parts = Partition.of(data, seed)
        self.fit, self.judges = parts.fit, parts.held  # what was learnt is judged on other samples
        self.count = min(trial_samples(each), len(self.judges))
        self.cost = CostModel(subject.graph, subject.channels)

    def nothing(self) -> Sensitivity:
        """The result before the first measurement: what it is of, and what it depends on."""
        settings = {
            "version": __version__,
            "order": "elimination",
            "samples": self.count,
            "seed": self.seed,
            "prune_statistics": bool(self.subject.channels.inexact),
            "inputs": {name: list(array.shape[1:]) for name, array in self.subject.feeds.items()},
        }
        asked = self.subject.asked
        said = {name: asked[name] for name in ("output_kind", "weight") if asked.get(name)}
        return Sensitivity(self.subject.digest, digest(self.data), settings | said, ())

    @cached_property
    def _ready(self) -> tuple[dict[str, Curve], Trials]:
        if self.progress:
            self.progress("calibrate", 0, len(self.fit))
        return trials_of(self.subject.net, self.fit, self.judges, self.count, threads=self.threads, seed=self.seed)

    def measured(self, place: _Place, kept: int) -> tuple[float | None, float]:
        """(damage, share of the MACs that goes) of one cut: a group alone, to the width `kept`, or a block alone."""
        cut = self._group(place.what, kept) if isinstance(place.what, ChannelGroup) else self._block(place.what)
        damage, macs_removed = cut
        return float(damage) if math.isfinite(damage) else None, float(macs_removed)

    def _group(self, group: ChannelGroup, width: int) -> tuple[float, float]:
        curves, trials = self._ready
        curve = curves[group.name]
        damage = trials.damage(trials.masked_alone(group, curve.order[: group.width - width]))
        return damage, self.cost.removed(self.subject.channels.alive({group.name: curve.kept(width)}))

    def _block(self, block: AnyBlock) -> tuple[float, float]:
        _, trials = self._ready
        graph, channels = self.subject.graph, self.subject.channels
        found = block_damages(self.subject.net, [block], self._few, trials.judge, threads=self.threads, seed=self.seed)
        macs = {done.key: done.macs for done in work(graph, channels.shapes, channels.ran)}
        inside = sum(macs.get(key, 0.0) for key in block.nodes)
        return found[block.name], inside / max(sum(macs.values()), 1.0)

    @cached_property
    def _few(self) -> list[Mapping[str, np.ndarray]]:
        """What the layers behind a block are refitted on, as the planner does it."""
        return on_disk.kept(self.fit.take(BLOCK_SAMPLES).batches(self.subject.net.batch))


class _Store:
    """What is known, in memory and in a file that is whole after every measurement.

    Raises:
        FileError: the file holds something else and `force` is not given, is an input, or cannot be written.
    """

    def __init__(self, empty: Sensitivity, path: str | Path | None, force: bool, inputs: Sequence[Path | None]) -> None:
        self.empty, self.path = empty, None if path is None else Path(path)
        self.rows: dict[tuple[str, str], Row] = {}
        if self.path is None:
            return
        ensure_writable(self.path, force=True, sources=[p for p in inputs if p is not None and p.exists()])
        if not os.access(self.path.parent, os.W_OK):
            raise FileError(f"{path}: the folder {self.path.parent} cannot be written to; choose another")
        if self.path.exists():
            try:
                self.rows = {(r.kind, r.name): r for r in self._earlier(self.path).rows}
            except FileError:
                if not force:
                    raise

    def _earlier(self, path: Path) -> Sensitivity:
        """What an earlier run has left.

        Raises:
            FileError: another kind of file, or of another model, other samples or settings.
        """
        other = f"{path}: exists already; choose another -o, or --force (force=True) to start it anew"
        try:
            found = Sensitivity.from_json(read_text(path))
        except ValueError as error:
            raise FileError(f"{other}; it holds no sensitivities") from error
        for what in ("model_digest", "samples_digest", "settings"):
            if getattr(found, what) != getattr(self.empty, what):
                words = {"model_digest": "another model", "samples_digest": "other samples"}.get(what, "other settings")
                raise FileError(f"{other}; it is of {words}")
        return found

    def kept(self, place: _Place) -> set[int]:
        """The widths of a place that are known."""
        row = self.rows.get((place.kind, place.name))
        return {p.kept for p in row.points} if row else set()

    def add(self, row: Row, *, complete: bool) -> None:
        """One more measurement; in the file when this returns."""
        key = row.kind, row.name
        (self.rows[key],) = merged([self.rows[key]] if key in self.rows else [], [row])
        if self.path is not None:
            known = replace(self.empty, rows=tuple(self.rows.values()), complete=complete)
            atomic_write_text(known.to_json(), self.path, force=True)
