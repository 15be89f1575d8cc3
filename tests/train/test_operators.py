"""Every operator in torch against ONNX Runtime, forward, and its gradient against finite differences where it matters."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")

from onnxprune.errors import UnsupportedError  # noqa: E402
from onnxprune.graph.model import Graph  # noqa: E402
from onnxprune.runtime import sessions  # noqa: E402
from onnxprune.train.network import Network, as_feeds  # noqa: E402
from onnxprune.train.operators import OPERATORS, op  # noqa: E402
from tests.channels import surgery  # noqa: E402

IMAGE = (2, 4, 6, 7)


def i64(*values):
    return np.array(values, np.int64)


def f32(*shape, seed=3):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def positive(*shape):
    return np.abs(f32(*shape)) + np.float32(0.5)


def one(op, constants=(), shape=IMAGE, opset=17, first=False, domain="", **attrs):
    """A model of one node: x, then the constants."""
    names = [f"c{k}" if c is not None else "" for k, c in enumerate(constants)]
    inputs = [*names, "x"] if first else ["x", *names]
    node = helper.make_node(op, inputs, ["y"] if op not in ("Split", "TopK") else ["y", "z"], domain=domain, **attrs)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UNDEFINED, None)],
        [numpy_helper.from_array(c, n) for c, n in zip(constants, names, strict=True) if c is not None],
    )
    graph.output[0].ClearField("type")
    opsets = [helper.make_opsetid(*at) for at in {"": opset, **({domain: 1} if domain else {})}.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def ms(op, constants=(), shape=(2, 3, 16), **attrs):
    """The same of an operator of ONNX Runtime's own."""
    return one(op, constants, shape, domain="com.microsoft", **attrs)


def of_text(text):
    """A model of several nodes."""
    return surgery.model_of(text)


ROWS = {
    "Conv": one("Conv", [f32(5, 4, 3, 3), f32(5)], pads=[1, 1, 1, 1]),
    "Conv pads of two kinds": one("Conv", [f32(5, 4, 3, 3)], pads=[0, 1, 2, 0], strides=[2, 1], dilations=[1, 2]),
    "Conv grouped": one("Conv", [f32(8, 2, 3, 3), f32(8)], group=2),
    "Conv SAME_UPPER": one("Conv", [f32(5, 4, 2, 3)], auto_pad="SAME_UPPER", strides=[2, 2]),
    "Conv SAME_LOWER": one("Conv", [f32(5, 4, 2, 2)], auto_pad="SAME_LOWER"),
    "Conv 1d": one("Conv", [f32(5, 4, 3)], shape=(2, 4, 9), pads=[1, 1]),
    "Conv 3d": one("Conv", [f32(5, 4, 2, 3, 3)], shape=(1, 4, 4, 5, 6)),
    "ConvTranspose": one("ConvTranspose", [f32(4, 3, 3, 3), f32(3)], strides=[2, 2], pads=[1, 1, 1, 1]),
    "ConvTranspose pads of two kinds": one("ConvTranspose", [f32(4, 3, 2, 2), f32(3)], strides=[2, 2], pads=[0, 1, 1, 0]),
    "ConvTranspose output_padding": one("ConvTranspose", [f32(4, 3, 3, 3), f32(3)], strides=[2, 2], output_padding=[1, 1]),
    "ConvTranspose grouped": one("ConvTranspose", [f32(4, 3, 3, 3)], group=2),
    "BatchNormalization": one("BatchNormalization", [f32(4), f32(4), f32(4), positive(4)], epsilon=1e-3),
    "InstanceNormalization": one("InstanceNormalization", [f32(4), f32(4)]),
    "LayerNormalization": one("LayerNormalization", [f32(7), f32(7)]),
    "LayerNormalization of two axes": one("LayerNormalization", [f32(6, 7)], axis=2),
    "Gemm": one("Gemm", [f32(5, 4), f32(5)], shape=(2, 4), transB=1, alpha=0.5, beta=2.0),
    "MatMul": one("MatMul", [f32(7, 3)]),
    "MatMul weight on the left": one("MatMul", [f32(3, 6)], first=True),
    "LRN": one("LRN", size=3),
    "MaxPool": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "MaxPool ceil": one("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "MaxPool pads of two kinds": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
    "AveragePool": one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "AveragePool counted": one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "AveragePool pads of two kinds": one("AveragePool", kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
    "GlobalAveragePool": one("GlobalAveragePool"),
    "GlobalMaxPool": one("GlobalMaxPool"),
    "Softmax": one("Softmax", axis=1),
    "Softmax opset 11": one("Softmax", opset=11),
    "LogSoftmax": one("LogSoftmax"),
    "Clip": one("Clip", [np.float32(-0.2), np.float32(0.3)]),
    "Clip opset 6": one("Clip", opset=6, min=-0.2, max=0.3),
    "Clip above only": one("Clip", [None, np.float32(0.3)]),
    "PRelu": one("PRelu", [f32(4, 1, 1)]),
    "LeakyRelu": one("LeakyRelu", alpha=0.2),
    "Elu": one("Elu", alpha=1.3),
    "Selu": one("Selu"),
    "HardSigmoid": one("HardSigmoid", alpha=0.3),
    "HardSwish": one("HardSwish"),
    "Gelu": one("Gelu", opset=20, approximate="tanh"),
    "Erf": one("Erf"),
    "Mod": one("Mod", [positive(7)], fmod=1),
    "Pow": one("Pow", [np.float32(2)]),
    "ReduceMean": one("ReduceMean", axes=[2, 3], keepdims=0),
    "ReduceMean opset 18": one("ReduceMean", [i64(1)], opset=18),
    "ReduceL2": one("ReduceL2", axes=[1]),
    "ReduceProd": one("ReduceProd", axes=[1, 3]),
    "ReduceLogSumExp": one("ReduceLogSumExp", axes=[1, 3]),
    "ArgMax": one("ArgMax", axis=1),
    "CumSum": one("CumSum", [np.array(1, np.int64)]),
    "TopK": one("TopK", [i64(3)], axis=1),
    "Reshape": one("Reshape", [i64(0, -1, 7)]),
    "Flatten": one("Flatten", axis=2),
    "Transpose": one("Transpose", perm=[0, 2, 3, 1]),
    "Squeeze": one("Squeeze", [i64(1)], shape=(2, 1, 3)),
    "Unsqueeze": one("Unsqueeze", [i64(1, -1)]),
    "Split": one("Split", [i64(1, 3)], axis=1),
    "Slice": one("Slice", [i64(1, -3), i64(4, 1000), i64(1, 3)]),
    "Slice backwards": one("Slice", [i64(-1), i64(-1000), i64(2), i64(-2)]),
    "Expand": one("Expand", [i64(2, 1, 4, 1)], shape=(3, 1, 5)),
    "Tile": one("Tile", [i64(1, 2, 1, 3)]),
    "Pad": one("Pad", [i64(0, 1, 0, 2, 0, 0, 1, 3), np.float32(0.5)]),
    "Pad reflect": one("Pad", [i64(0, 0, 1, 2, 0, 0, 1, 3)], mode="reflect"),
    "Pad edge": one("Pad", [i64(0, 0, 1, 2, 0, 0, 0, 1)], mode="edge"),
    "Pad smaller": one("Pad", [i64(0, 0, -1, 0, 0, 0, 0, -2)]),
    "Gather": one("Gather", [i64(3, -1)], axis=1),
    "Gather a scalar": one("Gather", [np.array(1, np.int64)], axis=2),
    "GatherElements": one("GatherElements", [np.zeros((2, 1, 6, 7), np.int64) - 1], axis=1),
    "GatherND": one("GatherND", [i64(0, 1, 1, 3).reshape(2, 2)]),
    "ScatterND": one("ScatterND", [i64(1, 3).reshape(1, 2), f32(1, 6, 7)]),
    "Trilu": one("Trilu", [np.array(1, np.int64)], upper=0),
    "DepthToSpace": one("DepthToSpace", blocksize=2),
    "DepthToSpace CRD": one("DepthToSpace", blocksize=2, mode="CRD"),
    "SpaceToDepth": one("SpaceToDepth", shape=(1, 2, 4, 6), blocksize=2),
    "Einsum": one("Einsum", [f32(7, 2)], equation="nchw,wk->nkh"),
    "Where": one("Where", [np.array([True, False] * 3 + [True]), f32(7)]),
    "Cast": one("Cast", to=TensorProto.INT64),
    **{name: one(name) for name in ("Celu", "Shrink", "Sinh", "Cosh", "Asinh")},
    "ThresholdedRelu": one("ThresholdedRelu", alpha=0.3),
    "Atanh": of_text("(float[2,4] x) => (float[2,4] y) <float t = {3.0}> { a = Div(x, t) y = Atanh(a) }"),
    "Acosh": of_text("(float[2,4] x) => (float[2,4] y) <float t = {3.5}> { a = Add(x, t) y = Acosh(a) }"),
    "MeanVarianceNormalization": one("MeanVarianceNormalization"),
    "RMSNormalization": one("RMSNormalization", [f32(7)], opset=23),
    "SimplifiedLayerNormalization": one("SimplifiedLayerNormalization", [f32(7)], axis=-1),
    "ArgMin": one("ArgMin", axis=1),
    "LpPool": one("LpPool", kernel_shape=[2, 3], strides=[2, 2]),
    "GlobalLpPool": one("GlobalLpPool", p=3),
    "MaxPool and MaxUnpool": of_text("""(float[2,4,6,8] x) => (float[2,4,6,8] y)
        { p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(p, i) }"""),
    "ScatterElements that adds": one("ScatterElements", [np.zeros((2, 1, 6, 7), np.int64) - 1, f32(2, 1, 6, 7)], axis=1,
                                     reduction="add", opset=18),
    "ReverseSequence": one("ReverseSequence", [i64(2, 5, 4, 1)], shape=(5, 4, 3)),
    "CenterCropPad": one("CenterCropPad", [i64(3, 10)], axes=[2, 3], opset=18),
    "Col2Im": one("Col2Im", [i64(4, 5), i64(2, 2)], shape=(1, 8, 12), opset=18),
    "Compress": one("Compress", [np.array([1, 0, 1, 1, 0, 0], bool)], axis=2),
    "QuickGelu": ms("QuickGelu", alpha=1.2),
    "Gelu of ONNX Runtime": ms("Gelu"),
    "BiasGelu": ms("BiasGelu", [f32(16)]),
    "FastGelu": ms("FastGelu", [f32(16)]),
    "FastGelu without a bias": ms("FastGelu"),
    "FusedConv": ms("FusedConv", [f32(5, 4, 3, 3), f32(5)], IMAGE, activation="Clip", activation_params=[-0.5, 0.7]),
    "FusedConv that adds": ms("FusedConv", [f32(4, 4, 1, 1), f32(4), f32(*IMAGE, seed=8)], IMAGE, activation="Relu"),
    "FusedGemm": ms("FusedGemm", [f32(5, 4), f32(5)], (2, 4), transB=1, activation="LeakyRelu", activation_alpha=0.2),
    "FusedMatMul": ms("FusedMatMul", [f32(2, 5, 16)], transB=1, alpha=0.3),
    "TransposeMatMul": ms("TransposeMatMul", [f32(2, 3, 5)], transA=1),
    "SkipLayerNormalization": ms("SkipLayerNormalization", [f32(2, 3, 16, seed=5), f32(16), f32(16), f32(16)]),
    "SkipSimplifiedLayerNormalization": ms("SkipSimplifiedLayerNormalization", [f32(2, 3, 16, seed=5), f32(16)]),
    "Attention of ONNX Runtime": ms("Attention", [f32(16, 24), f32(24)], num_heads=2),
    "Attention of ONNX Runtime, causal": ms("Attention", [f32(16, 24), f32(24)], num_heads=2, unidirectional=1),
    "MultiHeadAttention": ms("MultiHeadAttention", [f32(2, 5, 16), f32(2, 5, 8), f32(40)], num_heads=4),
    "MultiHeadAttention, keys by heads": ms("MultiHeadAttention", [f32(2, 4, 5, 4), f32(2, 4, 5, 4, seed=4)], num_heads=4),
    "RotaryEmbedding": one("RotaryEmbedding", [f32(5, 2), f32(5, 2, seed=4), i64(*range(3), *range(3)).reshape(2, 3)], (2, 3, 16), 23, num_heads=4),
    "RotaryEmbedding, pairs side by side": one("RotaryEmbedding", [f32(2, 3, 2), f32(2, 3, 2, seed=4)], (2, 4, 3, 4), 23, interleaved=1),
    "RotaryEmbedding of ONNX Runtime": ms("RotaryEmbedding", [i64(*range(3), *range(3)).reshape(2, 3), f32(5, 2), f32(5, 2, seed=4)]),
    "RotaryEmbedding of ONNX Runtime, by heads": ms("RotaryEmbedding", [i64(1), f32(5, 2), f32(5, 2, seed=4)], (2, 4, 3, 4)),
}  # fmt: skip
SEQUENCE = (5, 2, 3)
LENGTHS = np.array([5, 5], np.int32)
for way in ("forward", "reverse", "bidirectional"):
    ways = 2 if way == "bidirectional" else 1
    given = {"shape": SEQUENCE, "direction": way, "hidden_size": 4}
    for kind, gates, states in (("LSTM", 4, 2), ("GRU", 3, 1), ("RNN", 1, 1)):
        weights = [f32(ways, gates * 4, 3), f32(ways, gates * 4, 4, seed=4)]
        bias, start = f32(ways, 2 * gates * 4, seed=5), [f32(ways, 2, 4, seed=6 + k) for k in range(states)]
        ROWS[f"{kind} {way}"] = one(kind, weights, **given)
        ROWS[f"{kind} {way} from a state"] = one(kind, [*weights, bias, None, *start], **given)
ROWS |= {
    "LSTM peepholes": one("LSTM", [f32(1, 16, 3), f32(1, 16, 4), f32(1, 32), LENGTHS, None, None, f32(1, 12, seed=8)],
                          shape=SEQUENCE, hidden_size=4),
    "GRU linear before reset": one("GRU", [f32(1, 12, 3), f32(1, 12, 4), f32(1, 24)], shape=SEQUENCE, hidden_size=4,
                                   linear_before_reset=1),
    "RNN of ReLUs": one("RNN", [f32(1, 4, 3), f32(1, 4, 4)], shape=SEQUENCE, hidden_size=4, activations=["Relu"]),
    "GridSample": one("GridSample", [f32(2, 3, 5, 2)]),
    "GridSample border, corners": one("GridSample", [1.5 * f32(2, 3, 5, 2)], padding_mode="border", align_corners=1),
    "GridSample nearest": one("GridSample", [f32(2, 3, 5, 2)], mode="nearest", padding_mode="reflection"),
    "GridSample cubic": one("GridSample", [f32(2, 3, 5, 2)], mode="bicubic"),
    "DeformConv": one("DeformConv", [f32(5, 4, 3, 3), f32(2, 18, 6, 7), f32(5)], opset=19, pads=[1, 1, 1, 1]),
    "DeformConv grouped, masked": one("DeformConv", [f32(6, 2, 2, 3), 3 * f32(2, 24, 3, 4), None, f32(2, 12, 3, 4)],
                                      opset=19, group=2, offset_group=2, strides=[2, 2], dilations=[2, 1], pads=[1, 1, 0, 1]),
    "QuantizeLinear": one("QuantizeLinear", [np.float32(0.02), np.uint8(100)]),
    "QuantizeLinear each channel": one("QuantizeLinear", [positive(4), np.zeros(4, np.int8)], axis=1),
    "Swish": one("Swish", opset=24, alpha=1.2),
    "Attention": one("Attention", [f32(2, 2, 5, 8), f32(2, 2, 5, 8, seed=4)], shape=(2, 4, 3, 8), opset=23),
    "Attention of heads side by side": one("Attention", [f32(2, 5, 8), f32(2, 5, 12, seed=4), f32(3, 5)], shape=(2, 3, 16),
                                           opset=23, q_num_heads=4, kv_num_heads=2, softcap=2.0),
    "Attention, causal": one("Attention", [f32(1, 2, 3, 8), f32(1, 2, 3, 8, seed=4)], shape=(1, 2, 3, 8), opset=23,
                             is_causal=1),
}  # fmt: skip
for mode, coordinates, nearest in (
    ("nearest", "asymmetric", "floor"),
    ("nearest", "half_pixel", "round_prefer_floor"),
    ("nearest", "half_pixel", "round_prefer_ceil"),
    ("linear", "half_pixel", None),
    ("linear", "align_corners", None),
    ("linear", "pytorch_half_pixel", None),
    ("linear", "asymmetric", None),
    ("cubic", "half_pixel", None),
    ("cubic", "align_corners", None),
):
    how = {
        "mode": mode,
        "coordinate_transformation_mode": coordinates,
        **({"nearest_mode": nearest} if nearest else {}),
    }
    ROWS[f"Resize {mode} {coordinates} {nearest or ''}"] = one(
        "Resize", [None, np.array([1, 1, 1.5, 2], np.float32)], **how
    )
    if mode != "nearest":
        ROWS[f"Resize {mode} {coordinates} down to sizes"] = one("Resize", [None, None, i64(2, 4, 4, 3)], **how)


@pytest.mark.parametrize("name", ROWS)
def test_forward_as_onnx_runtime(name):
    as_onnx_runtime(ROWS[name])


def as_onnx_runtime(model):
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = (2 * f32(*shape, seed=1)).astype(np.float32)
    if model.graph.node[0].op_type == "Where":
        model = helper_where(model)
    want = sessions.open_session(model, threads=1).run({"x": x})[0]
    with torch.no_grad():
        got = Network(Graph(model))(as_feeds({"x": x}))["y"].numpy()
    quantized = model.graph.node[0].op_type == "QuantizeLinear"  # kept as floats, for what comes behind
    assert got.shape == want.shape and (got.dtype == want.dtype or quantized)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def helper_where(model):
    """Where takes the condition first."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    del model.graph.node[0].input[:]
    model.graph.node[0].input.extend(["c0", "x", "c1"])
    return model


def test_an_operator_of_one_s_own():
    """One decorated function; a second one for the same name is refused."""
    model = one("Hardmax")
    with pytest.raises(UnsupportedError, match="Hardmax"):
        Network(Graph(model))({"x": torch.zeros(*IMAGE)})

    @op("Hardmax")
    def hardmax(a, x):
        return torch.nn.functional.one_hot(x.argmax(-1), x.shape[-1]).to(x.dtype)

    try:
        as_onnx_runtime(model)
        with pytest.raises(ValueError, match="Hardmax: in the table already"):
            op("Gelu2", "Hardmax")(hardmax)
    finally:
        del OPERATORS["", "Hardmax"]
    assert ("", "Gelu2") not in OPERATORS


def test_an_operator_of_another_domain():
    """What is entered under another domain is another operator than ONNX's of that name."""
    model = one("Trilu", domain="com.microsoft")
    with pytest.raises(UnsupportedError, match=r"com.microsoft.Trilu\) cannot be trained through"):
        Network(Graph(model))({"x": torch.zeros(*IMAGE)})
    op("Trilu", domain="com.microsoft")(lambda a, x: torch.triu(x))
    try:
        as_onnx_runtime(model)
        as_onnx_runtime(one("Trilu", upper=0))
    finally:
        del OPERATORS["com.microsoft", "Trilu"]


def test_rounding_lets_gradients_through_where_values_are_in_range():
    node = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    held = [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(0), "z")]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3]) for n in "xy"]
    graph = helper.make_graph(node, "pair", ports[:1], ports[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = torch.tensor([0.234, -3.01, 99.0], requires_grad=True)
    y = Network(Graph(model))({"x": x})["y"]
    np.testing.assert_allclose(y.detach(), [0.2, -3.0, 12.7], rtol=1e-6)
    y.sum().backward()
    np.testing.assert_allclose(x.grad, [1, 1, 0])


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_gradients_in_half_precision(kernel, stride):
    held = [("w", (16, 1, kernel, kernel)), ("b", (16,))]
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name) for name, shape in held]
    node = helper.make_node(
        "Conv", ["x", "w", "b"], ["y"], group=16, strides=[stride] * 2, auto_pad="SAME_UPPER", kernel_shape=[kernel] * 2
    )
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 16, 9, 9]) for n in "xy"]
    model = helper.make_model(helper.make_graph([node], "dw", ports[:1], ports[1:], weights), ir_version=8)
    network, found = Network(Graph(model)), []
    x = torch.from_numpy(rng.standard_normal((2, 16, 9, 9)).astype(np.float32)).requires_grad_()
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = network({"x": x})["y"]
        found.append(torch.autograd.grad(y.float().square().sum(), [x, *network.parameters()]))
    assert all((a - b).norm() < 0.02 * a.norm() for a, b in zip(*found, strict=True))


def test_a_clip_lets_gradients_through_inside():
    x = torch.tensor([-1.0, 0.1, 1.0], requires_grad=True)
    Network(Graph(ROWS["Clip"]))({"x": x})["y"].sum().backward()
    np.testing.assert_allclose(x.grad, [0, 1, 0])


def test_weights_of_recurrent_and_deformable_layers_are_learned():
    found = {
        name: Network(Graph(ROWS[name])).names for name in ("LSTM forward from a state", "GRU reverse", "DeformConv")
    }
    assert {i for _, i in found["LSTM forward from a state"]} == {1, 2, 3}
    assert {i for _, i in found["GRU reverse"]} == {1, 2}
    assert {i for _, i in found["DeformConv"]} == {1, 3}


def test_unknown_operator_is_named():
    model = one("NonMaxSuppression", [f32(1, 1, 4)], shape=(1, 4, 4), opset=17)
    model.graph.node[0].name = "boxes"
    with pytest.raises(UnsupportedError, match=r"'boxes' \(NonMaxSuppression\).*--repair refit") as caught:
        Network(Graph(model))({"x": torch.zeros(1, 4, 4)})
    assert "\n" not in str(caught.value)


def test_unknown_form_is_named():
    model = one("CumSum", [np.array(1, np.int64)], reverse=1)
    with pytest.raises(UnsupportedError, match=r"CumSum.* with exclusive or reverse"):
        Network(Graph(model))({"x": torch.zeros(*IMAGE)})
