"""Distillation without labels: the original network teaches the pruned one on unlabelled samples.

Starting from the refitted network, every step minimises over a batch

    w · Σ_t  ‖Z_p,t − Z_o,t‖² / ‖Z_o,t‖²   +   T² · KL( softmax(y_o / T) ‖ softmax(y_p / T) )

where t runs over the block ends (the places that the whole computation passes through) in the first part of the run,
and over the last feature map alone in the rest; Z_o is taken at the channels that the pruned network kept. Outputs that
are no scores of classes count as maps do. With a recipe the steps take its samples, and its loss
is added. The schedule in two parts and the relative errors are ours.

It is on trial (`judge`): what it starts from and what it reaches are compared on samples that it does not train on, and
the start is kept unless the other is better by more than chance. BatchNormalization keeps its statistics, as those of
a few hundred samples are worse, unless a recipe gives more. Every core takes its share of a batch; shares are the same
however many cores there are, and so is the outcome. What the original answers is worked out once, where samples come
unchanged and there is room for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from onnxprune import parallel
from onnxprune.channels import Analysed, CutSizes
from onnxprune.graph.model import Graph
from onnxprune.measure.trained import Trained
from onnxprune.numerics import on_disk
from onnxprune.runtime.ports import Feeds, input_specs
from onnxprune.train.compared import Compared, Labelled
from onnxprune.train.judge import Judge, LabelJudge, verdict
from onnxprune.train.loop import Training, find_rate, half_precision, steps_within, train
from onnxprune.train.network import Network, as_feeds, channels_last, only_batch
from onnxprune.train.processes import process_group, rank, ranks
from onnxprune.train.recipe import Recipe
from onnxprune.train.samples import NONE, Samples, augmenter, harmless, is_image
from onnxprune.train.shares import Figured, Share, Shares, alone, set_up

LOOKED_AT = 128
"""Samples by which it is found how samples may vary."""


MAPS = 64.0
"""The last map tells more of an image than the few classes that it is seen as. ResNet-20 on CIFAR-10 at −54%, 2,000
steps, KL on 5,000 unseen images: 0.068 with 1, 0.060 with 4, 0.054 with 16, 0.052 with 64, no gain without maps."""
ANSWERS = 1 << 28
"""Bytes of the original's answers to samples that do not vary that are kept, at most."""
AGAIN = 4
"""Times that an augmented batch comes in a run, all in all: the original answers it once."""


@dataclass(frozen=True)
class Distillation:
    """How to distill.

    Attributes:
        training: the loop's settings; its `steps` are worked out from `epochs`, unless there are none.
        epochs: passes over the samples; None: as many steps as `training` says.
        minutes: about how long to train, instead of either; None: as many steps as they say.
        batch: samples of a step; None: as many as suit their number.
        temperature: T.
        maps: w, what a relative error of maps and of outputs that are no scores counts against a nat; None: `MAPS`, but
            with a recipe, whose labels are to be heard, 1.
        blockwise: share of the run in which every block end counts.
        held_out: share of the samples that is not trained on, where no others are given to judge by.
        augment: see `train.samples.AUGMENTATIONS`; None: what is harmless (`train.samples.harmless`), where the network
            gives images classes and there is no recipe.
        batch_norm: see `network.BATCH_NORM`; None: frozen, but with a recipe, which has more samples, the batch's.
        recipe: file.py with samples to train on, and a loss of their labels that is added, see `recipe`; None: none.
        seed: for everything random.
    """

    training: Training = field(default_factory=lambda: Training(steps=1, lr=None))
    epochs: int | None = 40
    minutes: float | None = None
    batch: int | None = None
    temperature: float = 2.0
    maps: float | None = None
    blockwise: float = 0.3
    held_out: float = 0.125
    augment: tuple[str, ...] | None = None
    batch_norm: str | None = None
    recipe: str | None = None
    seed: int = 0


def distill(
    net: Analysed,
    pruned: Graph,
    alive: np.ndarray,
    batches: Iterable[Feeds],
    *,
    settings: Distillation | None = None,
    judges: Iterable[Feeds] | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[Trained], None] = lambda outcome: None,
) -> Graph:
    """The pruned network, trained to compute what the original computes, or as it was where that did not help.

    Args:
        net: the network before the cut.
        pruned: the network after it, repaired already; its edits are carried out.
        alive: (unit_count + 1,) bool, what was kept.
        batches: unlabelled samples.
        settings: how.
        judges: samples to judge by, which nothing was fitted on; None: a part of the others, and with a recipe a part
            of its own.
        threads: cores to use; None: all, but with a recipe, which cannot be shared out, one.
        progress: called with (steps done, steps).
        tell: told what came of it.

    Raises:
        UnsupportedError: torch has no form of an operator; the message names the node.
    """
    how = settings or Distillation()
    with set_up(how.seed, threads if how.recipe else 1), parallel.at_most(threads), process_group() as device:
        lesson = Lesson(net, pruned, alive, list(batches), how, None if judges is None else list(judges), device)
        judge = lesson.judge
        if next(lesson.student.parameters(), None) is None:  # all that could learn has gone
            return lesson.student.graph
        if judge is None:
            tell(Trained("distill", "start", "", None, None, None, 0, 0, 0, None, why=TOO_FEW))
            return pruned
        start = judge(lesson.student)
        if how.minutes is not None:
            lesson.last(60 * how.minutes, judge, start)
        found = train(
            lesson.student, lesson.loss, lesson.training, check=lambda: judge(lesson.student), start=start,
            little=judge.little, progress=progress,
        )  # fmt: skip
        tell(verdict("distill", judge, start, found, lesson.augment))
    return lesson.student.cpu().learned()


TOO_FEW = "there are too few samples to judge training by; give at least sixteen"


class Lesson:
    """Teacher, student, what they are compared on, and what is minimised.

    Attributes:
        student: the network that is trained.
        training: how, with the number of steps.
        judge: what tells how well a network does; None: there are too few samples for one.
        loss: of a step.
    """

    def __init__(
        self,
        net: Analysed,
        pruned: Graph,
        alive: np.ndarray,
        batches: Sequence[Feeds],
        how: Distillation,
        judges: Sequence[Feeds] | None,
        device: torch.device,
    ):
        self.how, self.device = how, device
        self.teacher = channels_last(Network(net.graph)).to(device).eval()
        self.teacher.takes = takes = only_batch(self.teacher, net.feeds)
        norm = how.batch_norm or ("frozen" if how.recipe is None else "batch")
        student = Network(pruned.settle(), batch_norm=norm, takes=takes)
        self.student = channels_last(student).to(device).eval()
        weight = (MAPS if how.recipe is None else 1.0) if how.maps is None else how.maps
        self.compared = Compared.of(net.graph, student.graph, CutSizes(net.channels, alive), device, weight)
        unit = takes or 1
        self.recipe = None if how.recipe is None else Recipe(how.recipe, input_specs(net.model), hold=True)
        fit, held = Samples(batches, how.batch, unit), None if judges is None else Samples(judges, None, unit)
        if self.recipe is None and held is None:
            fit, held = fit.parted(how.held_out)
        self.fit = fit
        self.augment = self._harmless(fit) if how.augment is None else tuple(a for a in how.augment if a != NONE)
        self.training = how.training if how.epochs is None else replace(how.training, steps=how.epochs * fit.per_epoch)
        self.judge = self._judge(held)
        shared = self.recipe is None and device.type == "cpu" and norm == "frozen"
        if self.recipe is None and not self.augment and self.judge is not None:
            self.fit = self._answered(fit)
        self._again = self.recipe is None and bool(self.augment) and norm == "frozen"
        self._answers, self._room = dict[tuple[int, int], dict[str, Tensor]](), on_disk.share_of_room()
        self._draw = step_samples(self.recipe or self.fit, self.augment, how.seed, device)
        self.loss = Shares(self._shares) if shared else self._whole

    def last(self, seconds: float, judge: Judge | LabelJudge, start: Tensor) -> None:
        """Train for about so long: with as many steps as find room. What trials of rates do not take is for steps."""

        def check() -> Tensor:
            return judge(self.student)

        again = 1 - 1 / AGAIN if self._again else 0.0
        steps = steps_within(seconds, self.student, self.loss, self.training, check, again=again)
        self.training = replace(self.training, steps=steps)
        if self.training.lr is None:
            rate, spared = find_rate(self.student, self.loss, self.training, check, start)
            self.training = replace(self.training, steps=int(steps * (1 + spared)), lr=rate)

    def _harmless(self, fit: Samples) -> tuple[str, ...]:
        """How samples may vary where nobody says it."""
        [name, *others], whole = self.compared.outputs, fit.whole or {}
        if self.recipe or others or not self.compared.outputs[name] or len(whole) != 1:
            return ()
        [(fed, given)] = whole.items()
        some = given[:: max(1, len(given) // LOOKED_AT)][:LOOKED_AT]
        some = some[: len(some) // fit.unit * fit.unit]
        if not is_image(given) or not len(some):
            return ()

        @torch.no_grad()
        def classes(x: Tensor) -> Tensor:
            return torch.cat([self.teacher(part, [name])[name] for part in fit.shares({fed: x})]).argmax(1)

        return harmless(classes, as_feeds({fed: some}, self.device)[fed], self.how.seed)

    def _judge(self, held: Samples | None) -> Judge | LabelJudge | None:
        if self.recipe is not None:
            return LabelJudge(self.recipe, self.device)
        if held is None or held.count < 2:
            return None
        return Judge(self.teacher, held, self.compared.outputs, self.device, self.augment, self.how.seed)

    def _whole(self, step: int) -> Figured:
        feeds, labelled = self._draw(self._batch(step))
        return self._loss(step, 0, feeds, labelled)

    def _shares(self, step: int) -> Sequence[Share]:
        feeds, _ = self._draw(self._batch(step))
        count = len(next(iter(feeds.values())))
        parts = self.fit.shares(feeds)
        return [
            (len(next(iter(p.values()))) / count, partial(self._loss, step, k, p, None)) for k, p in enumerate(parts)
        ]

    def _batch(self, step: int) -> int:
        """The number of a step's batch: augmented ones come again, so that the original need not answer each time."""
        return step % -(-self.training.steps // AGAIN) if self._again and self.training.steps > AGAIN else step

    def _loss(self, step: int, part: int, feeds: dict[str, Tensor], labelled: Labelled | None) -> Figured:
        ends = self.compared.ends_of(every=step < int(self.how.blockwise * self.training.steps))
        goal = {name.removeprefix(ANSWER): v for name, v in feeds.items() if name.startswith(ANSWER)}
        feeds = {name: v for name, v in feeds.items() if not name.startswith(ANSWER)}
        goal = goal or self._goal((self._batch(step), part), feeds, ends)
        return self.compared.loss(goal, self.student, feeds, self.how.temperature, ends, labelled=labelled)

    def _goal(self, key: tuple[int, int], feeds: dict[str, Tensor], ends: list[str]) -> dict[str, Tensor]:
        """What the original answers to a part of a batch; kept, but for block ends in the middle, while there is
        room."""
        last = [*self.compared.ends_of(every=False), *self.compared.outputs]
        found = self._answers.get(key)
        if found is None or not found.keys() >= {*ends}:
            found = self.compared.goals(self.teacher, feeds, ends)
            size = sum(found[name].nbytes for name in last)
            if self._again and key not in self._answers and size <= self._room:
                self._room -= size
                self._answers[key] = {name: found[name] for name in last}
        return found

    def _answered(self, samples: Samples) -> Samples:
        """The samples with what the original answers to each beside them, where there is room."""
        ends = self.compared.ends_of(every=self.how.blockwise > 0)
        parts = samples.all()

        def answers(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            alone()
            with half_precision(self.training, self.device):
                goal = self.compared.goals(self.teacher, as_feeds(feeds, self.device), ends)
            return {ANSWER + name: value.float().cpu().numpy() for name, value in goal.items()}

        count = len(next(iter(parts[0].values())))
        first = answers(parts[0])
        whole = sum(v.nbytes for v in first.values()) / count * samples.count
        if whole > ANSWERS or any(len(v) != count for v in first.values()):
            return samples
        found = [{**feeds, **more} for feeds, more in zip(parts, parallel.each(answers, parts), strict=True)]
        return Samples(found, samples.size, samples.unit)


ANSWER = "\0answer "
"""Stands before the name of a tensor of the original's among the samples."""


def step_samples(
    source: Samples | Recipe, augment: Sequence[str], seed: int, device: torch.device
) -> Callable[[int], tuple[dict[str, Tensor], Labelled | None]]:
    """step -> (its samples, the loss of their labels): a recipe's, or augmented ones without labels."""
    change = augmenter(augment, seed)

    def draw(step: int) -> tuple[dict[str, Tensor], Labelled | None]:
        if isinstance(source, Recipe):
            samples, labels = source.batch(step)
            return as_feeds(samples, device), lambda outputs: source.loss(outputs, labels)
        return change(as_feeds(source.batch(step, seed, rank(), ranks()), device), step), None

    return draw
