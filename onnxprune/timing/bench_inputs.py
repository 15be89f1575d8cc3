"""What is timed: models, each under a name, and the one input that fits them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.errors import PruneError, UsageError, one_line
from onnxprune.files.read import read_model
from onnxprune.graph.barrier import Barrier
from onnxprune.graph.rehearsal import Rehearsal
from onnxprune.runtime.child import Stopped
from onnxprune.runtime.sessions import Session

Model = str | Path | bytes | onnx.ModelProto


def labels_of(models: Sequence[Model], names: Sequence[str] | None) -> list[str]:
    """Given names, or file stems; a name that came before gets a number."""
    if names is not None:
        if len(names) != len(models):
            raise UsageError(f"{len(models)} models but {len(names)} names - give one name a model")
        if len(set(names)) != len(names):
            raise UsageError(f"names must differ: {', '.join(names)}")
        return list(names)
    labels: list[str] = []
    for i, model in enumerate(models, 1):
        stem = Path(model).stem if isinstance(model, str | Path) else f"model {i}"
        label, n = stem, 2
        while label in labels:
            label, n = f"{stem} ({n})", n + 1
        labels.append(label)
    return labels


def rehearse(
    model: Model, label: str, feeds: Mapping[str, NDArray[Any]] | None, made: Callable[..., dict[str, NDArray[Any]]]
) -> None:
    """Run a model in a child, on the CPU, with one sample that is `made` unless the input is given. What else is wrong
    with it is told when it is timed.

    Raises:
        Stopped: it took too much, or ended the child.
    """
    name = str(model) if isinstance(model, str | Path) else label
    try:
        Rehearsal(name).run(model, made if feeds is None else feeds)
    except Stopped:
        raise
    except PruneError:
        pass


def part_of(model: Model, label: str, shapes: Mapping[str, Sequence[int]] | None, *, trusted: bool) -> Barrier | None:
    """Where a model that ONNX Runtime does not load is split, so that a part runs; None where there is no such part.

    Args:
        model, label: it, and what messages call it.
        shapes: sizes of what its nodes that do not run make, by name.
        trusted: whether that is found out in this process.
    """
    if isinstance(model, onnx.ModelProto):
        proto = model
    else:
        proto = onnx.ModelProto.FromString(model) if isinstance(model, bytes) else read_model(Path(model))
    stops = Rehearsal(label, trusted).stopping(proto, shapes)
    found = Barrier.of(proto, stops, shapes) if stops else None
    return found if found is not None and found.part.graph.node else None


def fitting_feeds(
    opened: Sequence[Session],
    feeds: Mapping[str, NDArray[Any]] | None,
    source: str,
    *,
    batch: int,
    made: Callable[..., dict[str, NDArray[Any]]],
    seed: int,
) -> dict[str, NDArray[Any]]:
    """The input, which every model takes.

    Args:
        opened: the models' sessions.
        feeds: the input, if there is one already; None: a random one for the first model.
        source: what it is called where it does not fit.
        batch, made, seed: of a random one, and what makes it.

    Raises:
        UsageError: a model does not take it, or the batch that was asked for is not what runs.
    """
    if feeds is None:
        feeds = made(opened[0].inputs, batch=batch, seed=seed)
        _check_batch(feeds, batch, opened[0].name)
    feeds = {name: np.asarray(array, order="C") for name, array in feeds.items()}
    for session in opened:
        _check_inputs(session, feeds, source)
    return feeds


def _check_inputs(session: Session, feeds: Mapping[str, NDArray[Any]], source: str) -> None:
    """The one feed, from `source`, must fit the model: the same names and dtypes, and every fixed axis."""
    name, specs = session.name, {spec.name: spec for spec in session.inputs}
    if specs.keys() != feeds.keys():
        raise UsageError(
            one_line(
                f"{name}: its inputs are {_listed(specs)}, but {source}: {_listed(feeds)} - "
                "models can only be compared on the same inputs"
            )
        )
    for key, spec in specs.items():
        array, dtype = feeds[key], np.dtype(spec.dtype)
        if dtype != array.dtype:
            raise UsageError(
                one_line(f"{name}: input {key} is {dtype}, but {source}: {array.dtype} - cast one of them")
            )
        fits = len(spec.shape) == array.ndim and all(
            not isinstance(size, int) or size == given for size, given in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            raise UsageError(
                one_line(
                    f"{name}: input {key} is {_shape(spec.shape)}, but {source}: {_shape(array.shape)} - "
                    "pass a batch, shapes or feeds that fit every model"
                )
            )


def _check_batch(feeds: Mapping[str, NDArray[Any]], batch: int, name: str) -> None:
    """A batch that was asked for must be the one that is run."""
    runs = batch_of(feeds, batch)
    if batch not in (1, runs):
        key, array = next((key, array) for key, array in feeds.items() if array.ndim)
        raise UsageError(
            one_line(
                f"{name}: batch {batch} was asked for, but input {key} is {_shape(array.shape)}: its first axis is "
                "fixed, by the model or by the shape given; drop the batch, or export with a dynamic batch axis"
            )
        )


def batch_of(feeds: Mapping[str, NDArray[Any]], batch: int) -> int:
    """What one run really computes: the first axis of the first input that has one."""
    return next((array.shape[0] for array in feeds.values() if array.ndim), batch)


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"


def _shape(shape: Sequence[Any]) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"
