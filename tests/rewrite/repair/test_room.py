"""A repair touches what it must: what reads what it always read keeps its constants, and what is shared stays so."""

import numpy as np
import pytest
from onnx import numpy_helper

from onnxprune import api
from onnxprune.channels import find_channels
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.pipeline.preview import preview
from onnxprune.rewrite.repair.table import REPAIRS
from tests.channels.surgery import feeds_of, model_of
from tests.rewrite.steps import cut, task

FRONT = "p = Conv<pads=[1,1,1,1]>(x, f) q = Relu(p) h = Conv<pads=[1,1,1,1]>(q, w) r = Relu(h)"
HEAD = "(float[N,3,8,8] x) => (float[] y) <float[4,3,3,3] f, float[6,4,3,3] w"
NETS = {
    "in front": (f"{HEAD}, float[5,6,3,3] v> {{ {FRONT} y = Conv(r, v) }}", {"f"}),
    "beside": (
        f"{HEAD}, float[5,6,1,1] v, float[5,4,3,3] s, float[5,5,1,1] t> {{ {FRONT} c = Conv(r, v)"
        " d = Conv<pads=[1,1,1,1]>(q, s) e = Relu(d) g = Conv(e, t) i = Relu(g) y = Concat<axis=1>(c, i) }",
        {"f", "s", "t"},
    ),
    "norms that share their constants": (
        f"{HEAD}, float[5,6,1,1] v, float[5,4,1,1] s, float[5] a, float[5] b, float[5] m, float[5] o = {{1, 2, 1, 2, 1}}> {{ {FRONT}"
        " c = Conv(r, v) n = BatchNormalization(c, a, b, m, o) d = Conv(q, s) e = BatchNormalization(d, a, b, m, o)"
        " k = Relu(n) l = Relu(e) y = Concat<axis=1>(k, l) }",
        {"f", "s", "a", "b", "m", "o"},
    ),
    "one layer several times": (
        f"{HEAD}, float[5,6,1,1] v, float[5,5,3,3] s, float[5] t> {{ {FRONT} c = Conv(r, v) a = Relu(c)"
        " d = Conv<pads=[1,1,1,1]>(a, s, t) e = Relu(d) g = Conv<pads=[1,1,1,1]>(e, s, t) i = Relu(g)"
        " y = Conv<pads=[1,1,1,1]>(i, s, t) }",
        {"f", "s", "t"},
    ),
    "the same behind Identity": (
        f"{HEAD}, float[5,6,1,1] v, float[5,5,3,3] s> {{ {FRONT} c = Conv(r, v) a = Relu(c) o = Identity(s)"
        " d = Conv<pads=[1,1,1,1]>(a, s) e = Relu(d) y = Conv<pads=[1,1,1,1]>(e, o) }",
        {"f", "s"},
    ),
}


def stored(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


@pytest.mark.parametrize("repair", ["none", "merge", "statistics", "refit"])
@pytest.mark.parametrize("net", NETS)
def test_what_reads_what_it_read_stays(net, repair):
    text, stays = NETS[net]
    model = model_of(text)
    graph = Graph(model)
    channels = find_channels(graph, observe(graph, feeds_of(model, N=1)))
    name = next(g.name for g in channels.groups if any(s.use == ("h", 1) for s in g.weights))
    alive = channels.alive({name: (0, 2, 3)})
    batches = [feeds_of(model, seed=k, N=32) for k in (1, 2)]
    given = task(graph, cut(graph, channels, alive), channels, alive, batches)
    mended = REPAIRS[repair].run(given).settle().model
    before, after, made = stored(model), stored(mended), {n.output[0]: n for n in mended.graph.node}
    assert all(np.array_equal(before[k], after[k]) for k in stays)
    assert list(made["p"].input) == ["x", "f"]
    if "norms" in net:
        assert list(made["e"].input) == ["d", "a", "b", "m", "o"]
    cut_only = before["v"][:, [0, 2, 3]]
    as_cut = any(np.array_equal(v, cut_only) for v in after.values())
    assert as_cut == (repair == "none" or (repair == "statistics" and "norms" in net))


RESIDUAL = """(float[N,3,8,8] x) => (float[] y)
    <float[12,3,3,3] a, float[16,12,3,3] b, float[12,16,3,3] c, float[16,12,3,3] d, float[16] e, float[12,16,3,3] f,
     float[12] g, float[12,12] u, float[12,10] v>
    { h = Conv<pads=[1,1,1,1]>(x, a) i = Relu(h) j = Conv<pads=[1,1,1,1]>(i, b) k = Relu(j)
      l = Conv<pads=[1,1,1,1]>(k, c) m = Add(l, i) n = Relu(m) o = Conv<pads=[1,1,1,1]>(n, d, e) p = Relu(o)
      q = Conv<pads=[1,1,1,1]>(p, f, g) r = Add(q, n) s = Relu(r) t = GlobalAveragePool(s) w = Flatten(t)
      z = MatMul(w, u) z2 = Relu(z) y = MatMul(z2, v) }"""


@pytest.fixture
def factors_are_faster(monkeypatch, tmp_path):
    from onnxprune.timing.pair_model import PairModel

    monkeypatch.setattr(PairModel, "share", 0.0)
    monkeypatch.setattr(PairModel, "relative", lambda self, key, way: (0.4,) * (len(way) + 1 - (len(way) > 1)))
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path))


@pytest.mark.parametrize("repair", ["none", "merge", "statistics", "refit"])
@pytest.mark.parametrize("methods", [("channels",), ("blocks",), ("rank",), ("channels", "blocks", "rank"), ("3c",)])
def test_a_plan_counts_what_its_outcome_holds(methods, repair, factors_are_faster):
    model = model_of(RESIDUAL)
    x = np.random.default_rng(0).standard_normal((80, 3, 8, 8)).astype(np.float32)
    settings = api.Settings(methods=methods, repair=repair, round_to=1, best_effort=True)
    subject = api.open_model(model, calibration=x)
    plan = api.make_plan(subject, 0.3, settings)
    planned, done = preview(subject, plan, settings).after, api.apply_plan(subject, plan, settings).after
    assert plan.edits and (planned.macs, planned.params) == (done.macs, done.params)
