"""What a file stores in half precision stays so: new values go back through the Cast, and no file grows."""

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.graph.model import Graph
from onnxprune.protobuf.serialize import byte_size
from tests.channels import surgery
from tests.graph.test_model import W, edited, model_of, runs

BIG = np.random.default_rng(1).standard_normal((16, 12)).astype(np.float32)
HALF, BRAIN = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
PATHS = {  # how `i` is made of what is stored, and what is stored when `i` is a matrix
    "i = Cast<to=1>(s)": lambda w: w,
    "k = Identity(s) i = Cast<to=1>(k)": lambda w: w,
    "k = Cast<to=1>(s) i = Identity(k)": lambda w: w,
    "k = Transpose(s) i = Cast<to=1>(k)": lambda w: w.T,
    "k = Cast<to=1>(s) i = Transpose<perm=[1,0]>(k)": lambda w: w.T,
    "i = CastLike(s, x)": lambda w: w,
    "k = Reshape(s, shape) i = Cast<to=1>(k)": lambda w: w.reshape(-1),
}
BODY = "(float[N,16] x) => (float[N,K] y) {{ {} y = MatMul(x, i) }}"


def stored(model):
    """The types of all stored matrices and vectors."""
    found = [t for t in model.graph.initializer if t.data_type != TensorProto.INT64]
    found += [a.t for n in model.graph.node for a in n.attribute if a.name == "value" and len(a.t.dims)]
    return {helper.tensor_dtype_to_np_dtype(t.data_type).name for t in found if np.prod(t.dims) > 4}


@pytest.mark.parametrize("as_node", [False, True])
@pytest.mark.parametrize("dtype", [HALF, BRAIN], ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_a_new_value_goes_back_through_the_cast(path, dtype, as_node):
    value = np.ascontiguousarray(PATHS[path](BIG)).astype(dtype)
    extra = {"shape": np.array([16, 12])} if "Reshape" in path else {}
    model = model_of(BODY.format(path), **extra, **({} if as_node else {"s": value}))
    if as_node:
        model.graph.node.insert(0, helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(value)))
    for name in ("i", "k") if path.startswith("k = Cast") else ("i",):
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [16, 12]))
    graph = Graph(model)
    whole = graph.constant("i")
    assert whole.dtype == np.float32
    for new in (whole[:, :8], (3 * whole + 0.1)[:, :8]):
        out = edited(model, ("y", 1, new))
        assert stored(out) == {dtype.name} and byte_size(out) < byte_size(model)
        assert np.array_equal(Graph(out).constant("i"), new.astype(dtype).astype(np.float32))
        sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in out.graph.value_info}
        assert sizes.get("i", [16, 8]) == [16, 8]
        if dtype == HALF:  # ORT has no other products
            (y,) = runs(out, x=np.eye(16, dtype=np.float32))
            assert np.allclose(y, new, atol=2e-3 * np.abs(new).max())
        again = edited(out, ("y", 1, new[:, :4]))
        assert stored(again) == {dtype.name} and len(again.graph.node) == len(out.graph.node)


def test_what_must_be_exact_is_not_rounded():
    value = BIG.astype(np.float16)
    model = model_of(BODY.format("i = Cast<to=1>(s)"), s=value)
    for new, dtype in ((2 * BIG.astype(np.float16).astype(np.float32), "float16"), (BIG / 3, "float32")):
        graph = Graph(model)
        graph.set_constant(("y", 1), new, exact=True)
        out = graph.export()
        assert stored(out) == {dtype} and np.array_equal(Graph(out).constant("i"), new)


def test_what_the_narrower_type_cannot_hold_is_stored_as_it_is_read():
    model = model_of(BODY.format("i = Cast<to=1>(s)"), s=BIG.astype(np.float16))
    out = edited(model, ("y", 1, 1e6 * BIG))
    assert stored(out) == {"float32"} and np.array_equal(Graph(out).constant("i"), 1e6 * BIG)
    whole = model_of(BODY.format("i = Cast<to=1>(s)"), s=np.arange(192, dtype=np.int8).reshape(16, 12))
    assert stored(edited(whole, ("y", 1, BIG))) == {"float32"}
    kept = np.arange(192, dtype=np.int8).reshape(16, 12)[:, :8].astype(np.float32)
    assert stored(edited(whole, ("y", 1, kept))) == {"int8"}
    wide = model_of(BODY.format("i = Cast<to=1>(s)"), s=BIG.astype(np.float64))
    assert stored(edited(wide, ("y", 1, BIG))) == {"float32"}


SHARED = {
    "one Cast, two readers": "i = Cast<to=1>(s) a = MatMul(x, i) b = MatMul(x, i)",
    "two Casts": "i = Cast<to=1>(s) j = Cast<to=1>(s) a = MatMul(x, i) b = MatMul(x, j)",
    "another reader of what is stored": "i = Cast<to=1>(s) a = MatMul(x, i) h = Cast<to=10>(x) g = MatMul(h, s) b = Cast<to=1>(g)",
}  # fmt: skip


@pytest.mark.parametrize("way", SHARED)
def test_every_use_of_what_is_shared_has_its_own_value(way):
    body = f"(float[N,16] x) => (float[N,K] a, float[N,L] b) {{ {SHARED[way]} }}"
    model = model_of(body, s=BIG.astype(np.float16))
    whole = BIG.astype(np.float16).astype(np.float32)
    x = np.eye(16, dtype=np.float32)
    out = edited(model, ("a", 1, whole[:, :6]))
    a, b = runs(out, x=x)
    assert np.allclose(a, whole[:, :6]) and np.allclose(b, whole, atol=1e-2) and stored(out) == {"float16"}
    if "another" not in way:
        both = edited(model, ("a", 1, whole[:, :6]), ("b", 1, whole[:, 6:]))
        a, b = runs(both, x=x)
        assert np.allclose(a, whole[:, :6]) and np.allclose(b, whole[:, 6:]) and stored(both) == {"float16"}
        assert byte_size(both) < byte_size(model) + 128


def test_before_numbered_types_nothing_is_cast():
    model = model_of(BODY.format("i = Cast<to=1>(s)"), s=W)
    assert stored(edited(model, ("y", 1, 2 * W))) == {"float32"}


NETS = {
    "convs": "a = Conv<pads=[1,1,1,1]>(x, w0, b0) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w1, b1) s = Relu(b)",
    "batch norm": "a = Conv<pads=[1,1,1,1]>(x, w0) n = BatchNormalization(a, g0, b0, m0, v0) r = Relu(n) b = Conv<pads=[1,1,1,1]>(r, w1) s = Relu(b)",
    "depthwise": "a = Conv<pads=[1,1,1,1]>(x, w0, b0) d = Conv<pads=[1,1,1,1], group=32>(a, wd) r = Relu(d) b = Conv<pads=[1,1,1,1]>(r, w1, b1) s = Relu(b)",
    "transposed": "a = Conv<pads=[1,1,1,1]>(x, w0, b0) r = Relu(a) b = ConvTranspose(r, wt, b1) s = Relu(b)",
}  # fmt: skip
TAIL = "p = GlobalAveragePool(s) f = Flatten(p) h = {} t = Relu(h) y = MatMul(t, w3)"
SIZES = "float[32,3,3,3] w0, float[32] b0, float[32] g0, float[32] m0, float[64,32,3,3] w1, float[64] b1, float[32,1,3,3] wd, float[32,64,2,2] wt, float[64,48] w2, float[48,10] w3"
V0 = f"float[32] v0 = {{{', '.join(['1'] * 32)}}}"


def halved(net, dtype, dense="MatMul(f, w2)"):
    """A net of which every weight is stored in half precision, behind a Cast."""
    text = f"(float[N,3,8,8] x) => (float[N,10] y) <{SIZES}, {V0}> {{ {NETS[net]} {TAIL.format(dense)} }}"
    model = surgery.model_of(text)
    read = {i for n in model.graph.node for i in n.input}
    for tensor in list(model.graph.initializer):
        model.graph.initializer.remove(tensor)
        if tensor.name in read:
            value = numpy_helper.to_array(tensor).astype(dtype)
            model.graph.initializer.append(numpy_helper.from_array(value, f"{tensor.name}_half"))
            model.graph.node.insert(
                0, helper.make_node("Cast", [f"{tensor.name}_half"], [tensor.name], to=TensorProto.FLOAT)
            )
    return model


@pytest.mark.parametrize("repair", ["none", "refit", "statistics", "merge"])
@pytest.mark.parametrize("net", NETS)
def test_a_pruned_file_is_smaller(net, repair):
    model = halved(net, HALF)
    x = np.random.default_rng(0).standard_normal((96, 3, 8, 8)).astype(np.float32)
    result = onnxprune.prune(model, 0.3, calibration=x, repair=repair, threads=1)
    assert result.surgery.exact and result.macs_removed > 0.28
    assert result.after.bytes / result.before.bytes < 1.1 * result.after.params / result.before.params < 1
    kept = [t for t in result.model.graph.initializer if t.data_type == TensorProto.FLOAT]
    assert all(len(t.dims) == 1 for t in kept)  # biases that a repair has added


@pytest.mark.parametrize(
    "options", [{"methods": ("rank",)}, {"lossless": True}, {"repair": "distill", "epochs": 1}], ids=str
)
def test_other_ways_to_make_it_smaller(options, monkeypatch, tmp_path):
    if options.get("repair") == "distill":
        pytest.importorskip("torch")
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path))
    model = halved("convs", HALF)
    if "lossless" in options:
        for tensor in model.graph.initializer:
            if tensor.name == "w1_half":
                value = numpy_helper.to_array(tensor).copy()
                value[:, :16] = 0
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    x = np.random.default_rng(0).standard_normal((96, 3, 8, 8)).astype(np.float32)
    ratio = {} if "lossless" in options else {"ratio": 0.3, "best_effort": True}
    result = onnxprune.prune(model, calibration=x, threads=1, **ratio, **options)
    assert result.after.bytes < result.before.bytes


def test_bfloat16_and_gemm():
    x = np.random.default_rng(0).standard_normal((96, 3, 8, 8)).astype(np.float32)
    for dtype, dense in ((BRAIN, "MatMul(f, w2)"), (HALF, "Gemm(f, w2)"), (BRAIN, "Gemm(f, w2)")):
        result = onnxprune.prune(halved("convs", dtype, dense), 0.3, calibration=x, threads=1)
        assert result.surgery.exact and result.after.bytes < 0.85 * result.before.bytes
        assert result.fidelity.cosine > 0.97
