"""Blends of images: what they are made of, and where there are none."""

import numpy as np
import pytest

from onnxprune import api
from onnxprune.measure.views import FEWEST, Views
from tests.channels import surgery

CLASSES = """(float[N,3,12,10] x) => (float[N,5] y) <float[4,3,3,3] w, float[5,4] v>
    { h = Conv(x, w) r = Relu(h) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, v) }"""
LAST = CLASSES.replace("[N,3,12,10] x", "[N,12,10,3] x").replace(
    "{ h = Conv(x", "{ t = Transpose<perm=[0,3,1,2]>(x) h = Conv(t"
)
MAP = (
    CLASSES.replace("float[N,5] y", "float[N,4,10,8] y").replace("r = Relu(h)", "y = Relu(h)").split("p = Global")[0]
    + "}"
)
VECTOR = CLASSES.replace("[N,3,12,10] x", "[N,3,4,4] x")


def images(shape=(3, 12, 10), count=FEWEST, dtype=np.float32):
    return np.random.default_rng(0).standard_normal((count, *shape)).astype(dtype)


def views_of(text, x, afford=lambda images: 2):
    net = api.open_model(surgery.model_of(text)).net
    from onnxprune.runtime.sessions import open_session

    session = open_session(net.model)
    half = len(x) // 2
    return Views.of(net, [{"x": x[:half]}, {"x": x[half:]}], lambda feeds: session.run(dict(feeds)), afford)


@pytest.mark.parametrize(("text", "shape", "axes"), [(CLASSES, (3, 12, 10), (2, 3)), (LAST, (12, 10, 3), (1, 2))])
def test_a_blend_is_a_rectangle_of_one_image_in_another(text, shape, axes):
    x = images(shape)
    views = views_of(text, x)
    assert views.count == 2 and views.axes == axes
    ((plain, first, second),) = views.batches([{"x": x[:8]}])
    assert plain["x"] is not first["x"] and np.array_equal(plain["x"], x[:8])
    assert not np.array_equal(first["x"], second["x"])
    for image, own in zip(first["x"], x[:8], strict=True):
        colours = next(a for a in (1, 2, 3) if a not in axes) - 1
        other = (image != own).any(axis=colours)
        rows, columns = other.any(axis=1), other.any(axis=0)
        assert np.array_equal(other, np.outer(rows, columns))  # all of the rectangle that its sides span
        for marks in (rows, columns):
            at = np.flatnonzero(marks)
            assert not len(at) or at[-1] - at[0] + 1 == len(at)
        where = np.moveaxis(other[..., None] & np.ones(3, bool), -1, colours)
        assert all(value in x for value in image[where])


@pytest.mark.parametrize("batches", [[], [{}], [{"x": images(), "z": images()}]])
def test_no_images_no_views(batches):
    net = api.open_model(surgery.model_of(CLASSES)).net
    assert not Views.of(net, batches, pytest.fail, lambda images: 2)


def test_the_same_again_and_others_for_another_batch():
    views, x = views_of(CLASSES, images()), images()[:8]
    one, two = views.batches([{"x": x}, {"x": x}])
    again, _ = views.batches([{"x": x}, {"x": x}])
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(one, again, strict=True))
    assert not np.array_equal(one[1]["x"], two[1]["x"])


@pytest.mark.parametrize(
    ("text", "x", "afford"),
    [
        (CLASSES, images(count=FEWEST - 2), 2),
        (CLASSES, images(), 0),
        (CLASSES, images(), -1),
        (MAP, images(), 2),
        (VECTOR, images((3, 4, 4)), 2),
    ],
    ids=["few", "dear", "dearer", "a map", "small"],
)
def test_where_there_are_none(text, x, afford):
    views = views_of(text, x, lambda images: afford)
    assert not views and views.batches([{"x": x}]) == [[{"x": x}]]
