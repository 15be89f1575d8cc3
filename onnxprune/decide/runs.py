"""Which runs of layers may become one convolution: what lies between a tensor and an Add that depends on it alone.

That is a residual block, with its shortcut as it is or with one that samples, pads or convolves; whatever operators it
is of. What goes in is an image (samples, channels, one size or more), what comes out one of the same size or of that
over a whole stride, rounded up: what an odd kernel with half of it as padding makes. Found from the graph alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxprune.channels import Analysed
from onnxprune.decide.blocks import Block
from onnxprune.graph import operators
from onnxprune.graph.layers import is_add, products
from onnxprune.graph.model import Graph, Use
from onnxprune.plan import MergeBlock
from onnxprune.protobuf.nodes import captured

LONGEST = 40
"""Nodes that a run may have: what is longer no convolution stands for."""
KERNEL = 3
"""Of the convolution, where any layer of the run sees more than a point."""


@dataclass(frozen=True)
class Run:
    """A run of layers.

    Attributes:
        edit: what makes it one convolution.
        block: its nodes, and the Add at its end.
    """

    edit: MergeBlock
    block: Block

    @property
    def name(self) -> str:
        return self.edit.block

    @property
    def nodes(self) -> tuple[str, ...]:
        """Keys of all nodes inside, the Add too, in execution order."""
        return self.block.nodes


def find_runs(net: Analysed, kernel: int = KERNEL, keep: str | None = None) -> tuple[Run, ...]:
    """Every run, in execution order of where they end.

    Args:
        net: the network.
        keep: runs with a node whose name matches this regular expression stay.
        kernel: the largest that the convolution may have.
    """
    graph, consumers = net.graph, net.graph.consumers()
    order = {key: k for k, key in enumerate(graph.nodes)}
    macs = {layer.key for layer in products(graph, net.shapes)}
    found = []
    for key, node in graph.nodes.items():
        if not is_add(graph, key) or any(graph.constant(name) is not None for name in (*node.input, *node.output)):
            continue
        source, inside = _behind(graph, key, order, consumers)
        if source and not macs.isdisjoint(inside):
            edit = _edit(net, key, source, kernel if _sees_around(graph, inside) else 1)
            if edit is not None:
                block = Block(key, edit.branch[0], source, (*inside, key), net.shapes[key])
                found.append(Run(edit, block))
    return tuple(r for r in found if not (keep and r.block.named(keep)))


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


def _sees_around(graph: Graph, inside: tuple[str, ...]) -> bool:
    """Whether any layer's kernel covers more than a point."""
    uses = [(key, line.product.weight) for key in inside if (line := operators.of(graph.nodes[key])).product]
    return any(value is not None and max(value.shape[2:], default=1) > 1 for value in map(graph.value, uses))


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
