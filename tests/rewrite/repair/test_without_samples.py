"""Repair without samples: statistics are imagined, columns are spread, and the file's own statistics come back."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import api
from onnxprune.errors import BudgetError, CalibrationError, LoadError, ModelError, PruneError, RunError, UsageError
from onnxprune.graph.model import Graph
from onnxprune.rewrite.repair import without_samples as imagined
from onnxprune.rewrite.repair.without_samples import random_batches
from onnxprune.runtime.sessions import open_session
from tests.channels.surgery import distance, feeds_of, find, model_of, run
from tests.rewrite.steps import cut, repair_merge, repair_without_samples, task

DATA = Path(__file__).parents[3] / "benchmarks"
MODEL = DATA / "models/resnet20_fmnist.onnx"

NORM = """(float[N,3,8,8] x) => (float[N,4,8,8] y)
<float[8,3,3,3] w, float[8] g, float[8] b, float[8] m, float[8] var, float[4,8,1,1] v> {
  h = Conv<pads=[1,1,1,1]>(x, w)
  n = BatchNormalization(h, g, b, m, var)
  r = ACT(n)
  y = Conv(r, v) }"""
GEMM = """(float[N,6] x) => (float[N,3] y)
<float[6,8] w, float[8] b, float[8,3] v, float[3] c> {
  h = Gemm(x, w, b)
  y = Gemm(h, v, c) }"""
MATMUL = """(float[N,6] x) => (float[N,3] y)
<float[6,8] w, float[8] b, float[8,3] v, float[3] c> {
  g = MatMul(x, w)
  h = Add(g, b)
  k = MatMul(h, v)
  y = Add(k, c) }"""

UNBIASED = """(float[N,6] x) => (float[N,3] y)
<float[6,8] w, float[8,8] u, float[8,3] v> {
  h = MatMul(x, w)
  k = MatMul(h, u)
  y = MatMul(k, v) }"""


def accuracy(model) -> float:
    data = np.load(DATA / "data/test.npz")
    session = open_session(model)
    outputs = [session.run({"x": data["x"][i : i + 250]})[0] for i in range(0, len(data["x"]), 250)]
    return float((np.concatenate(outputs).argmax(1) == data["labels"]).mean())


def test_most_of_the_accuracy_comes_back_without_a_sample():
    results = [onnxprune.prune(MODEL, 0.5, repair=r) for r in (None, None, "none")]
    assert results[0].repair == "merge" and results[0].surgery.exact
    assert results[0].model.SerializeToString() == results[1].model.SerializeToString()
    assert accuracy(results[0].model) > 0.85 > 0.5 > accuracy(results[2].model)
    assert "no calibration data" in results[0].warnings[0] and "suffer" in results[0].warnings[0]


def test_a_repair_that_needs_samples_says_so():
    with pytest.raises(UsageError, match="needs samples"):
        onnxprune.prune(MODEL, 0.5, repair="refit")


def test_imagined_outputs_have_the_mean_and_spread_that_the_file_promises():
    model = model_of(NORM.replace("ACT", "Relu"))
    graph, channels = find(model)
    alive = channels.alive({g.name: range(6) for g in channels.groups})
    batches = random_batches(feeds_of(model), repeat=True)
    merge = imagined._Merge(task(graph, cut(graph, channels, alive), channels, alive, threads=1))
    merge.look(batches, random_inputs=True)
    seen = merge.graph.export()
    seen.graph.output[0].name = "n"
    seen.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 6
    n = np.concatenate([run(seen, b)[0] for b in batches])
    assert np.allclose(n.mean(axis=(0, 2, 3)), graph.constant("b")[:6], atol=1e-3)
    assert np.allclose(n.std(axis=(0, 2, 3)), np.abs(graph.constant("g"))[:6], rtol=1e-3)


def test_the_files_own_statistics_come_back():
    model = model_of(NORM.replace("ACT", "Relu"))
    graph, channels = find(model)
    keep = [0, 2, 3, 6]
    alive = channels.alive({g.name: keep for g in channels.groups})
    repaired = Graph(
        repair_without_samples(graph, cut(graph, channels, alive), channels, alive, feeds_of(model), repeat=True)
    )
    assert np.array_equal(repaired.constant("m"), graph.constant("m")[keep])
    assert np.array_equal(repaired.constant("var"), graph.constant("var")[keep])
    assert not np.array_equal(repaired.constant("v"), graph.constant("v")[:, keep])


SPELLED = """(float[N,3,8,8] x) => (float[M,4,8,8] y)
<float[8,3,3,3] w, float[8] b, float[4,8,1,1] v, int64[4] size = {1, 8, 8, 8}> {
  h = Conv<pads=[1,1,1,1]>(x, w, b)
  r = Relu(h)
  one = Reshape(r, size)
  y = Conv(one, v) }"""


def test_a_batch_that_nodes_spell_is_not_repeated():
    """The file promises a batch of any size; a Reshape knows better."""
    model = model_of(SPELLED)
    repaired, pruned = (onnxprune.prune(model, 0.25, repair=repair).model for repair in (None, "none"))
    feeds = feeds_of(model, N=1)
    wanted = run(model, feeds)[0]
    assert distance(wanted, run(repaired, feeds)[0]) < distance(wanted, run(pruned, feeds)[0])


OF = ("size = {1, 8, 8, 8}", "size = {BATCH, 8, 8, 8}")


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_a_batch_that_nodes_spell_is_the_only_one(batch):
    """With samples too, to the end: repair, fidelity and both checks; samples that fill no batch are left out."""
    model = model_of(SPELLED.replace(OF[0], OF[1].replace("BATCH", str(batch))))
    samples = np.random.default_rng(0).standard_normal((33, 3, 8, 8)).astype(np.float32)
    for given in ({"calibration": samples}, {}, {"input_shapes": {"x": [batch, 3, 8, 8]}, "calibration": samples}):
        subject = api.open_model(model, **given)
        assert subject.feeds["x"].shape[0] == batch and (batch == 1) <= (subject.timed()["x"].shape[0] == 1)
        if given or batch > 1:
            assert subject.batch == batch
        result = api.apply_plan(subject, api.make_plan(subject, api.Ratio(0.25)))
        assert result.surgery.exact and (result.fidelity is not None) == bool(given)
        assert result.model.graph.input[0] == model.graph.input[0]
    with pytest.raises(CalibrationError, match=f"batches of {batch} alone") if batch > 1 else nullcontext():
        api.open_model(model, calibration=samples[:1])


def test_a_batch_that_no_usual_size_fits():
    with pytest.raises(ModelError, match="cannot be run with x"):
        api.open_model(model_of(SPELLED.replace(OF[0], OF[1].replace("BATCH", "7"))))


def test_a_matmul_without_a_bias_keeps_its_shape_and_mean():
    """Its place is taken by the Add of the bias that it gets."""
    model = model_of(UNBIASED)
    result, bare = (onnxprune.prune(model, 0.25, repair=repair) for repair in (None, "none"))
    repaired, feeds = result.model, feeds_of(model, seed=4, N=1)
    assert result.macs_removed == bare.macs_removed
    assert run(repaired, feeds)[0].shape == run(model, feeds)[0].shape
    kinds = [n.op_type for n in repaired.graph.node]
    assert kinds.count("MatMul") == 3


BEHIND = """(float[N,3,8,8] x) => (float[] y)
    <float[16,3,3,3] w, float[8,16,1,1] a, float[8,16,1,1] b, float[8] s, float[8] t, float[8] m, float[8] v,
     float[8] c, float[8] d, float[8] e, float[8] f>
    { h = Conv(x, w) p = Conv(h, a) q = Conv(h, b) n = BatchNormalization(q, s, t, m, v) r = Relu(n)
      u = Relu(r) z = BatchNormalization(p, c, d, e, f) y = Add(u, z) }"""
"""The statistics of the first of two branches stand behind those of the second."""


@pytest.mark.parametrize("sampled", [False, True])
def test_statistics_that_stand_behind_those_of_a_later_layer(sampled):
    model = model_of(BEHIND)
    for name in ("v", "f"):  # variances
        next(t for t in model.graph.initializer if t.name == name).CopyFrom(
            onnx.numpy_helper.from_array(np.full(8, 2.0, np.float32), name)
        )
    given = {}
    if sampled:
        x = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
        given = {"repair": "statistics", "calibration": x}
    result = onnxprune.prune(model, 0.5, criterion="l1", allocation="uniform", **given)
    assert result.repair != "none" and 0.4 < result.macs_removed


def broken(kind):
    def repair(task):
        if kind == "fails":
            raise ModelError("segment: does not load")
        if kind == "memory":
            raise LoadError("segment: does not load: bad allocation") from RuntimeError("bad allocation")
        if kind == "runs":
            raise RunError("segment: cannot be run with x")
        model = task.pruned.export()
        node = model.graph.node[-1]
        node.output[0] = "inner"
        last = {"grows": ("Concat", ["inner", "inner"], {"axis": 0}), "stops": ("Reshape", ["inner", "two"], {})}[kind]
        model.graph.node.append(onnx.helper.make_node(last[0], last[1], ["y"], **last[2]))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([7, 11]), "two"))
        return Graph(model)

    return repair


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("grows", BudgetError, r"output 'y' had sizes \[1, 3\] and has \[2, 3\]"),
        ("stops", BudgetError, "the repair broke it"),
        ("fails", PruneError, "does not load; the repair failed"),
        ("runs", ModelError, "cannot be run with x; the repair met values"),
    ],
)
def test_what_a_repair_breaks_is_not_handed_on(kind, error, words, monkeypatch):
    monkeypatch.setattr(imagined, "repair_without_samples", broken(kind))
    with pytest.raises(error, match=words + ".*--repair none"):
        onnxprune.prune(model_of(MATMUL), 0.25)


def test_memory_that_onnx_runtime_does_not_get_in_a_repair_is_no_bug(monkeypatch):
    monkeypatch.setattr(imagined, "repair_without_samples", broken("memory"))
    with pytest.raises(MemoryError):
        onnxprune.prune(model_of(MATMUL), 0.25)


# Eight channels of rank six at most: two can go, and the others know all that they knew.
@pytest.mark.parametrize("text", [GEMM, MATMUL, UNBIASED, NORM.replace("ACT", "Identity").replace("[8,3,3,3]", "[8,3,1,1]")
                                  .replace("pads=[1,1,1,1]", "pads=[0,0,0,0]")])  # fmt: skip
def test_what_kept_channels_span_is_spread_exactly(text, monkeypatch):
    monkeypatch.setattr(imagined, "SUBSTITUTE_RIDGE", 1e-6)
    model = model_of(text)
    graph, channels = find(model)
    alive = channels.alive({g.name: range(6) for g in channels.groups})
    feeds = feeds_of(model, N=64)
    repaired = repair_merge(graph, cut(graph, channels, alive), channels, alive, [feeds])
    other = feeds_of(model, seed=5, N=8)
    assert distance(run(model, other)[0], run(repaired, other)[0]) < 1e-3


@pytest.mark.parametrize(
    ("shape", "repeat", "shapes"),
    [
        ((1, 3, 8, 8), True, [(16, 3, 8, 8)] * 4),
        ((2, 3, 8, 8), False, [(2, 3, 8, 8)] * 32),
        ((1, 3, 1024, 1024), True, [(2, 3, 1024, 1024)]),
    ],
)
def test_random_batches_are_few_where_they_are_large(shape, repeat, shapes):
    found = random_batches({"x": np.zeros(shape, np.float32)}, repeat=repeat)
    assert [b["x"].shape for b in found] == shapes


MODULATED = """(float[N,4] z) => (float[] y) <float[4,6] a, float[1,8,4,4] start, float[6,8,3,3] base, int64[4] ends = {6,1,1,1},
    int64[1] zero = {0}, float[12,6,3,3] w, float[5,12,1,1] v>
    { p = MatMul(z, a) s = ReduceMean<keepdims=0>(p, zero) t = Reshape(s, ends) m = Mul(base, t)
      c = Conv<pads=[1,1,1,1]>(start, m) r = Relu(c) h = Conv<pads=[1,1,1,1]>(r, w) k = Relu(h) y = Conv(k, v) }"""
LEFT = """(float[6,1] z) => (float[] y) <float[8,6] start, float[8,12] w, float[12,3] v>
    { h = Gemm(start, z) t = Transpose<perm=[1,0]>(h) r = Relu(t) k = MatMul(r, w) q = Relu(k) y = MatMul(q, v) }"""


@pytest.mark.parametrize("text", [MODULATED, LEFT], ids=["a convolution of a constant", "a Gemm with its weight first"])
def test_what_is_no_layer_with_a_weight_is_not_repaired(text):
    """A generator convolves a constant by weights that it computes: no bias or scale fits into the constant."""
    model = model_of(text)
    result = onnxprune.prune(model, 0.3, round_to=1, best_effort=True)
    assert result.surgery.exact and result.macs_removed > 0.1
    plain = onnxprune.prune(model, 0.3, round_to=1, best_effort=True, repair="none")
    for name in ("start", "base"):
        stored = [{t.name: t.raw_data for t in m.graph.initializer}.get(name) for m in (plain.model, result.model)]
        assert stored[0] == stored[1]
