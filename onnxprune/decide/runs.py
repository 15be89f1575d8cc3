"""Which runs of layers may become one convolution: what lies between a tensor and an Add that depends on it alone.

That is a residual block, with its shortcut as it is or with one that samples, pads or convolves; whatever operators it
is of. What goes in is an image (samples, channels, one size or more), what comes out one of the same size or of that
over a whole stride, rounded up: what an odd kernel with half of it as padding makes. Found from the graph alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from onnxprune.channels import Analysed
from onnxprune.decide.blocks import Block
from onnxprune.graph import operators
from onnxprune.graph.layers import is_add, products
from onnxprune.graph.model import Graph, Use
from onnxprune.graph.work import work
from onnxprune.plan import MergeBlock
from onnxprune.protobuf.nodes import attr, captured

LONGEST = 40
"""Nodes that a run may have: what is longer no convolution stands for."""
KERNEL, KERNELS = 3, (1, 3, 5, 7)
"""Of the convolution, where any layer of the run sees more than a point; and those that are weighed."""
TOGETHER = (2, 4)
"""So many residual blocks in a row may become one convolution."""
DEAREST = 1.25
"""A convolution of more multiply-accumulates than that many times the run's is not weighed."""


@dataclass(frozen=True)
class Run:
    """A run of layers.

    Attributes:
        edit: what makes it one convolution.
        block: its nodes, and the Add at its end.
        name: what it goes by, as this convolution.
    """

    edit: MergeBlock
    block: Block
    name: str

    @property
    def nodes(self) -> tuple[str, ...]:
        """Keys of all nodes inside, the Add too, in execution order."""
        return self.block.nodes

    @property
    def first(self) -> str:
        """The first node that changes."""
        return self.block.first

    @property
    def end(self) -> str:
        """The node that it becomes."""
        return self.block.end


def find_runs(net: Analysed, kernel: int = KERNEL, keep: str | None = None) -> tuple[Run, ...]:
    """Every run that holds no other, in execution order of where they end.

    Args:
        net: the network.
        keep: runs with a node whose name matches this regular expression stay.
        kernel: the largest that the convolution may have.
    """
    graph = net.graph
    consumers, order, _ = _surroundings(graph)
    macs = {layer.key for layer in products(graph, net.shapes)}
    found = []
    for key, node in graph.nodes.items():
        if not is_add(graph, key) or any(graph.constant(name) is not None for name in (*node.input, *node.output)):
            continue
        source, inside = _behind(graph, key, order, consumers)
        if source and not macs.isdisjoint(inside):
            edit = _edit(net, key, source, kernel if _sees(graph, inside) > 1 else 1)
            if edit is not None:
                block = Block(key, edit.branch[0], source, (*inside, key), net.shapes[key])
                found.append(Run(edit, block, key))
    return tuple(r for r in found if not (keep and r.block.named(keep)))


def rows(net: Analysed, runs: Sequence[Run]) -> list[list[Run]]:
    """Residual blocks that follow one another, with nothing between them but what works element by element and what
    nobody else reads; what is none stands alone. In execution order."""
    found: list[list[Run]] = []
    for run in runs:
        last = found[-1][-1] if found else run
        follows = last.end == through(net.graph, run.edit.source) and len(last.edit.branch) == len(run.edit.branch) == 1
        if follows and together(net, [last, run]) is not None:
            found[-1].append(run)
        else:
            found.append([run])
    return found


def in_rows(net: Analysed, runs: Sequence[Run]) -> list[Run]:
    """Several runs in a row as one, so chosen that of any two either one holds the other, or they have nothing in
    common."""
    found = []
    for row in rows(net, runs):
        for count in TOGETHER:
            parts = [row[k - count : k] for k in range(len(row), count - 1, -count)]
            found += [joined for part in parts if (joined := together(net, part)) is not None]
    return found


def together(net: Analysed, runs: Sequence[Run]) -> Run | None:
    """Runs in a row as one; None where others read what lies between them."""
    graph = net.graph
    consumers, order, outside = _surroundings(graph)
    inside = {key for run in runs for key in run.nodes}
    for before, run in pairwise(runs):
        name = run.edit.source
        while name != graph.nodes[before.end].output[0]:
            inside.add(graph.producer[name])
            name = graph.nodes[graph.producer[name]].input[0]
    first, last = runs[0], runs[-1]
    made = {o for key in inside if key != last.end for o in graph.nodes[key].output if o}
    if made & outside:
        return None
    if any(reader not in inside for name in made for reader, _ in consumers.get(name, ())):
        return None
    source, name = first.edit.source, f"{first.block.name}..{last.block.name}"
    nodes = tuple(sorted(inside, key=order.__getitem__))
    edit = replace(last.edit, source=source, branch=(0, 1))
    return Run(edit, Block(last.end, 0, source, nodes, last.block.shape, name), name)


def _surroundings(graph: Graph) -> tuple[Mapping[str, list[Use]], Mapping[str, int], Set[str]]:
    """(who reads each tensor, each node's place, the tensors that leave the graph or that a body reads), found once."""

    def find() -> tuple[Mapping[str, list[Use]], Mapping[str, int], Set[str]]:
        order = {key: k for k, key in enumerate(graph.nodes)}
        return graph.consumers(), order, {*graph.outputs, *graph.captured()}

    return graph.once("surroundings", graph, find)


def by_kernels(net: Analysed, run: Run) -> list[Run]:
    """The run as every convolution that it may become, the smallest first: up to what its layers see, and to about
    what they multiply."""
    macs = net.graph.once("macs of nodes", net.shapes, lambda: _macs(net))
    most, sees = DEAREST * sum(macs.get(key, 0.0) for key in run.nodes), _sees(net.graph, run.nodes)
    x, y = net.shapes[run.edit.source], run.block.shape
    one = float(x[1]) * float(np.prod(y))
    found = [k for k in KERNELS if k <= sees and one * k ** (len(y) - 2) <= most]
    return [replace(run, edit=replace(run.edit, kernel=k), name=f"{run.block.name} {k}x{k}") for k in found]


def _macs(net: Analysed) -> Mapping[str, float]:
    return {done.key: done.macs for done in work(net.graph, net.shapes, net.channels.ran)}


def ending(net: Analysed, end: str) -> list[Run]:
    """All runs that end at a node, alone and with those in front of it in a row."""
    for row in rows(net, find_runs(net)):
        for last, run in enumerate(row):
            if run.end == end:
                several = (together(net, row[first : last + 1]) for first in range(last - 1, -1, -1))
                return [run, *(joined for joined in several if joined is not None)]
    return []


def made_of(net: Analysed, edit: MergeBlock) -> Run | None:
    """The run that an edit makes one convolution of; None where the model has none."""
    return next((r for r in ending(net, edit.block) if replace(edit, kernel=r.edit.kernel) == r.edit), None)


def through(graph: Graph, name: str) -> str:
    """The node that makes a tensor, but for what works element by element on it."""
    while (key := graph.producer.get(name)) is not None:
        node = graph.nodes[key]
        if not operators.of(node).keeps_size or len(node.input) != 1 or is_add(graph, key):
            return key
        name = node.input[0]
    return ""


def _behind(
    graph: Graph, add: str, order: Mapping[str, int], consumers: Mapping[str, list[Use]]
) -> tuple[str, tuple[str, ...]]:
    """The nearest tensor that all that the Add reads is made of, and the nodes in between; ("", ()) where there is
    none, or where others read what they make."""
    front, inside = {name for name in graph.nodes[add].input}, set[str]()
    while len(front) > 1:
        key = max((graph.producer.get(name, "") for name in front), key=lambda k: order.get(k, -1))
        if not key or len(inside) >= LONGEST or captured(graph.nodes[key]):
            return "", ()
        inside.add(key)
        front -= set(graph.nodes[key].output)
        front |= {name for name in graph.nodes[key].input if name and graph.constant(name) is None}
    made = {o for key in inside for o in graph.nodes[key].output if o}
    kept = set(graph.outputs) | set(graph.captured())
    if made & kept or any(k not in inside and k != add for o in made for k, _ in consumers.get(o, ())):
        return "", ()
    return "".join(front), tuple(sorted(inside, key=order.__getitem__))


def _sees(graph: Graph, inside: Sequence[str]) -> int:
    """How many points on an axis the output of a run depends on, at most."""
    seen = 1
    for key in inside:
        product = operators.of(graph.nodes[key]).product
        weight = None if product is None else graph.value((key, product.weight))
        if weight is not None and weight.ndim > 2:
            dilated = attr(graph.nodes[key], "dilations", [1])
            seen += max((size - 1) * max(dilated) for size in weight.shape[2:])
    return seen


def _edit(net: Analysed, add: str, source: str, kernel: int) -> MergeBlock | None:
    """What makes the run one convolution; None where the sizes are not those of one, or the numbers not float32."""
    x, y, node = net.shapes.get(source, ()), net.shapes.get(add, ()), net.graph.nodes[add]
    if len(x) != len(y) or len(x) < 3 or x[0] != y[0] or min(*x, *y) < 1 or net.graph.float_of(source) != "float32":
        return None
    if any(net.channels.lines.get(name, (1,))[0] != 1 for name in (source, add)):
        return None
    if any(net.shapes.get(name) != y for name in node.input):
        return None
    strides = {-(-a // b) for a, b in zip(x[2:], y[2:], strict=True)}
    stride = strides.pop()
    if strides or any(-(-a // stride) != b for a, b in zip(x[2:], y[2:], strict=True)):
        return None
    branch = tuple(k for k, name in enumerate(node.input) if name != source)
    return MergeBlock(add, source, branch, kernel, stride, y[1], len(y)) if branch else None
