"""Simple plans that a plan has to stand up to, on the whole network.

An allocation minimises a sum of damages that single cuts do alone; that they add up is an assumption. So the plan is
held against what anyone would try: the same share of every group, and the cheapest group that gives the whole ratio
alone. Each is cut, repaired and judged as competing plans are (`compare`); a rival is taken where it does less damage
by more than chance. Fewer samples will not do: repaired on 64, a plan of a keypoint network at half the MACs looked
three times as bad as a rival that, repaired on 144, was three times as bad on held-out samples. In a sweep the plan of
the next larger ratio stands beside them: where that does less damage at all, it serves the smaller ratio too, so that
no larger cut is better than a smaller one on the judged samples.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxprune.decide.allocation import TOLERANCE, Allocation
from onnxprune.decide.limits import Ladder
from onnxprune.decide.study import Study
from onnxprune.measure.chance import beats
from onnxprune.measure.cost import CostModel, WidthCost
from onnxprune.pipeline.compare import Contest
from onnxprune.plan import PrunePlan

BATCH = 8
"""How many samples make one of the figures whose spread tells what chance does."""
HOPELESS = 2.0
"""A rival that promises to do so many times the damage of a plan is not tried: cuts do together what they promise, or
more (equal shares of an EfficientNet-Lite0 at half its MACs promise 2.50, and do 2.82; the plan does 0.33)."""


def simple(study: Study, cost: CostModel, ratio: float) -> list[Allocation]:
    """The rivals that reach a ratio: the same share of every group, and one group alone.

    Args:
        study: what is known of the channels, the damages of every group among it.
        cost: what counts, of channels alone.
        ratio: share of it to remove.
    """
    found = [study.allocate(cost, ratio, "uniform")]
    alone = _alone(study, cost, ratio)
    if alone is not None:
        limits = replace(study.limits, include=f"^{re.escape(alone)}$")
        found.append(replace(study, limits=limits).allocate(cost, ratio, "adaptive"))
    return [allocation for allocation in found if allocation.met]


def hopeful(rivals: Sequence[Allocation], study: Study, damage: float) -> list[Allocation]:
    """The rivals whose cuts, each by itself, do not do `HOPELESS` times the damage that a plan does as a whole."""
    known = study.damages or {}
    alone = [sum(float(known[name][len(keep)]) for name, keep in a.keep.items() if name in known) for a in rivals]
    return [a for a, hurt in zip(rivals, alone, strict=True) if not hurt > HOPELESS * damage]


def _alone(study: Study, cost: CostModel, ratio: float) -> str | None:
    """The group whose channels alone are worth a ratio, at the least damage; None where there is none."""
    groups = study.channels.groups
    ladders = [Ladder(g, study.scores[g.name], study.limits) for g in groups]
    widths = WidthCost(cost, groups)
    whole = np.array([g.width for g in groups] + [1] * (widths.count - len(groups)), float)
    least = np.array([ladder.widths[0] for ladder in ladders] + [1] * (widths.count - len(groups)), float)
    enough = widths.saved(whole, least)[: len(groups)] >= (ratio - TOLERANCE) * cost.total
    best: tuple[float, str] | None = None
    for k in np.flatnonzero(enough):
        for width in reversed(ladders[k].widths):
            at = whole.copy()
            at[k] = width
            if widths.removed(at) >= ratio - TOLERANCE:
                price = float((study.damages or {})[groups[k].name][width])
                best = min(best or (price, groups[k].name), (price, groups[k].name))
                break
    return None if best is None else best[1]


def _better(after: np.ndarray, before: np.ndarray) -> bool:
    """Whether damages are less by more than chance; what is finite is better than what is not."""
    if not (np.isfinite(after).all() and np.isfinite(before).all()):
        return bool(np.isfinite(after).all() and not np.isfinite(before).all())
    return beats(after, before)


def unbeaten(
    contest: Contest, plan: PrunePlan, rivals: Sequence[PrunePlan], larger: PrunePlan | None = None
) -> PrunePlan:
    """The plan, or a rival that does less damage by more than chance; or the larger one, where that does less."""
    rivals = [rival for rival in rivals if rival.edits != plan.edits]
    if not rivals and larger is None:
        return plan
    plans = [plan, *rivals, *([] if larger is None else [larger])]
    hurt = dict(zip((p.edits for p in plans), contest.damages(plans), strict=True))
    for rival in rivals:
        if _better(hurt[rival.edits], hurt[plan.edits]):
            plan = rival
    if larger is not None and float(np.mean(hurt[larger.edits])) < float(np.mean(hurt[plan.edits])):
        return replace(larger, origin=replace(larger.origin, ratio=plan.origin.ratio))
    return plan
