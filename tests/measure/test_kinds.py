"""What parts of outputs are for, how each kind is told, and what is asked of each."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from onnxprune.errors import UsageError
from onnxprune.graph.model import Graph
from onnxprune.graph.said import Meaning, Said
from onnxprune.measure.agreement import PartFidelity, Tally
from onnxprune.measure.damage import damage
from onnxprune.measure.figures import FIGURES, value_of
from onnxprune.measure.kinds import boxes, pictures, precision, text
from onnxprune.measure.kinds import detections as detections_
from onnxprune.measure.kinds.asked import said_of
from onnxprune.measure.kinds.table import KINDS, ORDER
from onnxprune.measure.part import (
    BOX_SCORES,
    BOXES,
    CLASS_MAP,
    DETECTIONS,
    EMBEDDING,
    HEAT_MAP,
    IMAGE,
    INTEGERS,
    KEYPOINTS,
    LABELS,
    MASK,
    SCORES,
    SIGNAL,
    STATE,
    TEXT,
    VALUES,
    Part,
    merged,
)
from onnxprune.measure.parts import by_graph, parts_of
from onnxprune.measure.verdict import deciding, judged
from tests.channels import surgery

RNG = np.random.default_rng(0)
PLAIN = "(float[N,3] x) => (float[N,3] y) { y = Relu(x) }"
SIGMOID = "(float[N,3] x) => (float[N,3] y) { y = Sigmoid(x) }"


# ---- values as networks give them ----------------------------------------------------------------------------


def softmax(a, axis=-1):
    e = np.exp(a - a.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def smooth(*sizes):
    """Maps whose neighbours are alike."""
    a = RNG.standard_normal((*sizes[:-2], *(n // 4 for n in sizes[-2:])))
    return np.repeat(np.repeat(a, 4, axis=-2), 4, axis=-1)


def steps(samples=4, length=20, classes=12, blank=0):
    """Scores of steps, most of them of the class that is no character."""
    a = RNG.standard_normal((samples, length, classes))
    a[..., blank] += 3
    return a


def colours():
    return smooth(4, 1, 32, 32) + 0.1 * smooth(4, 3, 32, 32)


def peaks():
    a = 0.001 * RNG.standard_normal((4, 5, 16, 16))
    for n in range(4):
        for k in range(5):
            a[n, k, RNG.integers(16), RNG.integers(16)] = 1.0
    return a


def detections(samples=4, anchors=60, classes=5):
    """(samples, anchors, 4) middle and size, (samples, anchors, classes) scores: three objects a sample."""
    middle, size = RNG.uniform(0, 300, (samples, anchors, 2)), RNG.uniform(20, 60, (samples, anchors, 2))
    scores = RNG.uniform(0, 0.02, (samples, anchors, classes))
    for n in range(samples):
        for k in RNG.choice(anchors, 3, replace=False):
            scores[n, k, RNG.integers(classes)] = 0.9
    return np.concatenate([middle, size], axis=2), scores


UNIT = (lambda v: v / np.linalg.norm(v, axis=1, keepdims=True))(RNG.standard_normal((8, 64)))
KIND_OF = {
    "labels": (SIGMOID, "y", RNG.uniform(0, 1, (8, 3)), LABELS),
    "one label": (SIGMOID, "y", RNG.uniform(0, 1, (8, 1)), LABELS),
    "a mask": (SIGMOID, "y", (smooth(4, 1, 16, 16) > 0) * 0.98 + 0.01, MASK),
    "sigmoids of a picture": (SIGMOID, "y", 1 / (1 + np.exp(-colours())), IMAGE),
    "a class map": (PLAIN, "y", softmax(smooth(4, 5, 16, 16), axis=1), CLASS_MAP),
    "a class map before softmax": (PLAIN, "y", 4 * smooth(4, 5, 16, 16) - 2, CLASS_MAP),
    "noise": (PLAIN, "y", RNG.standard_normal((4, 5, 16, 16)), VALUES),
    "a picture": (PLAIN, "y", colours(), IMAGE),
    "peaks": (PLAIN, "y", peaks(), HEAT_MAP),
    "a signal": (PLAIN, "y", RNG.standard_normal((4, 1, 400)), SIGNAL),
    "points": (PLAIN, "y", RNG.uniform(0, 64, (8, 17, 2)), KEYPOINTS),
    "an embedding": (PLAIN, "y", UNIT, EMBEDDING),
    "an embedding by name": (PLAIN.replace(" y", " image_embeds"), "image_embeds", 7 * UNIT, EMBEDDING),
    "scores of many classes": (PLAIN, "y", 7 * UNIT, SCORES),
    "a text": (PLAIN, "y", softmax(steps()), TEXT),
    "a text whose last class is no character": (PLAIN, "y", softmax(steps(blank=-1)), TEXT),
    "values of steps": (PLAIN, "y", steps(), VALUES),
    "a label a token": (PLAIN, "y", softmax(RNG.standard_normal((4, 20, 12))), SCORES),
}  # fmt: skip


@pytest.mark.parametrize("row", KIND_OF)
def test_what_a_part_is_for(row):
    graph, name, value, kind = KIND_OF[row]
    (part,) = parts_of(Graph(surgery.model_of(graph)), {}, {name: value.astype(np.float32)}, samples=len(value))
    assert part.kind == kind


def test_scores_of_steps_are_a_text_where_a_layer_makes_them_and_samples_may_be_the_second_axis():
    graph = Graph(surgery.model_of("(float[N,3] x) => (float[N,12] y) <float[3,12] w> { y = MatMul(x, w) }"))
    value = steps(blank=-1)
    (part,) = parts_of(graph, {}, {"y": np.moveaxis(value, 0, 1)}, samples=4)
    assert (part.kind, part.batch, part.form) == (TEXT, 1, "-1")
    read = list(text.texts(part, np.moveaxis(value, 0, 1)))
    assert [list(r) for r in read] == [list(r) for r in text.texts(Part("y", kind=TEXT, form="11"), value)]


def test_the_last_state_of_a_recurrent_layer_is_no_score():
    model = surgery.model_of(
        """(float[T,N,4] x) => (float[T,1,N,40] a, float[1,N,40] h)
        <float[1,120,4] w, float[1,120,40] r> { a, h = GRU<hidden_size=40>(x, w, r) }"""
    )
    values = {"a": RNG.standard_normal((5, 1, 8, 40)), "h": RNG.standard_normal((1, 8, 40))}
    assert [p.kind for p in parts_of(Graph(model), {}, values)] == [VALUES, STATE]


def test_beside_a_label_offsets_are_no_scores():
    graph = Graph(surgery.model_of("(float[N,3] x) => (float[N,3] y, float[N,3] z) { y = Sigmoid(x) z = Relu(x) }"))
    values = {"y": RNG.uniform(0, 1, (8, 1)), "z": RNG.standard_normal((8, 4))}
    assert [p.kind for p in parts_of(graph, {}, values)] == [LABELS, VALUES]


# ---- boxes ---------------------------------------------------------------------------------------------------


def laid_out(layout, values):
    """(graph, shapes, outputs): boxes and scores as exporters give them."""
    b, s = values
    graph = Graph(surgery.model_of(PLAIN))
    if layout == "one output":
        return graph, {}, {"y": np.concatenate([b, s], axis=2).transpose(0, 2, 1)}
    if layout == "one output, turned":
        return graph, {}, {"y": np.concatenate([b, s], axis=2)}
    if layout == "two outputs":
        return graph, {}, {"boxes": b.transpose(0, 2, 1), "scores": s.transpose(0, 2, 1)}
    if layout == "two outputs, the second turned":
        return graph, {}, {"scores": s.transpose(0, 2, 1), "boxes": b}
    if layout == "corners":
        return (
            graph,
            {},
            {"boxes": np.concatenate([b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2], 2), "scores": s},
        )
    if layout == "probabilities":
        return graph, {}, {"boxes": b, "scores": np.concatenate([1 - s.sum(2, keepdims=True), s], 2)}
    anything = s.max(axis=2, keepdims=True)
    apart = (
        """(float[N,60,4] b, float[N,60,1] o, float[N,60,5] s) => (float[N,60,10] y) { y = Concat<axis=2>(b, o, s) }"""
    )
    classes = np.where(anything > 0.5, s / 0.9, RNG.uniform(0, 1, s.shape))
    shapes = {"b": (1, 60, 4), "o": (1, 60, 1), "s": (1, 60, 5), "y": (1, 60, 10)}
    return Graph(surgery.model_of(apart)), shapes, {"y": np.concatenate([b, anything, classes], 2)}


def test_two_classes_that_go_together_are_no_sign_of_anything():
    b, s = detections()
    s[s[..., 1] > 0.5, 0] = 0.9
    (box, _) = parts_of(Graph(surgery.model_of(PLAIN)), {}, {"boxes": b, "scores": np.where(s[..., :1] > 0.5, s, 0.01)})
    assert box.form == "xywh"


LAYOUTS = ("one output", "one output, turned", "two outputs", "two outputs, the second turned", "corners",
           "probabilities", "objectness")  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_boxes_are_found_beside_their_scores_however_they_lie(layout):
    values = detections()
    graph, shapes, outputs = laid_out(layout, values)
    parts = parts_of(graph, shapes, outputs, samples=4)
    (box,) = [p for p in parts if p.kind == BOXES]
    assert sorted(p.kind for p in parts) == sorted([BOXES, SCORES if layout == "probabilities" else BOX_SCORES])
    assert box.form == {"corners": "xyxy", "objectness": "xywh objectness"}.get(layout, "xywh")
    found = list(boxes.found_in(box, outputs))
    assert [len(f) for f in found] == [3] * 4
    b, s = values
    for rows, own, scores in zip(found, b, s, strict=True):
        for row in rows:
            k = np.abs((row[:2] + row[2:4]) / 2 - own[:, :2]).sum(1).argmin()
            assert row[:4] == pytest.approx([*(own[k, :2] - own[k, 2:] / 2), *(own[k, :2] + own[k, 2:] / 2)])
            assert row[4] == scores[k].argmax()


def test_damage_to_boxes_is_the_same_in_one_output_or_two():
    values = detections()
    moved = values[0] + RNG.standard_normal(values[0].shape), values[1] * 0.8
    found = []
    for layout in ("one output", "two outputs", "two outputs, the second turned"):
        graph, shapes, wanted = laid_out(layout, values)
        parts = parts_of(graph, shapes, wanted)
        got = laid_out(layout, moved)[2]
        found.append(
            damage(list(wanted.values()), list(got.values()), [[p for p in parts if p.output == o] for o in wanted])
        )
    assert found[0] > 0 and found == pytest.approx([found[0]] * 3)


def box(x, y, label, score=0.9, size=10.0):
    return [x, y, x + size, y + size, label, score]


def test_a_box_is_matched_once_by_one_of_its_class_that_covers_it():
    wanted = np.array([box(0, 0, 1), box(50, 50, 2)])
    assert boxes.matched(wanted, wanted, 0.75) == 2
    assert boxes.matched(wanted, np.array([box(1, 0, 1), box(1, 1, 1)]), 0.5) == 1, "once"
    assert boxes.matched(wanted, np.array([box(0, 0, 2), box(50, 50, 1)]), 0.5) == 0, "another class"
    assert (
        boxes.matched(wanted, np.array([box(3, 0, 1)]), 0.5)
        == 1
        > boxes.matched(wanted, np.array([box(3, 0, 1)]), 0.75)
    )
    assert boxes.matched(wanted[:0], wanted, 0.5) == boxes.matched(wanted, wanted[:0], 0.5) == 0
    assert boxes.overlaps(wanted, wanted) == pytest.approx(np.eye(2))


def test_f1_of_boxes():
    b, s = detections(samples=8)
    lost = s.copy()
    lost[:2] = 0.01  # of eight samples two have none left
    outputs, now = laid_out("two outputs", (b, s))[2], laid_out("two outputs", (b, lost))[2]
    parts = parts_of(Graph(surgery.model_of(PLAIN)), {}, outputs)
    tallies = [Tally(p) for p in parts]
    for part in (slice(0, 3), slice(3, 8)):
        for tally in tallies:
            tally.compare({k: v[part] for k, v in outputs.items()}, {k: v[part] for k, v in now.items()}, 3)
    found = [t.fidelity() for t in tallies]
    figures = found[0].figures
    assert figures["box_precision"] == 1 and figures["box_recall"] == pytest.approx(0.75)
    assert figures["box_f1"] == figures["box_f1_75"] == pytest.approx(2 * 0.75 / 1.75)
    verdict = judged(found, 8)
    assert verdict.verdict == "changed" and verdict.why == "boxes: box F1 85.7%"
    assert deciding(found)[1] == "box_f1" and found[0].beside == "scores"


def test_average_precision_worked_by_hand():
    """Three true boxes of one class; found are, by falling score, a right one, a wrong one, and a right one that covers
    its box by 62%. At IoU 0.5 precision is 1 up to a recall of 1/3 (34 of the 101 recalls), then 2/3 up to 2/3 (33);
    from IoU 0.65 on (seven of ten) the last is wrong too. A class that is nowhere true does not count."""
    true = np.array([box(0, 0, 0), box(50, 0, 0), box(0, 50, 0)])
    part = [50, 0, 56.2, 10, 0, 0.5]
    got = np.array([box(0, 0, 0, 0.9), box(80, 80, 0, 0.8), box(30, 30, 7, 0.7), part])
    figures = precision.Precision()
    figures.add(true[:0], got[:0], np.empty((0, 0)))
    figures.add(true, got, boxes.overlaps(true, got))
    first, last = (34 + 33 * 2 / 3) / 101, 34 / 101
    assert figures.figures() == pytest.approx({"box_map50": first, "box_map": (3 * first + 7 * last) / 10})
    assert precision.Precision().figures() == {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_average_precision_however_boxes_lie(layout):
    b, s = detections(samples=8)
    graph, shapes, was = laid_out(layout, (b, s))
    box = next(p for p in parts_of(graph, shapes, was, samples=8) if p.kind == BOXES)
    moved = b.copy()
    moved[:4] += [0.2, 0, 0, 0] * b[:4, :, 2:3]  # by a fifth of the width: IoU 2/3 in half of the samples
    tally = Tally(box)
    tally.compare(was, laid_out(layout, (moved, s))[2], 8)
    found = tally.fidelity().figures
    assert found["box_map50"] == pytest.approx(1) and 0.3 < found["box_map"] < 0.9
    tally = Tally(box)
    tally.compare(was, was, 8)
    assert (tally.fidelity().figures["box_map"], tally.fidelity().figures["box_map50"]) == (1, 1)


# ---- boxes after suppression ---------------------------------------------------------------------------------

ORDERS = {
    "xyxy score class": [0, 1, 2, 3, 5, 4], "xyxy class score": [0, 1, 2, 3, 4, 5], "class score xyxy": [4, 5, 0, 1, 2, 3]
}  # fmt: skip
FOUND = np.array([[box(9 * k, 20 * n, k % 3, 0.95 - 0.1 * k, 8 + n) for k in range(5)] for n in range(3)])


@pytest.mark.parametrize("layout", detections_.LAYOUTS)
def test_rows_of_boxes_are_matched_whatever_their_order_and_number(layout):
    def laid(rows):
        order = ORDERS[layout.removeprefix("sample ")]
        if not layout.startswith("sample"):
            return np.stack(rows)[..., order].astype(np.float32)
        flat = [[n, *row[order]] for n, one in enumerate(rows) for row in one]
        return np.array(flat, np.float32).reshape(-1, 7)

    graph, was = Graph(surgery.model_of(PLAIN)), {"y": laid(FOUND)}
    (part,) = parts_of(graph, {}, was, samples=3)
    assert (part.kind, part.form) == (DETECTIONS, layout)
    tally = Tally(part)
    tally.compare(was, {"y": laid(FOUND[:, ::-1])}, 3)
    assert tally.fidelity().figures["box_f1"] == tally.fidelity().figures["box_map"] == 1
    tally = Tally(part)
    tally.compare(was, {"y": laid(FOUND[:, :4])}, 3)
    found = tally.fidelity()
    assert (found.figures["box_recall"], found.figures["box_precision"]) == (pytest.approx(0.8), 1)
    lost = [damage([was["y"]], [laid(FOUND[:, :k])], [[part]]) for k in (5, 4, 1, 0)]
    assert lost == pytest.approx([0, 1 - 8 / 9, 1 - 2 / 6, 1]), "in a network that finds less, and other sizes"
    assert damage([was["y"]], [laid(FOUND[:, ::-1])], [[part]]) == pytest.approx(0)
    moved = FOUND + np.array([1.0, 0, 1, 0, 0, -0.05])
    assert 0 < damage([was["y"]], [laid(moved)], [[part]]) < 0.5
    assert found.cosine is None and judged([found], 3).why == "box F1 88.9%" and deciding([found]) == (found, "box_f1")


def test_what_only_looks_like_rows_of_boxes():
    rows = laid_rows = FOUND[..., ORDERS["xyxy score class"]]
    for spoil in (rows + 0.3, -laid_rows, rows * [1, 1, 1, 1, 9, 1], RNG.standard_normal((3, 5, 6))):
        assert not detections_.layout_of(spoil)


# ---- what was said -------------------------------------------------------------------------------------------


def test_the_user_knows_better():
    graph, value = Graph(surgery.model_of(PLAIN)), RNG.standard_normal((8, 20)).astype(np.float32)
    said = Said({"y": Meaning(EMBEDDING)}, {"y": 3.0})
    (part,) = parts_of(graph, {}, {"y": value}, said=said)
    assert (part.kind, part.weight) == (EMBEDDING, 3.0)
    other = value + 1
    usual = damage([value], [other], [[Part("y", kind=EMBEDDING)]])
    assert damage([value], [other], [[part]]) == pytest.approx(3 * usual)
    (part,) = parts_of(graph, {}, {"y": value.reshape(8, 4, 5)}, said=Said({"y": Meaning(SCORES, 1)}))
    assert (part.kind, part.axis) == (SCORES, -2)


def test_boxes_that_are_said_to_be_are_parted_from_their_scores():
    value = np.concatenate([RNG.standard_normal((4, 6, 4)), RNG.uniform(0, 1, (4, 6, 3))], axis=2)
    parts = parts_of(Graph(surgery.model_of(PLAIN)), {}, {"y": value}, said=Said({"y": Meaning(BOXES, 2)}))
    assert [(p.name, p.kind) for p in parts] == [("y[:, :, 0:4]", BOXES), ("y[:, :, 4:7]", BOX_SCORES)]
    assert parts[0].beside.name == parts[1].name


@pytest.mark.parametrize(
    "meaning, value, words",
    [
        (Meaning(TEXT), np.ones((4, 5)), r"output 'y' cannot be text: that is floating point of rank 3"),
        (Meaning(SCORES, 3), np.ones((4, 5)), r"output 'y' has shape \[4, 5\], no axis 3"),
        (Meaning(INTEGERS), np.ones((4, 5)), "that is whole numbers, it is float64"),
        (Meaning(SCORES), np.ones((4, 5), int), "it is int64 of shape"),
    ],
)
def test_what_an_output_cannot_be(meaning, value, words):
    with pytest.raises(UsageError, match=words):
        parts_of(Graph(surgery.model_of(PLAIN)), {}, {"y": value}, said=Said({"y": meaning}))


JOINT = np.concatenate(
    [RNG.uniform(20, 90, (4, 4, 30)), RNG.uniform(0, 1, (4, 6, 30)), RNG.standard_normal((4, 3, 30))], axis=1
)


@pytest.mark.parametrize(
    "said, wanted",
    [
        ("boxes,axis=1,parts=box:0-4,cls:4-10:box-scores", "box boxes, cls box scores, y[:, 10:13] box values"),
        (
            "values,parts=0-4:boxes, 4-10:box-scores,axis=-2",
            "y[:, 0:4] boxes, y[:, 4:10] box scores, y[:, 10:13] box values",
        ),
        (
            "boxes,axis=1,parts=0-4,4-10,10-13:keypoints",
            "y[:, 0:4] boxes, y[:, 4:10] box scores, y[:, 10:13] keypoints",
        ),
        ("values,parts=all:0-30", "all values"),
        ("values,parts=5-9", "y[:, :, 0:5] values, y[:, :, 5:9] values, y[:, :, 9:30] values"),
    ],
)
def test_parts_that_are_set(said, wanted):
    asked = said_of({"y": said}, {"cls": 2} if "cls" in said else None, ["y"])
    for graph in (None, Graph(surgery.model_of(PLAIN))):
        parts = parts_of(graph, {}, {"y": JOINT}, said=asked)
        assert ", ".join(f"{p.name} {p.kind}" for p in parts) == wanted
        assert [p.weight for p in parts] == [2 if p.name == "cls" else 1 for p in parts]
        whole = np.concatenate(
            [p.of(JOINT) for p in parts], axis=parts[0].regions[0][0][0] if parts[0].regions[0] else 0
        )
        assert np.array_equal(whole, JOINT)
    told = by_graph(Graph(surgery.model_of(PLAIN)), {"y": JOINT.shape}, "y", asked)
    assert [name for name, _ in told] == [p.name for p in parts]


@pytest.mark.parametrize(
    "said, words",
    [
        ("boxes,axis=1,parts=0-4,3-10", "parts 0-4 and 3-10 overlap; the stop is not in a part"),
        ("boxes,axis=1,parts=0-4,4-100", "part 4-100 of an axis of 13; stop at 13"),
        ("boxes,axis=1,parts=4-4", "'4-4' is empty"),
        ("boxes,axis=1,parts=", "'' is no part such as 0-4, 0-4:boxes or box:0-4:boxes"),
        ("boxes,axis=1,parts=0-4,four", "'four' is no part such as"),
        ("boxes,axis=1,parts=0-4:boxs", "unknown kind of output 'boxs'; did you mean boxes"),
        ("boxes,axis=0,parts=0-1", "no axis 0 behind that of the samples"),
        ("boxes,axis=3,parts=0-1", "no axis 3 behind"),
        ("boxes,parts=0-4,axis=1,parts=4-5", "is none; axis=K and parts="),
        ("boxes,axis=1,parts=0-4,4-10:values", r"output 'y\[:, 0:4\]' cannot be boxes: no scores"),
        ("values,axis=1,parts=a:0-4,a:4-5", "'a' names two parts or outputs"),
        ("values,axis=1,parts=y:0-4", "'y' names two parts or outputs"),
    ],
)
def test_parts_that_cannot_be_set(said, words):
    with pytest.raises(UsageError, match=words):
        parts_of(None, {}, {"y": JOINT}, said=said_of({"y": said}, None, ["y"]))


def test_boxes_that_have_no_scores():
    with pytest.raises(UsageError, match="'y' cannot be boxes: no scores from 0 to 1 of as many anchors"):
        parts_of(None, {}, {"y": RNG.standard_normal((4, 4, 30))}, said=Said({"y": Meaning(BOXES, 1)}))


def test_a_part_that_there_is_not():
    with pytest.raises(UsageError, match=r"unknown part of the outputs 'y\[:, 0:4\]'; choose from y"):
        parts_of(Graph(surgery.model_of(PLAIN)), {}, {"y": np.ones((4, 5))}, said=Said({}, {"y[:, 0:4]": 2.0}))


# ---- figures -------------------------------------------------------------------------------------------------


def figures(kind, a, b, batches=2, **rest):
    tally = Tally(Part("y", kind=kind, **rest))
    for u, v in zip(np.array_split(a, batches), np.array_split(b, batches), strict=True):
        tally.compare({"y": u}, {"y": v}, len(u))
    return tally.fidelity()


def test_top5_and_the_mean_over_classes():
    a = np.eye(12)[[0, 0, 0, 0, 1, 2]]
    b = a + 0.0
    b[4] = np.arange(12) / 100  # the least but one of twelve
    b[5, 3] = 2  # second
    found = figures(SCORES, a, b)
    assert found.same == pytest.approx(4 / 6) and found.figures["top5"] == pytest.approx(5 / 6)
    assert found.figures["class_agreement"] == pytest.approx(1 / 3)


def test_mean_iou():
    a = np.eye(3)[RNG.integers(0, 3, (4, 8, 8))].transpose(0, 3, 1, 2)
    b = np.eye(3)[RNG.integers(0, 3, (4, 8, 8))].transpose(0, 3, 1, 2)
    u, v = a.argmax(1), b.argmax(1)
    wanted = np.mean([((u == k) & (v == k)).sum() / ((u == k) | (v == k)).sum() for k in range(3)])
    assert figures(CLASS_MAP, a, b, axis=-3).figures["miou"] == pytest.approx(wanted)
    found = figures(INTEGERS, u, v)
    assert found.figures["miou"] == pytest.approx(wanted) and found.figures["pixels"] == pytest.approx((u == v).mean())


def test_what_is_set():
    a, b = RNG.uniform(0, 1, (40, 3)), RNG.uniform(0, 1, (40, 3))
    found, u, v = figures(LABELS, a, b), a > 0.5, b > 0.5
    assert found.same == pytest.approx((u == v).mean())
    assert found.figures["label_f1"] == pytest.approx(2 * (u & v).sum() / (u.sum() + v.sum()))
    assert figures(MASK, a, b).figures["mask_iou"] == pytest.approx((u & v).sum() / (u | v).sum())
    assert found.figures["top1"] == pytest.approx((a.argmax(1) == b.argmax(1)).mean())
    assert "label_f1" not in figures(LABELS, 0 * a, 0 * b).figures


def levenshtein(a, b):
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        before, row = row, [i]
        for j, right in enumerate(b, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (left != right)))
    return row[-1]


@pytest.mark.parametrize("seed", range(20))
def test_the_distance_of_texts(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 4, rng.integers(0, 12)), rng.integers(0, 4, rng.integers(0, 12))
    assert text.distance(a, b) == levenshtein(a, b)


def test_words_and_characters():
    def scores(*read):
        return np.eye(9)[np.array(read)]

    a, b = scores([0, 1, 1, 0, 1, 2], [3, 3, 0, 0, 0, 0]), scores([1, 0, 1, 1, 2, 2], [3, 0, 4, 0, 0, 0])
    found = figures(TEXT, a, b, form="0")
    assert found.figures == {"words": 0.5, "characters": 1 - 1 / 5}
    assert judged([found], 400).verdict == "changed"


def test_correlations():
    a = RNG.standard_normal((60, 3)) + np.array([0, 100, -7])
    b = np.sign(a - a.mean(0)) * np.abs(a - a.mean(0)) ** 3 + [5, 6, 7]
    found = figures(VALUES, a, b).figures
    u, v = a - a.mean(0), b - b.mean(0)
    assert found["pearson"] == pytest.approx((u * v).sum() / np.sqrt((u * u).sum() * (v * v).sum()))
    assert found["spearman"] == pytest.approx(np.mean([spearmanr(a[:, k], b[:, k])[0] for k in range(3)]))
    assert "pearson" not in figures(VALUES, 0 * a, b).figures


def test_neighbours_of_embeddings():
    found = figures(EMBEDDING, UNIT, UNIT + 0.01 * RNG.standard_normal(UNIT.shape))
    assert found.figures["recall1"] == 1 and value_of("cosine", found) > 0.98
    assert figures(EMBEDDING, UNIT, np.roll(UNIT, 1, axis=0)).figures["recall1"] == 0


def test_points_and_peaks():
    a = RNG.uniform(0, 100, (6, 5, 2))
    a[:, 0], a[:, 1] = 0, 100
    b = a.copy()
    b[:, 4] += 20
    assert figures(KEYPOINTS, a, b).figures["keypoints"] == pytest.approx(0.8)
    maps = peaks()
    assert figures(HEAT_MAP, maps, maps).figures["peaks"] == 1
    assert figures(HEAT_MAP, maps, np.roll(maps, 3, axis=-1)).figures["peaks"] == 0


def test_images():
    a = np.clip(smooth(2, 3, 32, 32) * 0.2 + 0.5, 0, 1)
    found = figures(IMAGE, a, a + 0.1)
    assert found.figures["psnr"] == pytest.approx(20, abs=0.3) and 0.8 < found.figures["ssim"] < 1
    assert figures(IMAGE, a, a).figures == {"psnr": 300.0, "ssim": pytest.approx(1)}
    noise = RNG.uniform(0, 1, (32, 32))
    assert pictures.ssim(noise, RNG.uniform(0, 1, (32, 32)), 1.0) < 0.3


def test_the_tables_fit():
    assert sorted(ORDER) == sorted(KINDS)
    for kind in KINDS.values():
        assert {kind.default, *kind.figures} <= FIGURES.keys() and kind.help
        assert FIGURES[kind.default].share, "of what a person asks, a drop can be asked"
    for name in FIGURES:
        assert value_of(name, PartFidelity("y", VALUES)) is None


def test_which_part_decides():
    def part(name, kind, **rest):
        return PartFidelity(name, kind, 0.9, 10.0, rest.pop("r2", 0.5), **rest)

    scores = part("s", SCORES, same=0.998, chance=0.5, base_rate=0.6)
    offsets = part("o", VALUES, r2=0.2)
    assert deciding([offsets, scores]) == (scores, "top1")
    one = part("s", SCORES, same=1.0, chance=0.98, base_rate=0.98)
    assert deciding([one]) == (one, "r2") and "(98% are one decision)" in one.in_words()
    assert deciding([]) is None


def test_neighbouring_stretches_are_one():
    found = merged([((1, 0, 4), (2, 0, 6)), ((1, 0, 4), (2, 6, 8)), ((1, 9, 10), (2, 0, 6))], (2, 10, 8))
    assert found == (((1, 0, 4),), ((1, 9, 10), (2, 0, 6)))
    assert merged([((1, 0, 4),), ((1, 4, 10),)], (2, 10)) == ((),)


@pytest.mark.parametrize("spoil", [np.nan, np.inf, 6e4])
@pytest.mark.parametrize("sizes", [(4, 6), (4, 20, 12), (4, 60, 9), (4, 3, 16, 16), (4, 60, 6), (4,), (0, 5), ()])
def test_whatever_the_values_are_nothing_is_said_of_them_aloud(sizes, spoil):
    value = RNG.standard_normal(sizes).astype(np.float16)
    if value.size:
        value.reshape(-1)[:1] = spoil
    with np.errstate(all="raise"):
        (part,) = parts_of(Graph(surgery.model_of(PLAIN)), {}, {"y": value}, samples=4)
    assert part.kind in KINDS


def test_the_coarse_head_of_a_detector_is_no_class_map():
    graph = Graph(surgery.model_of("(float[N,3,H,W] x) => (float[N,5,H,W] y) { y = Relu(x) }"))
    value = {"y": 4 * smooth(4, 5, 16, 16) - 2}
    kinds = [parts_of(graph, {"x": (1, 3, n, n)}, value)[0].kind for n in (16, 64, 128)]
    assert kinds == [CLASS_MAP, CLASS_MAP, VALUES]


@pytest.mark.parametrize(("blank", "spaces"), [(0, " 3 6"), (-1, " 2 5")])
def test_blanks_at_either_end_do_not_count_where_characters_are_known(blank, spaces):
    model = surgery.model_of(PLAIN)
    model.metadata_props.add(key="character", value="a\nb\n\u3000\nc\nd\n \ne")
    value = softmax(steps(classes=8, blank=blank))
    (part,) = parts_of(Graph(model), {}, {"y": value}, samples=4)
    assert part.form == f"{blank}{spaces}"
    gap, a, b = int(spaces.split()[0]), *((1, 2) if blank == 0 else (0, 1))
    none = blank % 8
    read = np.eye(8)[[[gap, none, a, gap, b, none, gap], [none, gap, none, none, none, none, none]]]
    assert [list(t) for t in text.texts(part, read)] == [[a, gap, b], []]
