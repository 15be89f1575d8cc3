"""Every entry of the table gives what ONNX Runtime gives; what the table cannot tell, it does not guess."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph import evaluate, fold, operators
from onnxprune.runtime.sessions import open_session

F = np.arange(-3, 3, dtype=np.float32).reshape(2, 3) * 1.25
P = np.abs(F) + 0.5
M = np.array([-7, 7, -7, 7, -1, 6], np.int64)
D = np.array([2, -2, -2, 2, 2, 3], np.int64)
BIG = np.array([2**62 + 1, -(2**62) - 1], np.int64)
V = np.arange(6, dtype=np.int32)
B = np.array([[True, False, True], [False, False, True]])


def i64(*values):
    return np.array(values, np.int64)


def node_of(op, inputs, attrs, outputs=1):
    names = [f"i{k}" if v is not None else "" for k, v in enumerate(inputs)]
    return helper.make_node(op, names, [f"o{k}" for k in range(outputs)], **attrs)


def by_ort(node, inputs, opset):
    feeds = {name: v for name, v in zip(node.input, inputs, strict=True) if v is not None}
    ports = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in feeds.items()
    ]
    outs = [helper.make_empty_tensor_value_info(o) for o in node.output]
    model = helper.make_model(
        helper.make_graph([node], "one", ports, outs),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    return open_session(model, optimise=False, threads=1).run(feeds)


def tensor(value):
    return numpy_helper.from_array(np.asarray(value))


# op, attributes, inputs[, opset[, outputs]]
ROWS = [
    ("Constant", {"value": tensor(F)}, []),
    ("Constant", {"value": tensor(np.float16(2))}, []),
    ("Constant", {"value_float": 1.5}, []),
    ("Constant", {"value_int": -3}, []),
    ("Constant", {"value_floats": [1.5, 2.0]}, []),
    ("Constant", {"value_ints": [1, -2]}, []),
    ("Identity", {}, [F]),
    ("Dropout", {}, [F]),
    ("Dropout", {}, [F, np.float32(0.5), np.array(False)]),
    ("Cast", {"to": TensorProto.INT64}, [F]),
    ("Cast", {"to": TensorProto.INT32}, [F]),
    ("Cast", {"to": TensorProto.BOOL}, [F]),
    ("Cast", {"to": TensorProto.FLOAT}, [M]),
    ("Cast", {"to": TensorProto.FLOAT16}, [F]),
    ("Cast", {"to": TensorProto.FLOAT}, [B]),
    ("Cast", {"to": TensorProto.UINT8}, [V]),
    ("Transpose", {}, [F]),
    ("Transpose", {"perm": [1, 2, 0]}, [F.reshape(1, 2, 3)]),
    ("Reshape", {}, [F, i64(3, 2)]),
    ("Reshape", {}, [F, i64(0, -1, 1)]),
    ("Reshape", {}, [F, i64(-1)]),
    ("Reshape", {}, [np.zeros((0, 3), np.float32), i64(0, 4), ], 18),
    ("Reshape", {"allowzero": 1}, [np.zeros((0, 3), np.float32), i64(3, 0)]),
    ("Reshape", {}, [np.float32(3).reshape(1, 1), np.zeros(0, np.int64)]),
    ("Flatten", {}, [F.reshape(1, 2, 3)]),
    ("Flatten", {"axis": 0}, [F]),
    ("Flatten", {"axis": 2}, [F]),
    ("Flatten", {"axis": -1}, [F.reshape(1, 2, 3)]),
    ("Flatten", {}, [np.zeros((2, 0, 3), np.float32)]),
    ("Squeeze", {}, [F.reshape(1, 2, 1, 3)]),
    ("Squeeze", {}, [F.reshape(1, 2, 1, 3), i64(-2)]),
    ("Squeeze", {"axes": [0]}, [F.reshape(1, 2, 1, 3)], 11),
    ("Squeeze", {}, [i64(4)]),
    ("Unsqueeze", {}, [F, i64(0, -1)]),
    ("Unsqueeze", {}, [F, i64(3, 1)]),
    ("Unsqueeze", {"axes": [1]}, [F], 11),
    ("Unsqueeze", {}, [np.array(4, np.int64), i64(0)]),
    ("Shape", {}, [F]),
    ("Shape", {}, [np.float32(1)]),
    ("Shape", {"start": 1}, [F.reshape(1, 2, 3)]),
    ("Shape", {"start": -2, "end": -1}, [F.reshape(1, 2, 3)]),
    ("Shape", {"start": -9, "end": 9}, [F]),
    ("Shape", {"start": 2, "end": 1}, [F.reshape(1, 2, 3)]),
    ("Size", {}, [F]),
    ("Concat", {"axis": -1}, [F, P, F]),
    ("Concat", {"axis": 0}, [M, D, i64()]),
    ("Gather", {}, [F, i64(-1, 0)]),
    ("Gather", {"axis": 1}, [F, i64(0, -3).reshape(2, 1)]),
    ("Gather", {"axis": -1}, [F, np.array(-1, np.int64)]),
    ("Gather", {}, [M, np.array(2, np.int32)]),
    ("Slice", {}, [F, i64(0), i64(1)]),
    ("Slice", {}, [V, i64(1), i64(2**63 - 1), i64(0), i64(2)]),
    ("Slice", {}, [V, i64(-1), i64(-(2**63)), i64(0), i64(-1)]),
    ("Slice", {}, [V, i64(9), i64(-9), i64(0), i64(-2)]),
    ("Slice", {}, [V, i64(4), i64(1), i64(-1), i64(-1)]),
    ("Slice", {}, [V, i64(4), i64(-6), i64(0), i64(-1)]),
    ("Slice", {}, [V, i64(-9), i64(-20), i64(0), i64(-1)]),
    ("Slice", {}, [V, i64(-9), i64(-2)]),
    ("Slice", {}, [V, i64(3), i64(3)]),
    ("Slice", {}, [F, i64(1, 0), i64(3, 2), i64(1, 0)]),
    ("Slice", {}, [F, i64(1), i64(3), i64(-1), None], 18),
    ("Slice", {"starts": [1], "ends": [2147483647], "axes": [1]}, [F], 9),
    ("Slice", {"starts": [0, -2], "ends": [1, -1]}, [F], 9),
    ("Split", {"axis": 1, "split": [1, 2]}, [F], 11, 2),
    ("Split", {"axis": 0}, [F], 11, 2),
    ("Split", {"axis": -1}, [F, i64(2, 1)], 13, 2),
    ("Split", {"axis": -1}, [F], 13, 3),
    ("Split", {"axis": -1, "num_outputs": 2}, [F], 18, 2),
    ("Split", {"axis": 0, "num_outputs": 4}, [np.arange(7, dtype=np.float32)], 18, 4),
    ("Split", {}, [M, i64(0, 6)], 18, 2),
    ("Range", {}, [np.array(v, np.int64) for v in (1, 8, 3)]),
    ("Range", {}, [np.array(v, np.int64) for v in (5, -2, -2)]),
    ("Range", {}, [np.array(v, np.int64) for v in (5, 5, 1)]),
    ("Range", {}, [np.array(v, np.int64) for v in (5, 2, 1)]),
    ("Range", {}, [np.array(v, np.float32) for v in (0, 1, 0.1)]),
    ("ConstantOfShape", {}, [i64(2, 3)]),
    ("ConstantOfShape", {"value": tensor(np.array([7], np.int64))}, [i64(2)]),
    ("ConstantOfShape", {}, [i64()]),
    ("ConstantOfShape", {}, [i64(0, 2)]),
    ("Expand", {}, [F.reshape(2, 1, 3), i64(4, 1)]),
    ("Expand", {}, [F, i64(2, 1, 1)]),
    ("Expand", {}, [B, i64(2, 2, 3)]),
    ("Tile", {}, [F, i64(2, 1)]),
    ("Add", {}, [F, P[0]]),
    ("Add", {}, [F[0], F]),
    ("Sub", {}, [V, V[1:2]]),
    ("Mul", {}, [F, np.float32(2)]),
    ("Div", {}, [F, P]),
    ("Div", {}, [M, D]),
    ("Div", {}, [BIG, i64(1)]),
    ("Div", {}, [BIG, i64(3)]),
    ("Div", {}, [M.astype(np.int32), D.astype(np.int32)]),
    ("Div", {}, [np.array([7, 200], np.uint8), np.array([2, 3], np.uint8)]),
    ("Mod", {}, [M, D]),
    ("Mod", {"fmod": 1}, [M, D]),
    ("Mod", {"fmod": 1}, [F, P]),
    ("Pow", {}, [F, np.float32(2)]),
    ("Pow", {}, [M, np.float32(2)]),
    ("Pow", {}, [M, i64(3)]),
    ("Equal", {}, [M, D]),
    ("Less", {}, [F, P]),
    ("Greater", {}, [M, D]),
    ("LessOrEqual", {}, [M, D]),
    ("GreaterOrEqual", {}, [M, D]),
    ("And", {}, [B, B[::-1]]),
    ("Or", {}, [B, B[::-1]]),
    ("Xor", {}, [B, B[::-1]]),
    ("Not", {}, [B]),
    ("Where", {}, [B, F, P[0]]),
    ("Where", {}, [B[0], np.array(-1, np.int64), i64(1, 2, 3)]),
    ("Neg", {}, [F]),
    ("Neg", {}, [M]),
    ("Abs", {}, [F]),
    ("Floor", {}, [F]),
    ("Ceil", {}, [F]),
    ("Sqrt", {}, [P]),
    ("Reciprocal", {}, [P]),
    ("Exp", {}, [F]),
    ("Log", {}, [P]),
    ("Sin", {}, [F]),
    ("Cos", {}, [F]),
    ("Min", {}, [F, P[0], np.float32(0)]),
    ("Min", {}, [M]),
    ("Clip", {}, [D, np.int64(1)]),
    ("Clip", {}, [D, np.int64(3), np.int64(2)]),
    ("Clip", {}, [F, None, np.float32(0.5)]),
    ("Clip", {}, [F]),
    ("Clip", {"min": -0.5, "max": 0.5}, [F], 6),
    ("Max", {}, [F, P[0], np.float32(0)]),
    ("Max", {}, [M, D]),
    ("ReduceProd", {}, [V[1:].reshape(1, 5)]),
    ("ReduceProd", {"keepdims": 0}, [M]),
    ("ReduceSum", {"keepdims": 0}, [F, i64(-1)]),
    ("ReduceSum", {"axes": [1]}, [F], 11),
    ("ReduceSum", {}, [F, i64()]),
    ("ReduceSum", {"noop_with_empty_axes": 1}, [F, i64()]),
    ("ReduceSum", {"noop_with_empty_axes": 1}, [F]),
    ("ReduceMax", {"axes": [0], "keepdims": 0}, [F], 13),
    ("ReduceMax", {}, [M, i64(0)], 18),
    ("ReduceMin", {}, [F]),
    ("ReduceMin", {"axes": [-1]}, [M.reshape(2, 3)], 13),
]  # fmt: skip


def _id(row):
    return f"{row[0]}-{'-'.join(f'{k}' for k in row[1])}-{'x'.join(str(np.shape(v)) for v in row[2])}"


@pytest.mark.parametrize("row", ROWS, ids=_id)
def test_agrees_with_ort(row):
    op, attrs, inputs, opset, outputs = (*row, *(18, 1)[len(row) - 3 :])
    inputs = [np.asarray(v) if v is not None else None for v in inputs]
    while inputs and inputs[-1] is None:
        inputs.pop()
    node = node_of(op, inputs, attrs, outputs)
    got, expected = evaluate.evaluate(node, inputs, opset), by_ort(node, inputs, opset)
    assert got is not None
    for mine, theirs in zip(got, expected, strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        if mine.dtype.kind == "f":
            np.testing.assert_allclose(mine, theirs, rtol=1e-6)
        else:
            np.testing.assert_array_equal(mine, theirs)


def test_every_entry_has_a_row():
    plain = {line.name for line in operators.lines() if line.numpy}
    assert {row[0] for row in ROWS} == set(evaluate.TABLE) | plain


CANNOT = [
    ("Constant", {"value_string": "x"}, []),
    ("Dropout", {}, [F, np.float32(0.5), np.array(True)]),
    ("Dropout", {}, [F], 6),
    ("Cast", {"to": TensorProto.STRING}, [F]),
    ("Cast", {"to": TensorProto.FLOAT8E4M3FN}, [F]),
    ("Cast", {"to": TensorProto.INT32}, [np.float32([np.nan])]),
    ("Cast", {"to": TensorProto.INT32}, [np.float32([1e20])]),
    ("Reshape", {}, [F, i64(4, 4)]),
    ("Reshape", {}, [F, i64(2, 3, 0)]),
    ("Gather", {}, [M, i64(6)]),
    ("Slice", {}, [V, i64(0), i64(1), i64(0), i64(0)]),
    ("Slice", {}, [V]),
    ("Split", {}, [M, i64(2, 2)]),
    ("Range", {}, [np.array(v, np.int64) for v in (0, 2**40, 1)]),
    ("Range", {}, [np.array(v, np.int64) for v in (0, 2, 0)]),
    ("ConstantOfShape", {}, [i64(2**20, 2**20)]),
    ("Expand", {}, [F[:, :1], i64(2**20, 1, 2**20)]),
    ("Tile", {}, [F, i64(2**30, 1)]),
    ("Div", {}, [M, M - M]),
    ("Mod", {}, [M, M - M]),
    ("Pow", {}, [M, i64(-1)]),
    ("Add", {"axis": 0, "broadcast": 1}, [F, F[:, 0]], 6),
    ("Add", {}, [F, None]),
    ("ReduceMax", {}, [np.zeros(0, np.float32)]),
]


@pytest.mark.parametrize("row", CANNOT, ids=_id)
def test_refuses(row):
    op, attrs, inputs, opset = (*row, *(18,)[len(row) - 3 :])
    node = node_of(op, inputs, attrs)
    assert evaluate.evaluate(node, [None if v is None else np.asarray(v) for v in inputs], opset) is None


def test_other_domains_are_not_in_the_table():
    node = helper.make_node("Identity", ["x"], ["y"], domain="com.example")
    assert not evaluate.foldable(node)
    assert evaluate.foldable(helper.make_node("Identity", ["x"], ["y"], domain="ai.onnx"))


def test_fold_runs_a_node_that_the_table_does_not_know():
    model = helper.make_model(
        helper.make_graph([], "g", [], []), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    (got,) = fold.run_node(node_of("Relu", [F], {}), [F], model)
    np.testing.assert_array_equal(got, np.maximum(F, 0))
    assert fold.run_node(helper.make_node("Nonsense", ["i0"], ["o"]), [F], model) is None
    values, indices = fold.run_node(node_of("TopK", [M, i64(2)], {}, 2), [M, i64(2)], model)
    assert values.tolist() == [7, 7] and len(indices) == 2


def test_fold_leaves_out_what_is_not_asked_for():
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 18]> g (float[1] x) => (float[1] x) {}')
    node = helper.make_node("LayerNormalization", ["a", "scale"], ["y", "", "deviation"])
    y, mean, deviation = fold.run_node(node, [F, P[0]], model)
    assert y.shape == F.shape and mean is None and deviation.shape == (2, 1)


def test_small_floats_cast_exactly():
    values = np.array([1.5, -0.25, 448.0], np.float32)
    for name in ("bfloat16", "float8_e4m3fn"):
        small = values.astype(getattr(ml_dtypes, name))
        (got,) = evaluate.evaluate(node_of("Cast", [small], {"to": TensorProto.FLOAT}), [small], 19)
        assert got.dtype == np.float32 and got.tolist() == values.tolist()
    (got,) = evaluate.evaluate(node_of("Cast", [values], {"to": TensorProto.BFLOAT16}), [values], 19)
    assert got.dtype == ml_dtypes.bfloat16 and got.tolist() == values.tolist()
