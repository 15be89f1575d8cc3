"""What a run is about: the settings that decide the outcome, and the model opened for it.

Checks what can be checked before any work is done.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import Any

from onnxprune.decide.allocation import ALLOCATIONS
from onnxprune.decide.criteria import named
from onnxprune.errors import UsageError
from onnxprune.plan import Value
from onnxprune.runtime.providers import check_providers

REPAIRS = ("none", "merge", "statistics", "refit", "distill")
METHODS = ("channels", "blocks", "rank")
USUAL = ("channels", "blocks")
"""The kinds of edits that are made unless others are asked for."""
RECIPES = ("3c",)
"""What stands in place of methods: a fixed order of edits."""
KINDS = ("macs", "params", "channels", "latency")
"""What a cost may count."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome besides the model and the samples.

    Attributes:
        ratio: share of the cost to remove, between 0 and 1.
        of: what counts: "macs", "params", "channels" or "latency" (of a run on this machine); None: MACs, or what
            serves a target.
        criterion: how channels are ranked; None: "elimination" when there are samples, else "activation".
        allocation: "adaptive", "global" or "uniform"; None: adaptive when there are samples, else uniform.
        repair: "none", "merge", "statistics", "refit" or "distill" (refit, then training without labels; needs torch);
            None: refit when there are samples, else merge.
        epochs: passes over the samples when distilling.
        augment: how distillation varies the samples: "flip", "shift=2" (pixels), "mixup=0.5" and "cutmix=0.5"
            (shares).
        recipe: a file.py with labelled data and a loss to train on beside the distillation, and to differentiate for
            the criteria "taylor", "fisher" and "obd".
        round_to: widths are multiples of this, or "auto".
        min_width: least width of a group.
        include, exclude: regular expressions on the names of groups and their weights.
        methods: kinds of edits: "channels", "blocks" (whole residual blocks) and "rank" (layers made of two); the
            last two need samples and the adaptive allocation, and are left out without them. Or ("3c",): spatial
            factorisation, channel factorisation and channels in turn. None: all kinds where times count, else channels
            and blocks: which factors are faster has to be timed, and then two runs may differ.
        keep_block: blocks with a node whose name matches this regular expression stay.
        lossless: remove only what changes no output; the ratio does not count then.
        best_effort: take what can be reached instead of failing when the ratio cannot.
        prune_statistics: also cut axes over which a normalization takes its mean; the cut is then inexact.
        seed: for everything random.
        threads: ORT threads, and tasks side by side; None: as many as there are cores, one for timed runs.
        batch: samples in a run that is timed.
        providers: what timed runs run on, short names as `bench` takes them; all else runs on the CPU, training apart.
        provider_options: options of theirs, by provider.
    """

    ratio: float = 0.5
    of: str | None = None
    criterion: str | None = None
    allocation: str | None = None
    repair: str | None = None
    round_to: int | str = "auto"
    min_width: int = 1
    include: str | None = None
    exclude: str | None = None
    methods: tuple[str, ...] | None = None
    keep_block: str | None = None
    lossless: bool = False
    best_effort: bool = False
    prune_statistics: bool = False
    epochs: int = 40
    augment: tuple[str, ...] = ()
    recipe: str | None = None
    seed: int = 0
    threads: int | None = None
    batch: int = 1
    providers: tuple[str, ...] = ("cpu",)
    provider_options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise UsageError(f"ratio {self.ratio} is not between 0 and 1; 0.5 removes half")
        criterion = None if self.criterion is None else named(self.criterion)
        _one_of("repair", self.repair, REPAIRS)
        _one_of("allocation", self.allocation, ALLOCATIONS)
        _one_of("of", self.of, KINDS)
        if self.repair == "distill" and find_spec("torch") is None:
            raise UsageError('--repair distill needs torch - pip install "onnxprune[train]"')
        if criterion is not None:
            criterion.check_packages()
        trained = self.repair == "distill" or (criterion is not None and "gradients" in criterion.needs)
        if self.epochs < 1:
            raise UsageError("distillation takes at least one epoch")
        if (self.recipe and not trained) or (self.augment and self.repair != "distill"):
            raise UsageError("--augment and --recipe are for training; give --repair distill")
        methods = self.kinds()
        for method in methods:
            _one_of("method", method, (*METHODS, *RECIPES))
        if set(methods) & set(RECIPES) and len(methods) > 1:
            raise UsageError(f"--methods {','.join(methods)}: a recipe stands alone; {RECIPES[0]} or a list")
        if not methods:
            raise UsageError(f"no method given; any of {', '.join(METHODS)}")
        if self.min_width < 1 or (self.round_to != "auto" and int(self.round_to) < 1):
            raise UsageError("widths and their rounding are at least 1")
        if self.seed < 0 or (self.threads is not None and self.threads < 1):
            raise UsageError("the seed is at least 0, the number of threads at least 1")
        if self.batch < 1:
            raise UsageError(f"the batch is at least 1, not {self.batch}")
        check_providers(self.providers, self.provider_options)
        if self.lossless and self.repair not in (None, "none"):
            raise UsageError(f"a lossless cut leaves nothing to repair; drop --repair {self.repair}")
        for pattern in filter(None, (self.include, self.exclude, self.keep_block)):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UsageError(f"{pattern!r} is not a regular expression: {error}") from error

    def decided(self, came_to: Mapping[str, Value] | None = None) -> dict[str, Value]:
        """All settings by name; `came_to`: what those came to that were left open."""
        given = {f.name: getattr(self, f.name) for f in fields(self)} | dict(came_to or {})
        return {name: value for name, value in given.items() if value is not None}

    def kinds(self) -> tuple[str, ...]:
        """The kinds of edits that are meant."""
        if self.methods is not None:
            return self.methods
        return METHODS if self.of == "latency" else USUAL


def _one_of(what: str, value: str | None, known: Sequence[str] | Mapping[str, Any]) -> None:
    if value is not None and value not in known:
        raise UsageError(f"unknown {what} {value!r}; one of {', '.join(known)}")
