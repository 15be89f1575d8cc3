"""The plan: which edits make the smaller model. The seam between deciding and rewriting.

A plan names channel groups, so it can be read, changed by hand and replayed: `onnxprune plan` writes one,
`onnxprune apply` uses it. It belongs to one model, known by its digest. What carrying it out must know stands beside
the edits; how it came about (`Origin`) is for the reader, and nothing is decided by it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from onnxprune.errors import PlanError, UsageError, one_line
from onnxprune.files.text import read_text
from onnxprune.files.write import atomic_write_text
from onnxprune.plan.edits import (
    KINDS,
    DropBlock,
    Edit,
    Factorize,
    FuseLayers,
    KeepChannels,
    MergeBlock,
    MergeColumns,
    Resample,
    edit_of,
)

SCHEMA = 1
Value = str | int | float | bool | Sequence[object] | Mapping[str, object]
"""What a setting may be."""


@dataclass(frozen=True)
class Origin:
    """How a plan came about, for the reader. What decides when it is carried out are fields of the plan itself.

    Attributes:
        ratio: share of the cost that was to go.
        target: what was to be reached, by its name: {"speedup": 2.0}.
        came_to: the ratio that the target came to.
        metric: what a target measured, in words.
        lossless: whether only what changes no output was to go.
        settings: every setting by its name, as it came out: the criterion that was taken, not the one asked for.
        samples: how many there were.
        samples_digest: SHA-256 of them all, in order.
        version: of onnxprune.
        leading: groups that keep their first channels instead of the best, so that rounding stays the same.
        trained: the method of training that prepared the cut.
        steps: of its optimizer.
        unread, constant, twins: channels that a lossless plan removes, by why they can go.
        fused: runs of linear layers that a lossless plan makes one.
        spared: further ones, that would leave widths which run slower.
        given_up: groups and runs left whole because an output moved.
        made_for: digest of the model that it was made for, before it was transferred to a twin.
        predicted: old time over new, as it was predicted for a device, uncorrected.

    None, and not in JSON, where it does not apply.
    """

    ratio: float | None = None
    target: Mapping[str, float] | None = None
    came_to: float | None = None
    metric: str | None = None
    lossless: bool | None = None
    settings: Mapping[str, Value] = field(default_factory=dict)
    samples: int | None = None
    samples_digest: str | None = None
    version: str | None = None
    leading: int | None = None
    trained: str | None = None
    steps: int | None = None
    unread: int | None = None
    constant: int | None = None
    twins: int | None = None
    fused: int | None = None
    spared: int | None = None
    given_up: Sequence[str] | None = None
    made_for: str | None = None
    predicted: float | None = None

    def to_dict(self) -> dict[str, Value]:
        """Plain values, the settings among the others; `from_dict` gives it back."""
        found: dict[str, Value] = {}
        for own in fields(self):
            value = getattr(self, own.name)
            found |= value if own.name == "settings" else {own.name: value}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items() if v is not None}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Origin:
        """What `to_dict` made, of this version or another: a name that is not an attribute is that of a setting."""
        own = {f.name for f in fields(cls)} - {"settings"}
        frozen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        settings = {k: v for k, v in frozen.items() if k not in own}
        return cls(**{k: v for k, v in frozen.items() if k in own}, settings=settings)


@dataclass(frozen=True)
class PrunePlan:
    """All edits to one model, and what carrying them out must know.

    Attributes:
        model_digest: SHA-256 of the model that the plan was made for.
        edits: the edits, in the order of the graph.
        origin: how the plan came about; two plans that do the same are the same, whatever they remember.
        lossless: the outputs stay the original's, and nothing is repaired.
        by_likeness: channels were taken out for being like others: a repair of statistics first adds each to the
            kept one that is likest.
        prune_statistics: groups are found under nodes that normalize over channels too; the cut is then inexact.
        seed: which samples are held out, and everything else that is random.
        batch, providers: how the outcome is timed unless told otherwise.
        structure: of the model, apart from names and values (`channels.structure`): what a twin is known by.
    """

    model_digest: str
    edits: tuple[Edit, ...]
    origin: Origin = field(default=Origin(), compare=False)
    lossless: bool = False
    by_likeness: bool = False
    prune_statistics: bool = False
    seed: int = 0
    batch: int = 1
    providers: tuple[str, ...] = ("cpu",)
    structure: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def settings(self) -> Mapping[str, Value]:
        """How the plan came about, as JSON has it. For the reader."""
        return self.origin.to_dict()

    def narrowed(self) -> tuple[KeepChannels, ...]:
        """The edits that remove channels."""
        return tuple(e for e in self.edits if isinstance(e, KeepChannels))

    def drops(self) -> tuple[DropBlock, ...]:
        """The edits that take blocks out."""
        return tuple(e for e in self.edits if isinstance(e, DropBlock))

    def merged(self) -> tuple[MergeBlock, ...]:
        """The edits that make one convolution of a block."""
        return tuple(e for e in self.edits if isinstance(e, MergeBlock))

    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks that go: residual ones, and groups that go whole."""
        return tuple(
            e.block if isinstance(e, DropBlock) else e.group
            for e in self.edits
            if isinstance(e, DropBlock) or (isinstance(e, KeepChannels) and not e.keep)
        )

    def factorized(self) -> tuple[Factorize, ...]:
        """The edits that make two layers out of one."""
        return tuple(e for e in self.edits if isinstance(e, Factorize))

    def fused(self) -> tuple[FuseLayers, ...]:
        """The edits that make one layer of a run of linear ones."""
        return tuple(e for e in self.edits if isinstance(e, FuseLayers))

    def resampled(self) -> tuple[Resample, ...]:
        """The edits that let the network see an input at other sizes."""
        return tuple(e for e in self.edits if isinstance(e, Resample))

    def merges(self) -> tuple[MergeColumns, ...]:
        """The edits that hand on what removed channels contributed."""
        return tuple(e for e in self.edits if isinstance(e, MergeColumns))

    def keep(self) -> dict[str, tuple[int, ...]]:
        """Group name -> kept channels."""
        return {e.group: e.keep for e in self.narrowed()}

    def leading(self, groups: Collection[str]) -> PrunePlan:
        """The same widths, but these groups keep their first channels, so that what stays is summed in the order
        that it had: then kernels that sum block by block round as before, to the last bit."""

        def first(e: Edit) -> Edit:
            if isinstance(e, KeepChannels) and e.group in groups:
                return replace(e, keep=tuple(range(len(e.keep))))
            return e

        return replace(self, edits=tuple(map(first, self.edits)), origin=replace(self.origin, leading=len(groups)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` gives the plan back."""
        return {
            "schema": SCHEMA,
            "kind": "onnxprune plan",
            "model_digest": self.model_digest,
            **{name: getattr(self, name) for name in CARRIED},
            "settings": self.origin.to_dict(),
            "edits": [{"edit": KINDS[type(e)], **asdict(e)} for e in self.edits],
            **({"structure": dict(self.structure)} if self.structure else {}),
        }

    def to_json(self, run: Mapping[str, Any] | None = None) -> str:
        """JSON text; `from_json` gives the plan back.

        Args:
            run: when, where and by which command it was made, for the reader.
        """
        return json.dumps(self.to_dict() | ({"run": dict(run)} if run else {}), indent=1) + "\n"

    def save(self, path: str | PathLike[str], *, force: bool = False) -> Path:
        """Write the plan as JSON, whole or not at all; `load` reads it.

        Raises:
            FileError: the path exists (and not `force`), or cannot be written.
        """
        atomic_write_text(self.to_json(), Path(path), force=force)
        return Path(path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> PrunePlan:
        """Read the file of a plan, as `save` and `onnxprune plan` write it.

        Raises:
            FileError: there is no such file.
            UsageError: it is not a plan, or one of a newer schema.
        """
        try:
            return cls.from_json(read_text(Path(path)))
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
        except (UnicodeDecodeError, RecursionError) as error:
            raise UsageError(one_line(f"{path}: not a plan; write one with `onnxprune plan MODEL`")) from error

    @classmethod
    def from_json(cls, text: str) -> PrunePlan:
        """Read a plan.

        Raises:
            PlanError: not a plan, or one of a newer schema.
        """
        try:
            content = read_json(text)
        except (ValueError, OverflowError) as error:
            raise PlanError(f"the plan cannot be read: {error!r} - write one with `onnxprune plan MODEL`") from error
        return cls.from_dict(content)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> PrunePlan:
        """What `to_dict` made.

        Raises:
            PlanError: not a plan, or one of a newer schema.
        """
        try:
            if content.get("kind") != "onnxprune plan":
                raise PlanError("not an onnxprune plan - write one with `onnxprune plan MODEL`")
            if content["schema"] > SCHEMA:
                raise PlanError(f"the plan has schema {content['schema']}, this onnxprune reads {SCHEMA} - upgrade")
            edits = tuple(map(edit_of, content["edits"]))
            settings = dict(content.get("settings", {}))
            known = _structure(content.get("structure") or {})
            own = _carried(content, settings)
            return cls(str(content["model_digest"]), edits, Origin.from_dict(settings), **own, structure=known)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            if isinstance(error, PlanError):
                raise
            raise PlanError(f"the plan cannot be read: {error!r} - write one with `onnxprune plan MODEL`") from error


def _structure(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The structure that a plan remembers, from a file.

    Raises:
        TypeError, ValueError: it is none.
    """
    named = {part: {str(k): str(v) for k, v in dict(content.get(part, {})).items()} for part in MARKED}
    return {**named, "layers": [str(label) for label in content.get("layers", ())]} if content else {}


MARKED = ("places", "groups", "weights")
"""What a structure knows by name."""


def read_json(text: str) -> Any:
    """What JSON text says.

    Raises:
        ValueError: it is no JSON, or holds a number that is not finite, which JSON does not have, or a whole one of
            more than 64 bits.
    """

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(f"{number} is no number")
        return value

    def whole(number: str) -> int:
        if not -(2**63) <= (value := int(number)) < 2**64:
            raise ValueError(f"{number[:20]}... is too large")
        return value

    return json.loads(text, parse_float=finite, parse_constant=finite, parse_int=whole)


CARRIED = {"lossless": False, "by_likeness": False, "prune_statistics": False, "seed": 0, "batch": 1,
           "providers": ("cpu",)}  # fmt: skip
"""What carrying a plan out must know besides its edits, and what holds where a file says nothing."""


def _carried(content: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same, from a file. One of before they were fields has them among its settings."""
    older = {**settings, "by_likeness": settings.get("criterion") == "similarity"}
    found: dict[str, Any] = {}
    for name, usual in CARRIED.items():
        given = content.get(name, older.get(name, usual))
        value = tuple(given) if isinstance(given, list) else given
        if type(value) is not type(usual) or (isinstance(value, tuple) and not all(isinstance(v, str) for v in value)):
            raise PlanError(f"the plan cannot be read: {name} is {given!r} - see what `onnxprune plan` writes")
        found[name] = value
    return found
