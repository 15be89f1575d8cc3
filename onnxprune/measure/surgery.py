"""Two questions about a pruned model, kept apart.

*Surgery*: is it the original with the removed channels masked? The judge masks every removed index of every
constant that the original reads (`masking.masked`) and compares outputs. Weights play no part in it, so it is
asked before any repair.

*Fidelity*: does the finished model still answer like the original? Asked on samples that nothing was fitted on.

The cut sums in another order, so numbers differ by rounding. Mostly that is 1e-6 of the output's largest value.
But a detector *decides* (TopK, NonMaxSuppression, a threshold), and a decision between equals turns over at the
last bit; a sigmoid near zero turns an error of 1e-6 of its argument into one of 1e-3 of its value. So where the
plain comparison fails, three things are done before the cut is called wrong:

1. the masked original is run again with its input stirred by a bit or two: how much does rounding alone move it?
2. both models run with the *original's decisions* in place of their own, and what each decision is made from is
   compared like an output;
3. an output that rounding still moves a lot is held by the tensor in front of its last nonlinearity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx
from onnx import helper

from onnxprune.errors import BudgetError
from onnxprune.graph.model import Graph
from onnxprune.measure.decisions import AMPLE, Tail, deciding, picks
from onnxprune.measure.masking import masked
from onnxprune.protobuf.nodes import node_key
from onnxprune.runtime import sessions
from onnxprune.runtime.ports import Feeds
from onnxprune.runtime.weights import ModelAndWeights, with_external_weights


@dataclass(frozen=True)
class Precision:
    """What rounding may do, by the type that a model computes in.

    Attributes:
        tolerance: worst error allowed, as a share of the tensor's largest magnitude: sums in another order.
        stir: relative change of the input that stands for rounding.
        telling: a tensor that stirring moves by more tells nothing about the cut.
    """

    tolerance: float
    stir: float
    telling: float

    def explains(self, error: float, rounding: float) -> bool:
        """Whether an error is one of rounding, on a tensor that tells."""
        return error <= max(self.tolerance, MARGIN * rounding) and rounding <= self.telling


FULL = Precision(tolerance=1e-4, stir=3e-7, telling=1e-3)
HALF = Precision(tolerance=5e-3, stir=1e-3, telling=3e-2)
"""Where a model computes in float16 (eps 1e-3) in part."""
MARGIN = 10.0
"""An error may be so many times what stirring does."""
EQUAL_TOLERANCE = 1e-5
"""The same, for a cut that promises the original's outputs."""

Kept = Mapping[str, tuple[int, np.ndarray]]
"""Activation -> (axis, (length,) bool): the channels that a cut leaves."""


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


@dataclass(frozen=True)
class Fidelity:
    """How alike the outputs are on held-out samples.

    Attributes:
        samples: number of samples.
        cosine: mean cosine between the outputs, per sample and output; None when no output is of floating point.
        sqnr_db: 10·log10 of signal power over error power, over all; None likewise.
        top1: share of samples whose largest entry is the same; None when no output is a vector of scores.
        held_out: False when the samples were also fitted on (there was only one).
        equal: share of the entries of integer outputs (labels, class maps) that are the same; None when there are none.
    """

    samples: int
    cosine: float | None
    sqnr_db: float | None
    top1: float | None
    held_out: bool = True
    equal: float | None = None

    def in_words(self) -> str:
        """`top-1 agreement 98.0%, cosine 0.9987, SQNR 25.1 dB`."""
        parts = [] if self.top1 is None else [f"top-1 agreement {self.top1:.1%}"]
        if self.cosine is not None and self.sqnr_db is not None:
            parts += [f"cosine {self.cosine:.4f}", f"SQNR {self.sqnr_db:.1f} dB"]
        parts += [] if self.equal is None else [f"same integers {self.equal:.1%}"]
        return ", ".join(parts) or "no output to compare"


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference as a share of the largest magnitude of `a`; inf where either is not finite."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return np.inf
    if not a.size or a.dtype.kind == "O":
        return 0.0
    if a.dtype.kind != "f":
        return 0.0 if np.array_equal(a, b) else np.inf
    error = _gap(a, b) / (_size(a) + 1e-12)
    return float(error) if np.isfinite(error) else np.inf


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference; what is infinite or no number in both alike is none."""
    with np.errstate(invalid="ignore", over="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        gap = np.where(same, 0.0, np.abs(a.astype(np.float64) - b)).max(initial=0.0)
    return float(gap) if np.isfinite(gap) else np.inf


def _size(a: np.ndarray) -> float:
    """The largest finite magnitude."""
    return float(np.abs(a[np.isfinite(a)].astype(np.float64)).max(initial=0.0))


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
        hasty: give up when only outputs behind a choice by order differ, one by more than rounding alone explains,
            although all that the first decisions are made from is the same: for a caller who will then cut otherwise.
        graph: the original's graph, unedited; given, its constants are not worked out again.

    Raises:
        BudgetError: an output has another shape or type.
        Turned: given up, `hasty`.
    """
    reference, cut = masked(original, cuts, graph=graph), with_external_weights(pruned)
    outputs = [o.name for o in original.graph.output]
    closer = _Closer(reference, cut, cuts, kept or {}, _precision(original))
    watched: set[str] = set()
    tail: Tail | None = None
    if picks(reference.model):  # a run of a detector may take seconds: what a second look needs is fetched in the first
        watched = _watched(closer.graph, cuts, kept or {})
        tail = _tail(closer.graph, pruned) if until_turned else None
    basis, reads = ([], []) if tail is None else (tail.basis, tail.reads if tail.short else tail.basis)
    watched = watched.union(reads) - set(outputs)
    left = _given(reference, {}, [*outputs, *sorted(watched)], name="masked original")
    right = _given(cut, {}, [*outputs, *(b for b in basis if b not in outputs)], name="pruned model")
    worst, samples = 0.0, 0
    for feeds in batches:
        samples += len(next(iter(feeds.values()))) if feeds else 1
        seen = dict(zip(left.outputs, left.run(feeds), strict=True))
        made = dict(zip(right.outputs, right.run(feeds), strict=True))
        wanted, found = [seen[o] for o in outputs], [made[o] for o in outputs]
        error = max(map(distance, wanted, found), default=0.0)
        if error <= closer.precision.tolerance:
            worst = max(worst, error)
            if until_turned and error == 0.0:  # the same to the last bit: nothing can turn over
                break
            if tail is not None and tail.short and all(np.shape(seen[b]) == np.shape(made[b]) for b in basis):
                turned = _turned(tail, feeds, seen, made, closer.precision)
                if turned:
                    return Surgery(worst, samples, decisions=tail.decisions, turned=turned)
                break
            continue
        if stop_early and tail is not None and (turned := closer.only_turned(tail, outputs, seen, made)):
            reached = max(worst, closer.worst)
            raise UnstableDecisions(Surgery(reached, samples, False, decisions=tail.decisions, turned=turned))
        closer.look(feeds, left, dict(zip(outputs, wanted, strict=True)), found, seen)
        if closer.turned and until_turned:
            break
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


def _turned(
    tail: Tail, feeds: Feeds, seen: Mapping[str, np.ndarray], made: Mapping[str, np.ndarray], precision: Precision
) -> tuple[str, ...]:
    """Outputs, equal in both models by now, that jump when rounding is played through again."""
    found = set()
    for values in tail.stirred(feeds, seen, made):
        for name, value in values.items():
            usual = max(precision.tolerance, MARGIN * AMPLE * distance(seen[name], made[name]))
            if distance(seen[name], value) > usual:
                found.add(name)
    return tuple(sorted(found))


def _watched(graph: Graph, cuts: Sequence[Mapping], kept: Kept) -> set[str]:
    """The tensors that a second look compares: decisions, what they are made from, and the fronts of the outputs."""
    nodes, read = deciding(graph)
    cut_nodes = {str(c["node"]) for c in cuts}
    fronts = {front(graph, o, cut_nodes, kept) for o in graph.outputs}
    found = {*read, *fronts, *(o for n in nodes for o in n.output if o)}
    return found & graph.producer.keys()


def _precision(model: onnx.ModelProto) -> Precision:
    half = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    types = {t.data_type for t in model.graph.initializer} | {
        a.t.data_type for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"
    }
    return HALF if types & half else FULL


def _stirred(feeds: Feeds, seed: int, stir: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        k: (v * (1 + rng.uniform(-stir, stir, v.shape))).astype(v.dtype) if v.dtype.kind == "f" else v
        for k, v in feeds.items()
    }


def front(graph: Graph, name: str, cut_nodes: set[str], kept: Kept) -> str:
    """The tensor in front of the nonlinear tail that makes `name`: back through nodes of one run-time operand
    that the cut does not touch, to the output of the first other one."""
    while name in graph.producer and name not in kept:
        key = graph.producer[name]
        node = graph.nodes[key]
        operands = [i for i in node.input if i and graph.constant(i) is None]
        if key in cut_nodes or len(operands) != 1 or node.op_type in LINEAR or operands[0] in graph.inputs:
            return name
        name = operands[0]
    return name


LINEAR = frozenset("Conv ConvTranspose Gemm MatMul BatchNormalization Einsum QLinearConv".split())


@dataclass
class _Closer:
    """The second look, with its sessions; keeps the tally over batches."""

    reference: ModelAndWeights
    pruned: ModelAndWeights
    cuts: Sequence[Mapping]
    kept: Kept
    precision: Precision
    worst: float = 0.0
    rounding: float = 0.0
    exact: bool = True
    decisions: tuple[str, ...] = ()
    turned: set[str] = field(default_factory=set)
    inner: set[str] = field(default_factory=set)
    reshaped: list[str] = field(default_factory=list)

    @cached_property
    def graph(self) -> Graph:
        """The masked original's."""
        return Graph(self.reference.model, self.reference.weights)

    def only_turned(
        self, tail: Tail, outputs: Sequence[str], seen: Mapping[str, np.ndarray], made: Mapping[str, np.ndarray]
    ) -> tuple[str, ...]:
        """The outputs that differ, where a choice by order must be why: all depend on one, one differs by more than
        rounding alone explains, and what the first decisions are made from does not; else none."""
        tolerance, beyond = self.precision.tolerance, MARGIN * self.precision.telling
        errors = {o: e for o in outputs if (e := distance(seen[o], made[o])) > tolerance}
        before = max(distance(v, made[b]) for b, v in self.cut({b: seen[b] for b in tail.basis}).items())
        if before > tolerance or not tail.picked.issuperset(errors) or max(errors.values()) <= beyond:
            return ()
        self._count(before, 0.0)
        return tuple(errors)

    def look(
        self,
        feeds: Feeds,
        plain: sessions.Session,
        wanted: Mapping[str, np.ndarray],
        found: Sequence[np.ndarray],
        seen: Mapping[str, np.ndarray],
    ) -> None:
        """Compare what can be compared on one batch; `seen` are values of the masked original."""
        errors = [distance(a, b) for a, b in zip(wanted.values(), found, strict=True)]
        rounding = [np.inf] * len(errors)
        if not picks(self.reference.model):
            rounding = self._rounding(lambda stirred: plain.run(stirred, list(wanted)), feeds, wanted.values(), errors)
        asked = {}
        for name, error, noise in zip(wanted, errors, rounding, strict=True):
            if self.precision.explains(error, noise):
                self._count(error, noise)
            else:
                asked[name] = error
        if asked:
            self._fixed(feeds, asked, seen)

    def _fixed(self, feeds: Feeds, asked: Mapping[str, float], seen: Mapping[str, np.ndarray]) -> None:
        """Both models with the original's decisions; outputs, what decisions are made from, and fronts."""
        graph = self.graph
        nodes, given, basis = self._decisions(graph, feeds, seen)
        cut_nodes = {str(c["node"]) for c in self.cuts}
        fronts = {name: front(graph, name, cut_nodes, self.kept) for name in asked}
        made = {
            o for n in self.pruned.model.graph.node for o in n.output
        } - given.keys()  # sizes may be constants there
        names = [n for n in dict.fromkeys([*asked, *basis, *fronts.values()]) if n in made]
        right = _given(self.pruned, self.cut(given), names, name="pruned model")

        def decided(inputs: Feeds) -> list[np.ndarray]:
            return _given(self.reference, given, names, name="masked original").run({**inputs, **given})

        values = [seen[n] for n in names] if seen.keys() >= set(names) else decided(feeds)
        wanted = dict(zip(names, values, strict=True))
        found = dict(zip(names, right.run({**feeds, **self.cut(given)}), strict=True))
        self.reshaped += [n for n in asked if n in wanted and wanted[n].shape != found[n].shape]
        errors = [distance(a, found[n]) for n, a in self.cut(wanted).items()]
        rounding = self._rounding(decided, feeds, values, errors)
        tally = dict(zip(names, zip(errors, rounding, strict=True), strict=True))
        for name in asked:
            if name not in tally:  # a decision itself: what it is made from is compared
                self.turned.add(name)
            elif self.precision.explains(*tally[name]):
                self._count(*tally[name])
                self.turned.update([name] if nodes and tally[name][0] < asked[name] / 3 else [])
            else:
                self.inner.update({fronts[name]} - {name})
                self._judge(*tally.get(fronts[name], tally[name]))
        for name in basis:
            if name in tally:
                self._judge(*tally[name])
        self.decisions = tuple(map(node_key, nodes))

    def _decisions(
        self, graph: Graph, feeds: Feeds, seen: Mapping[str, np.ndarray]
    ) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray], list[str]]:
        """The nodes that decide, their outputs in the masked original, and the float tensors they decide from."""
        nodes, read = deciding(graph)
        needed = sorted(read | {o for n in nodes for o in n.output if o})
        values = {n: np.asarray(seen[n]) for n in needed if n in seen}
        if len(values) < len(needed):
            values = _tap(self.reference, needed, feeds)
        floats = {k for k, v in (values | dict(feeds)).items() if v.dtype.kind == "f"}
        nodes = [n for n in nodes if any(i in floats for i in n.input)]
        given = {o: values[o] for n in nodes for o in n.output if o}
        return nodes, given, sorted({i for n in nodes for i in n.input if i in floats} & read - given.keys())

    def _rounding(
        self,
        run: Callable[[Feeds], Iterable[np.ndarray]],
        feeds: Feeds,
        wanted: Iterable[np.ndarray],
        errors: Sequence[float],
    ) -> list[float]:
        """How much stirred inputs move each output; up to three runs, until they explain the errors."""
        p, wanted = self.precision, list(wanted)
        moved = [0.0] * len(wanted)
        for seed in range(3):
            if all(p.explains(e, m) or m > p.telling for e, m in zip(errors, moved, strict=True)):
                break
            again = run(_stirred(feeds, seed, p.stir))
            moved = [max(m, distance(a, b)) for m, a, b in zip(moved, wanted, again, strict=True)]
        return moved

    def _judge(self, error: float, rounding: float) -> None:
        self._count(error, rounding)
        self.exact = self.exact and self.precision.explains(error, rounding)

    def _count(self, error: float, rounding: float) -> None:
        if error >= self.worst:
            self.worst, self.rounding = error, rounding

    def cut(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The values without the channels that the cut removed."""
        found = dict(values)
        for name in values.keys() & self.kept.keys():
            axis, keep = self.kept[name]
            found[name] = values[name].compress(keep, axis)
        return found


def _tap(model: ModelAndWeights, names: Sequence[str], feeds: Feeds) -> dict[str, np.ndarray]:
    """The values of inner tensors in one run."""
    if not names:
        return {}
    session = _given(model, {}, names)
    return dict(zip(names, map(np.asarray, session.run(feeds)), strict=True))


def _given(
    light: ModelAndWeights, given: Mapping[str, np.ndarray], outputs: Sequence[str], *, name: str = "model"
) -> sessions.Session:
    """A session that takes the tensors `given` as further inputs and returns `outputs`.

    Not optimised: a run or two each, and the same kernels for both models. The written file is run as users will.
    """
    model = light.model
    if given or list(outputs) != [o.name for o in model.graph.output]:
        model = _with_given(model, given, outputs)
    return sessions.open_session(model, optimise=False, name=name, weights=light.weights, feed=True)


def _with_given(model: onnx.ModelProto, given: Mapping[str, np.ndarray], outputs: Sequence[str]) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    nodes = [n for n in graph.node if not any(o in given for o in n.output if o)]
    body = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(body)
    for own, value in given.items():
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        graph.input.append(helper.make_tensor_value_info(own, kind, value.shape))
    stale = [k for k, v in enumerate(graph.value_info) if v.name in given]
    for k in reversed(stale):
        del graph.value_info[k]
    declared = {o.name: o for o in model.graph.output}
    del graph.output[:]
    graph.output.extend(declared.get(n, helper.make_empty_tensor_value_info(n)) for n in outputs)
    return changed


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
            errors[-1].append(_gap(a, b) if measured else 0.0)
            sizes[-1].append(_size(a) if measured else 0.0)
    return np.array(errors), np.array(sizes), samples


def check_fidelity(
    original: onnx.ModelProto, pruned: onnx.ModelProto, batches: Iterable[Feeds], *, held_out: bool = True
) -> Fidelity:
    """Compare the finished model with the original, sample by sample."""
    left = sessions.open_session(original, name="original")
    right = sessions.open_session(pruned, name="pruned model")
    cosines: list[np.ndarray] = []
    agree: list[np.ndarray] = []
    equal: list[np.ndarray] = []
    signal = noise = 0.0
    samples = 0
    for feeds in batches:
        count = len(next(iter(feeds.values()))) if feeds else 1
        samples += count
        for a, b in zip(left.run(dict(feeds)), right.run(dict(feeds)), strict=True):
            a, b = np.asarray(a), np.asarray(b)
            if a.shape != b.shape or not a.size:
                continue
            if a.dtype.kind in "iub":
                equal.append((a == b).ravel())
            if a.dtype.kind != "f":
                continue
            a, b = a.astype(np.float64), b.astype(np.float64)
            signal, noise = signal + float((a**2).sum()), noise + float(((a - b) ** 2).sum())
            rows = a.shape[0] if a.ndim and a.shape[0] == count else 1
            u, v = a.reshape(rows, -1), b.reshape(rows, -1)
            norm = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
            cosines.append((u * v).sum(axis=1) / np.maximum(norm, 1e-30))
            if a.ndim == 2 and a.shape[1] > 1:
                agree.append(a.argmax(axis=1) == b.argmax(axis=1))
    sqnr = 10 * np.log10(signal / noise) if noise > 0 else np.inf
    return Fidelity(
        samples=samples,
        cosine=float(np.concatenate(cosines).mean()) if cosines else None,
        sqnr_db=float(min(sqnr, 300.0)) if cosines else None,
        top1=_share(agree),
        held_out=held_out,
        equal=_share(equal),
    )


def _share(truths: Sequence[np.ndarray]) -> float | None:
    return float(np.concatenate(truths).mean()) if truths else None
