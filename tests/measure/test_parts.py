"""What outputs consist of, and how alike a part is."""

import numpy as np
import pytest

from onnxprune.graph.model import Graph
from onnxprune.measure.agreement import Tally
from onnxprune.measure.fidelity import check_fidelity
from onnxprune.measure.parts import INTEGERS, SCORES, VALUES, Part, parts_of
from tests.channels import surgery

RNG = np.random.default_rng(0)
DETECTOR = """(float[N,3] x) => (float[N,7,1] y) <float[3,4] a, float[3,3] b, int64[1] last = {2}>
    { h = MatMul(x, a) g = MatMul(x, b) s = Sigmoid(g) j = Concat<axis=1>(h, s) y = Unsqueeze(j, last) }"""


def probabilities(*sizes, axis=-1):
    e = np.exp(3 * RNG.standard_normal(sizes))
    return (e / e.sum(axis=axis, keepdims=True)).astype(np.float32)


KINDS = {
    "logits": (RNG.standard_normal((8, 5)), SCORES, -1),
    "probabilities": (probabilities(8, 5), SCORES, -1),
    "their logarithms": (np.log(probabilities(8, 5)), SCORES, -1),
    "a sequence of them": (probabilities(8, 6, 5), SCORES, -1),
    "a map of them": (probabilities(8, 5, 6, 6, axis=1), SCORES, -3),
    "one value": (RNG.standard_normal((8, 1)), VALUES, -1),
    "unit lengths": (
        (lambda v: v / np.linalg.norm(v, axis=1, keepdims=True))(RNG.standard_normal((8, 16))), VALUES, -1
    ),
    "an image": (RNG.standard_normal((8, 3, 6, 6)), VALUES, -1),
    "labels": (RNG.integers(0, 5, (8, 6)), INTEGERS, -1),
}  # fmt: skip


@pytest.mark.parametrize("row", KINDS)
def test_what_an_output_says(row):
    value, kind, axis = KINDS[row]
    model = surgery.model_of("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    (part,) = parts_of(Graph(model), {}, {"y": value})
    assert (part.kind, part.axis, part.name) == (kind, axis, "y")


def test_beside_probabilities_other_outputs_are_values():
    model = surgery.model_of("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    boxes, scores = parts_of(Graph(model), {}, {"y": RNG.standard_normal((8, 4)), "z": probabilities(8, 2)})
    assert (boxes.kind, scores.kind) == (VALUES, SCORES)


def detector(pixels=320.0, spoil=0.0):
    model = surgery.model_of(DETECTOR)
    for tensor in model.graph.initializer:
        value = np.frombuffer(tensor.raw_data, np.float32).copy()
        if tensor.name == "a":
            tensor.raw_data = (pixels * value).tobytes()
        if tensor.name == "b":
            tensor.raw_data = ((1 - spoil) * value + spoil * np.roll(value, 4)).tobytes()
    return model


def test_scores_behind_boxes_in_pixels_are_a_part_of_their_own():
    model, x = detector(), RNG.standard_normal((64, 3)).astype(np.float32)
    shapes = {"x": (64, 3), "h": (64, 4), "s": (64, 3), "j": (64, 7), "y": (64, 7, 1)}
    found = check_fidelity(Graph(model), detector(spoil=1.0), [{"x": x}], shapes=shapes)
    boxes, scores = found.parts
    assert (boxes.name, scores.name) == ("y[:, 0:4]", "y[:, 4:7]")
    assert boxes.sqnr_db == 300 and scores.r2 < 0.25
    assert found.verdict == "destroyed" and found.why.startswith("y[:, 4:7]: R²")
    assert found.sqnr_db == scores.sqnr_db, "not that of the boxes, which hides it"
    same = check_fidelity(Graph(model), model, [{"x": x}], shapes=shapes)
    assert same.verdict == "kept" and len(same.parts) == 2
    whole = check_fidelity(Graph(model), detector(spoil=1.0), [{"x": x}])
    assert whole.sqnr_db > 50, "what one number over both says"


def test_of_one_unit_nothing_is_parted():
    model, x = detector(pixels=1.0), RNG.standard_normal((64, 3)).astype(np.float32)
    shapes = {"x": (64, 3), "h": (64, 4), "s": (64, 3), "j": (64, 7), "y": (64, 7, 1)}
    assert len(check_fidelity(Graph(model), model, [{"x": x}], shapes=shapes).parts) == 1


def tallied(a, b, part=None, batches=1):
    tally = Tally(part or Part("y"))
    for u, v in zip(np.array_split(a, batches), np.array_split(b, batches), strict=True):
        tally.add(u, v, len(u))
    return tally.fidelity()


@pytest.mark.parametrize("batches", [1, 3])
def test_r2_is_that_of_every_place_around_its_mean(batches):
    a = RNG.standard_normal((50, 6)) * [1, 2, 3, 1, 1, 1] + [1000, 0, 0, -50, 0, 3]
    b = a + 0.3 * RNG.standard_normal(a.shape)
    found = tallied(a, b, batches=batches)
    spread = 50 * np.var(a, axis=0, ddof=1).sum()
    assert found.r2 == pytest.approx(1 - np.square(a - b).sum() / spread, rel=1e-9)
    mean = np.broadcast_to(a.mean(axis=0), a.shape)
    assert tallied(a, mean, batches=batches).r2 == pytest.approx(0, abs=0.03), "a constant explains nothing"
    assert tallied(a, mean, batches=batches).sqnr_db > 40, "and has a fine signal to noise ratio"


def test_r2_where_sizes_change_and_where_nothing_varies():
    tally = Tally(Part("y"))
    parts = [RNG.standard_normal((4, n)) for n in (5, 7)]
    for value in parts:
        tally.add(value, value + 0.1, 4)
    every = np.concatenate([p.ravel() for p in parts])
    assert tally.fidelity().r2 == pytest.approx(1 - 0.01 * every.size / (every.size * every.var()))
    same = np.broadcast_to(RNG.standard_normal(6), (8, 6))
    assert tallied(same, same).r2 == 1.0 and tallied(same, same + 9).r2 < 0
    assert tallied(np.ones((8, 6)), np.ones((8, 6)) * 1.1).r2 == pytest.approx(0.99)
    assert tallied(np.zeros((8, 6)), np.zeros((8, 6))).r2 == 1.0


def test_agreement_and_chance_of_decisions():
    a = np.eye(4)[[0, 0, 0, 1, 2, 3, 3, 3]]
    b = np.eye(4)[[0, 0, 1, 1, 2, 3, 3, 0]]
    found = tallied(a, b, Part("y", kind=SCORES), batches=2)
    assert (found.same, found.base_rate, found.distinct) == (0.75, 0.375, 4)
    assert found.chance == pytest.approx((3 * 3 + 1 * 2 + 1 * 1 + 3 * 2) / 64)
    assert found.kappa == pytest.approx((0.75 - 18 / 64) / (1 - 18 / 64))
    one = tallied(np.eye(4)[[0, 0, 0]], np.eye(4)[[0, 0, 0]], Part("y", kind=SCORES))
    assert one.kappa is None and one.same == 1.0


def test_outputs_of_other_sizes_are_not_compared():
    tally = Tally(Part("y"))
    tally.add(np.ones((2, 3)), np.ones((2, 4)), 2)
    assert tally.missed and not tally.samples


PICKS = """(float[N,40] x) => (float[N,5] top, int64[N,5] at)
    <float[40,30] w, float[30,40] v, int64[1] k = {5}>
    { h = MatMul(x, w) r = Relu(h) s = MatMul(r, v) top, at = TopK(s, k) }"""


def test_what_is_picked_by_order_is_judged_by_what_it_is_picked_from():
    model, x = surgery.model_of(PICKS), RNG.standard_normal((32, 40)).astype(np.float32)
    nearly = surgery.model_of(PICKS)
    for tensor in nearly.graph.initializer:
        if tensor.name == "v":
            value = np.frombuffer(tensor.raw_data, np.float32)
            tensor.raw_data = (
                value + 1e-3 * np.random.default_rng(1).standard_normal(value.shape).astype(np.float32)
            ).tobytes()
    found = check_fidelity(Graph(model), nearly, [{"x": x}])
    assert [p.name for p in found.parts] == ["s"] and found.equal is None
    assert found.verdict == "kept"
