"""What the tool prints as JSON, kind by kind: the keys that a reader may count on, and what they hold.

Other keys may stand beside them; what came later than the first version need not be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from onnxprune.measure.cost import Cost, Kind
from onnxprune.measure.fidelity import Fidelity
from onnxprune.measure.layer_costs import Activations, Layer
from onnxprune.measure.outline import Outline
from onnxprune.measure.surgery import Surgery
from onnxprune.plan import Factorize, FuseLayers, MergeBlock, Resample
from onnxprune.report.alone import Row
from onnxprune.report.forecast import Forecast
from onnxprune.report.pictures import Sample
from onnxprune.report.refused import Refused
from onnxprune.report.search import Search
from onnxprune.timing.bench_result import BenchResult
from onnxprune.timing.explain import Spent


class Run(TypedDict, total=False):
    """When, where and by which command or call."""

    version: str
    date: str
    model: str
    command: str
    call: str
    machine: Mapping[str, str | int | None]
    files: tuple[str | None, ...]


class Narrowed(TypedDict):
    """A group of channels, before and after."""

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class Stays:
    """An axis that stays whole, wholly or in part, and why."""

    tensor: str
    axis: int
    count: int
    reason: str
    node: str


class Cut(TypedDict):
    """What was removed at one place."""

    removed: tuple[int, ...]


class Told(TypedDict):
    """A result, all but its model."""

    settings: Mapping[str, Any]
    model_digest: str
    before: Cost
    after: Cost
    macs_removed: float
    surgery: Surgery
    inexact: tuple[str, ...]
    fidelity: Fidelity | None
    latency: BenchResult | None
    groups: tuple[Narrowed, ...]
    pinned: tuple[Stays, ...]
    refused: NotRequired[tuple[Refused, ...]]
    blocks: tuple[str, ...]
    merged: NotRequired[tuple[MergeBlock, ...]]
    resampled: NotRequired[tuple[Resample, ...]]
    fused: NotRequired[tuple[FuseLayers, ...]]
    factorized: tuple[Factorize, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    training: NotRequired[tuple[Mapping[str, Any], ...]]
    network: NotRequired[Outline]
    search: NotRequired[Search | None]
    studied: NotRequired[tuple[Row, ...]]
    forecast: NotRequired[Forecast | None]
    samples: NotRequired[tuple[Sample, ...]]
    cuts: tuple[Cut, ...]
    earlier: NotRequired[tuple[Mapping[str, str], ...]]
    digests: NotRequired[Mapping[str, str | None]]


class Swept(TypedDict):
    """Several results of one model."""

    results: tuple[Told, ...]


class Planned(TypedDict):
    """A plan; what its edits hold, `PrunePlan` says."""

    model_digest: str
    edits: tuple[Mapping[str, Any], ...]
    settings: NotRequired[Mapping[str, Any]]


class Uncounted(TypedDict):
    """What of a model could not be counted."""

    uncounted: NotRequired[tuple[Kind, ...]]
    uncounted_time: NotRequired[float | None]


class Change(TypedDict):
    """A total, before and after."""

    before: float
    after: float


class LayerPreview(TypedDict):
    """What becomes of a layer."""

    layer: str
    op: str
    macs_before: float
    macs_after: float
    what: str


class Previewed(Uncounted):
    """A dry run."""

    macs: Change
    params: Change
    groups: tuple[Narrowed, ...]
    layers: tuple[LayerPreview, ...]
    plan: Planned


class Benched(TypedDict):
    """Latencies of one case or several."""

    results: tuple[BenchResult, ...]


class Checked(TypedDict):
    """A narrower copy on a device: what it was to gain, and gained."""

    predicted: float
    measured: float
    error: float


class Profiled(TypedDict):
    """A device that was measured, or the script that measures it."""

    file: str
    questions: int
    device: str | None
    total_ms: float | None
    layers_share: float | None
    checks: tuple[Checked, ...]


class Cause(TypedDict):
    """Why nodes take longer than was promised."""

    cause: str
    ms: float
    nodes: int


class ExplainedModel(TypedDict):
    """A model, node by node."""

    name: str
    total_ms: float
    nodes: tuple[Spent, ...]
    causes: tuple[Cause, ...]


class TunedOptions(TypedDict):
    """Options of a session, timed."""

    name: str
    gain: float
    low: float
    high: float
    verdict: str


class Explaining(TypedDict):
    """Why models are not faster, and what is without pruning."""

    models: tuple[ExplainedModel, ...]
    options: tuple[TunedOptions, ...]


class OutputPart(TypedDict):
    """A part of an output, and what it says."""

    name: str
    says: str
    beside: NotRequired[str]


class Port(TypedDict):
    """An input or output."""

    name: str
    ran: tuple[int, ...]
    dtype: NotRequired[str]
    shape: NotRequired[tuple[int | str | None, ...]]
    parts: NotRequired[tuple[OutputPart, ...]]


class Prunable(TypedDict):
    """A group of channels that can be cut."""

    name: str
    width: int
    step: int
    macs: float
    makers: tuple[str, ...]
    readers: tuple[str, ...]


class Place(TypedDict):
    """An axis that stays whole."""

    node: str
    tensor: str
    axis: int
    channels: int


class Whole(TypedDict):
    """Axes that stay whole for one reason."""

    reason: str
    channels: int
    where: tuple[Place, ...]


class Inspected(Uncounted):
    """What can be pruned in a model, and what cannot."""

    model_digest: str
    ir_version: int
    opset: int
    nodes: int
    operators: NotRequired[Mapping[str, int]]
    params: int
    macs: float
    bytes: int
    activations: NotRequired[Activations]
    layers: NotRequired[tuple[Layer, ...]]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    groups: tuple[Prunable, ...]
    inexact: tuple[str, ...]
    pinned: tuple[Whole, ...]
    earlier: NotRequired[tuple[Mapping[str, str], ...]]


class Verified(TypedDict):
    """A pruned file held against its plan."""

    before: NotRequired[Cost]
    after: NotRequired[Cost | None]
    surgery: Surgery
    inexact: tuple[str, ...]
    sizes_match: bool
    fidelity: Fidelity | None
    missed: tuple[str, ...]


class Listed(TypedDict):
    """Names that an option takes."""

    topic: str | None
    entries: Mapping[str, str]
