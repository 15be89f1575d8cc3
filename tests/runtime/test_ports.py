"""What a model wants to be fed, and made-up data that fits."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxprune.errors import UnsupportedError, UsageError
from onnxprune.runtime import ports
from onnxprune.runtime.ports import InputSpec
from tests.runtime.models import net


def port(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def specs_of(*ports_):
    graph = helper.make_graph([], "g", ports_, [])
    return ports.input_specs(helper.make_model(graph))


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        (["N", 3, 224, 224], ("N", 3, 224, 224)),
        ([-1, 3, 48, "?"], (None, 3, 48, None)),
        ([0, None, "", 1], (None, None, None, 1)),
        ([], ()),
        (None, (None, None, None, None)),
    ],
)
def test_shapes_of_inputs(shape, seen):
    assert specs_of(port("x", TensorProto.FLOAT16, shape)) == (InputSpec("x", np.dtype(np.float16), seen),)


def test_weights_listed_as_inputs_are_none():
    model = net()
    model.graph.input.append(port("w", TensorProto.FLOAT, [3, 3, 1, 1]))
    assert [spec.name for spec in ports.input_specs(model)] == ["x"]


def test_an_input_that_is_no_tensor():
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    with pytest.raises(UnsupportedError, match="'s' is a sequence_type"):
        specs_of(sequence)


F, I64, BOOL = np.dtype(np.float32), np.dtype(np.int64), np.dtype(bool)


@pytest.mark.parametrize(
    ("shape", "options", "fed"),
    [
        (("N", 3, 8, 9), {}, (1, 3, 8, 9)),
        (("N", 3, None, None), {"batch": 2, "size": 64}, (2, 3, 64, 64)),
        ((None, None, None, None), {}, (1, 3, 224, 224)),
        ((None, None, None, 3), {"size": 32}, (1, 32, 32, 3)),
        ((None, None, None, 32, 32), {}, (1, 3, 16, 32, 32)),
        ((None, None, 80), {"size": 10}, (1, 10, 80)),
        (("N", "T"), {"size": 7}, (1, 7)),
        (("N",), {"batch": 5}, (5,)),
        ((), {}, ()),
        (("N", 3, "H", "W"), {"shapes": {"x": [4, 3, 5, 6]}}, (4, 3, 5, 6)),
    ],
)
def test_default_feed(shape, options, fed):
    array = ports.default_feed([InputSpec("x", F, shape)], **options)["x"]
    assert (array.shape, array.dtype) == (fed, F)


def test_kinds_of_data_and_shared_lengths():
    specs = [
        InputSpec("f", np.dtype(np.float16), ("N", "T")),
        InputSpec("i", I64, ("T", "N")),
        InputSpec("b", BOOL, (2,)),
    ]
    feed = ports.default_feed(specs, batch=2, size=5)
    assert feed["f"].shape == (2, 5) and feed["f"].dtype == np.float16 and feed["f"].std() > 0.3
    assert feed["i"].shape == (5, 2) and not feed["i"].any() and feed["b"].all()
    again = ports.default_feed(specs, batch=2, size=5)
    np.testing.assert_array_equal(feed["f"], again["f"])
    other = ports.default_feed(specs, shapes={"i": [9, 3]})
    assert other["f"].shape == (3, 9)


@pytest.mark.parametrize("shapes", [{"z": [1]}, {"x": [1, 3]}, {"x": [1, 4, 8, 8]}, {"x": [0, 3, 8, 8]}])
def test_shapes_that_do_not_fit(shapes):
    with pytest.raises(UsageError):
        ports.default_feed([InputSpec("x", F, ("N", 3, 8, 8))], shapes=shapes)


HINTS = [
    ([("x", ("N", 1, "H", "W"))], "--input-shape x=1,1,H,W"),
    ([("x", (None, 3, None, None))], "--input-shape x=1,3,H,W"),
    ([("x", (None,) * 4)], "--input-shape x=1,C,H,W"),
    ([("x", (4, 3, "h", 64))], "--input-shape x=4,3,h,64"),
    ([("x", ("N", "rows", "cols", 3))], "--input-shape x=1,rows,cols,3"),
    ([("x", ("N", None, None, 3))], "--input-shape x=1,H,W,3"),
    ([("audio", ("N", 1, "T"))], "--input-shape audio=1,1,T"),
    ([("x", ("N", None, None))], "--input-shape x=1,C,L"),
    ([("ids", ("batch", "sequence_length"))], "--input-shape ids=1,sequence_length"),
    ([("x", ("N", "2*floor(H/2)"))], "--input-shape x=1,L"),
    ([("x", ("N", 3, "T", "H", "W"))], "--input-shape x=1,3,T,H,W"),
    ([("x", ("N", None, None, None, None))], "--input-shape x=1,C,D,H,W"),
    ([("signal", ("samples",))], "--input-shape signal=samples"),
    ([("x", (None, None, 2, None, None, None))], "--input-shape x=1,D1,2,D3,D4,D5"),
    ([("z", ("N", 3, "h", "w")), ("mask", ("N", 7)), ("t", ("N", "L"))],
     "--input-shape z=1,3,h,w --input-shape t=1,L"),
    ([("x", ("N", 3, 224, 224))], ""),
]  # fmt: skip


@pytest.mark.parametrize(("inputs", "hint"), HINTS, ids=lambda v: v if isinstance(v, str) else "")
def test_a_hint_names_what_is_open_and_fills_in_what_is_known(inputs, hint):
    specs = [ports.InputSpec(name, np.dtype("float32"), shape) for name, shape in inputs]
    assert ports.shape_hint(specs) == hint
