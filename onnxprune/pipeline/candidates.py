"""What may be done to a network under one set of settings: groups that may lose channels, blocks that may go, layers
that may be made of two. What each would save and what it would break is not known here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from onnxprune.channels import Analysed, ChannelGroup, Channels, Slice, common_reasons
from onnxprune.decide.blocks import AnyBlock, all_blocks, may_go
from onnxprune.decide.limits import Limits
from onnxprune.decide.runs import Run, by_kernels, find_runs, in_rows
from onnxprune.errors import UnsupportedError, UsageError
from onnxprune.graph.work import work
from onnxprune.pipeline.asked import limits_of, unmatched
from onnxprune.pipeline.settings import Settings
from onnxprune.rewrite.quantized import floating

LARGEST_BRANCH = 0.75
"""Share of the MACs up to which what a Concat appends is a branch; with more it is the trunk."""


@dataclass(frozen=True)
class Candidates:
    """What may be done.

    Attributes:
        net: the network, with the groups that may be looked at; of a quantized one, what it stands for in floats.
        limits: the widths that are allowed.
        blocks: the blocks that may go whole, or become one layer.
        runs: the layers that blocks may become, by their names; those of one block the smallest first.
        dropped: the names of those that may go whole.
        ranked: whether layers may be made of two.
        staged: whether edits are made in a fixed order ("3c").
        channels: whether channels may go.
    """

    net: Analysed
    limits: Limits
    blocks: tuple[AnyBlock, ...]
    ranked: bool
    staged: bool
    channels: bool
    runs: Mapping[str, Run] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """The groups of channels."""
        return self.net.channels.groups

    def inside(self, block: AnyBlock) -> frozenset[str]:
        """Names of the groups, and keys of the nodes, that go with a block."""
        return frozenset([*(g.name for g in self.groups if self._within(g, block)), *block.nodes])

    def _within(self, group: ChannelGroup, block: AnyBlock) -> bool:
        """Whether everything that carries the group's channels lies inside the block, or goes with it."""
        if group.name == block.group:
            return True
        producer, nodes = self.net.graph.producer, set(block.nodes) - {block.end}
        return all((s.use[0] or producer.get(s.tensor, "")) in nodes for s in group.slices)


def find_candidates(net: Analysed, settings: Settings, how: str, *, leave: Collection[str] = ()) -> Candidates:
    """What the settings allow.

    Args:
        net: the network.
        settings: what is allowed.
        how: the allocation: only the adaptive one weighs blocks and ranks against widths.
        leave: names of groups to leave alone.

    Raises:
        UnsupportedError: nothing can be pruned; the message names the most common reasons.
        UsageError: the settings leave nothing to prune.
    """
    unmatched(net, include=settings.include)
    groups = tuple(g for g in net.channels.groups if g.name not in leave)
    net = replace(net, channels=replace(net.channels, groups=groups))
    kinds, of = set(settings.kinds()), settings.of or "macs"
    if not groups and not {"blocks", "rank", "merge", "3c", "resolution"} & kinds:
        raise UnsupportedError(f"nothing can be pruned: {why_not(net.channels)}")
    limits, adaptive = limits_of(settings), how == "adaptive"
    if settings.quantize is not None:
        limits = replace(limits, by_sixteen=_through_depthwise(net))
    blocks = _blocks(net, settings) if "blocks" in kinds and adaptive else ()
    runs = _runs(net, settings, blocks) if "merge" in kinds and adaptive else {}
    dropped = frozenset(b.name for b in blocks)
    blocks = (*blocks, *{r.block.name: r.block for r in runs.values() if r.block.name not in dropped}.values())
    ranked = bool({"rank", "3c"} & kinds) and adaptive and of != "channels"
    smaller = adaptive and "resolution" in kinds and "channels" not in kinds  # whether any is, is seen later
    if not any(map(limits.allows, groups)) and not blocks and not ranked and not smaller:
        _refuse(net, settings, of, adaptive=adaptive)
    floats = floating(net) if groups and "channels" in kinds and not blocks and of != "latency" else None
    if floats is not None:  # what integers stand for says more; layers of integers are never made of two
        net, ranked = floats, False
    channels = "channels" in kinds and bool(groups)
    return Candidates(net, limits, blocks, ranked, "3c" in kinds, channels, runs, dropped)


def _through_depthwise(net: Analysed) -> frozenset[str]:
    """Names of the groups whose channels pass through a depthwise convolution: in int8 it wants more of a width."""

    def filters(s: Slice) -> bool:
        value = net.graph.value(s.use) if s.role == "within" and s.use[0] else None
        return value is not None and value.ndim > 2

    return frozenset(g.name for g in net.channels.groups if any(map(filters, g.slices)))


def _blocks(net: Analysed, settings: Settings) -> tuple[AnyBlock, ...]:
    asked = Limits(include=settings.include, exclude=settings.exclude)
    macs = {done.key: done.macs for done in work(net.graph, net.shapes, net.channels.ran)}
    most = LARGEST_BRANCH * sum(macs.values())
    return tuple(
        b
        for b in all_blocks(net, settings.keep_block)
        if may_go(b, net, asked) and (b.group is None or sum(macs.get(k, 0) for k in b.nodes) <= most)
    )


def _runs(net: Analysed, settings: Settings, blocks: Sequence[AnyBlock]) -> dict[str, Run]:
    """The runs of layers that may become one, as every layer that they may become: those that have no part in another,
    or in a block of another end; and such runs in a row."""
    asked, found = Limits(include=settings.include, exclude=settings.exclude), dict[str, Run]()
    taken = {key: b.name for b in blocks for key in b.nodes}
    for run in sorted(find_runs(net, keep=settings.keep_block), key=lambda run: len(run.nodes)):
        if all(taken.get(key, run.name) == run.name for key in run.nodes) and may_go(run.block, net, asked):
            found[run.name] = run
            taken |= dict.fromkeys(run.nodes, run.name)
    alone = [run for run in find_runs(net, keep=settings.keep_block) if run.name in found]
    several = [r for r in in_rows(net, alone) if all(_apart(b, r) for b in blocks) and may_go(r.block, net, asked)]
    return {one.name: one for run in (*alone, *several) for one in by_kernels(net, run)}


def _apart(block: AnyBlock, run: Run) -> bool:
    """Whether a run holds all of a block, or nothing."""
    return set(block.nodes).isdisjoint(run.nodes) or set(block.nodes) <= set(run.nodes)


def _refuse(net: Analysed, settings: Settings, of: str, *, adaptive: bool) -> None:
    """Say why nothing is left."""
    if {"rank", "3c"} & set(settings.kinds()) and of == "channels":
        raise UsageError("--of channels counts nothing that a lower rank saves; use macs, params or latency")
    if not net.channels.groups:
        raise UnsupportedError(f"nothing can be pruned: {why_not(net.channels)}")
    if "channels" not in settings.kinds():
        if not adaptive:
            words = ",".join(settings.kinds())
            raise UsageError(f"--methods {words} needs samples and the adaptive allocation; give --calib")
        raise UnsupportedError("no block can go: there is none, or --keep-block, --include and --exclude keep them all")
    raise UsageError("--include and --exclude leave no group to cut; `onnxprune inspect` lists the groups")


def why_not(channels: Channels, most: int = 3) -> str:
    """The most common reasons for what is pinned, in words."""
    top = common_reasons(channels.pinned, most)
    return "; ".join(f"{reason} ({n} channels)" for reason, n in top) or "it has no weights that we know"
