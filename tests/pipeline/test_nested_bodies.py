"""Bodies inside bodies, as the exporters of recurrent layers write them: what an inner body reads of the body around it
is no business of the network outside."""

import numpy as np
import pytest

from onnxprune import api
from onnxprune.protobuf.nodes import captured
from tests.channels.surgery import model_of

HEAD = """(float[N,3,8,8] x, bool c, bool d) => (float[N,K] y) <float[16,3,3,3] w, float[8,16,1,1] v, float[8,4] u, float[4] z0>
    { h = Conv(x, w) r = Relu(h) k = Conv(r, v) s = Relu(k) g = GlobalAveragePool(s) f = Flatten(g) """
INNER = """p = If(d) <then_branch = b () => (float[N,8] q) { q = Add(m, f) },
                      else_branch = e () => (float[N,8] i) { i = Mul(m, f) }>"""
NETS = {
    "If in If": f"""{HEAD} t = If(c) <then_branch = a () => (float[N,8] p) {{ m = Relu(f) {INNER} }},
        else_branch = o () => (float[N,8] z) {{ z = Neg(f) }}> j = Relu(t) y = Gemm(j, u, z0) }}""",
    "If in If in If": f"""{HEAD} t = If(c) <then_branch = a () => (float[N,8] n) {{ m = Relu(f)
        n = If(d) <then_branch = aa () => (float[N,8] p) {{ l = Abs(m) {INNER} }},
                   else_branch = ee () => (float[N,8] l) {{ l = Identity(m) }}> }},
        else_branch = o () => (float[N,8] z) {{ z = Neg(f) }}> j = Relu(t) y = Gemm(j, u, z0) }}""",
    "If in Loop": f"""(float[N,3,8,8] x, bool c, bool d) => (float[N,K] y)
        <float[16,3,3,3] w, float[8,16,1,1] v, float[8,4] u, float[4] z0, int64 trips = {{3}}>
        {{ h = Conv(x, w) r = Relu(h) k = Conv(r, v) s = Relu(k) g = GlobalAveragePool(s) f = Flatten(g)
        t = Loop(trips, c, f) <body = l (int64 at, bool go, float[N,8] state) => (bool more, float[N,8] next)
            {{ more = Identity(go) m = Relu(state) {INNER.replace("p = If", "next = If")} }}> y = Gemm(t, u, z0) }}""",
}  # fmt: skip


def samples(count=96):
    rng = np.random.default_rng(0)
    return {
        "x": rng.standard_normal((count, 3, 8, 8)).astype(np.float32),
        "c": np.array(True),
        "d": np.array(False),
    }


@pytest.mark.parametrize("net", NETS)
def test_what_is_captured(net):
    model = model_of(NETS[net])
    node = next(n for n in model.graph.node if n.op_type in ("If", "Loop"))
    assert captured(node) == {"f", "d"}


@pytest.mark.parametrize("repair", ["none", "merge", "statistics", "refit"])
@pytest.mark.parametrize("net", NETS)
def test_it_is_cut_and_repaired(net, repair):
    result = api.prune(model_of(NETS[net]), 0.4, calibration=samples(), repair=repair, round_to=1, batch=1)
    assert result.surgery.exact and result.macs_removed > 0.39 and result.repair == repair


def test_without_samples():
    assert api.prune(model_of(NETS["If in If"]), 0.4, round_to=1).macs_removed > 0.39
