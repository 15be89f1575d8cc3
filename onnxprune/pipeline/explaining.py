"""`bench --explain`: one or two models, node by node, and the options of a session that are faster here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.pipeline.asked import Progress, engine_of
from onnxprune.pipeline.opened import ModelLike, open_model
from onnxprune.pipeline.prices import timed_run
from onnxprune.pipeline.settings import Settings
from onnxprune.report.explained import render
from onnxprune.timing.bench_inputs import labels_of
from onnxprune.timing.explain import Explained, machine
from onnxprune.timing.explain import explain as node_by_node
from onnxprune.timing.tuning import Tuned, best, saved, tune


@dataclass(frozen=True)
class Explanation:
    """What was found.

    Attributes:
        models: node by node, the second beside the first; none where that was not asked for.
        tuned: options of a session for the last model.
        saved: what deployment loads.
    """

    models: Sequence[Explained]
    tuned: Sequence[Tuned]
    saved: Mapping[str, Any]

    def summary(self, every: bool = False) -> str:
        """The slowest nodes, or every one, with causes; and the options, as text."""
        return render(self, every)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "schema": 1,
            "kind": "onnxprune explanation",
            "models": [m.to_json() for m in self.models],
            "options": [t.to_json() for t in self.tuned],
            "saved": self.saved,
        }


def explain(
    models: Sequence[ModelLike],
    *,
    batch: int = 1,
    threads: int = 1,
    providers: tuple[str, ...] = ("cpu",),
    provider_options: Mapping[str, Mapping[str, object]] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_value: Mapping[str, Sequence[float]] | None = None,
    batch_axis: Mapping[str, int] | None = None,
    nodes: bool = True,
    trusted: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Explanation:
    """Why one or two models are not faster: every node against what its arithmetic and its bytes promise, and options
    of a session that are faster here.

        found = onnxprune.explain(["model.onnx", "model.pruned.onnx"])
        print(found.summary())

    Args:
        models: one, or the original and what became of it.
        batch, threads, providers, provider_options, seed: how they are run.
        input_shapes, input_value, batch_axis, trusted: as for `open_model`.
        nodes: whether nodes are looked at; without, options alone.
        progress: called with (phase, done, total).

    Raises:
        PruneError: a model does not open or run, or a provider is not there; UsageError where there are more than two.
    """
    if isinstance(models, str | bytes) or len(models) not in (1, 2):
        raise UsageError("give a list of one or two models")
    settings = Settings(
        batch=batch, threads=threads, providers=providers, provider_options=provider_options, input_value=input_value,
        batch_axis=batch_axis, seed=seed,
    )  # fmt: skip
    return explained(models, settings, input_shapes or {}, nodes, trusted=trusted, progress=progress)


def explained(
    models: Sequence[ModelLike],
    settings: Settings,
    shapes: Mapping[str, Sequence[int]],
    nodes: bool,
    *,
    trusted: bool = False,
    progress: Progress | None = None,
) -> Explanation:
    """As `explain`, from settings.

    Args:
        models: the original first.
        settings: batch, threads, providers and their options.
        shapes: sizes for dynamic axes, by input name.
        nodes: whether nodes are looked at too.
        trusted: whether first runs are made in this process.
        progress: called with (phase, done, total).

    Raises:
        PruneError: a model does not open or run, or a provider is not there.
    """
    engine, found = engine_of(settings), list[Explained]()
    engine.check()
    labels = labels_of([Path(m) if isinstance(m, str | PathLike) else b"" for m in models], None)
    on = machine(engine) if nodes else None
    for k, (path, name) in enumerate(zip(models, labels, strict=True)):
        if progress is not None:
            progress("explain", k, len(models))
        subject = open_model(
            path, input_shapes=dict(shapes) or None, input_value=settings.input_value, batch_axis=settings.batch_axis,
            trusted=trusted,
        )  # fmt: skip
        feeds, sizes = timed_run(subject, settings.batch)
        if on is not None:
            found.append(node_by_node(subject.graph, feeds, sizes, engine, on, name))
    tuned = tune(subject.model, feeds, engine, settings.seed)
    pair = [found[0], found[1].beside(found[0])] if len(found) == 2 else found
    return Explanation(pair, tuned, saved(best(tuned), engine))
