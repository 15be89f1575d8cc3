"""A little of every fuzzer, from seeds that are the same each time; `-m slow` for a minute of mutated models."""

import sys

import pytest

from onnxprune.errors import UsageError
from tests.fuzz import targets, whole

HERE = 15
"""Mutated models of a default run."""


WORKER = """
import os, sys, time
for seed in range(*map(int, sys.argv[2].split(","))):
    print([seed], flush=True)
    if seed == 1:
        os.abort()
    if seed == 3:
        time.sleep(60)
    print(f'[{seed}, "pruned", "", 0.1]', flush=True)
"""


def clean(found):
    assert not found.finds and sum(found.outcomes.values())
    return found.outcomes


def test_mutated_models():
    outcomes = clean(whole.run(0, HERE))
    assert sum(outcomes.values()) == HERE and any(o.startswith("refused") for o in outcomes)


@pytest.mark.slow
def test_mutated_models_for_a_minute():
    assert clean(whole.run(1_000_000, 1 << 30, seconds=60))["pruned"]


@pytest.mark.parametrize("name", targets.TARGETS)
def test_target(name):
    if name == "picture":
        pytest.importorskip("PIL")
    assert targets.drawn(name, runs=40, seconds=20) > 0


def test_a_find_is_told_with_its_seed(monkeypatch):
    """What a target lets through ends the run, and says how to do it again."""
    monkeypatch.setitem(targets.TARGETS, "broken", targets.target(UsageError)(lambda data: data and [][0]))
    monkeypatch.delitem(targets.TARGETS, "<lambda>")
    with pytest.raises(IndexError) as caught:
        targets.drawn("broken", 5, 10)
    assert "--first 0" in caught.value.__notes__[0]


def test_a_worker_that_dies_or_hangs_is_found(monkeypatch):
    """The seed is told, and those behind it are tried."""
    monkeypatch.setattr(whole, "WORKER", (sys.executable, "-c", WORKER))
    monkeypatch.setattr(whole, "HANG_S", 3.0)
    found = whole.run(0, 6)
    assert [(seed, outcome) for seed, outcome, _ in found.finds] == [(1, "abort"), (3, "hang")]
    assert found.outcomes["pruned"] == 4
