"""Metrics with labels: what `--eval labelled.npz` measures."""

import numpy as np
import pytest

from onnxprune.errors import PruneError
from onnxprune.graph.said import Meaning, Said
from onnxprune.measure.figures import DROPS
from onnxprune.measure.kinds.table import KINDS
from onnxprune.measure.labelled import TABLE, keys
from onnxprune.measure.metric import open_metric
from onnxprune.runtime.ports import input_specs
from onnxprune.samples.reading import LABELS
from tests.channels import surgery

RNG = np.random.default_rng(0)
SAME = {
    "classes": "(float[N,12] x) => (float[N,12] z) { z = Identity(x) }",
    "labels": "(float[N,3] x) => (float[N,3] z) { z = Sigmoid(x) }",
    "map": "(float[N,4,16,16] x) => (float[N,4,16,16] z) { z = Softmax<axis=1>(x) }",
    "mask": "(float[N,1,16,16] x) => (float[N,1,16,16] z) { z = Sigmoid(x) }",
    "boxes": "(float[N,7,20] x) => (float[N,7,20] z) { z = Identity(x) }",
    "rows": "(float[N,5,6] x) => (float[N,5,6] z) { z = Identity(x) }",
    "text": "(float[N,8,10] x) => (float[N,8,10] z) { z = Softmax<axis=2>(x) }",
}
"""Networks that say what they see: the labels may be chosen."""


def measured(folder, model, of="", said=None, **arrays):
    model = surgery.model_of(SAME.get(model, model))
    np.savez(folder / "labelled.npz", **arrays)
    shapes = {"x": arrays["x"].shape}
    how = {} if said is None else {"said": Said({"z": said})}
    metric = open_metric(f"{folder / 'labelled.npz'}{of and ':' + of}", input_specs(model), shapes=shapes, **how)
    return metric(model), metric.found


def test_every_kind_of_labels_fits_the_other_tables():
    assert set(keys()) <= LABELS, "what stands beside inputs is none of them"
    for entry in TABLE:
        assert set(entry.figures) <= set(DROPS) and set(entry.kinds) <= set(KINDS)


def test_classes(tmp_path):
    x = RNG.standard_normal((20, 12)).astype(np.float32)
    order = np.argsort(-x, axis=1)
    labels = np.r_[order[:10, 0], order[10:15, 4], order[15:, 5]]
    found = [measured(tmp_path, "classes", of, x=x, labels=labels) for of in ("", "top1", "top5")]
    assert [value for value, _ in found] == [50, 50, 75]
    assert found[0][1] == "labels: classes of output 'z', 20 samples: top-1"


def test_labels_that_are_set_or_not(tmp_path):
    x = RNG.choice([-3, 3], (10, 3)).astype(np.float32)
    truth = (x > 0).astype(int)
    assert measured(tmp_path, "labels", x=x, labels=truth)[0] == 100
    truth[0] = 1 - truth[0]
    value, found = measured(tmp_path, "labels", "labels", x=x, labels=truth)
    assert value == 90 and found == "labels: labels of output 'z', 10 samples: labels"


def scene():
    """(2, 16, 16) classes of pixels in quarters, and scores that say so."""
    truth = np.zeros((2, 16, 16), int)
    truth[:, :8, 8:], truth[:, 8:, :8], truth[:, 8:, 8:] = 1, 2, 3
    return truth, 9 * np.eye(4, dtype=np.float32)[truth].transpose(0, 3, 1, 2)


def test_masks(tmp_path):
    truth, x = scene()
    assert measured(tmp_path, "map", x=x, masks=truth) == (
        100, "labels: masks of output 'z', 2 samples: mean IoU"
    )  # fmt: skip
    other = truth.copy()
    other[0, :8, 8:] = 0  # a class is right in one of two samples, what is there for another is 1.5 times as much
    assert measured(tmp_path, "map", x=x, labels=other)[0] == pytest.approx(100 * (1 / 1.5 + 0.5 + 1 + 1) / 4)
    assert measured(tmp_path, "map", "pixels", x=x, mask=other[:, None])[0] == 87.5
    other[0, :8, 8:] = 255  # nobody knows
    assert measured(tmp_path, "map", x=x, masks=other.astype(np.uint8))[0] == 100
    sure = np.where(truth[:, None] == 3, 9, -9).astype(np.float32)
    assert measured(tmp_path, "mask", x=sure, masks=truth == 3)[0] == 100


BOXES = np.array([[10, 10, 30, 30, 0], [40, 10, 60, 30, 2], [10, 40, 30, 70, 1]], float)


def seen():
    """(4, 7, 20) boxes by middle and size above three scores, of which three score high."""
    x = np.zeros((4, 7, 20), np.float32)
    x[:, :2], x[:, 2:4] = RNG.uniform(10, 70, (4, 2, 20)), RNG.uniform(10, 20, (4, 2, 20))
    x[:, 4:] = RNG.uniform(0, 0.04, (4, 3, 20))
    for k, (x0, y0, x1, y1, c) in enumerate(BOXES):
        x[:, :4, k] = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
        x[:, 4 + int(c), k] = 0.9 - 0.1 * k
    return x


def test_boxes(tmp_path):
    x, flat = seen(), np.concatenate([np.column_stack([np.full(3, n), BOXES]) for n in range(4)])
    value, found = measured(tmp_path, "boxes", x=x, boxes=flat)
    assert value == pytest.approx(100) and found == "labels: boxes of output 'z[:, 0:4]', 4 samples: mAP"
    sized = flat.copy()
    sized[:, 3:5] -= sized[:, 1:3]
    assert measured(tmp_path, "boxes", x=x, boxes=sized, box_form="xywh")[0] == pytest.approx(100)
    filled = np.concatenate([np.tile(BOXES, (4, 1, 1)), np.full((4, 2, 5), -1)], axis=1)
    assert measured(tmp_path, "boxes", x=x, boxes=filled)[0] == pytest.approx(100)
    moved = flat.copy()
    moved[0::3, 1:5] += 100  # of one of three classes nothing is found
    assert measured(tmp_path, "boxes", "box_map50", x=x, boxes=moved)[0] == pytest.approx(200 / 3)
    assert measured(tmp_path, "boxes", "box_f1", x=x, boxes=moved)[0] == pytest.approx(200 / 3)


def test_boxes_behind_suppression(tmp_path):
    rows = np.zeros((4, 5, 6), np.float32)
    rows[:, :3, :4], rows[:, :3, 4], rows[:, :3, 5] = BOXES[:, :4], [0.9, 0.8, 0.7], BOXES[:, 4]
    value, found = measured(tmp_path, "rows", x=rows, boxes=np.tile(BOXES, (4, 1, 1)))
    assert value == pytest.approx(100) and found.startswith("labels: boxes of output 'z', 4 samples")


@pytest.mark.parametrize("characters", [list("abcdefghi"), "abcdefghi", ["", *"abcdefghi"], list("abcdefgh")])
def test_texts(tmp_path, characters):
    steps = np.zeros((3, 8), int)
    steps[0, [1, 2, 4]] = 1, 2, 2  # ab and b, a blank between
    steps[1, [1, 2]] = 3
    steps[2, 4:6] = 4, 5
    x = 9 * np.eye(10, dtype=np.float32)[steps]
    text = Meaning("text")
    given = {"x": x, "characters": np.array(characters), "said": text}
    value, found = measured(tmp_path, "text", texts=np.array(["abb", "c", "de"]), **given)
    assert value == 100 and found == "labels: texts of output 'z', 3 samples: words"
    assert measured(tmp_path, "text", texts=np.array(["abb", "cc", "de"]), **given)[0] == pytest.approx(200 / 3)
    value, _ = measured(tmp_path, "text", "characters", texts=np.array(["abb", "cc", "de"]), **given)
    assert value == pytest.approx(100 * (1 - 1 / 7))


X, MAP = RNG.standard_normal((3, 12)).astype(np.float32), scene()[1]


@pytest.mark.parametrize(
    "model, of, arrays, words",
    [
        ("classes", "miou", {"x": X, "labels": np.arange(3)}, "labels are classes, which have no miou; choose from top1"),
        ("classes", "", {"x": X, "labels": np.ones((3, 2))}, "no whole numbers under labels: float64 of shape"),
        ("classes", "", {"x": X, "boxes": np.ones((3, 4))}, "boxes does not fit 3 samples: float64 of shape"),
        ("classes", "", {"x": X, "boxes": np.ones((3, 6))}, "labels are boxes, and no output is boxes or detections"),
        ("classes", "", {"x": X, "texts": np.array(["a"] * 3)}, "no output is text (z is class scores); say what"),
        ("classes", "", {"x": X, "masks": np.ones((3, 4, 4), int)}, "no output is class map or mask or integers"),
        ("map", "", {"x": MAP, "masks": np.ones((2, 8, 8), int)}, r"labels have [8, 8] a sample, the output [16, 16]"),
        ("boxes", "", {"x": seen(), "boxes": np.full((2, 6), 7)}, "the first number of a row is its sample, 0 to 3"),
        ("boxes", "", {"x": seen(), "boxes": np.ones((2, 6)), "box_form": "cxcywh"}, "neither xyxy nor xywh"),
        ("text", "", {"x": RNG.standard_normal((3, 8, 10)).astype(np.float32), "texts": np.array(["a"] * 3)},
         "give them under characters"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit(tmp_path, model, of, arrays, words):
    said = Meaning("text") if model == "text" else None
    with pytest.raises(PruneError) as error:
        measured(tmp_path, model, of, said, **arrays)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert error.value.exit_code in (2, 4)
