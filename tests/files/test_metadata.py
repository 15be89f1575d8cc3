"""What a pruned file says of itself, and what is left of it when the file is pruned again."""

import json

import onnx
import pytest
from onnx import helper

from onnxprune.files.metadata import HISTORY, LENGTH, PASSES, earlier, stamp


def model(**props):
    made = helper.make_model(helper.make_graph([], "g", [], []))
    helper.set_model_props(made, {k.replace("_", "."): v for k, v in props.items()})
    return made


def props(made):
    return {p.key: p.value for p in made.metadata_props}


def test_other_entries_stay_in_their_order():
    made = model(b="2", a="1", onnxprunes="not ours")
    stamp(made, {"version": "3"})
    assert list(props(made).items()) == [("b", "2"), ("a", "1"), ("onnxprunes", "not ours"), ("onnxprune.version", "3")]
    stamp(made, {})
    assert props(made) == {"b": "2", "a": "1", "onnxprunes": "not ours"}


def test_each_pass_is_remembered_oldest_first():
    made = model(author="me")
    for k in range(3):
        assert earlier(made) == [{"asked": str(j)} for j in range(k)]
        stamp(made, {"asked": str(k)})
    assert props(made)["onnxprune.asked"] == "2" and props(made)["author"] == "me"
    assert json.loads(props(made)[HISTORY]) == [{"asked": "0"}, {"asked": "1"}]


def test_memory_ends():
    made = model()
    for k in range(PASSES + 5):
        stamp(made, {"asked": str(k)})
    found = earlier(made)
    assert len(found) == PASSES and found[-1] == {"asked": str(PASSES + 4)}


@pytest.mark.parametrize("history", ["", "{", "3", "[3]", "[[]]", '{"a": "b"}', "[" * 100_000, '[{"a": 3}]'])
def test_a_history_that_is_none_is_left_out(history):
    assert earlier(model(onnxprune_history=history)) == []
    assert earlier(model(onnxprune_history=history, onnxprune_asked="x")) == [{"asked": "x"}]


def test_what_is_too_long_is_left_out():
    made = onnx.ModelProto()
    made.CopyFrom(model(onnxprune_asked="x" * LENGTH, onnxprune_version="1"))
    assert earlier(made) == [{"version": "1"}]
