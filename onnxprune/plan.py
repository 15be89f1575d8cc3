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

SCHEMA = 1


@dataclass(frozen=True)
class KeepChannels:
    """Keep these channels of a group and remove the others; with none, what makes them goes too.

    Attributes:
        group: the group's name, as `onnxprune inspect` prints it.
        width: its number of channels before.
        keep: the channels that stay, ascending; none only where others stand beside them in every Concat.
    """

    group: str
    width: int
    keep: tuple[int, ...]

    def __post_init__(self) -> None:
        if list(self.keep) != sorted(set(self.keep)):
            raise PlanError(f"plan: group {self.group!r} must keep its channels ascending, none twice")
        if self.keep and (self.keep[0] < 0 or self.keep[-1] >= self.width):
            raise PlanError(f"plan: group {self.group!r} has channels 0 to {self.width - 1}")


@dataclass(frozen=True)
class DropBlock:
    """Take a residual branch out: what it would have been added to is handed on.

    Attributes:
        block: the Add behind the branch, by its output.
        branch: which of the Add's operands goes.
        axis: an axis of that operand whose size is fixed, that of its channels.
        rank: its number of axes.
        length: its size on that axis.
    """

    block: str
    branch: int
    axis: int
    rank: int
    length: int

    def __post_init__(self) -> None:
        if self.branch not in (0, 1) or not 0 <= self.axis < self.rank or self.length < 1:
            raise PlanError(f"plan: block {self.block!r} has no operand {self.branch} with an axis {self.axis}")

    def as_removed(self) -> dict[str, object]:
        """The drop as an entry of the published `cuts`: the whole operand of the Add."""
        return {
            "node": self.block,
            "input": self.branch,
            "axis": self.axis,
            "rank": self.rank,
            "length": self.length,
            "removed": list(range(self.length)),
        }


@dataclass(frozen=True)
class MergeBlock:
    """Make one convolution of all that lies between a tensor and an Add.

    Attributes:
        block: the Add, by its output.
        source: the tensor that all that it reads is made of.
        branch: the Add's operands that go; the other one, if any, is the source.
        kernel: taps on each axis, odd; half of it is padding.
        stride: on each axis.
        length: channels of the Add.
        rank: its number of axes.
    """

    block: str
    source: str
    branch: tuple[int, ...]
    kernel: int
    stride: int
    length: int
    rank: int

    def __post_init__(self) -> None:
        sizes = min(self.kernel, self.stride, self.length) > 0 and self.kernel % 2 == 1 and self.rank > 2
        if self.branch not in ((0,), (1,), (0, 1)) or not sizes or (len(self.branch) == 1 and self.stride > 1):
            raise PlanError(f"plan: block {self.block!r} is no run of layers that a convolution can stand for")

    def as_removed(self) -> list[dict[str, object]]:
        """What goes as entries of the published `cuts`: whole operands of the Add."""
        return [DropBlock(self.block, b, 1, self.rank, self.length).as_removed() for b in self.branch]


@dataclass(frozen=True)
class MergeColumns:
    """What some inputs of a layer contributed is taken over by others, so that they may go.

    Input `source[i]` is replaced by `factor[i]` times input `target[i]` plus `constant[i]`: its columns, times the
    factor, are added to the target's, and the constant goes through them into the bias. All indices count in the
    layer's weight as it was before any cut.

    Attributes:
        node: the layer, by its first output.
        input: which of its operands is the weight.
        axis: the weight's axis that counts inputs.
        source: the inputs that go.
        target: those that take over; -1 where the constant is all.
        factor: 0 where the target is -1.
        constant: 0 almost always.
    """

    node: str
    input: int
    axis: int
    source: tuple[int, ...]
    target: tuple[int, ...]
    factor: tuple[float, ...]
    constant: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.source) == len(self.target) == len(self.factor) == len(self.constant):
            raise PlanError(f"plan: the merge at {self.node!r} has lists of unequal length")
        if set(self.source) & set(self.target) or len(set(self.source)) < len(self.source):
            raise PlanError(f"plan: the merge at {self.node!r} moves an input twice")
        if min((*self.source, self.input, self.axis), default=0) < 0 or min(self.target, default=0) < -1:
            raise PlanError(f"plan: the merge at {self.node!r} has an index below 0")
        if not all(map(math.isfinite, (*self.factor, *self.constant))):
            raise PlanError(f"plan: the merge at {self.node!r} has a factor that is not a number")

    @classmethod
    def from_dict(cls, e: Mapping) -> MergeColumns:
        whole = [tuple(int(i) for i in e[k]) for k in ("source", "target")]
        real = [tuple(float(x) for x in e[k]) for k in ("factor", "constant")]
        return cls(str(e["node"]), int(e["input"]), int(e["axis"]), whole[0], whole[1], real[0], real[1])


@dataclass(frozen=True)
class Factorize:
    """Make two layers of lower rank out of one. A second such edit of the same node splits the last of the two again.

    Attributes:
        node: the layer, by its first output.
        kind: "channel" (k×k, then 1×1), "spatial" (k×1, then 1×k) or "matrix" (Gemm and MatMul).
        rank: channels in between, for each group of a grouped conv.
    """

    node: str
    kind: str
    rank: int

    def __post_init__(self) -> None:
        if self.kind not in PAIRS:
            raise PlanError(f"plan: node {self.node!r} is factorized by {self.kind!r}, not one of {', '.join(PAIRS)}")
        if self.rank < 1:
            raise PlanError(f"plan: node {self.node!r} has rank {self.rank}; it is at least 1")


PAIRS = ("channel", "spatial", "matrix")
Edit = KeepChannels | DropBlock | MergeBlock | MergeColumns | Factorize
KINDS = {KeepChannels: "keep_channels", DropBlock: "drop_block", MergeBlock: "merge_block",
         MergeColumns: "merge_columns", Factorize: "factorize"}  # fmt: skip

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
        spared: further ones, that would leave widths which run slower.
        given_up: groups left whole because an output moved.

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
    spared: int | None = None
    given_up: Sequence[str] | None = None

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
            edits = tuple(map(_edit, content["edits"]))
            settings = dict(content.get("settings", {}))
            return cls(str(content["model_digest"]), edits, Origin.from_dict(settings), **_carried(content, settings))
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            if isinstance(error, PlanError):
                raise
            raise PlanError(f"the plan cannot be read: {error!r} - write one with `onnxprune plan MODEL`") from error


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


def _edit(e: Mapping[str, Any]) -> Edit:
    """One edit from a file."""
    if e["edit"] == "merge_columns":
        return MergeColumns.from_dict(e)
    if e["edit"] == "drop_block":
        return DropBlock(str(e["block"]), *(int(e[name]) for name in ("branch", "axis", "rank", "length")))
    if e["edit"] == "merge_block":
        sizes = (int(e[name]) for name in ("kernel", "stride", "length", "rank"))
        return MergeBlock(str(e["block"]), str(e["source"]), tuple(map(int, e["branch"])), *sizes)
    if e["edit"] == "factorize":
        return Factorize(str(e["node"]), str(e["kind"]), int(e["rank"]))
    if e["edit"] == "keep_channels":
        return KeepChannels(str(e["group"]), int(e["width"]), tuple(int(k) for k in e["keep"]))
    raise PlanError(f"the plan holds an unknown edit {e['edit']!r} - upgrade onnxprune")
