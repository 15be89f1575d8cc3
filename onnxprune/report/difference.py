"""What two models differ in, as data, as JSON and for people: costs, operators, inputs and outputs, layers.

Knows nothing of how layers of one are found in the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onnxprune.measure.cost import Cost
from onnxprune.measure.layer_costs import Layer
from onnxprune.report.terminal import change, cost_rows, hung, not_counted, plain, si, table

KIND = "onnxprune diff"
SAME, OTHER = "as it is", "other weights"


@dataclass(frozen=True)
class Port:
    """An input or output: what is declared of it, and the sizes of the run that was looked at."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]
    ran: tuple[int, ...]

    def in_words(self) -> str:
        """`x: float32 (N, 3, 224, 224), run with 1x3x224x224`."""
        declared = ", ".join("?" if n is None else str(n) for n in self.shape)
        return plain(f"{self.name}: {self.dtype} ({declared}), run with {'x'.join(map(str, self.ran)) or 'a scalar'}")


@dataclass(frozen=True)
class Side:
    """One of the two models.

    Attributes:
        name: of its file, "a" or "b" where it has none.
        digest: SHA-256 of the model.
        opset, ir_version: what it is written in.
        nodes: how many there are.
        operators: operator -> how many nodes of it.
        activation_bytes: the most that activations take at once, see `measure.layer_costs`.
        inputs, outputs: what goes in and comes out.
        cost: parameters, multiply-accumulates, bytes.
    """

    name: str
    digest: str
    opset: int
    ir_version: int
    nodes: int
    operators: dict[str, int]
    activation_bytes: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    cost: Cost


@dataclass(frozen=True)
class Pair:
    """A layer of one model and what it is in the other; None where it is not there.

    Attributes:
        before, after: the layer in the first model and in the second.
        same_weights: whether its constants have the same values.
    """

    before: Layer | None
    after: Layer | None
    same_weights: bool

    def __post_init__(self) -> None:
        if self.before is None and self.after is None:
            raise ValueError("a layer is in one of the two models")

    @property
    def layer(self) -> Layer:
        """The one that is there, the first if both are."""
        found = self.before or self.after
        assert found is not None
        return found

    def what(self) -> str:
        """What has become of it: `in 16→8, out 32→20`."""
        if self.before is None or self.after is None:
            return "new" if self.before is None else "gone"
        words = []
        sides = ("in", self.before.reads, self.after.reads), ("out", self.before.writes, self.after.writes)
        for title, old, new in sides:
            axis = 1 if len(self.before.weight) > 2 else len(old) - 1
            if len(old) == len(new) > axis and old[axis] != new[axis]:
                words.append(f"{title} {old[axis]}→{new[axis]}")
            elif old != new:  # not the channels, or not they alone
                words.append(f"{title} {_sizes(old)}→{_sizes(new)}")
        if not words and self.before.weight != self.after.weight:
            words.append(f"weight {_sizes(self.before.weight)}→{_sizes(self.after.weight)}")
        return ", ".join(words) or (SAME if self.same_weights else OTHER)


@dataclass(frozen=True)
class Difference:
    """What `onnxprune.diff` gives back.

    Attributes:
        a, b: the two models.
        layers: every layer of either, in the order of the files.
    """

    a: Side
    b: Side
    layers: tuple[Pair, ...]

    @property
    def same(self) -> bool:
        """Whether they are one and the same model, byte for byte."""
        return self.a.digest == self.b.digest

    def changed(self) -> tuple[Pair, ...]:
        """The layers that are not the same in both."""
        return tuple(pair for pair in self.layers if pair.what() != SAME)

    def __repr__(self) -> str:
        macs = change(self.a.cost.macs, self.b.cost.macs) or "none"
        return f"<Difference {self.a.name} → {self.b.name}: MACs {macs}, {len(self.changed())} layers differ>"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; every layer says `what` has become of it."""
        layers = [asdict(pair) | {"what": pair.what()} for pair in self.layers]
        return {"schema": 1, "kind": KIND, "same": self.same, "a": asdict(self.a), "b": asdict(self.b),
                "layers": layers}  # fmt: skip

    def summary(self) -> str:
        """The tables as text."""
        return render(self, None, None)


def totals(found: Difference) -> list[tuple[str, str, str, str]]:
    """What the two cost: what, of the first, of the second, change."""
    a, b = found.a, found.b
    rows = cost_rows(asdict(a.cost), asdict(b.cost))
    rows.append(("activations", f"{si(a.activation_bytes)}B", f"{si(b.activation_bytes)}B",
                 change(a.activation_bytes, b.activation_bytes)))  # fmt: skip
    there = [sum(layer is not None for layer in side) for side in
             ([p.before for p in found.layers], [p.after for p in found.layers])]  # fmt: skip
    for name, old, new in (("nodes", a.nodes, b.nodes), ("layers", there[0], there[1])):
        rows.append((name, str(old), str(new), change(old, new)))
    return rows


def operator_rows(found: Difference) -> list[tuple[str, int, int]]:
    """Operators of which there are more in one: (operator, nodes of the first, of the second)."""
    names = dict.fromkeys([*found.a.operators, *found.b.operators])
    counts = [(name, found.a.operators.get(name, 0), found.b.operators.get(name, 0)) for name in names]
    return [row for row in counts if row[1] != row[2]]


def said(found: Difference) -> Iterator[tuple[str, str]]:
    """What else differs, in words: about what, and what is said."""
    if found.same:
        yield "same", "both files hold the same model, byte for byte"
    for title, old, new in (("opset", found.a.opset, found.b.opset),
                            ("IR version", found.a.ir_version, found.b.ir_version)):  # fmt: skip
        if old != new:
            yield title, f"{old} → {new}"
    for title, before, after in (("input", found.a.inputs, found.b.inputs),
                                 ("output", found.a.outputs, found.b.outputs)):  # fmt: skip
        for k in range(max(len(before), len(after))):
            pair = [side[k].in_words() if k < len(side) else "none" for side in (before, after)]
            if pair[0] != pair[1]:
                yield title, " → ".join(pair)
    for side in (found.a, found.b):
        if side.cost.uncounted:
            yield "not counted", f"in {plain(side.name)}: {not_counted(asdict(side.cost))}"
    rows = operator_rows(found)
    if rows:
        yield "operators", ", ".join(f"{plain(op)} {old}→{new}" for op, old, new in rows)


def layer_row(pair: Pair) -> tuple[str, str, str, str, str, str, str]:
    """A layer as cells: name, operator, what, MACs, their change, parameters, their change."""
    macs, params = (
        (
            0 if pair.before is None else getattr(pair.before, name),
            0 if pair.after is None else getattr(pair.after, name),
        )
        for name in ("macs", "params")
    )
    cells = [(si(old or new), change(old, new) if old != new else "") for old, new in (macs, params)]
    return plain(pair.layer.node), plain(pair.layer.op), pair.what(), *cells[0], *cells[1]


def render(found: Difference, most: int | None, width: int | None, *, every: bool = False) -> str:
    """The tables as text; that of layers stops after `most` rows, and has those that differ unless `every` one."""
    rows = totals(found)
    sizes = [max(12, *(len(row[k]) for row in rows)) for k in (1, 2)]
    lines = [f"A            {plain(found.a.name)}", f"B            {plain(found.b.name)}"]
    lines = [hung(line, width or 120) for line in lines]
    lines += [
        "",
        *(f"{r[0]:<13}{r[1]:>{sizes[0]}}{r[2]:>{sizes[1]}}{r[3]:>10}" for r in (("", "A", "B", "change"), *rows)),
    ]
    more = [hung(f"{about:<13}{text}", width or 120) for about, text in said(found)]
    lines += ["", *more] if more else []
    shown = found.layers if every else found.changed()
    text = "\n".join(lines) + f"\n\n{heading(found)}\n"
    if shown:
        columns = tuple(range(len(HEAD))) if width is None or width >= WIDE else NARROW
        head, *cells = ([row[k] for k in columns] for row in (HEAD, *map(layer_row, shown)))
        text += table(head, cells, "".join("<<<>>>>"[k] for k in columns), most=most, width=width)
    return text


WIDE, NARROW = 110, (0, 2, 3, 4, 5)
"""Columns of a terminal that has room for all; those of the table that are shown on a narrower one."""
HEAD = ("layer", "op", "what", "MACs", "change", "parameters", "change")
"""Of the table of layers; numbers are those of A, of new layers those of B."""


def heading(found: Difference) -> str:
    """How many layers differ."""
    count, every = len(found.changed()), len(found.layers)
    return f"{count} of {every} layers differ{'' if count else ': every one is there with the same weights'}"


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "?"
