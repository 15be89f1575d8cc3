"""What planning for time asks of a device, gathered to be answered there; and how good its answers have proved.

Beside the network, its layers and their pairs, a profile times copies of the network that are narrower: what was
predicted of these, against what they took, is the error that a prediction is told with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import onnx

from onnxprune.decide.ranks import ways_asked
from onnxprune.decide.runs import by_kernels, find_runs, in_rows
from onnxprune.errors import PruneError, UsageError
from onnxprune.files.write import atomic_write_text, ensure_writable
from onnxprune.pipeline.asked import Progress, engine_of
from onnxprune.pipeline.finishing import Finishing, check_finish, finish_of
from onnxprune.pipeline.opened import ModelLike, Subject, open_model
from onnxprune.pipeline.planner import Planner
from onnxprune.pipeline.prices import Prices, one_layer, timed_as
from onnxprune.pipeline.settings import Settings
from onnxprune.plan import PrunePlan
from onnxprune.runtime.install import require_ort
from onnxprune.timing import profile_device
from onnxprune.timing.devices import Asking, Recorded, recorded, script
from onnxprune.timing.node_times import NodeTimes, node_times
from onnxprune.timing.one_layer import OneLayerTimes
from onnxprune.timing.pair_times import PairTimes

SCRIPT = ".py"
"""How a file ends that is to hold a program that measures, and no measurements."""
NARROWED = (0.25, 0.5, 0.75)
"""Shares of the MACs that go from the copies that predictions are held against."""
COPIES_MS, COPIES_RUNS = 4000.0, (20, 200)
"""Time for the turns of the copies, fewest and most of them."""


def profile(
    model: ModelLike,
    output: str | PathLike[str],
    *,
    batch: int = 1,
    threads: int | None = None,
    providers: tuple[str, ...] = ("cpu",),
    provider_options: Mapping[str, Mapping[str, object]] | None = None,
    precision: str | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_value: Mapping[str, Sequence[float]] | None = None,
    batch_axis: Mapping[str, int] | None = None,
    force: bool = False,
    trusted: bool = False,
    progress: Progress | None = None,
) -> Trust | None:
    """Measure what planning for time needs to know of this device, for `prune(..., device=output)` anywhere.

        onnxprune.profile("model.onnx", "device.json")

    Interrupted, it goes on where it stood when it is called again.

    Args:
        model, input_shapes, input_value, batch_axis, trusted: as for `open_model`.
        output: what is measured goes there; a name that ends in `.py` gets a program that measures on another device,
            and nothing is measured here.
        batch, threads, providers, provider_options, precision: what is measured; the file remembers them.
        force: replace what is there.
        progress: called with (phase, done, total).

    Returns:
        How far the times carry; None where a program was written.

    Raises:
        PruneError: as `open_model`; FileError where the file cannot be written, UsageError where it holds the times of
            something else.
    """
    settings = Settings(
        batch=batch, threads=threads, providers=providers, provider_options=provider_options, input_value=input_value,
        batch_axis=batch_axis, precision=precision,
    )  # fmt: skip
    subject = open_model(
        model, input_shapes=input_shapes, input_value=input_value, batch_axis=batch_axis, trusted=trusted
    )
    check_finish(subject, settings)
    target, scripted = Path(output), str(output).endswith(SCRIPT)
    sources = [] if subject.path is None else [subject.path]
    ensure_writable(target, force=force or not scripted, sources=sources)
    if not scripted:
        subject.check_timing(settings)
    name = subject.path.name if subject.path is not None else "a model in memory"
    work = questions(subject, settings, name)
    if scripted:
        atomic_write_text(script(work), target, force=force, sources=sources)
        return None
    report = (lambda k, n: progress("time", k, n)) if progress else None
    return measured(subject, work, target, force=force, progress=report)


def measured(
    subject: Subject,
    work: Mapping[str, Any],
    output: Path,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Trust:
    """How far the times of this device carry, once all are taken and kept in a file.

    Args:
        subject: the network.
        work: its `questions`.
        output: the file; one that was begun is gone on with.
        force: begin anew.
        progress: called with (measurements taken, measurements).

    Raises:
        UsageError: the file holds something else.
    """
    require_ort()
    if force:
        output.unlink(missing_ok=True)
    try:
        profile_device.measure(work, output, work["threads"], progress)
    except ValueError as error:
        raise UsageError(f"{error}, or add --force") from None
    return trust(subject, recorded(str(output)))


def questions(subject: Subject, settings: Settings, model: str) -> dict[str, Any]:
    """What `timing.profile_device.measure` takes.

    Args:
        subject: the network.
        settings: providers, threads and batch.
        model: what it is called.
    """
    engine = Asking(settings.providers, settings.provider_options or {}, settings.threads or 1)
    own = timed_as(subject, settings, settings.batch)
    graph, feeds, shapes = own.graph, own.feeds, own.shapes
    node_times(graph, feeds, shapes, engine=engine)
    pairs, ones = PairTimes(graph, dict(shapes), engine), OneLayerTimes(graph, dict(shapes), engine)
    for key, way in ways_asked(subject.graph, subject.channels.shapes):
        pairs.relative(key, way)
    alone = find_runs(subject.net)
    for run in (one for whole in (*alone, *in_rows(subject.net, alone)) for one in by_kernels(subject.net, whole)):
        ones.relative(run.nodes, one_layer(run.edit))
    engine.told("walls", copies(subject, settings), feeds, COPIES_MS, COPIES_RUNS)
    return engine.work(settings.batch, model, settings.precision)


def copies(subject: Subject, settings: Settings) -> list[onnx.ModelProto]:
    """The network and its narrower copies, as they are timed."""
    finish = Finishing(finish_of(settings), settings)
    return [finish(model, rough=True) for model in (subject.model, *(copy for _, copy in narrowed(subject)))]


def narrowed(subject: Subject) -> list[tuple[PrunePlan, onnx.ModelProto]]:
    """The network with fewer channels everywhere, as plans and carried out; no samples are looked at."""
    known = Settings(of="macs", criterion="l1", allocation="uniform", methods=("channels",))
    found = []
    try:
        planner = Planner(subject, known)
        for ratio in NARROWED:
            plan = planner.propose(ratio, "channels")
            if plan is not None:
                found.append((plan, planner.unrepaired(plan)))
    except PruneError:  # no channels, or not as many
        pass
    return found


@dataclass(frozen=True)
class Check:
    """What a narrower copy was to gain on the device, and gained.

    Attributes:
        predicted, measured: old time over new.
    """

    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Of the prediction, as a share; above zero: it promised too much."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class Trust:
    """How far what was measured on a device carries.

    Attributes:
        device: in words.
        total_ms: a run of the network there.
        layers_share: what its nodes take together over what it takes.
        checks: the narrower copies.
    """

    device: str
    total_ms: float
    layers_share: float
    checks: Sequence[Check]

    @property
    def words(self) -> str:
        """What is said beside a prediction."""
        parts = f"the nodes add up to {self.layers_share:.1%} of a run"
        if not self.checks:
            return parts
        off = max(abs(c.error) for c in self.checks)
        return f"{len(self.checks)} narrower copies were at most {off:.1%} off what is predicted of them, and {parts}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        checks = [{"predicted": c.predicted, "measured": c.measured, "error": c.error} for c in self.checks]
        return {
            "device": self.device,
            "total_ms": self.total_ms,
            "layers_share": self.layers_share,
            "checks": checks,
        }


def trust(subject: Subject, engine: Recorded, times: NodeTimes | None = None) -> Trust:
    """How far a device's times carry for a network.

    Args:
        subject: the network.
        engine: the device.
        times: of its nodes, where they are known already.

    Raises:
        UsageError: the profile is of another network, or not finished.
    """
    known = Settings(precision=engine.precision, batch=engine.batch)
    own = timed_as(subject, known, engine.batch)
    times = times or node_times(own.graph, own.feeds, own.shapes, engine=engine)
    walls = engine.told("walls", copies(subject, known), own.feeds, COPIES_MS, COPIES_RUNS)
    prices, plans = Prices(subject.net, "latency", times=times), [plan for plan, _ in narrowed(subject)]
    checks = [Check(prices.gain(plan, ()), walls[0] / wall) for plan, wall in zip(plans, walls[1:], strict=True)]
    return Trust(engine.words, times.total_ms, times.seen_ms / times.total_ms, tuple(checks))


def said_of(subject: Subject, settings: Settings, what: str, times: NodeTimes | None = None) -> tuple[str, ...]:
    """That something is predicted for the device that the settings name, and how far that carries; nothing where they
    name none.

    Args:
        subject: the network.
        settings: which may name a device.
        what: is predicted, in words.
        times: of its nodes there, where they are known already.
    """
    engine = engine_of(settings)
    if not isinstance(engine, Recorded):
        return ()
    known = trust(subject, engine, times).words
    return (f"{what} is predicted for {engine.words}, not measured: {known}; `onnxprune bench` confirms it there",)
