"""Outputs of detectors as exporters give them: which part is which, and that what is nothing does not count."""

from types import SimpleNamespace

import numpy as np
import pytest

from onnxprune.api import open_model
from onnxprune.graph.model import Graph
from onnxprune.graph.said import NOTHING as NOTHING_SAID
from onnxprune.measure.agreement import Tally
from onnxprune.measure.damage import Damage, damage
from onnxprune.measure.fidelity import check_fidelity
from onnxprune.measure.labelled import TABLE
from onnxprune.measure.part import DETECTIONS
from onnxprune.measure.parts import parts_of
from onnxprune.pipeline.compare import outputs_of
from tests.channels import surgery

RNG = np.random.default_rng(3)
SAMPLES, SIDE = 6, 8
ANCHORS = SIDE * SIDE
PLAIN = "(float[N,3,64,64] x) => (float[N,3,64,64] y) { y = Relu(x) }"


def scene(classes=5):
    """(samples, anchors, 4) offsets, (samples, anchors, classes) scores before a sigmoid, (samples, anchors) where
    something is."""
    moved, scores = 0.2 * RNG.standard_normal((SAMPLES, ANCHORS, 4)), RNG.uniform(-9, -5, (SAMPLES, ANCHORS, classes))
    there = np.zeros((SAMPLES, ANCHORS), bool)
    for n in range(SAMPLES):
        for k in RNG.choice(ANCHORS, 3, replace=False):
            scores[n, k, RNG.integers(classes)] = 2.5
            there[n, k] = True
    return moved, scores, there


MOVED, LOGITS, THERE = scene()
ONE = LOGITS.max(axis=2, keepdims=True)
MIDDLE = np.stack(np.meshgrid(*[np.arange(4.0, 64, 8)] * 2), -1).reshape(-1, 2)
XYWH = np.concatenate([MIDDLE + 8 * MOVED[..., :2], 16 * np.exp(MOVED[..., 2:])], axis=2)
XYXY = np.concatenate([XYWH[..., :2] - XYWH[..., 2:] / 2, XYWH[..., :2] + XYWH[..., 2:] / 2], axis=2)
POINTS = np.concatenate([MIDDLE + RNG.normal(0, 5, (SAMPLES, ANCHORS, 2)), RNG.normal(0, 1, (SAMPLES, ANCHORS, 7))], 2)
NOTHING = np.concatenate([np.zeros_like(ONE), LOGITS], axis=2)
BINS = RNG.standard_normal((SAMPLES, 32, SIDE, SIDE))


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def softmax(v):
    e = np.exp(v - v.max(axis=2, keepdims=True))
    return e / e.sum(axis=2, keepdims=True)


def joint(axis, **parts):
    """(graph, shapes, outputs) of one output that a Concat makes."""
    y = np.concatenate(list(parts.values()), axis=axis)
    made = "".join(f"{name} = Relu(x) " for name in parts)
    sizes = ",".join(map(str, ("N", *y.shape[1:])))
    text = f"(float[N,3,64,64] x) => (float[{sizes}] y) {{ {made} y = Concat<axis={axis}>({', '.join(parts)}) }}"
    shapes = {k: v.shape for k, v in {**parts, "y": y}.items()} | {"x": (1, 3, 64, 64)}
    return Graph(surgery.model_of(text)), shapes, {"y": y}


def apart(**outputs):
    return Graph(surgery.model_of(PLAIN)), {"x": (1, 3, 64, 64)}, outputs


def turned(v):
    return v.transpose(0, 2, 1)


def maps(v):
    return turned(v).reshape(SAMPLES, -1, SIDE, SIDE)


FORMS = {
    "YOLOv8": (lambda: joint(1, b=turned(XYWH), s=turned(sigmoid(LOGITS))),
               "y[:, 0:4] boxes (xywh); y[:, 4:9] box scores"),
    "before a sigmoid": (lambda: joint(1, b=turned(XYWH), s=turned(LOGITS)),
                         "y[:, 0:4] boxes (xywh); y[:, 4:9] box scores"),
    "points": (lambda: joint(1, b=turned(XYWH), s=turned(sigmoid(ONE)), p=turned(POINTS)),
               "y[:, 0:4] boxes (xywh); y[:, 4:5] box scores; y[:, 5:14] box values"),
    "points, turned": (lambda: joint(2, b=XYWH, s=sigmoid(ONE), p=POINTS),
                       "y[:, :, 0:4] boxes (xywh); y[:, :, 4:5] box scores; y[:, :, 5:14] box values"),
    "an angle": (lambda: joint(1, b=turned(XYWH), s=turned(sigmoid(LOGITS)), a=turned(POINTS[..., 3:4])),
                 "y[:, 0:4] boxes (xywh); y[:, 4:9] box scores; y[:, 9:10] box values"),
    "SSD": (lambda: apart(boxes=10 * MOVED, scores=softmax(NOTHING)),
            "boxes boxes (scaled offsets); scores class scores"),
    "SSD before softmax": (lambda: apart(boxes=10 * MOVED, scores=NOTHING),
                           "boxes boxes (scaled offsets); scores class scores"),
    "RetinaNet": (lambda: apart(scores=sigmoid(LOGITS), boxes=MOVED), "scores box scores; boxes boxes (offsets)"),
    "RetinaFace": (lambda: apart(loc=10 * MOVED, conf=softmax(NOTHING[..., :2]), landms=POINTS),
                   "loc boxes (scaled offsets); conf class scores; landms box values"),
    "DETR": (lambda: apart(logits=np.roll(NOTHING, -1, axis=2), boxes=XYWH / 64),
             "logits class scores; boxes boxes (xywh)"),
    "RT-DETR": (lambda: apart(logits=LOGITS, boxes=XYXY / 64), "logits box scores; boxes boxes (xyxy)"),
    "heads": (lambda: joint(1, b=BINS, s=maps(LOGITS)), "y[:, 0:32] boxes (places); y[:, 32:37] box scores"),
    "heads apart": (lambda: apart(s=maps(LOGITS), b=BINS), "s box scores; b boxes (places)"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_what_a_detector_puts_out(form):
    make, wanted = FORMS[form]
    graph, shapes, outputs = make()
    parts = parts_of(graph, shapes, outputs, samples=SAMPLES)
    assert "; ".join(f"{p.name} {p.says}" for p in parts) == wanted


def spoiled(outputs, parts, where):
    """The outputs with all that is no score moved at some anchors."""
    found = {name: value.copy() for name, value in outputs.items()}
    for part in parts:
        if part.beside is not None:
            value = np.moveaxis(part.of(found[part.output]), part.axis, -1)
            at = np.broadcast_to(where.reshape(*value.shape[:-1], 1), value.shape)
            value[at] += 3 * RNG.standard_normal(int(at.sum())) * value.std()
    return found


@pytest.mark.parametrize("form", FORMS)
def test_only_where_something_is_found_does_the_rest_count(form):
    graph, shapes, was = FORMS[form][0]()
    parts = parts_of(graph, shapes, was, samples=SAMPLES)

    def hurt(now):
        each = [[p for p in parts if p.output == name] for name in was]
        tallies = [Tally(p) for p in parts]
        for tally in tallies:
            tally.compare(was, now, SAMPLES)
        figures = {k: v for t in tallies for k, v in t.fidelity().figures.items()}
        return damage(list(was.values()), list(now.values()), each), figures

    same, nowhere, there = (hurt(spoiled(was, parts, where)) for where in (THERE & False, ~THERE, THERE))
    assert same[0] == 0 and same[1]["box_f1"] == 1
    assert 3 * nowhere[0] < there[0] and nowhere[1]["box_f1"] == 1
    if "places" not in FORMS[form][1]:
        assert there[1]["box_f1"] < 0.6
    if "values" in FORMS[form][1]:
        assert same[1]["box_r2"] == 1 and nowhere[1]["box_r2"] > 0.9 > 0 > there[1]["box_r2"]


def test_scores_before_a_sigmoid_or_softmax_count_as_what_they_become():
    for form in ("before a sigmoid", "SSD before softmax", "RT-DETR"):
        graph, shapes, was = FORMS[form][0]()
        parts = parts_of(graph, shapes, was, samples=SAMPLES)
        (scores,) = [p for p in parts if p.beside is None]
        at = np.moveaxis(scores.of(was[scores.output]), scores.axis, -1) < -4
        lower, gone = ({k: v.copy() for k, v in was.items()} for _ in range(2))
        np.moveaxis(scores.of(lower[scores.output]), scores.axis, -1)[at] -= 2  # what is nothing is less so
        np.moveaxis(scores.of(gone[scores.output]), scores.axis, -1)[~at] -= 4
        found = [damage(list(was.values()), list(v.values()), [[p for p in parts if p.output == k] for k in was])
                 for v in (lower, gone)]  # fmt: skip
        assert 0 < 3 * found[0] < found[1]


def test_boxes_of_unknown_anchors_are_measured_by_no_labels():
    graph, shapes, outputs = FORMS["RetinaNet"][0]()
    box = next(p for p in parts_of(graph, shapes, outputs, samples=SAMPLES) if p.beside is not None)
    entry = next(e for e in TABLE if e.name == "boxes")
    with pytest.raises(ValueError, match="its boxes are offsets, and nobody knows of which anchors"):
        entry.judge(np.zeros((0, 6)), {"samples": np.array(SAMPLES)}, box, outputs)


PICKS = """(float[N,60,6] x) => (int64[M,3] picked) <float[6,4] wb, float[6,5] ws, int64[1] most = {20},
    float[1] overlap = {0.5}, float[1] least = {0.9}> { h = MatMul(x, wb) b = Exp(h) g = MatMul(x, ws) s = Sigmoid(g)
    t = Transpose<perm=[0, 2, 1]>(s) picked = NonMaxSuppression(b, t, most, overlap, least) }"""
BEHIND = PICKS.replace("int64[M,3] picked", "float[M,2] y").replace(
    "float[6,5] ws", "float[6,5] ws, float[3,2] v"
).replace("most, overlap, least) }", "most, overlap, least) f = Cast<to=1>(picked) y = MatMul(f, v) }")  # fmt: skip


@pytest.mark.parametrize("text", [PICKS, BEHIND])
def test_damage_is_that_to_what_is_picked_from(text):
    """Unless layers stand behind: of these it would know nothing."""
    model = surgery.model_of(text)
    x = {"x": RNG.standard_normal((4, 60, 6)).astype(np.float32)}
    net = open_model(model, calibration=x).net
    compared = Damage(net, lambda names: outputs_of(model, names, [x], 1))
    name = model.graph.output[0].name
    assert compared.names == [name, "b", "t"]
    assert [len(parts) for parts in compared.parts] == [int(text is BEHIND), 1, 1]
    values = compared.wanted[0]
    nearly = [[values[0], values[1], values[2] * 0.99]]
    assert 0 < compared.of(nearly) < 0.01 < compared.of([[values[0], values[1], values[2] * 0.5]])
    gone = compared.of([[values[0], values[1], np.asarray(None)]])
    assert gone == 0, "a tensor that an edit took away is not compared"


def test_a_batch_in_which_nothing_is_found_counts_little():
    _, _, was = FORMS["YOLOv8"][0]()
    graph, shapes, _ = FORMS["YOLOv8"][0]()
    empty = was["y"].copy()
    empty[:, 4:] = sigmoid(RNG.uniform(-9, -5, empty[:, 4:].shape))
    net = SimpleNamespace(graph=graph, shapes=shapes, said=NOTHING_SAID)
    compared = Damage(net, lambda names: [[was["y"]], [empty]])
    other = empty * 1.5
    first, second = compared.each([[was["y"]], [other]])
    assert first == 0 and 0 < 5 * second < damage([empty], [other], compared.parts)


ROWS = np.concatenate([XYXY[:, :20], sigmoid(ONE[:, :20])], axis=2)
KINDS_OF = RNG.integers(0, 5, (SAMPLES, 20))


@pytest.mark.parametrize("whole", [np.int64, np.float32])
@pytest.mark.parametrize("single", [False, True])
def test_boxes_scores_and_classes_in_three_outputs(whole, single):
    was = {"classes": KINDS_OF.astype(whole), "boxes": ROWS[..., :4], "scores": RNG.uniform(0.3, 0.9, (SAMPLES, 20))}
    was = {k: v[0] for k, v in was.items()} if single else was
    graph, samples = Graph(surgery.model_of(PLAIN)), 1 if single else SAMPLES
    (part,) = parts_of(graph, {}, was, samples=samples)
    assert (part.name, part.kind, part.others) == ("boxes", DETECTIONS, ("scores", "classes"))
    parts = [[part] if name == "boxes" else [] for name in was]

    def compared(now):
        tally = Tally(part)
        tally.compare(was, now, samples)
        hurt = damage(list(was.values()), list(now.values()), parts, names=list(was))
        return hurt, tally.fidelity().figures["box_f1"]

    turned = {k: np.flip(v, axis=int(not single)) for k, v in was.items()}
    half = {k: v[..., ::2, :] if k == "boxes" else v[..., ::2] for k, v in was.items()}
    other = {**was, "classes": was["classes"] + 1}
    assert compared(turned) == pytest.approx((0, 1)) and compared(half) == pytest.approx((1 / 3, 2 / 3))
    assert compared(other)[0] > 0.8 and compared(other)[1] < 0.1


def test_a_first_sample_in_which_nothing_is_found_tells_nothing():
    """Boxes by a threshold: `Compress` puts out as many rows as there are."""
    model = surgery.model_of(
        """(float[1,K,6] x) => (float[1,M,6] y) <int64[2] flat = {-1, 6}, int64[3] row = {1, -1, 6},
        int64[1] four = {4}, int64[1] five = {5}, int64[1] last = {2}, float some = {0.25}>
        { s = Slice(x, four, five, last) f = Flatten<axis=0>(s) q = Squeeze(f) c = Greater(q, some)
          r = Reshape(x, flat) k = Compress<axis=0>(r, c) y = Reshape(k, row) }"""
    )
    rows = np.concatenate([ROWS[:, :20, :4], RNG.uniform(0.3, 0.9, (SAMPLES, 20, 1)), KINDS_OF[..., None]], axis=2)
    rows[0, :, 4] = 0.1
    feeds = [{"x": v[None].astype(np.float32)} for v in rows]
    found = check_fidelity(Graph(model), model, feeds)
    assert [p.kind for p in found.parts] == [DETECTIONS] and found.parts[0].figures["box_f1"] == 1
