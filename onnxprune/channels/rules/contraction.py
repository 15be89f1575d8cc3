"""Rules of sums of products by letters: any Einsum, and products of stacks of matrices.

A letter is an axis. What goes from it goes from every operand that has it; summed over, one operand must be zero
there: a weight is, where its columns go, and of two activations one is masked. An activation carries channels along one
letter, or along several jointly; a weight may lose some of what is summed and some of what it makes independently.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.channels.rules.elementwise import meet
from onnxprune.channels.rules.registry import Value, Walk, pin_all, rule
from onnxprune.channels.ties import READS, WITHIN, WRITES, Ids, Param
from onnxprune.graph.equations import Equation
from onnxprune.graph.operators import MICROSOFT

DOTS = "0123456789"
"""The letters of what dots stand for."""


@dataclass
class Operand:
    """One operand.

    Attributes:
        i: its input position.
        letters: one per axis, all different.
        full: those along which it has the size that the others have, where that is not 1.
        value: its ids, or the constant.
    """

    i: int
    letters: str
    full: set[str]
    value: Ids | Param

    @property
    def ids(self) -> Ids:
        """Those of an activation."""
        assert isinstance(self.value, np.ndarray)
        return self.value

    @property
    def carried(self) -> set[str]:
        """The letters along which an activation carries channels."""
        if isinstance(self.value, Param):
            return set()
        return {c for c, d in zip(self.letters, self.value.shape, strict=True) if d > 1}

    def by(self, letters: str, ids: Ids | None = None) -> Ids:
        """Its ids (or others like them) with the axes of `letters`; letters that it lacks carry none."""
        ids = self.ids if ids is None else ids
        kept = [c for c in self.letters if c in letters]
        ids = ids[tuple(slice(None) if c in letters else 0 for c in self.letters)]
        ids = ids.transpose([kept.index(c) for c in letters if c in kept])
        return ids[tuple(slice(None) if c in kept else None for c in letters)]


def spelled(equation: Equation, ranks: Sequence[int]) -> tuple[list[str], str]:
    """(letters of every operand, of the output), dots spelled out, from the right."""
    hidden = [rank - len(t) + 1 if "." in t else 0 for t, rank in zip(equation.terms, ranks, strict=True)]
    dots = DOTS[: max(hidden)]
    made = [t.replace(".", dots[len(dots) - n :]) for t, n in zip(equation.terms, hidden, strict=True)]
    return made, equation.out.replace(".", dots)


@rule("Einsum")
def einsum(walk: Walk, *values: Value) -> Ids:
    equation = Equation.of(walk.node)
    return contract(walk, *spelled(equation, [len(walk.dims(i)) for i in range(len(values))]), values)


@rule("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def fused_matmul(walk: Walk, x: Value, y: Value) -> Ids:
    """A MatMul of two that may be turned, their last axes or these and those that stacks of matrices lie along."""
    if walk.attr("transBatchA", 0) or walk.attr("transBatchB", 0):
        pin_all(walk, f"{walk.node.op_type} turns stacks of matrices", x, y)
        return walk.dead()
    return matrices(walk, x, y, walk.attr("transA", 0), walk.attr("transB", 0))


def matrices(walk: Walk, x: Value, y: Value, turn_x: bool = False, turn_y: bool = False) -> Ids:
    """A product of two stacks of matrices, or of vectors, by letters."""
    ranks = len(walk.dims(0)), len(walk.dims(1))
    left = "k" if ranks[0] == 1 else ".ki" if turn_x else ".ik"
    right = "k" if ranks[1] == 1 else ".jk" if turn_y else ".kj"
    made = "." + "i" * (ranks[0] > 1) + "j" * (ranks[1] > 1)
    return contract(walk, *spelled(Equation((left, right), made), ranks), (x, y))


def contract(walk: Walk, terms: Sequence[str], right: str, values: Sequence[Value]) -> Ids:
    """A sum of products.

    Args:
        walk: the analysis at this node.
        terms: the letters of every operand.
        right: those of the output.
        values: the operands, which are the node's first inputs.
    """
    dims = [walk.dims(i) for i in range(len(values))]
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, dims, strict=True):
        sizes |= {c: max(d, sizes.get(c, 1)) for c, d in zip(term, shape, strict=True)}
    operands = []
    for i, (term, shape, value) in enumerate(zip(terms, dims, values, strict=True)):
        assert value is not None
        if len(set(term)) < len(term):
            term, shape, value = _diagonal(walk, term, shape, value)
        operands.append(Operand(i, term, {c for c, d in zip(term, shape, strict=True) if d == sizes[c] > 1}, value))
    if all(isinstance(o.value, Param) for o in operands):
        pin_all(walk, f"{walk.node.op_type} of constants", *values)
        return walk.dead(0, f"{walk.node.op_type} of constants")
    for operand in operands:
        _choose(walk, operand, operands, right, sizes)
    _sum(walk, operands, right)
    out = _output(walk, operands, right, sizes)
    for operand in operands:
        _rest(walk, operand)
    return out


def _diagonal(walk: Walk, term: str, shape: tuple[int, ...], value: Value) -> tuple[str, tuple[int, ...], Ids]:
    """An operand with a letter twice, as one with that letter once, which stays whole."""
    why = f"{walk.node.op_type} takes a diagonal"
    if not isinstance(value, np.ndarray):
        pin_all(walk, why, value)
        value = walk.ties.dead_end(len(term), why)
    for k, c in enumerate(term):
        if term.count(c) > 1:
            value = walk.ties.whole(value, k, why)
    first = [k for k, c in enumerate(term) if term.index(c) == k]
    ids = value.reshape([value.shape[k] for k in first])
    return "".join(term[k] for k in first), tuple(shape[k] for k in first), ids


def _choose(walk: Walk, x: Operand, operands: Sequence[Operand], right: str, sizes: dict[str, int]) -> None:
    """Along which letters an activation carries channels here: what is summed, if all that have it can lose it, or what
    passes to the output."""
    if not x.carried:
        return
    weights = [o for o in operands if isinstance(o.value, Param)]
    beside = [o for o in operands if isinstance(o.value, np.ndarray) and o is not x]
    summed = {c for c in x.carried - set(right) if all(c in o.carried for o in beside if c in o.full)}
    passing = x.carried & set(right)
    shared = {c for c in passing if any(c in w.full and summed & w.full for w in weights)}
    kept = summed or passing
    many = math.prod(sizes[c] for c in summed)
    if shared and math.prod(sizes[c] for c in shared) >= many:
        kept = shared  # whole groups go, with all that they make
    elif summed and not beside and math.prod(sizes[c] for c in passing) > many:
        kept = passing  # they meet no weight that mixes them, or one for each of them
    elif not summed and _made(weights, [x, *beside], right) and (walk.ties.filled(x.ids) or walk.ties.pinned(x.ids)):
        kept = set()  # nothing that counts can pass: what the weight makes may go
    walk.ties.tensor = walk.node.input[x.i]
    x.value = walk.ties.only(x.ids, [k for k, c in enumerate(x.letters) if c in kept], _across(walk))


def _made(weights: Sequence[Operand], activations: Sequence[Operand], right: str) -> set[str]:
    """The letters of the output that only weights have."""
    return {c for w in weights for c in w.full if c in right} - {c for x in activations for c in x.full}


def _sum(walk: Walk, operands: Sequence[Operand], right: str) -> None:
    """Tie what is summed over, in all operands; mask one activation where no weight is summed over."""
    ties = walk.ties
    letters = "".join(dict.fromkeys(c for o in operands for c in o.letters if c in o.carried and c not in right))
    activations = [o for o in operands if isinstance(o.value, np.ndarray) and o.full & set(letters)]
    for c in letters:
        stiff = [o for o in activations if c in o.full - o.carried]
        for o in activations if stiff else ():
            o.value = ties.whole(o.ids, o.letters.index(c), _across(walk)) if c in o.carried else o.value
    for jointly in _clusters([o.carried & set(letters) for o in activations]):
        _sum_over(walk, operands, "".join(c for c in letters if c in jointly))


def _clusters(sets: Sequence[set[str]]) -> list[set[str]]:
    """Letters along which some operand carries channels jointly, together."""
    found: list[set[str]] = []
    for letters in filter(None, sets):
        met = [other for other in found if other & letters]
        found = [other for other in found if not other & letters] + [letters.union(*met)]
    return found


def _sum_over(walk: Walk, operands: Sequence[Operand], letters: str) -> None:
    """The same for letters along which channels are carried jointly."""
    ties = walk.ties
    activations = [o for o in operands if isinstance(o.value, np.ndarray) and o.full & set(letters)]
    carriers = sorted((o for o in activations if o.carried & set(letters)), key=lambda o: len(o.carried))
    base = carriers[0]
    ties.same(base.by(letters), *(o.by(letters) for o in carriers[1:]))
    weights = [o for o in operands if isinstance(o.value, Param) and o.full & set(letters)]
    for w in weights:
        own = _take(w, w.full & set(letters), READS, walk.node.input[base.i])
        ties.same(base.by(letters), w.by(letters, own))
    if not weights:
        axis = max((k for k, c in enumerate(base.letters) if c in base.carried), key=lambda k: base.ids.shape[k])
        ties.reads[(walk.key, base.i)] = (axis, walk.channels(base.ids, axis, base.i))


def _take(w: Operand, letters: set[str], role: str, reads: str | None = None) -> Ids:
    """Ids of a weight along some of its letters, with its rank."""
    assert isinstance(w.value, Param)
    axes = [k for k, c in enumerate(w.letters) if c in letters]
    if len(axes) > 1:
        return w.value.joint(axes, role, reads)
    return w.value.axis(axes[0], role, reads).reshape([-1 if k == axes[0] else 1 for k in range(len(w.letters))])


def _output(walk: Walk, operands: Sequence[Operand], right: str, sizes: dict[str, int]) -> Ids:
    """What passes, with the weights that it meets; else what a weight makes."""
    ties, rank = walk.ties, len(right)
    activations = [o for o in operands if isinstance(o.value, np.ndarray)]
    weights = [o for o in operands if isinstance(o.value, Param)]
    placed = []
    for o in activations:
        summed = o.carried - set(right)
        ids = ties.dead_end(rank, f"{walk.node.op_type} sums over its channels") if summed else o.by(right)
        placed.append((ids, tuple(sizes[c] if c in o.full else 1 for c in right)))
    main = meet(walk, placed, [], walk.out()) if right else walk.dead()
    if main.size > 1:
        for w in weights:
            main = _meet_weight(walk, main, w, right, sizes)
        return main
    made = _made(weights, activations, right)
    makers = [w for w in weights if w.full & made]
    if not makers:
        return main
    letters = makers[0].full & made
    out = makers[0].by(right, _take(makers[0], letters, WRITES))
    for w in makers[1:]:
        if w.full & letters:
            ties.same(out, w.by(right, _take(w, w.full & letters, WRITES)))
    return out


def _meet_weight(walk: Walk, main: Ids, w: Operand, right: str, sizes: dict[str, int]) -> Ids:
    """A weight that has some of the letters that pass."""
    carried = {c for c, d in zip(right, main.shape, strict=True) if d > 1}
    shared = carried & w.full
    count = math.prod(sizes[c] for c in shared)
    if not shared:
        return main
    if count >= math.prod(sizes[c] for c in carried - shared):
        role = WITHIN if w.full <= set(right) and w.full == shared else WRITES
        return walk.ties.same(main, w.by(right, _take(w, shared, role)))
    for c in shared:
        main = walk.ties.whole(main, right.index(c), _across(walk))
    return main


def _rest(walk: Walk, w: Operand) -> None:
    """Pin the axes of a weight that nothing was said of."""
    if not isinstance(w.value, Param):
        return
    said = set(w.value.axes) | {k for box in w.value.boxes for k, d in enumerate(box.shape) if d > 1}
    why = f"{walk.node.op_type} with this constant is not a plain product over channels"
    for k, d in enumerate(w.value.shape):
        if d > 1 and k not in said:
            walk.ties.pin(w.value.axis(k, WRITES), why, k)


def _across(walk: Walk) -> str:
    return f"{walk.node.op_type} works across this axis"
