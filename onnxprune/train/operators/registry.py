"""The table of operators in torch, and how a function enters it.

A function takes the node's attributes and its operands and returns a tensor, or a tuple where the node has several
outputs. The attributes come with `opset`, `op_type` and the number of `outputs` beside them. Operands that say *how*
(shapes, axes, pads, bounds) come as numpy arrays: `@op(..., host=(1, 2))` names their positions. Everything else comes
as a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Operator:
    """What runs a node, and which of its operands stay on the host."""

    run: Callable[..., Any]
    host: frozenset[int]


OPERATORS: dict[str, Operator] = {}


class Refused(Exception):
    """A form of an operator that the table lacks; the message says which."""


def op(*names: str, host: Sequence[int] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter the decorated function for operators of those names.

    Raises:
        ValueError: one of them has an entry.
    """

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        twice = OPERATORS.keys() & set(names)
        if twice:
            raise ValueError(f"{', '.join(sorted(twice))}: in the table already")
        OPERATORS.update((name, Operator(function, frozenset(host))) for name in names)
        return function

    return enter
