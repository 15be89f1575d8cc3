"""A layer that cannot be refitted, made of two or timed says why: one row a reason."""

import pytest

from onnxprune.graph import refusals
from onnxprune.measure import designs
from onnxprune.timing import node_times
from tests.channels.surgery import find, model_of

REFIT, SPLIT, TIME = designs.refusals, designs.split_refusals, node_times.refusals
ASK = {"refit": REFIT, "split": SPLIT, "time": TIME}


def everywhere(reason):
    return dict.fromkeys(ASK, reason)


def fitted(reason):
    return {"refit": reason, "split": reason}


X = "float[2,6,9,9] x"
ROWS = {  # name: (input, weights, node `y`, what is refused for which reason, words of it)
    "conv": (X, "float[8,6,3,3] w", "y = Conv(x, w)", {}, ""),
    "matmul without a bias": ("float[2,4,6] x", "float[6,5] w", "y = MatMul(x, w)", {}, ""),
    "einsum": ("float[2,6] x", "float[5,6] w", 'y = Einsum<equation="nc,dc->nd">(x, w)', {}, ""),
    "einsum in between": (X, "float[5,6] w", 'y = Einsum<equation="nchw,dc->ndhw">(x, w)',
                          {"split": "in between"}, "not the last; put a Transpose"),
    "einsum on the left": ("float[2,6] x", "float[5,6] w", 'y = Einsum<equation="dc,nc->nd">(w, x)',
                           {"split": "on the left", "time": "on the left"}, "left; write"),
    "einsum turned": ("float[2,6] x", "float[5,6] w", 'y = Einsum<equation="nc,dc->dn">(x, w)',
                      everywhere("on the left"), "left; write"),
    "transposed": (X, "float[6,4,2,2] w", "y = ConvTranspose(x, w)",
                   {**fitted("unfit"), "time": "transposed"}, "transposed convolution"),
    "in groups": (X, "float[8,3,3,3] w", "y = Conv<group=2>(x, w)", {"time": "grouped"}, "2 groups"),
    "depthwise, one axis": (X, "float[6,1,1,3] w", "y = Conv<group=6>(x, w)", {"split": "thin"}, "no two layers"),
    "computed": (X, "", "p = AveragePool<kernel_shape=[7,7]>(x) y = Conv(x, p)",
                 everywhere("computed"), "computed at run time; export"),
    "bias computed": ("float[2,6,9,9] x, float[8] b", "float[8,6,3,3] w", "y = Conv(x, w, b)",
                      {"refit": "odd bias"}, "one value per channel (axis 1); make"),
    "a constant convolved": ("float[8,6,3,3] x", "float[1,6,9,9] k", "y = Conv(k, x)",
                             {**fitted("reads a constant"), "time": "computed"}, ""),
    "scaled": ("float[2,6] x", "float[6,5] w", "y = Gemm<alpha=0.5>(x, w)", fitted("scaled"), "alpha or beta; multiply"),
    "turned": ("float[6,2] x", "float[6,5] w", "y = Gemm<transA=1>(x, w)", fitted("turned"), "(transA); put a"),
    "on the left": ("float[2,6,4] x", "float[5,6] w", "y = MatMul(w, x)", everywhere("on the left"), "left; write"),
    "stacked": ("float[2,4,6] x", "float[1,6,5] w", "y = MatMul(x, w)", everywhere("stacked"), "3 axes, not two"),
    "two activations": ("float[2,6,6] x", "", "y = MatMul(x, x)", everywhere("two activations"), ""),
    "double": ("double[2,6] x", "double[6,5] w", "y = MatMul(x, w)", everywhere("integers"), "float64, not float32"),
    "wide": ("float[2,6001] x", "float[6001,2] w", "y = MatMul(x, w)", fitted("wide"), "6001 inputs"),
    "recurrent": ("float[5,2,6] x", "float[1,16,6] w, float[1,16,4] r", "y = LSTM<hidden_size=4>(x, w, r)",
                  everywhere("unfit"), "mixes its hidden state"),
    "quantized": ("uint8[2,6] x", "int8[6,5] w", "y = MatMulInteger(x, w)", everywhere("unfit"), "quantized; prune"),
}  # fmt: skip
UNSEEN = {"no layer", "grouped, transposed", "no bias", "unseen"}
"""Reasons that no row can bring about: whoever asks has a layer with sizes, and what has no bias is given one."""


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("ask", ASK)
def test_reasons(name, ask):
    x, weights, body, refused, words = ROWS[name]
    kind = {"uint8": "int32", "double": "double"}.get(x.split("[")[0], "float")
    weights = f"<{weights}>" if weights else ""
    graph, channels = find(model_of(f"({x}) => ({kind}[] y) {weights} {{ {body} }}"))
    found = ASK[ask](graph, channels.shapes)
    assert found.keys() == ({"y"} if ask in refused else set())
    if ask in refused:
        fixed = refusals.REASONS[refused[ask]][0].split("{")[-1].split("}")[-1]
        assert fixed in found["y"] and words in found["y"]


def test_every_reason_has_a_row():
    assert {reason for *_, refused, _ in ROWS.values() for reason in refused.values()} | UNSEEN == set(refusals.REASONS)


def test_a_refusal_names_node_reason_and_remedy():
    why = refusals.refuse("y", "scaled", op="Gemm")
    assert (why.node, why.reason) == ("y", "Gemm scales by alpha or beta")
    assert str(why) == f"{why.reason}; {why.remedy}" and why.remedy == "multiply them into its weight and bias"
    assert str(refusals.refuse("y", "two activations", op="MatMul")) == "MatMul multiplies two activations"
    assert refusals.unless_refused(why) is None and refusals.unless_refused(7) == 7
