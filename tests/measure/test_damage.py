"""Damage to outputs: zero for the same, the textbook value for distributions, relative error for the rest."""

from functools import partial

import numpy as np
import pytest

from onnxprune import api
from onnxprune.graph.model import Graph
from onnxprune.measure.damage import Damage, damage
from onnxprune.measure.part import TEXT
from onnxprune.measure.parts import Part, parts_of
from tests.channels import surgery

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(5, 4)) * 3
P = np.exp(SCORES) / np.exp(SCORES).sum(1, keepdims=True)
Q = np.roll(P, 1, axis=0)
MAP = RNG.normal(size=(2, 3, 4, 4)) + 7
BOX = 9 * RNG.normal(size=(5, 4))
KL = float((P * np.log(P / Q)).sum(1).mean())

PAIRS = [
    ("nothing changed", [SCORES], [SCORES], 0.0),
    ("a shift of all scores", [SCORES], [SCORES + 2], 0.0),
    ("scores", [np.log(P)], [np.log(Q)], KL),
    ("probabilities", [P], [Q], KL),
    ("probabilities along a sequence", [np.stack([P, P])], [np.stack([Q, Q])], KL),
    ("a map", [MAP], [MAP + 0.5], 0.25 / MAP.var()),
    (
        "probabilities along the channels of a map",
        [np.moveaxis(P.reshape(5, 1, 4), 2, 1)],
        [np.moveaxis(Q.reshape(5, 1, 4), 2, 1)],
        KL,
    ),
    ("boxes beside probabilities", [P, BOX], [Q, BOX + 1], KL + 1 / BOX.var()),
    ("two outputs add up", [P, MAP], [Q, MAP + 0.5], KL + 0.25 / MAP.var()),
    ("whole numbers are left out", [np.arange(4)], [np.arange(4) + 1], 0.0),
    ("not a number", [MAP], [MAP * np.nan], np.inf),
]


def compared(wanted):
    """Damage to outputs of which no more is known than their values."""
    graph = Graph(surgery.model_of("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }"))
    found = parts_of(graph, {}, {str(k): np.asarray(v) for k, v in enumerate(wanted)})
    return partial(damage, parts=[[part] for part in found])


@pytest.mark.parametrize(("name", "wanted", "got", "value"), PAIRS, ids=[p[0] for p in PAIRS])
def test_damage(name, wanted, got, value):
    assert compared(wanted)(wanted, got) == pytest.approx(value, rel=1e-6, abs=1e-9)


def test_texts_count_by_how_far_margins_move():
    """KL of ten thousand sure steps is that of the one that turns; that all margins halved it hardly sees."""
    p = np.log(np.array([[0.9, 0.09, 0.01], [0.01, 0.98, 0.01]]))[None]
    q = p.copy()
    q[0, 0, 0] -= 0.5 * np.log(10)  # half of the margin
    q[0, 1, 1] -= 9.0  # over the edge
    text = [[Part("y", ((),), kind=TEXT)]]
    assert damage([p], [q], text) == pytest.approx((0.5**2 + 1) / 2)
    assert damage([p], [p + 3], text) == pytest.approx(0, abs=1e-12)


BOXES, SEEN = 300 * RNG.normal(size=(3, 4, 50)), RNG.uniform(size=(3, 5, 50)) ** 8
JOINED = np.concatenate([BOXES, SEEN], axis=1)
PARTS = [Part("y", (((1, 0, 4),),)), Part("y", (((1, 4, 9),),))]


def test_scores_beside_boxes_in_pixels_count():
    """One number over both does not see them: what is lost of them is nothing in pixels."""
    lost = np.concatenate([BOXES, 0 * SEEN], axis=1)
    assert compared([JOINED])([JOINED], [lost]) < 1e-5
    assert damage([JOINED], [lost], [PARTS]) == pytest.approx(np.square(SEEN).sum() / (SEEN.var() * SEEN.size))


def test_boxes_count_where_something_is_seen():
    best = SEEN.max(axis=1)
    inside, outside = best > 0.9, best < 0.3
    moved = [
        np.concatenate([BOXES + 30 * where[:, None], SEEN], axis=1) * np.ones_like(JOINED)
        for where in (inside, outside)
    ]
    near, far = (
        damage([JOINED], [m], [PARTS]) / where.sum() for m, where in zip(moved, (inside, outside), strict=True)
    )
    assert near > 30 * far > 0


def test_a_network_is_compared_by_its_parts():
    text = """(float[N,3] x) => (float[N,7] y) <float[3,4] a, float[3,3] b>
        { h = MatMul(x, a) g = MatMul(x, b) s = Sigmoid(g) y = Concat<axis=1>(h, s) }"""
    model = surgery.model_of(text)
    model.graph.initializer[0].raw_data = (
        400 * np.frombuffer(model.graph.initializer[0].raw_data, np.float32)
    ).tobytes()
    x = {"x": RNG.standard_normal((16, 3)).astype(np.float32)}
    net = api.open_model(model, calibration=x).net
    wanted = [surgery.run(model, x)]
    compared = Damage(net, lambda names: wanted)
    assert [p.name for p in compared.parts[0]] == ["y[:, 0:4]", "y[:, 4:7]"]
    other = [[np.concatenate([wanted[0][0][:, :4], np.roll(wanted[0][0][:, 4:], 1, axis=0)], axis=1)]]
    assert compared.of(wanted) == 0 and compared.of(other) > 0.3 > 100 * damage(wanted[0], other[0], [[Part("y")]])
