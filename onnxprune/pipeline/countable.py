"""Whether a share of the multiply-accumulates can be told at all.

What no rule counts may be most of a network's work. Where nodes that nobody can count take more than a small part of
the time, a ratio of the others says nothing of the whole, and is not called reached.
"""

from __future__ import annotations

from dataclasses import asdict

from onnxprune.errors import BudgetError, UnsupportedError
from onnxprune.measure.cost import Cost
from onnxprune.pipeline.opened import Subject
from onnxprune.report.terminal import not_counted

MOST = 0.02
"""Share of the time that may go uncounted."""
OTHERWISE = "ask for --of params"


def check_countable(
    subject: Subject, of: str | None, *, best_effort: bool, otherwise: str = f"{OTHERWISE}, or add --best-effort"
) -> None:
    """Refuse a ratio that nobody could tell to be reached.

    Args:
        subject: the model.
        of: what counts; None: multiply-accumulates.
        best_effort: whether to go on with what can be counted.
        otherwise: what else can be done.

    Raises:
        UnsupportedError: nothing is counted at all.
        BudgetError: too much is not counted.
    """
    if of not in (None, "macs") or not subject.channels.groups:
        return
    cost = subject.cost()
    if not cost.macs:
        what = f", and {not_counted(asdict(cost))}" if cost.uncounted else ""
        raise UnsupportedError(f"no multiply-accumulates of the model can be counted{what}; {OTHERWISE}")
    if not best_effort and (said := doubt(cost)):
        raise BudgetError(f"no ratio of the MACs can be called reached: {said}; {otherwise}")


def doubt(cost: Cost) -> str:
    """Why a share of the multiply-accumulates does not tell of the whole, in words; empty where it does."""
    if not cost.uncounted or (cost.uncounted_time is not None and cost.uncounted_time <= MOST):
        return ""
    return f"the share of MACs is of what can be counted, and {not_counted(asdict(cost))}"
