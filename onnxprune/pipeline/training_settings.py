"""How to prune while training: the settings, checked before any work is done."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from onnxprune.errors import UsageError, one_line, unknown
from onnxprune.pipeline.goals import Ratio
from onnxprune.pipeline.options import hinting
from onnxprune.pipeline.settings import Settings
from onnxprune.pipeline.training_methods import TrainingMethod, method_named
from onnxprune.plan import Value

KINDS = ("macs", "params", "channels")
"""What training may work towards."""
LINE = ("step", "loss", "held_out", "seconds")
"""What every line of the metrics has."""


@dataclass(frozen=True)
class TrainSettings:
    """How to prune while training.

    Attributes:
        method: one of the table in `pipeline.training_methods`: "csgd" (channels of a cluster become the same), "gsm"
            (channels that matter least die), "trp" (layers become of low rank, and are split), "gates" (channels and
            whole residual blocks, in proportions that are learned) or "tune" (the plan of `make_plan`). The last two
            cut and refit before they train.
        ratio: share of the cost to remove.
        of: what counts: "macs", "params" or "channels".
        steps: of the optimizer.
        batch: samples of a step; a recipe has batches of its own.
        lr: highest learning rate; None: the method's.
        augment: how unlabelled samples are varied: "flip", "shift=2", "crop=0.5", "mixup=0.5", "cutmix=0.5".
        recipe: file.py with labelled data and a loss, which is added to what the original teaches; None: it teaches
            on the calibration samples.
        include, exclude: regular expressions on the names of groups and their weights.
        checkpoint: file to go on from, written every 20 seconds.
        metrics: file that gets a line of JSON every hundred steps.
        metadata: whether the file says how it was made.
        options: of the method's own: "strength" (csgd), "every", "nuclear", "project" (trp), other `Settings` (tune).
        seed: for everything random.
        threads: of torch and ONNX Runtime.
    """

    method: str
    ratio: float = 0.5
    of: str = "macs"
    steps: int = 2000
    batch: int = 64
    lr: float | None = None
    augment: tuple[str, ...] = ()
    recipe: str | None = None
    include: str | None = None
    exclude: str | None = None
    checkpoint: Path | None = None
    metrics: Path | None = None
    metadata: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        method = self.how
        if find_spec("torch") is None:
            raise UsageError(f"--method {self.method} needs torch - pip install torch")
        if self.steps < 1 or self.batch < 1 or (self.lr is not None and self.lr <= 0):
            raise UsageError("steps, batch and learning rate are above 0")
        Ratio(self.ratio)
        if self.of not in KINDS:
            raise unknown("cost of training", self.of, KINDS)
        if method.takes_settings:
            known = other_settings()
            for name in self.options:
                if name not in known:
                    raise unknown(f"option of {method.name}", name, known)
            self.deciding(**self.options)
        else:
            for name, value in self.options.items():
                method.option(name).check(f"{method.name}: {name}", value)
            self.deciding()

    def files(self) -> list[Path]:
        """What training writes besides the model; files of an earlier run are gone on with."""
        return list(filter(None, (self.checkpoint, self.checkpoint_of_cut, self.metrics)))

    @property
    def checkpoint_of_cut(self) -> Path | None:
        """The checkpoint of what is trained behind the cut."""
        beside = self.checkpoint if self.how.cuts_first else None
        return beside and beside.with_name(f"{beside.name}.cut")

    def check_files(self, sources: Iterable[str | Path] = ()) -> None:
        """Refuse files that cannot be written, or that hold what no earlier run has written.

        Args:
            sources: files that must never be written over.

        Raises:
            FileError: for any of this.
            UsageError: two are the same, or the checkpoint is none.
        """
        from onnxprune.files.lines import check_lines
        from onnxprune.files.write import ensure_writable

        found = self.files()
        for path in found:
            ensure_writable(path, force=True, sources=sources)
        if len({os.path.realpath(path) for path in found}) < len(found):
            raise UsageError(one_line(f"{self.metrics}: checkpoint and metrics would go to one file; choose another"))
        for path in (path for path in found if path != self.metrics and path.exists()):
            if not path.is_file() or not is_zipfile(path):
                raise UsageError(one_line(f"{path}: not a checkpoint; remove it or name another file"))
        if self.metrics is not None:
            check_lines(self.metrics, LINE)

    @property
    def how(self) -> TrainingMethod:
        """The method.

        Raises:
            UsageError: there is none of that name.
        """
        return method_named(self.method)

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return self.how.rate if self.lr is None else self.lr

    def deciding(self, **settings: Any) -> Settings:
        """What decides the sizes; `settings`: what else is asked for."""
        own: dict[str, Any] = {
            "of": self.of, "methods": self.how.edits, "include": self.include,
            "exclude": self.exclude, "seed": self.seed, "threads": self.threads, "repair": "none",
            "metadata": self.metadata,
        }  # fmt: skip
        return Settings(**{**own, **settings})

    def decided(self) -> dict[str, Value]:
        """What a plan remembers of the settings, besides method, ratio and steps."""
        names = ("of", "batch", "lr", "augment", "recipe", "include", "exclude", "options", "seed", "threads")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


setattr(TrainSettings, "__init__", hinting(TrainSettings.__init__))  # noqa: B010 (mypy takes no assignment to a method)


def read_options(method: str, given: Sequence[str]) -> dict[str, Any]:
    """A method's options, given as NAME=VALUE.

    Raises:
        UsageError: there is no such method or option, or the value is none that it takes.
    """
    how, found = method_named(method), {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.replace("-", "_")
        if not equals:
            raise UsageError(f"{text!r} is not NAME=VALUE, an option of {method}")
        if how.takes_settings:
            known = other_settings()
            if name not in known:
                raise unknown(f"option of {method}", name, known)
            found[name] = _read(name, str(known[name].type), value)
        else:
            found[name] = how.option(name).read(f"{method}: {name}", value)
    return found


def _read(name: str, kinds: str, text: str) -> Any:
    """A setting of such types, as the text spells it; whether it makes sense, `Settings` says.

    Raises:
        UsageError: it is of none of the types.
    """
    if kinds.startswith("tuple"):
        return tuple(word.strip() for word in text.split(",") if word.strip())
    for kind, read in READ.items():
        if kind in kinds:
            with contextlib.suppress(ValueError, KeyError):
                return read(text)
    if "str" in kinds and "[" not in kinds:
        return text
    raise UsageError(f"{name} is of type {kinds}, which {text!r} does not spell")


READ: Mapping[str, Callable[[str], Any]] = {
    "bool": lambda text: {"true": True, "false": False}[text.lower()], "int": int, "float": float,
}  # fmt: skip


def other_settings() -> dict[str, Field[Any]]:
    """Name -> field of the `Settings` that say nothing that `TrainSettings` says too."""
    own = {f.name for f in fields(TrainSettings)}
    return {f.name: f for f in fields(Settings) if f.name not in own}
