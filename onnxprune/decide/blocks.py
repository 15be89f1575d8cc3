"""Which blocks may go whole: residual branches that map a shape to itself, and what Concats only append.

A residual block is everything between a tensor `s` and an Add of `s` and a branch that depends on `s` alone: a basic,
bottleneck or inverted residual block, attention or a gated branch, whatever the operators are. Without the block
the Add hands on `s`. A dense layer, or a branch of an Inception block, makes channels that do nothing but stand beside
others in Concats: it goes when its group of channels goes whole. Found from the graph alone; whether one *should* go is
a question of its damage, which `decide.adaptive` weighs against its cost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from onnxprune.channels import Analysed, ChannelGroup
from onnxprune.decide.limits import Limits
from onnxprune.errors import UsageError
from onnxprune.graph import operators
from onnxprune.graph.layers import is_add, products
from onnxprune.graph.model import Graph
from onnxprune.protobuf.nodes import captured

LONGEST = 400
"""Nodes that a branch may have."""


@dataclass(frozen=True)
class Block:
    """A residual branch.

    Attributes:
        add: key of the Add behind it; the block goes by this name.
        branch: which of the Add's operands the branch makes.
        shortcut: the tensor that is left when the branch goes.
        nodes: keys of all nodes inside, the Add too, in execution order.
        shape: sizes of what it maps to itself.
        row: what several of them in a row go by together; empty: it is one.
    """

    add: str
    branch: int
    shortcut: str
    nodes: tuple[str, ...]
    shape: tuple[int, ...]
    row: str = ""
    group: ClassVar[None] = None

    @property
    def name(self) -> str:
        return self.row or self.add

    @property
    def end(self) -> str:
        """The node that hands its work on."""
        return self.add

    @property
    def first(self) -> str:
        """The first node that changes when it goes."""
        return self.nodes[0]

    def named(self, pattern: str) -> bool:
        """Whether any of its nodes goes by a name that matches."""
        return any(re.search(pattern, key) for key in self.nodes)


@dataclass(frozen=True)
class Appended:
    """A branch whose channels do nothing but stand beside others in Concats.

    Attributes:
        group: name of the group of its channels; the block goes by this name too.
        width: how many.
        nodes: keys of all nodes inside, in execution order; not the Concats.
        end: the first node that stays and gets smaller: a Concat, or a layer that makes some of the same channels.
        first: the first node that changes when it goes.
    """

    group: str
    width: int
    nodes: tuple[str, ...]
    end: str
    first: str

    @property
    def name(self) -> str:
        return self.group

    def named(self, pattern: str) -> bool:
        """Whether its group, or any of its nodes, goes by a name that matches."""
        return any(re.search(pattern, key) for key in (self.group, *self.nodes))


AnyBlock = Block | Appended


def all_blocks(net: Analysed, keep: str | None = None) -> tuple[AnyBlock, ...]:
    """Every block of both kinds, in execution order of where they end.

    Args:
        net: the network.
        keep: blocks with a node whose name matches this regular expression stay.

    Raises:
        UsageError: `keep` is no regular expression.
    """
    order = {key: k for k, key in enumerate(net.graph.nodes)}
    found: list[AnyBlock] = [*find_blocks(net, keep), *find_appended(net, keep)]
    return tuple(sorted(found, key=lambda b: order[b.end]))


def may_go(block: AnyBlock, net: Analysed, limits: Limits) -> bool:
    """Whether a block may go: by its own name, or as all may that goes with it, the groups that its layers make and
    layers that make none. What is excluded in it keeps it."""
    if limits.include is None and limits.exclude is None:
        return True
    graph, channels, inside = net.graph, net.channels, set(block.nodes)
    made = [g for g in channels.groups if g.name == block.group or any(s.use[0] in inside for s in g.weights)]
    grouped = {s.use for g in made for s in g.weights}
    uses = [layer.weight for layer in products(graph, channels.shapes) if layer.key in inside and layer.weight]
    alone = [graph.nodes[key].input[i] for key, i in uses if (key, i) not in grouped]
    if limits.include is not None and replace(limits, exclude=None).allows_any([block.name]):
        limits = replace(limits, include=None)
    return (
        replace(limits, include=None).allows_any([block.name, *block.nodes])
        and all(map(limits.allows, made))
        and all(limits.allows_any([name]) for name in alone)
    )


def find_appended(net: Analysed, keep: str | None = None) -> tuple[Appended, ...]:
    """Every branch whose channels are a group of their own that only Concats read, in the order of the groups.

    Of the branches of one Concat the widest stays: something must be left.
    """
    graph, channels = net.graph, net.channels
    tensors = {g.name: {s.tensor for s in g.activations if (s.channel >= 0).all()} for g in channels.groups}
    order = {key: k for k, key in enumerate(graph.nodes)}
    consumers = graph.consumers()
    kept = set(graph.outputs) | set(graph.captured())
    found = []
    for group in channels.groups:
        own = tensors[group.name]
        if own and not kept & own:
            block = _appended(graph, group, own, order, consumers, kept)
            if block is not None and not (keep is not None and block.named(keep)):
                found.append(block)
    owner = {name: block.group for block in found for name in tensors[block.group]}
    width = {block.group: block.width for block in found}
    stay: set[str] = set()
    for node in graph.nodes.values():
        if operators.of(node).joins and node.output[0] not in owner and all(i in owner for i in node.input):
            groups = dict.fromkeys(owner[i] for i in node.input)
            if stay.isdisjoint(groups):
                stay.add(max(groups, key=lambda g: width[g]))
    return tuple(block for block in found if block.group not in stay)


def _appended(
    graph: Graph,
    group: ChannelGroup,
    own: set[str],
    order: Mapping[str, int],
    consumers: Mapping[str, list[tuple[str, int]]],
    kept: set[str],
) -> Appended | None:
    """The nodes that serve nothing but the group's place in Concats; None where the group has other readers."""
    makers = {graph.producer.get(name, "") for name in own}
    if "" in makers or not all(operators.of(graph.nodes[key]).plain for key in makers):
        return None
    joins = {
        key
        for name in own
        for key, _ in consumers.get(name, ())
        if key not in makers and operators.of(graph.nodes[key]).joins
    }
    inside: set[str] = set()
    stack = sorted(makers, key=order.__getitem__)
    while stack:  # from the end backwards: a node is inside when all its readers are, or join its channels to others
        key = stack.pop()
        node = graph.nodes[key]
        made = {o for o in node.output if o}
        readers = {(reader, o in own) for o in made for reader, _ in consumers.get(o, ())}
        if key in inside or made & kept or captured(node):
            continue
        if any(reader not in inside and not (mine and reader in joins) for reader, mine in readers):
            continue
        inside.add(key)
        if len(inside) > LONGEST:
            return None
        above = {graph.producer[i] for i in node.input if i in graph.producer and graph.constant(i) is None}
        stack += sorted(above - inside, key=order.__getitem__)
    if not joins or not makers <= inside:
        return None
    nodes = sorted(inside, key=order.__getitem__)
    touched = {s.use[0] or graph.producer.get(s.tensor, "") for s in group.slices}
    running = {key for key in touched - inside if key and graph.constant(graph.nodes[key].output[0]) is None}
    end = min(joins | running, key=order.__getitem__)
    return Appended(group.name, group.width, tuple(nodes), end, min(nodes[0], end, key=order.__getitem__))


def find_blocks(net: Analysed, keep: str | None = None) -> tuple[Block, ...]:
    """Every residual block, in execution order.

    Args:
        net: the network.
        keep: blocks with a node whose name matches this regular expression stay.

    Raises:
        UsageError: `keep` is no regular expression.
    """
    graph, shapes = net.graph, net.shapes
    order = {key: k for k, key in enumerate(graph.nodes)}
    consumers, inner = graph.consumers(), graph.captured()
    found = []
    for key, node in graph.nodes.items():
        if not is_add(graph, key) or graph.constant(node.output[0]) is not None or len(set(node.input)) < 2:
            continue
        sizes = [shapes.get(i) for i in node.input]
        if sizes[0] is None or sizes[0] != sizes[1] or len(sizes[0]) < 2:
            continue
        for branch in (0, 1):
            nodes = _branch(graph, key, node.input[branch], node.input[1 - branch], order, consumers, inner)
            if nodes:
                found.append(Block(key, branch, node.input[1 - branch], (*nodes, key), sizes[0]))
                break
    if keep is None:
        return tuple(found)
    try:
        re.compile(keep)
    except re.error as error:
        raise UsageError(f"{keep!r} is not a regular expression: {error} - see --keep-block") from error
    return tuple(b for b in found if not b.named(keep))


def _branch(
    graph: Graph,
    add: str,
    end: str,
    start: str,
    order: Mapping[str, int],
    consumers: Mapping[str, list[tuple[str, int]]],
    inner: Mapping[str, str],
) -> list[str]:
    """The nodes that make `end` out of `start` alone and serve nothing else; none where there are others."""
    if graph.constant(start) is not None or end in graph.inputs:
        return []
    earliest = order.get(graph.producer.get(start, ""), -1)
    inside: set[str] = set()
    stack, reached = [end], False
    while stack:
        name = stack.pop()
        if name == start:
            reached = True
            continue
        key = graph.producer.get(name)
        if key in inside or graph.constant(name) is not None:
            continue
        if key is None or order[key] <= earliest or len(inside) >= LONGEST or captured(graph.nodes[key]):
            return []
        inside.add(key)
        stack += [i for i in graph.nodes[key].input if i]
    made = {o for key in inside for o in graph.nodes[key].output if o}
    outside = any(reader not in inside and reader != add for o in made for reader, _ in consumers.get(o, ()))
    if not reached or outside or made & (set(graph.outputs) | set(inner)):
        return []
    return sorted(inside, key=order.__getitem__)
