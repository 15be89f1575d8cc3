"""Prices by widths are the prices of the very channels."""

import numpy as np
import onnx
import pytest

from onnxprune import api
from onnxprune.channels import find_channels
from onnxprune.errors import BudgetError
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.measure.cost import CostModel, WidthCost, count_macs, count_params
from onnxprune.pipeline.inspection import recheck
from onnxprune.pipeline.preview import preview
from tests.channels.surgery import feeds_of, model_of, rows
from tests.channels.test_rules import ROWS
from tests.rewrite.steps import cut

QUANTIZED = """(float[1,3,8,8] x) => (uint8[] y) <float s = {0.125}, uint8 z = {128}, int8[8,3,3,3] w, int8 zw = {0},
    int8[4,8] v, int32[4] c, int8[4,6] m>
    { q = QuantizeLinear(x, s, z) h = QLinearConv<pads=[1,1,1,1]>(q, s, z, w, s, zw, s, z)
      p = com.microsoft.QLinearGlobalAveragePool(h, s, z, s, z) f = Flatten(p)
      g = com.microsoft.QGemm<transB=1>(f, s, z, v, s, zw, c, s, z) y = QLinearMatMul(g, s, z, m, s, zw, s, z) }"""
NET = """(float[N,3,8,8] x) => (float[] y)
    <float[8,3,3,3] a, float[8,1,3,3] b, float[6,8,1,1] c, float[6,6,3,3] d, float[4,6] e>
    { h = Conv<pads=[1,1,1,1]>(x, a) i = Conv<pads=[1,1,1,1], group=8>(h, b) j = Conv(i, c)
      k = Conv<pads=[1,1,1,1]>(j, d) s = Add(j, k) g = GlobalAveragePool(s) f = Flatten(g) y = Gemm<transB=1>(f, e) }"""


UNCUT_LAST = """(float[2,3,8,8] x) => (float[] y, float[] z) <float[8,3,3,3] a, float[6,8,3,3] b, float[1,4,6] w, float[1,4,4] r,
    float[4,7] e, int64[1] zero = {0}>
    { h = Conv<pads=[1,1,1,1]>(x, a) i = Conv<pads=[1,1,1,1]>(h, b) g = GlobalAveragePool(i) f = Flatten(g)
      s = Unsqueeze(f, zero) t, z = RNN<hidden_size=4>(s, w, r) y = MatMul(z, e) }"""


@pytest.mark.parametrize("of", ["macs", "params", "channels"])
@pytest.mark.parametrize("text", [NET, UNCUT_LAST], ids=["residual", "layers with nothing to cut come last"])
def test_prices_by_widths(of, text):
    model = model_of(text)
    graph = Graph(model)
    channels = find_channels(graph, observe(graph, feeds_of(model, N=1)))
    cost = CostModel(graph, channels, of)
    by_width = WidthCost(cost, channels.groups)
    for widths in ([g.width for g in channels.groups], [3, 2], [5, 6], [1, 1]):
        alive = channels.alive({g.name: range(w) for g, w in zip(channels.groups, widths, strict=True)})
        assert by_width.removed(np.array(widths)) == pytest.approx(cost.removed(alive), abs=1e-12)
        singles = [cost.per_unit(alive)[g.units[0]] for g in channels.groups]
        assert by_width.per_channel(np.array(widths)) == pytest.approx(singles)


def test_quantized_products_cost_too():
    """8·3·3·3 multiplications at each of 64 positions, 4·8 of the dense layer, 4·6 of the product."""
    model = model_of(QUANTIZED)
    graph = Graph(model)
    channels = find_channels(graph, observe(graph, feeds_of(model)))
    cost = CostModel(graph, channels)
    assert cost.total == count_macs(graph, channels.shapes) == 64 * 216 + 4 * 8 + 4 * 6
    half = channels.alive({g.name: range(g.width // 2) for g in channels.groups})
    assert [g.width for g in channels.groups] == [8, 4] and cost(half) == 64 * 216 / 2 + 4 * 8 / 4 + 4 * 6 / 2


SHARED = """(float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] a, float[8,8,3,3] w, float[8,8,3,3] v, float[4,8,1,1] e>
    { h = Conv<pads=[1,1,1,1]>(x, a) i = Conv<pads=[1,1,1,1]>(h, w) r = Relu(i) j = Conv<pads=[1,1,1,1]>(r, w)
      u = Identity(v) k = Conv<pads=[1,1,1,1]>(j, u) y = Conv(k, e) }"""


@pytest.mark.parametrize("widths", [[8, 8, 8, 8], [8, 4, 8, 8], [2, 3, 4, 5], [4, 3, 2, 1]])
def test_a_weight_of_several_layers_is_counted_once_whole_and_apart_when_cut(widths):
    """`w` becomes two weights; the estimate is what would be written, but where nothing is cut."""
    model = model_of(SHARED)
    graph = Graph(model)
    channels = find_channels(graph, observe(graph, feeds_of(model, N=1)))
    assert [g.width for g in channels.groups] == [8] * 4
    cost = CostModel(graph, channels, "params")
    keep = {g.name: range(w) for g, w in zip(channels.groups, widths, strict=True)}
    alive = channels.alive(keep)
    written = count_params(cut(graph, channels, alive))
    assert cost.total == count_params(model)
    if min(widths) < 8:
        assert cost(alive) == written
        assert cost.removed(alive) == pytest.approx(1 - written / count_params(model))


def test_a_file_that_holds_more_than_before_says_so():
    text = """(float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] a, float[8,8,3,3] w, float[4,8,1,1] e>
    { h = Conv<pads=[1,1,1,1]>(x, a) i = Conv<pads=[1,1,1,1]>(h, w) r = Relu(i) j = Conv<pads=[1,1,1,1]>(r, w)
      s = Relu(j) k = Conv<pads=[1,1,1,1]>(s, w) y = Conv(k, e) }"""
    grown = api.prune(model_of(text), 0.1, round_to=1)
    assert grown.after.params > grown.before.params and any("several layers share" in w for w in grown.warnings)
    for_size = api.prune(model_of(text), 0.4, of="params", round_to=1)
    assert 0.55 <= for_size.after.params / for_size.before.params <= 0.65  # the repair adds biases
    assert not any("several layers share" in w for w in for_size.warnings)


@pytest.mark.parametrize("case", rows(ROWS))
@pytest.mark.parametrize("share", [0.5, 0.25])
def test_prices_are_what_the_cut_network_costs(case, share):
    """Whatever multiplies: the price of any choice of channels is a count of the network without the others."""
    model = model_of(case.text, case.opset)
    graph, feeds = Graph(model), feeds_of(model)
    channels = find_channels(graph, observe(graph, feeds))
    alive = channels.alive({g.name: range(max(1, round(g.width * share))) for g in channels.groups})
    pruned = Graph(cut(graph, channels, alive))
    seen = observe(pruned, feeds)
    assert CostModel(graph, channels)(alive) == pytest.approx(count_macs(pruned, seen.shapes, seen.ran), rel=1e-6)


DEQUANTIZED = """(float[N,6,12] x) => (float[] y) <float s = {0.125}, int8 z = {0}, int8[12,8] w, int8[8,4] v, int8[4,5] u>
    { a = DequantizeLinear(w, s, z) b = DequantizeLinear(v, s, z) c = DequantizeLinear(u, s, z)
      h = MatMul(x, a) r = Relu(h) i = MatMul(r, b) t = Tanh(i) y = MatMul(t, c) }"""


def test_products_with_quantized_weights_cost_by_what_they_read_and_write():
    model = model_of(DEQUANTIZED)
    graph = Graph(model)
    channels = find_channels(graph, observe(graph, feeds_of(model, N=1)))
    assert [g.width for g in channels.groups] == [8, 4]
    half = channels.alive({g.name: range(g.width // 2) for g in channels.groups})
    assert CostModel(graph, channels)(half) == 6 * (12 * 4 + 4 * 2 + 2 * 5)


@pytest.mark.parametrize("zero", [128, 100])
def test_integer_layers_are_pruned_with_samples(zero):
    model = model_of(QUANTIZED.replace("uint8 z = {128}", f"uint8 z = {{{zero}}}"))
    x = np.random.default_rng(0).standard_normal((12, 3, 8, 8)).astype(np.float32)
    result = api.prune(model, 0.5, calibration=x, round_to=1, repair="none")
    assert result.surgery.exact and result.fidelity.equal is not None and 0.49 <= result.macs_removed < 0.51


def test_sequences_of_tensors_are_repaired():
    text = """(float[N,3,8,8] x) => (float[] y) <float[16,3,3,3] a, float[8,4,3,3] b, float[6,16,1,1] c, float[5,6,1,1] d,
        int64 four = {4}, int64 one = {1}, int64 two = {2}>
        { h = Conv(x, a) s = SplitToSequence<axis=1>(h, four) p = SequenceAt(s, one) q = SequenceAt(s, two)
          i = Conv<pads=[1,1,1,1]>(p, b) e = Concat<axis=1>(p, q, i) r = Relu(e) j = Conv(r, c) k = Relu(j) y = Conv(k, d) }"""
    x = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    for samples in (None, x):
        result = api.prune(model_of(text), 0.1, calibration=samples, round_to=1, best_effort=True)
        assert result.surgery.exact and result.macs_removed > 0.05
    assert result.fidelity.sqnr_db > 5


@pytest.mark.parametrize("samples", [False, True])
def test_macs_of_quantized_layers_are_those_of_the_file(samples):
    """The weight behind DequantizeLinear gets smaller on both axes."""
    text = """(float[N,3,8,8] x) => (float[] y) <float s = {0.125}, int8 z = {0}, int8[16,3,3,3] w, int8[16,16,3,3] v, int8[5,16,1,1] u>
    { a = DequantizeLinear(w, s, z) b = DequantizeLinear(v, s, z) c = DequantizeLinear(u, s, z)
      h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) i = Conv<pads=[1,1,1,1]>(r, b) t = Relu(i) y = Conv(t, c) }"""
    x = np.random.default_rng(0).standard_normal((12, 3, 8, 8)).astype(np.float32)
    result = api.prune(model_of(text), 0.5, calibration=x if samples else None)
    w, v, u = (tuple(t.dims) for t in result.model.graph.initializer if len(t.dims) == 4)
    assert result.after.macs == 64 * sum(map(np.prod, (w, v, u))) and 0.49 < result.macs_removed < 0.75
    assert result.repair == ("refit" if samples else "merge")
    assert {t.data_type for t in result.model.graph.initializer if len(t.dims) == 4} == {onnx.TensorProto.INT8}


def test_squares_of_half_precision_are_summed_in_full():
    text = """(float[N,3,16,16] x) => (float[] y) <float16[16,3,3,3] w, float16[16,16,3,3] v, float16[5,16,1,1] u>
    { k = Cast<to=10>(x) h = Conv<pads=[1,1,1,1]>(k, w) r = Relu(h) i = Conv<pads=[1,1,1,1]>(r, v) t = Relu(i)
      q = Conv(t, u) y = Cast<to=1>(q) }"""
    x = 40 * np.random.default_rng(0).standard_normal((16, 3, 16, 16)).astype(np.float32)
    for allocation in ("uniform", "adaptive"):
        result = api.prune(model_of(text), 0.3, calibration=x, round_to=1, allocation=allocation)
        assert result.surgery.exact and np.isfinite(result.fidelity.cosine) and result.fidelity.sqnr_db > 3


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_cost_what_they_multiply(op, gates):
    """Six steps of two samples, both ways, a state of 4; what the layer reads gets smaller, its state does not."""
    text = f"""(float[6,2,12] x) => (float[] y) <float[12,8] u, float[2,{4 * gates},8] w, float[2,{4 * gates},4] r>
    {{ m = MatMul(x, u) a = Relu(m) y, h = {op}<hidden_size=4, direction="bidirectional">(a, w, r) }}"""
    model = model_of(text)
    graph = Graph(model)
    channels = find_channels(graph, observe(graph, feeds_of(model)))
    cost = CostModel(graph, channels)
    assert cost.total == count_macs(graph, channels.shapes) == 12 * (12 * 8 + 2 * 4 * gates * (8 + 4))
    half = channels.alive({"u": range(4)})
    pruned = Graph(cut(graph, channels, half))
    now = 12 * (12 * 4 + 2 * 4 * gates * (4 + 4))
    assert cost(half) == count_macs(pruned, observe(pruned, feeds_of(model)).shapes) == now
    result = api.prune(model, 0.2, round_to=1, best_effort=True)
    assert result.before.macs == cost.total and result.macs_removed > 0.05


def test_lengths_of_sequences_count_whatever_is_cut():
    """Lengths that the graph computes: the sums of a run, at any widths."""
    text = """(float[6,2,12] x, int32[2] n) => (float[] y) <float[12,8] u, float[1,16,8] w, float[1,16,4] r, int32 one = {1}>
    { m = MatMul(x, u) a = Relu(m) k = Add(n, one) y, h = LSTM<hidden_size=4>(a, w, r, , k) }"""
    model = model_of(text)
    graph, feeds = Graph(model), feeds_of(model) | {"n": np.array([1, 3], np.int32)}
    channels = find_channels(graph, observe(graph, feeds))
    half = channels.alive({"u": range(4)})
    pruned = Graph(cut(graph, channels, half))
    seen = observe(pruned, feeds)
    assert CostModel(graph, channels).total == 12 * 12 * 8 + 6 * 16 * (8 + 4)
    assert (
        CostModel(graph, channels)(half) == count_macs(pruned, seen.shapes, seen.ran) == 12 * 12 * 4 + 6 * 16 * (4 + 4)
    )


LOOPED = """(float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] a, float[6,8,1,1] b, int64 n = {5}, bool go = {1}, float[6,6,3,3] w>
    { h = Conv(x, a) r = Relu(h) k = Conv(r, b) y = Loop(n, go, k) <body = l (int64 i, bool g, float[N,6,6,6] s) =>
        (bool g2, float[N,6,6,6] s2) { g2 = Identity(g) s2 = Conv<pads=[1,1,1,1]>(s, w) }> }"""


def test_a_loop_counts_before_and_after():
    inside = 5 * 36 * 6 * 6 * 9
    result = api.prune(model_of(LOOPED), 0.05, round_to=1)
    assert result.before.macs == 36 * (8 * 27 + 6 * 8) + inside
    assert inside < result.after.macs < result.before.macs and result.macs_removed < 0.06
    with pytest.raises(BudgetError, match="of the macs can go"):
        api.prune(model_of(LOOPED), 0.5, round_to=1)


EINSUMS = {
    "turned": ("float[N,16] x", "float[24,16] w", "float[5,24] v", "nc,dc->nd", "nc,dc->nd"),
    "as it is": ("float[N,16] x", "float[16,24] w", "float[24,5] v", "nc,cd->nd", "ab,bc"),
    "on the left": ("float[N,16] x", "float[24,16] w", "float[5,24] v", "dc,nc->nd", "dc,nc->nd"),
    "sequence": ("float[N,7,16] x", "float[16,24] w", "float[5,24] v", "nsc,cd->nsd", "nsc,dc->nsd"),
    "maps": ("float[N,16,3,3] x", "float[24,16] w", "float[24,5] v", "nchw,dc->ndhw", "nchw,cd->ndhw"),
}


@pytest.mark.parametrize("repair", ["none", "merge", "statistics", "refit"])
@pytest.mark.parametrize("name", EINSUMS)
def test_a_network_of_einsums_is_counted_cut_and_repaired(name, repair):
    read, w, v, first, last = EINSUMS[name]
    explicit = last if "->" in last else f"{last}->ac"
    (one, two), (three, four) = (("w", "x"), ("v", "b")) if name == "on the left" else (("x", "w"), ("b", "v"))
    text = f"""({read}) => (float[] y) <{w}, {v}>
        {{ a = Einsum<equation="{first}">({one}, {two}) b = Relu(a) y = Einsum<equation="{explicit}">({three}, {four}) }}"""
    model = model_of(text)
    shape = [d.dim_value or 400 for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32) + 0.5
    result = api.prune(model, 0.5, calibration=x, repair=repair, round_to=1)
    places = np.prod(shape[1:]) // 16
    assert result.before.macs == places * 24 * (16 + 5) and result.after.macs == places * 12 * (16 + 5)
    assert result.surgery.exact and result.repair == repair
    plain = api.prune(model, 0.5, calibration=x, repair="none", round_to=1)
    assert repair == "none" or result.fidelity.sqnr_db > plain.fidelity.sqnr_db


SHARED_BIAS = """(float[N,3,8,8] x) => (float[] y)
    <float[16,3,3,3] a, float[8,16,3,3] b, float[8,3,3,3] c, float[4,8,1,1] d, float[8] scale, float[8] bias, float[8] mean,
     float[8] var, float[16,4] e, float[4,5] f>
    { h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) i = Conv<pads=[1,1,1,1]>(r, b) m = BatchNormalization(i, scale, bias, mean, var)
      j = Conv<pads=[1,1,1,1]>(x, c) n = BatchNormalization(j, scale, bias, mean, var) s = Add(m, n) t = Relu(s)
      k = Conv(t, d) y = GlobalAveragePool(k) }"""


@pytest.mark.parametrize("samples", [False, True])
@pytest.mark.parametrize(
    "text",
    [NET, LOOPED, SHARED, SHARED_BIAS, QUANTIZED, DEQUANTIZED],
    ids=["residual", "looped", "shared", "shared bias", "quantized", "dequantized"],
)
def test_everybody_says_the_same(text, samples, tmp_path):
    """What a plan promises, what `apply` says, and what `inspect` and `verify` say of the file, that to the byte."""
    model = model_of(text)
    shape = [d.dim_value or 40 for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).standard_normal((40, *shape[1:])).astype(np.float32) if samples else None
    subject, settings = api.open_model(model, calibration=x), api.Settings(round_to=1, best_effort=True)
    plan = api.make_plan(subject, 0.4, settings)
    planned, done = preview(subject, plan, settings), api.apply_plan(subject, plan, settings)
    path = done.save(tmp_path / "pruned.onnx")
    written = api.open_model(path, input_shapes={k: v.shape for k, v in subject.feeds.items()}).cost()
    *_, verified = recheck(subject, plan, onnx.load(path))
    assert planned.before == done.before == subject.cost()
    assert (planned.after.macs, planned.after.params) == (done.after.macs, done.after.params)
    assert done.after == written == verified and path.stat().st_size == written.bytes
    assert done.after.macs < done.before.macs
