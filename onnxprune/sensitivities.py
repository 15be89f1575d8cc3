"""How much each place can lose: every group is cut alone, to several widths, and the damage to the outputs measured.

Measurements are kept in a file as they come, rewritten whole each time: a run that was cut short goes on where it
stopped, and a later one with more widths measures only those. One floor above `api`: it prints nothing. Rows have a
kind; so far all are groups of channels.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import __version__, api
from onnxprune.api import ModelLike, Progress, Subject
from onnxprune.channels import ChannelGroup
from onnxprune.decide.allocation import Limits
from onnxprune.decide.curves import Curve
from onnxprune.decide.sensitivity import SHARES, Trials
from onnxprune.decide.study import TRIAL_MACS, TRIAL_SAMPLES, Samples, trials_of
from onnxprune.errors import FileError, UnsupportedError, UsageError
from onnxprune.graph import files
from onnxprune.measure.calibration import Calibration, ImageSpec
from onnxprune.measure.cost import CostModel, count_macs
from onnxprune.report.sensitivity import Point, Row, Sensitivity, merged

STEPS = 8


def sensitivity(
    model: ModelLike,
    calibration: Any,
    *,
    path: str | Path | None = None,
    force: bool = False,
    steps: int = STEPS,
    widths: Sequence[float] | None = None,
    include: str | None = None,
    exclude: str | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int | None = None,
    image: ImageSpec | None = None,
    prune_statistics: bool = False,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Damage to the outputs against the kept width, for every group of channels cut alone.

    Args:
        model, calibration, input_shapes, samples, image, prune_statistics: as for `open_model`.
        path: where measurements are kept; the file of an earlier run on the same model and samples is gone on with.
        force: replace a file at `path` that holds something else.
        steps: measure at that many widths, evenly spaced below the full one.
        widths: kept shares instead, each between 0 and 1.
        include, exclude: regular expressions on the names of groups and their weights.
        seed, threads: as in `Settings`.
        progress: called with (phase, done, total).

    Raises:
        PruneError: as `prune`; FileError where `path` holds other measurements.
    """
    subject = api.open_model(
        model,
        calibration=calibration,
        input_shapes=input_shapes,
        samples=samples,
        image=image,
        prune_statistics=prune_statistics,
    )
    return measure(
        subject,
        path=path,
        force=force,
        shares=shares(steps, widths),
        limits=Limits(1, 1, include, exclude),
        seed=seed,
        threads=threads,
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


def measure(
    subject: Subject,
    *,
    path: str | Path | None = None,
    force: bool = False,
    shares: Sequence[float] = shares(),
    limits: Limits | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """As `sensitivity`, of a model that is open.

    Raises:
        UsageError: no samples, or no group is left.
        UnsupportedError: nothing can be cut.
        FileError: `path` holds other measurements, or cannot be written.
    """
    limits = limits or Limits(1)
    if subject.calibration is None:
        raise UsageError("sensitivity needs samples; give --calib")
    if not subject.channels.groups:
        raise UnsupportedError(f"nothing can be cut: {api.why_not(subject.channels)}")
    groups = [g for g in subject.channels.groups if limits.allows(g)]
    if not groups:
        raise UsageError("--include and --exclude leave no group; `onnxprune inspect` lists the groups")
    if seed < 0 or (threads is not None and threads < 1):
        raise UsageError("the seed is at least 0, the number of threads at least 1")
    trial = _Trial(subject, subject.calibration, seed, threads, progress)
    store = _Store(trial.nothing(), path, force, [subject.path, Path(subject.calibration.source)])
    wanted = {g.name: widths_of(g, shares) for g in groups}
    todo = [(g, w) for g in groups for w in wanted[g.name] if w not in store.kept(g.name)]
    for k, (group, width) in enumerate(todo):
        if progress:
            progress("measure", k, len(todo))
        point = trial.point(group, width)
        store.add(Row("group", group.name, group.width, (point,)), complete=k + 1 == len(todo))
    if progress and todo:
        progress("measure", len(todo), len(todo))
    rows = [store.rows.get(("group", g.name), Row("group", g.name, g.width, ())) for g in groups]
    shown = [replace(r, points=tuple(p for p in r.points if p.kept in wanted[r.name])) for r in rows]
    return replace(store.empty, rows=tuple(r for r in shown if r.points), measured=len(todo))


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
        each = count_macs(subject.graph, subject.channels.shapes) * len(subject.channels.groups) * len(SHARES)
        fit, _ = data.split(seed=seed)
        self.fit, self.count = fit, int(min(np.clip(TRIAL_MACS / max(1.0, each), *TRIAL_SAMPLES), len(fit)))
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
        return Sensitivity(self.subject.digest, _digest(self.data), settings, ())

    @cached_property
    def _ready(self) -> tuple[dict[str, Curve], Trials]:
        if self.progress:
            self.progress("calibrate", 0, len(self.fit))
        fit = self.fit
        samples = Samples(fit.batches, lambda n: list(fit.take(n).batches(min(n, api.BATCH))))
        s = self.subject
        return trials_of(s.model, s.graph, s.channels, samples, self.count, threads=self.threads, seed=self.seed)

    def point(self, group: ChannelGroup, width: int) -> Point:
        """One cut: the group alone, to `width`."""
        curves, trials = self._ready
        curve = curves[group.name]
        damage = trials.damage(trials.cut_alone(group, curve.order[: group.width - width]))
        alive = self.subject.channels.alive({group.name: curve.kept(width)})
        return Point(width, damage if math.isfinite(damage) else None, self.cost.removed(alive))


def _digest(data: Calibration) -> str:
    """Of all samples, in order."""
    found = hashlib.sha256()
    for feeds in data.batches(api.BATCH):
        for name, array in sorted(feeds.items()):
            found.update(f"{name} {array.dtype} {array.shape}\n".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


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
        files.ensure_writable(self.path, force=True, sources=[p for p in inputs if p is not None and p.exists()])
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
            found = Sensitivity.from_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise FileError(f"{path}: cannot be read: {error.strerror}; choose another -o") from error
        except ValueError as error:
            raise FileError(f"{other}; it holds no sensitivities") from error
        for what in ("model_digest", "samples_digest", "settings"):
            if getattr(found, what) != getattr(self.empty, what):
                words = {"model_digest": "another model", "samples_digest": "other samples"}.get(what, "other settings")
                raise FileError(f"{other}; it is of {words}")
        return found

    def kept(self, name: str) -> set[int]:
        """The widths of a group that are known."""
        row = self.rows.get(("group", name))
        return {p.kept for p in row.points} if row else set()

    def add(self, row: Row, *, complete: bool) -> None:
        """One more measurement; in the file when this returns."""
        key = row.kind, row.name
        (self.rows[key],) = merged([self.rows[key]] if key in self.rows else [], [row])
        if self.path is not None:
            known = replace(self.empty, rows=tuple(self.rows.values()), complete=complete)
            files.atomic_write_text(known.to_json(), self.path, force=True)
