"""The outcome of a pruning run: the model, what it cost and costs, and the evidence.

Knows how to become JSON (versioned; equal bytes for equal input and seed unless latency was measured, but for the run
at its end) and a screenful of text. Saving is atomic.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune import __version__
from onnxprune.channels import Pinned, common_reasons
from onnxprune.errors import LoadError, PruneError, UsageError, one_line
from onnxprune.files.forms import held_by
from onnxprune.files.read import read_model
from onnxprune.files.write import atomic_write
from onnxprune.graph.barrier import Barrier
from onnxprune.graph.model import digest
from onnxprune.graph.stops import stopping
from onnxprune.measure.cost import Cost
from onnxprune.measure.fidelity import Fidelity
from onnxprune.measure.outline import Outline
from onnxprune.measure.surgery import Surgery
from onnxprune.measure.trained import Trained
from onnxprune.plan import PrunePlan
from onnxprune.report.alone import Row
from onnxprune.report.forecast import Forecast
from onnxprune.report.forms import Told
from onnxprune.report.pictures import Sample
from onnxprune.report.provenance import Provenance
from onnxprune.report.reading import read
from onnxprune.report.refused import Refused
from onnxprune.report.search import Search
from onnxprune.runtime import sessions
from onnxprune.timing.bench_result import BenchResult

SCHEMA = 1
MANY_NODES = 5000
"""Nodes from which the written file is loaded without ORT's fusions: their time grows with the square of it."""


@dataclass(frozen=True)
class Result:
    """What `onnxprune.prune` gives back.

    Attributes:
        model: the pruned model.
        source: the original's path, if it came from a file.
        before, after: costs.
        surgery: worst error of the cut against the masked original, before repair.
        fidelity: agreement with the original on held-out samples; None without calibration data.
        latency: original against pruned, interleaved; None when it was not measured.
        plan: what was kept.
        cuts: what was removed, for anyone to check: {node, input, axis, rank, length, removed}.
        pinned: what could not be cut, and why.
        groups: (name, width before, width after) of every channel group.
        repair: the repair that was applied.
        inexact: nodes whose statistics the cut changes on purpose (`prune_statistics`).
        refused: the layers to which something could not be done that was done to others, and why.
        warnings: what the user should know.
        notes: what was measured besides, in words.
        network: what it looked like and looks like, layer by layer.
        search: what was measured on the way to a target; None where a ratio was asked for.
        studied: what each cut alone would do to the outputs, where that decided.
        forecast: what smaller and larger cuts than this are expected to do; only where a ratio was asked for.
        samples: some that nothing was fitted on, and what both models say of them; only where that was asked for.
        training: what came of every step that trained: what was kept, the start or what was reached, and why.
        barrier: where the model was split as some of its nodes do not run; what was measured is of the part that does.
        feeds: inputs for the run of the written file; None: it is loaded only.
        made: where it comes from: digests, passes before this one, and the run.
    """

    model: onnx.ModelProto
    source: Path | None
    before: Cost
    after: Cost
    surgery: Surgery
    fidelity: Fidelity | None
    latency: BenchResult | None
    plan: PrunePlan
    cuts: tuple[Mapping[str, Any], ...]
    pinned: tuple[Pinned, ...]
    groups: tuple[tuple[str, int, int], ...]
    repair: str
    inexact: tuple[str, ...] = ()
    refused: tuple[Refused, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    network: Outline = field(default=Outline(), repr=False)
    search: Search | None = field(default=None, repr=False)
    studied: tuple[Row, ...] = field(default=(), repr=False)
    forecast: Forecast | None = field(default=None, repr=False)
    samples: tuple[Sample, ...] = field(default=(), repr=False)
    training: tuple[Trained, ...] = ()
    barrier: Barrier | None = field(default=None, repr=False, compare=False)
    feeds: Mapping[str, np.ndarray] | None = field(default=None, repr=False, compare=False)
    made: Provenance = field(default=Provenance(), repr=False, compare=False)

    def __repr__(self) -> str:
        """One line: what it is of, what went, and how close the outputs are."""
        name = "model" if self.source is None else self.source.name
        kept = "not compared" if self.fidelity is None else self.fidelity.in_words()
        return f"<Result {name}: {self.macs_removed:.1%} of the MACs removed, {kept}>"

    @cached_property
    def output_digest(self) -> str:
        """SHA-256 of the model: of the file that is written, if it is one file."""
        return digest(self.model)

    @cached_property
    def runs(self) -> onnx.ModelProto:
        """What of the model can be run: all of it, unless there is a barrier."""
        return self.model if self.barrier is None else self.barrier.part_of(self.model)

    @property
    def macs_removed(self) -> float:
        """Share of the multiply-accumulates that is gone."""
        return 1 - self.after.macs / self.before.macs if self.before.macs else 0.0

    @property
    def verdict(self) -> str | None:
        """On fidelity: "kept", "changed" or "destroyed" (`measure.verdict`); None where nothing could be compared."""
        return None if self.fidelity is None else self.fidelity.verdict

    def reasons(self) -> list[tuple[str, int]]:
        """The most common reasons for what stayed whole, and how many channels each keeps."""
        return common_reasons(self.pinned)

    def save(self, path: str | PathLike[str], *, force: bool = False) -> Path:
        """Write the model: whole or not at all, after a run in ONNX Runtime.

        Raises:
            FileError: the path exists (and not `force`), is the original, or cannot be written.
        """
        if not self.model.graph.output:
            raise UsageError("the result was read without its model; give Result.from_dict the file")
        target = Path(path)
        sources = [] if self.source is None else [self.source]

        def runs(written: Path) -> None:
            many = len(self.model.graph.node) > MANY_NODES
            few = len(self.model.graph.initializer) <= sessions.FEW_WEIGHTS
            adjust = sessions.unpacked if few else None
            opened = partial(sessions.open_session, optimise=not many, pack=False, adjust=adjust, name=target.name)
            try:
                session = opened(written if self.barrier is None else self.barrier.part_of(read_model(written)))
            except LoadError:
                part = _part_of(written)
                if part is None:
                    raise
                session = opened(part)
            if self.feeds is not None:
                session.run(self.feeds)

        atomic_write(self.model, target, force=force, sources=sources, verify=runs)
        return target

    def to_graphsurgeon(self) -> Any:
        """The pruned model as an `onnx_graphsurgeon.Graph`; UsageError where that is not installed."""
        return held_by("graphsurgeon", self.model)

    def to_ir(self) -> Any:
        """The pruned model as an `onnx_ir.Model`; UsageError where that is not installed."""
        return held_by("ir", self.model)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the model, as plain values; what differs between equal runs stands last, under `run`. From
        them and the model's file, `from_dict` makes the result again."""
        made = self.made
        digests = {"model": made.model_digest, "samples": made.samples_digest, "output": self.output_digest}
        run = {"run": dict(made.run)} if made.run else {}
        return {**self.told(), "plan": self.plan.to_dict(), "digests": digests, **run}

    @classmethod
    def from_dict(
        cls, content: Mapping[str, Any], model: str | PathLike[str] | onnx.ModelProto | None = None
    ) -> Result:
        """The result that `to_dict` told of, or `--json` printed.

        Args:
            content: as it was, or read from JSON.
            model: the pruned model or its file; without it, the result can say all that it could but not be saved.

        Raises:
            UsageError: it is something else, of a version without the plan, or `model` is another one.
        """
        return from_dict(cls, content, model)

    def told(self) -> dict[str, Any]:
        """The same without digests and run: what can be said of it."""
        return {
            "schema": SCHEMA,
            "kind": "onnxprune result",
            "version": __version__,
            "model_digest": self.plan.model_digest,
            "settings": {**self.plan.settings, "repair": self.repair, **self.made.carried_out},
            "before": asdict(self.before),
            "after": asdict(self.after),
            "macs_removed": self.macs_removed,
            "surgery": asdict(self.surgery),
            "inexact": list(self.inexact),
            "verdict": self.verdict,
            "fidelity": None if self.fidelity is None else asdict(self.fidelity),
            "latency": None if self.latency is None else self.latency.to_json(),
            "groups": [{"name": n, "before": b, "after": a} for n, b, a in self.groups],
            "pinned": [asdict(p) for p in self.pinned],
            "refused": [asdict(r) for r in self.refused],
            "blocks": list(self.plan.blocks()),
            "merged": [asdict(e) for e in self.plan.merged()],
            "resampled": [asdict(e) for e in self.plan.resampled()],
            "fused": [asdict(e) for e in self.plan.fused()],
            "factorized": [asdict(e) for e in self.plan.factorized()],
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "training": [asdict(t) | {"words": t.in_words()} for t in self.training],
            "network": asdict(self.network),
            "search": None if self.search is None else asdict(self.search),
            "studied": [asdict(row) for row in self.studied],
            "forecast": None if self.forecast is None else asdict(self.forecast),
            "samples": [asdict(sample) for sample in self.samples],
            "cuts": list(self.cuts),
            "earlier": [dict(e) for e in self.made.earlier],
        }

    def to_json(self) -> str:
        """The result as JSON text."""
        return json.dumps(self.to_dict(), allow_nan=False) + "\n"

    def to_html(self, *, files: Mapping[str, str] | None = None) -> str:
        """The result as a page: one file, nothing to fetch.

        Args:
            files: what it links to: what that is -> its path, from where the page will be.
        """
        from onnxprune.report.page import render

        return render(self.to_dict(), name="model" if self.source is None else self.source.name, files=files)

    def to_markdown(self) -> str:
        """What `summary` says as Markdown, for the page of a job."""
        from onnxprune.report.markdown import in_markdown

        return in_markdown(self, "model" if self.source is None else self.source.name)

    def _repr_html_(self) -> str:
        """The page in a frame of its own, for notebooks."""
        page = escape(self.to_html())
        return f'<iframe sandbox srcdoc="{page}" style="width: 100%; height: 36rem; border: 0"></iframe>'

    def summary(self) -> str:
        """One screen of plain text: what was done, and the evidence."""
        from onnxprune.report.terminal import summary

        return summary(self)


def _part_of(written: Path) -> onnx.ModelProto | None:
    """The part of a file that runs, where not all of it does; None where it is not for such nodes that it does not."""
    model = read_model(written)
    stops = stopping(model)
    return Barrier.of(model, stops).part if stops else None


def from_dict(
    kind: type[Result], content: Mapping[str, Any], model: str | PathLike[str] | onnx.ModelProto | None
) -> Result:
    """See `Result.from_dict`."""
    if not isinstance(content, Mapping) or content.get("kind") != "onnxprune result" or content.get("schema") != SCHEMA:
        raise UsageError("not a result of this version of onnxprune; give what Result.to_dict or --json told")
    if not isinstance(content.get("plan"), Mapping):
        raise UsageError("a result of an earlier version, without the plan; make it again")
    try:
        return _from_dict(kind, content, read(Told, content), model)
    except PruneError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(one_line(f"a result that is not whole: {error}")) from error


def _from_dict(
    kind: type[Result], content: Mapping[str, Any], told: Told, model: str | PathLike[str] | onnx.ModelProto | None
) -> Result:
    digests, plan = told.get("digests", {}), PrunePlan.from_dict(content["plan"])
    settings, run = dict(told["settings"]), dict(content.get("run") or {})
    repair = str(settings.pop("repair", "none"))
    uses = [tuple(p.get("use", ("", 0))) for p in content["pinned"]]
    result = kind(
        model=_opened(model, digests.get("output")),
        source=Path(run["model"]) if "model" in run else None,
        before=told["before"], after=told["after"], surgery=told["surgery"], fidelity=told["fidelity"],
        latency=told["latency"], plan=plan, cuts=tuple(content["cuts"]),
        pinned=tuple(Pinned(p.tensor, p.axis, p.count, p.reason, p.node, use)  # type: ignore[arg-type]
                     for p, use in zip(told["pinned"], uses, strict=True)),
        groups=tuple((g["name"], g["before"], g["after"]) for g in told["groups"]),
        repair=repair, inexact=told["inexact"], refused=told.get("refused", ()),
        warnings=told["warnings"], notes=told["notes"], network=told.get("network", Outline()),
        search=told.get("search"), studied=told.get("studied", ()), forecast=told.get("forecast"),
        samples=told.get("samples", ()),
        training=tuple(Trained(**{k: v for k, v in t.items() if k != "words"}) for t in told.get("training", ())),
        made=Provenance(
            digests.get("model") or "", digests.get("samples"),
            {k: v for k, v in settings.items() if plan.settings.get(k) != v}, told.get("earlier", ()), run,
        ),
    )  # fmt: skip
    vars(result)["output_digest"] = digests.get("output")  # of the model, also where it is not here
    return result


def _opened(model: str | PathLike[str] | onnx.ModelProto | None, known: str | None) -> onnx.ModelProto:
    """The model of a result, or an empty one; UsageError where it is another than the known one."""
    if model is None:
        return onnx.ModelProto()
    found = model if isinstance(model, onnx.ModelProto) else read_model(Path(model))
    if known is not None and digest(found) != known:
        name = "the model" if isinstance(model, onnx.ModelProto) else str(model)
        raise UsageError(f"{name}: is not the model that the result tells of; give the file that it was saved to")
    return found
