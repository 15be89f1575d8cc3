"""The format of the finished model: int8 and float16, compared and written as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnxprune
from onnxprune import cli
from onnxprune.errors import UnsupportedError, UsageError
from onnxprune.graph.model import Graph
from onnxprune.pipeline.candidates import find_candidates
from onnxprune.pipeline.finishing import FINISHES, check_finish
from onnxprune.pipeline.search import close_loop
from onnxprune.pipeline.settings import OPTIONS, Settings
from onnxprune.rewrite.quantized import held
from onnxprune.rewrite.to_int8 import round_anew
from onnxprune.runtime import convert
from onnxprune.runtime.sessions import open_session
from tests.test_benchmarks import RESNET, calibration

NET = """<ir_version: 6, opset_import: ["": 12]> net (float[n,3,12,12] x) => (float[n,10] y) {
    a = Conv<pads=[1,1,1,1]>(x, w0) c = BatchNormalization(a, g, h, m, v) d = Relu(c)
    e = Conv<pads=[1,1,1,1], group=16>(d, w1, b1) f = Clip(e, lo, hi) i = Conv(f, w2, b2) s = Add(i, d) t = Relu(s)
    u = GlobalAveragePool(t) p = Flatten(u) q = MatMul(p, w3) y = Add(q, b3) }"""
SIZES = {"w0": (16, 3, 3, 3), "g": (16,), "h": (16,), "m": (16,), "v": (16,), "w1": (16, 1, 3, 3), "b1": (16,),
         "w2": (16, 16, 1, 1), "b2": (16,), "w3": (16, 10), "b3": (10,)}  # fmt: skip


def net() -> onnx.ModelProto:
    """A batch normalization, a depthwise convolution, a shortcut, a product; of an old opset."""
    rng, model = np.random.default_rng(0), parser.parse_model(NET)
    for name, size in SIZES.items():
        value = rng.standard_normal(size) / np.sqrt(max(1, np.prod(size[1:])))
        value = np.abs(value) + 0.5 if name in ("g", "v") else value
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    for name, number in (("lo", 0.0), ("hi", 6.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(number, np.float32), name))
    model.metadata_props.add(key="character", value="a b c")
    return model


def samples(count: int = 96) -> np.ndarray:
    smooth = np.random.default_rng(1).standard_normal((count, 3, 6, 6)).astype(np.float32)
    return smooth.repeat(2, axis=2).repeat(2, axis=3)


def ran(model: onnx.ModelProto) -> np.ndarray:
    return open_session(model).run({"x": samples(160)[96:]})[0]


def noise(model: onnx.ModelProto) -> float:
    return float(np.square(ran(model) - ran(net())).mean())


QUICK = {"calibration": samples(), "allocation": "uniform", "criterion": "l1"}


def test_int8_is_what_onnx_runtime_makes_and_the_file_says_what_it_said():
    result = onnxprune.prune(net(), 0.4, quantize="int8", **QUICK)
    model = result.model
    onnx.checker.check_model(model, full_check=True)
    ops = [n.op_type for n in model.graph.node]
    assert "QuantizeLinear" in ops
    assert "BatchNormalization" not in ops
    assert sum(value.integers.dtype == np.int8 for value in held(Graph(model)).values()) == 4
    assert (model.graph.input[0], model.graph.output[0]) == (net().graph.input[0], net().graph.output[0])
    assert {p.key: p.value for p in model.metadata_props}["character"] == "a b c"
    assert result.after.bytes == model.ByteSize()
    assert noise(model) < 1.5 * noise(onnxprune.prune(net(), 0.4, **QUICK).model)
    assert any("int8" in note for note in result.notes)
    assert result.made.carried_out["quantize"] == "int8"


def test_rounded_against_what_it_reads_it_is_closer_than_rounded_to_the_nearest():
    ready = convert.joined(convert.at_least_opset(net()))
    batches = [{"x": samples()[k : k + 32]} for k in (0, 32, 64)]
    nearest = convert.quantized(ready, batches)
    anew = round_anew(Graph(nearest), Graph(ready), batches).export()
    assert noise(anew) < 0.7 * noise(nearest)
    assert [n.op_type for n in anew.graph.node] == [n.op_type for n in nearest.graph.node]
    again = round_anew(Graph(nearest), Graph(ready), batches).export()
    assert again == anew


def test_few_samples_are_run_at_a_time(monkeypatch):
    """ONNX Runtime holds every activation of a batch: with 32 words a text recogniser took 13 GiB."""
    real, seen = convert.quantized, []
    monkeypatch.setattr(convert, "quantized", lambda m, b: real(m, seen.extend(len(f["x"]) for f in b) or b))
    onnxprune.prune(net(), 0.4, quantize="int8", **QUICK)
    assert sum(seen) > 32 and max(seen) <= 4


def test_seven_bits_hold_the_weights():
    """Sums of two products of eight bits overflow where a processor has no instruction for them."""
    model = onnxprune.prune(net(), 0.4, quantize="int8", **QUICK).model
    for value in held(Graph(model)).values():
        assert value.integers.dtype != np.int8 or np.abs(value.integers.astype(int)).max() <= 64


def test_float16_has_the_same_inputs_and_outputs():
    result = onnxprune.prune(net(), 0.4, precision="fp16", **QUICK)
    kinds = {t.data_type for t in result.model.graph.initializer if len(t.dims) > 1}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert result.model.graph.input[0] == net().graph.input[0]
    assert noise(result.model) < 1.05 * noise(onnxprune.prune(net(), 0.4, **QUICK).model)
    assert any("CPU is no faster" in note for note in result.notes)


def test_a_plan_carried_out_in_int8_is_the_same_again(tmp_path):
    subject = onnxprune.open_model(net(), calibration=samples(), trusted=True)
    plan = onnxprune.make_plan(subject, 0.4, Settings(allocation="uniform", criterion="l1"))
    one, other = (onnxprune.apply_plan(subject, plan, Settings(quantize="int8")) for _ in range(2))
    assert one.output_digest == other.output_digest
    assert one.save(tmp_path / "a.onnx").exists()
    settings = {p.key: p.value for p in one.model.metadata_props}["onnxprune.settings"]
    assert '"quantize":"int8"' in settings
    assert (
        "quantize"
        not in {p.key: p.value for p in onnxprune.apply_plan(subject, plan).model.metadata_props}["onnxprune.settings"]
    )


@pytest.mark.parametrize("name", FINISHES)
def test_it_is_refused_at_once_where_it_cannot_be(name):
    settings = Settings(**{FINISHES[name].setting: name})
    with pytest.raises(UsageError, match="lossless"):
        onnxprune.Lossless().serve(settings)
    integers = onnxprune.open_model(
        onnxprune.prune(net(), 0.4, quantize="int8", **QUICK).model, calibration=samples(), trusted=True
    )
    with pytest.raises(UnsupportedError, match="not in float32"):
        check_finish(integers, settings)
    bare = onnxprune.open_model(net(), trusted=True)
    if FINISHES[name].needs_samples:
        with pytest.raises(UsageError, match="needs samples"):
            check_finish(bare, settings)
    else:
        check_finish(bare, settings)
    assert OPTIONS[FINISHES[name].setting].help


def test_a_depthwise_convolution_gets_multiples_of_16_in_int8():
    wide = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]> net (float[n,3,8,8] x) => (float[n,4] y) {
        a = Conv(x, w0) b = Conv<group=48>(a, w1) c = Conv(b, w2) d = Relu(c) e = Conv(d, w3)
        u = GlobalAveragePool(e) y = Flatten(u) }""")
    sizes = {"w0": (48, 3, 1, 1), "w1": (48, 1, 3, 3), "w2": (48, 48, 1, 1), "w3": (4, 48, 1, 1)}
    for name, size in sizes.items():
        value = np.random.default_rng(0).standard_normal(size).astype(np.float32)
        wide.graph.initializer.append(numpy_helper.from_array(value, name))
    subject = onnxprune.open_model(wide, trusted=True)
    for asked, steps in ((None, {4}), ("int8", {4, 16})):
        found = find_candidates(subject.net, Settings(quantize=asked), "uniform")
        assert {found.limits.step(g) for g in found.groups} == steps


def test_one_format_at_a_time():
    with pytest.raises(UsageError, match="one of them"):
        Settings(quantize="int8", precision="fp16")
    with pytest.raises(UsageError, match="int7"):
        Settings(quantize="int7")


def test_the_command_line(tmp_path, capsys):
    np.savez(tmp_path / "x.npz", x=calibration(64))
    out, plan = str(tmp_path / "a.onnx"), str(tmp_path / "plan.json")
    assert cli.main([str(RESNET), "--quantize", "int8"]) == 2
    assert "--quantize int8 needs samples" in capsys.readouterr().err
    words = ["--calib", str(tmp_path / "x.npz"), "--allocation", "uniform", "--repair", "statistics", "--ratio", "0.3"]
    assert cli.main([str(RESNET), *words, "--quantize", "int8", "--no-bench", "--plan-out", plan, "-o", out]) == 0
    assert Path(out).stat().st_size < 0.3 * RESNET.stat().st_size
    assert "int8: QuantizeLinear" in capsys.readouterr().out
    assert cli.main(["verify", str(RESNET), out, "--plan", plan, "--calib", str(tmp_path / "x.npz")]) == 0
    assert "as planned" in capsys.readouterr().out
    assert cli.main([str(RESNET), *words, "--precision", "fp16", "-o", str(tmp_path / "b.onnx")]) == 0
    said = capsys.readouterr().out
    assert "latency" not in said.partition("asked")[0]  # on a CPU it says nothing, and is not measured unasked


def test_a_format_that_is_enough_alone_needs_no_cut():
    """The loop starts from what the format gains with nothing removed."""
    found = close_loop(lambda ratio: ratio, lambda ratio: 1.5 / (1 - ratio), 2.0, whole=1.5)
    assert found is not None
    assert 0.2 < found[1].ratio < 0.32


def test_a_speed_up_is_measured_in_the_format_that_is_written(monkeypatch):
    from onnxprune.pipeline import reach

    seen = []

    class Comparison:
        def __init__(self, speedup: float) -> None:
            self.speedup = speedup

    class Timed:
        def __init__(self, models) -> None:
            seen.append(models[-1])
            self.comparisons = [Comparison(1e9 if len(seen) == 1 else 1.0)]

    monkeypatch.setattr(reach, "paired", lambda subject, models, *rest, **more: Timed(models))
    subject = onnxprune.open_model(net(), calibration=samples(), trusted=True)
    quick = Settings(allocation="uniform", criterion="l1", quantize="int8", of="macs")
    with pytest.raises(UsageError, match="int8 alone gains"):
        onnxprune.reach(subject, onnxprune.Target("speedup", 2.0), quick)
    assert any(n.op_type == "QuantizeLinear" for n in seen[0].graph.node)


def test_the_size_that_is_reached_is_that_of_the_file():
    subject = onnxprune.open_model(str(RESNET), calibration=calibration(64), trusted=True)
    quick = Settings(allocation="uniform", criterion="l1", repair="statistics", quantize="int8")
    result = onnxprune.reach(subject, onnxprune.Target("size_mb", 0.25), quick)
    assert result.after.bytes <= 0.25e6
    assert result.macs_removed < 0.6  # in floats, three quarters of the weights would have had to go
