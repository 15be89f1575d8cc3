"""A user's measure of quality: a function of theirs, labelled samples, or agreement with the original.

A metric is a number for a model, the higher the better; `--max-drop` is in its unit.
"""

from __future__ import annotations

import re
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
from onnxprune.measure import labelled
from onnxprune.measure.agreement import ONE_CLASS, PartFidelity
from onnxprune.measure.fidelity import check_fidelity
from onnxprune.measure.figures import DROPS, FIGURES, value_of
from onnxprune.measure.part import Part, Values
from onnxprune.measure.parts import parts_of
from onnxprune.measure.verdict import deciding
from onnxprune.runtime import ports, sessions
from onnxprune.samples.arrays import member
from onnxprune.samples.calibration import GIB, open_calibration
from onnxprune.samples.messages import as_error, shown
from onnxprune.samples.user_code import importable, load_function

Metric = Callable[[onnx.ModelProto], float]


def open_metric(
    spec: str,
    specs: Sequence[ports.InputSpec],
    *,
    threads: int | None = None,
    shapes: Sizes | None = None,
    said: Said = NOTHING,
) -> Metric:
    """The metric that `--eval` names.

    Args:
        spec: `file.py:function`, a function of the path of an ONNX file that returns a number; or an .npz file with the
            model's inputs by name and labels (`measure.labelled`), behind it a figure where it is not the usual one, as
            in `labelled.npz:box_map50`.
        specs: the model's inputs.
        threads: ORT threads.
        shapes, said: as for `parts_of`.

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
    fits = re.fullmatch(r"(.+\.npz)(?::(\w+))?", spec)
    if fits is None:
        near = nearest(spec, DROPS)
        hint = f"; did you mean {near}, as in --max-drop {near}=1?" if near else ""
        raise UsageError(f"--eval {spec} is neither file.py:function nor an .npz file with labels{hint}")
    return Labelled(fits[1], specs, of=fits[2], threads=threads, shapes=shapes, said=said)


class Labelled:
    """What labels say of a model, in percent (`measure.labelled`).

    Args:
        path: an .npz file with the model's inputs by name, and labels beside them.
        specs: the model's inputs.
        of: a figure by its name; None: the usual one of labels of that kind.
        threads: ORT threads.
        shapes, said: as for `parts_of`.

    Attributes:
        name: what it is, in words.
        found: what the labels are, and of which output; known once a model was measured.

    Raises:
        CalibrationError: the samples or the labels cannot be used.
        UsageError: labels of that kind have no such figure.
    """

    def __init__(
        self,
        path: str,
        specs: Sequence[ports.InputSpec],
        *,
        of: str | None = None,
        threads: int | None = None,
        shapes: Sizes | None = None,
        said: Said = NOTHING,
    ) -> None:
        if not Path(path).is_file():
            raise CalibrationError(f"{shown(path)}: not found, or no file; give an .npz file with labels")
        self.path, self.threads, self.shapes, self.said = path, threads, shapes or {}, said
        inputs = {s.name for s in specs}
        self.data = open_calibration(path, specs)
        named = [key for key in labelled.keys() if key not in inputs]
        arrays = {key: v for key in named if (v := member(Path(path), [key], 2 * GIB)) is not None}
        found = labelled.found_in(arrays, len(self.data))
        if found is None:
            raise CalibrationError(self._unfit(arrays))
        self.entry, self.labels = found
        self.arrays = {**arrays, "samples": np.array(len(self.data))}
        self.of = self.entry.figures[0] if of is None else of
        if self.of not in self.entry.figures:
            raise UsageError(self._has_not(self.of))
        self.name, self.found = f"{FIGURES[self.of].title} of {Path(path).name} in percent", ""
        self._part: Part | None = None

    def __call__(self, model: onnx.ModelProto) -> float:
        """In percent. The first model that is measured is the original: what its outputs are for is told from it.

        Raises:
            UsageError: no output is what the labels are of.
        """
        session = sessions.open_session(model, threads=self.threads, name="evaluated")
        judge, at = None, 0
        for feeds in self.data.batches(64):
            now = dict(zip(session.outputs, map(np.asarray, session.run(dict(feeds))), strict=True))
            count = len(next(iter(feeds.values())))
            if judge is None:
                judge = self._judge(model, now, count)
            judge.add(now, slice(at, at + count), count)
            at += count
        figures = {} if judge is None else judge.figures()
        if self.of not in figures:
            raise UsageError(self._has_not(self.of, figures))
        return 100 * figures[self.of]

    def _judge(self, model: onnx.ModelProto, now: Values, samples: int) -> labelled.Judge:
        graph = Graph(model)
        parts = parts_of(graph, self.shapes, now, said=self.said, samples=samples) if self._part is None else []
        part = self._part or labelled.part_for(self.entry, parts, now)
        if part is None:
            kinds = ", ".join(f"{p.name} is {p.kind}" for p in parts)
            wanted = " or ".join(self.entry.kinds)
            known = f"{self.path}: labels are {self.entry.name}, and no output is {wanted} ({kinds})"
            remedy = "say what outputs are (--output-kind), or give a metric of your own: --eval file.py:function"
            raise UsageError(one_line(f"{known}; {remedy}"))
        try:
            judge = self.entry.judge(self.labels, self.arrays, part, now)
        except ValueError as error:
            raise CalibrationError(
                one_line(f"{self.path}: {self.entry.name} of output {part.name!r}: {error}")
            ) from None
        self._part, title = part, FIGURES[self.of].title
        self.found = f"labels: {self.entry.name} of output {part.name!r}, {len(self.data)} samples: {title}"
        return judge

    def _unfit(self, arrays: Mapping[str, np.ndarray]) -> str:
        """Why no array is labels."""
        count, key = len(self.data), next((k for e in labelled.TABLE for k in e.keys if k in arrays), None)
        if key is None:
            others = ", ".join(e.keys[0] for e in labelled.TABLE if e.keys[0] != "labels")
            needs = "--eval needs one of them beside the samples"
            return f"{self.path}: no whole numbers under labels, nor {others}; {needs}"
        value = arrays[key]
        if key != "boxes" and value.ndim and len(value) != count:
            return f"{self.path}: {count} samples but {len(value)} {key}"
        wanted = " or ".join(dict.fromkeys(e.wanted for e in labelled.TABLE if key in e.keys))
        what = f"no whole numbers under {key}" if key in labelled.NAMES else f"{key} does not fit {count} samples"
        return one_line(f"{self.path}: {what}: {value.dtype} of shape {list(value.shape)}; give {wanted}")

    def _has_not(self, of: str, has: Iterable[str] | None = None) -> str:
        known = ", ".join(self.entry.figures if has is None else has)
        return one_line(f"{self.path}: labels are {self.entry.name}, which have no {of}; choose from {known}")


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
