"""Carry a plan out and prove the cut, before any repair: equal to the masked original, or to the original itself.

What cannot be proven is never handed on: it becomes an error that says why, and what the user can do about it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune.channels import Analysed, CutSizes, ahead_of, removed_cuts
from onnxprune.errors import BudgetError, ModelError, UnstableError
from onnxprune.graph.model import Graph
from onnxprune.measure.decisions import ordering, picks
from onnxprune.measure.rounding import FULL
from onnxprune.measure.surgery import Surgery, UnstableDecisions, check_equal, check_surgery
from onnxprune.pipeline.lossless import in_words, probing
from onnxprune.plan import PrunePlan
from onnxprune.rewrite.apply import alive_after, edit_exactly
from onnxprune.rewrite.resample import seen_at
from onnxprune.runtime import ports, sessions
from onnxprune.runtime.ports import Feeds


@dataclass(frozen=True)
class ProvenCut:
    """A plan carried out.

    Attributes:
        graph: the cut network.
        cuts: what was removed, for anyone to check.
        surgery: how far it is from what it must equal.
        warnings: what the user should know about the proof.
    """

    graph: Graph
    cuts: tuple[Mapping, ...]
    surgery: Surgery
    warnings: tuple[str, ...]


def cut_and_prove(net: Analysed, plan: PrunePlan, held: Feeds | None, *, stop_early: bool = False) -> ProvenCut:
    """Cut, and prove it.

    Args:
        net: the original network; where the plan shows it inputs at other sizes, it is masked as it sees them so.
        plan: what stays.
        held: real samples to look at; None: random ones.
        stop_early: give up on random input as soon as it seems to decide the outputs.

    Raises:
        BudgetError: the cut model is not what it must equal (our bug), or random input cannot show it.
        UnstableError: rounding alone decides the outputs on random input.
    """
    cut, net = edit_exactly(net, plan.edits), seen_at(net, plan.edits)
    graph, channels = net.graph, net.channels
    alive = alive_after(net, plan.edits)
    cuts = removed_by(net, plan)
    probes = [held] if held is not None else _random_probes(net)
    if plan.lossless:
        surgery = check_equal(net.model, cut.model, [*probing(net.feeds), *probes])
    else:
        kept, random = CutSizes(channels, alive).kept(), held is None
        early = random and stop_early
        try:
            surgery = check_surgery(
                net.model, cut.model, cuts, probes, kept=kept, until_turned=random, stop_early=early, graph=graph
            )
        except UnstableDecisions as turned:
            raise _unstable(net, turned.surgery) from turned
    if channels.inexact and not plan.lossless and not surgery.exact:
        nodes = channels.inexact
        words = (
            f"--prune-statistics: {len(nodes)} nodes such as {nodes[0]!r} normalize over fewer channels, so the cut is "
            f"not exact (off by {surgery.worst:.1e} before repair)"
        )
        return ProvenCut(cut, cuts, surgery, (words,))
    if not surgery.exact:
        if held is None and _tells_nothing(surgery):
            raise UnstableError(_not_exact(surgery), tuple(g.name for g in channels.groups))
        raise BudgetError(_not_exact(surgery))
    warnings = tuple(in_words(plan.settings)) if plan.lossless else ()
    if surgery.turned:
        orders = ordering(graph, surgery.decisions)
        if held is None and orders:
            raise _unstable(net, surgery)
        words = (
            f"rounding alone turns over what {_some(orders or surgery.decisions)} decide on these samples, so outputs "
            f"{_some(surgery.turned)} were compared with the original's decisions"
        )
        warnings = (*warnings, words)
    return ProvenCut(cut, cuts, surgery, warnings)


def removed_by(net: Analysed, plan: PrunePlan) -> tuple[Mapping, ...]:
    """What a plan takes out, as the published `cuts`: channels, and operands of blocks that go or become one layer."""
    alive = alive_after(net, plan.edits)
    merged = (operand for merge in plan.merged() for operand in merge.as_removed())
    return (*removed_cuts(net.graph, net.channels, alive), *(drop.as_removed() for drop in plan.drops()), *merged)


def check_repaired(net: Analysed, model: onnx.ModelProto) -> None:
    """That a repaired model, which no sample has been compared on, still runs and gives outputs of the same sizes.

    Raises:
        BudgetError: it does not (our bug).
    """
    free = picks(net.model)  # how many there are may depend on the weights
    try:
        outputs = sessions.open_session(model, pack=False, name="repaired").run(net.feeds)
    except ModelError as error:
        raise BudgetError(f"{error}; the repair broke it: please report it, and use --repair none") from error
    for name, value in zip(net.graph.outputs, outputs, strict=True):
        was, now = net.shapes.get(name), np.shape(value)
        if was is not None and was != now and not (free and len(was) == len(now)):
            raise BudgetError(
                f"output {name!r} had sizes {list(was)} and has {list(now)} after the repair: please report it, and "
                "use --repair none"
            )


def _random_probes(net: Analysed) -> list[Feeds]:
    """Random inputs: more than one where a model picks by order, which may hold by luck."""
    if not picks(net.model):
        return [net.feeds]
    sizes = {name: value.shape for name, value in net.feeds.items()}
    specs = ports.input_specs(net.model)
    kept = {name: value for name, value in net.feeds.items() if value.dtype.kind != "f"}  # a rate is no random number
    return [net.feeds, *(ports.default_feed(specs, shapes=sizes, values=kept, seed=seed) for seed in (1, 2))]


def _tells_nothing(surgery: Surgery) -> bool:
    """Whether rounding alone moves the original as much as any error would."""
    return surgery.rounding > FULL.telling


def _not_exact(surgery: Surgery) -> str:
    text = f"the cut model differs from the {surgery.against} by {surgery.worst:.1e}"
    if _tells_nothing(surgery):
        return (
            f"{text}, and rounding alone moves the original by {surgery.rounding:.1e}: on this input the model's "
            f"numbers show nothing; give real samples with --calib"
        )
    return f"{text}; please report it"


def _unstable(net: Analysed, surgery: Surgery) -> UnstableError:
    """Random input often leaves a detector with equal scores, whose order is up to the last bit."""
    orders = ordering(net.graph, surgery.decisions)
    return UnstableError(
        f"on random input, rounding alone turns over what nodes {_some(orders)} pick, so the outputs "
        f"{_some(surgery.turned)} cannot show that the cut is right (up to these nodes it is, error "
        f"{surgery.worst:.1e}); give real samples with --calib",
        ahead_of(net.graph, net.channels, surgery.decisions),
    )


def _some(names: Sequence[str], most: int = 2) -> str:
    """The first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(map(repr, names[:most])) + (f" and {more} more" if more > 0 else "")
