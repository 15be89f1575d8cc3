"""The yardstick of these tests: a cut model must equal the original with the removed channels masked.

Models are written as ONNX text. A weight is declared by its shape alone, `<float[8,3,3,3] w>`, and is filled
with seeded random numbers; a constant that means something is given its values, `<int64[2] s = {1, -1}>`.
The masking shares no code with the tool: it reads only the published list of cuts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxprune.channels import Channels, find_channels, removed_cuts
from onnxprune.errors import ModelError
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.runtime.sessions import open_session
from tests.rewrite.steps import cut

TOLERANCE = 1e-5
STIRS = 4
"""Draws of `stirred`: one may move what is left of a difference of large numbers by next to nothing."""
DTYPES = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.DOUBLE: np.float64, TensorProto.INT64: np.int64, TensorProto.INT8: np.int8,
          TensorProto.UINT8: np.uint8, TensorProto.INT32: np.int32, TensorProto.BOOL: np.bool_}  # fmt: skip


@functools.cache
def newest_opset() -> int:
    """The newest opset that the installed ONNX Runtime loads; the onnx package may already know newer ones."""
    port = (
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]),
    )
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", port[:1], port[1:])
    for opset in range(onnx.defs.onnx_opset_version(), 18, -1):
        try:
            open_session(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))
            return opset
        except ModelError:
            continue
    return 18


def rows(cases: Iterable[Any]) -> list[Any]:
    """Rows as parameters; one of an opset that ONNX Runtime does not load here is skipped, and says so."""
    return [
        pytest.param(
            case,
            id=case.name,
            marks=pytest.mark.skipif(case.opset > 18 and case.opset > newest_opset(), reason=f"ONNX Runtime here has no opset {case.opset}"),
        )
        for case in cases
    ]  # fmt: skip


def model_of(text: str, opset: int = 18, seed: int = 0) -> onnx.ModelProto:
    """A model from text; everything that is read and made by nobody becomes a random weight."""
    head = text.lstrip()
    if not head.startswith("<"):
        ms = ', "com.microsoft" : 1' if "com.microsoft" in text else ""
        text = f'<ir_version: 8, opset_import: ["" : {opset}{ms}]> g {head}'
    model = parser.parse_model(text)
    return fill(model, seed)


def fill(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Turn the value infos that no node makes into random initializers, in place."""
    rng = np.random.default_rng(seed)
    made = {o for n in model.graph.node for o in n.output} | {t.name for t in model.graph.initializer}
    weights = [v for v in model.graph.value_info if v.name not in made]
    others = [v for v in model.graph.value_info if v.name in made]
    for info in weights:
        kind = info.type.tensor_type
        value = _random(rng, info.name, [d.dim_value for d in kind.shape.dim], DTYPES[kind.elem_type])
        model.graph.initializer.append(numpy_helper.from_array(value, info.name))
    del model.graph.value_info[:]
    model.graph.value_info.extend(others)
    return model


def _random(rng: np.random.Generator, name: str, shape: list[int], dtype: type) -> np.ndarray:
    if np.dtype(dtype).kind in "iu":
        low, high = (-100, 100) if np.dtype(dtype).kind == "i" else (100, 156)
        return rng.integers(low, high, shape).astype(dtype)
    if name.startswith(("var", "pos")):  # variances, scales of quantization
        return rng.uniform(0.5, 1.5, shape).astype(dtype)
    if name.startswith("exact"):  # powers of two: sums of quantized values are exact in any order
        return np.exp2(rng.integers(-4, -1, shape)).astype(dtype)
    fan = max(1.0, np.prod(shape[1:]) if len(shape) > 1 else 4.0)
    return (rng.standard_normal(shape) / np.sqrt(fan) * 1.5).astype(dtype)


def feeds_of(model: onnx.ModelProto, seed: int = 1, **dims: int) -> dict[str, np.ndarray]:
    """Random feeds; named dimensions take their size from `dims`, else 2."""
    rng = np.random.default_rng(seed)
    inits = {t.name for t in model.graph.initializer}
    feeds = {}
    for i in model.graph.input:
        if i.name in inits:
            continue
        kind = i.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else dims.get(d.dim_param, 2) for d in kind.shape.dim]
        dtype = DTYPES[kind.elem_type]
        if dtype == np.bool_:
            feeds[i.name] = np.ones(shape, bool)
        elif np.dtype(dtype).kind in "iu":
            feeds[i.name] = rng.integers(0, 4, shape).astype(dtype)
        else:
            feeds[i.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return open_session(model, optimise=False, threads=1).run(feeds)


def masked(model: onnx.ModelProto, cuts: list[dict]) -> onnx.ModelProto:
    """The original with every removed index of every listed input multiplied by zero.

    Quantized operands of QLinear operators are set to their zero point in place of the product.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    by_output = {n.output[0]: n for n in model.graph.node}
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    new: dict[str, list[onnx.NodeProto]] = {}
    for k, item in enumerate(cuts):
        node = by_output[item["node"]]
        name, position = node.input[item["input"]], item["input"]
        mask = np.ones(item["length"], np.float32)
        mask[item["removed"]] = 0
        shape = [1] * item["rank"]
        shape[item["axis"]] = -1
        stem = f"__{k}"
        if name in values and values[name].dtype != np.float32:
            keep = mask.reshape(shape) != 0
            values[stem] = np.where(keep, values[name], _zero_point(node, position, values)).astype(values[name].dtype)
            model.graph.initializer.append(numpy_helper.from_array(values[stem], stem))
        else:
            model.graph.initializer.append(numpy_helper.from_array(mask.reshape(shape), stem + "_mask"))
            new.setdefault(item["node"], []).append(helper.make_node("Mul", [name, stem + "_mask"], [stem]))
        node.input[position] = stem
    nodes = []
    for n in model.graph.node:
        nodes += [*new.get(n.output[0], []), n]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


ZERO_POINT = {("QLinearConv", 3): 5, ("QLinearMatMul", 3): 5, ("ConvInteger", 1): 3, ("MatMulInteger", 1): 3,
              ("QGemm", 3): 5, ("QLinearAdd", 3): 5, ("QLinearMul", 3): 5,
              ("DynamicQuantizeLSTM", 1): 9, ("DynamicQuantizeLSTM", 2): 11}  # fmt: skip


def _zero_point(node: onnx.NodeProto, position: int, values: dict[str, np.ndarray]) -> np.ndarray:
    at = ZERO_POINT.get((node.op_type, position))
    zero = values[node.input[at]] if at is not None and at < len(node.input) else np.zeros((), np.int8)
    if zero.size > 1 and node.op_type in ("QLinearConv", "ConvInteger"):
        return zero.reshape(-1, 1, 1, 1)
    if node.op_type == "DynamicQuantizeLSTM":
        return zero.flat[0]  # the same for all, or nothing is cut
    return zero.reshape(-1, 1) if zero.size > 1 and node.op_type == "QGemm" else zero


def find(model: onnx.ModelProto, feeds: dict[str, np.ndarray] | None = None, **options) -> tuple[Graph, Channels]:
    graph = Graph(model)
    return graph, find_channels(graph, observe(graph, feeds or feeds_of(model)), **options)


def choose(channels: Channels, how: str | int) -> dict[str, np.ndarray]:
    """What to keep of every group: "half", all but "one", or a seeded random subset."""
    keep = {}
    rng = np.random.default_rng(how if isinstance(how, int) else 0)
    for g in channels.groups:
        if how == "half":
            keep[g.name] = np.arange(0, g.width, 2)
        elif how == "one":
            keep[g.name] = np.arange(1, g.width) if g.width > 1 else np.arange(1)
        elif rng.random() < 0.75:
            keep[g.name] = np.sort(rng.permutation(g.width)[: rng.integers(1, g.width + 1)])
    return keep


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(a - b).max() / (np.abs(a).max() + 1e-12)) if a.size else 0.0


def stirred(feeds: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """The feeds, changed by about as much as rounding does."""
    rng = np.random.default_rng(seed)
    return {
        n: (v * (1 + rng.uniform(-3e-7, 3e-7, v.shape))).astype(v.dtype) if v.dtype.kind == "f" else v
        for n, v in feeds.items()
    }


def assert_exact(
    model: onnx.ModelProto, graph: Graph, channels: Channels, how: str | int, **dims: int
) -> onnx.ModelProto:
    """Cut, and compare with the masked original. Returns the cut model."""
    alive = channels.alive(choose(channels, how))
    before = model.SerializeToString(deterministic=True)
    pruned = cut(graph, channels, alive)
    assert model.SerializeToString(deterministic=True) == before, "the original was edited"
    feeds = feeds_of(model, seed=3, **dims)
    reference = masked(model, removed_cuts(graph, channels, alive))
    wanted, found = run(reference, feeds), run(pruned, feeds)
    for k, (a, b, out) in enumerate(zip(wanted, found, model.graph.output, strict=True)):
        assert a.shape == b.shape, f"{out.name}: {a.shape} became {b.shape}"
        if a.dtype.kind != "f":
            assert np.array_equal(a, b), out.name
        else:
            assert np.isfinite(a).all(), f"{out.name}: the model of this row is unsound"
            error = distance(a, b)
            if TOLERANCE <= error < 1e-3:  # a norm of a nearly constant map: how much does rounding do to it?
                moved = max(distance(a, run(reference, stirred(feeds, draw))[k]) for draw in range(STIRS))
                error = max(0.0, error - 10 * moved)
            assert error < TOLERANCE, f"{out.name}: off by {error:.1e}"
    return pruned


def assert_explained(graph: Graph, channels: Channels) -> None:
    """Every index of every weight axis that makes or reads channels is in a group or has a reason."""
    covered = {}
    for p in channels.pinned:
        assert p.reason and p.node, p
        covered[p.use, p.axis] = covered.get((p.use, p.axis), 0) + p.count
    added = {i for n in graph.nodes.values() if n.op_type == "Add" for i in n.input}
    for key, node in graph.nodes.items():
        if key in added and node.op_type == "DequantizeLinear":
            continue  # a table or a bias: no axis of its own makes or reads channels
        if all(graph.constant(o) is not None for o in node.output if o):
            continue  # folded
        for i, axis in WEIGHT_AXES.get(node.op_type, ()):
            if i >= len(node.input) or (node.op_type == "Gemm" and i == 2):
                continue
            value = graph.constant(node.input[i])
            if value is None or value.ndim < (-axis if axis < 0 else axis + 1) or value.shape[axis] == 1:
                continue
            if node.op_type == "Einsum" and value.ndim == 1:
                continue  # factors: like a bias, they neither make nor read
            axis %= value.ndim
            units = channels.params.get((key, i), {}).get(axis, np.full(value.shape[axis], -1))
            free = int((units >= 0).sum())
            assert free + covered.get(((key, i), axis), 0) == len(units), (key, i, axis, node.op_type)


WEIGHT_AXES = {
    "Conv": [(1, 0), (1, 1)], "ConvTranspose": [(1, 0), (1, 1)], "Gemm": [(0, 0), (0, 1), (1, 0), (1, 1)],
    "MatMul": [(0, -2), (0, -1), (1, -2), (1, -1)], "LSTM": [(1, 1), (1, 2), (2, 1), (2, 2)],
    "GRU": [(1, 1), (1, 2), (2, 1), (2, 2)], "DequantizeLinear": [(0, 0), (0, 1)],
    "QLinearConv": [(3, 0), (3, 1)], "QLinearMatMul": [(3, 0), (3, 1)], "Gather": [(0, 0), (0, 1)],
    "ConvInteger": [(1, 0), (1, 1)], "MatMulInteger": [(1, 0), (1, 1)], "Einsum": [(0, 0), (0, 1), (1, 0), (1, 1)],
}  # fmt: skip
