"""A user's measure of quality: a function of theirs, labelled samples, or agreement with the original.

A metric is a number for a model, the higher the better; `--max-drop` is in its unit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.errors import CalibrationError, UsageError, nearest, one_line
from onnxprune.files.write import atomic_write
from onnxprune.graph.joined import Sizes
from onnxprune.graph.model import Graph
from onnxprune.graph.said import NOTHING, Said
from onnxprune.measure.agreement import ONE_CLASS, PartFidelity
from onnxprune.measure.fidelity import check_fidelity
from onnxprune.measure.figures import DROPS, FIGURES, value_of
from onnxprune.measure.verdict import deciding
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
        near = nearest(spec, DROPS)
        hint = f"; did you mean {near}, as in --max-drop {near}=1?" if near else ""
        raise UsageError(f"--eval {spec} is neither file.py:function nor an .npz file with labels{hint}")
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


class Agreement:
    """How far a model says what the original says, in percent; no labels needed.

    Args:
        original: the network.
        batches: gives the samples.
        shapes, said: as for `check_fidelity`.
        of: a figure by its name (`measure.figures`), of the worst part that has it; None: that which a person would
            ask for of the part that decides (`measure.verdict.deciding`).

    Attributes:
        name: what it is, in words; known once something was measured.
    """

    def __init__(
        self,
        original: Graph,
        batches: Callable[[], Iterable[Mapping]],
        *,
        shapes: Sizes | None = None,
        said: Said = NOTHING,
        of: str | None = None,
    ) -> None:
        self.original, self.batches, self.shapes, self.said, self.of = original, batches, shapes, said, of
        self.name = named(of)

    def __call__(self, model: onnx.ModelProto) -> float:
        """In percent.

        Raises:
            UsageError: no output has such a thing.
        """
        parts = check_fidelity(self.original, model, self.batches(), shapes=self.shapes, said=self.said).parts
        found = deciding(parts) if self.of is None else _worst(self.of, parts)
        if found is None:
            raise UsageError(self._nothing(parts))
        part, name = found
        self.name = named(name, part, alone=len(parts) == 1)
        return 100 * max(value_of(name, part) or 0.0, 0.0)

    def _nothing(self, parts: Sequence[PartFidelity]) -> str:
        if self.of is None or not parts:
            return "no output to compare; give a metric of your own: --eval file.py:function"
        kinds = ", ".join(f"{part.name} is {part.kind}" for part in parts)
        has = [name for name in DROPS if any(value_of(name, part) is not None for part in parts)]
        known = f"no output has {self.of} ({kinds}); choose from {', '.join(has)}"
        return one_line(f"{known}, or say what outputs are: --output-kind")


def agreement(original: Graph, batches: Callable[[], Iterable[Mapping]], **how: Any) -> Agreement:
    """How far a model says what the original says; arguments as of `Agreement`."""
    return Agreement(original, batches, **how)


def _worst(name: str, parts: Sequence[PartFidelity]) -> tuple[PartFidelity, str] | None:
    """The part of which a figure is worst, and the figure's name; None where none has it."""
    have = [part for part in parts if value_of(name, part) is not None]
    return min(((part, name) for part in have), key=lambda f: value_of(name, f[0]) or 0.0, default=None)


def named(figure: str | None, part: PartFidelity | None = None, *, alone: bool = True) -> str:
    """`box F1 of y[:, 0:4] in percent`, and how often the original decides the same where it nearly always does."""
    if figure is None:
        return "agreement with the original in percent"
    where = "" if alone or part is None else f" of {part.name}"
    rate = "" if part is None or part.base_rate is None or part.base_rate < ONE_CLASS else (
        f" ({part.base_rate:.0%} of the original's decisions are one)"
    )  # fmt: skip
    return f"{FIGURES[figure].title}{where} in percent{rate}"


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
