"""How operators multiply: multiply-accumulates as sums of products of sizes.

A rule says which axes of which operands are multiplied, not what that comes to. So one rule counts a node from the
sizes of its operands, tells the price of a channel (`measure.cost`: which axes it lies on), and counts inside a body
while that runs (`graph.bodies`). Rules know a node's attributes and which operands it has, nothing else.

What counts: products of activations with weights and with each other, and interpolation at computed positions. What is
done element by element, pooling, normalization, resizing and moving values about are no multiply-accumulates here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from onnxprune.graph.equations import Equation
from onnxprune.protobuf.nodes import attr

OUT = -1
"""In place of an operand: the node's first output."""

Size = tuple[int, ...]


@dataclass(frozen=True)
class Axes:
    """The sizes of some axes of an operand, multiplied.

    Attributes:
        operand: its position, or `OUT`.
        start, stop: the axes, as a slice takes them.
    """

    operand: int
    start: int | None = None
    stop: int | None = None

    def within(self, rank: int) -> range:
        """The axes of an operand with so many."""
        return range(rank)[self.start : self.stop]

    def volume(self, size: Size) -> float:
        """Their sizes multiplied."""
        return math.prod((float(d) for d in size[self.start : self.stop]), start=1.0)


@dataclass(frozen=True)
class Values:
    """The sum of an operand's values: how long sequences are.

    Attributes:
        operand: its position.
    """

    operand: int


Factor = Axes | Values | float
Part = tuple[Factor, ...]
"""Factors that are multiplied; a node does the sum of its parts."""


@dataclass(frozen=True)
class Call:
    """A node, as its rule sees it.

    Attributes:
        node: the node.
        size: the size of an operand; None where it is not known.
    """

    node: onnx.NodeProto
    size: Callable[[int], Size | None] = lambda operand: None

    def attr(self, name: str, default: Any = None) -> Any:
        """One of its attributes."""
        return attr(self.node, name, default)

    def has(self, operand: int) -> bool:
        """Whether it has an operand."""
        return operand < len(self.node.input) and bool(self.node.input[operand])

    def rank(self, operand: int, unknown: int) -> int:
        """The number of an operand's axes; `unknown` where that is not known."""
        size = self.size(operand) if self.has(operand) else None
        return unknown if size is None else len(size)


Rule = Callable[[Call], Iterable[Part]]


def volume(part: Part, size: Callable[[int], Size | None], total: Callable[[int], float | None]) -> float:
    """Multiply-accumulates of a part.

    Args:
        part: of what a rule says.
        size: the size of an operand, or of the output.
        total: the sum of an operand's values.

    Raises:
        LookupError: a size or value is not known.
    """
    product = 1.0
    for factor in part:
        known = factor if not isinstance(factor, Axes | Values) else None
        if isinstance(factor, Axes) and (shape := size(factor.operand)) is not None:
            known = factor.volume(shape)
        elif isinstance(factor, Values):
            known = total(factor.operand)
        if known is None:
            raise LookupError(f"{factor} is not known")
        product *= known
    return product


# -- layers ------------------------------------------------------------------------------------------------------


def gathered(weight: int = 1) -> Rule:
    """Every element of the output is a sum over a kernel."""
    return lambda call: [(Axes(OUT), Axes(weight, 1))]


def scattered(weight: int = 1) -> Rule:
    """Every element that is read goes through a kernel."""
    return lambda call: [(Axes(0), Axes(weight, 1))]


def contracted(call: Call) -> list[Part]:
    """Every element of the output is a sum over an axis of what is read: the last, the one before where it is turned
    (`transA`), the first where its batch is turned as well (`transBatchA`)."""
    turned = bool(call.attr("transA", 0)) and call.rank(0, 2) > 1
    inner = Axes(0, -2, -1) if turned else Axes(0, -1)
    if turned and call.attr("transBatchA", 0):
        inner = Axes(0, 0, 1)
    return [(Axes(OUT, None, -1), inner, Axes(OUT, -1))]


def stepwise(lengths: int) -> Rule:
    """Every step of every sample goes through a weight, and its state through another; operand `lengths` tells how
    many steps a sample has, where it is there."""

    def rule(call: Call) -> list[Part]:
        steps: Factor = Values(lengths) if call.has(lengths) else Axes(0, 0, 2)
        return [(steps, Axes(1)), (steps, Axes(2))]

    return rule


def einsum(call: Call) -> list[Part]:
    """All distinct indices, whatever they are; one operand alone is only moved or summed up."""
    equation = Equation.of(call.node)
    if len(equation.terms) < 2:
        return []
    summed = [c for c in dict.fromkeys("".join(equation.terms)) if c not in equation.out and c != "."]
    if equation.dotted and "." not in equation.out:
        summed.append(".")
    return [(Axes(OUT), *(_index(call, equation, c) for c in summed))]


def _index(call: Call, equation: Equation, letter: str) -> Axes:
    """An index that is summed over, where it is longest: an operand may have one element that stands for all."""
    found = [Axes(i, *equation.axes(i, letter)) for i, term in enumerate(equation.terms) if letter in term]
    known = [(axes.volume(size), -k) for k, axes in enumerate(found) if (size := call.size(axes.operand)) is not None]
    return found[-max(known)[1]] if known else found[0]


# -- attention: softmax(q kᵀ) v, by heads --------------------------------------------------------------------------


def attention(call: Call) -> list[Part]:
    """Of queries, keys and values, each (…, positions, channels) (ONNX)."""
    return _attended(Axes(0), [Axes(1, -2, -1), *_remembered(call, 4)])


def _attended(queries: Axes, positions: Sequence[Factor], *more: Factor) -> list[Part]:
    """Every query with every key, every output with every value.

    Args:
        queries: all of them.
        positions: how many there are, in several parts.
        more: factors of `queries`.
    """
    return [part for n in positions for part in ((queries, *more, n), (Axes(OUT), n))]


def _remembered(call: Call, past: int, axis: int = 2) -> list[Factor]:
    """The positions in a cache."""
    return [Axes(past, axis, axis + 1)] if call.has(past) else []


def projecting(past: int) -> Rule:
    """Attention that makes queries, keys and values itself, with one weight for the three (`com.microsoft`)."""

    def rule(call: Call) -> list[Part]:
        sizes = call.attr("qkv_hidden_sizes")
        queries: list[Factor] = [float(sizes[0])] if sizes else [Axes(1, 1), 1 / 3]
        positions = [Axes(0, 1, 2), *_remembered(call, past, 3)]
        return [(Axes(0, 0, 2), Axes(1)), *_attended(Axes(0, 0, 2), positions, *queries)]

    return rule


def multi_head(call: Call) -> list[Part]:
    """Of queries, keys and values that are given, apart or packed (`com.microsoft`)."""
    if call.rank(0, 3) == 5:  # (batch, positions, heads, 3, channels)
        return _attended(Axes(0), [Axes(0, 1, 2)], 1 / 3)
    by_heads = call.rank(1, 3) == 4  # (batch, heads, positions, channels)
    return _attended(Axes(0), [Axes(1, 2, 3) if by_heads else Axes(1, 1, 2), *_remembered(call, 6)])


def grouped_query(call: Call) -> list[Part]:
    """Several queries a key (`com.microsoft`); an operand tells how many positions there are, the cache's included."""
    return [(Axes(OUT), Values(6))] * 2


def one_step(call: Call) -> list[Part]:
    """Of one more position and a cache (`com.microsoft`); an operand tells how much of it is filled."""
    if call.rank(1, 3) == 4 and not call.has(5):  # keys of another sequence, by heads
        return _attended(Axes(0), [Axes(1, 2, 3)])
    return _attended(Axes(0), [Axes(0, 1, 2), *([Values(7)] if call.has(7) else _remembered(call, 5))])


# -- interpolation -------------------------------------------------------------------------------------------------


def interpolated(call: Call) -> list[Part]:
    """Every element of the output is a weighted sum of the nearest two, or four, along every axis of space."""
    mode = call.attr("mode", "linear")
    taps = {"nearest": 0, "cubic": 4, "bicubic": 4}.get(str(mode), 2)
    return [(Axes(OUT), float(taps ** (call.rank(0, 4) - 2)))] if taps else []
