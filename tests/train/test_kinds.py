"""What stands in the way of training: batches of one size alone, and floating point other than float32."""

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.errors import UsageError
from onnxprune.graph.model import Graph
from onnxprune.runtime.sessions import open_session

torch = pytest.importorskip("torch")

from onnxprune.pipeline.training import train_and_prune  # noqa: E402
from onnxprune.pipeline.training_settings import TrainSettings  # noqa: E402
from onnxprune.train.network import Network, as_feeds, only_batch  # noqa: E402
from tests.channels.surgery import model_of  # noqa: E402

CONVS = "a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) c = Conv<pads=[1,1,1,1]>(r, v) d = Relu(c)"
WEIGHTS = "float[16,3,3,3] w, float[16] b, float[16,16,3,3] v"
CLASSES = "p = GlobalAveragePool(d) f = Flatten(p) y = Gemm<transB=1>(f, u)"


def spelled(batch):
    """The graph spells its batch in a Reshape, as one that was exported with a fixed batch may."""
    return model_of(
        f"""(float[{batch},3,8,8] x) => (float[] y) <{WEIGHTS}, float[6,16,1,1] u, int64[3] s = {{{batch}, 6, 64}}>
        {{ {CONVS} e = Conv(d, u) y = Reshape(e, s) }}"""
    )


def fixed(batch):
    """The port fixes the batch and nothing else does."""
    return model_of(f"(float[{batch},3,8,8] x) => (float[] y) <{WEIGHTS}, float[6,16] u> {{ {CONVS} {CLASSES} }}")


def mixing(batch):
    """Any batch runs, and every sample sees the others."""
    return model_of(
        f"""(float[{batch},3,8,8] x) => (float[] y) <{WEIGHTS}, float[6,16] u, int64[1] t = {{0}}>
        {{ m = ReduceMean<keepdims=1>(x, t) n = Add(x, m) {CONVS.replace("(x, w", "(n, w")} {CLASSES} }}"""
    )


def typed(port="float"):
    """Weights and arithmetic in float16, cast on the way in and out where the ports are of float."""
    of, inside = WEIGHTS.replace("float", "float16"), port == "float16"
    ins = "" if inside else "x = Cast<to=10>(x0) "
    ends = CLASSES if inside else CLASSES.replace("y = Gemm", "z = Gemm") + " y = Cast<to=1>(z)"
    return model_of(
        f"""({port}[N,3,8,8] {"x" if inside else "x0"}) => ({port}[N,6] y) <{of}, float16[6,16] u>
        {{ {ins}{CONVS} {ends} }}"""
    )


def double():
    """ONNX Runtime has no convolution in double precision, but matrices."""
    return model_of(
        """(double[N,3,8,8] x) => (double[N,6] y) <double[192,16] w, double[16] b, double[16,6] v>
        { f = Flatten(x) h = Gemm(f, w, b) r = Relu(h) y = MatMul(r, v) }"""
    )


def samples(model, count=48):
    port = model.graph.input[0]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type)
    return {port.name: np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(dtype)}


@pytest.mark.parametrize(("make", "takes"), [(spelled, True), (fixed, False), (mixing, True)])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_batch_that_a_graph_takes_alone_is_found(make, takes, batch):
    model = make(batch)
    x = samples(model, batch)
    assert only_batch(Network(Graph(model)), x) == (batch if takes else None)


def test_samples_go_through_in_batches_of_the_graph_s_own():
    model = spelled(2)
    x = samples(model, 6)["x"]
    session = open_session(model, threads=1)
    want = np.concatenate([session.run({"x": x[i : i + 2]})[0] for i in (0, 2, 4)])
    with torch.no_grad():
        got = Network(Graph(model), takes=2)(as_feeds({"x": x}))["y"].numpy()
    np.testing.assert_allclose(got, want, atol=1e-5)
    with pytest.raises(UsageError, match="batches of 2 alone, and was given 3"):
        Network(Graph(model), takes=2)(as_feeds({"x": x[:3]}))


MODELS = {
    "a spelled batch of 1": spelled(1),
    "a spelled batch of 4": spelled(4),
    "a fixed batch of 1": fixed(1),
    "samples that see each other": mixing(4),
    "float16 inside": typed(),
    "float16": typed("float16"),
    "double": double(),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kept", ["trained", "start"])
def test_distilled_all_the_same(name, kept, monkeypatch):
    """And no number of the file changes its type, whatever came of it."""
    monkeypatch.setattr("onnxprune.train.loop.beats", lambda after, before, little: kept == "trained")
    model = MODELS[name]
    result = onnxprune.prune(model, 0.5, calibration=samples(model, 96), repair="distill", epochs=2, threads=1)
    assert result.training[0].kept == kept and result.training[0].steps >= 2
    assert result.fidelity.cosine > 0.9
    types = {t.name: t.data_type for t in model.graph.initializer}
    assert types == {t.name: t.data_type for t in result.model.graph.initializer if t.name in types}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_gradients_rank_its_channels(name, criterion):
    model = MODELS[name]
    result = onnxprune.prune(model, 0.4, calibration=samples(model), criterion=criterion, round_to=1, threads=1)
    assert result.macs_removed > 0.39 and result.fidelity.cosine > 0.85


@pytest.mark.parametrize("name", ["a spelled batch of 4", "float16 inside"])
@pytest.mark.parametrize("method", ["csgd", "gsm", "gates", "tune"])
def test_trained_all_the_same(name, method):
    model = MODELS[name]
    subject = onnxprune.open_model(model, calibration=samples(model))
    result = train_and_prune(subject, TrainSettings(method, ratio=0.4, steps=6, batch=8))
    assert result.macs_removed > 0.39 and result.training[0].step == method
    assert result.fidelity.cosine > 0.9


def test_what_float16_cannot_hold_becomes_its_largest_number():
    model = typed()
    network = Network(Graph(model))
    with torch.no_grad():
        next(iter(network.parameters())).fill_(1e6)
    stored = onnx.numpy_helper.to_array(next(t for t in network.to_onnx().graph.initializer if t.name == "w"))
    assert stored.dtype == np.float16 and (stored == np.finfo(np.float16).max).all()
