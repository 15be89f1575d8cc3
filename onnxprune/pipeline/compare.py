"""Which of several plans is best, judged on the whole network: each is cut, repaired on some samples, and compared.

A plan minimises a sum of damages that every cut does alone. How they combine once all are made and mended is not
known from single cuts; so plans of different kinds are carried out, and the one whose outputs are closest to the
original's, on samples that nothing was fitted on, is taken. It does not pay for plans of one kind: allocations that
minimise sums of other powers of the damages are too alike for this to tell them apart (nine cases on three nets: the
one chosen was 0.01 points worse on average than the plain sum's, 0.002 better if judged after the whole repair).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from onnxprune import parallel
from onnxprune.channels import Analysed
from onnxprune.measure.damage import Damage
from onnxprune.measure.views import NO_VIEWS, Views
from onnxprune.plan import Edit, PrunePlan
from onnxprune.rewrite.apply import Mending, apply_edits
from onnxprune.rewrite.repair.refit import REFIT_BYTES
from onnxprune.runtime import sessions

COMPARED = 256
"""Most samples that plans are repaired with, and as many that they are judged by."""


class Compared:
    """Cuts and repairs plans, and tells the damage of each.

    Args:
        net: the original network.
        mending: the repair that will follow, on samples that plans may learn from; what would take too long is judged
            after what it goes on from (`Repair.judge`).
        judges: other samples, which nothing was fitted on.
        threads: ORT threads.
        views: what blends the judges.
        many: whether plans are many.
    """

    def __init__(
        self,
        net: Analysed,
        mending: Mending,
        judges: Sequence[Mapping[str, np.ndarray]],
        threads: int | None = None,
        views: Views = NO_VIEWS,
        many: bool = False,
    ) -> None:
        several = views.batches(judges)
        self.net, self.threads, self.looks = net, threads, 1 + views.count
        self.judges = judges = [feeds for one in several for feeds in one]
        self.damage = Damage(net, lambda names: outputs_of(net.model, names, judges, threads))
        self.mending = replace(mending, repair=mending.repair.glance if many else mending.repair.judge)

    def __call__(self, plan: PrunePlan) -> np.ndarray:
        """(batches, looks) damage to the outputs: on the samples as they are, then blended."""
        model = apply_edits(self.net, plan.edits, self.mending).model
        hurt = self.damage.each(outputs_of(model, self.damage.names, self.judges, self.threads))
        return hurt.reshape(-1, self.looks)


class Contest:
    """Plans of one network, judged on the same samples; each once.

    Args:
        compared: cuts, repairs and compares a plan.
        threads: no more workers than that.
        many: the same of several plans, in order, wherever it is done; None: here, side by side.
        holds: bytes that a comparison may hold.
    """

    def __init__(
        self,
        compared: Callable[[PrunePlan], np.ndarray],
        threads: int | None = None,
        many: Callable[[Sequence[PrunePlan]], Iterable[np.ndarray]] | None = None,
        *,
        holds: int = REFIT_BYTES,
    ) -> None:
        self.compared, self.threads, self.many, self.holds = compared, threads, many, holds
        self._known: dict[tuple[Edit, ...], np.ndarray] = {}
        self._plans: dict[tuple[Edit, ...], PrunePlan] = {}

    def judged(self) -> list[tuple[PrunePlan, float]]:
        """All plans that were judged, with their damage."""
        return [(plan, float(np.mean(self._known[edits]))) for edits, plan in self._plans.items()]

    def damages(
        self, plans: Sequence[PrunePlan], progress: Callable[[int, int], None] | None = None
    ) -> list[np.ndarray]:
        """(batches, looks) damage of each; `progress` is called with (plans judged, plans to judge)."""
        fresh = list({plan.edits: plan for plan in plans if plan.edits not in self._known}.values())
        with parallel.at_most(self.threads):
            found = self.many(fresh) if self.many else parallel.each(self.compared, fresh, holds=self.holds)
            for plan, hurt in zip(fresh, parallel.with_progress(found, len(fresh), progress), strict=True):
                self._known[plan.edits] = hurt
                self._plans[plan.edits] = plan
        return [self._known[plan.edits] for plan in plans]

    def best(
        self,
        plans: Sequence[PrunePlan],
        progress: Callable[[int, int], None] | None = None,
        counts: Callable[[PrunePlan], float] = lambda plan: 1.0,
    ) -> PrunePlan:
        """The plan that does least damage to the outputs when all its edits are made and repaired, each counting so
        many times; the first among equals."""
        hurt = zip(self.damages(plans, progress), plans, strict=True)
        return plans[int(np.argmin([float(np.mean(h)) * counts(plan) for h, plan in hurt]))]


def outputs_of(
    model: onnx.ModelProto, names: Sequence[str], batches: Sequence[Mapping[str, np.ndarray]], threads: int | None
) -> list[list[np.ndarray]]:
    """What a model puts out on samples, a list a batch: the tensors of these names, where it has them."""
    made = {o for node in model.graph.node for o in node.output} | {port.name for port in model.graph.output}
    there = [name for name in names if name in made]
    session = sessions.open_session(sessions.returning(model, there), threads=threads, name="candidate")
    found = (dict(zip(session.outputs, session.run(dict(feeds)), strict=True)) for feeds in batches)
    return [[np.asarray(values.get(name)) for name in names] for values in found]
