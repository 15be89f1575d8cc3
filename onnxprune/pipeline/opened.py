"""A model opened for pruning: read, checked, run once with sizes that it takes, analysed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.channels import find_channels
from onnxprune.errors import ModelError, UsageError
from onnxprune.files.read import check_model, read_model
from onnxprune.graph import operators
from onnxprune.graph.model import Graph, digest
from onnxprune.graph.seeds import with_seeds
from onnxprune.graph.shapes import Observed, observe
from onnxprune.pipeline.settings import Subject
from onnxprune.runtime import ports, sessions
from onnxprune.samples.calibration import open_calibration
from onnxprune.samples.images import ImageSpec

ModelLike = str | PathLike[str] | onnx.ModelProto


def open_model(
    model: ModelLike,
    *,
    calibration: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int | None = None,
    image: ImageSpec | None = None,
    prune_statistics: bool = False,
) -> Subject:
    """Read, check, run once and analyse a model.

    Args:
        model: a path or a ModelProto (left untouched).
        calibration: unlabelled samples in any form that `open_calibration` takes, or None.
        input_shapes: sizes for dynamic axes, by input name; else the samples' sizes, else a guess.
        samples: use at most so many samples.
        image: how to turn a folder of images into samples.
        prune_statistics: also find channels over which a normalization takes its mean.

    Raises:
        ModelError, CalibrationError, FileError: what was given cannot be used.
    """
    path = None if isinstance(model, onnx.ModelProto) else Path(model)
    proto = check_model(model) if isinstance(model, onnx.ModelProto) else read_model(Path(model))
    told = digest(proto)
    proto = with_seeds(proto)
    specs = ports.input_specs(proto)
    data = None
    if calibration is not None:
        data = open_calibration(calibration, specs, limit=samples, image=image)
    feeds: Mapping[str, np.ndarray]
    if data is not None and not input_shapes:
        feeds = data.first(1)
    else:
        feeds = ports.default_feed(specs, shapes=input_shapes)
    graph = Graph(proto)
    batch = None
    try:
        feeds, observed = _first_run(graph, specs, feeds, guess=data is None and not input_shapes)
    except ModelError as error:
        batch, feeds, observed = _other_batch(graph, specs, feeds, () if input_shapes else BATCHES, error)
    else:
        batch = _only_batch(graph, specs, feeds, sampled=data is not None)
    if data is not None and batch is not None:
        data = data.in_batches_of(batch)
        feeds = feeds if input_shapes else data.first(1)
    channels = find_channels(graph, observed, prune_statistics=prune_statistics)
    return Subject(proto, graph, feeds, channels, told, path, data, batch=batch)


BATCHES = (2, 4, 8, 16, 32, 64)
"""Batches to try where a model that declares any batch does not run with one sample."""


def _other_batch(
    graph: Graph,
    specs: Sequence[ports.InputSpec],
    feeds: Mapping[str, np.ndarray],
    batches: Sequence[int],
    error: ModelError,
) -> tuple[int, Mapping[str, np.ndarray], Observed]:
    """What a model that declares any batch takes instead of the one it has just failed with: the batch that it was
    exported with, if it is a usual one."""
    for batch in batches if any(map(ports.open_batch, specs)) else ():
        other = ports.in_batch(specs, feeds, batch)
        with contextlib.suppress(ModelError):
            return batch, other, observe(graph, other)
    raise error


def _only_batch(
    graph: Graph, specs: Sequence[ports.InputSpec], feeds: Mapping[str, np.ndarray], *, sampled: bool
) -> int | None:
    """The batch of the feeds, where the model declares any batch and runs with no other; else None.

    Only looked at where other batches would be used, and where the graph may spell one.
    """
    own = next((len(feeds[s.name]) for s in specs if ports.open_batch(s)), None)
    if own is None or (own == 1 and not sampled) or not any(operators.of(n).spells_batch for n in graph.nodes.values()):
        return None
    other = ports.in_batch(specs, feeds, 2 if own == 1 else 1)
    try:
        sessions.open_session(graph.model, pack=False).run(other)
    except ModelError:
        return own
    return None


GUESSES = (96, 32, 640, 299, 512)
"""Sizes to try for dynamic image axes after the usual 224."""
LINES = ((48, 320), (32, 100), (32, 320))
"""Heights and widths of text lines: recognisers squeeze the height away, so only theirs fits."""


def _first_run(
    graph: Graph, specs: Sequence[ports.InputSpec], feeds: Mapping[str, np.ndarray], *, guess: bool
) -> tuple[Mapping[str, np.ndarray], Observed]:
    """Run the model once. When nobody said how large a dynamic input is, other usual sizes are tried as well."""
    try:
        return feeds, observe(graph, feeds)
    except ModelError as error:
        free = [s.name for s in specs if any(not isinstance(n, int) for n in s.shape[1:])]
        if not guess or not free:
            raise
        tried = []
        if [len(s.shape) for s in specs] == [4]:
            shape = next(iter(feeds.values())).shape
            for size in LINES:
                with contextlib.suppress(UsageError):  # a fixed axis says otherwise
                    tried.append(ports.default_feed(specs, shapes={specs[0].name: (*shape[:2], *size)}))
        for other in (*tried, *(ports.default_feed(specs, size=size) for size in GUESSES)):
            with contextlib.suppress(ModelError):
                return other, observe(graph, other)
        raise ModelError(f"{error}; say what sizes it takes: --input-shape {free[0]}=1,3,H,W") from error
