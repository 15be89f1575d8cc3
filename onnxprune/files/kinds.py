"""What reading asks of an operator: may an infinity stand in its operand, where is its weight, does it grow."""

from __future__ import annotations

_BOUNDS = frozenset(
    "Where Clip Max Min Pad Expand Cast CastLike Identity Concat If Loop Equal Less Greater LessOrEqual"
    " GreaterOrEqual Unsqueeze Squeeze Reshape Tile ScatterND ScatterElements ConstantOfShape IsInf Slice"
    " Gather Shape".split()
)
_MASKED = frozenset(("Add", "Sub"))
_WEIGHT_AT = {"Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3, "DeformConv": 1}
_WINDOWED = frozenset(_WEIGHT_AT) | {"MaxPool", "AveragePool", "LpPool", "MaxUnpool"}
_PRODUCTS = frozenset(("Gemm", "MatMul"))
_GROWS = {"ConstantOfShape": "fill", "Expand": "expand", "Tile": "tile", "Range": "range"}


def takes_infinity(kind: str) -> bool:
    """Whether an infinity has a meaning there: a bound, a mask, a padding. Anywhere else it is a broken weight."""
    return kind in _BOUNDS


def takes_mask(kind: str) -> bool:
    """Whether an operand of nothing but zeros and infinities is an attention mask."""
    return kind in _MASKED


def product(kind: str) -> bool:
    """Whether the second operand is a matrix."""
    return kind in _PRODUCTS


def windowed(kind: str) -> bool:
    """Whether it slides a window, with strides, dilations and a kernel."""
    return kind in _WINDOWED


def stored(kind: str) -> bool:
    """Whether it holds a value as an attribute."""
    return kind == "Constant"


def grows(kind: str) -> str | None:
    """How a few bytes become many: by a fill, an expansion, a tiling, a range; None where they do not."""
    return _GROWS.get(kind)


def weight_at(kind: str) -> int | None:
    """Which operand is the weight of a convolution; None where it is none."""
    return _WEIGHT_AT.get(kind)
