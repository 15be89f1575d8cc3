"""The equation of an Einsum: which letter stands for which axis.

Dots stand for any number of axes; an equation without an output has its letters that appear once, in alphabetical
order, behind the dots.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import onnx

from onnxprune.protobuf.nodes import attr


@dataclass(frozen=True)
class InPlace:
    """A matrix that an axis is multiplied by; all others stay where they are.

    Attributes:
        axis: in what is read and in what is written; counted from the end, unless there are two.
        weight: the operand that is the matrix.
        writes, reads: its axes: the one that is made, the one that is summed over.
    """

    axis: int
    weight: int
    writes: int
    reads: int


@dataclass(frozen=True)
class Equation:
    """An equation, read.

    Attributes:
        terms: the letters of every operand; "." stands for the dots.
        out: those of the output.
    """

    terms: tuple[str, ...]
    out: str

    @classmethod
    def of(cls, node: onnx.NodeProto) -> Equation:
        """That of an Einsum."""
        return _read(str(attr(node, "equation", "")))

    @property
    def dotted(self) -> bool:
        """Whether some axes go by dots."""
        return any("." in term for term in self.terms)

    def axes(self, operand: int, letter: str) -> tuple[int | None, int | None]:
        """Where a letter, or the dots, lie in an operand: (start, stop) as a slice takes them."""
        term = self.terms[operand]
        at, behind = term.index(letter), len(term) - term.index(letter) - 1
        if letter == "." or "." in term[:at]:
            return (at if letter == "." else at - len(term)), (-behind or None)
        return at, at + 1

    @property
    def product(self) -> InPlace | None:
        """How an axis of one operand is multiplied by a matrix, the other; None for other equations."""
        return None if len(self.terms) != 2 else self._by(1) or self._by(0)

    def _by(self, operand: int) -> InPlace | None:
        """The same where that operand is the matrix."""
        read, weight = self.terms[1 - operand], self.terms[operand]
        summed = [c for c in weight if c in read and c not in self.out]
        made = [c for c in weight if c not in read]
        plain = len(weight) == 2 and len(set(read)) == len(read) and "." not in weight
        if not plain or len(summed) != 1 or len(made) != 1 or self.out != read.replace(summed[0], made[0]):
            return None
        at = read.index(summed[0])
        if at == 0 or "." in read[at:]:  # the first axis counts samples
            return None
        axis = 1 if len(read) == 2 and "." not in read else at - len(read)
        return InPlace(axis, operand, weight.index(made[0]), weight.index(summed[0]))


@lru_cache(1024)
def _read(text: str) -> Equation:
    left, arrow, out = text.replace(" ", "").replace("...", ".").partition("->")
    terms = tuple(left.split(","))
    if not arrow:
        letters = left.replace(",", "")
        once = sorted(c for c in set(letters) if c != "." and letters.count(c) == 1)
        out = "." * ("." in letters) + "".join(once)
    return Equation(terms, out)
