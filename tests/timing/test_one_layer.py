"""What blocks take as one layer, and a device that waits for kernels to start: a formula in the place of a GPU.

No GPU is asked: `Launching` is an engine whose runs take a start for every node and some time for what it multiplies.
"""

import math

import numpy as np
import onnx
import pytest

from onnxprune import api
from onnxprune.decide.limits import Limits
from onnxprune.decide.runs import by_kernels, find_runs
from onnxprune.errors import UsageError
from onnxprune.graph.model import Graph
from onnxprune.pipeline import asked, looking, prices, profiling
from onnxprune.pipeline.planner import Planner
from onnxprune.pipeline.settings import Settings
from onnxprune.protobuf.nodes import node_key
from onnxprune.timing import node_times
from onnxprune.timing.devices import recorded
from onnxprune.timing.engine import Engine, chained_ms
from onnxprune.timing.grids import Grids
from onnxprune.timing.one_layer import OneLayer, OneLayerTimes
from onnxprune.timing.profile_device import measure
from tests.channels import surgery
from tests.rewrite.test_merge_blocks import CURVED, samples

START, RATE = 0.01, 1e9
"""ms for a node to start; weights' elements a ms."""


class Launching(Engine):
    """A device that waits for kernels to start: what a node multiplies hardly counts."""

    on_cpu, elsewhere = False, True
    __eq__, __hash__ = object.__eq__, object.__hash__

    def check(self):
        pass

    def told(self, kind, models, feeds, budget_ms, least_most):
        if kind == "walls":
            return [
                START * len(m.graph.node) + sum(math.prod(t.dims) for t in m.graph.initializer) / RATE for m in models
            ]
        (model,) = models
        return {node_key(n): (2 * START, n.op_type) for n in model.graph.node}, self.told("walls", models, *[0] * 3)[0]


@pytest.fixture
def subject():
    return api.open_model(surgery.model_of(CURVED), calibration=samples())


def test_on_the_cpu_fewer_products_take_less(subject):
    """3x3 of 8 to 8 channels for 3x3 of 8 to 12 and 1x1 back: less than both, and 1x1 less still."""
    x = np.repeat(subject.feeds["x"], 4, axis=0)
    from onnxprune.graph.shapes import observe

    shapes = dict(observe(subject.graph, {"x": np.zeros((x.shape[0], 3, 12, 12), np.float32)}).shapes)
    times = OneLayerTimes(subject.graph, shapes, Engine(), Grids(None))
    (run, _) = find_runs(subject.net)
    small, large = (times.relative(run.nodes, prices.one_layer(one.edit)) for one in by_kernels(subject.net, run))
    assert 0 < small < 1.2 and 0 < large < 1.5
    assert times.relative(run.nodes, prices.one_layer(run.edit)) == large, "it is known now"


def test_where_starts_count_one_layer_is_one_start(subject):
    times = OneLayerTimes(subject.graph, dict(subject.channels.shapes), Launching(), Grids(None))
    run, strided = find_runs(subject.net)
    assert times.relative(run.nodes, prices.one_layer(run.edit)) == pytest.approx(1 / 2, rel=0.01)
    assert times.relative(run.nodes, OneLayer("r", "d", 1, 1)) == pytest.approx(1 / 2, rel=0.01)
    assert times.relative(strided.nodes, prices.one_layer(strided.edit)) == pytest.approx(1 / 2, rel=0.01)
    assert times.relative((), prices.one_layer(run.edit)) is None


def test_each_of_many_layers_is_timed_alone():
    """Names of the second and the eleventh begin alike."""
    layers = "\n".join(f"x{k + 1} = Conv(x{k}, w)" for k in range(12))
    model = surgery.model_of(
        f"(float[1, 4, 6, 6] x0) => (float[1, 4, 6, 6] x12) <float[4, 4, 1, 1] w> {{\n{layers}\n}}"
    )
    times = OneLayerTimes(
        Graph(model), dict.fromkeys((f"x{k}" for k in range(13)), (1, 4, 6, 6)), Launching(), Grids(None)
    )
    keys = [node_key(node) for node in model.graph.node]
    assert times.relative(keys, OneLayer("x0", "x12", 1, 1)) == pytest.approx(1 / 12, rel=1e-6)


def planned(subject, monkeypatch, engine, ratio, methods):
    for module in (prices, looking, asked):
        monkeypatch.setattr(module, "engine_of", lambda settings: engine)
    monkeypatch.setattr(type(subject), "check_timing", lambda *_: None)
    settings = Settings(of="latency", methods=methods, threads=1, best_effort=True)
    planner = Planner(subject, settings)
    return planner, planner.propose(ratio, "mix" if "merge" in methods else planner.kinds[0])


def test_where_starts_count_layers_go_and_channels_stay(subject, monkeypatch):
    engine = Launching()
    planner, plan = planned(subject, monkeypatch, engine, 0.3, ("channels", "merge"))
    assert plan.merged() and not plan.narrowed()
    before, after = engine.told("walls", [subject.model, planner.unrepaired(plan)], {}, 0, (1, 1))
    assert planner.gain(plan) == pytest.approx(before / after, rel=0.1)
    _, narrow = planned(subject, monkeypatch, engine, 0.3, ("channels",))
    cut = engine.told("walls", [subject.model, planner.unrepaired(narrow)], {}, 0, (1, 1))
    assert cut[0] / cut[1] < 1.05 < before / after, "channels win nothing there"


@pytest.mark.parametrize("replayed", [False, True])
def test_what_is_replayed_launches_nothing(subject, replayed, monkeypatch):
    """The profile says two starts a node; with graph capture on it counts as one of a chain."""
    engine = Launching(("cuda",), {"cuda": {"enable_cuda_graph": int(replayed)}})
    assert engine.replays is replayed and chained_ms(engine) == pytest.approx(START)
    events = {node_key(n): (2 * START, n.op_type) for n in subject.graph.model.graph.node}
    monkeypatch.setattr(node_times, "profiled", lambda *args: (events, 1.0))
    monkeypatch.setattr(node_times, "profiler_ms", lambda engine: 0.0)
    times, _, _ = node_times.in_place(subject.graph, subject.feeds, engine, {"b": 3 * START})
    assert times["d"] == pytest.approx(START if replayed else 2 * START) and times["b"] == pytest.approx(3 * START)


@pytest.mark.parametrize(
    ("options", "replays"),
    [({}, False), ({"cuda": {"enable_cuda_graph": "0"}}, False), ({"cuda": {"enable_cuda_graph": True}}, True),
     ({"CUDAExecutionProvider": {"enable_cuda_graph": "1"}}, True), ({"cuda": {"use_tf32": 1}}, False)], ids=str
)  # fmt: skip
def test_graph_capture_is_seen(options, replays):
    assert Engine(("cuda",), options).replays is replays


def test_the_converted_copy_is_what_is_timed(subject):
    """In float16 every layer has the name that it had, also the last, behind which a Cast stands."""
    own = prices.timed_as(subject, Settings(precision="fp16"), 1)
    kinds = {own.graph.value((key, 1)).dtype.name for key in ("a", "b", "c", "e", "f", "y")}
    assert kinds == {"float16"} and own.graph.nodes["y"].op_type == "Gemm"
    assert {key: own.shapes[key] for key in "abcdefy"} == {key: subject.channels.shapes[key] for key in "abcdefy"}
    assert prices.timed_as(subject, Settings(), 1).graph is subject.graph


def test_a_profile_remembers_its_precision(subject, tmp_path):
    class Runner:
        def __init__(self, work, threads):
            pass

        def answer(self, question):
            return [1.0] * len(question["models"]) if question["kind"] == "walls" else self.nodes(question)

        def nodes(self, question):
            import base64

            graph = onnx.ModelProto.FromString(base64.b64decode(question["models"][0]["template"])).graph
            return [{node_key(n): [0.1, n.op_type] for n in graph.node}, 0.1 * len(graph.node)]

    path, settings = tmp_path / "device.json", Settings(precision="fp16")
    measure(profiling.questions(subject, settings, "net"), path, 1, runner=Runner)
    found = recorded(str(path))
    assert found.precision == "fp16" and "fp16" in found.words
    assert profiling.trust(subject, found).total_ms > 0
    with pytest.raises(UsageError, match="--precision fp16"):
        api.make_plan(subject, 0.3, Settings(device=str(path), of="latency"))
    plan = api.make_plan(subject, 0.3, Settings(device=str(path), of="latency", precision="fp16", threads=1))
    assert plan.edits


@pytest.mark.parametrize(
    ("given", "multiple"),
    [
        ({}, 4),
        ({"precision": "fp16"}, 8),
        ({"quantize": "int8"}, 32),
        ({"providers": ("cpu",), "precision": "fp16"}, 1),
    ],
    ids=str,
)
def test_widths_are_those_that_the_precision_wants(given, multiple):
    assert asked.limits_of(Settings(**{"providers": ("cuda",), **given})).multiple == multiple


def test_a_multiple_binds_groups_that_have_room_for_it(subject):
    groups = {g.width: g for g in subject.channels.groups}
    steps = [(w, m, Limits(multiple=m).step(groups[w])) for w in (8, 12, 16) for m in (1, 4, 8, 32)]
    assert steps == [(8, 1, 4), (8, 4, 4), (8, 8, 4), (8, 32, 4), (12, 1, 4), (12, 4, 4), (12, 8, 4), (12, 32, 4),
                     (16, 1, 4), (16, 4, 4), (16, 8, 8), (16, 32, 4)]  # fmt: skip
    assert Limits(3, multiple=8).step(groups[16]) == 3, "what is asked for is what it is"
