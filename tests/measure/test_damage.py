"""Damage to outputs: zero for the same, the textbook value for distributions, relative error for the rest."""

import numpy as np
import pytest

from onnxprune.measure.damage import damage

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(5, 4)) * 3
P = np.exp(SCORES) / np.exp(SCORES).sum(1, keepdims=True)
Q = np.roll(P, 1, axis=0)
MAP = RNG.normal(size=(2, 3, 4, 4)) + 7
KL = float((P * np.log(P / Q)).sum(1).mean())

PAIRS = [
    ("nothing changed", [SCORES], [SCORES], 0.0),
    ("a shift of all scores", [SCORES], [SCORES + 2], 0.0),
    ("scores", [np.log(P)], [np.log(Q)], KL),
    ("probabilities", [P], [Q], KL),
    ("probabilities along a sequence", [np.stack([P, P])], [np.stack([Q, Q])], KL),
    ("a map", [MAP], [MAP + 0.5], 0.25 / MAP.var()),
    ("two outputs add up", [P, MAP], [Q, MAP + 0.5], KL + 0.25 / MAP.var()),
    ("whole numbers are left out", [np.arange(4)], [np.arange(4) + 1], 0.0),
    ("not a number", [MAP], [MAP * np.nan], np.inf),
]


@pytest.mark.parametrize(("name", "wanted", "got", "value"), PAIRS, ids=[p[0] for p in PAIRS])
def test_damage(name, wanted, got, value):
    assert damage(wanted, got) == pytest.approx(value, rel=1e-6, abs=1e-9)
