"""Measured node times: what is measured adds up, and the model's product form is what the cost uses."""

import os

import numpy as np
import pytest

from onnxprune import api
from onnxprune.measure.cost import CostModel, Running, WidthCost
from onnxprune.timing import node_times
from onnxprune.timing.engine import Engine
from onnxprune.timing.grids import Grids
from onnxprune.timing.node_times import NodeTimes, Stairs, grid
from tests.channels import surgery

TEXT = """(float[1,3,24,24] x) => (float[] y)
    <float[32,3,3,3] w0, float[32] b0, float[32,1,3,3] d, float[48,32,1,1] w1, float[10,48] w2>
    { h = Conv<pads=[1,1,1,1]>(x, w0, b0) r = Relu(h) g = Conv<pads=[1,1,1,1], group=32>(r, d)
      z = Conv(g, w1) a = Relu(z) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm<transB=1>(f, w2) }"""


@pytest.fixture(scope="module")
def subject():
    return api.open_model(surgery.model_of(TEXT))


@pytest.fixture(scope="module")
def times(subject):
    return node_times.node_times(subject.graph, subject.feeds, subject.channels.shapes, grids=Grids(None))


def test_every_layer_is_timed_and_the_sum_is_the_whole(times):
    assert {"h", "g", "z", "y"} <= set(times.nodes)
    assert "r" not in times.nodes  # fused into its conv
    assert all(ms > 0 for ms in times.nodes.values())
    assert sum(times.nodes.values()) + times.loose_ms == pytest.approx(times.total_ms, rel=1e-6)
    assert set(times.stairs["h"]) == {0, 1} and set(times.stairs["g"]) == {0}
    for steps in (s for axes in times.stairs.values() for s in axes.values()):
        assert steps.time[-1] == 1 and steps.share[-1] == 1 and list(steps.share) == sorted(steps.share)


def test_fewer_channels_take_less_time(times):
    steps = times.stairs["z"][0]  # 48 outputs over 24x24 positions
    assert steps.time[0] < 0.8


STAIRS = Stairs((0.5, 1.0), (0.4, 1.0))
MADE = NodeTimes({"h": 2.0, "g": 1.0, "z": 4.0, "y": 0.5}, {"z": {0: STAIRS, 1: STAIRS}}, {"z": 0.5}, 8.0, 0.5)


def test_the_cost_is_the_product_of_the_stairs(subject):
    channels = subject.channels
    cost = CostModel(subject.graph, channels, "latency", times=MADE)
    assert cost.total == pytest.approx(8.0)
    first, second = sorted(channels.groups, key=lambda g: g.width)
    keep = {first.name: range(16), second.name: range(24)}
    # h and g in proportion; z: 1 - .6 - .6 + .5 * .36; y: half of what it reads; the rest stays
    assert cost(channels.alive(keep)) == pytest.approx(2 / 2 + 1 / 2 + 4 * (1 - 1.2 + 0.5 * 0.36) + 0.5 / 2 + 0.5)


def test_running_and_by_width_are_the_same_cost(subject):
    channels = subject.channels
    blocks = [{"g", "z"}]
    cost = CostModel(subject.graph, channels, "latency", times=MADE, blocks=blocks)
    by_width, running = WidthCost(cost, channels.groups), Running(cost, np.ones(channels.unit_count + 1, bool))
    full = np.array([*(g.width for g in channels.groups), 1])
    for group, at in ((channels.groups[0], 0), (channels.groups[1], 1)):
        for width in range(1, group.width):
            alive = channels.alive({group.name: range(width)})
            running.set(group.units, alive[group.units])
            widths = full.copy()
            widths[at] = width
            assert running.removed() == pytest.approx(cost.removed(alive))
            assert by_width.removed(widths) == pytest.approx(cost.removed(alive))
            assert by_width.saved(full, widths)[at] == pytest.approx(cost.total - cost(alive))
        running.set(group.units, np.ones(group.width, bool))
    gone = np.array([*full[:-1], 0])
    expected = cost.total - cost(np.ones(channels.unit_count + 1, bool), np.array([False]))
    assert expected == pytest.approx(1 + 4 + 2 * 0.5 / 4)
    assert by_width.saved(full, gone)[-1] == pytest.approx(expected)


@pytest.mark.parametrize("full", [1, 2, 3, 7, 16, 31, 64, 100, 128, 200, 256, 960, 1280])
def test_a_grid_is_short_ends_at_the_full_width_and_goes_by_fours(full):
    points = grid(full)
    assert points[-1] == full and len(points) <= node_times.POINTS + 3
    assert all(p % 4 == 0 for p in points[:-1] if full >= 8)


def test_what_is_known_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path))
    grids = Grids.of_user()
    grids.put("layer", {"0": [[0.5, 1.0], [0.6, 1.0]]})
    grids.save()
    again = Grids.of_user()
    assert again.get("layer") == {"0": [[0.5, 1.0], [0.6, 1.0]]}
    assert Grids.of_user(Engine(threads=2)).get("layer") is None  # other threads, other times


def layer(entry):
    return '{"schema": 2, "layers": {"a": %s}}' % entry  # noqa: UP031


SPOILT = [
    "", "[]", "{", '{"schema": 9}', '{"schema": 2}', '{"schema": 2, "layers": []}', "[" * 100000, "\0",
    *map(layer, [
        '{"0": [[1], []]}', '{"0": [[1], [NaN]]}', '{"0": [[0.5, 1], [1, NaN]]}', '{"0": [[0.5, 1], [NaN, 1]]}',
        '{"0": [[NaN, 1], [1, 1]]}', '{"0": [[1], [Infinity]]}', '{"0": [[1], [1e400]]}', '{"0": [[1], [-1]]}',
        '{"0": [[1], [0]]}', '{"0": [[1], ["1"]]}', '{"0": [[1], [true]]}', '{"0": [[1, 0.5], [1, 1]]}',
        '{"0": [[0.5, 0.5, 1], [1, 1, 1]]}', '{"0": [[0.5], [1]]}', '{"x": [[1], [1]]}', '{"0": [[1]]}', '{"0": 1}',
        '[]', 'null', '1', '{"0": [[1], [1%s]]}' % ("0" * 400), '{"0": [[1], [1]], "mixed": [[0.3, 0.3], [NaN]]}',
        '{"0": [[1], [1]], "mixed": [[0.3, 0.3], []]}', '{"0": [[1], [1]], "alone": [[1], [NaN]]}',
        '{"0": [[1], [1]], "alone": [1, 1]}',
    ]),
]  # fmt: skip


@pytest.mark.parametrize("text", SPOILT, ids=lambda text: text[:80])
def test_a_spoilt_cache_counts_as_none(tmp_path, monkeypatch, text):
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path))
    Grids.of_user().path.parent.mkdir(exist_ok=True, parents=True)
    Grids.of_user().path.write_text(text)
    assert Grids.of_user().known == {}


def test_an_empty_variable_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXPRUNE_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    grids = Grids.of_user()
    grids.put("layer", {"0": [[1.0], [1.0]]})
    grids.save()
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "no text"])
def test_a_cache_that_is_no_file_of_text(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path))
    path = Grids.of_user().path
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.write_bytes(b"\xff\xfe")
    grids = Grids.of_user()
    assert grids.known == {}
    grids.put("layer", {"0": [[1.0], [1.0]]})
    grids.save()  # no error


def test_what_is_known_of_other_axes_is_not_taken():
    grids = Grids(None, {"layer": {"0": [[1.0], [1.0]]}})
    assert (
        grids.get("layer", {"0"}) and grids.get("layer", {"0", "mixed"}) is None and grids.get("layer", {"1"}) is None
    )
