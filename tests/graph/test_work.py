"""Multiply-accumulates by hand, a row a form of an operator; every row runs in ONNX Runtime."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, load, numpy_helper

from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.graph.work import uncounted, work
from onnxprune.measure.cost import count_macs
from tests.channels.surgery import feeds_of, model_of, newest_opset

Q = "float s = {0.125}, uint8 z = {128}, int8 zw = {0}"
ROWS = {  # name: (inputs, weights, nodes that end in `y`, multiply-accumulates, opset)
    "einsum, weight turned": ("float[3,6] x", "float[5,6] w", 'y = Einsum<equation="nc,dc->nd">(x, w)', 3 * 6 * 5),
    "einsum, output implicit": ("float[3,6] x", "float[6,5] w", 'y = Einsum<equation="nc,cd">(x, w)', 3 * 6 * 5),
    "einsum, sum over all": ("float[3,6] x", "float[3,6] w", 'y = Einsum<equation="nc,nc->">(x, w)', 3 * 6),
    "einsum, element by element": ("float[3,6] x", "float[3,6] w", 'y = Einsum<equation="nc,nc->nc">(x, w)', 3 * 6),
    "einsum, dots": ("float[2,4,6] x", "float[6,5] w", 'y = Einsum<equation="...c,cd->...d">(x, w)', 2 * 4 * 6 * 5),
    "einsum, dots that spread": ("float[1,4,6] x", "float[3,1,6,5] w",
                                 'y = Einsum<equation="...c,...cd->...d">(x, w)', 3 * 4 * 6 * 5),
    "einsum, dots and no output": ("float[2,4,6] x", "float[6,5] w", 'y = Einsum<equation="...c,cd">(x, w)', 240),
    "einsum, three operands": ("float[2,3] x", "float[3,4] w, float[4,5] v",
                               'y = Einsum<equation="ab,bc,cd->ad">(x, w, v)', 2 * 3 * 4 * 5),
    "einsum, diagonal": ("float[4,4] x", "float[4] w", 'y = Einsum<equation="ii,i->i">(x, w)', 4),
    "einsum, one stands for all": ("float[3,1] x", "float[5,6] w", 'y = Einsum<equation="nc,dc->nd">(x, w)', 3 * 6 * 5),
    "einsum, one operand": ("float[3,6] x", "", 'y = Einsum<equation="nc->cn">(x)', 0),
    "conv in groups": ("float[2,4,6,6] x", "float[8,2,3,3] w", "y = Conv<group=2>(x, w)", 2 * 8 * 16 * 18),
    "conv, transposed": ("float[2,4,6,6] x", "float[4,3,2,2] w", "y = ConvTranspose<strides=[2,2]>(x, w)", 288 * 12),
    "conv, deformed": ("float[1,4,6,6] x, float[1,36,4,4] o", "float[8,2,3,3] w",
                       "y = DeformConv<group=2, offset_group=2>(x, w, o)", 8 * 16 * 18, 19),
    "conv, fused": ("float[2,4,6,6] x", "float[8,4,3,3] w, float[8] b",
                    'y = com.microsoft.FusedConv<activation="Relu">(x, w, b)', 2 * 8 * 16 * 36),
    "conv of integers": ("uint8[2,4,6,6] x", "uint8[8,4,3,3] w", "y = ConvInteger(x, w)", 2 * 8 * 16 * 36),
    "conv, quantized": ("uint8[2,4,6,6] x", f"{Q}, int8[8,4,3,3] w", "y = QLinearConv(x, s, z, w, s, zw, s, z)", 9216),
    "matmul in stacks": ("float[2,3,4,6] x", "float[3,6,5] w", "y = MatMul(x, w)", 2 * 3 * 4 * 6 * 5),
    "matmul of vectors": ("float[6] x", "float[6] w", "y = MatMul(x, w)", 6),
    "gemm, both turned": ("float[6,3] x", "float[5,6] w", "y = Gemm<transA=1, transB=1>(x, w)", 3 * 6 * 5),
    "gemm, fused": ("float[6,3] x", "float[6,5] w, float[5] b",
                    'y = com.microsoft.FusedGemm<transA=1, activation="Relu">(x, w, b)', 3 * 6 * 5),
    "matmul, fused": ("float[2,6,3] x", "float[6,5] w", "y = com.microsoft.FusedMatMul<transA=1>(x, w)", 2 * 3 * 6 * 5),
    "matmul, fused, batch turned": ("float[4,2,6] x", "float[2,6,5] w",
                                    "y = com.microsoft.FusedMatMul<transBatchA=1>(x, w)", 2 * 4 * 6 * 5),
    "matmul, fused, all turned": ("float[6,2,4] x", "float[2,6,5] w",
                                  "y = com.microsoft.FusedMatMul<transA=1, transBatchA=1>(x, w)", 2 * 4 * 6 * 5),
    "matmul of integers": ("uint8[3,6] x", "int8[6,5] w", "y = MatMulInteger(x, w)", 90),
    "matmul, quantized": ("uint8[3,6] x", f"{Q}, int8[6,5] w", "y = QLinearMatMul(x, s, z, w, s, zw, s, z)", 90),
    "matmul of integers, to float": ("uint8[3,6] x", f"{Q}, int8[6,5] w",
                                     "y = com.microsoft.MatMulIntegerToFloat(x, w, s, s, z, zw)", 90),
    "matmul, quantized as it runs": ("float[3,6] x", f"{Q}, int8[6,5] w",
                                     "y = com.microsoft.DynamicQuantizeMatMul(x, w, s, zw)", 90),
    "matmul, weight in blocks": ("float[2,3,32] x", "uint8[5,2,8] w, float[10] s",
                                 "y = com.microsoft.MatMulNBits<K=32, N=5, bits=4, block_size=16>(x, w, s)", 6 * 32 * 5),
    "gemm, quantized": ("uint8[3,6] x", f"{Q}, int8[5,6] w, int32[5] b",
                        "y = com.microsoft.QGemm<transB=1>(x, s, z, w, s, zw, b, s, z)", 90),
    "distances": ("float[3,6] x", "float[5,6] w", 'y = com.microsoft.CDist<metric="euclidean">(x, w)', 90),
    "lstm, both ways": ("float[7,2,6] x", "float[2,16,6] w, float[2,16,4] r",
                        'y = LSTM<hidden_size=4, direction="bidirectional">(x, w, r)', 14 * 2 * 16 * 10),
    "gru, last state alone": ("float[7,2,6] x", "float[1,12,6] w, float[1,12,4] r",
                              'n, y = GRU<hidden_size=4>(x, w, r)', 14 * 12 * 10),
    "rnn, lengths given": ("float[7,2,6] x", "float[1,4,6] w, float[1,4,4] r, int32[2] n = {3, 5}",
                           'y, h = RNN<hidden_size=4>(x, w, r, , n)', 8 * 4 * 10),
    "rnn, lengths computed": ("float[7,2,6] x, int32[2] n", "float[1,4,6] w, float[1,4,4] r, int32 one = {1}",
                              'm = Add(n, one) y, h = RNN<hidden_size=4>(x, w, r, , m)', "n + 2", ),
    "attention": ("float[2,3,5,4] q, float[2,3,7,4] k, float[2,3,7,6] v", "", "y = Attention(q, k, v)",
                  2 * 3 * 5 * 7 * (4 + 6), 23),
    "attention, several queries a key": ("float[2,5,16] q, float[2,7,8] k, float[2,7,12] v", "",
                                         "y = Attention<q_num_heads=4, kv_num_heads=2>(q, k, v)",
                                         2 * 5 * 7 * 16 + 2 * 5 * 7 * 4 * 6, 23),
    "attention, with a cache": ("float[2,3,5,4] q, float[2,3,5,4] k, float[2,3,5,6] v, float[2,3,7,4] p, float[2,3,7,6] r",
                                "", "y, pk, pv = Attention(q, k, v, , p, r)", 2 * 3 * 5 * 12 * (4 + 6), 23),
    "attention, projecting": ("float[2,5,8] x", "float[8,24] w, float[24] b",
                              "y = com.microsoft.Attention<num_heads=2>(x, w, b)", 10 * 8 * 24 + 2 * 2 * 25 * 8),
    "attention, projecting, of their own sizes": (
        "float[2,5,8] x", "float[8,20] w, float[20] b",
        "y = com.microsoft.Attention<num_heads=2, qkv_hidden_sizes=[8,8,4]>(x, w, b)", 10 * 8 * 20 + 50 * (8 + 4)),
    "attention, projecting, with a cache": (
        "float[1,5,8] x, float[2,1,2,3,4] p", "float[8,24] w, float[24] b",
        "y, n = com.microsoft.Attention<num_heads=2, unidirectional=1>(x, w, b, , p)", 5 * 8 * 24 + 2 * 5 * 8 * 8),
    "attention, quantized": ("uint8[2,5,8] x", f"{Q}, int8[8,24] w, float[24] b",
                             "y = com.microsoft.QAttention<num_heads=2>(x, w, b, s, s, , z, zw)", 10 * 8 * 24 + 800),
    "attention by heads": ("float[2,5,8] q, float[2,7,8] k, float[2,7,8] v", "",
                           "y = com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v)", 2 * 2 * 35 * 8),
    "attention by heads, crossed": ("float[2,5,8] q, float[2,2,7,4] k, float[2,2,7,4] v", "",
                                    "y = com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v)", 2 * 2 * 35 * 8),
    "attention by heads, with a cache": (
        "float[2,5,8] q, float[2,5,8] k, float[2,5,8] v, float[2,2,3,4] p, float[2,2,3,4] r", "",
        "y, pk, pv = com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v, , , , p, r)", 2 * 2 * 5 * 8 * 8),
    "attention in groups": (
        "float[1,5,32] q, float[1,5,16] k, float[1,5,16] v, float[1,2,3,8] p, float[1,2,3,8] r",
        "int32[1] n = {7}, int32 t = {8}",
        "y, pk, pv = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(q, k, v, p, r, n, t)", 2 * 5 * 8 * 32),
    "attention of one step": (
        "float[2,1,8] q, float[2,1,8] k, float[2,1,8] v, float[2,2,9,4] p, float[2,2,9,4] r", "int32[1] n = {6}",
        """y, pk, pv = com.microsoft.DecoderMaskedMultiHeadAttention<num_heads=2, past_present_share_buffer=1>(
           q, k, v, , , p, r, n)""", 2 * 2 * 7 * 8),
    "sampled, bilinear": ("float[1,3,4,4] x, float[1,5,6,2] g", "", "y = GridSample(x, g)", 3 * 30 * 4),
    "sampled, bicubic": ("float[1,3,4,4] x, float[1,5,6,2] g", "", 'y = GridSample<mode="bicubic">(x, g)', 90 * 16),
    "sampled, nearest": ("float[1,3,4,4] x, float[1,5,6,2] g", "", 'y = GridSample<mode="nearest">(x, g)', 0),
    "sampled in space": ("float[1,3,4,4,4] x, float[1,2,5,6,3] g", "", 'y = GridSample<mode="linear">(x, g)', 180 * 8, 20),
    "nothing that multiplies": ("float[1,3,4,4] x", "", "a = Relu(x) b = MaxPool<kernel_shape=[2,2]>(a) y = Mul(b, b)", 0),
}  # fmt: skip


def counted(text, opset=18):
    if opset > 18 and opset > newest_opset():
        pytest.skip(f"ONNX Runtime here has no opset {opset}")
    model = model_of(text, opset)
    graph, feeds = Graph(model), feeds_of(model)
    seen = observe(graph, feeds)
    assert uncounted(graph, seen.shapes, seen.ran) == ()
    return count_macs(graph, seen.shapes, seen.ran), feeds


@pytest.mark.parametrize("name", ROWS)
def test_by_hand(name):
    inputs, weights, nodes, macs, *opset = ROWS[name]
    kind = "int32" if "Integer(" in nodes else "uint8" if "QLinear" in nodes or "QGemm" in nodes else "float"
    text = f"({inputs}) => ({kind}[] y) {f'<{weights}>' if weights else ''} {{ {nodes} }}"
    found, feeds = counted(text, *opset)
    assert found == (macs if macs != "n + 2" else (feeds["n"].sum() + 2) * 4 * 10)


BRANCHES = """(float[2,6] x, bool c) => (float[] y) <float[6,5] w, float[6,5] v, float[5,5] u>
    {{ y = If({c}) <then_branch = t () => (float[2,5] a) {{ a = MatMul(x, w) }},
                    else_branch = e () => (float[2,5] b) {{ h = MatMul(x, v) b = MatMul(h, u) }}> }}"""
LOOP = """(float[2,6] x) => (float[] y) <int64 n = {7}, bool go = {1}, float[6,6] w>
    { y = Loop(n, go, x) <body = b (int64 i, bool g, float[2,6] s) => (bool g2, float[2,6] s2)
        { g2 = Identity(g) s2 = MatMul(s, w) }> }"""
UNTIL = """(float[1,6] x) => (float[] y) <int64 n = {100}, bool go = {1}, float[6,6] w, int64 four = {4}>
    { y = Loop(n, go, x) <body = b (int64 i, bool g, float[M,6] s) => (bool g2, float[N,6] s2)
        { g2 = Less(i, four) m = MatMul(s, w) s2 = Concat<axis=0>(s, m) }> }"""
NEVER = LOOP.replace("{7}", "{0}")
SCAN = """(float[2,6] x, float[7,2,6] t) => (float[] y) <float[6,6] w>
    { z, y = Scan<num_scan_inputs=1, scan_output_axes=[1], body = b (float[2,6] s, float[2,6] e) => (float[2,6] s2, float[2,6] o)
        { m = MatMul(s, w) s2 = Add(m, e) o = Identity(s2) }>(x, t) }"""
NESTED = """(float[2,6] x) => (float[] y) <int64 n = {7}, bool go = {1}, float[6,6] w, int64 two = {2}>
    { y = Loop(n, go, x) <body = b (int64 i, bool g, float[2,6] s) => (bool g2, float[2,6] s2)
        { g2 = Identity(g) k = Less(i, two)
          s2 = If(k) <then_branch = t () => (float[2,6] a) { a = MatMul(s, w) },
                      else_branch = e () => (float[2,6] q) { q = Loop(n, g, s)
            <body = c (int64 j, bool h, float[2,6] r) => (bool h2, float[2,6] r2) { h2 = Identity(h) r2 = MatMul(r, w) }> }> }> }"""
BODIES = {
    "the first branch": (BRANCHES.format(c="c"), 2 * 6 * 5),
    "the other branch": (BRANCHES.format(c="d").replace("{ y", "{ d = Not(c) y"), 2 * 6 * 5 + 2 * 5 * 5),
    "a loop": (LOOP, 7 * 2 * 6 * 6),
    "a loop that data end": (UNTIL, 36 * (1 + 2 + 4 + 8 + 16)),
    "a loop that never runs": (NEVER, 0),
    "a scan": (SCAN, 7 * 2 * 6 * 6),
    "one in another": (NESTED, (2 + 5 * 7) * 2 * 6 * 6),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_by_running(name):
    text, macs = BODIES[name]
    assert counted(text)[0] == macs


def test_a_body_for_every_element_of_a_sequence():
    def port(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)

    body = helper.make_graph([helper.make_node("MatMul", ["e", "w"], ["o"])], "b", [port("e")], [port("o")])
    nodes = [
        helper.make_node("SplitToSequence", ["x", "two"], ["s"], axis=0),
        helper.make_node("SequenceMap", ["s"], ["m"], body=body),
        helper.make_node("ConcatFromSequence", ["m"], ["y"], axis=0),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [6, 4])
    weights = [numpy_helper.from_array(np.ones((4, 5), np.float32), "w"), numpy_helper.from_array(np.array(2), "two")]
    made = helper.make_graph(nodes, "g", [x], [port("y")], weights)
    graph = Graph(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    seen = observe(graph, {"x": np.ones((6, 4), np.float32)})
    assert count_macs(graph, seen.shapes, seen.ran) == 6 * 4 * 5 and not uncounted(graph, seen.shapes, seen.ran)


@pytest.mark.parametrize("opset", [9, 12, 13])
def test_bodies_of_any_opset(opset):
    assert counted(LOOP, opset)[0] == 7 * 2 * 6 * 6


def test_blocked_convolutions_cost_what_the_plain_ones_do(tmp_path):
    """What ONNX Runtime's optimiser makes of a network; the channels fill its blocks."""
    model = model_of("(float[1,16,8,8] x) => (float[1,16,8,8] y) <float[32,16,3,3] w, float[16,32,1,1] v>"
                     "{ h = Conv<pads=[1,1,1,1]>(x, w) r = Relu(h) y = Conv(r, v) }")  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    graph = Graph(load(options.optimized_model_filepath))
    seen = observe(graph, feeds_of(model))
    assert count_macs(graph, seen.shapes) == 64 * (32 * 16 * 9 + 16 * 32) and not uncounted(graph, seen.shapes)


UNKNOWN = {
    "an operator without a rule": ("d = com.microsoft.Inverse(x)", [("com.microsoft.Inverse", "d")]),
    "one inside of a body": (
        "d = If(c) <then_branch = t () => (float[2,6,6] a) { a = com.microsoft.Inverse(x) },"
        " else_branch = e () => (float[2,6,6] b) { b = MatMul(x, x) }>", [("com.microsoft.Inverse", "a")]),
    "several": ("e = Det(x) f = com.microsoft.Inverse(x) g = com.microsoft.Inverse(f) h = ReduceSum(e) d = Mul(g, h)",
                [("Det", "e"), ("com.microsoft.Inverse", "f"), ("com.microsoft.Inverse", "g")]),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_named(name):
    nodes, expected = UNKNOWN[name]
    model = model_of(f"(float[2,6,6] x, bool c) => (float[] y) <float[6,5] w> {{ {nodes} y = MatMul(d, w) }}")
    graph = Graph(model)
    seen = observe(graph, feeds_of(model))
    assert [(u.op, u.node) for u in uncounted(graph, seen.shapes, seen.ran)] == expected
    assert [w.key for w in work(graph, seen.shapes, seen.ran) if w.macs] == ["y"]


def test_a_custom_operator_is_named_with_its_domain():
    node = helper.make_node("Foo", ["x"], ["y"], domain="com.acme")
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", ports[:1], ports[1:]))
    (found,) = uncounted(Graph(model), {"x": (1, 4), "y": (1, 4)})
    assert (found.node, found.op, found.why) == ("y", "com.acme.Foo", "it is not known to onnxprune")
    assert np.isfinite(count_macs(Graph(model), {}))
