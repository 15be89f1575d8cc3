"""A plan as a file: what it remembers, what it carries, and files of before those were two things."""

import json

import pytest

from onnxprune.errors import UsageError
from onnxprune.plan import KeepChannels, Origin, PrunePlan

ORIGIN = Origin(
    ratio=0.4,
    target={"size_mb": 0.25},
    settings={"of": "params", "methods": ("channels", "blocks"), "seed": 3, "best_effort": False},
    samples=96,
    samples_digest="ab" * 32,
    version="0.1.0",
    given_up=("g", "h"),
)
EDITS = (KeepChannels("g", 4, (0, 2)),)
OLD = {"schema": 1, "kind": "onnxprune plan", "model_digest": "d", "edits": [{"edit": "keep_channels", "group": "g",
       "width": 4, "keep": [0, 2]}]}  # fmt: skip


def test_what_a_plan_remembers_both_ways():
    plan = PrunePlan("d", EDITS, ORIGIN, seed=3, batch=8, providers=("cuda", "cpu"), prune_statistics=True)
    again = PrunePlan.from_json(plan.to_json())
    assert again == plan and again.origin == ORIGIN
    assert json.loads(plan.to_json())["settings"] == {
        "ratio": 0.4, "target": {"size_mb": 0.25}, "of": "params", "methods": ["channels", "blocks"], "seed": 3,
        "best_effort": False, "samples": 96, "samples_digest": "ab" * 32, "version": "0.1.0", "given_up": ["g", "h"],
    }  # fmt: skip


def test_plans_that_do_the_same_are_the_same():
    assert PrunePlan("d", EDITS, ORIGIN) == PrunePlan("d", EDITS)
    assert PrunePlan("d", EDITS, seed=1) != PrunePlan("d", EDITS)


@pytest.mark.parametrize(
    ("settings", "carried"),
    [
        ({"ratio": 0.5, "of": "macs", "criterion": "elimination", "seed": 7, "prune_statistics": False}, {"seed": 7}),
        ({"criterion": "similarity", "prune_statistics": True}, {"by_likeness": True, "prune_statistics": True}),
        ({"lossless": True, "unread": 1, "given_up": [], "seed": 0}, {"lossless": True}),
        ({"batch": 8, "providers": ["cuda"]}, {"batch": 8, "providers": ("cuda",)}),
        ({}, {}),
    ],
)
def test_a_file_of_before_the_settings_were_memory_alone(settings, carried):
    plan = PrunePlan.from_json(json.dumps({**OLD, "settings": settings}))
    assert plan == PrunePlan("d", EDITS, **carried) and dict(plan.settings) == settings


def test_what_stands_beside_the_edits_counts_and_not_the_memory():
    plan = PrunePlan.from_json(json.dumps({**OLD, "seed": 2, "lossless": False, "by_likeness": False,
                                           "settings": {"seed": 5, "lossless": True, "criterion": "similarity"}}))  # fmt: skip
    assert (plan.seed, plan.lossless, plan.by_likeness) == (2, False, False)


@pytest.mark.parametrize("broken", [{"seed": "x"}, {"seed": True}, {"providers": [1]}, {"providers": "cuda"},
                                    {"lossless": 1}, {"settings": 3}])  # fmt: skip
def test_a_file_with_something_else_in_its_place(broken):
    with pytest.raises(UsageError, match="cannot be read"):
        PrunePlan.from_json(json.dumps({**OLD, **broken}))
