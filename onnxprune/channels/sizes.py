"""Constants and attributes that spell a channel count, and shapes computed at run time.

A cut changes sizes. Some operands state those sizes: a Reshape target, the ends of a Slice, the sizes of a
Split or a Resize, `group` of a Conv. `mend` says what each must become. Where an operand is computed at run
time, the computation is followed with the new sizes (`shapes.follow`): what comes out right needs nothing, a
constant that feeds it is mended, and anything else is a `Conflict`: those channels are pinned, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxprune.channels.cut_sizes import CutSizes
from onnxprune.channels.size_rules import SizeRule, size_rule_of
from onnxprune.channels.ties import distinct
from onnxprune.graph import operators
from onnxprune.graph.model import Graph, Use
from onnxprune.graph.shapes import Observed, follow
from onnxprune.protobuf.nodes import attr


@dataclass(frozen=True)
class SizeEdit:
    """One constant operand (`use`, `value`) or one attribute (`use[0]`, `attribute`, `value`) to replace."""

    use: Use
    value: Any
    attribute: str | None = None


@dataclass(frozen=True)
class Conflict:
    """A size that the graph computes and that would come out wrong: pin these tensors."""

    node: str
    tensors: tuple[str, ...]
    reason: str


def adapt_sizes(graph: Graph, cut: CutSizes) -> tuple[list[SizeEdit], list[Conflict]]:
    """Everything that spells a size which the cut changes.

    Args:
        graph: the graph, unedited.
        cut: the sizes after the cut.

    Returns:
        What to replace, and what cannot be mended.
    """
    mends: list[SizeEdit] = []
    wanted: dict[Use, np.ndarray | None] = {}  # operands computed at run time, and what they must be
    for key, node, spell, tensors in graph.once("spelling", graph, lambda: _spelling(graph)):
        for where, value in spell(graph, cut, key, node) if not cut.lines.keys().isdisjoint(tensors) else ():
            if isinstance(where, str):
                mends.append(SizeEdit((key, -1), value, where))
            elif graph.constant(node.input[where]) is not None:
                mends.append(SizeEdit((key, where), value))
            else:
                wanted[key, where] = value
        for i, name in enumerate(node.input):
            if name in cut.before and i in operators.of(node).spells:
                wanted.setdefault((key, i), cut.before[name])
    if not cut.before:
        return mends, []
    return _follow(graph, cut, mends, wanted)


def _spelling(graph: Graph) -> list[tuple[str, onnx.NodeProto, SizeRule, tuple[str, ...]]]:
    """The nodes that may spell sizes, with all their tensors."""
    return [
        (key, node, spell, (*node.input, *node.output))
        for key, node in graph.nodes.items()
        if (spell := size_rule_of(operators.of(node))) is not None
    ]


def _follow(
    graph: Graph, cut: CutSizes, mends: list[SizeEdit], wanted: dict[Use, np.ndarray | None]
) -> tuple[list[SizeEdit], list[Conflict]]:
    """Hold what the graph will compute against what is wanted."""
    seen = Observed(cut.channels.shapes, cut.before)
    after = follow(graph, cut.shapes, seen)
    static = graph.once("stirred", cut.channels, lambda: follow(graph, _stirred(graph, cut)))
    conflicts: list[Conflict] = []
    asked: dict[str, set[Use]] = {}  # node within the computation of sizes -> the operands for which it is mended
    for (key, i), value in wanted.items():
        node = graph.nodes[key]
        if value is not None and _ends_alike(graph, cut, (key, i), value, after.get(node.input[i])):
            continue
        pieces = None if value is None else _pieces(graph, cut, (key, i), value, after, static)
        for m in pieces or ():
            if m.use != (key, i):
                asked.setdefault(m.use[0], set()).add((key, i))
        if pieces is None:
            why = f"{node.op_type} takes a size computed at run time"
            conflicts.append(Conflict(key, (node.input[0], node.output[0]), why))
        else:
            mends += pieces
    for key in _clashes(mends):
        conflicts.append(Conflict(key, tuple(graph.nodes[key].input[:1]), "two readers need different sizes"))
    unheard = [
        asked[made]
        for key, i, name in (_readers(graph, cut) if asked else ())
        if i in operators.of(graph.nodes[key]).spells
        for made in _makers(graph, cut, name) & asked.keys()
        if (key, i) not in asked[made]
    ]
    for key, _ in sorted(set().union(*unheard)):
        node = graph.nodes[key]
        conflicts.append(Conflict(key, (node.input[0], node.output[0]), "two readers of one size need different ones"))
    # values computed from sizes that reach arithmetic on data must not change
    for key, i, name in _readers(graph, cut):
        if (
            (key, i) in wanted
            or _equal(cut.before[name], after.get(name))
            or _is_fill(graph, cut, name, after.get(name))
        ):
            continue
        if _equal(cut.before[name], static.get(name)):
            mends.append(SizeEdit((key, i), cut.before[name]))  # a property of the weights: freeze it
        else:
            roots = _roots(graph, name, cut.before, cut)
            why = f"its size is used as a value by {graph.nodes[key].op_type}"
            conflicts.append(Conflict(key, roots, why))
    # neither may those that leave the graph, or enter a body
    ends = {name: f"its size is read inside the body of {key}" for name, key in graph.captured().items()}
    for name, why in {**ends, **dict.fromkeys(graph.outputs, "its size is a model output")}.items():
        if name in cut.before and not _equal(cut.before[name], after.get(name)):
            conflicts.append(Conflict(graph.producer[name], _roots(graph, name, cut.before, cut), why))
    return mends, conflicts


def _ends_alike(graph: Graph, cut: CutSizes, use: Use, value: np.ndarray, now: np.ndarray | None) -> bool:
    """Whether a Slice ends where it should although its ends are others: beyond the last element, all are alike."""
    node = graph.nodes[use[0]]
    if not operators.of(node).cuts_out or use[1] != 2 or now is None or now.shape != value.shape:
        return False
    given = node.input[3] if len(node.input) > 3 else ""
    axes = cut.before.get(given, graph.constant(given)) if given else np.arange(len(value))
    if axes is None:
        return False
    sizes = np.array(cut.shapes[node.input[0]])[axes]
    return bool(np.array_equal(np.minimum(value, sizes), np.minimum(now, sizes)))


def _makers(graph: Graph, cut: CutSizes, name: str) -> set[str]:
    """The nodes that an operand computed from sizes goes through."""
    stack, found = [name], set()
    while stack:
        top = stack.pop()
        made = graph.producer.get(top)
        if top in cut.before and made is not None and made not in found:
            found.add(made)
            stack.extend(graph.nodes[made].input)
    return found


def _readers(graph: Graph, cut: CutSizes) -> list[tuple[str, int, str]]:
    return graph.once("value readers", cut.before, lambda: _value_readers(graph, cut.before))


def _is_fill(graph: Graph, cut: CutSizes, name: str, now: np.ndarray | None) -> bool:
    """Whether this is one number everywhere that carries channels, still the same as the graph computes it `now`: its
    size is wanted where it is made."""
    producer = graph.producer.get(name)
    if name not in cut.channels.lines or producer is None or not operators.of(graph.nodes[producer]).spreads:
        return False
    return now is None or len(distinct(np.concatenate([cut.before[name].ravel(), now.ravel()]))) == 1


def _value_readers(graph: Graph, derived: Mapping[str, np.ndarray]) -> list[tuple[str, int, str]]:
    """(node, input position, tensor) of every use of a value computed from sizes by a node that is not."""
    found = []
    for key, node in graph.nodes.items():
        uses = [(key, i, name) for i, name in enumerate(node.input) if name in derived]
        if uses and not all(o in derived or graph.constant(o) is not None for o in node.output if o):
            found += uses
    return found


def _stirred(graph: Graph, cut: CutSizes) -> dict[str, tuple[int, ...]]:
    """The sizes with every axis changed that carries no channels and that no weight fixes: what still comes out the
    same depends on weights alone, whatever the batch or the image size."""
    stirred, fixed = {}, _fixed_axes(graph, cut.channels.shapes)
    for name, shape in cut.channels.shapes.items():
        units, own = cut.channels.flow.get(name), fixed.get(name, ())
        stays = [k in own or (units is not None and k < units.ndim and units.shape[k] > 1) for k in range(len(shape))]
        stirred[name] = tuple(d if s else 2 * d + 5 for d, s in zip(shape, stays, strict=True))
    return stirred


def _fixed_axes(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, set[int]]:
    """Activation -> axes that can have no other size, because a constant meets them."""
    found: dict[str, set[int]] = {}
    for node in graph.nodes.values():
        out = node.output[0]
        rank, line = len(shapes.get(out, ())), operators.of(node)
        meets = (line.layer or line.stored_statistics) and len(node.input) > 1
        weight, data = (1, 0) if line.product is None else (line.product.weight, line.product.data)
        if meets and graph.constant(node.input[weight]) is not None:
            axis, before = line.channels or 0, len(shapes.get(node.input[data], ()))
            if attr(node, "transA", 0) or before < 2 or before != rank:
                continue
            found.setdefault(node.input[data], set()).add(axis % rank)
            found.setdefault(out, set()).add(axis % rank)
        elif line.aligned:
            for name in node.input:
                size, whole = shapes.get(name, ()), graph.constant(name) is not None if name else False
                axes = [k for k, d in enumerate(size) if whole and d > 1] or list(found.get(name, ()))
                found.setdefault(out, set()).update(k + rank - len(size) for k in axes if size[k] > 1)
    return found


def _equal(a: np.ndarray, b: np.ndarray | None) -> bool:
    if b is None:
        return False
    if a is b:
        return True
    return np.shape(a) == np.shape(b) and bool(np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f"))


def _pieces(
    graph: Graph,
    cut: CutSizes,
    use: Use,
    value: np.ndarray,
    after: Mapping[str, np.ndarray],
    static: Mapping[str, np.ndarray],
) -> list[SizeEdit] | None:
    """What to mend so that an operand computed at run time comes out as wanted; None when nothing helps."""
    name = graph.nodes[use[0]].input[use[1]]
    now = after.get(name)
    if _equal(value, now):
        return []
    if graph.constant(name) is not None or _equal(cut.before[name], static.get(name)):
        return [SizeEdit(use, np.asarray(value, graph_dtype(graph, cut, name)))]
    node = graph.nodes[graph.producer[name]]
    key = graph.producer[name]
    if node.op_type in ("Cast", "Identity"):
        return _pieces(graph, cut, (key, 0), value, after, static)
    if node.op_type in ("Unsqueeze", "Squeeze", "Reshape"):
        inner = cut.before.get(node.input[0])
        if inner is None or np.size(inner) != np.size(value):
            return None
        return _pieces(graph, cut, (key, 0), np.reshape(value, np.shape(inner)), after, static)
    if now is None or node.op_type != "Concat" or np.ndim(value) != 1 or np.shape(now) != np.shape(value):
        return None
    mends: list[SizeEdit] = []
    position = 0
    for i, piece in enumerate(node.input):
        have = cut.before.get(piece, graph.constant(piece))
        if have is None:
            return None
        part = value[position : position + have.size]
        if not np.array_equal(part, now[position : position + have.size]):
            fixed = _pieces(graph, cut, (key, i), part, after, static)
            if fixed is None:
                return None
            mends += fixed
        position += have.size
    return mends


def graph_dtype(graph: Graph, cut: CutSizes, name: str) -> np.dtype:
    """The element type of a size operand."""
    value = cut.before.get(name, graph.constant(name))
    return np.dtype(np.int64) if value is None else value.dtype


def _clashes(mends: list[SizeEdit]) -> list[str]:
    seen: dict[Use, np.ndarray] = {}
    clash = []
    for m in mends:
        if m.attribute is None:
            if m.use in seen and not np.array_equal(seen[m.use], m.value):
                clash.append(m.use[0])
            seen[m.use] = m.value
    return clash


def _roots(graph: Graph, name: str, derived: Mapping[str, np.ndarray], cut: CutSizes) -> tuple[str, ...]:
    """The cut tensors whose Shape a derived value goes back to."""
    stack, seen, found = [name], set(), []
    while stack:
        top = stack.pop()
        if top in seen:
            continue
        seen.add(top)
        if cut.changed(top):
            found.append(top)
        elif top in derived and top in graph.producer:
            stack.extend(graph.nodes[graph.producer[top]].input)
    return tuple(found)
