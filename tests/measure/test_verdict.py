"""Kept, changed, destroyed."""

import numpy as np
import pytest

from onnxprune.measure.agreement import PartFidelity
from onnxprune.measure.verdict import basis, judged


def scores(same, chance=0.1, base=0.2, r2=0.9):
    return PartFidelity("y", "class scores", 0.9, 10.0, r2, same, chance, base, 10)


def values(r2):
    return PartFidelity("z", "values", 0.9, 10.0, r2)


def integers(same, chance=0.1, base=0.2):
    return PartFidelity("k", "integers", same=same, chance=chance, base_rate=base, distinct=5)


ROWS = {
    "the same decisions": ([scores(1.0)], "kept"),
    "nearly": ([scores(0.96)], "kept"),
    "one in ten differs": ([scores(0.9)], "changed"),
    "a third differs": ([scores(0.65)], "changed"),
    "more than half differ": ([scores(0.45)], "destroyed"),
    "chance": ([scores(0.1)], "destroyed"),
    "chance among two": ([scores(0.55, chance=0.5, base=0.5)], "destroyed"),
    "half of two agree beyond chance": ([scores(0.85, chance=0.5, base=0.5)], "changed"),
    "on the edge, and the scores say the same": ([scores(0.53, r2=0.1)], "destroyed"),
    "on the edge, and they do not": ([scores(0.53, r2=0.6)], "changed"),
    "one class, and the scores vary as before": ([scores(1.0, 1.0, 1.0, r2=0.95)], "kept"),
    "one class, and they vary otherwise": ([scores(1.0, 1.0, 1.0, r2=0.56)], "changed"),
    "one class, and they are a constant": ([scores(1.0, 1.0, 1.0, r2=0.0)], "destroyed"),
    "values": ([values(0.95)], "kept"),
    "values that follow": ([values(0.6)], "changed"),
    "values that do not": ([values(0.2)], "destroyed"),
    "the worst part decides": ([scores(1.0), values(0.1), values(1.0)], "destroyed"),
    "integers": ([integers(0.97)], "kept"),
    "integers at random": ([integers(0.12)], "destroyed"),
    "one number": ([integers(1.0, 1.0, 1.0)], "kept"),
}


@pytest.mark.parametrize("row", ROWS)
def test_thresholds(row):
    parts, verdict = ROWS[row]
    found = judged(parts, 200)
    assert found is not None and found.verdict == verdict, found


def test_few_samples_are_given_the_benefit_of_the_doubt():
    assert judged([scores(0.45)], 200).verdict == "destroyed"
    assert judged([scores(0.45)], 12).verdict == "changed"
    assert judged([scores(0.0)], 1).verdict == "changed"
    assert judged([scores(0.1)], 12).verdict == "destroyed"


def test_the_reason_names_the_part_where_there_are_several():
    assert judged([scores(0.4)], 200).why == "top-1 agreement 40.0%, chance would give 10.0%"
    assert judged([scores(1.0), values(0.1)], 200).why == "z: R² 0.10 over the samples"
    assert judged([], 10) is None


def test_where_nearly_all_decisions_are_one_the_reason_is_that_of_the_scores():
    """Full agreement and "destroyed" in one line would puzzle anyone."""
    one_class = judged([scores(0.995, 0.99, 0.99, r2=0.03)], 200)
    assert (
        one_class.verdict == "destroyed"
        and one_class.why == "R² 0.03 over the samples, where nearly all decisions are one"
    )
    assert judged([scores(0.3, 0.25, 0.99, r2=0.03)], 200).why.startswith("top-1 agreement 30.0%")


@pytest.mark.parametrize(
    "part, value", [(scores(0.7), 0.7), (scores(1.0, 1.0, 1.0, r2=0.5), 0.5), (values(0.3), 0.3), (integers(0.8), 0.8)]
)
def test_what_a_drop_goes_by(part, value):
    assert basis(part) == pytest.approx(value)
    assert np.isfinite(basis(PartFidelity("e", "values")))
