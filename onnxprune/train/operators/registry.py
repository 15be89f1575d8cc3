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

import onnx

from onnxprune.protobuf.nodes import DEFAULT_DOMAINS


@dataclass(frozen=True)
class Operator:
    """What runs a node, and which of its operands stay on the host."""

    run: Callable[..., Any]
    host: frozenset[int]


OPERATORS: dict[tuple[str, str], Operator] = {}
"""(domain, name) -> its entry."""


class Refused(Exception):
    """A form of an operator that the table lacks; the message says which."""


def operator_of(node: onnx.NodeProto) -> Operator | None:
    """What runs a node; None where no function is entered for it."""
    return OPERATORS.get(("" if node.domain in DEFAULT_DOMAINS else node.domain, node.op_type))


def op(*names: str, domain: str = "", host: Sequence[int] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter the decorated function for operators of those names.

    Raises:
        ValueError: one of them has an entry.
    """

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        twice = sorted(name for name in names if (domain, name) in OPERATORS)
        if twice:
            raise ValueError(f"{', '.join(twice)}: in the table already")
        OPERATORS.update(((domain, name), Operator(function, frozenset(host))) for name in names)
        return function

    return enter
