"""Large weights: each held once, beyond what memory is for in files, and none for longer than somebody has it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from onnxprune.graph.model import Graph
from onnxprune.numerics import on_disk
from onnxprune.runtime import sessions, stored
from tests import synthetic


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    monkeypatch.setattr(stored, "LARGE_BYTES", 1)
    monkeypatch.setattr(stored, "_held", {})


def tensor(*values, name="w", dtype=np.float32):
    return numpy_helper.from_array(np.array(values, dtype), name)


def test_what_is_the_same_is_the_same_array():
    first = stored.array_of(tensor(1, 2, 3))
    assert stored.array_of(tensor(1, 2, 3, name="v")) is first and not first.flags.writeable
    others = [tensor(1, 2, 4), tensor(1, 2), tensor(1, 2, 3, dtype=np.int32), tensor([1], [2], [3])]
    for other in others:
        found = stored.array_of(other)
        assert found is not first
        np.testing.assert_array_equal(found, numpy_helper.to_array(other))
    assert stored.array_of(tensor(1, 2, 3)) is first


def test_one_that_differs_where_it_is_not_looked_at_first():
    values = np.zeros(10_000, np.float32)
    first = stored.array_of(numpy_helper.from_array(values, "w"))
    for at in (1, 4_999, 9_999):
        values[:] = np.arange(10_000) == at
        found = stored.array_of(numpy_helper.from_array(values, "w"))
        assert found is not first and found[at] == 1


def test_it_is_held_for_as_long_as_somebody_has_it():
    found = stored.array_of(tensor(1, 2))
    assert stored.held() == 8
    del found
    assert stored.held() == 0 and not stored._held


def test_beyond_what_memory_is_for_it_lies_in_a_file(monkeypatch):
    monkeypatch.setattr(stored, "IN_MEMORY", 8)
    inside, beyond = stored.array_of(tensor(1, 2)), stored.array_of(tensor(3, 4, 5))
    assert not isinstance(inside.base, np.memmap) and isinstance(beyond.base, np.memmap)
    assert stored.held() == 8 and stored.array_of(tensor(3, 4, 5)) is beyond
    on_disk.release((beyond,))
    assert beyond.tolist() == [3, 4, 5] and not beyond.flags.writeable


def test_sessions_of_one_model_hold_its_weights_once(monkeypatch):
    monkeypatch.setattr(sessions, "SHARED_BYTES", 0)
    model = synthetic.dense(12)
    opened = [sessions.open_session(model, pack=False), sessions.open_with_outputs(model, [], pack=False)]
    assert opened[0]._weights and all(opened[1]._weights[k] is v for k, v in opened[0]._weights.items())


def test_new_values_beyond_what_memory_is_for_lie_in_files(monkeypatch):
    monkeypatch.setattr(stored, "IN_MEMORY", 8)
    first, second, third = (np.array(v, np.float32) for v in ([1, 2], [3, 4], [3, 4]))
    assert stored.kept(first) is first and stored.held() == 8
    beyond = stored.kept(second)
    assert isinstance(beyond.base, np.memmap) and stored.kept(third) is beyond and stored.kept(beyond) is beyond
    first[0] = 7  # still its owner's
    assert stored.array_of(tensor(1, 2)).tolist() == [1, 2]
    del first
    assert stored.held() == 0


def test_a_graph_keeps_its_edits_so(monkeypatch):
    monkeypatch.setattr(stored, "IN_MEMORY", 0)
    graph = Graph(synthetic.dense(12))
    use = next((k, 1) for k, n in graph.nodes.items() if n.op_type in ("Conv", "Gemm", "MatMul"))
    value = graph.value(use)
    assert value is not None
    graph.set_constant(use, 2 * value)
    edited = graph.value(use)
    assert isinstance(value.base, np.memmap) and isinstance(edited.base, np.memmap)
    np.testing.assert_array_equal(edited, 2 * value)
    np.testing.assert_array_equal(graph.settle().value(use), 2 * value)
