"""Why something cannot be done to a layer: one table of reasons, each with what would help.

Who decides (`layers.affine_or_why`, `measure.designs.design_or_why`, `pairs.why_not`, the probes of
`timing.node_times`) returns what was asked for or a `Refusal`; who only wants to do it drops the refusal, who reports
collects it (`pipeline.refused`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

REASONS = {
    "no layer": ("{op} has no weight that is known to onnxprune", "leave it as it is"),
    "unfit": ("{why}", ""),
    "two activations": ("{op} multiplies two activations", ""),
    "computed": ("the weight of {op} is computed at run time", "export the model with constant weights"),
    "integers": ("the weight of {op} is {dtype}, not float32 or float16", "prune before the model is converted"),
    "reads a constant": ("{op} reads a constant", "simplify the model first"),
    "on the left": ("{op} has its weight on the left", "write the product with the weight on the right"),
    "stacked": ("the weight of {op} has {rank} axes, not two", "take the axes of size 1 out, or write one MatMul each"),
    "turned": ("{op} turns what it reads (transA)", "put a Transpose before it"),
    "scaled": ("{op} scales by alpha or beta", "multiply them into its weight and bias"),
    "grouped, transposed": ("{op} is a transposed convolution in groups", ""),
    "grouped": ("{op} is a convolution in {groups} groups of several channels", ""),
    "transposed": ("{op} is a transposed convolution", ""),
    "odd bias": ("the bias of {op} is no float constant with one value per channel (axis {axis})", "make it one"),
    "no bias": ("{op} has no bias, and no Add of a constant per channel (axis {axis}) behind it", "add one of zeros"),
    "thin": ("{op} is depthwise with a kernel along one axis: no two layers are smaller", ""),
    "in between": ("{op} multiplies along an axis that is not the last", "put a Transpose before and behind it"),
    "wide": ("{op} reads {inputs} inputs at once, more than the {most} that least squares is worth for", ""),
    "unseen": ("the size of what {op} reads is not known, or it is empty", ""),
}
"""Reason -> (words, remedy): `{op}` is the operator."""


@dataclass(frozen=True)
class Refusal:
    """Why not.

    Attributes:
        node: key of the node.
        reason: in words, with the axis where one is meant.
        remedy: what would help; "" where nothing would.
    """

    node: str
    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}" if self.remedy else self.reason


def refuse(node: str, reason: str, **details: object) -> Refusal:
    """A refusal of the table; `details` fill in its words."""
    words, remedy = REASONS[reason]
    return Refusal(node, words.format(**details), remedy)


def unless_refused(found: T | Refusal) -> T | None:
    """What was found; None for a refusal."""
    return None if isinstance(found, Refusal) else found
