"""Sparse tensors: unpacked for the work, pruned as dense ones are, and packed again where that is smaller."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import api
from onnxprune.cli import main
from onnxprune.errors import ModelError
from onnxprune.files.read import check_model
from onnxprune.graph import sparse
from onnxprune.measure.cost import count_params
from tests.channels import surgery

NET = """(float[N,3,8,8] x) => (float[N,5] y)
  <float[16,3,3,3] w0, float[16] b0, float[24,{ins},3,3] w1, float[24] b1, float[5,24] w2> {{
  a = Conv<pads=[1,1,1,1]>(x, w0, b0) r = Relu(a) b = Conv<pads=[1,1,1,1], group={group}>(r, w1, b1) s = Relu(b)
  g = GlobalAveragePool(s) f = Flatten(g) y = Gemm<transB=1>(f, w2) }}"""


def sparse_of(value, name, *, flat=True):
    found = np.flatnonzero(value) if flat else np.argwhere(value)
    return helper.make_sparse_tensor(
        numpy_helper.from_array(value[value != 0], name),
        numpy_helper.from_array(found.astype(np.int64), f"{name}_at"),
        value.shape,
    )


def thinned(share=0.05, group=1, *, names=("w1",), flat=True, as_node=False):
    """The net and the same one with some weights sparse; most entries of these are zero."""
    dense = surgery.model_of(NET.format(ins=16 // group, group=group))
    rng = np.random.default_rng(5)
    other = onnx.ModelProto.FromString(dense.SerializeToString())
    for name in names:
        stored = {t.name: t for t in dense.graph.initializer}
        value = numpy_helper.to_array(stored[name])
        value = (value * (rng.random(value.shape) < share)).astype(np.float32)
        value.flat[0] = 0.5
        stored[name].CopyFrom(numpy_helper.from_array(value, name))
        other.graph.initializer.remove(next(t for t in other.graph.initializer if t.name == name))
        tensor = sparse_of(value, name, flat=flat)
        if as_node:
            other.graph.node.insert(0, helper.make_node("Constant", [], [name], sparse_value=tensor))
        else:
            other.graph.sparse_initializer.append(tensor)
    return dense, other


def samples(count=64):
    return np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)


WAYS = {
    "a weight": {},
    "places by axis": {"flat": False},
    "a Constant node": {"as_node": True},
    "a grouped conv": {"group": 4},
    "a matrix": {"names": ("w2",), "share": 0.3},
    "a bias": {"names": ("b1",), "share": 0.3},
    "all of them": {"names": ("w0", "b0", "w1", "b1", "w2")},
    "hardly any zero": {"share": 0.9},
    "nothing but zeros": {"share": 0.0},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("repair", ["none", "refit"])
def test_the_same_as_the_dense_model(way, repair):
    dense, other = thinned(**WAYS[way])
    check_model(other)
    x = samples()
    wanted = onnxprune.prune(dense, 0.5, calibration=x, repair=repair, threads=1)
    got = onnxprune.prune(other, 0.5, calibration=x, repair=repair, threads=1)
    assert [e for e in got.plan.edits] == [e for e in wanted.plan.edits] and got.surgery.exact
    assert got.after.params == wanted.after.params
    first, second = (surgery.run(r.model, {"x": x[:4]})[0] for r in (wanted, got))
    assert np.array_equal(first, second)
    assert got.before.bytes == len(other.SerializeToString()) and got.after.bytes == len(got.model.SerializeToString())
    assert got.after.bytes <= wanted.after.bytes + 64
    assert not {t.values.name for t in got.model.graph.sparse_initializer} & {
        t.name for t in got.model.graph.initializer
    }


@pytest.mark.parametrize("as_node", [False, True])
def test_what_is_left_is_sparse_still(as_node):
    _, other = thinned(as_node=as_node)
    result = onnxprune.prune(other, 0.5, calibration=samples(), repair="none", threads=1)
    held = list(result.model.graph.sparse_initializer)
    held += [a.sparse_tensor for n in result.model.graph.node for a in n.attribute if a.name == "sparse_value"]
    assert len(held) == 1 and list(held[0].dims) != [24, 16, 3, 3]
    assert count_params(sparse.unpacked(result.model)[0]) == result.after.params


def test_what_no_edit_touches_is_what_it_was():
    _, other = thinned(names=("w1", "w2"))
    model, were = sparse.unpacked(other)
    assert set(were) == {"w1", "w2"} and not model.graph.sparse_initializer
    sparse.pack(model, were)
    kept = {t.values.name: t for t in model.graph.sparse_initializer}
    assert all(kept[t.values.name] == t for t in other.graph.sparse_initializer)
    plain = surgery.model_of(NET.format(ins=16, group=1))
    assert sparse.unpacked(plain)[0] is plain


def test_every_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(thinned()[1], "m.onnx")
    np.savez("s.npz", x=samples())
    for argv in (
        ["m.onnx", "--calib", "s.npz", "--no-bench", "-o", "a.onnx", "--plan-out", "p.json"],
        ["apply", "m.onnx", "p.json", "--calib", "s.npz", "--no-bench", "-o", "b.onnx"],
        ["verify", "m.onnx", "a.onnx", "--plan", "p.json", "--calib", "s.npz"],
        ["inspect", "m.onnx"],
        ["sensitivity", "m.onnx", "--calib", "s.npz", "--steps", "1"],
        ["bench", "m.onnx", "a.onnx", "--rounds", "10"],
        ["a.onnx", "--ratio", "0.1", "--no-bench"],
        ["plan", "m.onnx", "-o", "q.json"],
    ):
        assert main(argv) == 0, capsys.readouterr().err
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def spoilt(way):
    _, model = thinned()
    tensor = model.graph.sparse_initializer[0]
    places = numpy_helper.to_array(tensor.indices).copy()
    if way == "a place beyond the end":
        places[-1] = 24 * 16 * 9
    elif way == "a place before the start":
        places[0] = -1
    elif way == "places missing":
        places = places[:-1]
    elif way == "places by another number of axes":
        places = np.stack([places, places], axis=1)
    elif way == "places as floats":
        places = places.astype(np.float32)
    elif way == "huge":
        tensor.dims[:] = [2**15, 2**15, 3, 3]
    elif way == "many that are large":
        for k in range(40):
            model.graph.sparse_initializer.append(sparse_of(np.eye(1, 8, dtype=np.float32), f"s{k}"))
            model.graph.sparse_initializer[-1].dims[:] = [2**11, 2**11]
    elif way == "a huge Constant":
        tensor = sparse_of(np.eye(1, 8, dtype=np.float32), "c")
        tensor.dims[:] = [2**17, 2**17]
        model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], sparse_value=tensor))
        return model
    tensor.indices.CopyFrom(numpy_helper.from_array(places))
    return model


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("a place beyond the end", "'w1' has an index outside"),
        ("a place before the start", "'w1' has an index outside"),
        ("places missing", "'w1' has indices of shape"),
        ("places by another number of axes", "'w1' has indices of shape"),
        ("places as floats", "'w1' has indices of shape"),
        ("huge", "'w1' of shape .* too large"),
        ("many that are large", "too large to unpack"),
        ("a huge Constant", "'c' of shape .* too large"),
    ],
)
def test_what_cannot_be_unpacked_is_refused_by_name(way, says):
    with pytest.raises(ModelError, match=says):
        api.open_model(spoilt(way))


def test_a_sparse_size_is_not_taken_for_its_values():
    """The shape {0, 4}, as one value and its place, is not a size of one axis."""
    model = surgery.model_of(
        "(float[2] x) => (float[] y) { c = ConstantOfShape(s) k = Shape(c) f = Cast<to=1>(k) y = Add(f, x) }"
    )
    values = helper.make_tensor("s", TensorProto.INT64, [1], [4])
    where = helper.make_tensor("s_at", TensorProto.INT64, [1], [1])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, [2]))
    check_model(model)
