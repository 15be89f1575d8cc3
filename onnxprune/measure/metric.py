"""A user's measure of quality: a function of theirs, labelled samples, or agreement with the original.

A metric is a number for a model, the higher the better; `--max-drop` is in its unit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from onnxprune.errors import CalibrationError, UsageError
from onnxprune.files.write import atomic_write
from onnxprune.graph.joined import Sizes
from onnxprune.graph.model import Graph
from onnxprune.graph.said import NOTHING, Said
from onnxprune.measure.fidelity import check_fidelity
from onnxprune.measure.verdict import basis
from onnxprune.runtime import ports, sessions
from onnxprune.samples.arrays import member
from onnxprune.samples.calibration import GIB, open_calibration
from onnxprune.samples.messages import as_error, shown
from onnxprune.samples.user_code import importable, load_function

Metric = Callable[[onnx.ModelProto], float]
LABELS = ("labels", "label", "y")
"""Names that the array of labels may have in a file of labelled samples."""


def open_metric(spec: str, specs: Sequence[ports.InputSpec], *, threads: int | None = None) -> Metric:
    """The metric that `--eval` names.

    Args:
        spec: `file.py:function`, a function of the path of an ONNX file that returns a number; or an .npz file with the
            model's inputs by name and the class numbers under `labels`: top-1 in percent.
        specs: the model's inputs.
        threads: ORT threads.

    Raises:
        CalibrationError: the samples cannot be used.
        UsageError: neither of both.
    """
    if ".py:" in spec:
        function, home = load_function(spec)

        def own(model: onnx.ModelProto) -> float:
            with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder, importable(home):
                path = Path(folder, "model.onnx")
                atomic_write(model, path)
                with as_error(UsageError, f"--eval {spec}: raised"):
                    found = function(str(path))
            try:
                value = float(found)
            except (TypeError, ValueError):
                raise UsageError(f"--eval {spec}: returned {type(found).__name__}, not a number") from None
            if not np.isfinite(value):
                raise UsageError(f"--eval {spec}: returned {value}")
            return value

        return own
    if not spec.endswith(".npz"):
        raise UsageError(f"--eval {spec} is neither file.py:function nor an .npz file with labels")
    return _top1(spec, specs, threads)


def _top1(path: str, specs: Sequence[ports.InputSpec], threads: int | None) -> Metric:
    if not Path(path).is_file():
        raise CalibrationError(f"{shown(path)}: not found, or no file; give an .npz file with labels")
    labels = member(Path(path), [n for n in LABELS if n not in {s.name for s in specs}], 2 * GIB)
    if labels is None or labels.dtype.kind not in "iu":
        raise CalibrationError(f"{path}: no whole numbers under {' or '.join(LABELS)}; --eval needs the classes there")
    labels, data = labels.ravel(), open_calibration(path, specs)
    if len(data) != len(labels):
        raise CalibrationError(f"{path}: {len(data)} samples but {len(labels)} labels")

    def accuracy(model: onnx.ModelProto) -> float:
        scores = np.concatenate([out for out in _scores(model, data.batches(64), threads)])
        return 100 * float((scores.argmax(axis=-1) == labels).mean())

    return accuracy


def agreement(
    original: Graph, batches: Callable[[], Iterable[Mapping]], *, shapes: Sizes | None = None, said: Said = NOTHING
) -> Metric:
    """How far a model says what the original says, in percent; no labels needed: what the verdict on the worst part of
    its outputs goes by (the same decisions, or R² where there are none)."""

    def metric(model: onnx.ModelProto) -> float:
        found = check_fidelity(original, model, batches(), shapes=shapes, said=said)
        worst = min((basis(part) for part in found.parts), default=None)
        if worst is None:
            raise UsageError("no output to compare; give a metric of your own: --eval file.py:function")
        return 100 * max(worst, 0.0)

    return metric


def _scores(model: onnx.ModelProto, batches: Iterable[Mapping], threads: int | None) -> Iterable[np.ndarray]:
    session = sessions.open_session(model, threads=threads, name="evaluated")
    for feeds in batches:
        scores = session.run(dict(feeds))[0]
        if scores.ndim != 2 or scores.shape[1] < 2:
            raise UsageError(
                f"output {session.outputs[0]!r} has shape {scores.shape}, not (samples, classes); "
                "give a metric of your own: --eval file.py:function"
            )
        yield scores
