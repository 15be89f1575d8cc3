"""The second look at a cut whose outputs differ by more than sums in another order do.

Mostly they differ by 1e-6 of the output's largest value. But a detector *decides* (TopK, NonMaxSuppression, a
threshold), and a decision between equals turns over at the last bit; a sigmoid near zero turns an error of 1e-6 of its
argument into one of 1e-3 of its value. So three things are done before the cut is called wrong:

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

from onnxprune.graph import operators
from onnxprune.graph.model import Graph
from onnxprune.measure.decisions import Tail, deciding, picks
from onnxprune.measure.given import open_given, values_of
from onnxprune.measure.masking import key_of
from onnxprune.measure.rounding import MARGIN, Precision, distance, stirred
from onnxprune.protobuf.nodes import node_key
from onnxprune.runtime import sessions
from onnxprune.runtime.ports import Feeds
from onnxprune.runtime.weights import ModelAndWeights

Kept = Mapping[str, tuple[int, np.ndarray]]
"""Activation -> (axis, (length,) bool): the channels that a cut leaves."""


def front(graph: Graph, name: str, cut_nodes: set[str], kept: Kept) -> str:
    """The tensor in front of the nonlinear tail that makes `name`: back through nodes of one run-time operand
    that the cut does not touch, to the output of the first other one."""
    while name in graph.producer and name not in kept:
        key = graph.producer[name]
        node = graph.nodes[key]
        operands = [i for i in node.input if i and graph.constant(i) is None]
        if key in cut_nodes or len(operands) != 1 or operators.of(node).affine or operands[0] in graph.inputs:
            return name
        name = operands[0]
    return name


def watched(graph: Graph, cuts: Sequence[Mapping], kept: Kept) -> set[str]:
    """The tensors that a second look compares: decisions, what they are made from, and the fronts of the outputs."""
    nodes, read = deciding(graph)
    cut_nodes = set(map(key_of, cuts))
    fronts = {front(graph, o, cut_nodes, kept) for o in graph.outputs}
    found = {*read, *fronts, *(o for n in nodes for o in n.output if o)}
    return found & graph.producer.keys()


@dataclass
class SecondLook:
    """The second look, with its sessions; keeps the tally over batches.

    Attributes:
        reference: the masked original.
        pruned: the cut model.
        cuts: what was removed.
        kept: the channels left in every activation that lost some.
        precision: what rounding may do.
        worst, rounding: the worst error so far, and how much rounding alone moves what it was measured on.
        exact: whether every error so far is one of rounding.
        decisions: the nodes whose decisions were taken from the original.
        turned: outputs in which rounding turns decisions over.
        inner: tensors compared in place of outputs.
        reshaped: outputs of another shape than the original's.
    """

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
        """Compare what can be compared on one batch.

        Args:
            feeds: the batch.
            plain: the cut model.
            wanted: output -> value of the masked original.
            found: what the cut model gave for these outputs.
            seen: tensor -> value in the masked original, of all that may be compared.
        """
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
        cut_nodes = set(map(key_of, self.cuts))
        fronts = {name: front(graph, name, cut_nodes, self.kept) for name in asked}
        made = {
            o for n in self.pruned.model.graph.node for o in n.output
        } - given.keys()  # sizes may be constants there
        names = [n for n in dict.fromkeys([*asked, *basis, *fronts.values()]) if n in made]
        right = open_given(self.pruned, self.cut(given), names, name="pruned model")

        def decided(inputs: Feeds) -> list[np.ndarray]:
            return open_given(self.reference, given, names, name="masked original").run({**inputs, **given})

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
            values = values_of(self.reference, needed, feeds)
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
            again = run(stirred(feeds, seed, p.stir))
            moved = [max(m, distance(a, b)) for m, a, b in zip(moved, wanted, again, strict=True)]
        return moved

    def _judge(self, error: float, rounding: float) -> None:
        """Count an error that must be one of rounding."""
        self._count(error, rounding)
        self.exact = self.exact and self.precision.explains(error, rounding)

    def _count(self, error: float, rounding: float) -> None:
        """Keep the worst error."""
        if error >= self.worst:
            self.worst, self.rounding = error, rounding

    def cut(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The values without the channels that the cut removed."""
        found = dict(values)
        for name in values.keys() & self.kept.keys():
            axis, keep = self.kept[name]
            found[name] = values[name].compress(keep, axis)
        return found
