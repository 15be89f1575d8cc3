"""Surgery: is a pruned model the original with the removed channels masked?

The judge masks every removed index of every constant that the original reads (`masking.masked`) and compares outputs.
Weights play no part in it, so it is asked before any repair. The cut sums in another order, so numbers differ by
rounding (`rounding`); where they differ by more, a second look is taken before the cut is called wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune.errors import BudgetError
from onnxprune.graph.model import Graph
from onnxprune.measure.decisions import AMPLE, Tail, picks
from onnxprune.measure.given import open_given
from onnxprune.measure.masking import masked
from onnxprune.measure.rounding import EQUAL_TOLERANCE, MARGIN, Precision, distance, gap, magnitude, precision_of
from onnxprune.measure.second_look import Kept, SecondLook, watched
from onnxprune.runtime import sessions
from onnxprune.runtime.ports import Feeds
from onnxprune.runtime.weights import with_external_weights

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Surgery:
    """How far the pruned model is from the masked original, before any repair.

    Attributes:
        worst: worst relative error of all that was compared.
        samples: number of samples.
        exact: whether every error is within the tolerance, or within what rounding alone does.
        rounding: how much rounding alone moves what `worst` was measured on; 0 when that was not asked.
        decisions: the nodes whose decisions were taken from the original to compare the rest.
        turned: outputs in which rounding turns decisions over on these samples: equal only with the original's
            decisions.
        inner: tensors compared in place of outputs that rounding moves too much.
        against: what it was compared with: "masked original", or "original" for a lossless cut.
    """

    worst: float
    samples: int
    exact: bool = True
    rounding: float = 0.0
    decisions: tuple[str, ...] = ()
    turned: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    against: str = "masked original"


class UnstableDecisions(Exception):
    """Decisions seem to have turned over: nothing behind them was compared.

    Attributes:
        surgery: how far the models are from each other up to there.
    """

    def __init__(self, surgery: Surgery):
        super().__init__(surgery)
        self.surgery = surgery


def check_surgery(
    original: onnx.ModelProto,
    pruned: onnx.ModelProto,
    cuts: Sequence[Mapping],
    batches: Iterable[Feeds],
    *,
    kept: Kept | None = None,
    until_turned: bool = False,
    stop_early: bool = False,
    graph: Graph | None = None,
) -> Surgery:
    """Compare the unrepaired pruned model with the masked original.

    Args:
        original, pruned: the models.
        cuts: what was removed.
        batches: feeds.
        kept: the channels left in every activation that lost some; needed to compare inside the models.
        until_turned: stop at the first batch on which rounding turns decisions over, or does nothing at all.
        stop_early: give up when only outputs behind a choice by order differ, one by more than rounding alone explains,
            although all that the first decisions are made from is the same: for a caller who will then cut otherwise.
        graph: the original's graph, unedited; given, its constants are not worked out again.

    Raises:
        BudgetError: an output has another shape or type.
        UnstableDecisions: given up, `stop_early`.
    """
    closer = SecondLook(
        masked(original, cuts, graph=graph), with_external_weights(pruned), cuts, kept or {}, precision_of(original)
    )
    first = _first_look(closer, [o.name for o in original.graph.output], until_turned)
    worst, samples = 0.0, 0
    for feeds in batches:
        samples += len(next(iter(feeds.values()))) if feeds else 1
        seen, made = first.run(feeds)
        error = first.error(seen, made)
        if error > closer.precision.tolerance:
            if stop_early:
                first.give_up(closer, worst, samples, seen, made)
            closer.look(feeds, first.left, {o: seen[o] for o in first.outputs}, [made[o] for o in first.outputs], seen)
            if closer.turned and until_turned:
                break
            continue
        worst = max(worst, error)
        if until_turned and error == 0.0:  # the same to the last bit: nothing can turn over
            break
        if first.tail is not None and first.comparable(seen, made):
            if turned := _turned(first.tail, feeds, seen, made, closer.precision):
                return Surgery(worst, samples, decisions=first.tail.decisions, turned=turned)
            break
    return _verdict(closer, worst, samples)


@dataclass(frozen=True)
class _FirstLook:
    """Both models as they are, and of inner tensors what a second look needs.

    Attributes:
        outputs: those of the models.
        tail: what follows the first decisions, where rounding is to be played through again.
        left, right: sessions of the masked original and of the cut model.
    """

    outputs: list[str]
    tail: Tail | None
    left: sessions.Session
    right: sessions.Session

    def run(self, feeds: Feeds) -> tuple[Values, Values]:
        """The values in the masked original and in the cut model."""
        sides = self.left, self.right
        seen, made = (dict(zip(side.outputs, side.run(feeds), strict=True)) for side in sides)
        return seen, made

    def error(self, seen: Values, made: Values) -> float:
        """The worst of the outputs."""
        return max((distance(seen[o], made[o]) for o in self.outputs), default=0.0)

    def comparable(self, seen: Values, made: Values) -> bool:
        """Whether what follows the first decisions can be run alone, on what both models make."""
        tail = self.tail
        return tail is not None and tail.short and all(np.shape(seen[b]) == np.shape(made[b]) for b in tail.basis)

    def give_up(self, closer: SecondLook, worst: float, samples: int, seen: Values, made: Values) -> None:
        """UnstableDecisions where decisions that turned over must be why the outputs differ."""
        if self.tail is not None and (turned := closer.only_turned(self.tail, self.outputs, seen, made)):
            found = max(worst, closer.worst)
            raise UnstableDecisions(Surgery(found, samples, False, decisions=self.tail.decisions, turned=turned))


def _first_look(closer: SecondLook, outputs: list[str], until_turned: bool) -> _FirstLook:
    """The sessions. A run of a detector may take seconds: what a second look needs is fetched in the first."""
    inner: set[str] = set()
    tail: Tail | None = None
    if picks(closer.reference.model):
        inner = watched(closer.graph, closer.cuts, closer.kept)
        tail = _tail(closer.graph, closer.pruned.model) if until_turned else None
    basis = [] if tail is None else tail.basis
    inner |= set(tail.reads if tail is not None and tail.short else basis)
    left = open_given(closer.reference, {}, [*outputs, *sorted(inner - set(outputs))], name="masked original")
    right = open_given(closer.pruned, {}, [*outputs, *(b for b in basis if b not in outputs)], name="pruned model")
    return _FirstLook(outputs, tail, left, right)


def _verdict(closer: SecondLook, worst: float, samples: int) -> Surgery:
    """What both looks have found."""
    for name in closer.reshaped:
        raise BudgetError(f"output {name!r} has another shape than in the masked original - please report this model")
    return Surgery(
        max(worst, closer.worst),
        samples,
        closer.exact,
        closer.rounding,
        closer.decisions,
        tuple(sorted(closer.turned)),
        tuple(sorted(closer.inner)),
    )


def _tail(graph: Graph, pruned: onnx.ModelProto) -> Tail | None:
    """What follows the first decisions, where the pruned model has what it starts from."""
    tail = Tail(graph)
    made = {o for n in pruned.graph.node for o in n.output}
    return tail if tail.basis and made.issuperset(tail.basis) else None


def _turned(tail: Tail, feeds: Feeds, seen: Values, made: Values, precision: Precision) -> tuple[str, ...]:
    """Outputs, equal in both models by now, that jump when rounding is played through again."""
    found = set()
    for values in tail.stirred(feeds, seen, made):
        for name, value in values.items():
            usual = max(precision.tolerance, MARGIN * AMPLE * distance(seen[name], made[name]))
            if distance(seen[name], value) > usual:
                found.add(name)
    return tuple(sorted(found))


def check_equal(original: onnx.ModelProto, pruned: onnx.ModelProto, batches: Iterable[Feeds]) -> Surgery:
    """Compare a pruned model that promises the original's outputs with the original.

    The error is a share of the output's largest magnitude in the batch, or of a tenth of its largest in any, where
    that is more: a saturated output that is all but zero is nothing but rounding.

    Raises:
        BudgetError: an output has another shape.
    """
    errors, sizes, samples = _errors(original, "original", pruned, batches)
    sizes = np.maximum(sizes, 0.1 * sizes.max(axis=0, initial=0.0))
    worst = float((errors / (sizes + 1e-12)).max(initial=0.0))
    return Surgery(worst, samples, worst <= EQUAL_TOLERANCE, against="original")


def _errors(
    reference: onnx.ModelProto, name: str, pruned: onnx.ModelProto, batches: Iterable[Feeds]
) -> tuple[np.ndarray, np.ndarray, int]:
    """(largest error and largest magnitude per batch and output, (batches, outputs) each; number of samples)."""
    left = sessions.open_session(reference, name=name)
    right = sessions.open_session(pruned, name="pruned model")
    errors: list[list[float]] = []
    sizes: list[list[float]] = []
    samples = 0
    for feeds in batches:
        samples += len(next(iter(feeds.values()))) if feeds else 1
        errors.append([])
        sizes.append([])
        for output, a, b in zip(right.outputs, left.run(dict(feeds)), right.run(dict(feeds)), strict=True):
            a, b = np.asarray(a), np.asarray(b)
            if a.shape != b.shape:
                raise BudgetError(f"output {output!r}: shape {a.shape} became {b.shape} - please report this model")
            measured = bool(a.size) and a.dtype.kind == "f"
            errors[-1].append(gap(a, b) if measured else 0.0)
            sizes[-1].append(magnitude(a) if measured else 0.0)
    return np.array(errors), np.array(sizes), samples
