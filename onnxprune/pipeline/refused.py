"""What a run could not do to which layer, and why: one table of what may be asked of a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnxprune.channels import Analysed
from onnxprune.graph.model import Graph
from onnxprune.measure.designs import refusals as not_refitted
from onnxprune.measure.designs import split_refusals
from onnxprune.plan import PrunePlan
from onnxprune.report.result import Refused
from onnxprune.rewrite.quantized import floating
from onnxprune.rewrite.repair.table import Repair
from onnxprune.timing.node_times import refusals as not_timed


@dataclass(frozen=True)
class Deed:
    """Something that is done to every layer that allows it.

    Attributes:
        asked: whether a run with this plan and this repair does it.
        refusals: layer -> why not, in words, of a graph and the sizes of its tensors.
    """

    asked: Callable[[PrunePlan, Repair], bool]
    refusals: Callable[[Graph, Mapping[str, tuple[int, ...]]], dict[str, str]]


def _ranked(plan: PrunePlan, repair: Repair) -> bool:
    methods = plan.settings.get("methods", ())
    weighed = plan.settings.get("allocation", "adaptive") == "adaptive"
    return weighed and isinstance(methods, Sequence) and ("rank" in methods or "3c" in methods)


DEEDS = {
    "refitted": Deed(lambda plan, repair: repair.first.again is not None, not_refitted),
    "split": Deed(_ranked, split_refusals),
    "timed": Deed(lambda plan, repair: plan.settings.get("of") == "latency", not_timed),
}
"""What is done -> how it stands with it."""


def _asked_of(what: str, net: Analysed, deed: Deed) -> dict[str, str]:
    """The refusals of a deed; what is refitted is refitted in floats."""
    net = (floating(net) if what == "refitted" else None) or net
    return deed.refusals(net.graph, net.shapes)


def refused(net: Analysed, plan: PrunePlan, repair: Repair) -> tuple[Refused, ...]:
    """The layers of the original to which something could not be done that the run does to others."""
    return tuple(
        Refused(what, node, why)
        for what, deed in DEEDS.items()
        if deed.asked(plan, repair)
        for node, why in _asked_of(what, net, deed).items()
    )
