"""What can be said of an operator: the columns of the table in `graph.operators`, and how a line is put together.

Every fact is false, or says nothing, where a line does not say it. The weight that an operator multiplies by is a
`Product`; how often it multiplies, a rule of `graph.macs`. Knows no operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import onnx

from onnxprune.graph.macs import Rule

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Product:
    """How an operator multiplies what it reads by a weight."""

    weight: int = 1  # the operand
    data: int = 0  # what it reads
    writes: int = 0  # the weight's axis that counts the channels it makes
    reads: int = 1  # and the one that counts those it reads
    turned: str = ""  # the attribute that exchanges the two
    either: bool = False  # the weight may be the first operand as well, and then the two are exchanged
    bias: int | None = None  # the operand that is added per channel
    kernel: bool = False  # the weight slides over positions, the axes behind its first two
    transposed: bool = False  # it spreads each position instead of gathering several
    floats: bool = True  # it computes in floating point


@dataclass(frozen=True)
class Operator:
    """One line."""

    name: str
    domain: str = ""  # "" is ONNX's own
    varies: Callable[[Operator, onnx.NodeProto], Operator] | None = None  # the line of a node, by its attributes
    family: str = ""  # operators that share one rule for their channels

    # what comes out of what goes in
    keeps_size: bool = False  # the first output has the size of the first operand
    aligned: bool = False  # operands and output line up at their last axes
    layout: bool = False  # moves values about, computes none
    cuts_out: bool = False  # takes what lies between the starts (operand 1) and the ends (operand 2) along some axes
    joins: bool = False  # sets its operands side by side
    hands_on: bool = False  # hands on its operand as it is
    arithmetic: str = ""  # + - * / of two operands
    scales: str = ""  # "linear": f(s·x) = s·f(x); "positive": for s > 0 only
    slopes: bool = False  # and that whatever the constants beside x are
    fills: bool = False  # puts numbers of its own around what it reads
    keeps_constants: str = ""  # a constant goes in, the same constant comes out: "everywhere", or "inside" a border
    skips_zeros: str = ""  # zeros among what it reduces change nothing: "always", where nothing there is negative
    # ("positive") or positive ("negative"), or but for the number that it divides by ("counted")
    sign: str = ""  # nothing that it makes is negative: "always", or where nothing is that it reads ("kept")
    negates: bool = False  # turns the sign
    casts: bool = False  # changes the element type
    clips: str = ""  # "zero": to what is positive; "given": to bounds that it is given
    decides: bool = False  # the output jumps where the input moves by the last bit
    orders: bool = False  # such a decision after which nothing is comparable: what is picked, and how many
    random: bool = False  # draws
    reads_maps: bool = False  # what it reads may be the end of a block
    probabilities: bool = False  # makes probabilities of scores
    numpy: Callable[..., Any] | None = None  # computes it, element by element (others: `graph.evaluate`)

    # channels
    channels: int | None = None  # their axis in what is read and written
    statistics: bool = False  # divides by statistics over channels that make sense when some have gone
    stored_statistics: bool = False  # normalizes each channel by statistics that it stores
    plain: bool = False  # nothing in it counts channels, so they may go whole
    takes_constants: bool = False  # the first operand may be a constant: its rule says what that means

    # sizes
    measures: bool = False  # looks at nothing but a size
    counts: bool = False  # the output's size depends on values
    sized_by: int | None = None  # the first operand by whose values the output is sized
    spells: tuple[int, ...] = ()  # operands that spell sizes
    spelled_axes: bool = False  # what they spell is of axes that are named; all others are as they are
    spreads: bool = False  # makes something as large as an operand spells, the same everywhere
    grows: str = ""  # a few bytes may become gigabytes, by "fill", "expand", "tile" or "range"
    stores: bool = False  # holds a constant

    # multiply-accumulates; where nothing is said it does none
    macs: Rule | None = None  # how they are counted
    uncounted: str = ""  # why they are not

    # weights
    product: Product | None = None
    recurrent: bool = False  # the product goes step by step, with a second weight (operand 2) for its own state
    sums: bool = False  # the output is a sum over what is read, column by column of a weight
    learned: tuple[int, ...] = ()  # operands that are parameters where they are float constants
    unfit: str = ""  # why no least squares problem gives the weight, with a remedy

    # integers
    quantizer: bool = False  # turns numbers into integers, or back
    dequantizes: bool = False  # back
    chooses_scale: bool = False  # turns numbers into integers by a scale of their own (output 1)
    in_floats: str = ""  # the operator of floats that a product of integers stands for
    zero_points: Mapping[int, int] = field(default_factory=dict)  # operand -> the one that says what is zero in it

    # the rest
    bodies: bool = False  # carries graphs
    branches: bool = False  # runs one of them
    works: bool = False  # runs them who knows how often
    sequences: bool = False  # may yield what is no tensor
    windowed: bool = False  # has strides, dilations or a kernel
    kernel: int | None = None  # the operand that is the kernel of something windowed
    bounds: bool = False  # an infinite constant has a meaning: a bound, a padding, a choice
    masks: bool = False  # infinities among zeros have one: a mask

    @property
    def pointwise(self) -> bool:
        """Whether it computes every element of its output from one element of each operand."""
        return self.family in ("unary", "broadcast") and not self.layout

    @property
    def rearranges(self) -> bool:
        """Whether it picks by order, and what it picks stands in that order: of two networks it cannot be compared."""
        return self.orders and (self.counts or self.sized_by is not None)

    @property
    def layer(self) -> bool:
        """Whether it is a linear layer that computes in floats: Conv, ConvTranspose, Gemm, MatMul."""
        return self.product is not None and self.product.floats and not self.recurrent

    @property
    def integer(self) -> bool:
        """Whether it multiplies integers."""
        return self.product is not None and not self.product.floats

    @property
    def affine(self) -> bool:
        """Whether its output is a linear map of what it reads, and a shift."""
        return (self.sums or self.integer or self.stored_statistics) and not self.recurrent

    @property
    def weighted(self) -> bool:
        """Whether it has a weight."""
        return self.product is not None or self.sums

    @property
    def runs(self) -> bool:
        """Whether it must be run to know its output, even if all its operands are known; quantized constants stay."""
        return self.random or self.quantizer or self.bodies


def facts(*true: str | Facts, **more: Any) -> Facts:
    """What several lines have in common: names of facts that are true, other such, and facts with a value."""
    found: dict[str, Any] = {}
    for fact in true:
        found |= {fact: True} if isinstance(fact, str) else fact
    return MappingProxyType(found | more)
