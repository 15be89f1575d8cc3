"""Run time grows with the nodes and not with their square, and what makes it so changes no result."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest

from onnxprune import api
from onnxprune.channels import CutSizes
from onnxprune.decide import norms
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import Observed, follow, observe
from onnxprune.measure.cost import CostModel, Running
from onnxprune.pipeline.inspection import inspection
from tests import synthetic


def cpu_seconds(model: onnx.ModelProto, path, repair: str | None = None) -> float:
    """CPU time of inspect, plan, apply and write."""
    start = time.process_time()
    subject = api.open_model(model)
    inspection(subject)
    settings = api.Settings(best_effort=True, repair=repair)
    result = api.apply_plan(subject, api.make_plan(subject, api.Ratio(), settings), settings)
    result.to_json()
    result.save(path, force=True)
    assert result.surgery.exact and result.macs_removed > 0.4
    return time.process_time() - start


SHAPES = {  # generator, size; the test takes this size and twice as much
    "network": (synthetic.network, 500),
    "chain": (synthetic.chain, 1000),
    "wide concat": (synthetic.wide_concat, 200),
    "one tensor, many readers": (synthetic.many_readers, 200),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_twice_the_nodes_take_twice_the_time(name, tmp_path):
    make, size = SHAPES[name]
    cpu_seconds(make(size // 4), tmp_path / "warm.onnx")
    small = min(cpu_seconds(make(size), tmp_path / "small.onnx") for _ in range(2))
    large = min(cpu_seconds(make(2 * size), tmp_path / "large.onnx") for _ in range(2))
    assert large <= 2.6 * small + 0.1, f"{small:.2f} s became {large:.2f} s"


@pytest.mark.slow
@pytest.mark.parametrize(("repair", "most"), [("none", 10), (None, 20)])
def test_ten_thousand_nodes(tmp_path, repair, most):
    """Analysis, cut, proof and file; the same with the repair by random inputs."""
    model = synthetic.network(10_000)
    assert len(model.graph.node) >= 10_000
    spent = cpu_seconds(model, tmp_path / "m.onnx", repair)
    assert spent <= most, f"{spent:.1f} s"


@pytest.mark.parametrize("make, size", [(synthetic.chain, 5000), (synthetic.wide_concat, 1000)])
def test_deep_and_wide_graphs_need_no_recursion(make, size, tmp_path):
    model = make(size)
    subject = api.open_model(model)
    assert subject.channels.groups


# -- the same results ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["macs", "params", "channels"])
def test_running_cost_is_the_cost_to_the_last_bit(of):
    subject = api.open_model(synthetic.network(150))
    cost = CostModel(subject.graph, subject.channels, of)
    rng = np.random.default_rng(0)
    running = Running(cost, np.ones(subject.channels.unit_count + 1, bool))
    for _ in range(60):
        units = rng.choice(subject.channels.unit_count, 5, replace=False)
        running.set(units, rng.random(5) < 0.5)
        assert running.removed() == cost.removed(running.alive)
        assert (running.terms == cost.per_term(running.alive)).all()


def test_sizes_followed_from_known_ones_are_the_same():
    model = synthetic.network(80)
    subject = api.open_model(model)
    seen = observe(Graph(model), subject.feeds)
    assert seen.derived, "the model must compute sizes"
    rng = np.random.default_rng(0)
    for _ in range(5):
        keep = {g.name: range(1, 1 + int(rng.integers(1, g.width))) for g in subject.channels.groups}
        sizes = CutSizes(subject.channels, subject.channels.alive(keep)).shapes
        plain, quick = follow(subject.graph, sizes), follow(subject.graph, sizes, Observed(seen.shapes, seen.derived))
        assert plain.keys() == quick.keys()
        assert all(np.array_equal(plain[k], quick[k]) for k in plain)


def test_an_edit_forgets_what_was_worked_out():
    graph = Graph(synthetic.network(40))
    key = next(iter(graph.nodes))
    assert graph.once("count", graph, lambda: 1) == graph.once("count", graph, lambda: 2) == 1
    assert graph.once("count", key, lambda: 3) == 3  # of another owner
    graph.own(key)
    assert graph.once("count", key, lambda: 4) == 4


@pytest.mark.parametrize("shape", [(64, 32, 3, 3), (300, 200), (7, 5), (3, 1, 5, 5), (40, 2), (50,)])
@pytest.mark.parametrize("power", [1, 2])
def test_sums_in_parts_are_the_same_to_the_last_bit(monkeypatch, shape, power):
    value = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for axis in range(len(shape)):
        other = tuple(k for k in range(len(shape)) if k != axis)
        whole = (np.abs(value.astype(np.float64)) ** power).sum(axis=other)
        monkeypatch.setattr(norms, "PART", 100)
        assert (norms.per_index(value, axis, power) == whole).all()
