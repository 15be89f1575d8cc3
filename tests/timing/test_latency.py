import csv
import gc
import io
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from onnxprune.errors import ModelError, ProviderError, UsageError
from onnxprune.report import plots
from onnxprune.report.bench import CSV_COLUMNS, bench_csv, render, render_all
from onnxprune.runtime import sessions
from onnxprune.runtime.providers import provider_name
from onnxprune.timing import bound_run, cases, latency, rounds
from onnxprune.timing.bound_run import BoundRun
from onnxprune.timing.cases import bench_cases
from onnxprune.timing.latency import bench
from onnxprune.timing.rounds import MIN_ROUNDS, timed_rounds, timed_sample
from onnxprune.timing.statistics import RESOLUTION, Interval, noise_floor, paired_ratio, round_orders, verdict

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


def noisy(rng: np.random.Generator, ms: float, rounds: int = 40) -> np.ndarray:
    return ms * np.exp(np.abs(rng.normal(0, 0.03, rounds)))  # only ever slower than the undisturbed time


# ---- statistics on synthetic times -----------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.0, 1.1, 2.0, 10.0])
def test_a_known_ratio_lies_in_its_interval(ratio):
    inside = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found = paired_ratio(noisy(rng, ratio), noisy(rng, 1.0), seed=seed)
        assert found.low <= found.median <= found.high
        assert found.median == pytest.approx(ratio, rel=0.03)
        inside += found.low <= ratio <= found.high
    assert inside >= 17  # 95 % of 20, and three of luck


def test_the_pairing_removes_what_disturbs_a_whole_round():
    rng = np.random.default_rng(0)
    load = np.exp(rng.normal(0, 0.5, 40))
    found = paired_ratio(1.2 * load * noisy(rng, 1.0), load * noisy(rng, 1.0))
    assert 1.17 < found.low <= found.high < 1.23


def test_outliers_do_not_move_the_median():
    rng = np.random.default_rng(0)
    a, b = noisy(rng, 2.0), noisy(rng, 1.0)
    clean = paired_ratio(a, b)
    a[[3, 17, 21]] *= 50
    b[[5, 30]] *= 80
    assert paired_ratio(a, b).median == pytest.approx(clean.median, rel=0.01)


def test_the_same_samples_and_seed_give_the_same_interval():
    rng = np.random.default_rng(0)
    a, b = noisy(rng, 1.0), noisy(rng, 1.0)
    assert paired_ratio(a, b, seed=3) == paired_ratio(a, b, seed=3)


@pytest.mark.parametrize("a, b", [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]])])
def test_rows_that_are_not_pairs_are_refused(a, b):
    with pytest.raises(ValueError, match="equal, non-empty"):
        paired_ratio(a, b)


@pytest.mark.parametrize("scatter", [0.001, 0.01, 0.05, 0.3])
@pytest.mark.parametrize("offset", [0.0, 0.004])  # a session's own constant offset
def test_same_against_same_is_no_change_in_19_of_20(scatter, offset):
    def outcome(seed: int) -> str:
        rng = np.random.default_rng(seed)
        first, second, twin = np.exp(rng.normal(rng.normal(0, offset, (3, 1)), scatter, (3, 40)))
        return verdict(paired_ratio(first, second), noise_floor(paired_ratio(first, twin)))

    assert sum(outcome(seed) == NONE for seed in range(100)) >= 95


@pytest.mark.parametrize(
    "aa, floor",
    [
        ((0.999, 1.001), 1 + RESOLUTION),  # never narrower than the resolution
        ((0.95, 1.01), 1 / 0.95),  # one-sided by chance: taken to both sides
        ((0.99, 1.2), 1.2),
    ],
)
def test_the_noise_floor_reaches_as_far_on_both_sides(aa, floor):
    low, high = noise_floor(Interval(1.0, *aa))
    assert high == pytest.approx(floor) and low == pytest.approx(1 / floor)


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (1.06, 1.10, "faster"),
        (1.04, 1.10, NONE),  # reaches into the floor
        (0.80, 0.90, "slower"),
        (0.90, 0.96, NONE),
        (0.99, 1.01, NONE),
        (0.50, 2.00, NONE),
    ],
)
def test_verdict(low, high, expected):
    assert verdict(Interval((low + high) / 2, low, high), (1 / 1.05, 1.05)) == expected


def test_orders_are_permutations_fixed_by_the_seed():
    orders = round_orders(4, 50, seed=7)
    assert (np.sort(orders, axis=1) == np.arange(4)).all()
    assert (orders == round_orders(4, 50, seed=7)).all()
    assert (orders != round_orders(4, 50, seed=8)).any()
    assert len(np.unique(orders[:, 0])) == 4  # nobody is always first


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


class FakeRaw:
    """What BoundRun uses of an InferenceSession; a run takes `ms` on the fake clock."""

    def __init__(self, log, clock, ms):
        self.log, self.clock, self.ms = log, clock, ms

    def io_binding(self):
        log = self.log
        return SimpleNamespace(
            get_outputs=lambda: [SimpleNamespace(device="where it was put")],
            bind_ortvalue_output=lambda name, value: log.append(("kept", name, value.device)),
            bind_ortvalue_input=lambda name, value: log.append(("in", name, value.device)),
            bind_output=lambda name, device: log.append(("out", name, device)),
            synchronize_inputs=lambda: log.append("synchronize"),
            copy_outputs_to_cpu=lambda: log.append("fetch"),
        )

    def run_with_iobinding(self, binding, options=None):
        if options is not None:
            self.log.append(options)
        self.clock.now += int(self.ms * 1e6)
        self.log.append("run")


@pytest.fixture
def fakes(monkeypatch):
    """open(ms): a session whose runs take `ms`, on a clock that only runs advance."""
    clock, log, opened = SimpleNamespace(now=0, taken=0), [], []  # `taken`: while others had our core

    def open_session(model, **options):
        opened.append(options)
        return SimpleNamespace(
            name=options.get("name"),
            inputs=(SimpleNamespace(name="x", dtype=np.dtype(np.float32), shape=("n", 4)),),
            outputs=("y",),
            raw=FakeRaw(log, clock, float(model)),
            providers=(provider_name(options["providers"][0]), "CPUExecutionProvider"),
            assignment=None,
            nodes=None,
            provider_options={"CUDAExecutionProvider": (options.get("provider_options") or {}).get("cuda", {})},
        )

    class FakeValue:
        def __init__(self, device):
            self.device = device

        def update_inplace(self, array):
            log.append("update")

    time = SimpleNamespace(
        perf_counter_ns=lambda: clock.now,
        perf_counter=lambda: clock.now / 1e9,
        thread_time_ns=lambda: clock.now - clock.taken,
    )
    monkeypatch.setattr(sessions, "open_session", open_session)
    monkeypatch.setattr(rounds, "lost_turns", lambda: 0)
    monkeypatch.setattr(bound_run, "unrecorded", lambda: "unrecorded")
    monkeypatch.setattr(bound_run, "to_device", lambda array, device: FakeValue(device))
    for module in (latency, rounds, bound_run):
        monkeypatch.setattr(module, "time", time)
    return SimpleNamespace(clock=clock, log=log, opened=opened, feeds={"x": np.zeros((1, 4), np.float32)})


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


# ---- for people ------------------------------------------------------------------------------------------


def shown(result) -> str:
    console = Console(width=140, file=io.StringIO(), color_system=None)
    console.print(render_all(result) if isinstance(result, tuple) else render(result))
    return console.file.getvalue()


def test_the_table_names_models_verdicts_and_conditions(fakes):
    result = bench(["4", "0.25", "4.01"], feeds=fakes.feeds, names=["slow", "[fast]", "equal"], time_budget_s=1e3)
    text = shown(result)
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "baseline" in rows["slow"] and "16.000x" in rows["[fast]"] and "faster" in rows["[fast]"]
    assert NONE in rows["equal"] and "40 rounds" in text and "1 thread," in text and "x 1x4" in text
    assert "CPUExecutionProvider" in text and "interrupted" not in text
    assert "3 of 160 samples were interrupted by other processes; there," in shown(replace(result, interrupted=3))


def test_nodes_left_to_another_provider_are_told(fakes):
    result = bench(["4"], feeds=fakes.feeds)
    spread = {"CUDAExecutionProvider": 45, "CPUExecutionProvider": 2}
    assert "nodes of 4: cuda 45, cpu 2" in shown(replace(result, assignment={"4": spread}))
    assert "nodes of" not in shown(replace(result, assignment={"4": {"CPUExecutionProvider": 47}}))


def test_a_plot_shows_every_model_case_and_the_noise(fakes):
    pytest.importorskip("matplotlib")
    from onnxprune.report import bench_plot

    found = bench_cases(["4", "0.25"], batches=(1, 2), feeds=fakes.feeds, names=["$slow", "a<b"])
    picture = plots.encoded(bench_plot.draw(found), "p.svg")
    text = picture.decode()
    assert all(text.count(word) == 2 for word in (">16.000x, faster<", ">$slow again<", ">0.25<"))
    assert text.count(">a&lt;b<") == 4 and "batch 1, input x 1x4" in text and "grey: noise" in text
    assert picture == plots.encoded(bench_plot.draw(found), "p.svg")
    assert plots.encoded(bench_plot.draw(found[:1]), "p.png")[:4] == b"\x89PNG"


@pytest.mark.parametrize(("name", "there", "says"), [("p.svg", False, r"onnxprune\[plot\]"), ("p.gif", True, "svg")])
def test_a_plot_that_cannot_be_made_is_refused_before_the_work(monkeypatch, name, there, says):
    monkeypatch.setattr(plots, "find_spec", lambda module: there or None)
    with pytest.raises(UsageError, match=says):
        plots.require(name)


def test_csv_has_one_line_a_model(fakes):
    text = bench_csv(bench(["4", "0.25"], feeds=fakes.feeds, names=["slow", "a, b"]))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == tuple(CSV_COLUMNS)
    assert (rows[0]["name"], rows[0]["speedup"]) == ("slow", "") and rows[1]["name"] == "a, b"
    assert float(rows[1]["speedup"]) == 16 and rows[1]["verdict"] == "faster"
