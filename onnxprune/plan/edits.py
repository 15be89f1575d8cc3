"""The edits that a plan is made of: what each takes away or makes of what is there, named so that it can be read.

Each knows what no model can have; whether one has what it names, those that carry it out ask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.errors import PlanError


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


@dataclass(frozen=True)
class FuseLayers:
    """Make one layer of a run of linear ones, in exact arithmetic. These edits follow one another: a run may hold what
    an earlier one made.

    Attributes:
        node: the end of the run, by its first output; the layer gets this name.
        source: the tensor that the run reads, and nothing else.
    """

    node: str
    source: str

    def __post_init__(self) -> None:
        if not self.node or not self.source or self.node == self.source:
            raise PlanError(f"plan: from {self.source!r} to {self.node!r} there is no run of layers")


@dataclass(frozen=True)
class Resample:
    """Let the network see an input at other sizes: a linear Resize in front of all that reads it.

    Attributes:
        input: its name.
        axis: the first of the axes that change; they follow one another.
        before: their sizes in the run that was looked at.
        after: the sizes that the network sees.
    """

    input: str
    axis: int
    before: tuple[int, ...]
    after: tuple[int, ...]

    def __post_init__(self) -> None:
        pairs = list(zip(self.before, self.after, strict=False))
        if len(self.before) != len(self.after) or not pairs or self.axis < 1 or any(not 0 < b <= a for a, b in pairs):
            raise PlanError(f"plan: input {self.input!r} of {self.before} cannot be seen at {self.after}")

    def in_words(self) -> str:
        """What is seen how: "input x at 160x160 instead of 224x224"."""
        after, before = ("x".join(map(str, sizes)) for sizes in (self.after, self.before))
        return f"input {self.input} at {after} instead of {before}"


PAIRS = ("channel", "spatial", "matrix")
Edit = KeepChannels | DropBlock | MergeBlock | MergeColumns | Factorize | FuseLayers | Resample
KINDS = {KeepChannels: "keep_channels", DropBlock: "drop_block", MergeBlock: "merge_block",
         MergeColumns: "merge_columns", Factorize: "factorize", FuseLayers: "fuse_layers",
         Resample: "resample"}  # fmt: skip


def edit_of(e: Mapping[str, Any]) -> Edit:
    """One edit from a file.

    Raises:
        PlanError: of an unknown kind, or one that no model can have.
    """
    if e["edit"] == "merge_columns":
        return MergeColumns.from_dict(e)
    if e["edit"] == "drop_block":
        return DropBlock(str(e["block"]), *(int(e[name]) for name in ("branch", "axis", "rank", "length")))
    if e["edit"] == "merge_block":
        sizes = (int(e[name]) for name in ("kernel", "stride", "length", "rank"))
        return MergeBlock(str(e["block"]), str(e["source"]), tuple(map(int, e["branch"])), *sizes)
    if e["edit"] == "fuse_layers":
        return FuseLayers(str(e["node"]), str(e["source"]))
    if e["edit"] == "factorize":
        return Factorize(str(e["node"]), str(e["kind"]), int(e["rank"]))
    if e["edit"] == "resample":
        seen = (tuple(map(int, e[name])) for name in ("before", "after"))
        return Resample(str(e["input"]), int(e["axis"]), *seen)
    if e["edit"] == "keep_channels":
        return KeepChannels(str(e["group"]), int(e["width"]), tuple(int(k) for k in e["keep"]))
    raise PlanError(f"the plan holds an unknown edit {e['edit']!r} - upgrade onnxprune")
