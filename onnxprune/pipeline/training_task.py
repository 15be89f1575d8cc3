"""What a training method is given, what it gives back, and what several of them do alike.

Nothing here knows a method by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxprune.channels import Analysed
from onnxprune.decide.blocks import Block
from onnxprune.errors import BudgetError
from onnxprune.graph.model import Graph, digest
from onnxprune.measure.cost import CostModel
from onnxprune.pipeline.apply import Tell, Tuning
from onnxprune.pipeline.asked import Progress, limits_of
from onnxprune.pipeline.goals import Ratio
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.origin import origin_of
from onnxprune.pipeline.planner import Planner
from onnxprune.pipeline.plans import make_plan
from onnxprune.plan import Edit, KeepChannels, Origin, PrunePlan
from onnxprune.samples.calibration import Calibration
from onnxprune.samples.partition import Partition

if TYPE_CHECKING:
    from onnxprune.pipeline.training_settings import TrainSettings
    from onnxprune.train.budget import Budget
    from onnxprune.train.loop import Training
    from onnxprune.train.objective import Objective

Report = Callable[[int, int], None] | None
"""Called with (steps done, steps)."""


@dataclass(frozen=True)
class TrainingRun:
    """A model, how to prune it while training, and the samples, parted once.

    Attributes:
        subject: the model.
        settings: how.
        samples: `fit` decides the sizes, and teaches where there is no recipe; None: there are none.
        progress: called with (phase, done, total).
    """

    subject: Subject
    settings: TrainSettings
    samples: Partition | None
    progress: Progress | None

    @property
    def net(self) -> Analysed:
        """The original."""
        return self.subject.net

    def decide(self, **settings: Any) -> PrunePlan:
        """The plan that would be made without training, from the method's kinds of edits."""
        plan = make_plan(self.subject, Ratio(self.settings.ratio), self.settings.deciding(**settings), self.progress)
        own = self._origin()
        return replace(plan, origin=replace(own, settings={**plan.origin.settings, **own.settings}))

    def _origin(self) -> Origin:
        """What a plan remembers of how it was made."""
        how = self.settings
        return origin_of(self.subject, how.decided(), ratio=how.ratio, trained=how.method, steps=how.steps)


@dataclass(frozen=True)
class TrainingTask(TrainingRun):
    """What a training method is given.

    Attributes:
        loss: what is minimised: of a network at a step.
        training: how: steps, rate, device, files.
    """

    loss: Objective
    training: Training

    def report(self, done: int = 0) -> Report:
        """Whom to tell of steps that come behind so many others."""
        progress, steps = self.progress, self.settings.steps
        return None if progress is None else lambda k, n: progress("train", done + k, steps)

    def plan(self, model: onnx.ModelProto, edits: Iterable[Edit]) -> PrunePlan:
        """A plan of those edits for that model."""
        return PrunePlan(digest(model), tuple(edits), self._origin(), seed=self.settings.seed)

    def keeping(self, model: onnx.ModelProto, keep: Mapping[str, tuple[int, ...]]) -> PrunePlan:
        """A plan that keeps those channels of groups, for that model."""
        width = {g.name: g.width for g in self.net.channels.groups}
        cut = {name: kept for name, kept in keep.items() if len(kept) < width[name]}
        return self.plan(model, [KeepChannels(name, width[name], kept) for name, kept in cut.items()])


@dataclass(frozen=True)
class Prepared:
    """A model that training has prepared for a cut.

    Attributes:
        trained: before anything was merged or cut.
        model: what is cut.
        plan: how; its digest is that of `model`.
        words: what the method found.
        tune: what is left to do when the model is cut and refitted: the cut network to a better one.
        start: the plan that is made without training, which the outcome is held against; None: not made yet.
    """

    trained: onnx.ModelProto
    model: onnx.ModelProto
    plan: PrunePlan
    words: str
    tune: Tuning | None = None
    start: PrunePlan | None = None


def budget_of(task: TrainingTask, blocks: Sequence[Block] = ()) -> Budget:
    """What may go, and how much has to.

    Raises:
        BudgetError: even with the least of every group too much is left.
    """
    from onnxprune.train.budget import Budget

    settings, channels = task.settings, task.net.channels
    limits = limits_of(settings.deciding())
    groups = [g for g in channels.groups if limits.allows(g)]
    steps = {g.name: min(limits.step(g), g.width) for g in groups}
    cost = CostModel(task.net.graph, channels, settings.of, blocks=[b.nodes for b in blocks])
    names = [b.add for b in blocks]

    def removed(keep: Mapping[str, tuple[int, ...]], dropped: frozenset[str]) -> float:
        return cost.removed(channels.alive(keep), np.array([name not in dropped for name in names], float))

    if removed({name: tuple(range(step)) for name, step in steps.items()}, frozenset(names)) < settings.ratio:
        raise BudgetError(f"ratio {settings.ratio:g} is out of reach; ask for less, or exclude fewer groups")
    unit = cost.per_unit(np.ones(channels.unit_count + 1, bool))
    costs = {g.name: float(unit[g.units].mean()) / cost.total for g in groups}
    return Budget(groups, steps, costs, removed, settings.ratio)


def most_needed(task: TrainingTask, keep: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """As many channels of every group, those that the refit needs most."""
    how = task.settings.deciding(allocation="uniform")
    scores = Planner(task.subject, how, task.progress).study.scores
    return {n: tuple(sorted(map(int, np.argsort(-scores[n], kind="stable")[: len(kept)]))) for n, kept in keep.items()}


def tuned(task: TrainingTask, plan: PrunePlan, done: int, words: str) -> Prepared:
    """What is cut and refitted first, and trained in the steps that are not done yet.

    Args:
        task: the method's.
        plan: how to cut.
        done: steps that were taken to find the plan.
        words: what the method found.
    """
    settings, samples = task.settings, task.samples
    assert samples is not None  # what is cut first says that it needs them

    def tune(cut: Graph, judges: Calibration | None, tell: Tell) -> Graph:
        from onnxprune.train.distill import Distillation, distill

        how = Distillation(
            training=replace(
                task.training, steps=settings.steps - done, lr=settings.lr, highest=settings.rate,
                checkpoint=settings.checkpoint_of_cut,
            ),
            epochs=None, batch=settings.batch, augment=settings.augment, recipe=settings.recipe, seed=settings.seed,
        )  # fmt: skip
        return distill(
            task.net, cut, task.net.channels.alive(plan.keep()), list(samples.fit.batches(settings.batch)),
            settings=how, judges=None if judges is None else list(judges.batches(settings.batch)),
            threads=settings.threads, progress=task.report(done),
            tell=lambda found: tell(replace(found, step=settings.method)),
        )  # fmt: skip

    return Prepared(task.subject.model, task.subject.model, plan, words, Tuning(tune, settings.recipe is None))
