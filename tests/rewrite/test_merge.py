"""Merges as a plan asks for them: what a channel contributed is handed on, whatever reads it; nothing else moves."""

import numpy as np
import pytest

from onnxprune import api
from onnxprune.errors import BudgetError, UsageError
from onnxprune.plan import KeepChannels, MergeColumns, PrunePlan
from tests.channels import surgery

MAPS = "(float[N,3,4,4] x) => (float[] y) <float[5,3,1,1] w, float[5] b, {}> {{ h = Conv(x, w, b) r = Relu(h) {} }}"
ROWS = (
    "(float[N,3] x) => (float[] y) <float[3,5] w, float[5] b, {}> {{ m = MatMul(x, w) h = Add(m, b) r = Relu(h) {} }}"
)
READERS = {  # name: (what makes the channels, weights, body, layer that reads them, its axis of inputs, other cuts)
    "conv": (MAPS, "float[6,5,1,1] v", "y = Conv(r, v)", "y", 1, ()),
    "conv with bias": (MAPS, "float[6,5,3,3] v, float[6] c", "y = Conv(r, v, c)", "y", 1, ()),
    "conv, a constant added behind": (MAPS, "float[6,5,3,3] v, float[1,6,1,1] c", "z = Conv(r, v) y = Add(z, c)", "z", 1, ()),
    "conv that loses outputs": (
        MAPS, "float[6,5,3,3] v, float[6] c, float[2,6,1,1] u", "z = Conv(r, v, c) y = Conv(z, u)", "z", 1, ("z",)
    ),
    "conv without bias that loses outputs": (
        MAPS, "float[6,5,3,3] v, float[2,6,1,1] u", "z = Conv(r, v) y = Conv(z, u)", "z", 1, ("z",)
    ),
    "gemm": (ROWS, "float[5,6] v, float[6] c", "y = Gemm(r, v, c)", "y", 0, ()),
    "gemm turned, without bias": (ROWS, "float[6,5] v", "y = Gemm<transB=1>(r, v)", "y", 1, ()),
    "gemm with one number for a bias": (ROWS, "float[6,5] v, float[1] c", "y = Gemm<transB=1>(r, v, c)", "y", 1, ()),
    "gemm that loses outputs": (
        ROWS, "float[5,6] v, float[1,6] c, float[6,2] u", "z = Gemm(r, v, c) y = MatMul(z, u)", "z", 0, ("z",)
    ),
    "matmul": (ROWS, "float[5,6] v, float[6] c", "z = MatMul(r, v) y = Add(z, c)", "z", 0, ()),
    "matmul, the constant first": (ROWS, "float[5,6] v, float[1,6] c", "z = MatMul(r, v) y = Add(c, z)", "z", 0, ()),
}  # fmt: skip
LEFT = (0, 1, 4)


def planted(row):
    """(the row's model, the same opened): channel 3 is twice channel 0 and channel 2 is 0.5 all over."""
    head, weights, body, *_ = row
    model = surgery.model_of(head.format(weights, body))
    for t in model.graph.initializer:
        if t.name in "wb":
            value = np.frombuffer(t.raw_data, np.float32).reshape(tuple(t.dims)).copy()
            by_channel = value if value.shape[0] == 5 else value.T
            by_channel[3], by_channel[2] = 2 * by_channel[0], 0.5 if t.name == "b" else 0
            t.raw_data = value.tobytes()
    return model, api.open_model(model)


def plan(subject, row, *, source=(2, 3), target=(-1, 0), factor=(9.0, 2.0), constant=(0.5, 0.0), axis=None, node=None):
    *_, reader, own, others = row
    cuts = [KeepChannels("w", 5, LEFT)]
    for layer in others:
        group = next(g for g in subject.channels.groups if any(s.use[0] == layer for s in g.weights))
        cuts.append(KeepChannels(group.name, group.width, (0, 2, 3, 5)))
    # what has no target has no use for a factor
    merge = MergeColumns(node or reader, 1, own if axis is None else axis, source, target, factor, constant)
    return PrunePlan(subject.digest, (*cuts, merge), lossless=True)


def with_free_outputs(model):
    """The same where outputs that are cut are never read: then cutting them changes nothing either."""
    for t in model.graph.initializer:
        if t.name == "u":
            value = np.frombuffer(t.raw_data, np.float32).reshape(tuple(t.dims)).copy()
            inputs = np.moveaxis(value, 1 if value.shape[1] == 6 else 0, 0)
            inputs[[1, 4]] = 0
            t.raw_data = value.tobytes()
    return model


@pytest.mark.parametrize("name", READERS)
def test_what_takes_over_says_the_same(name):
    row = READERS[name]
    model, _ = planted(row)
    subject = api.open_model(with_free_outputs(model))
    result = api.apply_plan(subject, plan(subject, row))
    feeds = surgery.feeds_of(model, N=3)
    (wanted,), (got,) = surgery.run(model, feeds), surgery.run(result.model, feeds)
    assert surgery.distance(wanted, got) < 1e-5 and result.surgery.exact and result.repair == "none"
    assert result.after.params < result.before.params
    for wrong in ({"factor": (9.0, 1.0)}, {"constant": (0.0, 0.0)}, {"target": (-1, 1)}, {"source": (2, 4)}):
        with pytest.raises(BudgetError):
            api.apply_plan(subject, plan(subject, row, **wrong))


def test_several_inputs_hand_on_to_one_and_places_count_one_by_one():
    """Behind a flatten, every channel has an input for each of its four places."""
    text = """(float[N,3,2,2] x) => (float[] y) <float[3,3,1,1] w, float[3] b, float[6,12] v>
        { h = Conv(x, w, b) f = Flatten(h) y = Gemm<transB=1>(f, v) }"""
    model = surgery.model_of(text)
    for t in model.graph.initializer:
        if t.name in "wb":
            value = np.frombuffer(t.raw_data, np.float32).reshape(tuple(t.dims)).copy()
            value[1], value[2] = -value[0], 3 * value[0]
            t.raw_data = value.tobytes()
    subject = api.open_model(model)
    merge = MergeColumns("y", 1, 1, tuple(range(4, 12)), tuple(range(4)) * 2, (-1.0,) * 4 + (3.0,) * 4, (0.0,) * 8)
    found = api.apply_plan(subject, PrunePlan(subject.digest, (KeepChannels("w", 3, (0,)), merge), lossless=True))
    feeds = surgery.feeds_of(model, N=3)
    assert surgery.distance(surgery.run(model, feeds)[0], surgery.run(found.model, feeds)[0]) < 1e-5


BAD = [
    {"node": "nowhere"},
    {"node": "r"},
    {"axis": 3},
    {"source": (2, 5)},
    {"target": (-1, 5)},
]


@pytest.mark.parametrize("wrong", BAD, ids=str)
def test_a_merge_that_does_not_fit_is_refused(wrong):
    _, subject = planted(READERS["conv"])
    with pytest.raises(UsageError, match="does not fit the model"):
        api.apply_plan(subject, plan(subject, READERS["conv"], **wrong))


def test_a_constant_needs_a_bias_to_go_to():
    bare = (ROWS, "float[5,6] v", "y = MatMul(r, v)", "y", 0, ())
    _, subject = planted(bare)
    with pytest.raises(UsageError, match="needs a constant"):
        api.apply_plan(subject, plan(subject, bare))
