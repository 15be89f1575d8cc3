"""Normalization over groups of channels, however it is spelled: what stays whole says why, and with the option a cut is
what the same network with fewer channels computes."""

import re

import numpy as np
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune import api
from onnxprune.errors import UnsupportedError
from tests.channels import surgery
from tests.rewrite.steps import cut

NET = """(float[N,3,6,6] x) => (float[N,5] y) <float[C,3,3,3] w0, float[5,C] w1, {weights}> {{
    a = Conv<pads=[1,1,1,1]>(x, w0) {nodes} r = Relu(n) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, w1) }}"""
ONES = "float[G] o = {ONES}, float[G] z = {ZEROS}"
BY_MEANS = "u = ReduceMean(q, ax) d = Sub(q, u) d2 = Mul(d, d) v = ReduceMean(d2, ax) ve = Add(v, e) sd = Sqrt(ve) i = Div(d, sd)"
SPELLED = {  # weights, nodes, opset, the nodes that take statistics
    "GroupNormalization 21": ("float[C] g, float[C] b", "n = GroupNormalization<num_groups=G>(a, g, b)", 21, "n"),
    "GroupNormalization 18": ("float[G] g, float[G] b", "n = GroupNormalization<num_groups=G>(a, g, b)", 18, "n"),
    "Reshape to 0, G, -1": (f"int64[3] s1 = {{0,G,-1}}, {ONES}, int64[4] s2 = {{0,C,6,6}}, float[C,1,1] g",
                            "q = Reshape(a, s1) i = InstanceNormalization(q, o, z) t = Reshape(i, s2) n = Mul(t, g)", 18, "i"),
    "Reshape to -1, G, L": (f"int64[3] s1 = {{-1,G,L}}, {ONES}, int64[4] s2 = {{-1,C,6,6}}, float[C,1,1] g",
                            "q = Reshape(a, s1) i = InstanceNormalization(q, o, z) t = Reshape(i, s2) n = Mul(t, g)", 18, "i"),
    "Reshape to 0, G, rows": (f"int64[4] s1 = {{0,G,-1,6}}, {ONES}, int64[4] s2 = {{0,C,6,6}}, float[C,1,1] g",
                              "q = Reshape(a, s1) i = InstanceNormalization(q, o, z) t = Reshape(i, s2) n = Mul(t, g)", 18, "i"),
    "and back by Shape": (f"int64[3] s1 = {{0,G,-1}}, {ONES}, float[C,1,1] g",
                          "q = Reshape(a, s1) i = InstanceNormalization(q, o, z) s = Shape(a) t = Reshape(i, s) n = Mul(t, g)", 17, "i"),
    "means": ("int64[5] s1 = {0,G,D,6,6}, int64[4] s2 = {0,C,6,6}, int64[3] ax = {2,3,4}, float e = {0.00001}, float[C,1,1] g",
              f"q = Reshape(a, s1) {BY_MEANS} t = Reshape(i, s2) n = Mul(t, g)", 18, "u v"),
    "means, channels last": ("int64[5] s1 = {0,6,6,G,D}, int64[4] s2 = {0,6,6,C}, int64[3] ax = {1,2,4}, float e = {0.00001}, float[C] g",
                             f"h = Transpose<perm=[0,2,3,1]>(a) q = Reshape(h, s1) {BY_MEANS} t = Reshape(i, s2) m = Mul(t, g) n = Transpose<perm=[0,3,1,2]>(m)", 18, "u v"),
}  # fmt: skip


def net(name, groups, width):
    weights, nodes, opset, _ = SPELLED[name]
    size = {"C": width, "G": groups, "D": width // groups, "L": 36 * width // groups}
    text = NET.format(weights=weights, nodes=nodes)
    for ones in ("ONES", "ZEROS"):
        text = text.replace(f"{{{ones}}}", "{" + ",".join([str(int(ones == "ONES"))] * groups) + "}")
    text = re.sub(r"\b([CGDL])\b", lambda found: str(size[found[1]]), text)
    return surgery.model_of(text, opset)


def with_fewer(name, groups, model, kept):
    """The network of that width, with the weights of the channels that are kept."""
    small = net(name, groups, len(kept))
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for tensor in small.graph.initializer:
        value = stored[tensor.name]
        if tensor.name in ("w0", "w1", "g", "b") and list(value.shape) != list(tensor.dims):
            axis = 1 if tensor.name == "w1" else 0
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value.take(kept, axis)), tensor.name))
        elif tensor.name in ("w0", "w1", "g", "b"):
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return small


@pytest.mark.parametrize("groups", [1, 4, 16])
@pytest.mark.parametrize("name", SPELLED)
def test_the_cut_is_the_same_network_with_fewer_channels(name, groups):
    model = net(name, groups, 16)
    graph, channels = surgery.find(model, prune_statistics=True)
    (group,) = channels.groups
    by_group = groups == 16  # each channel is its own group: nothing is normalized over channels
    assert group.width == (16 if by_group else 16 // groups)
    assert bool(channels.inexact) != by_group or "mean" in name
    keep = tuple(range(0, group.width, 2))
    pruned = cut(graph, channels, channels.alive({group.name: keep}))
    left = [c for c in range(16) if (c if by_group else c % (16 // groups)) in keep]
    x = surgery.feeds_of(model, N=2)
    wanted = surgery.run(with_fewer(name, 8 if by_group else groups, model, left), x)[0]
    assert np.allclose(surgery.run(pruned, x)[0], wanted, atol=1e-5)


@pytest.mark.parametrize("name", SPELLED)
def test_several_groups_go_whole_without_the_option(name):
    graph, channels = surgery.find(model := net(name, 4, 16))
    if channels.groups:
        assert [g.width for g in channels.groups] == [4] and not channels.inexact
        surgery.assert_exact(model, graph, channels, "half")
    else:
        assert "mean" in name


@pytest.mark.parametrize("name", SPELLED)
def test_one_group_says_why_it_stays_whole_and_what_cuts_it(name):
    model = net(name, 1, 16)
    op = "ReduceMean" if "mean" in name else "GroupNormalization" if "Group" in name else "InstanceNormalization"
    with pytest.raises(UnsupportedError, match=f"nothing can be pruned: {op} .*--prune-statistics cuts it, inexactly"):
        onnxprune.prune(model, 0.5)
    result = onnxprune.prune(model, 0.5, prune_statistics=True)
    assert result.macs_removed > 0.45 and not result.surgery.exact
    assert list(result.inexact) == SPELLED[name][3].split()
    assert any("--prune-statistics" in w and "not exact" in w for w in result.warnings)
    assert "not exact, as asked for" in result.summary()


def test_a_scale_for_each_group_stays_when_channels_of_every_group_go():
    """Opset 18: it is not one of the channels."""
    model = net("GroupNormalization 18", 4, 16)
    result = onnxprune.prune(model, 0.5, prune_statistics=True, repair="none", round_to=1)
    sizes = {t.name: list(t.dims) for t in result.model.graph.initializer}
    assert sizes["g"] == sizes["b"] == [4] and sizes["w0"][0] == 8


@pytest.mark.parametrize("opset", [18, 21])
def test_a_deprecated_version_that_onnx_runtime_runs_is_pruned(opset, tmp_path):
    """onnx's own checker refuses GroupNormalization of opset 18 to 20."""
    model = net(f"GroupNormalization {opset}", 4, 16)
    x = np.random.default_rng(0).standard_normal((32, 3, 6, 6)).astype(np.float32)
    subject = api.open_model(model, calibration=x)
    result = api.plan_and_apply(subject, api.Ratio(0.5), api.Settings(threads=1))
    assert result.surgery.exact and result.macs_removed > 0.45
    result.save(tmp_path / "out.onnx")
    assert api.open_model(tmp_path / "out.onnx").channels.groups
