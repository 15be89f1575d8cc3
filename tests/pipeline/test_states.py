"""Networks that are called step by step: a state whose second axis is the batch, a rate that is a single number, and a
recurrent layer in the bodies of nested Ifs, as the TorchScript exporter writes them."""

import json

import numpy as np
import onnx
import pytest

from onnxprune import api, cli
from onnxprune.errors import ModelError, UsageError
from onnxprune.pipeline.options import numbers
from onnxprune.runtime import ports
from tests.channels.surgery import model_of

LSTM = "o, hn, cn = LSTM<hidden_size=8>(t, w{k}, r{k}, b{k}, , h0, c0)"


def step_net(batch="B", x="B", value="rate"):
    """A convolution, then an LSTM that goes on from a state (2, B, 8); which of two depends on the rate."""

    def body(k, name):
        return f"""<float[1,32,16] w{k}, float[1,32,8] r{k}, float[1,64] b{k}>
            {{ {LSTM.format(k=k)} s{k} = Concat<axis=0>(hn, cn) f{k} = Squeeze(o, one) }}"""

    condition = {"rate": "int64 rate", "none": ""}[value]
    decide = "e = Equal(rate, sixteen)" if condition else "e = Greater(sixteen, zero)"
    text = f"""(float[{x},3,24] x, float[2,{batch},8] state, {condition}) => (float[1,{x},5] y, float[2,{batch},8] next)
        <float[32,3,3] a, float[16,32,3] c, float[8,5] v, float[5] bias, float[1,32,16] w0, float[1,32,8] r0, float[1,64] b0,
         float[1,32,16] w1, float[1,32,8] r1, float[1,64] b1, int64[1] one = {{1}}, int64 sixteen = {{16000}}, int64 zero = {{0}}, int64[2] cuts = {{1, 1}}>
        {{ p = Conv<pads=[1,1]>(x, a) q = Relu(p) j = Conv<pads=[1,1]>(q, c) k = Relu(j) t = Transpose<perm=[2,0,1]>(k)
           h0, c0 = Split<axis=0>(state, cuts) {decide}
           last, next = If(e) <then_branch = g1 () => (float[1,{x},8] l1, float[2,{batch},8] s1)
               {{ o1, hn1, cn1 = LSTM<hidden_size=8>(t, w0, r0, b0, , h0, c0) s1 = Concat<axis=0>(hn1, cn1)
                  e2 = Greater(sixteen, one)
                  l1 = If(e2) <then_branch = g3 () => (float[1,{x},8] l3) {{ l3 = Identity(hn1) }},
                               else_branch = g4 () => (float[1,{x},8] l4) {{ l4 = Add(hn1, cn1) }}> }},
              else_branch = g2 () => (float[1,{x},8] l2, float[2,{batch},8] s2)
               {{ o2, l2, cn2 = LSTM<hidden_size=8>(t, w1, r1, b1, , h0, c0) s2 = Concat<axis=0>(l2, cn2) }}>
           u = Relu(last) m = MatMul(u, v) y = Add(m, bias) }}"""  # fmt: skip
    return model_of(text.replace(", ) =>", ") =>"))


COUNT = 64
RNG = np.random.default_rng(0)
X = RNG.standard_normal((COUNT, 3, 24)).astype(np.float32)
STATE = RNG.standard_normal((2, COUNT, 8)).astype(np.float32)


def checked(model, calibration, **rest):
    result = api.prune(model, 0.25, calibration=calibration, round_to=1, **rest)
    assert result.surgery.exact and result.macs_removed > 0.24
    assert result.fidelity.samples == COUNT // 4
    return result


def test_the_axis_is_found():
    specs = {s.name: s for s in ports.input_specs(step_net())}
    assert [specs[name].batch_axis for name in ("x", "state", "rate")] == [0, 1, 0]
    assert ports.shape_hint([*specs.values()]) == "--input-value rate=NUMBER"
    feeds = ports.default_feed([*specs.values()], batch=3)
    assert {name: v.shape for name, v in feeds.items()} == {"x": (3, 3, 24), "state": (2, 3, 8), "rate": ()}


@pytest.mark.parametrize("repair", ["merge", "statistics", "refit"])
def test_a_state_with_its_batch_in_the_second_axis(repair):
    checked(step_net(), {"x": X, "state": STATE, "rate": np.array(16000)}, repair=repair)


def test_stacked_states(tmp_path):
    np.savez(tmp_path / "c.npz", x=X, state=STATE.transpose(1, 0, 2)[:, :, None])
    found = checked(step_net(), tmp_path / "c.npz", input_value={"rate": (16000,)})
    other = checked(step_net(), {"x": X, "state": STATE, "rate": np.array(16000)})
    assert found.plan.edits == other.plan.edits and found.fidelity == other.fidelity
    np.savez_compressed(tmp_path / "d.npz", x=X, state=STATE, rate=np.full(COUNT, 16000))
    checked(step_net(), tmp_path / "d.npz")


@pytest.mark.parametrize("batch_axis", [None, {"state": 1}])
def test_a_fixed_batch_of_one(batch_axis):
    stacked = {"x": X[:, None], "state": STATE.transpose(1, 0, 2)[:, :, None], "rate": np.array(16000)}
    checked(step_net(batch="1", x="1"), stacked, batch_axis=batch_axis)


def test_an_axis_that_is_said():
    model = step_net(batch="M", x="N")
    data = {"x": X, "state": STATE, "rate": np.array(16000)}
    result = checked(model, data, batch_axis={"state": 1})
    assert result.plan.settings["batch_axis"] == {"state": 1}
    for wrong, words in (({"stat": 1}, "did you mean.*state"), ({"state": 3}, "has 3 axes")):
        with pytest.raises(UsageError, match=words):
            api.open_model(model, batch_axis=wrong)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rat": (1,)}, "did you mean.*rate"),
        ({"rate": (1, 2)}, "2 numbers do not fit"),
        ({"rate": (0.5,)}, "whole numbers"),
    ],
)
def test_values_that_do_not_fit(given, words):
    with pytest.raises(UsageError, match=words):
        api.open_model(step_net(), input_value=given)


@pytest.mark.parametrize(("word", "value"), [("true", 1.0), ("False", 0.0), ("0.5", 0.5)])
def test_a_yes_or_no_may_be_said(word, value):
    assert numbers(word) == (value,)


def test_from_the_command_line(tmp_path, capsys):
    onnx.save(step_net(batch="M", x="N"), tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=X, state=STATE)
    said = ["--calib", tmp_path / "c.npz", "--input-value", "rate=16000", "--batch-axis", "state=1", "--json"]
    argv = [tmp_path / "m.onnx", "--ratio", "0.25", "--round-to", "1", *said, "-o", tmp_path / "o.onnx"]
    assert cli.main([*map(str, argv)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["input_value"] == {"rate": [16000.0]} and found["settings"]["batch_axis"] == {"state": 1}
    for more in (
        ["inspect", tmp_path / "m.onnx", *said],
        ["bench", tmp_path / "m.onnx", tmp_path / "o.onnx", "--rounds", "10", *said[2:6]],
    ):
        assert cli.main([*map(str, more)]) == 0
    assert cli.main(["inspect", str(tmp_path / "m.onnx"), "--input-value", "rate"]) == 2


def test_what_a_number_is_must_be_said():
    """A rate that a random run takes for zero."""
    model = model_of("""(float[N,3,8,8] x, int64 size) => (float[] y) <float[8,3,3,3] a, float[4,8,1,1] b, int64[1] five = {5}, int64[1] one = {1}>
        { h = Conv(x, a) r = Relu(h) k = Conv(r, b) s0 = Reshape(size, one) s = Sub(s0, five) f = Concat<axis=0>(one, s) u = Flatten(k)
          g = Reshape(u, f) y = Relu(g) }""")
    with pytest.raises(ModelError, match="--input-value size=NUMBER"):
        api.open_model(model)
    assert api.open_model(model, input_value={"size": (149,)}).channels.groups
