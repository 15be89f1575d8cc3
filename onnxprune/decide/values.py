"""What every channel computes, in numbers that can be compared: value numbering along the channel axis.

Each index of a channel axis is described as

    value = scale · atom + offset

where an *atom* is a function of the input that we do not name further: equal numbers mean equal functions. Atom 0
is "nothing": its value is the offset, whatever the input. So one description answers three questions: a channel is
constant when its atom is 0, and two channels are twins when their atoms are equal; the ratio of the scales is the
factor between them. (Ours; after the value numbering of compilers.)

Only operators that *scale* need a line here: layers that multiply, arithmetic, and what is homogeneous. Every other
operator is covered by what the channel analysis has proved already: a unit that can be cut computes its outputs
from its own inputs and its own constants, by the same function as every other unit of the same axes, so equal
inputs and constants give equal outputs. Nothing here looks at samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnxprune.channels import Channels
from onnxprune.graph import operators
from onnxprune.graph.behaviour import keeps_constants, padding, scaling, sees_borders
from onnxprune.graph.facts import Operator
from onnxprune.graph.fold import run_node
from onnxprune.graph.layers import bias_of, filters_of, keeps_statistics
from onnxprune.graph.model import Graph
from onnxprune.protobuf.nodes import attr

NOTHING, ONE = 0, 1
"""Atoms with a meaning: no dependence on the input; one inside a map and zero in its padding."""
SAME = 1e-6
"""Normalised constants closer than this are equal: float32 rounding, also after BN was folded."""
ZERO = 1e-12
"""A filter below this share of its layer's largest is no filter."""


@dataclass(frozen=True)
class Line:
    """The channels along one axis of an activation.

    Attributes:
        axis: the channel axis.
        atom: (n,) int.
        scale: (n,) float64, 0 where the atom is 0.
        offset: (n,) float64.
    """

    axis: int
    atom: np.ndarray
    scale: np.ndarray
    offset: np.ndarray

    @property
    def constant(self) -> np.ndarray:
        """(n,) bool: does not depend on the input."""
        return self.atom == NOTHING

    def affine(self, a: np.ndarray | float, b: np.ndarray | float = 0.0) -> Line:
        """a·value + b."""
        scale = self.scale * a
        return replace(self, atom=np.where(scale == 0, NOTHING, self.atom), scale=scale, offset=self.offset * a + b)


class Numbering:
    """The lines of every activation whose channels could be cut.

    Attributes:
        lines: activation name -> its line.
    """

    def __init__(self, graph: Graph, channels: Channels):
        self.graph, self.channels = graph, channels
        self.lines: dict[str, Line] = {}
        self.next = ONE + 1
        for key, node in graph.nodes.items():
            outputs = [o for o in node.output if o in channels.lines and graph.constant(o) is None]
            if outputs:
                rule = rule_of(operators.of(node))
                made = rule(self, key, node) if rule and len(outputs) == 1 else None
                if made is not None:
                    self.lines[outputs[0]] = made
                else:
                    for o in outputs:
                        self.lines[o] = self.by_unit(key, node, o)

    def fresh(self, count: int) -> np.ndarray:
        """New atoms, (count,)."""
        self.next += count
        return np.arange(self.next - count, self.next)

    def read(self, name: str, axis: int) -> Line | None:
        """The line of an activation along `axis`; channels we know nothing of are all different."""
        if name not in self.lines or self.lines[name].axis != axis:
            shape = self.channels.shapes.get(name, ())
            if self.graph.constant(name) is not None or name in self.lines or axis >= len(shape):
                return None
            n = shape[axis]
            self.lines[name] = Line(axis, self.fresh(n), np.ones(n), np.zeros(n))
        return self.lines[name]

    def atoms(self, keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(n,) new atoms, equal where the keys (n, k) are and the rows (n, d) nearly are."""
        return self.fresh(len(keys))[classes(keys, rows)]

    def reified(self, line: Line) -> Line:
        """The same values with offset 0: an offset is part of the atom (padding adds zeros, not offsets)."""
        ratio = line.offset / np.where(line.constant, 1.0, line.scale)
        moved = ~line.constant & (line.offset != 0)
        atom = line.atom.copy()
        atom[moved] = self.atoms(line.atom[moved, None], spread(ratio[moved, None]))
        lone = line.constant & (line.offset != 0)
        atom[lone] = ONE
        return Line(line.axis, atom, np.where(lone, line.offset, line.scale), np.zeros(len(atom)))

    # -- any operator -------------------------------------------------------------------------------------------

    def by_unit(self, key: str, node: onnx.NodeProto, out: str) -> Line:
        """A unit's outputs from its inputs and its constants, all units alike (see the head of this module)."""
        axis, units = self.channels.lines[out]
        line = Line(axis, self.fresh(len(units)), np.ones(len(units)), np.zeros(len(units)))
        if operators.of(node).bodies:  # what its bodies read, and do with it, no operand tells
            return line
        names = [i for i in dict.fromkeys(node.input) if i in self.channels.lines and self.graph.constant(i) is None]
        sources = [self.read(n, self.channels.lines[n][0]) for n in names]
        tables = [Positions(self.channels.lines[n][1]) for n in names]
        params = [
            (self.graph.value(use), a, Positions(u))
            for use, axes in self.channels.params.items()
            if use[0] == key
            for a, u in axes.items()
        ]
        if any(s is None for s in sources) or any(value is None for value, *_ in params):
            return line
        made, own = Positions(units), np.unique(units[units >= 0])
        counts = np.stack([t.count(own) for t in (made, *tables, *(p[2] for p in params))], axis=1)
        for signature in np.unique(counts, axis=0):
            chosen = own[(counts == signature).all(axis=1)]
            read = [t.where(chosen) for t in tables]
            none = np.zeros((len(chosen), 0))
            ins = [
                np.concatenate([none, *(getattr(s, f)[p] for s, p in zip(sources, read, strict=True))], axis=1)
                for f in ("atom", "scale", "offset")
            ]
            own_values = [_slices(value, a, t.where(chosen)) for value, a, t in params if value is not None]
            constants = np.concatenate([none, *own_values], axis=1)
            self._fill(node, line, made.where(chosen), ins, constants)
        return self._constants(node, line, names)

    def _fill(
        self, node: onnx.NodeProto, line: Line, places: np.ndarray, ins: list[np.ndarray], constants: np.ndarray
    ) -> None:
        """Write the atoms and scales of units that have equally many inputs and outputs."""
        atom, scale, offset = ins[0].astype(int), ins[1], ins[2]
        first = np.take_along_axis(scale, (scale != 0).argmax(axis=1)[:, None], 1) if scale.shape[1] else None
        scales = scaling(self.graph, node, constants=constants.shape[1] > 0)
        keys = atom
        if first is not None and scales:
            unit = np.where(first == 0, 1.0, np.abs(first) if scales == "positive" else first)
            keys = np.concatenate([atom, np.sign(first).astype(int) if scales == "positive" else atom[:, :0]], axis=1)
            scale, offset = scale / unit, offset / unit
            line.scale[places] = unit
        rows = np.concatenate([scale, offset, constants], axis=1)
        label, (count, outs) = classes(keys, spread(rows)), places.shape
        fresh = self.fresh(count * outs).reshape(count, outs)
        line.atom[places] = fresh[label]
        if scale.shape[1] and operators.of(node).scales:  # zero stays zero
            still = (ins[0] == NOTHING).all(axis=1) & (ins[2] == ins[2][:, :1]).all(axis=1)
            if not keeps_constants(node):
                still &= (ins[2] == 0).all(axis=1)
            rows_of = places[still]
            line.atom[rows_of], line.scale[rows_of], line.offset[rows_of] = NOTHING, 0.0, ins[2][still][:, :1]

    def _constants(self, node: onnx.NodeProto, line: Line, names: list[str]) -> Line:
        """Put constants through an operator that works element by element, by running it on them."""
        x = self.lines.get(node.input[0])
        if not operators.of(node).pointwise or x is None or len(names) != 1:
            return line
        if names != [node.input[0]] or x.axis != line.axis or not x.constant.any() or len(x.atom) != len(line.atom):
            return line
        shape = [1] * len(self.channels.shapes[names[0]])
        shape[x.axis] = -1
        fed = np.where(x.constant, x.offset, 1.0).astype(np.float32).reshape(shape)
        rest = [self.graph.constant(i) if i else None for i in node.input[1:]]
        found = run_node(node, [fed, *rest], self.graph.model)
        if found is None or found[0] is None or found[0].shape != fed.shape or found[0].dtype.kind != "f":
            return line
        value = found[0].reshape(-1).astype(np.float64)
        still = x.constant & np.isfinite(value)
        return Line(
            line.axis,
            np.where(still, NOTHING, line.atom),
            np.where(still, 0.0, line.scale),
            np.where(still, value, line.offset),
        )


class Positions:
    """Where each unit is along an axis."""

    def __init__(self, units: np.ndarray):
        self.order = np.argsort(units, kind="stable")
        self.sorted = units[self.order]

    def count(self, units: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.sorted, units, "right") - np.searchsorted(self.sorted, units, "left")

    def where(self, units: np.ndarray) -> np.ndarray:
        """(units, times) indices; all units must be there equally often."""
        times = int(self.count(units[:1])[0]) if len(units) else 0
        return self.order[np.searchsorted(self.sorted, units, "left")[:, None] + np.arange(times)]


def _slices(value: np.ndarray, axis: int, places: np.ndarray) -> np.ndarray:
    """(units, values): the parts of a constant that belong to each unit."""
    moved = np.moveaxis(value, axis, 0)
    return moved[places].reshape(len(places), -1).astype(np.float64)


def classes(keys: np.ndarray, rows: np.ndarray, tolerance: float = SAME) -> np.ndarray:
    """(n,) the index of an equal row: equal keys (n, k), rows (n, d) that differ nowhere by more than `tolerance`."""
    n = len(keys)
    label = np.arange(n)
    if n < 2:
        return label
    kind = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1) if keys.shape[1] else np.zeros(n, int)
    probe = np.random.default_rng(0).standard_normal(rows.shape[1])
    shadow = rows @ probe  # what lies close together has shadows close together
    reach = tolerance * np.abs(probe).sum() + 1e-12
    order = np.lexsort((shadow, kind))
    for at, i in enumerate(order):
        for j in order[at - 1 :: -1] if at else ():
            if kind[j] != kind[i] or shadow[i] - shadow[j] > reach:
                break
            if label[j] == j and np.abs(rows[i] - rows[j]).max(initial=0.0) <= tolerance:
                label[i] = j
                break
    return label


def spread(values: np.ndarray) -> np.ndarray:
    """Numbers whose absolute differences are the relative differences of `values`; tiny values are zero."""
    size = np.abs(values)
    return np.where(size > ZERO, np.sign(values) * (np.log(np.maximum(size, ZERO)) - np.log(ZERO) + 1), 0.0)


# -- operators that scale --------------------------------------------------------------------------------------

Rule = Callable[[Numbering, str, onnx.NodeProto], Line | None]


def rule_of(line: Operator) -> Rule | None:
    """How an operator that scales is followed; None for others."""
    if line.layer:
        return layer
    if line.stored_statistics:
        return batch_norm
    if line.arithmetic:
        return arithmetic
    if line.fills:
        return padded
    return identity if line.hands_on else None


def layer(numbers: Numbering, key: str, node: onnx.NodeProto) -> Line | None:
    """A weighted sum over inputs: filters are compared once the inputs that are twins have been added up."""
    graph, line = numbers.graph, operators.of(node)
    axis, width = numbers.channels.lines[node.output[0]][0], len(numbers.channels.lines[node.output[0]][1])
    groups, w = attr(node, "group", 1), filters_of(graph, key)
    rank = len(numbers.channels.shapes[node.output[0]])
    if w is None or len(w) != width or line.channels is None or axis != line.channels % rank:
        return None
    x = numbers.read(node.input[0 if line.product is None else line.product.data], axis)
    bias = bias_of(graph, key, width)
    if x is None or bias is None or len(x.atom) != groups * w.shape[1]:
        return None
    if sees_borders(node):
        x = numbers.reified(x)
    w = w.reshape(groups, width // groups, w.shape[1], -1).astype(np.float64)
    atom, scale, offset = (v.reshape(groups, -1) for v in (x.atom, x.scale, x.offset))
    shift = np.einsum("goik,gi->go", w, offset).reshape(-1) + bias
    keys: list[int] = []
    known: dict[bytes, int] = {}
    rows = np.zeros((groups, w.shape[2], w.shape[1], w.shape[3]))
    for g in range(groups):
        distinct, place = np.unique(atom[g], return_inverse=True)
        np.add.at(rows[g], place, (w[g] * scale[g][:, None]).swapaxes(0, 1))
        keys.append(known.setdefault(distinct.tobytes(), len(known)))
    rows = rows.swapaxes(1, 2).reshape(width, -1)
    return _normalised(numbers, axis, np.repeat(keys, width // groups), rows, shift)


def _normalised(numbers: Numbering, axis: int, keys: np.ndarray, rows: np.ndarray, offset: np.ndarray) -> Line:
    norm = np.linalg.norm(rows, axis=1)
    none = norm <= ZERO * norm.max(initial=0.0)
    rows = rows / np.where(none, 1.0, norm)[:, None]
    sign = np.where(rows @ np.random.default_rng(1).standard_normal(rows.shape[1]) < 0, -1.0, 1.0)
    atom = numbers.atoms(keys[:, None], rows * sign[:, None])
    return Line(axis, np.where(none, NOTHING, atom), np.where(none, 0.0, norm * sign), offset)


def identity(numbers: Numbering, key: str, node: onnx.NodeProto) -> Line | None:
    return numbers.read(node.input[0], numbers.channels.lines[node.output[0]][0])


def padded(numbers: Numbering, key: str, node: onnx.NodeProto) -> Line | None:
    """The channels that stay, and on either side those that hold nothing but a number."""
    graph, axis = numbers.graph, numbers.channels.lines[node.output[0]][0]
    sides = padding(node, len(numbers.channels.shapes[node.output[0]]), lambda i: graph.value((key, i)))
    x = numbers.read(node.input[0], axis)
    given = graph.value((key, 2)) if len(node.input) > 2 and node.input[2] else np.float64(attr(node, "value", 0.0))
    if x is None or sides is None or given is None or attr(node, "mode", "constant") != "constant":
        return None
    before, after = sides.get(axis, (0, 0))
    number = float(np.ravel(given)[0])
    if any(any(ends) for k, ends in sides.items() if k != axis):  # its borders hold the number
        still = x.constant & (x.offset == number)
        atom = numbers.atoms(x.atom[:, None], spread(np.stack([x.scale, x.offset], axis=1)))
        x = Line(axis, np.where(still, NOTHING, atom), np.where(still, 0.0, 1.0), np.where(still, number, 0.0))
    inner = slice(max(0, -before), len(x.atom) + min(0, after))
    fields = ((x.atom, NOTHING), (x.scale, 0.0), (x.offset, number))
    return Line(axis, *(np.pad(v[inner], (max(0, before), max(0, after)), constant_values=c) for v, c in fields))


def batch_norm(numbers: Numbering, key: str, node: onnx.NodeProto) -> Line | None:
    x = numbers.read(node.input[0], 1)
    params = [numbers.graph.value((key, i)) for i in range(1, 5)]
    if x is None or any(p is None or p.dtype.kind != "f" for p in params) or not keeps_statistics(node):
        return None
    gamma, beta, mean, var = (np.asarray(p, np.float64) for p in params)
    gamma = np.where(np.abs(gamma) <= ZERO * np.abs(gamma).max(initial=0.0), 0.0, gamma)
    var = var + attr(node, "epsilon", 1e-5)
    if (var <= 0).any():
        return None
    a = gamma / np.sqrt(var)
    return x.affine(a, beta - mean * a)


def arithmetic(numbers: Numbering, key: str, node: onnx.NodeProto) -> Line | None:
    """Two operands, each an activation or a constant per channel."""
    axis, width = numbers.channels.lines[node.output[0]][0], len(numbers.channels.lines[node.output[0]][1])
    rank = len(numbers.channels.shapes[node.output[0]])
    x, y = (_operand(numbers, (key, i), name, axis, rank, width) for i, name in enumerate(node.input))
    if x is None or y is None:
        return None
    sign = operators.of(node).arithmetic
    if sign == "/":
        if not y.constant.all() or not y.offset.all():
            return None
        y = replace(y, offset=1 / y.offset)
    if sign in "*/":
        return _product(numbers, x, y)
    return _total(numbers, x, y if sign == "+" else y.affine(-1.0))


def _operand(numbers: Numbering, use: tuple[str, int], name: str, axis: int, rank: int, width: int) -> Line | None:
    value = numbers.graph.value(use)
    if value is not None:
        at = axis - (rank - value.ndim)
        if value.dtype.kind != "f" or (value.size != 1 and (at < 0 or value.size != width or value.shape[at] != width)):
            return None
        offset = np.broadcast_to(value.reshape(-1).astype(np.float64), (width,))
        return Line(axis, np.zeros(width, int), np.zeros(width), offset)
    shape = numbers.channels.shapes.get(name)
    if shape is None:
        return None
    at = axis - (rank - len(shape))
    if at < 0 or shape[at] == 1 != width:  # the same for every channel
        return Line(axis, np.repeat(numbers.fresh(1), width), np.ones(width), np.zeros(width))
    line = numbers.read(name, at)
    return None if line is None or len(line.atom) != width else replace(line, axis=axis)


def _total(numbers: Numbering, x: Line, y: Line) -> Line:
    lone, same = x.constant | y.constant, x.atom == y.atom
    atom, scale = np.where(x.constant, y.atom, x.atom), np.where(x.constant, y.scale, x.scale)
    both = same & ~lone
    scale = np.where(both, x.scale + y.scale, scale)
    scale = np.where(both & (np.abs(scale) <= ZERO * np.abs(x.scale)), 0.0, scale)
    mixed = ~lone & ~same
    atom = np.where(both & (scale == 0), NOTHING, atom)
    atom[mixed] = numbers.atoms(
        np.stack([x.atom, y.atom], axis=1)[mixed], spread(y.scale[mixed] / x.scale[mixed])[:, None]
    )
    return Line(x.axis, atom, scale, x.offset + y.offset)


def _product(numbers: Numbering, x: Line, y: Line) -> Line:
    lone = x.constant | y.constant
    factor, other = np.where(x.constant, x.offset, y.offset), np.where(x.constant, 1, 0)
    pick = lambda f: np.where(other == 1, getattr(y, f), getattr(x, f))  # noqa: E731
    scaled = Line(x.axis, pick("atom"), pick("scale"), pick("offset")).affine(np.where(lone, factor, 1.0))
    atom, scale, offset = scaled.atom, scaled.scale.copy(), scaled.offset.copy()
    mixed = ~lone
    rows = np.stack([spread(v.offset[mixed] / v.scale[mixed]) for v in (x, y)], axis=1)
    atom[mixed] = numbers.atoms(np.stack([x.atom, y.atom], axis=1)[mixed], rows)
    scale[mixed], offset[mixed] = (x.scale * y.scale)[mixed], 0.0
    return Line(x.axis, atom, scale, offset)
