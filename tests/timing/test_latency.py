import csv
import gc
import io
import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError, ProviderError, UsageError
from onnxprune.report.bench import bench_csv
from onnxprune.runtime import sessions
from onnxprune.runtime.ports import default_feed, input_specs
from onnxprune.runtime.providers import provider_name
from onnxprune.timing import bound_run, cases, latency, rounds
from onnxprune.timing.bound_run import BoundRun
from onnxprune.timing.cases import bench_cases
from onnxprune.timing.engine import Engine
from onnxprune.timing.latency import bench
from onnxprune.timing.rounds import MIN_ROUNDS, timed_rounds, timed_sample
from onnxprune.timing.statistics import Interval, round_orders
from tests.channels.surgery import model_of
from tests.timing.fakes import fake_sessions, shown

NONE = "no measurable change"


def conv_net(
    width: int, *, layers: int = 2, name: str = "x", batch: int | str = "n", size: int | str = 28
) -> onnx.ModelProto:
    """3x3 convs over `width` channels: time grows with the square of the width."""
    rng = np.random.default_rng(0)
    nodes, weights, last, channels = [], [], name, 3
    for i in range(layers):
        w = rng.standard_normal((width, channels, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(w, f"w{i}"))
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        last, channels = f"r{i}", width
    x = helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3, size, size])
    y = helper.make_tensor_value_info(last, TensorProto.FLOAT, [batch, width, size, size])
    graph = helper.make_graph(nodes, "net", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# ---- real sessions on the CPU ----------------------------------------------------------------------------


def test_four_times_the_channels_is_slower_and_the_other_way_faster():
    small, large = conv_net(16), conv_net(64)
    result = bench([large, small, small], names=["large", "small", "again"], rounds=20)
    assert [c.verdict for c in result.comparisons] == ["faster", "faster"]
    assert result.comparisons[0].speedup > 2
    assert [t.name for t in result.timings] == ["large", "small", "again"]
    assert gc.isenabled()

    back = bench([small.SerializeToString(), large], rounds=20)
    assert back.comparisons[0].verdict == "slower" and back.comparisons[0].speedup < 0.5
    assert [t.name for t in back.timings] == ["model 1", "model 2"]


def test_a_model_against_itself_shows_no_measurable_change():
    model = conv_net(32)
    verdicts = [bench([model, model], rounds=30, seed=seed).comparisons[0].verdict for seed in range(3)]
    assert verdicts.count(NONE) >= 2


def test_the_result_says_what_ran(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(conv_net(16), path)
    seen = []
    result = bench([path, path], batch=3, rounds=12, seed=5, progress=lambda done, asked: seen.append((done, asked)))
    first = result.timings[0]
    assert (first.name, first.path, result.timings[1].name) == ("net", str(path), "net (2)")
    assert first.min_ms <= first.p50_ms <= first.p90_ms <= first.p99_ms
    assert first.min_ms * first.runs_per_sample > 0.7  # aims at 1.25 ms of the fastest warm-up run
    assert first.warm_up_runs >= 10 and len(first.samples) == first.rounds == result.rounds == 12
    assert first.throughput_per_s == pytest.approx(3e3 / first.p50_ms)
    assert result.shapes == {"x": (3, 3, 28, 28)} and result.batch == 3
    assert result.providers["net"][0] == "CPUExecutionProvider"
    assert seen == [(i + 1, 12) for i in range(12)]
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert data["schema"] == 1 and data["seed"] == 5 and data["threads"] == 1
    assert data["comparisons"][0]["candidate"] == "net (2)" and "onnxruntime" in data["versions"]
    assert len(data["timings"][0]["samples"]) == 12


def test_given_feeds_are_timed_and_one_model_needs_no_comparison():
    feeds = {"x": np.zeros((2, 3, 28, 28), np.float32)}
    result = bench([conv_net(8)], feeds=feeds, rounds=10)
    assert result.shapes == {"x": (2, 3, 28, 28)} and result.batch == 2
    assert result.comparisons == () and result.noise.low <= result.noise.high


@pytest.mark.parametrize(
    "second, message",
    [
        (dict(name="y"), "b: its inputs are y, but a: x"),
        (dict(size=14), r"b: input x is \(.*, 3, 14, 14\), but a: \(1, 3, 28, 28\)"),
        (dict(batch=4), r"b: input x is \(4, 3, 28, 28\), but a: \(1, "),
    ],
)
def test_models_with_different_inputs_are_refused(second, message):
    with pytest.raises(UsageError, match=message):
        bench([conv_net(8), conv_net(8, **second)], names=["a", "b"])


@pytest.mark.parametrize(
    "feed, message",
    [
        ({"x": np.zeros((1, 3, 28, 28))}, "input x is float32, but the feeds given: float64"),
        ({"x": np.zeros((3, 28, 28), np.float32)}, "the feeds given: .3, 28, 28."),
        ({}, "the feeds given: none"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(feed, message):
    with pytest.raises(UsageError, match=message):
        bench([conv_net(8)], feeds=feed)


def test_a_batch_that_the_file_fixes_is_not_timed_as_another():
    with pytest.raises(UsageError, match="its first axis is fixed"):
        bench([conv_net(8, batch=1)], batch=8)
    assert bench([conv_net(8, batch=4)], rounds=10).batch == 4


@pytest.mark.parametrize(
    "models, options, message",
    [
        (0, {}, "at least one model"),
        (1, dict(rounds=9), "at least 10"),
        (1, dict(threads=0), "threads"),
        (1, dict(batch=0), "batch"),
        (1, dict(batch=8, shapes={"x": (2, 3, 28, 28)}), "batch 8 was asked for, but input x is .2, 3"),
        (1, dict(time_budget_s=0), "time budget"),
        (2, dict(names=["a"]), "2 models but 1 names"),
        (2, dict(names=["a", "a"]), "must differ"),
    ],
)
def test_bad_calls(models, options, message):
    with pytest.raises(UsageError, match=message):
        bench([conv_net(8)] * models, **options)


def test_a_model_that_cannot_run_is_named():
    model = conv_net(8)
    model.graph.node.append(helper.make_node("Reshape", ["r1", "spelled"], ["flat"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 25088 // 8]), "spelled"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("flat", TensorProto.FLOAT, None))
    with pytest.raises(ModelError, match="broken: cannot be run"):
        bench([model], names=["broken"], batch=3)


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="this build has CUDA")
def test_an_absent_provider_is_refused_not_replaced():
    with pytest.raises(ProviderError, match="cuda"):
        bench([conv_net(8)], providers=("cuda", "cpu"))


# ---- the boundary, with fakes: no session, no clock, no GPU ----------------------------------------------


@pytest.fixture
def fakes(monkeypatch):
    return fake_sessions(monkeypatch)


def test_known_times_come_out_and_samples_are_a_millisecond(fakes):
    result = bench(["4", "0.25"], feeds=fakes.feeds, names=["slow", "fast"])
    slow, fast = result.timings
    assert (slow.p50_ms, slow.runs_per_sample) == (4, 1) and (fast.p50_ms, fast.runs_per_sample) == (0.25, 5)
    assert (slow.warm_up_runs, fast.warm_up_runs) == (50, 800)  # 200 ms each
    assert result.noise == Interval(1, 1, 1) and result.rounds == 40
    [comparison] = result.comparisons
    assert (comparison.speedup, comparison.low, comparison.verdict) == (16, 16, "faster")


def test_a_time_budget_costs_rounds_then_warm_up_but_never_less_than_ten_rounds(fakes):
    medium = bench(["100", "100"], feeds=fakes.feeds, time_budget_s=10)  # 0.3 s a round, 3 s of warm-up
    assert MIN_ROUNDS < medium.rounds < 40 and medium.elapsed_s <= 10 and medium.rounds_asked == 40
    slow = bench(["5000"], feeds=fakes.feeds, time_budget_s=10)
    assert slow.rounds == MIN_ROUNDS and slow.timings[0].warm_up_runs == 2
    assert bench(["100", "100"], feeds=fakes.feeds).rounds == 40


def test_the_order_of_runs_is_fixed_by_the_seed(fakes):
    def order(seed):
        names = []
        runs = [lambda i=i: names.append(i) for i in range(3)]
        timed_rounds(runs, [1, 1, 1], round_orders(3, 12, seed), np.inf, None)
        return names

    assert order(1) == order(1) != order(2)


@pytest.mark.parametrize(
    "attempts, lost, expected",
    [
        ([9, 4, 7], [0, 1, 1, 1], (4, True)),  # interrupted once, then clean: the first clean one
        ([4], [1, 1], (4, True)),
        ([9, 7, 8], [0, 1, 1, 2, 2, 3], (7, False)),  # never clean: the fastest
    ],
)
def test_an_interrupted_sample_is_taken_again(fakes, monkeypatch, attempts, lost, expected):
    left, turns = iter(attempts), iter(lost)

    def run():
        fakes.clock.now += int(next(left) * 1e6)

    monkeypatch.setattr(rounds, "lost_turns", lambda: next(turns))
    assert timed_sample(run, 1) == expected


@pytest.mark.parametrize(
    ("alone", "took", "ms", "attempts"),
    [
        (False, 9, 9, 3),  # threads or a device: the time on the core of one thread says nothing
        (True, 9, 5, 3),
        (True, 12, 8, 1),  # a long run: the next attempt would be interrupted as well
    ],
)
def test_what_others_took_of_our_core_is_not_counted(fakes, monkeypatch, alone, took, ms, attempts):
    turns, runs = iter(range(100)), []

    def run():
        runs.append(1)
        fakes.clock.now += int(took * 1e6)
        fakes.clock.taken += int(4e6)

    monkeypatch.setattr(rounds, "lost_turns", lambda: next(turns))
    assert timed_sample(run, 1, alone=alone) == (ms, False) and len(runs) == attempts


def test_spinning_is_off_with_more_threads_unless_asked_for(fakes):
    for options in (dict(threads=1), dict(threads=2), dict(threads=2, spinning=True)):
        bench(["4"], feeds=fakes.feeds, rounds=10, **options)
    assert [o["spinning"] for o in fakes.opened[::2]] == [True, False, True]
    assert all(o["optimise"] for o in fakes.opened)
    assert fakes.opened[0::2] == fakes.opened[1::2]  # the twin of A/A is opened alike


@pytest.mark.parametrize(
    "provider, device",
    [("cpu", "cpu"), ("openvino", "cpu"), ("cuda", "cuda"), ("tensorrt", "cuda"), ("directml", "dml")],
)
def test_inputs_and_outputs_are_bound_once_where_the_provider_runs(fakes, provider, device):
    """The device path at its boundary."""
    result = bench(["4"], feeds=fakes.feeds, rounds=10, providers=(provider,))
    assert [entry for entry in fakes.log if isinstance(entry, tuple)] == [
        ("in", "x", device),
        ("out", "y", device),
    ] * 2
    assert fakes.opened[0]["providers"] == (provider,)
    on_device = device != "cpu"
    assert ("update" in fakes.log, "fetch" in fakes.log) == (on_device, on_device)
    assert (result.timings[0].copy_in_ms is not None) == on_device
    assert result.providers["4"][0] == provider_name(provider)


@pytest.mark.parametrize("on", ["0", "1"])
def test_a_recorded_graph_writes_where_its_first_run_wrote(fakes, on):
    """CUDA graphs at their boundary: one run that is not recorded, then outputs at fixed addresses; not run on a GPU."""
    options = {"cuda": {"enable_cuda_graph": on, "use_tf32": "0"}}
    result = bench(["4"], feeds=fakes.feeds, rounds=10, providers=("cuda",), provider_options=options)
    wanted = [("in", "x", "cuda"), ("out", "y", "cuda")]
    wanted += ["unrecorded", "run", ("kept", "y", "where it was put")] if on == "1" else []
    assert fakes.log[: len(wanted)] == wanted and fakes.log.count("unrecorded") == 2 * int(on)
    assert result.provider_options["4"]["CUDAExecutionProvider"]["enable_cuda_graph"] == on
    assert f"use_tf32=0, enable_cuda_graph={on}" in shown(result)


def test_the_key_that_keeps_a_run_from_being_recorded_is_one_that_ort_takes():
    assert bound_run.unrecorded().get_run_config_entry("gpu_graph_id") == "-1"


def test_copies_are_timed_apart(fakes, monkeypatch):
    """Not run on a GPU."""
    run = BoundRun(sessions.open_session("4", providers=("cuda",)), fakes.feeds)

    def tick(ms):
        fakes.clock.now += int(ms * 1e6)

    run.binding.synchronize_inputs = lambda: tick(2)
    run.binding.copy_outputs_to_cpu = lambda: tick(3)
    assert run.copies_ms() == (2, 3)


# ---- several batches and shapes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "batches, shapes, expected",
    [
        ((1,), (), [(1, None)]),
        ((1, 8), (), [(1, None), (8, None)]),
        ((1,), ({"x": (2, 3)},), [(1, {"x": (2, 3)})]),
        ((1, 8), ({"x": ("N", 3)}, {"x": ("N", 5)}), [(b, {"x": (b, n)}) for n in (3, 5) for b in (1, 8)]),
        ((4,), ({"x": ("N", 3), "y": (7, "N")},), [(4, {"x": (4, 3), "y": (7, 4)})]),
    ],
)
def test_cases(batches, shapes, expected):
    assert list(cases.cases(batches, shapes)) == expected


@pytest.mark.parametrize("batches, shapes", [((), ()), ((2, 2), ()), ((1, 8), ({"x": (1, 3)},))])
def test_cases_that_are_none(batches, shapes):
    with pytest.raises(UsageError, match="batches"):
        list(cases.cases(batches, shapes))


def test_every_batch_and_shape_is_timed():
    seen = []
    shapes = ({"x": ("N", 3, 8, 8)}, {"x": ("N", 3, 12, 8)})
    found = bench_cases(
        [conv_net(8, size="s")], batches=(1, 3), shapes=shapes, rounds=10, progress=lambda *a: seen.append(a)
    )
    assert [r.shapes["x"] for r in found] == [(1, 3, 8, 8), (3, 3, 8, 8), (1, 3, 12, 8), (3, 3, 12, 8)]
    assert [r.batch for r in found] == [1, 3, 1, 3] and seen[0] == (1, 40) and seen[-1] == (40, 40)
    assert [r.timings[0].throughput_per_s * r.timings[0].p50_ms for r in found] == pytest.approx([1e3, 3e3] * 2)
    text = shown(found)
    assert text.count("baseline") == 4 and "batch 3, input x 3x3x12x8" in text
    rows = list(csv.DictReader(io.StringIO(bench_csv(*found))))
    assert [(r["batch"], r["inputs"]) for r in rows[:2]] == [("1", "x 1x3x8x8"), ("3", "x 3x3x8x8")]


def test_a_time_budget_is_for_all_cases(fakes, monkeypatch):
    monkeypatch.setattr(cases, "time", latency.time)
    found = bench_cases(["100", "100"], batches=(1, 2), feeds=fakes.feeds, time_budget_s=20)
    assert sum(r.elapsed_s for r in found) <= 20 and min(r.rounds for r in found) > MIN_ROUNDS
    with pytest.raises(UsageError, match="time budget"):
        bench_cases(["100"], feeds=fakes.feeds, time_budget_s=-1)


# ---- a declared rank that is wrong: ORT only warns ---------------------------------------------------------------

TAILS = {
    "squeezed": ("float[N,4] y", "q = GlobalAveragePool(k) y = Squeeze(q)"),
    "one too many": ("float[N,4,M] y", "q = GlobalAveragePool(k) y = Squeeze(q)"),
    "a scalar": ("float y", "q = Squeeze(k) y = Relu(q)"),
    "two outputs": ("float[N,4] y, float[N] z", "q = GlobalAveragePool(k) y = Squeeze(q) z = Squeeze(k)"),
}


@pytest.mark.parametrize("tail", TAILS)
def test_outputs_of_another_rank_than_declared(tail):
    declared, text = TAILS[tail]
    model = model_of(
        f"(float[N,3,8,8] x) => ({declared}) <float[16,3,3,3] w, float[4,16,1,1] v> {{ h = Conv(x, w) r = Relu(h) k = Conv(r, v) {text} }}"
    )
    result = bench([model, model], rounds=10)
    assert result.rounds == 10 and result.timings[0].p50_ms > 0
    assert Engine().run_ms(model, default_feed(input_specs(model)), 1.0, (3, 5)) > 0
